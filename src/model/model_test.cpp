#include "model/model.h"

#include <gtest/gtest.h>

#include "model/test_files.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

TEST(Identity, TheHashOfALargeFileIsRememberedUntilTheFileChanges) {
  const TemporaryCache cache;
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory / "large.gguf";
  write_tiny_model(path, {});
  const std::string hash = identify(GgufFile(path)).tensor_hash;
  EXPECT_TRUE(cache.files().empty()) << "a small file was remembered";

  std::filesystem::resize_file(path, kRememberedBytes);  // zeros behind the tensors, on no disk
  EXPECT_EQ(identify(GgufFile(path)).tensor_hash, hash);
  ASSERT_EQ(cache.files().size(), 1u);
  const std::filesystem::path kept = cache.files().front();
  std::string text = read_bytes(kept);
  ASSERT_NE(text.find(hash), std::string::npos);
  text.replace(text.find(hash), hash.size(), "0123456789abcdef");
  write_bytes(kept, text);
  EXPECT_EQ(identify(GgufFile(path)).tensor_hash, "0123456789abcdef") << "it was hashed again";

  // Another file with the same size and the same time of modification.
  const auto time = std::filesystem::last_write_time(path);
  write_tiny_model(path, {.seed = 7});
  std::filesystem::resize_file(path, kRememberedBytes);
  std::filesystem::last_write_time(path, time);
  const std::string other = identify(GgufFile(path)).tensor_hash;
  EXPECT_NE(other, "0123456789abcdef");
  EXPECT_NE(other, hash);
  EXPECT_EQ(cache.files().size(), 1u) << "what was kept of the old file is still there";

  for (const char* const damaged : {"", "\n", "no stamp\nno hash\n"}) {
    write_bytes(kept, damaged);
    EXPECT_EQ(identify(GgufFile(path)).tensor_hash, other) << damaged;
  }
}

TEST(Identity, WithoutACacheItIsHashed) {
  const TemporaryDirectory directory;
  const TemporaryCache cache;
  const std::filesystem::path path = directory / "large.gguf";
  write_tiny_model(path, {});
  std::filesystem::resize_file(path, kRememberedBytes);
  setenv("FIRP_CACHE", "/dev/null/no", 1);
  EXPECT_EQ(identify(GgufFile(path)).tensor_hash.size(), 16u);
}

}  // namespace
}  // namespace firp
