#include "bench/compare.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace firp {
namespace {

/// Five prompts of "qa" by plain decoding and by firp, which takes `firp_seconds` of each.
BenchReport report(const std::vector<double>& firp_seconds) {
  BenchReport report = {{{"cpu", "x"}}, {{"repeats", 1}}, {}};
  for (std::size_t i = 0; i < firp_seconds.size(); ++i) {
    const BenchRecord plain{.question_id = std::to_string(i),
                            .category = "qa",
                            .method = "plain",
                            .tokens = 100,
                            .forwards = 100,
                            .seconds = 2,
                            .identical_to_plain = true,
                            .repeat_seconds = {2}};
    report.records.push_back(plain);
    BenchRecord& firp = report.records.emplace_back(plain);
    firp.method = "firp";
    firp.forwards = 50;
    firp.seconds = firp_seconds[i];
    firp.repeat_seconds = {firp.seconds};
  }
  return report;
}

const BenchReport kBefore = report({1.0, 1.2, 0.8, 1.1, 0.9});

TEST(Compare, AChangeOfAllPromptsIsBeyondTheNoise) {
  // 10 % less time, within a percent: far less than prompts differ from each other.
  const auto comparisons = compare_reports(kBefore, report({0.9, 1.075, 0.724, 0.985, 0.815}));
  ASSERT_EQ(comparisons.size(), 4u);
  const Comparison& firp = comparisons[1];
  EXPECT_EQ(firp.category, "qa");
  EXPECT_EQ(firp.method, "firp");
  EXPECT_EQ(firp.prompts, 5);
  EXPECT_NEAR(firp.tokens_per_second.before, 100, 1e-9);
  EXPECT_NEAR(firp.tokens_per_second.relative(), 5 / 4.499 - 1, 1e-9);
  EXPECT_TRUE(firp.tokens_per_second.beyond_noise());
  EXPECT_FALSE(firp.tokens_per_forward.beyond_noise());
  EXPECT_TRUE(firp.speedup_over_plain.value().beyond_noise());
  EXPECT_FALSE(comparisons[0].tokens_per_second.beyond_noise());  // plain is as it was
}

TEST(Compare, AChangeOfOnePromptIsNoise) {
  const auto comparisons = compare_reports(kBefore, report({1.0, 1.2, 0.8, 1.1, 0.5}));
  EXPECT_GT(comparisons[1].tokens_per_second.relative(), 0.08);
  EXPECT_FALSE(comparisons[1].tokens_per_second.beyond_noise());
}

TEST(Compare, TheSpreadOfRepeatsIsNoise) {
  BenchReport after = report({0.9, 1.075, 0.724, 0.985, 0.815});
  for (BenchRecord& record : after.records) {
    record.repeat_seconds = {0.8 * record.seconds, record.seconds, 1.2 * record.seconds};
  }
  EXPECT_FALSE(compare_reports(kBefore, after)[1].tokens_per_second.beyond_noise());
}

TEST(Compare, OnlyPromptsThatBothHave) {
  BenchReport after = kBefore;
  after.records.resize(4);  // of two prompts
  EXPECT_EQ(compare_reports(kBefore, after)[1].prompts, 2);
  EXPECT_EQ(compare_reports(after, kBefore)[1].prompts, 2);
  after.records.resize(2);
  const Change one = compare_reports(kBefore, after)[1].tokens_per_second;
  EXPECT_FALSE(one.noise.has_value());  // nothing can be said
  EXPECT_FALSE(one.beyond_noise());
  for (BenchRecord& record : after.records) record.question_id = "another";
  EXPECT_THROW(compare_reports(kBefore, after), Error);
}

TEST(Compare, SaysWhatDiffers) {
  BenchReport after = report({0.9, 1.075, 0.724, 0.985, 0.815});
  after.machine["cpu"] = "y";
  const std::string text = comparison_text(kBefore, after);
  EXPECT_NE(text.find("tokens/s of firp, qa: +11.1 %"), std::string::npos) << text;
  EXPECT_NE(text.find("cpu: \"x\", then \"y\""), std::string::npos) << text;
  EXPECT_EQ(text.find("repeats"), std::string::npos) << text;
  const std::string same = comparison_text(kBefore, kBefore);
  EXPECT_NE(same.find("Nothing differs beyond the noise"), std::string::npos) << same;
  EXPECT_EQ(same.find("The runs were not the same"), std::string::npos) << same;
}

}  // namespace
}  // namespace firp
