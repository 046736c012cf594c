#include "train/evaluation.h"

#include <algorithm>

namespace firp {
namespace {

constexpr int kAnchorsAPass = 96;
constexpr int kCandidates = 32;  // of each row: more cannot enter a tree of 32

}  // namespace

TextDrafts draft_text(const UpperLayers& upper, const Maps& maps, const TeacherText& text,
                      const torch::Tensor& hidden) {
  const torch::NoGradGuard no_gradient;
  const int steps = maps.steps();
  const torch::Tensor context = text.context.to(upper.device()).unsqueeze(2);
  TextDrafts drafts(text.anchors());
  for (int begin = 0; begin < text.anchors(); begin += kAnchorsAPass) {
    const int count = std::min(kAnchorsAPass, text.anchors() - begin);
    const torch::Tensor anchors =
        torch::arange(text.first_anchor + begin, text.first_anchor + begin + count)
            .to(upper.device())
            .unsqueeze(0);
    const torch::Tensor rows =
        maps.rows(hidden.narrow(0, begin, count).to(upper.device())).unsqueeze(0);
    const torch::Tensor states = upper.forward(maps.layer, rows, anchors, context).flatten(0, 2);
    const torch::Tensor logits = torch::linear(states, upper.head()).to(torch::kFloat32);
    const auto [top, ids] = logits.topk(std::min<std::int64_t>(kCandidates, logits.size(1)), 1);
    const torch::Tensor log_probabilities =
        (top - logits.logsumexp(1, true)).to(torch::kCPU).contiguous();
    const torch::Tensor tokens = ids.to(torch::kCPU).contiguous();
    const auto log_probability = log_probabilities.accessor<float, 2>();
    const auto token = tokens.accessor<std::int64_t, 2>();
    for (int row = 0; row < count * steps; ++row) {
      std::vector<Candidate> candidates;
      for (std::int64_t k = 0; k < top.size(1); ++k) {
        candidates.push_back({static_cast<Token>(token[row][k]), log_probability[row][k]});
      }
      drafts[begin + row / steps].push_back(std::move(candidates));
    }
  }
  return drafts;
}

void replay(const TeacherText& text, const TextDrafts& drafts, int nodes, long long& passes,
            long long& tokens) {
  // The anchor's row gives the token behind it, the tree's root; its drafts stand behind the root.
  for (int anchor = text.first_anchor; anchor < text.end_anchor;) {
    const std::vector<std::vector<Candidate>>& steps = drafts[anchor - text.first_anchor];
    DraftTree tree;
    if (nodes > 0) {
      tree = build_draft_tree(steps, nodes);
    } else {
      for (int step = 0; step < static_cast<int>(steps.size()); ++step) {
        tree.push_back({steps[step].front().token, step - 1, step + 1});
      }
    }
    const int root = anchor + 1;
    int accepted = 0;
    for (int node = kRoot, found = 0; found != kRoot; node = found) {
      found = kRoot;
      const std::size_t position = root + accepted + 1;
      for (int i = 0; i < static_cast<int>(tree.size()) && position < text.tokens.size(); ++i) {
        if (tree[i].parent == node && tree[i].token == text.tokens[position]) {
          found = i;
          ++accepted;
          break;
        }
      }
    }
    ++passes;
    tokens += 1 + accepted;
    anchor = root + accepted;
  }
}

Evaluation evaluate(const UpperLayers& upper, const Maps& maps, std::span<const TeacherText> texts,
                    const std::function<const torch::Tensor&(const TeacherText&)>& hidden_of,
                    const std::function<bool(int)>& on_text) {
  const int steps = maps.steps();
  std::vector<long long> rows(steps), hits1(steps), hits5(steps);
  const int sizes[] = {0, 8, 16, 32};
  long long passes[4] = {}, tokens[4] = {};
  for (int index = 0; index < static_cast<int>(texts.size()); ++index) {
    const TeacherText& text = texts[index];
    const TextDrafts drafts = draft_text(upper, maps, text, hidden_of(text));
    const auto own = text.top_ids.accessor<std::int32_t, 2>();
    for (int anchor = 0; anchor < text.anchors(); ++anchor) {
      for (int step = 1; step <= steps && anchor + step < own.size(0); ++step) {
        const std::vector<Candidate>& candidates = drafts[anchor][step - 1];
        const auto end = candidates.begin() + std::min<std::size_t>(5, candidates.size());
        const auto at = std::find_if(candidates.begin(), end, [&](const Candidate& candidate) {
          return candidate.token == own[anchor + step][0];
        });
        ++rows[step - 1];
        hits1[step - 1] += at == candidates.begin();
        hits5[step - 1] += at != end;
      }
    }
    for (int i = 0; i < 4 && text.greedy; ++i) {
      replay(text, drafts, sizes[i], passes[i], tokens[i]);
    }
    if (!on_text(index + 1)) {
      break;
    }
  }
  Evaluation out;
  for (int step = 0; step < steps; ++step) {
    const float count = static_cast<float>(std::max(1LL, rows[step]));
    out.top1.push_back(static_cast<float>(hits1[step]) / count);
    out.top5.push_back(static_cast<float>(hits5[step]) / count);
  }
  float* const figures[] = {&out.chain, &out.tree8, &out.tree16, &out.tree32};
  for (int i = 0; i < 4; ++i) {
    *figures[i] =
        passes[i] == 0 ? 0 : static_cast<float>(tokens[i]) / static_cast<float>(passes[i]);
  }
  return out;
}

}  // namespace firp
