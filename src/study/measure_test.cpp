#include "study/measure.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "study/study_test.h"

namespace firp {
namespace {

void expect_same(const Agreement& a, const Agreement& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t step = 0; step < a.size(); ++step) {
    EXPECT_EQ(a[step].rows, b[step].rows) << step + 1;
    EXPECT_EQ(a[step].hits, b[step].hits) << step + 1;
  }
}

TEST_F(StudyTest, AgreementCountsTheTokensThatRowsPropose) {
  NativeEngine small = engine(7), large = engine(64);
  // Rows that are the same whatever the text is: their best tokens are known.
  const int layers = model_.config().layers;
  const Heads constant = heads({layers, layers}, 0);
  std::vector<BestTokens> best;
  for (Engine* const each : {&small, &large}) each->set_heads(constant);
  const int sequence = large.add_sequence();
  const Pass pass = large.forward(std::vector<Row>{{.sequence = sequence, .token = 1},
                                                   {.sequence = sequence, .parent = 0, .step = 1},
                                                   {.sequence = sequence, .parent = 1, .step = 2}});
  for (const BestTokens& of_row : pass.best_tokens(std::vector<int>{1, 2}, kTopCandidates)) {
    best.push_back(of_row);
  }
  std::mt19937 random(1);
  std::vector<Text> texts;
  for (const int answer_begin : {2, 20}) {  // the first positions are no anchors
    Text text = {.tokens = {}, .answer_begin = answer_begin, .greedy = true};
    for (int i = 0; i < 60; ++i) {
      const std::vector<TokenLogit>& of = best[random() % 2].tokens;
      text.tokens.push_back(random() % 3 == 0 ? 1 : of[random() % of.size()].token);
    }
    texts.push_back(std::move(text));
  }
  Agreement expected(2);
  for (const Text& text : texts) {
    for (int step = 1; step <= 2; ++step) {
      for (int i = text.answer_begin == 2 ? 8 : 19; i + step + 1 < 60; ++i) {
        StepAgreement& counts = expected[step - 1];
        ++counts.rows;
        for (int rank = 0; rank < kTopCandidates; ++rank) {
          if (best[step - 1].tokens[rank].token != text.tokens[i + step + 1]) continue;
          for (int k = rank; k < kTopCandidates; ++k) ++counts.hits[k];
        }
      }
    }
  }
  EXPECT_GT(expected[1].hits[0], 0);
  EXPECT_LT(expected[1].hits[4], expected[1].rows);
  EXPECT_DOUBLE_EQ(expected[0].top(2), static_cast<double>(expected[0].hits[1]) / expected[0].rows);
  expect_same(row_agreement(small, texts), expected);
  expect_same(row_agreement(large, texts), expected);
  expect_same(draft_agreement(large, texts), expected);
}

TEST_F(StudyTest, DraftsAreOfTheDraftVocabularyAndReadTheTokenBehindTheAnchor) {
  NativeEngine engine = this->engine();
  const std::vector<Text> texts = greedy_texts(engine, 3);
  Heads given = heads({1, 1}, 0.1f);
  engine.set_heads(given);
  const Agreement without = row_agreement(engine, texts);
  expect_same(draft_agreement(engine, texts), without);
  EXPECT_GT(without[0].hits[4] + without[1].hits[4], 0);
  for (Token token = 0; std::ssize(given.draft_vocabulary) < 40; ++token) {
    const auto holds = [&](const Text& text) { return std::ranges::count(text.tokens, token) > 0; };
    if (std::ranges::none_of(texts, holds)) given.draft_vocabulary.push_back(token);
  }
  engine.set_heads(given);
  // Of other tokens, only those that a text repeats can be drafted.
  long long repeated = 0;
  for (const Text& text : texts) {
    const std::set<Token> different(text.tokens.begin(), text.tokens.end());
    repeated += std::ssize(text.tokens) - std::ssize(different);
  }
  const Agreement within = draft_agreement(engine, texts);
  for (const StepAgreement& step : within) EXPECT_LE(step.hits[4], repeated);
  EXPECT_LT(within[0].hits[4] + within[1].hits[4], without[0].hits[4] + without[1].hits[4]);
  expect_same(row_agreement(engine, texts), without);

  // The embedding of the token behind the anchor alone: a row of its own for each token.
  const std::size_t d = model_.config().hidden_size;
  given = heads({1}, 0);
  given.steps[0].token.assign(d * d, 0.0f);
  for (std::size_t i = 0; i < d; ++i) given.steps[0].token[i * d + i] = 4;
  given.steps[0].bias.assign(d, 0.0f);
  engine.set_heads(given);
  const Similarity of_tokens = state_similarity(engine, texts);
  EXPECT_LT(std::abs(of_tokens.plain[0][0]), 1.0);
  EXPECT_GT(of_tokens.plain[0][0], 0.2);  // h^1 of i + 1 holds that embedding
}

TEST_F(StudyTest, AnEarlyExitAfterAllLayersIsAlwaysRight) {
  NativeEngine engine = this->engine(19);
  const std::vector<Text> texts = greedy_texts(engine, 3);
  const Agreement all = early_exit_agreement(engine, texts, model_.config().layers, 3);
  const Agreement early = early_exit_agreement(engine, texts, 1, 3);
  engine.set_heads(heads({1, 1, 1}, 0));
  const Agreement rows = row_agreement(engine, texts);
  for (int step = 0; step < 3; ++step) {
    EXPECT_EQ(all[step].rows, rows[step].rows);  // the same anchors
    EXPECT_GT(all[step].rows, 60);
    EXPECT_EQ(all[step].top(1), 1);
    EXPECT_EQ(early[step].rows, all[step].rows);
    EXPECT_LT(early[step].top(1), 0.9);
  }
}

TEST_F(StudyTest, UnseenStepsMatterOnlyWhereTheyExist) {
  NativeEngine engine = this->engine();
  const std::vector<Text> texts = greedy_texts(engine, 4);
  const int layers = model_.config().layers;
  engine.set_heads(heads({layers, 1}, 0.2f));  // step 1 has no keys and values
  expect_same(row_agreement(engine, texts, EarlierSteps::kUnseen), row_agreement(engine, texts));
}

TEST_F(StudyTest, SimilarityIsTheMeanCosineOfBothStates) {
  NativeEngine engine = this->engine(20);
  const std::vector<Text> texts = greedy_texts(engine, 2);
  // p_{i,1} = h_i^1
  Heads identity = heads({1}, 0);
  const std::size_t d = model_.config().hidden_size;
  for (std::size_t i = 0; i < d; ++i) identity.steps[0].weight[i * d + i] = 1;
  identity.steps[0].bias.assign(d, 0.0f);
  engine.set_heads(identity);
  const Similarity similarity = state_similarity(engine, texts);

  double sum = 0;
  int pairs = 0;
  for (const Text& text : texts) {
    std::vector<std::vector<float>> states;
    const int sequence = engine.add_sequence();
    for (const Token token : text.tokens) {
      const Pass pass = engine.forward(std::vector<Row>{{.sequence = sequence, .token = token}},
                                       std::vector<int>{1});
      states.emplace_back(pass.hidden(0, 1).begin(), pass.hidden(0, 1).end());
      pass.commit(sequence, std::vector<int>{0});
    }
    engine.remove_sequence(sequence);
    for (int i = std::max(8, text.answer_begin - 1); i + 2 < static_cast<int>(states.size()); ++i) {
      double ab = 0, aa = 0, bb = 0;
      for (std::size_t k = 0; k < d; ++k) {
        ab += double{states[i][k]} * states[i + 1][k];
        aa += double{states[i][k]} * states[i][k];
        bb += double{states[i + 1][k]} * states[i + 1][k];
      }
      sum += ab / std::sqrt(aa * bb);
      ++pairs;
    }
  }
  EXPECT_EQ(similarity.first_layer, 1);
  ASSERT_EQ(similarity.plain.size(), 1u);
  ASSERT_EQ(similarity.plain[0].size(), 3u);  // after 1, 2 and 3 layers
  EXPECT_NEAR(similarity.plain[0][0], sum / pairs, 1e-3);
  EXPECT_LT(similarity.centred[0][0], similarity.plain[0][0]);
  EXPECT_NE(similarity.plain[0][2], similarity.plain[0][0]);
}

}  // namespace
}  // namespace firp
