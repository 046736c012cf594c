#include "study/measure.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "draft/partial_model.h"
#include "engine/token_chain.h"

namespace firp {
namespace {

constexpr int kSkippedPositions = 8;  // the attention sink's outsized states; as in training

/// A text's rows of one pass.
struct Chunk {
  int first = 0;                              ///< position of the first token row
  std::vector<int> token_rows;                ///< of consecutive positions
  std::vector<std::vector<int>> pseudo_rows;  ///< of each token row, steps 1 ..; empty: no anchor
};

/// p_{i,j} is an anchor's where the token that it drafts, at i + j + 1, is an answer's.
int first_anchor(const Text& text) { return std::max(kSkippedPositions, text.answer_begin - 1); }

/// Runs a text in passes of token rows with the pseudo rows of the anchors among them, and calls
/// `visit` after each. Step j of an anchor exists where the text has the token that it drafts.
void run_text(Engine& engine, const Text& text, int steps, EarlierSteps earlier,
              std::span<const int> capture_layers,
              const std::function<void(const Pass&, const Chunk&)>& visit) {
  const int sequence = engine.add_sequence();
  const int last = static_cast<int>(text.tokens.size()) - 1;
  for (int position = 0; position < last;) {
    Chunk chunk = {.first = position};
    std::vector<Row> rows;
    for (; position < last; ++position) {
      const int here = position >= first_anchor(text) ? std::min(steps, last - position - 1) : 0;
      if (static_cast<int>(rows.size()) + 1 + here > engine.options().max_rows) break;
      const int token_row = static_cast<int>(rows.size());
      rows.push_back({.sequence = sequence,
                      .parent = chunk.token_rows.empty() ? kContext : chunk.token_rows.back(),
                      .token = text.tokens[position]});
      chunk.token_rows.push_back(token_row);
      chunk.pseudo_rows.emplace_back();
      for (int step = 1; step <= here; ++step) {
        const int row = static_cast<int>(rows.size());
        rows.push_back({.sequence = sequence,
                        .parent = earlier == EarlierSteps::kSeen ? row - 1 : token_row,
                        .step = step,
                        .token_behind = text.tokens[position + 1]});
        chunk.pseudo_rows.back().push_back(row);
      }
    }
    const Pass pass = engine.forward(rows, capture_layers);
    visit(pass, chunk);
    pass.commit(sequence, chunk.token_rows);
  }
  engine.remove_sequence(sequence);
}

/// Adds a row whose candidates, best first, should hold `truth`.
template <typename Candidates>
void count(StepAgreement& step, const Candidates& candidates, Token truth) {
  ++step.rows;
  const std::size_t few = std::min<std::size_t>(candidates.size(), kTopCandidates);
  for (std::size_t rank = 0; rank < few; ++rank) {
    if (candidates[rank].token != truth) continue;
    for (std::size_t k = rank; k < kTopCandidates; ++k) ++step.hits[k];
    return;
  }
}

/// The cosine of a - mean and b - mean.
double cosine(std::span<const float> a, std::span<const float> b, std::span<const double> mean) {
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = a[i] - mean[i], y = b[i] - mean[i];
    ab += x * y;
    aa += x * x;
    bb += y * y;
  }
  return ab / std::sqrt(aa * bb + 1e-30);
}

}  // namespace

Agreement row_agreement(Engine& engine, std::span<const Text> texts, EarlierSteps earlier) {
  Agreement agreement(engine.draft_steps());
  for (const Text& text : texts) {
    run_text(
        engine, text, engine.draft_steps(), earlier, {}, [&](const Pass& pass, const Chunk& chunk) {
          std::vector<int> rows;
          for (const std::vector<int>& of_anchor : chunk.pseudo_rows) {
            rows.insert(rows.end(), of_anchor.begin(), of_anchor.end());
          }
          if (rows.empty()) return;
          const std::span<const BestTokens> best = pass.best_tokens(rows, kTopCandidates);
          std::size_t next = 0;
          for (std::size_t i = 0; i < chunk.pseudo_rows.size(); ++i) {
            for (std::size_t step = 0; step < chunk.pseudo_rows[i].size(); ++step) {
              count(agreement[step], best[next++].tokens, text.tokens[chunk.first + i + step + 2]);
            }
          }
        });
  }
  return agreement;
}

Agreement draft_agreement(Engine& engine, std::span<const Text> texts) {
  Agreement agreement(engine.draft_steps());
  for (const Text& text : texts) {
    run_text(engine, text, engine.draft_steps(), EarlierSteps::kSeen, {},
             [&](const Pass& pass, const Chunk& chunk) {
               for (std::size_t i = 0; i < chunk.pseudo_rows.size(); ++i) {
                 if (chunk.pseudo_rows[i].empty()) continue;
                 const Proposal proposal = pass.propose(chunk.pseudo_rows[i]);
                 for (std::size_t step = 0; step < chunk.pseudo_rows[i].size(); ++step) {
                   const std::size_t before = chunk.first + i + step + 1;
                   const auto behind =
                       proposal.behind(static_cast<int>(step) + 1, {&text.tokens[before], 1});
                   count(agreement[step], behind.front(), text.tokens[before + 1]);
                 }
               }
             });
  }
  return agreement;
}

