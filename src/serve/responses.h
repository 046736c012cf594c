#pragma once

#include <optional>

#include "serve/fields.h"
#include "serve/reply.h"

namespace firp {

/// The body of a chat completion that asks for what a body of OpenAI's responses
/// (https://platform.openai.com/docs/api-reference/responses) asks for. Nothing is stored: there is
/// no `previous_response_id`.
Json chat_of_responses(const Json& body);

/// The replies of OpenAI's responses.
class ResponsesWriter : public ReplyWriter {
 public:
  ResponsesWriter(const TextRequest& request, ReplyHead head)
      : request_(request), head_(std::move(head)) {}

  Json whole(const std::vector<FinishedAnswer>& answers) override;
  Events begin(const Usage& usage) override;
  Events progress(const Usage& usage) override;
  Events part(int answer, const ReplyPart& part, const ReplyDelta& delta,
              const Usage& usage) override;
  Events end(int answer, const FinishedAnswer& finished, const ReplyDelta& delta) override;
  Events error(const RequestError& error) override;

 private:
  enum class Kind { kReasoning, kMessage, kCall };
  /// An item of the output.
  struct Item {
    Kind kind;
    std::string id;
    std::string text;           ///< of a call: its arguments
    std::string call_id, name;  ///< of a call
  };
  Event event(const char* type, Json members);
  Json response(const char* status, Json output) const;
  Json item_member(const Item& item, const char* status) const;
  void open(Events& events, Item item);
  void close(Events& events);
  std::string item_id(const char* prefix) const;

  const TextRequest& request_;
  const ReplyHead head_;
  std::vector<Item> items_ = {};
  bool is_open_ = false;  ///< the last of them
  int sequence_ = 0;      ///< of events
};

}  // namespace firp
