#include "engine/weights.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/kernels.h"
#include "kernels/test_products.h"
#include "model/test_files.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

class DraftWeightsTest : public testing::Test {
 protected:
  Model model(const TinyModelOptions& options) const {
    write_tiny_model(directory_ / "tiny.gguf", options);
    return Model(directory_ / "tiny.gguf");
  }

  TemporaryDirectory directory_;
  ThreadPool pool_{3};
};

/// w times rows of some kind.
std::vector<float> product(const PackedMatrix& w, int rows) {
  const Kernels& kernels = default_kernels();
  Activations x(rows, w.inputs());
  x.resize(rows, w.inputs());
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < w.inputs(); ++i) x.values(row)[i] = std::sin(0.7f * i + 1.3f * row);
    kernels.prepare(x, row, 0, x.group_count(), kernels.form(w.format().kind));
  }
  return product(kernels, w, x);
}

TEST_F(DraftWeightsTest, LargeOnesAreRoundedAndTheOthersAreNotCopied) {
  // Rows of 80 weights are no whole blocks: `down` stays as it is.
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_BF16}) {
    const Model tiny = model({.type = type, .feed_forward_size = 80});
    const Weights exact(tiny, pool_);
    const DraftWeights draft(tiny, exact, /*first_layer=*/1, {}, /*rough=*/true, pool_);
    ASSERT_EQ(draft.layers.size(), 3u);
    EXPECT_EQ(draft.layers[0].query.outputs(), 0);
    for (int layer = 1; layer < 3; ++layer) {
      const LayerWeights& from = exact.layers[layer];
      const LayerWeights& to = draft.layers[layer];
      EXPECT_EQ(to.down.block(0), from.down.block(0));
      EXPECT_EQ(to.feed_forward_norm, from.feed_forward_norm);
      for (const auto matrix : {&LayerWeights::query, &LayerWeights::value, &LayerWeights::up}) {
        EXPECT_EQ((to.*matrix).format().type, kRoughLayerType);
        const double difference =
            relative_difference(product(to.*matrix, 2), product(from.*matrix, 2));
        EXPECT_GT(difference, 0.01);
        EXPECT_LT(difference, 0.15);
      }
    }
    EXPECT_EQ(draft.head.format().type, kRoughHeadType);
    EXPECT_LT(relative_difference(product(draft.head, 2), product(exact.head, 2)), 0.07);
  }
}

TEST_F(DraftWeightsTest, SmallOnesAreTheModels) {
  const Model tiny = model({.type = GGML_TYPE_Q4_1});
  const Weights exact(tiny, pool_);
  const DraftWeights draft(tiny, exact, 1, {}, /*rough=*/true, pool_);
  EXPECT_TRUE(draft.layers.empty());
  EXPECT_EQ(draft.head.block(0), exact.head.block(0));
  const Model large = model({.type = GGML_TYPE_F16});
  const Weights exact_large(large, pool_);
  const DraftWeights not_rough(large, exact_large, 1, {}, /*rough=*/false, pool_);
  EXPECT_TRUE(not_rough.layers.empty());
  EXPECT_EQ(not_rough.head.block(0), exact_large.head.block(0));
}

TEST_F(DraftWeightsTest, TheHeadHasTheRowsOfTheDraftVocabulary) {
  const Model tiny = model({.type = GGML_TYPE_Q8_0});
  const Weights exact(tiny, pool_);
  std::vector<std::int32_t> vocabulary;
  for (std::int32_t token = 319; token > 0; token -= 2) vocabulary.push_back(token);
  const std::vector<float> all = product(exact.head, 1);
  std::vector<float> expected;
  for (const std::int32_t token : vocabulary) expected.push_back(all[token]);
  const DraftWeights same(tiny, exact, 3, vocabulary, /*rough=*/false, pool_);
  EXPECT_EQ(product(same.head, 1), expected);
  const DraftWeights rough(tiny, exact, 3, vocabulary, /*rough=*/true, pool_);
  ASSERT_EQ(rough.head.outputs(), 160);
  EXPECT_LT(relative_difference(product(rough.head, 1), expected), 0.07);
}

TEST_F(DraftWeightsTest, ThreadsDoNotMatter) {
  const Model tiny = model({.type = GGML_TYPE_F16});
  const Weights exact(tiny, pool_);
  ThreadPool one(1);
  const DraftWeights a(tiny, exact, 1, {}, /*rough=*/true, pool_);
  const DraftWeights b(tiny, exact, 1, {}, /*rough=*/true, one);
  EXPECT_EQ(product(a.layers[2].gate, 1), product(b.layers[2].gate, 1));
  EXPECT_EQ(product(a.head, 1), product(b.head, 1));
}

}  // namespace
}  // namespace firp
