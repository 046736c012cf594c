#include "model/vocabulary.h"

#include <fmt/format.h>
#include <gguf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama.h>

#include <chrono>
#include <memory>
#include <random>

#include "model/test_files.h"
#include "model/test_parts.h"
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

/// libllama by itself.
class Libllama {
 public:
  explicit Libllama(const std::filesystem::path& path) : model_(nullptr, llama_model_free) {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    llama_model_params parameters = llama_model_default_params();
    parameters.vocab_only = true;
    model_.reset(llama_model_load_from_file(path.c_str(), parameters));
  }

  std::vector<Token> tokenize(const std::string& text, bool parse_special) const {
    std::vector<Token> tokens(3 * text.size() + 2);
    tokens.resize(llama_tokenize(llama_model_get_vocab(model_.get()), text.data(),
                                 static_cast<std::int32_t>(text.size()), tokens.data(),
                                 static_cast<std::int32_t>(tokens.size()), false, parse_special));
    return tokens;
  }

 private:
  std::unique_ptr<llama_model, decltype(&llama_model_free)> model_;
};

std::string random_text(std::mt19937& random, const std::vector<std::string>& parts, int most) {
  std::string text;
  for (auto count = static_cast<int>(random() % most); count > 0; --count) {
    text += parts[random() % parts.size()];
  }
  return text;
}

TEST_F(RealVocabulary, SplitsAtSpecialTokensAsLibllamaDoes) {
  const Vocabulary vocabulary(real_model());
  const Libllama libllama(real_model());
  const std::vector<std::string> parts = {"<|im_start|>",
                                          "<|im_end|>",
                                          "<|endoftext|>",
                                          "<repo_name>",
                                          "<|im_",
                                          "end|>",
                                          "<",
                                          "|>",
                                          " ",
                                          "\n",
                                          "two words",
                                          "7",
                                          "中",
                                          "<jupyter_output>"};
  std::mt19937 random(5);
  for (int i = 0; i < 2000; ++i) {
    const std::string text = random_text(random, parts, 12);
    ASSERT_EQ(vocabulary.tokenize(text, false), libllama.tokenize(text, true)) << text;
    // A text that is literal all over has what libllama's parse_special = false gives.
    ASSERT_EQ(vocabulary.tokenize(PromptText{text, {{0, text.size()}}}, false),
              libllama.tokenize(text, false))
        << text;
  }
}

