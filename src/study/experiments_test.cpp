#include "study/experiments.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <sstream>

#include "study/study_test.h"
#include "train/training_log.h"

namespace firp {
namespace {

std::vector<std::vector<std::string>> fields_of(const std::string& csv) {
  std::vector<std::vector<std::string>> lines;
  std::istringstream text(csv);
  for (std::string line; std::getline(text, line);) {
    std::istringstream fields(line);
    lines.emplace_back();
    for (std::string field; std::getline(fields, field, ',');) lines.back().push_back(field);
  }
  return lines;
}

bool says(const Finding& finding, const std::string& text) {
  return finding.caption.find(text) != std::string::npos;
}

TEST_F(StudyTest, RowsStandBetweenTheirLimits) {
  NativeEngine engine = this->engine();
  const Finding finding = study_rows(engine, &model_, {1, 4});
  const auto lines = fields_of(finding.csv);
  ASSERT_EQ(lines.size(), 3u);
  for (int i = 1; i <= 2; ++i) {
    ASSERT_EQ(lines[i].size(), 5u);
    EXPECT_EQ(lines[i][0], i == 1 ? "1" : "4");
    EXPECT_GT(std::stod(lines[i][1]), 0);
    EXPECT_GE(std::stod(lines[i][2]), std::stod(lines[i][1]));
    EXPECT_GT(std::stod(lines[i][3]), 0);
  }
  // Weights are read once, and multiplied by every row.
  EXPECT_NEAR(std::stod(lines[2][3]), std::stod(lines[1][3]), 2e-4);
  EXPECT_GT(std::stod(lines[2][4]), 2 * std::stod(lines[1][4]));
  EXPECT_TRUE(says(finding, fmt::format("{:.2f} ms", std::stod(lines[1][1])))) << finding.caption;
  EXPECT_TRUE(says(finding, "reading the weights takes")) << finding.caption;
  EXPECT_EQ(finding.figure.panels.front().lines.size(), 3u);
}

TEST_F(StudyTest, RowsStandAloneWhereTheMatricesAreNotKnown) {
  NativeEngine engine = this->engine();
  const Finding finding = study_rows(engine, nullptr, {1});
  EXPECT_TRUE(fields_of(finding.csv)[1][3].empty()) << finding.csv;
  EXPECT_EQ(finding.figure.panels.front().lines.size(), 1u);
  EXPECT_FALSE(says(finding, "reading the weights takes")) << finding.caption;
}

TEST_F(StudyTest, AgreementHoldsAllMethodsAndWritesTheirFiles) {
  NativeEngine engine = this->engine();
  const std::vector<Text> texts = greedy_texts(engine, 2);
  const std::vector<NamedHeads> all = {{"FIRP", heads({1, 1}, 0.1f)}, {"Other", heads({2}, 0.1f)}};
  const std::vector<Heads> linear = {heads({3, 3}, 0.1f)};
  const Finding finding = study_agreement(engine, all, linear, /*early_exit=*/true, texts);
  std::vector<std::string> methods;
  const auto lines = fields_of(finding.csv);
  for (const auto& line : lines) {
    EXPECT_EQ(line.size(), 8u);
    methods.push_back(line[0] + " " + line[1]);
  }
  EXPECT_EQ(methods,
            (std::vector<std::string>{"method step", "FIRP 1", "FIRP 2", "Other 1", "linear maps 1",
                                      "linear maps 2", "early exit 1", "early exit 2"}));
  EXPECT_TRUE(says(finding, fmt::format("FIRP {:.1f} % at step 1", 100 * std::stod(lines[1][3]))))
      << finding.caption;
  EXPECT_TRUE(says(finding, lines[1][2] + " positions")) << finding.caption;
  EXPECT_TRUE(says(finding, "early exit after layer 1")) << finding.caption;
  const Finding without = study_agreement(engine, all, linear, /*early_exit=*/false, texts);
  EXPECT_EQ(without.csv, finding.csv.substr(0, finding.csv.find("early exit")));
  EXPECT_FALSE(says(without, "early exit")) << without.caption;

  write_finding(directory_.path(), "agreement", finding);
  EXPECT_EQ(read_bytes(directory_ / "agreement.csv"), finding.csv);
  EXPECT_EQ(read_bytes(directory_ / "agreement.txt"), finding.caption);
  EXPECT_EQ(read_bytes(directory_ / "agreement.png").substr(1, 3), "PNG");
  EXPECT_NE(read_bytes(directory_ / "agreement.svg").find("Other"), std::string::npos);
}

TEST_F(StudyTest, LayersSimilarityAndMaskTellTheirNumbers) {
  NativeEngine engine = this->engine();
  const std::vector<Text> texts = greedy_texts(engine, 2);
  const Finding layer =
      study_layer(engine, std::vector<Heads>{heads({1, 1}, 0.1f), heads({2, 2}, 0.1f)}, texts);
  const auto of_layers = fields_of(layer.csv);
  ASSERT_EQ(of_layers.size(), 5u);
  EXPECT_EQ(of_layers[1][0], "1");
  EXPECT_EQ(of_layers[4][0], "2");
  EXPECT_EQ(layer.figure.panels[0].lines[1].x, (std::vector<double>{1, 2}));
  const double best = std::max(std::stod(of_layers[1][3]), std::stod(of_layers[3][3]));
  EXPECT_TRUE(says(layer, fmt::format("step 1 {:.1f} %", 100 * best))) << layer.caption;

  const Finding mask = study_mask(engine, {"FIRP", heads({1, 1}, 0.1f)}, texts);
  const auto of_masks = fields_of(mask.csv);
  ASSERT_EQ(of_masks.size(), 5u);
  EXPECT_EQ(std::vector(of_masks[1].begin() + 1, of_masks[1].end()),
            std::vector(of_masks[3].begin() + 1, of_masks[3].end()));  // step 1 has none before it
  EXPECT_TRUE(
      says(mask, fmt::format("{:.1f} for {:.1f} % at step 2", 100 * std::stod(of_masks[4][3]),
                             100 * std::stod(of_masks[2][3]))))
      << mask.caption;

  const Finding similarity = study_similarity(engine, {"FIRP", heads({1, 2}, 0.1f)}, texts);
  const auto of_states = fields_of(similarity.csv);
  ASSERT_EQ(of_states.size(), 1u + 3u + 2u);
  EXPECT_EQ(of_states[4][0] + of_states[4][1], "22");  // step 2 enters after layer 2
  EXPECT_TRUE(says(similarity, fmt::format("from {:.2f} to {:.2f} for step 2",
                                           std::stod(of_states[4][2]), std::stod(of_states[5][2]))))
      << similarity.caption;
  Heads medusa = heads({3}, 0);
  medusa.method = HeadsMethod::kMedusa;
  EXPECT_NE(error_of([&] {
              study_similarity(engine, {"Medusa", medusa}, texts);
            }).find("Medusa"),
            std::string::npos);
}

TEST_F(StudyTest, TreesAreHeldAgainstPlainDecoding) {
  NativeEngine engine = this->engine();
  const std::vector<Text> texts = greedy_texts(engine, 2);
  const Finding finding = study_tree(engine, {"FIRP", heads({1, 1}, 0.1f)}, texts, {0, 4});
  const auto lines = fields_of(finding.csv);
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[1][0] + lines[2][0] + lines[3][0], "plainchain4");
  EXPECT_EQ(std::stod(lines[1][1]), 1);
  EXPECT_EQ(std::stod(lines[1][3]), 1);
  EXPECT_GE(std::stod(lines[3][1]), 1);
  EXPECT_NEAR(std::stod(lines[3][3]), std::stod(lines[3][2]) / std::stod(lines[1][2]), 1e-2);
  EXPECT_TRUE(says(finding, fmt::format("{:.2f} with a tree of 4 (FIRP)", std::stod(lines[3][1]))))
      << finding.caption;
}

TEST_F(StudyTest, CurvesAreThoseOfTheLogs) {
  const std::filesystem::path log = directory_ / "maps.csv";
  begin_training_log(log, 1, /*resume=*/false);
  for (const int update : {0, 10}) {
    append_to_training_log(
        log, {.seconds = 60.0 + 6 * update,
              .updates = update,
              .rows = 384 * update,
              .loss = 2,
              .top1 = {0.5f},
              .tokens_per_forward = {
                  .chain = 1.5f + 0.01f * update, .tree8 = 1.75f, .tree16 = 2, .tree32 = 2.25f}});
  }
  const Finding finding = study_curve(std::vector<std::filesystem::path>{log});
  EXPECT_EQ(fields_of(finding.csv)[2],
            (std::vector<std::string>{"maps", "120.0", "10", "3840", "2.00000", "1.6000", "1.7500",
                                      "2.0000", "2.2500"}));
  EXPECT_EQ(finding.figure.panels[0].lines[0].x, (std::vector<double>{0, 1}));
  EXPECT_TRUE(says(finding, "maps goes from 1.50 to 1.60 with a chain")) << finding.caption;
  EXPECT_TRUE(says(finding, "in 1.0 minutes")) << finding.caption;
}

TEST_F(StudyTest, HeadsAreNamedByWhatTheyAre) {
  Heads medusa = heads({3}, 0), paper = heads({1}, 0);
  medusa.method = HeadsMethod::kMedusa;
  const std::filesystem::path a = directory_ / "a.firp.gguf", b = directory_ / "b.firp.gguf",
                              m = directory_ / "m.firp.gguf";
  write_heads(paper, a);
  write_heads(paper, b);
  write_heads(medusa, m);
  const auto all = name_heads(std::vector<std::filesystem::path>{a, b, m}, model_.file());
  EXPECT_EQ(all[0].name, "the paper's maps (a)");
  EXPECT_EQ(all[1].name, "the paper's maps (b)");
  EXPECT_EQ(all[2].name, "Medusa");
}

}  // namespace
}  // namespace firp
