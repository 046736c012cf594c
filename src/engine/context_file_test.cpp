#include "engine/context_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <random>

#include "base/error.h"
#include "engine/native_engine.h"
#include "engine/test_engines.h"
#include "model/full_disk.h"

namespace firp {
namespace {

using testing::HasSubstr;
using Tokens = std::vector<Token>;
constexpr int kVocabulary = 320;

Tokens some_tokens(int count, std::uint32_t seed) {
  std::mt19937 random(seed);
  return random_tokens(count, kVocabulary, random);
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

class ContextFileTest : public testing::TestWithParam<CacheType> {
 protected:
  EngineOptions options() const {
    return {.threads = 1, .context = 300, .positions = 300, .cache_type = GetParam()};
  }
  static void read(Engine& engine, const Tokens& tokens) {
    const int sequence = engine.add_sequence();
    append(engine, sequence, tokens, 50);
    engine.retire_sequence(sequence);
  }
  static int held(Engine& engine, const Tokens& tokens) {
    const int sequence = engine.add_sequence();
    const int length = engine.adopt(sequence, tokens);
    engine.remove_sequence(sequence);
    return length;
  }
  std::string error_of(Engine& engine) const {
    try {
      restore_context(engine, path_);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  const TinyModel model_{{.type = GGML_TYPE_Q4_1}};
  const TemporaryDirectory directory_;
  const std::filesystem::path path_ = directory_ / "context.bin";
  const Tokens text_ = some_tokens(200, 1);
};

TEST_P(ContextFileTest, WhatWasRestoredHasTheBitsOfWhatWasRead) {
  for (const int length : {1, 63, 64, 65, 128, 200}) {
    SCOPED_TRACE(length);
    const Tokens tokens(text_.begin(), text_.begin() + length);
    NativeEngine saver(*model_, options()), reader(*model_, options());
    read(saver, tokens);
    const SavedContext saved = save_context(saver, tokens, path_);
    EXPECT_EQ(saved.tokens, tokens);
    EXPECT_EQ(saved.bytes, std::filesystem::file_size(path_));
    EXPECT_EQ(held(saver, tokens), length) << "saving takes nothing away";

    const SavedContext restored = restore_context(reader, path_);
    EXPECT_EQ(restored.tokens, tokens);
    EXPECT_EQ(restored.bytes, saved.bytes);
    const int sequence = reader.add_sequence(), other = saver.add_sequence();
    EXPECT_EQ(reader.adopt(sequence, tokens), length);
    append(saver, other, tokens, 7);
    for (int i = 0; i < 70; ++i) {  // over the end of the last page
      const Token next = text_[i];
      ASSERT_TRUE(
          bits_equal(logits_alone(reader, sequence, next), logits_alone(saver, other, next)))
          << i;
    }
  }
}

TEST_P(ContextFileTest, TheSameContextIsTheSameFile) {
  const Tokens tokens(text_.begin(), text_.begin() + 70);
  NativeEngine engine(*model_, options());
  const int sequence = engine.add_sequence();
  append(engine, sequence, text_, 50);
  engine.truncate(sequence, 70);  // rests of what was behind lie in the page
  engine.retire_sequence(sequence);
  save_context(engine, tokens, path_);
  const std::string first = read_file(path_);
  NativeEngine other(*model_, options());
  read(other, tokens);
  save_context(other, tokens, path_);
  EXPECT_EQ(read_file(path_), first);
}

TEST_P(ContextFileTest, SavesAsMuchAsIsHeld) {
  NativeEngine engine(*model_, options());
  EXPECT_EQ(save_context(engine, text_, path_).tokens.size(), 0u);
  EXPECT_FALSE(std::filesystem::exists(path_));
  read(engine, {text_.begin(), text_.begin() + 90});
  EXPECT_EQ(save_context(engine, text_, path_).tokens.size(), 90u);
}

TEST_P(ContextFileTest, EveryDamageIsFound) {
  NativeEngine engine(*model_, options());
  const Tokens tokens(text_.begin(), text_.begin() + 70);
  read(engine, tokens);
  save_context(engine, tokens, path_);
  const std::string whole = read_file(path_);
  NativeEngine fresh(*model_, options());
  for (std::size_t cut = 0; cut < whole.size(); cut += cut < 600 ? 1 : whole.size() / 40) {
    write_file(path_, whole.substr(0, cut));
    ASSERT_NE(error_of(fresh), "") << cut;
  }
  write_file(path_, whole + "x");
  EXPECT_THAT(error_of(fresh), HasSubstr("damaged"));
  for (std::size_t at = 0; at < whole.size(); at += at < 600 ? 1 : whole.size() / 40) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 0x40);
    write_file(path_, changed);
    ASSERT_NE(error_of(fresh), "") << at;
  }
  EXPECT_EQ(held(fresh, tokens), 0);
  write_file(path_, whole);
  EXPECT_EQ(error_of(fresh), "");
  EXPECT_EQ(held(fresh, tokens), 70);
}

TEST_P(ContextFileTest, SaysWhatIsNoFileOfItsOwn) {
  NativeEngine engine(*model_, options());
  EXPECT_THAT(error_of(engine), HasSubstr("no such file"));
  write_file(path_, "GGUF is something else, and long enough for a header");
  EXPECT_THAT(error_of(engine), HasSubstr("no saved context"));
  std::filesystem::remove(path_);
  std::filesystem::create_directory(path_);
  EXPECT_THAT(error_of(engine), HasSubstr("no such file"));
}

TEST_P(ContextFileTest, RefusesWhatWasSavedForSomethingElse) {
  NativeEngine engine(*model_, options());
  read(engine, text_);
  save_context(engine, text_, path_);
  const auto refusal = [&](const Model& model, EngineOptions changed) {
    NativeEngine other(model, changed);
    return error_of(other);
  };
  EngineOptions changed = options();
  changed.cache_type = GetParam() == CacheType::kF16 ? CacheType::kQ8_0 : CacheType::kF16;
  EXPECT_THAT(refusal(*model_, changed), HasSubstr("another model or engine"));
  const TinyModel other_weights({.type = GGML_TYPE_Q8_0});
  EXPECT_THAT(refusal(*other_weights, options()), HasSubstr("another model or engine"));
  {
    const TinyModel other_kernels({.type = GGML_TYPE_Q4_1}, "portable");
    EXPECT_THAT(refusal(*model_, options()), HasSubstr("another model or engine"));
  }
  changed = options();
  changed.context = changed.positions = 100;
  EXPECT_THAT(refusal(*model_, changed), HasSubstr("context of 100"));
}

/// What runs keeps its place; what is only remembered makes way.
TEST_P(ContextFileTest, TakesTheRoomThatThereIs) {
  NativeEngine engine(*model_, options());
  read(engine, text_);
  save_context(engine, text_, path_);
  engine.forget(text_, 0);
  const Tokens other = some_tokens(150, 2);
  const int live = engine.add_sequence();
  append(engine, live, other, 50);
  EXPECT_THAT(error_of(engine), HasSubstr("no room"));
  EXPECT_EQ(engine.length(live), 150);
  EXPECT_EQ(held(engine, text_), 0);
  engine.retire_sequence(live);
  EXPECT_EQ(error_of(engine), "");
  EXPECT_EQ(held(engine, text_), 200);
  EXPECT_EQ(held(engine, other), 0);
}

TEST_P(ContextFileTest, AFullDiskLeavesTheFileThatWasThere) {
  NativeEngine engine(*model_, options());
  read(engine, text_);
  write_file(path_, "before");
  {
    const FullDisk full(1000);
    EXPECT_THROW(save_context(engine, text_, path_), Error);
  }
  EXPECT_EQ(read_file(path_), "before");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(path_.parent_path()), {}), 1);
}

TEST_P(ContextFileTest, ForgetsWhatNobodyElseHolds) {
  EngineOptions roomy = options();
  roomy.positions = 2000;
  NativeEngine engine(*model_, roomy);
  const Tokens beginning(text_.begin(), text_.begin() + 100);
  Tokens branch = beginning;
  branch[80] = text_[80] ^ 1;
  read(engine, beginning);
  const int sequence = engine.add_sequence();
  EXPECT_EQ(engine.adopt(sequence, text_), 100);
  append(engine, sequence, std::span(text_).subspan(100, 60), 50);
  engine.retire_sequence(sequence);
  read(engine, branch);
  const Tokens longest(text_.begin(), text_.begin() + 160);
  ASSERT_EQ(held(engine, text_), 160);
  engine.forget(longest, 90);
  EXPECT_EQ(held(engine, text_), 90);
  engine.forget(longest, 0);
  EXPECT_EQ(held(engine, text_), 80) << "the other text's";
  EXPECT_EQ(held(engine, branch), 100);
}

INSTANTIATE_TEST_SUITE_P(Types, ContextFileTest, testing::Values(CacheType::kF16, CacheType::kQ8_0),
                         [](const auto& type) {
                           return type.param == CacheType::kF16 ? "F16" : "Q8_0";
                         });

}  // namespace
}  // namespace firp
