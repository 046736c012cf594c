#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace firp {

using Token = std::int32_t;

struct ChatMessage {
  std::string role;  ///< "system", "user" or "assistant"
  std::string content;
};

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

/// Vocabulary and chat template of a GGUF file, through libllama (loaded without its weights).
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
  std::vector<Token> end_tokens() const;  ///< all of those

  bool has_chat_template() const;
  /// Whether it has one, and libllama knows that.
  bool knows_chat_template() const;
  /// The conversation as the model's own template writes it; `open_answer` appends the start of an
  /// assistant's turn. Control tokens that the messages hold are literal. Error where the file has
  /// no template that libllama knows.
  PromptText apply_chat_template(std::span<const ChatMessage> messages, bool open_answer) const;

 private:
  struct Handle;
  std::unique_ptr<Handle> handle_;
};

/// Throws an Error that names the byte offset where `text` stops being UTF-8.
void require_utf8(std::string_view text, std::string_view what);

/// Bytes at the end of `text` that begin a UTF-8 character and do not end it (0 to 3).
std::size_t unfinished_utf8(std::string_view text);

}  // namespace firp
