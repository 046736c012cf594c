#include "serve/responses.h"

#include <fmt/format.h>

#include <utility>

namespace firp {
namespace {

/// A string, or parts of type input_text and output_text.
Json content_of_item(const Json& content) {
  if (!content.is_array()) return text_of(content, "content");
  Json parts = Json::array();
  for (const Json& part : content) {
    const std::string type = part.is_object() ? optional_text(part, "type") : "";
    if (type != "input_text" && type != "output_text" && type != "text") {
      refuse("input", fmt::format("parts of type '{}' are not supported", type), kUnsupported);
    }
    parts.push_back({{"type", "text"}, {"text", optional_text(part, "text")}});
  }
  return parts;
}

/// The assistant's message that is being put together, or a new one: reasoning, text and calls are
/// items of their own in a response, and one message in a chat.
Json& assistant_message(Json& messages) {
  if (messages.empty() || messages.back()["role"] != "assistant") {
    messages.push_back({{"role", "assistant"}, {"content", nullptr}});
  }
  return messages.back();
}

void add_item(const Json& item, Json& messages) {
  if (!item.is_object()) refuse("input", "'input' must be a string, or a list of objects");
  const std::string type = optional_text(item, "type");
  const std::string role = optional_text(item, "role");
  const Json* const content = find(item, "content");
  if (type == "function_call") {
    assistant_message(messages)["tool_calls"].push_back(
        {{"id", optional_text(item, "call_id")},
         {"type", "function"},
         {"function",
          {{"name", optional_text(item, "name")},
           {"arguments", optional_text(item, "arguments")}}}});
  } else if (type == "function_call_output") {
    const Json* const output = find(item, "output");
    messages.push_back({{"role", "tool"},
                        {"tool_call_id", optional_text(item, "call_id")},
                        {"content", output == nullptr ? Json("") : content_of_item(*output)}});
  } else if (type == "reasoning") {
    std::string text;
    if (content != nullptr && content->is_array()) {
      for (const Json& part : *content) text += optional_text(part, "text");
    }
    if (!text.empty()) assistant_message(messages)["reasoning_content"] = text;
  } else if (!role.empty() && (type.empty() || type == "message")) {
    if (content == nullptr) refuse("input", "a message of 'input' has no 'content'", kMissing);
    if (role == "assistant") {
      assistant_message(messages)["content"] = content_of_item(*content);
    } else {
      messages.push_back({{"role", role}, {"content", content_of_item(*content)}});
    }
  } else {
    refuse("input", fmt::format("items of type '{}' are not supported", type), kUnsupported);
  }
}

/// Functions; what only OpenAI's own servers run is left out, as the model cannot call it.
Json tools_of_responses(const Json& tools) {
  if (!tools.is_array()) refuse("tools", "'tools' must be a list");
  Json list = Json::array();
  for (const Json& tool : tools) {
    if (!tool.is_object()) refuse("tools", "a tool is an object");
    if (optional_text(tool, "type") != "function") continue;
    Json function = tool;
    function.erase("type");
    list.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return list;
}

}  // namespace

Json chat_of_responses(const Json& body) {
  Json chat = body;
  for (const char* const name : {"input", "instructions", "tools", "tool_choice", "reasoning",
                                 "max_output_tokens", "text", "truncation"}) {
    chat.erase(name);
  }
  const Json* const input = find(body, "input");
  if (input == nullptr) refuse("input", "'input' is missing", kMissing);
  Json messages = Json::array();
  if (const std::string text = optional_text(body, "instructions"); !text.empty()) {
    messages.push_back({{"role", "system"}, {"content", text}});
  }
  if (input->is_array()) {
    for (const Json& item : *input) add_item(item, messages);
  } else {
    messages.push_back({{"role", "user"}, {"content", text_of(*input, "input")}});
  }
  chat["messages"] = std::move(messages);
  if (const Json* const tools = find(body, "tools")) chat["tools"] = tools_of_responses(*tools);
  if (const Json* const choice = find(body, "tool_choice")) {
    const bool by_name = choice->is_object() && choice->contains("name");
    chat["tool_choice"] =
        by_name ? Json{{"type", "function"}, {"function", {{"name", (*choice)["name"]}}}} : *choice;
  }
  if (const Json* const most = find(body, "max_output_tokens")) chat["max_tokens"] = *most;
  if (const Json* const reasoning = find(body, "reasoning"); reasoning && reasoning->is_object()) {
    if (const Json* const effort = find(*reasoning, "effort")) chat["reasoning_effort"] = *effort;
  }
  if (const Json* const text = find(body, "text"); text != nullptr && text->is_object()) {
    if (const Json* const format = find(*text, "format")) chat["response_format"] = *format;
  }
  return chat;
}

std::string ResponsesWriter::item_id(const char* prefix) const {
  return fmt::format("{}_{}_{}", prefix, head_.id.substr(head_.id.find('_') + 1), items_.size());
}

Json ResponsesWriter::response(const char* status, Json output) const {
  return {{"id", head_.id},
          {"object", "response"},
          {"created_at", head_.created_seconds},
          {"status", status},
          {"model", head_.model},
          {"output", std::move(output)},
          {"error", nullptr},
          {"incomplete_details", nullptr},
          {"instructions", nullptr},
          {"metadata", Json::object()},
          {"parallel_tool_calls", request_.chat->parallel_tool_calls},
          {"temperature", request_.sampling.temperature},
          {"tool_choice", "auto"},
          {"tools", Json::array()},
          {"top_p", request_.sampling.top_p},
          {"store", false}};
}

Json ResponsesWriter::item_member(const Item& item, const char* status) const {
  switch (item.kind) {
    case Kind::kReasoning:
      return {{"id", item.id},
              {"type", "reasoning"},
              {"status", status},
              {"summary", Json::array()},
              {"content", Json::array({{{"type", "reasoning_text"}, {"text", item.text}}})},
              {"encrypted_content", ""}};
    case Kind::kMessage:
      return {{"id", item.id},
              {"type", "message"},
              {"status", status},
              {"role", "assistant"},
              {"content", Json::array({{{"type", "output_text"},
                                        {"text", item.text},
                                        {"annotations", Json::array()},
                                        {"logprobs", Json::array()}}})}};
    case Kind::kCall:
      break;
  }
  return {{"id", item.id},           {"type", "function_call"}, {"status", status},
          {"call_id", item.call_id}, {"name", item.name},       {"arguments", item.text}};
}

Event ResponsesWriter::event(const char* type, Json members) {
  Json data = {{"type", type}, {"sequence_number", sequence_++}};
  data.update(members);
  return {type, std::move(data)};
}

namespace {

Json usage_of(const Usage& usage) {
  return {{"input_tokens", usage.prompt_tokens},
          {"output_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"input_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
          {"output_tokens_details", {{"reasoning_tokens", 0}}}};
}

}  // namespace

Json ResponsesWriter::whole(const std::vector<FinishedAnswer>& answers) {
  const FinishedAnswer& answer = answers.front();
  Json output = Json::array();
  const auto add = [&](Item item) {
    items_.push_back(std::move(item));
    output.push_back(item_member(items_.back(), "completed"));
  };
  if (!answer.reply.reasoning.empty()) {
    add({Kind::kReasoning, item_id("rs"), answer.reply.reasoning, "", ""});
  }
  if (!answer.reply.content.empty()) {
    add({Kind::kMessage, item_id("msg"), answer.reply.content, "", ""});
  }
  for (const ToolCall& call : answer.reply.tool_calls) {
    add({Kind::kCall, item_id("fc"), call.arguments, call.id, call.name});
  }
  const bool cut = answer.finish == FinishReason::kLength;
  Json whole = response(cut ? "incomplete" : "completed", std::move(output));
  if (cut) whole["incomplete_details"] = {{"reason", "max_output_tokens"}};
  whole["usage"] = usage_of(answer.usage);
  whole["timings"] = timings_member(answer.usage);
  return whole;
}

Events ResponsesWriter::begin(const Usage&) {
  const Json started = {{"response", response("in_progress", Json::array())}};
  Events events;
  events.push_back(event("response.created", started));
  events.push_back(event("response.in_progress", started));
  return events;
}

Events ResponsesWriter::progress(const Usage& usage) {
  Json member = {{"response", response("in_progress", Json::array())},
                 {"prompt_progress", progress_member(usage)}};
  if (request_.timings_per_token) member["timings"] = timings_member(usage);
  return {event("response.in_progress", std::move(member))};
}

void ResponsesWriter::open(Events& events, Item item) {
  const bool goes_on = is_open_ && items_.back().kind == item.kind && item.kind != Kind::kCall;
  if (goes_on) return;
  close(events);
  items_.push_back(std::move(item));
  is_open_ = true;
  const Item& opened = items_.back();
  Json member = item_member(opened, "in_progress");
  if (opened.kind != Kind::kCall) member["content"] = Json::array();
  const auto index = static_cast<int>(items_.size()) - 1;
  events.push_back(
      event("response.output_item.added", {{"output_index", index}, {"item", std::move(member)}}));
  if (opened.kind != Kind::kMessage) return;
  events.push_back(event("response.content_part.added", {{"item_id", opened.id},
                                                         {"output_index", index},
                                                         {"content_index", 0},
                                                         {"part",
                                                          {{"type", "output_text"},
                                                           {"text", ""},
                                                           {"annotations", Json::array()},
                                                           {"logprobs", Json::array()}}}}));
}

void ResponsesWriter::close(Events& events) {
  if (!is_open_) return;
  is_open_ = false;
  const Item& item = items_.back();
  const auto index = static_cast<int>(items_.size()) - 1;
  Json done = {{"item_id", item.id}, {"output_index", index}};
  if (item.kind == Kind::kCall) {
    done["name"] = item.name;
    done["arguments"] = item.text;
    events.push_back(event("response.function_call_arguments.done", done));
  } else {
    done["content_index"] = 0;
    done["text"] = item.text;
    if (item.kind == Kind::kReasoning) {
      events.push_back(event("response.reasoning_text.done", done));
    } else {
      done["logprobs"] = Json::array();
      events.push_back(event("response.output_text.done", done));
      events.push_back(event("response.content_part.done",
                             {{"item_id", item.id},
                              {"output_index", index},
                              {"content_index", 0},
                              {"part", item_member(item, "completed")["content"][0]}}));
    }
  }
  events.push_back(event("response.output_item.done",
                         {{"output_index", index}, {"item", item_member(item, "completed")}}));
}

Events ResponsesWriter::part(int, const ReplyPart&, const ReplyDelta& delta, const Usage& usage) {
  Events events;
  const auto add = [&](const char* type, const std::string& text) {
    Item& item = items_.back();
    item.text += text;
    Json members = {{"item_id", item.id}, {"output_index", items_.size() - 1}, {"delta", text}};
    if (item.kind != Kind::kCall) members["content_index"] = 0;
    if (item.kind == Kind::kMessage) members["logprobs"] = Json::array();
    events.push_back(event(type, std::move(members)));
  };
  if (!delta.reasoning.empty()) {
    open(events, {Kind::kReasoning, item_id("rs"), "", "", ""});
    add("response.reasoning_text.delta", delta.reasoning);
  }
  if (!delta.content.empty()) {
    open(events, {Kind::kMessage, item_id("msg"), "", "", ""});
    add("response.output_text.delta", delta.content);
  }
  for (const ReplyDelta::Call& call : delta.calls) {
    if (!call.name.empty()) open(events, {Kind::kCall, item_id("fc"), "", call.id, call.name});
    add("response.function_call_arguments.delta", call.arguments);
  }
  if (request_.timings_per_token && !events.empty()) {
    events.back().data["timings"] = timings_member(usage);
  }
  return events;
}

Events ResponsesWriter::end(int answer, const FinishedAnswer& finished, const ReplyDelta& delta) {
  Events events = part(answer, {}, delta, finished.usage);
  close(events);
  const bool cut = finished.finish == FinishReason::kLength;
  Json output = Json::array();
  for (const Item& item : items_) output.push_back(item_member(item, "completed"));
  Json whole = response(cut ? "incomplete" : "completed", std::move(output));
  if (cut) whole["incomplete_details"] = {{"reason", "max_output_tokens"}};
  whole["usage"] = usage_of(finished.usage);
  events.push_back(
      event(cut ? "response.incomplete" : "response.completed",
            {{"response", std::move(whole)}, {"timings", timings_member(finished.usage)}}));
  return events;
}

Events ResponsesWriter::error(const RequestError& error) {
  Events events;
  Json whole = response("failed", Json::array());
  whole["error"] = {{"code", error.kind.code}, {"message", error.what()}};
  events.push_back(event("response.failed", {{"response", std::move(whole)}}));
  return events;
}

}  // namespace firp