TEST_F(RealVocabulary, ManyControlTokensTakeTimeThatGrowsWithTheTextAlone) {
  const Vocabulary vocabulary(real_model());
  std::string text;
  constexpr int kCount = 200'000;  // 24 times as long as what took libllama 10 s
  for (int i = 0; i < kCount; ++i) text += "<|im_end|> ";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(vocabulary.tokenize(text, false).size(), 2u * kCount);
  EXPECT_EQ(vocabulary.control_texts(text).size(), 1u * kCount);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST_F(RealVocabulary, RefusesATextThatNoTokensOfTheContextCanHold) {
  const Vocabulary vocabulary(real_model());
  const std::size_t longest = vocabulary.longest_token_bytes();
  EXPECT_GE(longest, vocabulary.piece(2, true).size());
  EXPECT_LT(longest, 1000u);
  EXPECT_NO_THROW(vocabulary.require_fits(100 * longest, 100));
  EXPECT_THAT(error_of([&] { vocabulary.require_fits(100 * longest + 1, 100); }),
              testing::AllOf(HasSubstr(std::to_string(100 * longest + 1) + " bytes"),
                             HasSubstr("a context of 100 tokens")));
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
  std::string name = "small";
  std::string chat_template = "";

  void write(const std::filesystem::path& path) const {
    gguf_context* gguf = gguf_init_empty();
    gguf_set_val_str(gguf, "general.architecture", "llama");
    gguf_set_val_str(gguf, "general.name", name.c_str());
    if (!chat_template.empty()) {
      gguf_set_val_str(gguf, "tokenizer.chat_template", chat_template.c_str());
    }
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
}

TEST(Vocabulary, IsThatOfTheFirstOfSeveralFiles) {
  const TemporaryDirectory directory;
  TokenizerFile().write(directory / "v.gguf");
  const Vocabulary vocabulary(write_parts(directory / "v.gguf", directory / "m", 2));
  EXPECT_EQ(vocabulary.tokenize("abba", true), (std::vector<Token>{0, 3, 2, 1}));
}

/// Some files call the marks of their turns user-defined, which libllama finds in any text.
TEST(Vocabulary, MarksOfTurnsThatAFileCallsUserDefinedStayTextToo) {
  const TemporaryDirectory directory;
  TokenizerFile file;
  file.model = "gpt2";
  file.tokens = {"<|im_start|>",
                 "<|im_end|>",
                 "<tool>",
                 "<",
                 "|",
                 "i",
                 "m",
                 "_",
                 "s",
                 "t",
                 "a",
                 "r",
                 "e",
                 "n",
                 "d",
                 ">",
                 "u",
                 "\u010a",
                 "\u0120"};
  file.types.assign(file.tokens.size(), 1);
  file.types[0] = file.types[1] = file.types[2] = 4;
  file.scores.assign(file.tokens.size(), -1.0f);
  file.chat_template =
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
  file.write(directory / "v.gguf");
  const Vocabulary vocabulary(directory / "v.gguf");
  const auto count = [&](const std::string& content, Token token) {
    const std::string begin = "<|im_start|>user\n", end = "<|im_end|>\n<|im_start|>";
    const PromptText text = {begin + content + end,
                             {{begin.size(), begin.size() + content.size()}}};
    return std::ranges::count(vocabulary.tokenize(text, false), token);
  };
  EXPECT_EQ(count("a", 0), 2);
  EXPECT_EQ(count("a<|im_end|>\n<|im_start|>user\n", 0), 2);
  EXPECT_EQ(count("<|im_end|><|im_end|>", 1), 1);
  EXPECT_EQ(count("<tool>", 2), 1) << "what the template does not write is for users, too";
  EXPECT_EQ(vocabulary.control_texts("a<|im_end|><tool>").size(), 1u);
}

TEST(Vocabulary, SplitsOddVocabulariesAsLibllamaDoes) {
  const TemporaryDirectory directory;
  const std::vector<const char*> special = {"<|endoftext|>",
                                            "</s>",
                                            "<unk>",
                                            "<s>",
                                            "<mask>",
                                            "<a>",
                                            "<ab>",
                                            "a>",
                                            "b<",
                                            "<a><ab>",
                                            "ab",
                                            "aa",
                                            "aaa",
                                            "a b",
                                            "> <",
                                            "b>a",
                                            "<<",
                                            "<<<",
                                            ">",
                                            "\n\n"};
  std::vector<std::string> parts = {"a", "b", "<", ">", " ", "\n", "\t", "ab", "x"};
  parts.insert(parts.end(), special.begin(), special.end());
  std::mt19937 random(7);
  for (int i = 0; i < 60; ++i) {
    TokenizerFile file;
    file.model = i % 3 == 0 ? "llama" : "gpt2";
    file.pre = i % 3 == 1 ? "jina-v2-de" : "default";  // <mask> takes white space from its left
    file.name = i % 2 == 0 ? "Phi-3 small" : "small";  // special tokens take it from their right
    file.tokens = {"<0x0A>", "x", "\u010a", "\u0120", "\u2581"};
    file.types = {6, 1, 1, 1, 1};
    for (const char* const token : special) {
      file.tokens.push_back(token);
      file.types.push_back(static_cast<std::int32_t>(1 + random() % 4));  // normal .. user-defined
    }
    file.tokens.push_back("a");
    file.tokens.push_back("b");
    file.types.resize(file.tokens.size(), 1);
    file.scores.assign(file.tokens.size(), -1.0f);
    file.write(directory / "v.gguf");
    const Vocabulary vocabulary(directory / "v.gguf");
    const Libllama libllama(directory / "v.gguf");
    for (int k = 0; k < 200; ++k) {
      const std::string text = random_text(random, parts, 14);
      std::vector<Token> expected;
      bool known = true;  // libllama throws where a byte has no token
      try {
        expected = libllama.tokenize(text, true);
      } catch (const std::exception&) {
        known = false;
      }
      if (known) {
        ASSERT_EQ(vocabulary.tokenize(text, false), expected) << i << ": " << text;
      }
    }
  }
}

TEST(Vocabulary, PutsNoSecondBosBeforeAText) {
  const TemporaryDirectory directory;
  TokenizerFile().write(directory / "v.gguf");
  const Vocabulary vocabulary(directory / "v.gguf");
  EXPECT_EQ(vocabulary.tokenize("a", true), (std::vector<Token>{0, 1}));
  EXPECT_EQ(vocabulary.tokenize("<|endoftext|>a", true), (std::vector<Token>{0, 1}));
  EXPECT_EQ(vocabulary.tokenize("<|endoftext|><|endoftext|>a", true),
            (std::vector<Token>{0, 0, 1}));
  EXPECT_EQ(vocabulary.tokenize("", true), (std::vector<Token>{0}));
  // Somebody's words are no BOS.
  EXPECT_EQ(vocabulary.tokenize(PromptText{"<|endoftext|>a", {{0, 13}}}, true).front(), 0);
  EXPECT_GT(vocabulary.tokenize(PromptText{"<|endoftext|>ab", {{0, 13}}}, true).size(), 1u);
}

/// Their merges, the tokens of bytes and of what is unknown, as real files have them.
TokenizerFile file_of_kind(const std::string& model) {
  TokenizerFile file;
  file.model = model;
  if (model == "gpt2") return file;
  static std::vector<std::string> bytes;
  if (bytes.empty()) {
    for (int byte = 0; byte < 256; ++byte) bytes.push_back(fmt::format("<0x{:02X}>", byte));
  }
  file.tokens = {"<s>", "</s>", "<unk>", "<|endoftext|>", "a", "b", "ab", "\u2581", "\n"};
  file.types = {3, 3, 2, 3, 1, 1, 1, 1, 1};
  for (const std::string& byte : bytes) {
    file.tokens.push_back(byte.c_str());
    file.types.push_back(6);
  }
  file.scores.assign(file.tokens.size(), -1.0f);
  return file;
}

TEST(Vocabulary, HasTheTokenizersThatLibllamaHasForModelsWithANextToken) {
  const TemporaryDirectory directory;
  for (const std::string model : {"gpt2", "llama", "gemma4", "plamo2", "t5", "hybriddna"}) {
    SCOPED_TRACE(model);
    file_of_kind(model).write(directory / "v.gguf");
    const Vocabulary vocabulary(directory / "v.gguf");
    const Libllama libllama(directory / "v.gguf");
    for (const std::string text : {"ab", "ab<|endoftext|>ba", "a\n\nb"}) {
      EXPECT_EQ(vocabulary.tokenize(text, false), libllama.tokenize(text, true));
    }
  }
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
  EXPECT_THAT(message([](TokenizerFile& file) { file.pre = "whitespace"; }),
              HasSubstr("'whitespace'"));
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
  for (const std::string model : {"gpt2", "llama", "gemma4", "plamo2", "t5", "hybriddna"}) {
    file_of_kind(model).write(directory / "v.gguf");
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
