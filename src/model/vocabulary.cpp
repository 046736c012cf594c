#include "model/vocabulary.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <llama.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <exception>
#include <limits>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/error.h"
#include "model/ggml_log.h"
#include "model/gguf_file.h"
#include "model/special_tokens.h"

namespace firp {
namespace {

/// Refuses what libllama would end the process for.
void check_tokenizer(const GgufFile& file) {
  const std::string path = file.path().string();
  const std::string kind = file.get_string("tokenizer.ggml.model");
  if (kind == "no_vocab" || kind == "none") {
    throw Error(
        fmt::format("{}: the file has no tokenizer (tokenizer.ggml.model = {})", path, kind));
  }
  // Those of libllama that models with a next token have. Of the others, "rwkv" and the
  // pre-tokenizer "whitespace" end the process, or never end, on odd files and texts.
  constexpr std::string_view kKinds[] = {"llama", "gpt2", "gemma4", "plamo2", "t5", "hybriddna"};
  if (std::ranges::count(kKinds, kind) == 0) {
    throw Error(fmt::format("{}: the tokenizer '{}' is not supported (supported: {})", path,
                            one_line(kind), fmt::join(kKinds, ", ")));
  }
  if (file.find_string("tokenizer.ggml.pre").value_or("") == "whitespace") {
    throw Error(fmt::format("{}: the pre-tokenizer 'whitespace' is not supported", path));
  }
  const auto tokens = file.find_string_array("tokenizer.ggml.tokens");
  if (!tokens || tokens->empty()) {
    throw Error(fmt::format("{}: the file has no tokens (tokenizer.ggml.tokens)", path));
  }
  std::unordered_set<std::string> seen;
  for (std::size_t i = 0; i < tokens->size(); ++i) {
    // libllama's own name for an empty token
    const std::string text = (*tokens)[i].empty() ? fmt::format("[EMPTY_{}]", i) : (*tokens)[i];
    if (!seen.insert(text).second) {
      throw Error(fmt::format("{}: damaged tokenizer: token {} ('{}') is there twice", path, i,
                              one_line(text)));
    }
  }
  for (const char* key : {"tokenizer.ggml.scores", "tokenizer.ggml.token_type"}) {
    const auto size = file.find_array_size(key);
    if (size && *size != tokens->size()) {
      throw Error(fmt::format("{}: damaged tokenizer: {} has {} elements for {} tokens", path, key,
                              *size, tokens->size()));
    }
  }
}

/// Calls llama_tokenize for `text`, which holds no special tokens, with stack enough. For some
/// models libllama splits text by std::regex, which recurses once a character (some 330 bytes of
/// stack each): a long run of like characters would overflow an ordinary stack.
std::int32_t tokenize_with_stack(const llama_vocab* vocabulary, std::string_view text,
                                 std::span<Token> out) {
  struct Call {
    const llama_vocab* vocabulary;
    std::string_view text;
    std::span<Token> out;
    std::int32_t count;
    std::exception_ptr error;
  } call{vocabulary, text, out, 0, nullptr};
  const auto run = [](void* argument) -> void* {
    Call& c = *static_cast<Call*>(argument);
    try {
      // Not its add_special: that would also append an EOS where a file asks for one.
      c.count =
          llama_tokenize(c.vocabulary, c.text.data(), static_cast<std::int32_t>(c.text.size()),
                         c.out.data(), static_cast<std::int32_t>(c.out.size()),
                         /*add_special=*/false, /*parse_special=*/false);
    } catch (...) {
      c.error = std::current_exception();
    }
    return nullptr;
  };

  constexpr std::size_t kOrdinaryText = 4096;
  constexpr std::size_t kStackBytesPerByte = 1024;
  if (text.size() <= kOrdinaryText) {
    run(&call);
  } else {
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    const bool started =
        pthread_attr_setstacksize(&attributes,
                                  (std::size_t{8} << 20) + kStackBytesPerByte * text.size()) == 0 &&
        pthread_create(&thread, &attributes, run, &call) == 0;
    pthread_attr_destroy(&attributes);
    if (!started) {
      throw Error(fmt::format("the text has {} bytes: too long to tokenize here", text.size()));
    }
    pthread_join(thread, nullptr);
  }
  if (call.error != nullptr) {
    std::rethrow_exception(call.error);
  }
  return call.count;
}

}  // namespace

struct Vocabulary::Handle {
  struct Free {
    void operator()(llama_model* pointer) const { llama_model_free(pointer); }
  };
  std::string path;
  std::unique_ptr<llama_model, Free> model;
  const llama_vocab* vocabulary = nullptr;
  std::optional<SpecialTokens> special;
  std::size_t longest_token_bytes = 0;
  std::array<Token, 256> byte_tokens;
  std::vector<Token> end_tokens;

