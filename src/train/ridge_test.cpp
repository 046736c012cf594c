#include "train/ridge.h"

#include <gtest/gtest.h>

#include "train/maps.h"

namespace firp {
namespace {

/// Hidden states that follow a linear law, h_{i+1} = A h_i + noise, are predicted by A^j.
TEST(Ridge, FindsTheLinearLawOfTheNextStates) {
  torch::manual_seed(3);
  constexpr int kSize = 12;
  constexpr int kSteps = 3;
  const torch::Tensor law =
      std::get<0>(torch::linalg_qr(torch::randn({kSize, kSize}, torch::kFloat64))) * 0.9;
  std::vector<torch::Tensor> texts;
  for (int text = 0; text < 20; ++text) {
    std::vector<torch::Tensor> states = {torch::randn({kSize}, torch::kFloat64)};
    for (int i = 1; i < 200; ++i) {
      states.push_back(torch::mv(law, states.back()) +
                       torch::randn({kSize}, torch::kFloat64) * 0.1);
    }
    texts.push_back(torch::stack(states).to(torch::kFloat32));
  }
  RidgeRegression regression(1, kSteps, torch::cat(texts), std::nullopt);
  for (const torch::Tensor& text : texts) regression.add(text, {});
  EXPECT_EQ(regression.anchors(), 20 * (200 - kSteps));

  const Maps maps = regression.solve();
  const torch::Tensor h = torch::randn({5, kSize});
  const torch::Tensor predicted = maps.rows(h, {});
  torch::Tensor expected = h.to(torch::kFloat64);
  for (int step = 0; step < kSteps; ++step) {
    expected = torch::mm(expected, law.t());
    const double error =
        (predicted.select(1, step).to(torch::kFloat64) - expected).abs().max().item<double>();
    EXPECT_LT(error, 0.2) << "step " << step + 1;
    EXPECT_GT(expected.abs().max().item<double>(), 0.5);
  }
}

/// Where the next state depends on the token behind as well, h_{i+1} = A h_i + B e_{i+1}, only a
/// token input predicts it; what later tokens add is unknown to both.
TEST(Ridge, FindsWhatTheTokenBehindAdds) {
  torch::manual_seed(5);
  constexpr int kSize = 6, kLength = 3000;
  const torch::Tensor law = torch::eye(kSize) * 0.5, of_token = torch::randn({kSize, kSize});
  const torch::Tensor embeddings = torch::randn({kLength, kSize});  // [i]: of the token behind i
  std::vector<torch::Tensor> states = {torch::randn({kSize})};
  for (int i = 1; i < kLength; ++i) {
    states.push_back(torch::mv(law, states.back()) + torch::mv(of_token, embeddings[i - 1]));
  }
  const torch::Tensor hidden = torch::stack(states);
  const auto error = [&](std::optional<double> token_scale) {
    RidgeRegression regression(1, 2, hidden, token_scale);
    regression.add(hidden, embeddings);
    const torch::Tensor first_step = regression.solve().rows(hidden, embeddings).select(1, 0);
    return (first_step.slice(0, 0, kLength - 1) - hidden.slice(0, 1)).abs().max().item<double>();
  };
  EXPECT_LT(error(1), 0.05 * error(std::nullopt));
}

TEST(Maps, SurviveTheHeadsFileUpToItsRounding) {
  torch::manual_seed(4);
  constexpr int kSize = 8;
  const Maps maps = {2,
                     torch::randn(kSize),
                     torch::rand(kSize) + 0.5,
                     torch::randn({2, kSize, kSize}),
                     torch::randn({2, kSize}),
                     TokenInput{0.5, torch::randn({2, kSize, kSize})}};
  const Heads heads = to_heads(maps, {});
  ASSERT_EQ(heads.count(), 2);
  EXPECT_EQ(heads.steps[0].layer, 2);
  const torch::Tensor h = torch::randn({6, kSize}), e = torch::randn({6, kSize});
  const double error = (from_heads(heads).rows(h, e) - maps.rows(h, e)).abs().max().item<double>();
  EXPECT_LT(error, 0.05);
}

}  // namespace
}  // namespace firp
