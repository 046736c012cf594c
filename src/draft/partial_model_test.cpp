#include "draft/partial_model.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"
#include "engine/native_engine.h"
#include "model/test_files.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

class PartialModels : public testing::Test {
 protected:
  PartialModels() {
    write_tiny_model(directory_ / "tiny.gguf", {.vocabulary_size = 64});
    model_ = std::make_unique<Model>(directory_ / "tiny.gguf");
    engine_ = std::make_unique<NativeEngine>(
        *model_, EngineOptions{.threads = 1, .context = 128, .max_rows = 64});
    for (int i = 0; i < 100; ++i) text_.push_back(i * 37 % 64);
  }

  const TemporaryDirectory directory_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Engine> engine_;
  std::vector<Token> text_;
};

TEST_F(PartialModels, WhatIsSkippedIsAPartOfTheModel) {
  const PartialModel part = choose_sublayers_to_skip(*engine_, text_);
  ASSERT_FALSE(part.skipped.empty());
  std::vector<Sublayer> sorted = part.skipped;
  std::ranges::sort(sorted);
  EXPECT_TRUE(std::ranges::adjacent_find(sorted) == sorted.end());
  EXPECT_GE(sorted.front(), 0);
  EXPECT_LT(sorted.back(), 2 * model_->config().layers);
  EXPECT_GE(part.steps, 1);
  EXPECT_GE(part.agreement, 0);
  EXPECT_LE(part.agreement, 1);
  EXPECT_EQ(engine_->add_sequence(), 0) << "the trial's sequences must be gone";
}

TEST_F(PartialModels, EarlyExitLeavesOutTheEnd) {
  const PartialModel part = choose_exit_layer(*engine_, text_);
  const int layers = model_->config().layers;
  ASSERT_FALSE(part.skipped.empty());
  EXPECT_EQ(part.skipped.front() % 2, 0);
  EXPECT_GT(part.skipped.front(), 0);
  EXPECT_EQ(part.skipped.back(), 2 * layers - 1);
  EXPECT_EQ(part.skipped.size(), static_cast<std::size_t>(2 * layers - part.skipped.front()));
}

TEST_F(PartialModels, NeedSomeTextToBeChosenBy) {
  EXPECT_THROW(choose_exit_layer(*engine_, std::span(text_).first(15)), Error);
  EXPECT_THROW(choose_sublayers_to_skip(*engine_, {}), Error);
}

TEST(TreeAroundPath, HangsSiblingsOnThePath) {
  const std::vector<std::vector<Candidate>> candidates = {
      {{5, -0.1f}, {6, -2.5f}}, {{7, -0.2f}, {5, -1.9f}}, {{8, -0.3f}}};
  const std::vector<Token> tokens = {1, 2};
  const DraftTree tree = tree_around_path(
      candidates, {.sequence = 0, .tokens = tokens, .row = 0, .most_nodes = 9, .chain = false});
  ASSERT_EQ(tree.size(), 5u);
  std::vector<Token> path;
  for (int parent = kRoot, found = 1; found;) {
    found = 0;
    for (int i = 0; i < static_cast<int>(tree.size()) && !found; ++i) {
      if (tree[i].parent != parent) continue;
      path.push_back(tree[i].token);  // of siblings the best comes first
      parent = i;
      found = 1;
    }
  }
  EXPECT_EQ(path, (std::vector<Token>{5, 7, 8}));
  for (const DraftNode& node : tree) {
    if (node.token == 6) {
      EXPECT_EQ(node.parent, kRoot);
    }
  }
  const DraftTree chain = tree_around_path(
      candidates, {.sequence = 0, .tokens = tokens, .row = 0, .most_nodes = 9, .chain = true});
  EXPECT_EQ(chain.size(), 3u);
}

}  // namespace
}  // namespace firp