  void append_tokens(std::string_view text, std::vector<Token>& tokens) const;
};

/// Of a text without special tokens.
void Vocabulary::Handle::append_tokens(std::string_view text, std::vector<Token>& tokens) const {
  std::vector<Token> body(text.size() +
                          2);  // a token is at least a byte; a space may come in front
  std::int32_t count = 0;
  try {
    count = tokenize_with_stack(vocabulary, text, body);
    if (count < 0) {
      body.resize(static_cast<std::size_t>(-static_cast<std::int64_t>(count)));
      count = tokenize_with_stack(vocabulary, text, body);
    }
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error(fmt::format("{}: damaged tokenizer: {}", path, one_line(error.what())));
  }
  if (count < 0) throw Error(fmt::format("{}: libllama cannot tokenize the text", path));
  const int size = llama_vocab_n_tokens(vocabulary);
  for (const Token token : std::span(body).first(static_cast<std::size_t>(count))) {
    if (token < 0 || token >= size) {
      throw Error(fmt::format("{}: damaged tokenizer: it has no token for unknown text", path));
    }
  }
  tokens.insert(tokens.end(), body.begin(), body.begin() + count);
}

Vocabulary::Vocabulary(const std::filesystem::path& model_path)
    : handle_(std::make_unique<Handle>()) {
  check_tokenizer(GgufFile(model_path));
  handle_->path = model_path.string();
  const GgmlErrors errors;
  llama_model_params parameters = llama_model_default_params();
  parameters.vocab_only = true;
  handle_->model.reset(llama_model_load_from_file(handle_->path.c_str(), parameters));
  if (handle_->model == nullptr) {
    throw Error(fmt::format("{}: libllama cannot read the vocabulary: {}", handle_->path,
                            errors.text("it does not say why")));
  }
  handle_->vocabulary = llama_model_get_vocab(handle_->model.get());
  const char* const chat_template = llama_model_chat_template(handle_->model.get(), nullptr);
  handle_->special.emplace(handle_->vocabulary, chat_template != nullptr ? chat_template : "");
  handle_->byte_tokens.fill(kNoToken);
  for (Token token = 0; token < size(); ++token) {
    // What llama_token_to_piece has no room for, it tells the size of.
    const std::int32_t length =
        llama_token_to_piece(handle_->vocabulary, token, nullptr, 0, 0, /*special=*/true);
    handle_->longest_token_bytes =
        std::max(handle_->longest_token_bytes, static_cast<std::size_t>(std::abs(length)));
    if (is_end_of_generation(token)) handle_->end_tokens.push_back(token);
    if (length != -1) continue;
    const auto byte = static_cast<unsigned char>(piece(token, /*show_special=*/true).front());
    if (handle_->byte_tokens[byte] == kNoToken) handle_->byte_tokens[byte] = token;
  }
}

Vocabulary::~Vocabulary() = default;
Vocabulary::Vocabulary(Vocabulary&&) noexcept = default;

int Vocabulary::size() const { return llama_vocab_n_tokens(handle_->vocabulary); }

std::vector<Token> Vocabulary::tokenize(std::string_view text, bool add_bos) const {
  return tokenize(PromptText{std::string(text)}, add_bos);
}

std::vector<Token> Vocabulary::tokenize(const PromptText& prompt, bool add_bos) const {
  const std::string& text = prompt.text;
  require_utf8(text, "the text");
  if (text.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max() / 2)) {
    throw Error(fmt::format("the text has {} bytes: too long", text.size()));
  }
  Token bos = LLAMA_TOKEN_NULL;
  if (add_bos && llama_vocab_get_add_bos(handle_->vocabulary)) {
    bos = llama_vocab_bos(handle_->vocabulary);
    if (bos == LLAMA_TOKEN_NULL) {
      throw Error(fmt::format("{}: the file asks for a BOS token and names none", handle_->path));
    }
  }
  std::vector<Token> tokens;
  // Between the turns of a long conversation stand the same few texts again and again, and a call
  // of libllama takes longer than what it does with one of them.
  constexpr std::size_t kShort = 16;
  std::unordered_map<std::string_view, std::vector<Token>> known;
  for (const SpecialTokens::Piece& piece : handle_->special->split(text, prompt.literal)) {
    if (piece.token != LLAMA_TOKEN_NULL) {
      tokens.push_back(piece.token);
    } else if (piece.text.size() > kShort) {
      handle_->append_tokens(piece.text, tokens);
    } else {
      const auto [found, is_new] = known.try_emplace(piece.text);
      if (is_new) handle_->append_tokens(piece.text, found->second);
      tokens.insert(tokens.end(), found->second.begin(), found->second.end());
    }
  }
  if (bos != LLAMA_TOKEN_NULL && (tokens.empty() || tokens.front() != bos)) {
    tokens.insert(tokens.begin(), bos);
  }
  return tokens;
}

