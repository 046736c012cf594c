#pragma once

#include <optional>

#include "serve/fields.h"
#include "serve/reply.h"

namespace firp {

/// The body of a chat completion that asks for what a body of Anthropic's messages
/// (https://docs.anthropic.com/en/api/messages) asks for.
Json chat_of_messages(const Json& body);

/// Anthropic's replies.
class MessagesWriter : public ReplyWriter {
 public:
  MessagesWriter(const TextRequest& request, ReplyHead head)
      : request_(request), head_(std::move(head)) {}

  Json whole(const std::vector<FinishedAnswer>& answers) override;
  Events begin(const Usage& usage) override;
  Events progress(const Usage& usage) override;
  Events part(int answer, const ReplyPart& part, const ReplyDelta& delta,
              const Usage& usage) override;
  Events end(int answer, const FinishedAnswer& finished, const ReplyDelta& delta) override;
  Events error(const RequestError& error) override;

 private:
  enum class Block { kThinking, kText, kTool };
  void open(Events& events, Block block, Json start);
  void close(Events& events);
  void add(Events& events, Json delta) const;

  const TextRequest& request_;
  const ReplyHead head_;
  std::optional<Block> block_ = std::nullopt;  ///< that is open
  int index_ = -1;                             ///< its number
};

/// Anthropic's form of an error.
Json messages_error(const RequestError& error);

}  // namespace firp
