#include "engine/context_vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <optional>

#include "engine/native_engine.h"
#include "engine/test_engines.h"

namespace firp {
namespace {

using ::testing::ElementsAre;

constexpr int kTokens = 320;  // of the tiny models

std::vector<bool> known_below(int end) {
  std::vector<bool> known(kTokens);
  std::fill_n(known.begin(), end, true);
  return known;
}

// The products of a matrix with one row, by the portable kernels.
std::vector<float> products(const PackedMatrix& matrix) {
  const Kernels& portable = kernels("portable");
  Activations x(1, matrix.inputs());
  x.resize(1, matrix.inputs());
  for (int i = 0; i < matrix.inputs(); ++i) {
    x.values(0)[i] = std::sin(0.3f * static_cast<float>(i));
  }
  portable.prepare(x, 0, 0, x.group_count(), portable.form(matrix.format().kind));
  std::vector<float> y(matrix.outputs());
  portable.matmul({.weights = matrix,
                   .first_block = 0,
                   .end_block = matrix.blocks(),
                   .y = y.data(),
                   .y_stride = y.size()},
                  x);
  return y;
}

TEST(ContextVocabulary, HoldsWhatTheDraftVocabularyHasNotEachOnce) {
  const TinyModel model({.type = GGML_TYPE_Q8_0});
  const Tensor& head = (*model).head();
  const std::vector<bool> known = known_below(100);
  ContextVocabulary vocabulary;
  std::vector<Token> context = {7, 300, 99, 100, 300};
  vocabulary.follow(context, known, head, head.type);
  EXPECT_THAT(vocabulary.tokens(), ElementsAre(300, 100));
  context.insert(context.end(), {300, 205, 5});
  vocabulary.follow(context, known, head, head.type);
  EXPECT_THAT(vocabulary.tokens(), ElementsAre(300, 100, 205));
  EXPECT_EQ(vocabulary.head().outputs(), 3);
  vocabulary.clear();
  EXPECT_THAT(vocabulary.tokens(), ElementsAre());
  vocabulary.follow(std::vector<Token>{205}, known, head, head.type);
  EXPECT_THAT(vocabulary.tokens(), ElementsAre(205));
}

// Token by token, past the room of the beginning, or at once: the rows are the head's own.
TEST(ContextVocabulary, ItsRowsAreTheHeadsHoweverItGrew) {
  const TinyModel model({.type = GGML_TYPE_Q8_0});
  const Tensor& head = (*model).head();
  const std::vector<bool> known = known_below(20);
  std::vector<Token> context;
  for (int i = 0; i < 200; ++i) context.push_back(20 + (i * 7) % 300);
  ContextVocabulary at_once, step_by_step;
  at_once.follow(context, known, head, head.type);
  for (std::size_t length = 1; length <= context.size(); ++length) {
    step_by_step.follow(std::span(context).first(length), known, head, head.type);
  }
  ASSERT_EQ(at_once.tokens().size(), 200u);
  EXPECT_TRUE(bits_equal(products(at_once.head()), products(step_by_step.head())));

  const std::vector<float> of_all = products(PackedMatrix(head));
  std::vector<float> expected;
  for (const Token token : context) expected.push_back(of_all[token]);
  EXPECT_TRUE(bits_equal(products(at_once.head()), expected));
}

// Tokens that a row proposes for step 1 behind the context that `sequence` has and `last`.
std::vector<Candidate> proposed(Engine& engine, int sequence, Token last) {
  const Pass pass = engine.forward(std::vector<Row>{{.sequence = sequence, .token = last}},
                                   engine.draft_layers());
  const DraftChain chain = pass.draft_chain(0, 1, /*token_behind=*/3);
  pass.commit(sequence, std::vector<int>{0});
  const Proposal proposal = engine.forward(chain.rows).propose({0});
  return proposal.behind(1, std::vector<Token>{3}).front();
}

bool proposes(const std::vector<Candidate>& candidates, Token token) {
  return std::ranges::count(candidates, token, &Candidate::token) > 0;
}

TEST(Engine, PseudoRowsDraftTheTokensOfTheirOwnContextToo) {
  const TinyModel model({.type = GGML_TYPE_Q8_0, .layers = 3});
  NativeEngine engine(*model, {.threads = 2, .context = 100});
  Heads heads = random_heads((*model).config(), {1}, 3, /*token_input=*/true);
  for (int token = 0; token < 8; ++token) heads.draft_vocabulary.push_back(token);
  engine.set_heads(heads);
  const int with = engine.add_sequence(), without = engine.add_sequence();
  append(engine, with, std::vector<Token>{5, 200, 6, 31}, 4);
  append(engine, without, std::vector<Token>{5, 7, 6, 1}, 4);

  const std::vector<Candidate> wide = proposed(engine, with, 4);
  EXPECT_EQ(wide.size(), 10u);
  EXPECT_TRUE(proposes(wide, 200) && proposes(wide, 31));
  double sum = 0;
  for (std::size_t i = 0; i < wide.size(); ++i) {
    sum += std::exp(wide[i].log_probability);
    EXPECT_LE(wide[i].log_probability, wide[i == 0 ? 0 : i - 1].log_probability);
  }
  EXPECT_NEAR(sum, 1, 1e-4);
  EXPECT_EQ(proposed(engine, without, 4).size(), 8u);

  // A context that goes on differently forgets them.
  engine.truncate(with, 1);
  append(engine, with, std::vector<Token>{31}, 4);
  const std::vector<Candidate> later = proposed(engine, with, 4);
  EXPECT_EQ(later.size(), 9u);
  EXPECT_FALSE(proposes(later, 200));

  // Where all tokens may be drafted, there is nothing to add.
  heads.draft_vocabulary.clear();
  engine.set_heads(heads);
  EXPECT_EQ(proposed(engine, with, 4).size(), static_cast<std::size_t>(kRankedCandidates));
}

}  // namespace
}  // namespace firp