std::size_t Vocabulary::longest_token_bytes() const { return handle_->longest_token_bytes; }

void Vocabulary::require_fits(std::size_t bytes, int context) const {
  const std::size_t most = static_cast<std::size_t>(context) * longest_token_bytes();
  if (bytes <= most) return;
  throw Error(
      fmt::format("the prompt has {} bytes: a context of {} tokens, of {} bytes at most, cannot "
                  "hold it; shorten it, or ask for a larger context (-c)",
                  bytes, context, longest_token_bytes()));
}

std::string Vocabulary::piece(Token token, bool show_special) const {
  if (token < 0 || token >= size()) {
    throw Error(fmt::format("token {} is not in the vocabulary of {} tokens", token, size()));
  }
  std::string bytes(64, '\0');
  std::int32_t length =
      llama_token_to_piece(handle_->vocabulary, token, bytes.data(),
                           static_cast<std::int32_t>(bytes.size()), 0, show_special);
  if (length < 0) {
    bytes.resize(static_cast<std::size_t>(-length));
    length = llama_token_to_piece(handle_->vocabulary, token, bytes.data(),
                                  static_cast<std::int32_t>(bytes.size()), 0, show_special);
  }
  bytes.resize(static_cast<std::size_t>(std::max(length, 0)));
  return bytes;
}

std::string Vocabulary::text(std::span<const Token> tokens) const {
  std::string bytes;
  for (const Token token : tokens) {
    bytes += piece(token);
  }
  return bytes;
}

bool Vocabulary::is_end_of_generation(Token token) const {
  return llama_vocab_is_eog(handle_->vocabulary, token);
}

std::span<const Token> Vocabulary::end_tokens() const { return handle_->end_tokens; }
std::span<const Token> Vocabulary::byte_tokens() const { return handle_->byte_tokens; }

std::vector<TextRange> Vocabulary::control_texts(std::string_view text) const {
  return handle_->special->control_texts(text);
}

Vocabulary::InfillTokens Vocabulary::infill_tokens() const {
  const llama_vocab* const v = handle_->vocabulary;
  return {.prefix = llama_vocab_fim_pre(v),
          .suffix = llama_vocab_fim_suf(v),
          .middle = llama_vocab_fim_mid(v),
          .repository = llama_vocab_fim_rep(v),
          .file = llama_vocab_fim_sep(v)};
}

Token Vocabulary::closing_token() const {
  const llama_vocab* const v = handle_->vocabulary;
  return llama_vocab_get_add_eos(v) ? llama_vocab_eos(v) : kNoToken;
}

const llama_model* Vocabulary::model() const { return handle_->model.get(); }

void require_utf8(std::string_view text, std::string_view what) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  std::size_t i = 0;
  while (i < text.size()) {
    const unsigned char first = byte(i);
    // Length of the character, and the range of its second byte (RFC 3629, section 4), which rules
    // out overlong forms, surrogates and what lies beyond U+10FFFF.
    std::size_t length = 0;
    unsigned char low = 0x80;
    unsigned char high = 0xbf;
    if (first < 0x80) {
      length = 1;
    } else if (first >= 0xc2 && first <= 0xdf) {
      length = 2;
    } else if (first >= 0xe0 && first <= 0xef) {
      length = 3;
      low = first == 0xe0 ? 0xa0 : low;
      high = first == 0xed ? 0x9f : high;
    } else if (first >= 0xf0 && first <= 0xf4) {
      length = 4;
      low = first == 0xf0 ? 0x90 : low;
      high = first == 0xf4 ? 0x8f : high;
    }
    bool valid = length > 0 && length <= text.size() - i;
    for (std::size_t k = 1; valid && k < length; ++k) {
      valid = byte(i + k) >= low && byte(i + k) <= high;
      low = 0x80;
      high = 0xbf;
    }
    if (!valid) {
      throw Error(fmt::format("{} is not valid UTF-8 (at byte {})", what, i));
    }
    i += length;
  }
}

std::size_t unfinished_utf8(std::string_view text) {
  for (std::size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if (byte < 0x80) return 0;
    if (byte >= 0xc0) {
      const std::size_t length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2;
      return length > back ? back : 0;
    }
  }
  return 0;
}

}  // namespace firp
