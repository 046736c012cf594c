// Several sequences in one pass: what each gets, and keeps, is as if it had been alone.

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "engine/native_engine.h"
#include "engine/test_engines.h"

namespace firp {
namespace {

constexpr int kVocabulary = 320;
constexpr int kMaxRows = 256;
const std::vector<int> kCaptured = {1, 2};

/// What one sequence has in a pass. Rows are numbered as if it were alone.
struct Part {
  int sequence;
  std::vector<Row> rows;
  std::vector<int> decoded;               ///< token rows
  std::vector<std::vector<int>> anchors;  ///< pseudo rows of each
  std::vector<int> path;                  ///< that is accepted
};

/// An engine's sequence: what drafting behind its last token needs.
using Sources = std::vector<std::vector<float>>;

class PartMaker {
 public:
  PartMaker(const Engine& engine, std::mt19937& random) : engine_(engine), random_(random) {}

  /// A tree of tokens with pseudo rows behind some, a chunk of a prompt, or a step of deferred
  /// drafting: pseudo rows behind the last token of the context, and their token on top.
  Part make(int sequence, const Sources& sources) {
    Part part = {.sequence = sequence, .rows = {}, .decoded = {}, .anchors = {}, .path = {}};
    const int kind = below(sources.empty() ? 2 : 3);
    if (kind == 0) add_tree(part);
    if (kind == 1) add_chunk(part);
    if (kind == 2) add_deferred(part, sources);
    return part;
  }

 private:
  int below(int limit) { return static_cast<int>(random_() % limit); }
  Token token() { return below(kVocabulary); }

  void add_tree(Part& part) {
    const int nodes = 1 + below(16);
    for (int i = 0; i < nodes; ++i) {
      part.rows.push_back(
          {.sequence = part.sequence, .parent = below(i + 1) - 1, .token = token()});
      part.decoded.push_back(i);
    }
    for (int anchors = 1 + below(3); anchors-- > 0;) add_pseudo_rows(part, below(nodes), {});
    for (int node = nodes - 1 - below(nodes); node != kContext; node = part.rows[node].parent) {
      part.path.insert(part.path.begin(), node);
    }
  }

  void add_chunk(Part& part) {
    const std::vector<Token> tokens = random_tokens(1 + below(70), kVocabulary, random_);
    part.rows = token_chain(part.sequence, tokens);
    for (Row& row : part.rows) row.decoded = false;
    part.rows.back().decoded = true;
    part.decoded = {static_cast<int>(tokens.size()) - 1};
    part.path = first_rows(tokens.size());
    if (below(2) == 0) add_pseudo_rows(part, part.decoded[0], {});
  }

  void add_deferred(Part& part, const Sources& sources) {
    part.rows.push_back({.sequence = part.sequence, .token = token()});
    part.decoded = {0};
    add_pseudo_rows(part, kContext, sources);
    if (below(2) == 0) part.path = {0};
  }

  void add_pseudo_rows(Part& part, int anchor, const Sources& sources) {
    std::vector<int>& rows = part.anchors.emplace_back();
    const Token behind = token();
    const int steps = 1 + below(engine_.draft_steps());
    for (int step = 1; step <= steps; ++step) {
      rows.push_back(static_cast<int>(part.rows.size()));
      part.rows.push_back({.sequence = part.sequence,
                           .parent = step == 1 ? anchor : rows[step - 2],
                           .step = step,
                           .token_behind = behind});
      if (!sources.empty()) part.rows.back().source = sources[step - 1];
    }
  }