Agreement early_exit_agreement(Engine& engine, std::span<const Text> texts, int layer, int steps) {
  const std::vector<Sublayer> skipped = sublayers_from(engine.config(), layer);
  Agreement agreement(steps);
  for (const Text& text : texts) {
    const int sequence = engine.add_sequence();
    const int last = static_cast<int>(text.tokens.size()) - 1;
    for (int first = 0; first < last;) {
      const int tokens = std::min(std::max(1, engine.options().max_rows / steps), last - first);
      std::vector<Row> rows = token_chain(sequence, std::span(text.tokens).subspan(first, tokens));
      std::vector<int> drafting;  // rows whose best token is the next draft
      for (int i = 0; i < tokens; ++i) {
        if (first + i > first_anchor(text)) drafting.push_back(i);
      }
      for (int step = 0; step < steps && !drafting.empty(); ++step) {
        const Pass pass = engine.forward(rows, {}, skipped);
        const std::span<const BestTokens> best = pass.best_tokens(drafting, kTopCandidates);
        std::vector<int> drafted;
        for (std::size_t i = 0; i < drafting.size(); ++i) {
          const int position = pass.position(drafting[i]) + 1;  // of the draft
          if (position > last) continue;
          count(agreement[step], best[i].tokens, text.tokens[position]);
          drafted.push_back(static_cast<int>(rows.size()));
          rows.push_back(
              {.sequence = sequence, .parent = drafting[i], .token = best[i].tokens.front().token});
        }
        drafting = std::move(drafted);
      }
      engine.forward(std::span(rows).first(tokens)).commit(sequence, first_rows(tokens));
      first += tokens;
    }
    engine.remove_sequence(sequence);
  }
  return agreement;
}

Similarity state_similarity(Engine& engine, std::span<const Text> texts) {
  const int steps = engine.draft_steps(), d = engine.config().hidden_size;
  Similarity result = {.first_layer = engine.config().layers};
  for (int step = 1; step <= steps; ++step) {
    result.first_layer = std::min(result.first_layer, engine.draft_layer(step));
  }
  const int layers = engine.config().layers - result.first_layer + 1;
  std::vector<int> captured(layers);
  std::iota(captured.begin(), captured.end(), result.first_layer);

  std::vector<std::vector<double>> means(layers, std::vector<double>(d));
  long long tokens = 0;
  for (const Text& text : texts) {
    run_text(engine, text, /*steps=*/0, EarlierSteps::kSeen, captured,
             [&](const Pass& pass, const Chunk& chunk) {
               for (std::size_t i = 0; i < chunk.token_rows.size(); ++i) {
                 if (chunk.first + static_cast<int>(i) < first_anchor(text)) continue;
                 ++tokens;
                 for (int l = 0; l < layers; ++l) {
                   const std::span<const float> h = pass.hidden(chunk.token_rows[i], captured[l]);
                   for (int k = 0; k < d; ++k) means[l][k] += h[k];
                 }
               }
             });
  }
  for (std::vector<double>& mean : means) {
    for (double& x : mean) x /= static_cast<double>(std::max(1LL, tokens));
  }

  const std::vector<double> zero(d);
  const std::vector<std::vector<double>> none(steps, std::vector<double>(layers));
  result.centred = result.plain = none;
  std::vector<std::vector<long long>> rows(steps, std::vector<long long>(layers));
  for (const Text& text : texts) {
    // Layer by layer: the tokens' states by position, and the pseudo rows' until theirs are there.
    struct PseudoState {
      int step, position;
      std::vector<float> state;
    };
    std::vector<std::vector<std::vector<float>>> of_tokens(layers);
    std::vector<std::vector<PseudoState>> of_pseudo_rows(layers);
    run_text(
        engine, text, steps, EarlierSteps::kSeen, captured,
        [&](const Pass& pass, const Chunk& chunk) {
          for (std::size_t i = 0; i < chunk.token_rows.size(); ++i) {
            for (int l = 0; l < layers; ++l) {
              const std::span<const float> h = pass.hidden(chunk.token_rows[i], captured[l]);
              of_tokens[l].emplace_back(h.begin(), h.end());
              for (int step = 1; step <= static_cast<int>(chunk.pseudo_rows[i].size()); ++step) {
                if (engine.draft_layer(step) > captured[l]) continue;
                const std::span<const float> p =
                    pass.hidden(chunk.pseudo_rows[i][step - 1], captured[l]);
                of_pseudo_rows[l].push_back({.step = step,
                                             .position = chunk.first + static_cast<int>(i) + step,
                                             .state = {p.begin(), p.end()}});
              }
            }
          }
        });
    for (int l = 0; l < layers; ++l) {
      for (const PseudoState& pseudo : of_pseudo_rows[l]) {
        const std::vector<float>& real = of_tokens[l][pseudo.position];
        result.centred[pseudo.step - 1][l] += cosine(pseudo.state, real, means[l]);
        result.plain[pseudo.step - 1][l] += cosine(pseudo.state, real, zero);
        ++rows[pseudo.step - 1][l];
      }
    }
  }
  for (int step = 0; step < steps; ++step) {
    for (int l = 0; l < layers; ++l) {
      const auto n = static_cast<double>(std::max(1LL, rows[step][l]));
      result.centred[step][l] /= n;
      result.plain[step][l] /= n;
    }
  }
  return result;
}

}  // namespace firp
