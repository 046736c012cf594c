#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

struct llama_model;

namespace firp {

using Token = std::int32_t;
inline constexpr Token kNoToken = -1;

/// Bytes `begin` to `end` of a text.
struct TextRange {
  std::size_t begin, end;
};

/// A text for the model. What is written in it that reads as a control token is one, but where it
/// touches a range of `literal`: those are somebody's words.
struct PromptText {
  std::string text;
  std::vector<TextRange> literal = {};  ///< in order
};

/// The vocabulary of a GGUF file, through libllama (loaded without its weights).
class Vocabulary {
 public:
  explicit Vocabulary(const std::filesystem::path& model_path);
  ~Vocabulary();
  Vocabulary(Vocabulary&&) noexcept;

  int size() const;
  /// The text must be valid UTF-8 (an Error otherwise). The vocabulary's own BOS is put in front if
  /// `add_bos`, the file asks for it and the text does not begin with it.
  std::vector<Token> tokenize(const PromptText& prompt, bool add_bos) const;
  /// A text without literal ranges: its author writes the control tokens.
  std::vector<Token> tokenize(std::string_view text, bool add_bos) const;
  /// Bytes that one token can stand for, at most.
  std::size_t longest_token_bytes() const;
  /// An Error for a text of so many bytes that no tokens of a context can stand for it: to be asked
  /// before such a text is tokenized.
  void require_fits(std::size_t bytes, int context) const;
  /// The bytes of a token: not necessarily whole UTF-8 characters. Special tokens are empty unless
  /// `show_special`.
  std::string piece(Token token, bool show_special = false) const;
  std::string text(std::span<const Token> tokens) const;
  bool is_end_of_generation(Token token) const;
  std::span<const Token> end_tokens() const;  ///< all of those

  /// The token of each single byte, where there is one. [256]
  std::span<const Token> byte_tokens() const;
  /// All bytes of `text` that belong to the text of a control token.
  std::vector<TextRange> control_texts(std::string_view text) const;

  /// Tokens that stand around what is to be filled in between two texts, where the file has them;
  /// else kNoToken.
  struct InfillTokens {
    Token prefix, suffix, middle;
    Token repository, file;  ///< before its name
  };
  InfillTokens infill_tokens() const;
  /// The EOS, where the file asks for one behind a text (embedding models do); else kNoToken.
  Token closing_token() const;

  /// libllama's own, without weights.
  const llama_model* model() const;

 private:
  struct Handle;
  std::unique_ptr<Handle> handle_;
};

/// Throws an Error that names the byte offset where `text` stops being UTF-8.
void require_utf8(std::string_view text, std::string_view what);

/// Bytes at the end of `text` that begin a UTF-8 character and do not end it (0 to 3).
std::size_t unfinished_utf8(std::string_view text);
/// Whether the byte is one of a UTF-8 character, but not its first.
constexpr bool continues_utf8(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0) == 0x80;
}

}  // namespace firp