  const Engine& engine_;
  std::mt19937& random_;
};

/// Everything that a pass gives for a part, one behind the other. `rows`: where its rows are.
std::vector<float> results_of(const Pass& pass, const Part& part, std::span<const int> rows) {
  const auto of = [&](std::span<const int> own) {
    std::vector<int> numbers;
    for (const int row : own) numbers.push_back(rows[row]);
    return numbers;
  };
  std::vector<float> results = copied(pass.logits(of(part.decoded)));
  for (const BestTokens& best : pass.best_tokens(of(part.decoded), 5, /*log_sums=*/true)) {
    results.push_back(best.log_sum);
    for (const auto& [token, logit] : best.tokens) {
      results.insert(results.end(), {static_cast<float>(token), logit});
    }
  }
  for (const int row : of(part.decoded)) {
    for (const int layer : kCaptured) {
      const std::span<const float> state = pass.hidden(row, layer);
      results.insert(results.end(), state.begin(), state.end());
    }
  }
  return results;
}

/// What proposals say of all their steps, one behind the other.
std::vector<float> candidates_of(std::span<const Proposal> proposals) {
  std::vector<float> results;
  for (const Proposal& proposal : proposals) {
    for (int step = 1; step <= proposal.steps(); ++step) {
      for (const std::vector<Candidate>& list : proposal.behind(step, std::vector<Token>{7, 30})) {
        for (const auto& [token, log_probability] : list) {
          results.insert(results.end(), {static_cast<float>(token), log_probability});
        }
      }
    }
  }
  return results;
}

/// The rows of all parts in one batch, of which each part's keep their order.
struct JointBatch {
  std::vector<Row> rows;
  std::vector<std::vector<int>> numbers;  ///< [parts][rows]
  std::vector<std::vector<int>> anchors;  ///< of all parts
};

JointBatch join(std::span<const Part> parts, bool mixed, std::mt19937& random) {
  std::vector<std::size_t> order;
  for (std::size_t part = 0; part < parts.size(); ++part) {
    order.insert(order.end(), parts[part].rows.size(), part);
  }
  if (mixed) std::ranges::shuffle(order, random);
  JointBatch batch;
  batch.numbers.resize(parts.size());
  for (const std::size_t part : order) {
    std::vector<int>& numbers = batch.numbers[part];
    Row row = parts[part].rows[numbers.size()];
    if (row.parent != kContext) row.parent = numbers[row.parent];
    numbers.push_back(static_cast<int>(batch.rows.size()));
    batch.rows.push_back(row);
  }
  for (std::size_t part = 0; part < parts.size(); ++part) {
    for (const std::vector<int>& anchor : parts[part].anchors) {
      std::vector<int>& rows = batch.anchors.emplace_back();
      for (const int row : anchor) rows.push_back(batch.numbers[part][row]);
    }
  }
  return batch;
}

/// Two engines with the same sequences: in one they share their passes, in the other none does.
void expect_joint_passes_equal_single_ones(const TinyModel& model, const Heads& heads,
                                           CacheType cache_type, std::uint32_t seed) {
  SCOPED_TRACE(testing::Message() << "seed " << seed << (cache_type == CacheType::kQ8_0));
  std::mt19937 random(seed);
  const EngineOptions options = {.threads = 2,
                                 .context = 600,
                                 .positions = 4000,
                                 .max_rows = kMaxRows,
                                 .cache_type = cache_type,
                                 // Or drafts would be others in a pass of their own.
                                 .rough_drafts = false};
  NativeEngine joint(*model, options), single(*model, options);
  joint.set_heads(heads);
  single.set_heads(heads);
  std::vector<int> sequences;
  for (const int length : {0, 1, 62, 63, 64, 65, 127, 128, 130}) {
    if (random() % 2 == 0) continue;
    const int sequence = joint.add_sequence();
    ASSERT_EQ(single.add_sequence(), sequence);
    const std::vector<Token> tokens = random_tokens(length, kVocabulary, random);
    append(joint, sequence, tokens, kMaxRows);
    append(single, sequence, tokens, kMaxRows);
    sequences.push_back(sequence);
  }

  std::vector<Sources> sources(sequences.size());
  PartMaker maker(joint, random);
  for (int pass = 0; pass < 5; ++pass) {
    std::vector<Part> parts;
    std::size_t rows = 0;
    for (const int sequence : sequences) {
      Part part = maker.make(sequence, sources[sequence]);
      if (rows + part.rows.size() > kMaxRows) break;
      rows += part.rows.size();
      parts.push_back(std::move(part));
    }
    std::ranges::shuffle(parts, random);
    const JointBatch batch = join(parts, /*mixed=*/pass % 2 == 1, random);
    const Pass together = joint.forward(batch.rows, kCaptured);
    const std::vector<Proposal> proposals = together.propose(batch.anchors);
    ASSERT_EQ(proposals.size(), batch.anchors.size());
    auto proposal = proposals.begin();
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const Part& part = parts[i];
      const Pass alone = single.forward(part.rows, kCaptured);
      ASSERT_TRUE(bits_equal(results_of(together, part, batch.numbers[i]),
                             results_of(alone, part, first_rows(part.rows.size()))));
      const auto count = std::ssize(part.anchors);
      ASSERT_TRUE(bits_equal(candidates_of({proposal, proposal + count}),
                             candidates_of(alone.propose(part.anchors))));
      proposal += count;
      Sources& next = sources[part.sequence];
      if (!part.path.empty()) next.clear();
      if (!part.path.empty() && std::ranges::count(part.decoded, part.path.back()) > 0) {
        for (int step = 1; step <= joint.draft_steps(); ++step) {
          next.push_back(copied(together.draft_source(batch.numbers[i][part.path.back()], step)));
        }
      }
      alone.commit(part.sequence, part.path);
    }
    for (std::size_t i = 0; i < parts.size(); ++i) {
      std::vector<int> path;
      for (const int row : parts[i].path) path.push_back(batch.numbers[i][row]);
      together.commit(parts[i].sequence, path);
    }
    for (const int sequence : sequences) {
      ASSERT_EQ(joint.length(sequence), single.length(sequence));
      const std::vector<Row> probe = {{.sequence = sequence, .token = 5}};
      ASSERT_TRUE(bits_equal(joint.forward(probe).logits(std::vector<int>{0}),
                             single.forward(probe).logits(std::vector<int>{0})))
          << "after pass " << pass << ", at " << joint.length(sequence);
    }
  }
}

TEST(JointPass, GivesEachSequenceWhatItWouldGetAlone) {
  const TinyModel model({.type = GGML_TYPE_Q4_1});
  Heads heads = random_heads((*model).config(), {2, 1, 2}, 1, /*token_input=*/true);
  add_sequential_heads(heads, 6, 2);
  for (const CacheType cache_type : {CacheType::kF16, CacheType::kQ8_0}) {
    for (std::uint32_t seed = 1; seed <= (quick_tests() ? 3 : 12); ++seed) {
      expect_joint_passes_equal_single_ones(model, heads, cache_type, seed);
    }
  }
}

}  // namespace
}  // namespace firp
