#include "train/evaluation.h"

#include <algorithm>
#include <cmath>

namespace firp {
namespace {

constexpr int kAnchorsAPass = 96;

/// Which of `candidates` is the token: its rank, or candidates.size().
std::size_t rank_of(const std::vector<Candidate>& candidates, Token token) {
  return static_cast<std::size_t>(std::ranges::find(candidates, token, &Candidate::token) -
                                  candidates.begin());
}

}  // namespace

TextDrafts draft_text(const UpperLayers& upper, const Maps& maps, const TeacherText& text,
                      const torch::Tensor& hidden, std::span<const std::int32_t> draft_vocabulary) {
  const torch::NoGradGuard no_gradient;
  const int steps = maps.steps();
  const torch::Tensor context = text.context.to(upper.device()).unsqueeze(2);
  torch::Tensor head = upper.head(), tokens_of_head;
  if (!draft_vocabulary.empty()) {
    tokens_of_head =
        torch::tensor(std::vector<std::int64_t>(draft_vocabulary.begin(), draft_vocabulary.end()))
            .to(upper.device());
    head = head.index_select(0, tokens_of_head);
  }
  const std::int64_t candidates = std::min<std::int64_t>(kRankedCandidates, head.size(0));

  TextDrafts drafts;
  drafts.candidates.resize(text.anchors());
  std::vector<torch::Tensor> all_ids, all_logits, all_inner;
  for (int begin = 0; begin < text.anchors(); begin += kAnchorsAPass) {
    const int count = std::min(kAnchorsAPass, text.anchors() - begin);
    const torch::Tensor anchors =
        torch::arange(text.first_anchor + begin, text.first_anchor + begin + count)
            .to(upper.device())
            .unsqueeze(0);
    const torch::Tensor behind = tokens_behind(text.tokens, hidden.size(0)).narrow(0, begin, count);
    const torch::Tensor states = upper.final_states(maps, hidden.narrow(0, begin, count),
                                                    upper.embeddings(behind), anchors, context)[0];
    const torch::Tensor logits = torch::linear(states.flatten(0, 1), head).to(torch::kFloat32);
    const auto [top, places] = logits.topk(candidates, 1);
    const torch::Tensor ids =
        draft_vocabulary.empty() ? places
                                 : tokens_of_head.index_select(0, places.flatten()).view_as(places);
    const torch::Tensor log_probabilities =
        (top - logits.logsumexp(1, true)).to(torch::kCPU).contiguous();
    const torch::Tensor tokens = ids.to(torch::kCPU).contiguous();
    const auto log_probability = log_probabilities.accessor<float, 2>();
    const auto token = tokens.accessor<std::int64_t, 2>();
    for (int row = 0; row < count * steps; ++row) {
      std::vector<Candidate> of_row;
      for (std::int64_t k = 0; k < candidates; ++k) {
        of_row.push_back({static_cast<Token>(token[row][k]), log_probability[row][k]});
      }
      drafts.candidates[begin + row / steps].push_back(std::move(of_row));
    }
    if (maps.sequence) {
      all_ids.push_back(ids.view({count, steps, candidates}));
      all_logits.push_back(top.view({count, steps, candidates}));
      all_inner.push_back(maps.sequence->inner_of_states(states));
    }
  }
  if (maps.sequence && !all_ids.empty()) {
    drafts.ids = torch::cat(all_ids);
    drafts.logits = torch::cat(all_logits);
    drafts.inner = torch::cat(all_inner);
  }
  return drafts;
}

Continuations continuations(const UpperLayers& upper, const Maps& maps, const TextDrafts& drafts,
                            int anchor) {
  return [&upper, &maps, &drafts, anchor](int step, std::span<const Token> previous) {
    const torch::NoGradGuard no_gradient;
    const SequentialHeads& heads = *maps.sequence;
    const std::vector<std::int64_t> before(previous.begin(), previous.end());
    const torch::Tensor embeddings = upper.embeddings(torch::tensor(before));
    const torch::Tensor correction =
        heads.correction_behind(step - 1, drafts.inner[anchor][step - 1].unsqueeze(0), embeddings);
    const torch::Tensor ids = drafts.ids[anchor][step - 1];
    const torch::Tensor candidate_rows = upper.head().index_select(0, ids).to(torch::kFloat32);
    const torch::Tensor log_probabilities =
        torch::log_softmax(
            drafts.logits[anchor][step - 1] + torch::mm(correction, candidate_rows.t()), 1)
            .to(torch::kCPU)
            .contiguous();
    const torch::Tensor tokens = ids.to(torch::kCPU).contiguous();
    const auto value = log_probabilities.accessor<float, 2>();
    const auto token = tokens.accessor<std::int64_t, 1>();
    double mass = 0;  // the row's own probability of all these candidates: they share it anew
    for (const Candidate& candidate : drafts.candidates[anchor][step - 1]) {
      mass += std::exp(static_cast<double>(candidate.log_probability));
    }
    const auto log_mass = static_cast<float>(std::log(mass));
    std::vector<std::vector<Candidate>> lists(previous.size());
    for (std::size_t i = 0; i < lists.size(); ++i) {
      for (std::int64_t k = 0; k < token.size(0); ++k) {
        lists[i].push_back(
            {static_cast<Token>(token[k]), value[static_cast<std::int64_t>(i)][k] + log_mass});
      }
      std::ranges::stable_sort(lists[i], std::greater{}, &Candidate::log_probability);
    }
    return lists;
  };
}

TreeOf trees_of_rows(const TextDrafts& drafts, int nodes) {
  return [&drafts, nodes](int anchor, Token root) {
    const std::vector<std::vector<Candidate>>& steps = drafts.candidates[anchor];
    if (nodes > 0) {
      return build_draft_tree(steps, nodes);
    }
    return build_draft_chain(
        static_cast<int>(steps.size()), root,
        [&](int step, std::span<const Token>) { return std::vector(1, steps[step - 1]); });
  };
}

TreeOf trees_of_sequence(const UpperLayers& upper, const Maps& maps, const TextDrafts& drafts,
                         int nodes) {
  return [&upper, &maps, &drafts, nodes](int anchor, Token root) {
    const Continuations behind = continuations(upper, maps, drafts, anchor);
    return nodes > 0 ? build_draft_tree(maps.steps(), nodes, root, behind)
                     : build_draft_chain(maps.steps(), root, behind);
  };
}

void replay(const TeacherText& text, const TreeOf& tree_of, long long& passes, long long& tokens) {
  // The anchor's row gives the token behind it, the tree's root; its drafts stand behind the root.
  for (int anchor = text.first_anchor; anchor < text.end_anchor;) {
    const int root = anchor + 1;
    const DraftTree tree = tree_of(anchor - text.first_anchor, text.tokens[root]);
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
                    std::span<const std::int32_t> draft_vocabulary,
                    const std::function<bool(int)>& on_text) {
  const int steps = maps.steps();
  std::vector<long long> rows(steps), hits1(steps), hits5(steps), sequence_hits1(steps);
  const int sizes[] = {0, 8, 16, 32};
  struct Count {
    long long passes[4] = {}, tokens[4] = {};
    TokensPerForward rates() const {
      const auto rate = [&](int i) {
        return passes[i] == 0 ? 0 : static_cast<float>(tokens[i]) / static_cast<float>(passes[i]);
      };
      return {rate(0), rate(1), rate(2), rate(3)};
    }
  };
  Count of_rows, of_sequence;
  for (int index = 0; index < static_cast<int>(texts.size()); ++index) {
    const TeacherText& text = texts[index];
    const TextDrafts drafts = draft_text(upper, maps, text, hidden_of(text), draft_vocabulary);
    const auto own = text.top_ids.accessor<std::int32_t, 2>();
    for (int anchor = 0; anchor < text.anchors(); ++anchor) {
      for (int step = 1; step <= steps && anchor + step < own.size(0); ++step) {
        const Token truth = own[anchor + step][0];
        const std::size_t rank = rank_of(drafts.candidates[anchor][step - 1], truth);
        ++rows[step - 1];
        hits1[step - 1] += rank < 1;
        hits5[step - 1] += rank < 5;
        if (maps.sequence) {
          const Token before = text.tokens[text.first_anchor + anchor + step];
          const auto behind =
              continuations(upper, maps, drafts, anchor)(step, std::span(&before, 1));
          sequence_hits1[step - 1] += behind.front().front().token == truth;
        }
      }
    }
    for (int i = 0; i < 4 && text.greedy; ++i) {
      replay(text, trees_of_rows(drafts, sizes[i]), of_rows.passes[i], of_rows.tokens[i]);
      if (maps.sequence) {
        replay(text, trees_of_sequence(upper, maps, drafts, sizes[i]), of_sequence.passes[i],
               of_sequence.tokens[i]);
      }
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
    if (maps.sequence) {
      out.sequence_top1.push_back(static_cast<float>(sequence_hits1[step]) / count);
    }
  }
  out.maps = of_rows.rates();
  out.sequence = of_sequence.rates();
  return out;
}

}  // namespace firp
