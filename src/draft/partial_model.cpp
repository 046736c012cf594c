#include "draft/partial_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/clock.h"
#include "engine/token_chain.h"

namespace firp {
namespace {

constexpr int kMostSteps = 8;

/// What parts of the model cost, and how often their next token is the whole model's.
class PartialModelTrial {
 public:
  /// Cuts the text into chains, each on a context that the whole model computed, as drafts are:
  /// then one pass runs them all.
  PartialModelTrial(Engine& engine, std::span<const Token> text) : engine_(engine) {
    constexpr std::size_t kChain = 8, kLeastText = 2 * kChain;
    text = text.first(std::min<std::size_t>(text.size(), engine.options().max_rows));
    if (text.size() < kLeastText) throw Error("there is too little text to choose layers by");
    for (std::size_t begin = 0; begin + kChain <= text.size(); begin += kChain) {
      const int sequence = sequences_.emplace_back(engine.add_sequence());
      append_tokens(engine, sequence, text.first(begin));
      const int before = static_cast<int>(rows_.size());
      for (Row& row : token_chain(sequence, text.subspan(begin, kChain))) {
        if (row.parent != kContext) row.parent += before;
        rows_.push_back(row);
      }
    }
    next_ = next_tokens({});
    for (int rows = 1; rows <= kMostSteps + 1; ++rows) {
      verify_seconds_.push_back(seconds(text.first(rows), {}));
    }
  }
  ~PartialModelTrial() {
    for (const int sequence : sequences_) engine_.remove_sequence(sequence);
  }
  PartialModelTrial(const PartialModelTrial&) = delete;
  PartialModelTrial& operator=(const PartialModelTrial&) = delete;

  double agreement(std::span<const Sublayer> skipped) {
    const std::vector<Token> tokens = next_tokens(skipped);
    int same = 0;
    for (std::size_t i = 0; i < tokens.size(); ++i) same += tokens[i] == next_[i];
    return static_cast<double>(same) / static_cast<double>(tokens.size());
  }

  /// With the number of steps that gives most tokens a second; `rate` is that.
  PartialModel best_steps(std::vector<Sublayer> skipped, double* rate) {
    PartialModel part{.skipped = std::move(skipped), .steps = 1};
    part.agreement = agreement(part.skipped);
    const double draft_seconds = seconds(std::span(&rows_.front().token, 1), part.skipped);
    *rate = 0;
    double tokens = 1;
    for (int steps = 1; steps <= kMostSteps; ++steps) {
      tokens += std::pow(part.agreement, steps);
      const double here = tokens / (steps * draft_seconds + verify_seconds_[steps]);
      if (here > *rate) {
        *rate = here;
        part.steps = steps;
      }
    }
    return part;
  }

 private:
  /// The best token behind each one of the text.
  std::vector<Token> next_tokens(std::span<const Sublayer> skipped) {
    const Pass pass = engine_.forward(rows_, {}, skipped);
    std::vector<Token> next;
    for (const BestTokens& best : pass.best_tokens(first_rows(rows_.size()), 1)) {
      next.push_back(best.tokens.front().token);
    }
    return next;
  }

  /// Of a pass of `tokens` with its head, on the longest context.
  double seconds(std::span<const Token> tokens, std::span<const Sublayer> skipped) {
    const std::vector<Row> rows = token_chain(sequences_.back(), tokens);
    double best = INFINITY;
    for (int run = 0; run < 5; ++run) {
      const Stopwatch watch;
      engine_.forward(rows, {}, skipped).best_tokens(first_rows(rows.size()), 1);
      best = std::min(best, watch.seconds());
    }
    return best;
  }

  Engine& engine_;
  std::vector<int> sequences_;          ///< of each chain
  std::vector<Row> rows_;               ///< of all chains
  std::vector<Token> next_;             ///< the whole model's, behind each row
  std::vector<double> verify_seconds_;  ///< [rows - 1], of the whole model
};

/// Of `parts`, each of which skips more than the one before, the one that gives most tokens a
/// second.
PartialModel best_of(PartialModelTrial& trial, const std::vector<std::vector<Sublayer>>& parts) {
  PartialModel best;
  double best_rate = 0;
  for (const std::vector<Sublayer>& skipped : parts) {
    double rate = 0;
    PartialModel part = trial.best_steps(skipped, &rate);
    if (rate > best_rate) {
      best_rate = rate;
      best = std::move(part);
    }
  }
  return best;
}

}  // namespace

std::vector<Sublayer> sublayers_from(const ModelConfig& config, int layer) {
  std::vector<Sublayer> sublayers(2 * (config.layers - layer));
  std::iota(sublayers.begin(), sublayers.end(), 2 * layer);
  return sublayers;
}

DraftTree PartialModelSource::draft(const DraftPoint& point, const Proposal* /*proposal*/) {
  // What such a pass computes is not the model's, so it can't be kept: the path is run again for
  // each of its tokens, which costs little more than its last row.
  return draft_token_by_token(engine_, part_.steps, point, [&](std::span<const Token> path) {
    return engine_.forward(token_chain(point.sequence, path), {}, part_.skipped);
  });
}

PartialModel choose_sublayers_to_skip(Engine& engine, std::span<const Token> text) {
  PartialModelTrial trial(engine, text);
  std::vector<std::pair<double, Sublayer>> ranked;
  for (Sublayer part = 0; part < 2 * engine.config().layers; ++part) {
    ranked.emplace_back(-trial.agreement(std::span(&part, 1)), part);
  }
  std::ranges::sort(ranked);
  std::vector<std::vector<Sublayer>> parts;
  std::vector<Sublayer> skipped;
  for (const auto& [loss, part] : ranked) {
    skipped.push_back(part);
    parts.push_back(skipped);
  }
  return best_of(trial, parts);
}

PartialModel choose_exit_layer(Engine& engine, std::span<const Token> text) {
  PartialModelTrial trial(engine, text);
  std::vector<std::vector<Sublayer>> parts;
  for (int layer = engine.config().layers - 1; layer > 0; --layer) {
    parts.push_back(sublayers_from(engine.config(), layer));
  }
  return best_of(trial, parts);
}

}  // namespace firp
