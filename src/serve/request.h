#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "chat/chat_template.h"
#include "decode/sampler.h"
#include "model/vocabulary.h"
#include "serve/fields.h"

// The bodies of requests for text: OpenAI's chat and text completions and responses
// (https://platform.openai.com/docs/api-reference), Anthropic's messages
// (https://docs.anthropic.com/en/api/messages), and llama.cpp's own completions (its
// tools/server/README.md).

namespace firp {

inline constexpr std::size_t kMostMessages = 10000;
inline constexpr std::size_t kMostStops = 64;
inline constexpr std::size_t kMostStopBytes = 1024;   ///< of each
inline constexpr std::size_t kMostBreakerBytes = 40;  ///< of one of DRY's
inline constexpr int kMostLikeliest = 100;            ///< tokens beside each that is written
inline constexpr int kMostLikeliestOfPrompt = 5;      ///< beside each of a prompt, as OpenAI's
inline constexpr int kMostAnswers = 64;               ///< of one request
inline constexpr std::size_t kMostGrammarBytes = std::size_t{128} << 10;

/// The form of a request and of the replies to it.
enum class Dialect {
  kChat,       ///< /v1/chat/completions
  kText,       ///< /v1/completions
  kLlama,      ///< /completion
  kInfill,     ///< /infill
  kResponses,  ///< /v1/responses
  kMessages,   ///< /v1/messages
};

/// A text, or tokens; llama.cpp takes a list of both, too.
using PromptPart = std::variant<std::string, std::vector<Token>>;
using Prompt = std::vector<PromptPart>;

/// What stands around the text that is asked for: /infill's.
struct Infill {
  struct File {
    std::string name, text;
  };
  std::string prefix, suffix, prompt;
  std::vector<File> extra;  ///< other files of the same project
};

struct TextRequest {
  Dialect dialect;
  // What is to be continued: one of these.
  std::optional<ChatInput> chat = std::nullopt;
  std::vector<Prompt> prompts = {};
  std::optional<Infill> infill = std::nullopt;

  SamplingOptions sampling;
  /// Added to the logits of all tokens of a text.
  struct TextBias {
    std::string text;
    float bias;
  };
  std::vector<TextBias> text_biases = {};
  std::string grammar = {};      ///< GBNF; for chats it is in `chat`
  std::string json_schema = {};  ///< the same
  bool ignore_eos = false;       ///< no end token is ever chosen
  int min_tokens = 0;            ///< before them neither
  int max_tokens;                ///< at least 0; 0: nothing is written, and the prompt is read
  int answers = 1;               ///< to each prompt
  int tried = 1;                 ///< so many are written, and the likeliest `answers` of them given
  std::vector<std::string> stops = {};

  int likeliest = -1;           ///< so many tokens beside each with their probabilities; -1: none
  bool after_sampling = false;  ///< which are those that sampling draws from
  bool echo = false;            ///< a text answer begins with the prompt
  /// Whether `likeliest` is asked of the prompt's tokens, too.
  bool tells_prompt() const { return dialect == Dialect::kText && echo && likeliest >= 0; }
  bool stream = false;
  bool stream_usage = false;       ///< a last chunk with the usage
  bool timings_per_token = false;  ///< every chunk has timings
  bool verbose = false;            ///< a whole reply has llama.cpp's, with the prompt, in it
  bool return_tokens = false;
  bool return_progress = false;                   ///< chunks while the prompt is read
  int slot = -1;                                  ///< of the first answer to each prompt; -1: any
  std::vector<std::string> response_fields = {};  ///< of llama.cpp's reply: these alone
  Json body = {};                                 ///< for replies that repeat what was asked
};

/// What the flags say for requests that do not, and what is allowed.
struct RequestDefaults {
  SamplingOptions sampling;
  std::optional<std::uint64_t> seed = std::nullopt;  ///< none: another one for each request
  int max_tokens;
  int vocabulary;  ///< its tokens
  bool verbose = false;
  int slots = 1;
  bool thinks = true;
  ReasoningFormat reasoning = ReasoningFormat::kApart;
  std::map<std::string, Json> template_variables;
};

/// Throws a RequestError for what is no JSON, has a field of the wrong type or more of something
/// than is allowed, or asks for what would change the answer and is not done here. Fields that it
/// does not know are let pass, as clients send many.
TextRequest parse_request(std::string_view body, Dialect dialect, const RequestDefaults& defaults);

/// The name of the file of a slot that llama.cpp's /slots/N?action=save and restore are about, as
/// it may be: within a folder, whatever the file system.
std::string parse_slot_file_request(std::string_view body);
/// One prompt, or a list of several, of strings or of lists, in the field `name`.
std::vector<Prompt> prompts_of(const Json& value, const char* name, std::size_t most,
                               int vocabulary);
/// Of a part of a message's content, which must be of type text.
std::string text_of_part(const Json& part, const char* name);

/// llama.cpp's /tokenize.
struct TokenizeRequest {
  std::string content;
  bool add_special = false;   ///< the vocabulary's BOS in front, where the file asks for it
  bool parse_special = true;  ///< what reads as a control token is one
  bool with_pieces = false;
};
TokenizeRequest parse_tokenize_request(std::string_view body);
/// The tokens of llama.cpp's /detokenize.
std::vector<Token> parse_detokenize_request(std::string_view body, int vocabulary);

}  // namespace firp
