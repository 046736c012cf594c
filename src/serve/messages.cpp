#include "serve/messages.h"

#include <fmt/format.h>

#include <utility>

namespace firp {
namespace {

std::string type_of(const Json& block) {
  return block.is_object() ? optional_text(block, "type") : "";
}

/// A string, or blocks of type text.
std::string text_of_blocks(const Json& content, const char* name) {
  if (!content.is_array()) return text_of(content, name);
  std::string text;
  for (const Json& block : content) {
    if (type_of(block) != "text") {
      refuse(name, fmt::format("'{}' may hold blocks of type text only", name), kUnsupported);
    }
    text += optional_text(block, "text");
  }
  return text;
}

/// The messages that a message with blocks stands for: results of tools are messages of their own.
void add_message(const Json& message, Json& messages) {
  const Json* const content = message.is_object() ? find(message, "content") : nullptr;
  if (content == nullptr || !content->is_array()) {
    messages.push_back(message);
    return;
  }
  Json written = {{"role", optional_text(message, "role")}, {"content", Json::array()}};
  Json results = Json::array();
  std::string thinking;
  for (const Json& block : *content) {
    const std::string type = type_of(block);
    if (type == "text") {
      written["content"].push_back({{"type", "text"}, {"text", optional_text(block, "text")}});
    } else if (type == "thinking") {
      thinking += optional_text(block, "thinking");
    } else if (type == "redacted_thinking") {
      // Nothing that a model here could read.
    } else if (type == "tool_use") {
      const Json* const input = find(block, "input");
      written["tool_calls"].push_back({{"id", optional_text(block, "id")},
                                       {"type", "function"},
                                       {"function",
                                        {{"name", optional_text(block, "name")},
                                         {"arguments", input == nullptr ? "{}" : input->dump()}}}});
    } else if (type == "tool_result") {
      const Json* const result = find(block, "content");
      results.push_back({{"role", "tool"},
                         {"tool_call_id", optional_text(block, "tool_use_id")},
                         {"content", result == nullptr ? "" : text_of_blocks(*result, "content")}});
    } else {
      refuse("content", fmt::format("blocks of type '{}' are not supported", type), kUnsupported);
    }
  }
  if (!thinking.empty()) written["reasoning_content"] = thinking;
  // What a tool gave stands right behind the call, before what the user says to it.
  for (Json& result : results) messages.push_back(std::move(result));
  if (written["content"].empty()) {
    if (!written.contains("tool_calls") && thinking.empty()) return;
    written["content"] = "";
  }
  messages.push_back(std::move(written));
}

Json tools_of_messages(const Json& tools) {
  if (!tools.is_array()) refuse("tools", "'tools' must be a list");
  Json list = Json::array();
  for (const Json& tool : tools) {
    if (!tool.is_object()) refuse("tools", "a tool is an object with 'name' and 'input_schema'");
    const Json* const schema = find(tool, "input_schema");
    list.push_back({{"type", "function"},
                    {"function",
                     {{"name", optional_text(tool, "name")},
                      {"description", optional_text(tool, "description")},
                      {"parameters", schema == nullptr ? Json::object() : *schema}}}});
  }
  return list;
}

Json tool_choice_of_messages(const Json& choice) {
  const std::string type = type_of(choice);
  if (type == "auto" || type == "none") return type;
  if (type == "any") return "required";
  if (type == "tool") {
    return {{"type", "function"}, {"function", {{"name", optional_text(choice, "name")}}}};
  }
  refuse("tool_choice", "'tool_choice' is of type auto, any, tool or none");
}

const char* reason_of(const FinishedAnswer& answer) {
  if (answer.finish == FinishReason::kLength) return "max_tokens";
  if (!answer.reply.tool_calls.empty()) return "tool_use";
  return answer.finish == FinishReason::kStopString ? "stop_sequence" : "end_turn";
}

Json stop_sequence_of(const FinishedAnswer& answer) {
  return answer.stop_string.empty() ? Json() : Json(answer.stop_string);
}

Json usage_of(const Usage& usage) {
  return {{"cache_read_input_tokens", usage.cached_tokens},
          {"input_tokens", usage.prompt_tokens - usage.cached_tokens},
          {"output_tokens", usage.completion_tokens}};
}

Event event(const char* type, Json members) {
  Json data = {{"type", type}};
  data.update(members);
  return {type, std::move(data)};
}

}  // namespace

Json chat_of_messages(const Json& body) {
  // Sampling and the like have the same names.
  Json chat = body;
  for (const char* const name : {"system", "tools", "tool_choice", "thinking", "stop_sequences",
                                 "metadata", "output_config"}) {
    chat.erase(name);
  }
  Json messages = Json::array();
  if (const Json* const system = find(body, "system")) {
    messages.push_back({{"role", "system"}, {"content", text_of_blocks(*system, "system")}});
  }
  const Json* const given = find(body, "messages");
  if (given == nullptr || !given->is_array()) {
    refuse("messages", "'messages' must be a list of at least one message",
           given == nullptr ? kMissing : kInvalidValue);
  }
  for (const Json& message : *given) add_message(message, messages);
  chat["messages"] = std::move(messages);
  if (const Json* const tools = find(body, "tools"); tools != nullptr && !is_off(*tools)) {
    chat["tools"] = tools_of_messages(*tools);
    const Json* const choice = find(body, "tool_choice");
    if (choice != nullptr) chat["tool_choice"] = tool_choice_of_messages(*choice);
  }
  if (const Json* const stops = find(body, "stop_sequences")) chat["stop"] = *stops;
  if (const Json* const thinking = find(body, "thinking")) {
    chat["enable_thinking"] = type_of(*thinking) != "disabled";
  }
  return chat;
}

Json MessagesWriter::whole(const std::vector<FinishedAnswer>& answers) {
  const FinishedAnswer& answer = answers.front();
  Json blocks = Json::array();
  if (!answer.reply.reasoning.empty()) {
    blocks.push_back(
        {{"type", "thinking"}, {"thinking", answer.reply.reasoning}, {"signature", ""}});
  }
  if (!answer.reply.content.empty()) {
    blocks.push_back({{"type", "text"}, {"text", answer.reply.content}});
  }
  for (const ToolCall& call : answer.reply.tool_calls) {
    Json input = Json::parse(call.arguments, nullptr, /*allow_exceptions=*/false);
    if (!input.is_object()) input = Json::object();
    blocks.push_back(
        {{"type", "tool_use"}, {"id", call.id}, {"name", call.name}, {"input", std::move(input)}});
  }
  return {{"id", head_.id},
          {"type", "message"},
          {"role", "assistant"},
          {"content", std::move(blocks)},
          {"model", head_.model},
          {"stop_reason", reason_of(answer)},
          {"stop_sequence", stop_sequence_of(answer)},
          {"usage", usage_of(answer.usage)}};
}

Events MessagesWriter::begin(const Usage& usage) {
  return {event("message_start", {{"message",
                                   {{"id", head_.id},
                                    {"type", "message"},
                                    {"role", "assistant"},
                                    {"content", Json::array()},
                                    {"model", head_.model},
                                    {"stop_reason", nullptr},
                                    {"stop_sequence", nullptr},
                                    {"usage", usage_of(usage)}}}})};
}

Events MessagesWriter::progress(const Usage&) { return {event("ping", Json::object())}; }

void MessagesWriter::open(Events& events, Block block, Json start) {
  if (block_ == block && block != Block::kTool) return;
  close(events);
  block_ = block;
  ++index_;
  events.push_back(
      event("content_block_start", {{"index", index_}, {"content_block", std::move(start)}}));
}

void MessagesWriter::close(Events& events) {
  if (!block_) return;
  // Clients expect the signature that a local model has none of.
  if (block_ == Block::kThinking) add(events, {{"type", "signature_delta"}, {"signature", ""}});
  events.push_back(event("content_block_stop", {{"index", index_}}));
  block_.reset();
}

void MessagesWriter::add(Events& events, Json delta) const {
  events.push_back(event("content_block_delta", {{"index", index_}, {"delta", std::move(delta)}}));
}

Events MessagesWriter::part(int, const ReplyPart&, const ReplyDelta& delta, const Usage&) {
  Events events;
  if (!delta.reasoning.empty()) {
    open(events, Block::kThinking, {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}});
    add(events, {{"type", "thinking_delta"}, {"thinking", delta.reasoning}});
  }
  if (!delta.content.empty()) {
    open(events, Block::kText, {{"type", "text"}, {"text", ""}});
    add(events, {{"type", "text_delta"}, {"text", delta.content}});
  }
  for (const ReplyDelta::Call& call : delta.calls) {
    if (!call.name.empty()) {
      open(events, Block::kTool,
           {{"type", "tool_use"}, {"id", call.id}, {"name", call.name}, {"input", Json::object()}});
    }
    add(events, {{"type", "input_json_delta"}, {"partial_json", call.arguments}});
  }
  return events;
}

Events MessagesWriter::end(int answer, const FinishedAnswer& finished, const ReplyDelta& delta) {
  Events events = part(answer, {}, delta, finished.usage);
  close(events);
  events.push_back(event("message_delta", {{"delta",
                                            {{"stop_reason", reason_of(finished)},
                                             {"stop_sequence", stop_sequence_of(finished)}}},
                                           {"usage", usage_of(finished.usage)}}));
  events.push_back(event("message_stop", Json::object()));
  return events;
}

Events MessagesWriter::error(const RequestError& error) {
  return {{"error", messages_error(error)}};
}

Json messages_error(const RequestError& error) {
  const char* const type = error.kind.status == 401   ? "authentication_error"
                           : error.kind.status == 403 ? "permission_error"
                           : error.kind.status == 404 ? "not_found_error"
                           : error.kind.status == 413 ? "request_too_large"
                           : error.kind.status == 503 ? "overloaded_error"
                           : error.kind.status == 504 ? "timeout_error"
                           : error.kind.status >= 500 ? "api_error"
                                                      : "invalid_request_error";
  return {{"type", "error"},
          {"error", {{"type", type}, {"message", error.what()}, {"code", error.kind.status}}}};
}

}  // namespace firp
