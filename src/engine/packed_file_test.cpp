#include "engine/packed_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <numeric>

#include "engine/weights.h"
#include "model/full_disk.h"
#include "model/replaced_file.h"
#include "model/test_files.h"
#include "model/test_parts.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

using testing::HasSubstr;

/// The bytes of all matrices.
std::string bytes_of(const Weights& weights) {
  std::string bytes;
  const auto add = [&](const PackedMatrix& matrix) {
    bytes.append(reinterpret_cast<const char*>(matrix.block(0)), matrix.bytes());
  };
  for (const LayerWeights& layer : weights.layers) {
    for (const PackedMatrix* const matrix : layer.matrices()) {
      if (matrix->outputs() > 0) add(*matrix);
    }
  }
  add(weights.head);
  return bytes;
}

class PackedCacheTest : public testing::Test {
 protected:
  Model model(const TinyModelOptions& options) const {
    write_tiny_model(directory_ / "tiny.gguf", options);
    return Model(directory_ / "tiny.gguf");
  }
  /// Changes the first byte that is kept, so that one can tell what was mapped.
  void mark(const std::filesystem::path& file) const {
    std::string bytes = read_bytes(file);
    bytes[0] = static_cast<char>(bytes[0] ^ 1);
    write_bytes(file, bytes);
  }

  TemporaryDirectory directory_;
  TemporaryCache cache_;
  ThreadPool pool_{2};
};

TEST_F(PackedCacheTest, TheNextStartMapsWhatWasPacked) {
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_BF16, GGML_TYPE_Q4_1, GGML_TYPE_Q6_K}) {
    const Model tiny = model({.type = type, .hidden_size = 256, .feed_forward_size = 512});
    const std::string packed = bytes_of(Weights(tiny, pool_));
    EXPECT_EQ(bytes_of(Weights(tiny, pool_, /*packed_cache=*/true)), packed);
    ASSERT_EQ(cache_.files().size(), 1u) << "a file for each state of the model";
    EXPECT_EQ(bytes_of(Weights(tiny, pool_, true)), packed);

    mark(cache_.files().front());
    std::string marked = packed;
    marked[0] = static_cast<char>(marked[0] ^ 1);
    EXPECT_EQ(bytes_of(Weights(tiny, pool_, true)), marked) << "it was packed again";
    EXPECT_EQ(bytes_of(Weights(tiny, pool_, false)), packed);
  }
}

TEST_F(PackedCacheTest, AnotherStateOfTheModelIsPackedAnew) {
  const Weights old(model({.seed = 1}), pool_, true);
  const std::string before = bytes_of(old);
  const auto time = std::filesystem::last_write_time(directory_ / "tiny.gguf");
  const Model changed = model({.seed = 2});
  std::filesystem::last_write_time(directory_ / "tiny.gguf", time);
  const Model reopened(directory_ / "tiny.gguf");
  const std::string packed = bytes_of(Weights(reopened, pool_));
  ASSERT_NE(packed, before);
  EXPECT_EQ(bytes_of(Weights(reopened, pool_, true)), packed);
  EXPECT_EQ(cache_.files().size(), 1u);
  EXPECT_EQ(bytes_of(old), before) << "what another program has mapped changed";
}

