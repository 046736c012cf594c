#include "model/vocabulary.h"

#include <fmt/format.h>
#include <gguf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "model/test_files.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

using testing::HasSubstr;

class RealVocabulary : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(std::filesystem::exists(real_model()))
        << real_model() << " is missing: run the tests by `make test`, which fetches it";
  }
};

TEST_F(RealVocabulary, TokenizesAndComesBack) {
  const Vocabulary vocabulary(real_model());
  EXPECT_EQ(vocabulary.size(), 49152);
  for (const std::string text :
       {"Hello, world!", " two  spaces\n\ttab", "größer 你好 🙂", "", "1234567"}) {
    EXPECT_EQ(vocabulary.text(vocabulary.tokenize(text, false)), text);
  }
  const std::vector<Token> tokens = vocabulary.tokenize("<|im_start|>user\nHi<|im_end|>", true);
  EXPECT_EQ(tokens.front(), 1);
  EXPECT_EQ(tokens.back(), 2);
  EXPECT_EQ(vocabulary.text(tokens), "user\nHi");
  EXPECT_EQ(vocabulary.piece(1), "");
  EXPECT_EQ(vocabulary.piece(1, true), "<|im_start|>");
  EXPECT_TRUE(vocabulary.is_end_of_generation(2));
  EXPECT_FALSE(vocabulary.is_end_of_generation(tokens[1]));
  EXPECT_THROW(vocabulary.piece(-1), Error);
  EXPECT_THROW(vocabulary.piece(49152), Error);
  EXPECT_THAT(error_of([&] { vocabulary.tokenize("ab\xff", false); }), HasSubstr("byte 2"));
}

TEST_F(RealVocabulary, TokenizesLongMonotonousText) {
  const Vocabulary vocabulary(real_model());
  for (const std::string unit : {"!", "a", " ", "7", "\n", "é", "中"}) {
    std::string text;
    while (text.size() < 200'000) {
      text += unit;
    }
    EXPECT_EQ(vocabulary.text(vocabulary.tokenize(text, false)), text) << unit;
  }
}

