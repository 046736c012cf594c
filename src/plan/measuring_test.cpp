#include "plan/measuring.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "engine/native_engine.h"
#include "model/test_files.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

class MeasuringCosts : public testing::Test {
 protected:
  MeasuringCosts() {
    write_tiny_model(directory_ / "tiny.gguf", {});
    model_ = std::make_unique<Model>(directory_ / "tiny.gguf");
  }
  NativeEngine engine(int context) {
    return NativeEngine(*model_, {.threads = 1, .context = context, .max_rows = 64});
  }

  const TemporaryDirectory directory_;
  std::unique_ptr<Model> model_;
};

TEST_F(MeasuringCosts, GivesTimesThatGrowWithTheRows) {
  NativeEngine engine = this->engine(160);
  const PassCosts costs = measure_costs(engine);
  ASSERT_EQ(costs.verify_seconds.begin()->first, 1);
  EXPECT_EQ(costs.verify_seconds.rbegin()->first, kMostPlannedNodes);
  double before = 0;
  for (const auto& [rows, seconds] : costs.verify_seconds) {
    EXPECT_GT(seconds, 0) << rows;
    EXPECT_GE(seconds, before) << rows;
    before = seconds;
  }
}

TEST_F(MeasuringCosts, GivesTheTimeOfEveryDraftedStep) {
  Heads heads;
  const int d = model_->config().hidden_size;
  for (int step = 0; step < 3; ++step) {
    heads.steps.push_back({.layer = 2,
                           .weight = std::vector<float>(static_cast<std::size_t>(d) * d, 0.0f),
                           .bias = std::vector<float>(d, 0.0f)});
  }
  for (Token token = 0; token < 8; ++token) heads.draft_vocabulary.push_back(token);
  NativeEngine engine = this->engine(160);
  engine.set_heads(heads);
  const PassCosts costs = measure_costs(engine);
  ASSERT_EQ(costs.draft_seconds.size(), 3u);
  EXPECT_GT(costs.draft_seconds.front(), 0);
  EXPECT_TRUE(std::ranges::is_sorted(costs.draft_seconds));
}

/// What does not fit is left out.
TEST_F(MeasuringCosts, DoesWithASmallContextAndGivesItsSequenceBack) {
  NativeEngine engine = this->engine(8);
  const PassCosts costs = measure_costs(engine);
  EXPECT_GT(costs.verify(1, 0), 0);
  EXPECT_LE(costs.verify_seconds.rbegin()->first, 8);
  EXPECT_EQ(engine.add_sequence(), 0);
}

}  // namespace
}  // namespace firp
