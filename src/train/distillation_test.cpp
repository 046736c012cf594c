#include "train/distillation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "train/evaluation.h"

namespace firp {
namespace {

// The hand-written gradient against LibTorch's own, over more rows than one chunk holds, some of
// which do not count.
TEST(HeadLoss, IsTheDivergenceAndItsGradient) {
  torch::manual_seed(5);
  constexpr int kRows = 150, kSize = 24, kVocabulary = 200, kTop = 64;
  const torch::Tensor head = torch::randn({kVocabulary, kSize});
  const torch::Tensor targets = torch::stack([&] {
    std::vector<torch::Tensor> rows;
    for (int i = 0; i < kRows; ++i) rows.push_back(torch::randperm(kVocabulary).narrow(0, 0, kTop));
    return rows;
  }());
  const torch::Tensor probabilities = torch::softmax(torch::randn({kRows, kTop}) * 2, 1);
  torch::Tensor weights = torch::rand({kRows});
  weights.slice(0, 0, kRows, 7).zero_();
  weights /= weights.sum();
  torch::Tensor states = torch::randn({kRows, kSize}).requires_grad_(true);

  const torch::Tensor log_probabilities =
      torch::log_softmax(torch::linear(states, head), 1).gather(1, targets);
  const torch::Tensor expected =
      ((probabilities * (probabilities.log() - log_probabilities)).sum(1) * weights).sum();
  const torch::Tensor expected_gradient = torch::autograd::grad({expected}, {states})[0];

  const torch::Tensor loss = head_loss(states, head, targets, probabilities, weights);
  const torch::Tensor gradient = torch::autograd::grad({loss * 3}, {states})[0];
  EXPECT_NEAR(loss.item<double>(), expected.item<double>(), 1e-4);
  EXPECT_GT(expected.item<double>(), 1);
  EXPECT_LT((gradient - 3 * expected_gradient).abs().max().item<double>(), 1e-5);
  EXPECT_GT(expected_gradient.abs().max().item<double>(), 1e-3);
}

std::vector<TeacherText> texts_with_anchors(const std::vector<int>& anchors) {
  std::vector<TeacherText> texts;
  for (const int count : anchors) {
    TeacherText text;
    text.tokens.resize(12 + count);
    text.first_anchor = 10;
    text.end_anchor = 10 + count;
    texts.push_back(std::move(text));
  }
  return texts;
}

TEST(AnchorBatch, VisitsEveryTextOnceAnEpoch) {
  std::vector<int> counts;
  for (int i = 0; i < 10 * kSequencesAnUpdate; ++i) counts.push_back(5 + i * 37 % 60);
  const std::vector<TeacherText> texts = texts_with_anchors(counts);
  std::vector<int> first_epoch;
  for (const int epoch : {0, 1}) {
    std::vector<int> visited;
    for (int update = 10 * epoch; update < 10 * (epoch + 1); ++update) {
      const AnchorBatch batch = anchor_batch(texts, 1, update);
      ASSERT_EQ(batch.texts.size(), static_cast<std::size_t>(kSequencesAnUpdate));
      visited.insert(visited.end(), batch.texts.begin(), batch.texts.end());
      for (int i = 0; i < kSequencesAnUpdate; ++i) {
        const TeacherText& text = texts[batch.texts[i]];
        const std::vector<int>& anchors = batch.anchors[i];
        ASSERT_EQ(anchors.size(), static_cast<std::size_t>(kAnchorsASequence));
        for (const int anchor : anchors) {
          EXPECT_GE(anchor, text.first_anchor);
          EXPECT_LT(anchor, text.end_anchor);
        }
        EXPECT_EQ(std::set<int>(anchors.begin(), anchors.end()).size(),
                  static_cast<std::size_t>(std::min(kAnchorsASequence, text.anchors())));
      }
    }
    EXPECT_EQ(std::set<int>(visited.begin(), visited.end()).size(), texts.size());
    if (epoch == 0) {
      first_epoch = visited;
    } else {
      EXPECT_NE(visited, first_epoch);
    }
  }
}

TEST(AnchorBatch, DependsOnSeedAndNumberAlone) {
  const std::vector<TeacherText> texts = texts_with_anchors(std::vector<int>(20, 50));
  const auto anchors = [&](int seed, int update) {
    return anchor_batch(texts, seed, update).anchors;
  };
  const auto once = anchors(3, 17);
  anchors(3, 5);
  EXPECT_EQ(anchors(3, 17), once);
  EXPECT_NE(anchors(4, 17), once);
  EXPECT_NE(anchors(3, 18), once);
  // Fewer texts than an update takes.
  const std::vector<TeacherText> few = texts_with_anchors({50, 50, 50});
  const AnchorBatch batch = anchor_batch(few, 1, 2);
  EXPECT_EQ(std::set<int>(batch.texts.begin(), batch.texts.end()).size(), 3u);
}

// A text of tokens 100, 101, ..; each anchor's step proposes the tokens at `ranks` of the truth.
TextDrafts drafts_with_truth_at(const TeacherText& text, const std::vector<int>& ranks) {
  TextDrafts drafts;
  for (int anchor = text.first_anchor; anchor < text.end_anchor; ++anchor) {
    drafts.candidates.emplace_back();
    for (std::size_t step = 0; step < ranks.size(); ++step) {
      std::vector<Candidate> candidates;
      for (int rank = 0; rank < 3; ++rank) {
        const Token truth = 100 + anchor + static_cast<int>(step) + 2;
        candidates.push_back(
            {rank == ranks[step] ? truth : Token{rank}, rank == 0 ? -0.5f : -1.2f - 0.8f * rank});
      }
      drafts.candidates.back().push_back(std::move(candidates));
    }
  }
  return drafts;
}

// The heads file's formula, with its scales folded in and its values rounded, against what training
// computes; and the parts that drafting takes it in.
TEST(SequentialHeads, AreTheFilesFormula) {
  torch::manual_seed(2);
  constexpr int kSteps = 2, kRank = 6, kSize = 16;
  Maps maps{1, torch::zeros(kSize), torch::ones(kSize), torch::zeros({kSteps, kSize, kSize}),
            torch::zeros({kSteps, kSize})};
  maps.sequence = SequentialHeads::initial(kSteps, kRank, kSize, 0.25, 8, 3);
  EXPECT_EQ(maps.sequence->output.abs().max().item<float>(), 0);
  EXPECT_GT(maps.sequence->token.abs().max().item<float>(), 0.1);
  maps.sequence->output.normal_();
  maps.sequence->bias.normal_();
  const torch::Tensor states = torch::randn({3, kSteps, kSize});
  const torch::Tensor embeddings = torch::randn({3, kSteps, kSize});
  const torch::Tensor correction = maps.sequence->correction(states, embeddings);

  const Heads heads = to_heads(maps, {});
  const auto dot = [&](const std::vector<float>& matrix, int row, const torch::Tensor& x) {
    double sum = 0;
    for (int i = 0; i < x.size(0); ++i) sum += matrix[row * x.size(0) + i] * x[i].item<float>();
    return sum;
  };
  const SequentialHead& second = *heads.steps[1].sequence;
  torch::Tensor inner = torch::empty(kRank);
  for (int i = 0; i < kRank; ++i) {
    inner[i] = dot(second.state, i, states[2][1]) + dot(second.token, i, embeddings[2][1]) +
               second.bias[i];
  }
  const torch::Tensor activated = inner / (1 + torch::exp(-inner));
  for (int i = 0; i < kSize; ++i) {
    EXPECT_NEAR(correction[2][1][i].item<float>(), dot(second.output, i, activated), 2e-2);
  }
  EXPECT_GT(correction.abs().max().item<float>(), 1);

  const SequentialHeads read = *from_heads(heads).sequence;
  const torch::Tensor of_states = read.inner_of_states(states);
  for (int step = 0; step < kSteps; ++step) {
    const torch::Tensor behind =
        read.correction_behind(step, of_states[2][step].unsqueeze(0), embeddings.select(1, step));
    EXPECT_LT((behind[2] - correction[2][step]).abs().max().item<float>(), 2e-2);
  }
}

TEST(Replay, CountsThePassesOfDecoding) {
  TeacherText text;
  text.first_anchor = 3;
  text.end_anchor = 63;
  for (int i = 0; i < 65; ++i) text.tokens.push_back(100 + i);
  const auto tokens_per_pass = [&](const std::vector<int>& ranks, int nodes) {
    long long passes = 0, tokens = 0;
    const TextDrafts drafts = drafts_with_truth_at(text, ranks);
    replay(text, trees_of_rows(drafts, nodes), passes, tokens);
    return static_cast<double>(tokens) / static_cast<double>(passes);
  };
  constexpr int kMissing = 3;
  EXPECT_DOUBLE_EQ(tokens_per_pass({0, 0, 0}, 0), 4);  // 60 tokens in 15 passes
  EXPECT_DOUBLE_EQ(tokens_per_pass({0, kMissing, 0}, 0), 2);
  EXPECT_DOUBLE_EQ(tokens_per_pass({kMissing, 0, 0}, 0), 1);
  EXPECT_DOUBLE_EQ(tokens_per_pass({1, 0, 0}, 0), 1);
  EXPECT_DOUBLE_EQ(tokens_per_pass({1, 0, 0}, 1), 1);
  EXPECT_DOUBLE_EQ(tokens_per_pass({1, 0, 0}, 16), 4);  // a tree holds the second candidate too
  EXPECT_DOUBLE_EQ(tokens_per_pass({1, kMissing, 0}, 16), 2);
}

}  // namespace
}  // namespace firp