TEST_F(RealVocabulary, WritesTheModelsChatTemplate) {
  const Vocabulary vocabulary(real_model());
  ASSERT_TRUE(vocabulary.has_chat_template());
  const std::vector<ChatMessage> messages = {{"system", "Be brief."}, {"user", "Hi"}};
  EXPECT_EQ(vocabulary.apply_chat_template(messages, true),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n");
  const std::vector<ChatMessage> large = {{"user", std::string(100'000, 'x')}};
  EXPECT_EQ(vocabulary.apply_chat_template(large, false),
            "<|im_start|>user\n" + std::string(100'000, 'x') + "<|im_end|>\n");
  const std::vector<ChatMessage> bad = {{"user", "\xc0\x80"}};
  EXPECT_THROW(vocabulary.apply_chat_template(bad, true), Error);
  const std::vector<ChatMessage> zero = {{"user", std::string("a\0b", 3)}};
  EXPECT_THROW(vocabulary.apply_chat_template(zero, true), Error);
}

/// A GGUF file with nothing but a small tokenizer, for the damage below.
struct TokenizerFile {
  std::string model = "gpt2";
  std::string pre = "default";
  std::vector<const char*> tokens = {"<|endoftext|>", "a", "b", "ab", "\u010a", "\u0120", "<0x41>"};
  std::vector<float> scores = std::vector<float>(7, -1.0f);
  std::vector<std::int32_t> types = {3, 1, 1, 1, 1, 1, 6};
  std::vector<const char*> merges = {"a b"};
  std::uint32_t bos = 0;
  bool add_bos = true;

  void write(const std::filesystem::path& path) const {
    gguf_context* gguf = gguf_init_empty();
    gguf_set_val_str(gguf, "general.architecture", "llama");
    gguf_set_val_str(gguf, "tokenizer.ggml.model", model.c_str());
    gguf_set_val_str(gguf, "tokenizer.ggml.pre", pre.c_str());
    auto texts = tokens;
    gguf_set_arr_str(gguf, "tokenizer.ggml.tokens", texts.data(), texts.size());
    gguf_set_arr_data(gguf, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(),
                      scores.size());
    gguf_set_arr_data(gguf, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(),
                      types.size());
    auto pairs = merges;
    gguf_set_arr_str(gguf, "tokenizer.ggml.merges", pairs.data(), pairs.size());
    gguf_set_val_u32(gguf, "tokenizer.ggml.bos_token_id", bos);
    gguf_set_val_bool(gguf, "tokenizer.ggml.add_bos_token", add_bos);
    gguf_write_to_file(gguf, path.c_str(), false);
    gguf_free(gguf);
  }
};

TEST(Vocabulary, ReadsASmallTokenizer) {
  const TemporaryDirectory directory;
  TokenizerFile().write(directory / "v.gguf");
  const Vocabulary vocabulary(directory / "v.gguf");
  EXPECT_EQ(vocabulary.tokenize("abba", true), (std::vector<Token>{0, 3, 2, 1}));
  EXPECT_EQ(vocabulary.tokenize("ab", false), (std::vector<Token>{3}));
  EXPECT_FALSE(vocabulary.has_chat_template());
  EXPECT_THAT(error_of([&] { vocabulary.apply_chat_template({}, true); }),
              HasSubstr("no chat template"));
}

/// libllama's regular expressions recurse once a character: 26,000 were the end of an 8 MB stack.
TEST(Vocabulary, LongRunsDoNotOverflowTheStack) {
  const TemporaryDirectory directory;
  for (const std::string pre : {"default", "tekken", "deepseek-llm"}) {
    TokenizerFile file;
    file.pre = pre;
    file.write(directory / "v.gguf");
    const Vocabulary vocabulary(directory / "v.gguf");
    for (const std::string unit : {"!", "a", " ", "7", "\n", "é"}) {
      std::string text;
      while (text.size() < 100'000) {
        text += unit;
      }
      const std::size_t expected = unit == "a" || unit == " " || unit == "\n" ? text.size() : 0;
      EXPECT_EQ(vocabulary.tokenize(text, false).size(), expected) << pre << " " << unit;
    }
  }
}

TEST(Vocabulary, RefusesByName) {
  const TemporaryDirectory directory;
  const auto message = [&](auto change) {
    TokenizerFile file;
    change(file);
    file.write(directory / "v.gguf");
    return error_of([&] { Vocabulary(directory / "v.gguf").tokenize("a b\n", true); });
  };
  EXPECT_THAT(message([](TokenizerFile& file) { file.model = "none"; }), HasSubstr("no tokenizer"));
  EXPECT_THAT(message([](TokenizerFile& file) { file.model = "rwkv"; }), HasSubstr("rwkv"));
  EXPECT_THAT(message([](TokenizerFile& file) { file.tokens[2] = "a"; }), HasSubstr("twice"));
  EXPECT_THAT(message([](TokenizerFile& file) { file.tokens.clear(); }), HasSubstr("no tokens"));
  EXPECT_THAT(message([](TokenizerFile& file) { file.scores.pop_back(); }), HasSubstr("scores"));
  EXPECT_THAT(message([](TokenizerFile& file) { file.types.pop_back(); }), HasSubstr("token_type"));
  EXPECT_THAT(message([](TokenizerFile& file) { file.tokens[6] = "x"; }), HasSubstr("vocabulary"));

  TinyModelOptions options;
  options.layers = 1;
  write_tiny_model(directory / "m.gguf", options);
  EXPECT_THAT(error_of([&] { Vocabulary(directory / "m.gguf"); }), HasSubstr("no tokenizer"));
}

TEST(Vocabulary, ABosOutOfRangeIsAnError) {
  const TemporaryDirectory directory;
  TokenizerFile file;
  file.bos = 1000;
  file.write(directory / "v.gguf");
  EXPECT_THAT(error_of([&] { Vocabulary(directory / "v.gguf").tokenize("a", true); }),
              HasSubstr("BOS"));
}

TEST(Vocabulary, DamagedBytesGiveAnErrorOrAVocabulary) {
  const TemporaryDirectory directory;
  std::mt19937 random(11);
  for (const std::string model : {"gpt2", "llama"}) {
    TokenizerFile file;
    file.model = model;
    file.write(directory / "v.gguf");
    const std::string bytes = read_bytes(directory / "v.gguf");
    for (int i = 0; i < 1000; ++i) {
      std::string damaged = bytes;
      const std::size_t offset = random() % bytes.size();
      damaged[offset] = static_cast<char>(random());
      write_bytes(directory / "d.gguf", damaged);
      try {
        const Vocabulary vocabulary(directory / "d.gguf");
        for (const Token token : vocabulary.tokenize("ab a\nx<|endoftext|>", true)) {
          vocabulary.piece(token, true);
        }
      } catch (const Error&) {
      } catch (const std::exception& error) {
        ADD_FAILURE() << "byte " << offset << ": not an Error: " << error.what();
      }
    }
  }
}

TEST(Utf8, AcceptsWhatIsValid) {
  for (const std::string text :
       {"", "ascii", "\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_NO_THROW(require_utf8(text, "it")) << text;
  }
  EXPECT_NO_THROW(require_utf8(std::string_view("a\0b", 3), "it"));
}

TEST(Utf8, RefusesWhatIsNot) {
  for (const std::string bad :
       {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2\x41", "\xe0\x9f\xbf", "\xe0\xa0",
        "\xed\xa0\x80", "\xed\xbf\xbf", "\xef\xbf", "\xf0\x8f\xbf\xbf", "\xf0\x90\x80",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xfe"}) {
    EXPECT_THAT(error_of([&] { require_utf8("ok " + bad, "the prompt"); }),
                HasSubstr("the prompt is not valid UTF-8 (at byte 3)"));
  }
}

TEST(UnfinishedUtf8, HoldsTheBytesThatBeginACharacter) {
  EXPECT_EQ(unfinished_utf8(""), 0u);
  EXPECT_EQ(unfinished_utf8("abc"), 0u);
  const std::string two = "\xc3\xa9";
  const std::string three = "\xe2\x82\xac";
  const std::string four = "\xf0\x9f\x98\x80";
  for (const std::string& character : {two, three, four}) {
    EXPECT_EQ(unfinished_utf8(character), 0u);
    for (std::size_t cut = 1; cut < character.size(); ++cut) {
      EXPECT_EQ(unfinished_utf8(two + character.substr(0, cut)), cut);
      EXPECT_EQ(unfinished_utf8(character.substr(0, cut)), cut);
    }
  }
}

TEST(UnfinishedUtf8, NeverWaitsForWhatCannotBecomeACharacter) {
  EXPECT_EQ(unfinished_utf8("\x80"), 0u);
  EXPECT_EQ(unfinished_utf8("\x80\x80\x80\x80"), 0u);
  EXPECT_EQ(unfinished_utf8("\xc3\xa9\x80"), 0u);
}

}  // namespace
}  // namespace firp