TEST_F(PackedCacheTest, AModelInSeveralFilesIsPackedAnewWhenAnyPartChanges) {
  model({.type = GGML_TYPE_Q4_1});
  const std::filesystem::path first = write_parts(directory_ / "tiny.gguf", directory_ / "m", 2);
  const std::string packed = bytes_of(Weights(Model(first), pool_));
  EXPECT_EQ(bytes_of(Weights(Model(directory_ / "tiny.gguf"), pool_)), packed);
  EXPECT_EQ(bytes_of(Weights(Model(first), pool_, /*packed_cache=*/true)), packed);
  ASSERT_EQ(cache_.files().size(), 1u);
  mark(cache_.files().front());
  EXPECT_NE(bytes_of(Weights(Model(first), pool_, true)), packed) << "it was packed again";
  std::filesystem::last_write_time(
      part_name(first)->file_of(2),
      std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
  EXPECT_EQ(bytes_of(Weights(Model(first), pool_, true)), packed);
}

TEST_F(PackedCacheTest, DamagedFilesArePackedAnew) {
  const Model tiny = model({});
  const std::string packed = bytes_of(Weights(tiny, pool_, true));
  const std::filesystem::path file = cache_.files().front();
  const std::string whole = read_bytes(file);
  std::string other_layout = whole;
  const std::size_t layout = whole.rfind("layout ") + std::strlen("layout ");
  other_layout[layout] = static_cast<char>(other_layout[layout] + 1);
  for (const std::string& damaged :
       {std::string(), whole.substr(1), whole.substr(0, whole.size() - 1), whole + "x",
        std::string(whole.size(), '\0'), other_layout}) {
    write_bytes(file, damaged);
    EXPECT_EQ(bytes_of(Weights(tiny, pool_, true)), packed);
    EXPECT_EQ(read_bytes(file), whole);
  }
}

TEST_F(PackedCacheTest, RoundedDraftWeightsAreKeptForOneSetOfHeads) {
  const Model tiny = model({.type = GGML_TYPE_F16});
  const Weights exact(tiny, pool_, true);
  std::vector<std::int32_t> vocabulary(64);
  std::iota(vocabulary.begin(), vocabulary.end(), 5);
  const auto head_of = [&](std::span<const std::int32_t> tokens, int first_layer) {
    const DraftWeights draft(tiny, exact, first_layer, tokens, /*rough=*/true, pool_, true);
    const auto* bytes = reinterpret_cast<const char*>(draft.head.block(0));
    return std::string(bytes, draft.head.bytes());
  };
  const std::string head = head_of(vocabulary, 1);
  ASSERT_EQ(cache_.files().size(), 2u);
  EXPECT_EQ(head_of(vocabulary, 1), head);
  vocabulary[0] = 200;  // as many bytes
  EXPECT_NE(head_of(vocabulary, 1), head);
  EXPECT_EQ(cache_.files().size(), 2u);
}

TEST_F(PackedCacheTest, AFullDiskIsAnErrorThatNamesTheFlag) {
  const Model tiny = model({});
  const std::string message = error_of([&] {
    const FullDisk full(20000);
    Weights(tiny, pool_, true);
  });
  EXPECT_THAT(message, HasSubstr("cannot write"));
  EXPECT_THAT(message, HasSubstr("start without --packed-cache"));
  EXPECT_TRUE(cache_.files().empty()) << "half a file was left";
}

TEST(ReplacedFileTest, RemovesWhatKilledProcessesLeft) {
  const TemporaryDirectory directory;
  constexpr const char* kNobody = "2147483647";  // more processes than Linux can have
  const std::string own = std::to_string(getppid());
  for (const std::string& name : {std::string("x.tmp-") + kNobody, "x.tmp-" + own,
                                  std::string("y.tmp-") + kNobody, std::string("x.tmp-z")}) {
    write_bytes(directory / name, "half");
    std::filesystem::last_write_time(
        directory / name, std::filesystem::file_time_type::clock::now() - std::chrono::hours(2));
  }
  ReplacedFile file(directory / "x");
  file.write("whole");
  file.replace();
  EXPECT_EQ(read_bytes(directory / "x"), "whole");
  EXPECT_FALSE(std::filesystem::exists(directory / (std::string("x.tmp-") + kNobody)));
  EXPECT_TRUE(std::filesystem::exists(directory / ("x.tmp-" + own))) << "that process lives";
  EXPECT_TRUE(std::filesystem::exists(directory / (std::string("y.tmp-") + kNobody)));
  EXPECT_TRUE(std::filesystem::exists(directory / "x.tmp-z"));
}

}  // namespace
}  // namespace firp
