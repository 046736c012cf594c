#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "chat/chat_template.h"
#include "decode/session.h"
#include "serve/errors.h"
#include "serve/request.h"

// Replies to requests for text, in the form of each dialect: whole, and as the events of a stream.

namespace firp {

enum class FinishReason { kEnd, kStopString, kLength };

/// A token as the reply tells it.
struct ReplyToken {
  Token token;
  std::string bytes;
  float log_probability;  ///< not a number for the first of a prompt, which JSON has null for
};
struct WrittenToken {
  ReplyToken token;
  std::vector<ReplyToken> likeliest;  ///< in its place, best first
  int offset;                         ///< characters before it: of the answer, and its echo
  bool drafted = false;               ///< an accepted draft
};

/// A part of an answer. The text of the last tokens may be in the next part, while it is not known
/// whether it begins a stop string.
struct ReplyPart {
  std::string text;
  std::vector<Token> tokens;
  std::vector<WrittenToken> probabilities;  ///< of the tokens, where they were asked for
};

/// What an answer took.
struct Usage {
  int prompt_tokens = 0;
  int cached_tokens = 0;  ///< of the prompt, which other requests had read
  int read_tokens = 0;    ///< of the prompt so far, with those
  int completion_tokens = 0;
  double queue_seconds = 0;  ///< until it began
  int slot = 0;              ///< where it ran
  DecodeStats stats;

  Usage& operator+=(const Usage& other);
};

/// A part of a chat's answer that is new.
struct ReplyDelta {
  std::string content;
  std::string reasoning;
  struct Call {
    int index;
    std::string id, name;  ///< where it begins; else empty
    std::string arguments;
  };
  std::vector<Call> calls;

  bool empty() const { return content.empty() && reasoning.empty() && calls.empty(); }
};
/// What `now` has beyond `before`. A call is told from where its name is complete: where its
/// arguments have begun, or at the end.
ReplyDelta difference(const ChatReply& before, const ChatReply& now, bool complete);

/// All of an answer.
struct FinishedAnswer {
  std::vector<WrittenToken> prompt = {};  ///< where its probabilities were asked for
  ReplyPart part;
  ChatReply reply;  ///< of a chat: the same taken apart
  FinishReason finish = FinishReason::kLength;
  std::string stop_string;  ///< that it ended at
  Usage usage;
};

/// Of those that were tried for each prompt the answers that are given: those whose tokens the
/// model finds likeliest on average, best first.
std::vector<FinishedAnswer> best_answers(std::vector<FinishedAnswer> tried,
                                         const TextRequest& request);

/// What all replies to one request have in common.
struct ReplyHead {
  std::string id;
  std::int64_t created_seconds;  ///< since 1970
  std::string model;
};

/// An event of a stream. Without a name it is data alone.
struct Event {
  std::string name;
  Json data;
};
using Events = std::vector<Event>;

/// Writes the replies of a dialect. Answers to one request have numbers, from 0 on.
class ReplyWriter {
 public:
  virtual ~ReplyWriter() = default;

  virtual Json whole(const std::vector<FinishedAnswer>& answers) = 0;

  // A stream's events, in this order.
  /// `usage`: what is known of the first answer's prompt.
  virtual Events begin(const Usage& /*usage*/) { return {}; }
  /// While the prompt is read, where return_progress asks for it.
  virtual Events progress(const Usage& usage) = 0;
  virtual Events part(int answer, const ReplyPart& part, const ReplyDelta& delta,
                      const Usage& usage) = 0;
  /// `delta`: what came after the last part.
  virtual Events end(int answer, const FinishedAnswer& finished, const ReplyDelta& delta) = 0;
  virtual Events finish(const std::vector<FinishedAnswer>& /*answers*/) { return {}; }
  virtual Events error(const RequestError& error);
  /// The stream's last line is [DONE].
  virtual bool says_done() const { return false; }
};

/// `prompt`: its text, for replies that begin with it or repeat it. The request must outlive the
/// writer.
std::unique_ptr<ReplyWriter> make_reply_writer(const TextRequest& request, ReplyHead head,
                                               std::vector<std::string> prompts);

// What several dialects have in common.
Json usage_member(const std::vector<FinishedAnswer>& answers);
Json timings_member(const Usage& usage);
/// How far the prompt is read.
Json progress_member(const Usage& usage);
/// llama.cpp's list of tokens with their probabilities: logarithms, unless they are those of
/// sampling.
Json probabilities_member(const std::vector<WrittenToken>& tokens, bool after_sampling = false);
Json error_reply(const RequestError& error);

/// The bytes to send. What is not UTF-8, in the text of a model that writes single bytes, becomes
/// U+FFFD.
std::string to_bytes(const Json& json);

/// A token as /tokenize tells it with its piece: a text, or the bytes of what is none.
Json token_with_piece(Token token, const std::string& piece);

}  // namespace firp
