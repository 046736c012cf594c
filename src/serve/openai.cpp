#include "serve/openai.h"

#include <cmath>
#include <iterator>
#include <utility>

#include "serve/llama_completion.h"

namespace firp {
namespace {

/// What clients look for a change of the server by.
constexpr const char* kFingerprint = "b-firp";

Json reply(const ReplyHead& head, const char* object, Json choices) {
  return {{"id", head.id},
          {"object", object},
          {"created", head.created_seconds},
          {"model", head.model},
          {"system_fingerprint", kFingerprint},
          {"choices", std::move(choices)}};
}

Json with_usage(Json reply, const std::vector<FinishedAnswer>& answers) {
  reply["usage"] = usage_member(answers);
  reply["timings"] = timings_member(answers.front().usage);
  return reply;
}

const char* name_of(FinishReason finish) {
  return finish == FinishReason::kLength ? "length" : "stop";
}

const char* name_of_chat(const FinishedAnswer& answer) {
  const bool calls = answer.finish != FinishReason::kLength && !answer.reply.tool_calls.empty();
  return calls ? "tool_calls" : name_of(answer.finish);
}

Json call_member(const ToolCall& call) {
  return {{"id", call.id},
          {"type", "function"},
          {"function", {{"name", call.name}, {"arguments", call.arguments}}}};
}

/// The forms that OpenAI's two endpoints have; both with llama.cpp's ids.
Json chat_logprobs(const std::vector<WrittenToken>& tokens) {
  return {{"content", probabilities_member(tokens)}, {"refusal", nullptr}};
}

/// The prompt's first token has no probability.
Json text_logprobs(const std::vector<WrittenToken>& tokens) {
  Json texts = Json::array(), values = Json::array(), tops = Json::array(), offsets = Json::array();
  for (const WrittenToken& each : tokens) {
    texts.push_back(each.token.bytes);
    values.push_back(each.token.log_probability);
    offsets.push_back(each.offset);
    Json top = Json::object();
    for (const ReplyToken& other : each.likeliest) {
      if (!top.contains(other.bytes)) top[other.bytes] = other.log_probability;
    }
    tops.push_back(std::isnan(each.token.log_probability) ? Json() : std::move(top));
  }
  return {{"content", probabilities_member(tokens)},
          {"tokens", std::move(texts)},
          {"token_logprobs", std::move(values)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

}  // namespace

Json ChatWriter::whole(const std::vector<FinishedAnswer>& answers) {
  Json choices = Json::array();
  for (const FinishedAnswer& each : answers) {
    Json message = {{"role", "assistant"}, {"content", each.reply.content}};
    if (!each.reply.reasoning.empty()) message["reasoning_content"] = each.reply.reasoning;
    for (const ToolCall& call : each.reply.tool_calls) {
      message["tool_calls"].push_back(call_member(call));
    }
    choices.push_back(
        {{"index", choices.size()},
         {"finish_reason", name_of_chat(each)},
         {"logprobs", request_.likeliest < 0 ? Json() : chat_logprobs(each.part.probabilities)},
         {"message", std::move(message)}});
  }
  Json whole = with_usage(reply(head_, "chat.completion", std::move(choices)), answers);
  if (request_.verbose) whole["__verbose"] = LlamaWriter(request_, head_, prompts_).whole(answers);
  return whole;
}

Json ChatWriter::chunk(int answer, Json delta, Json finish) const {
  return reply(head_, "chat.completion.chunk",
               Json::array({{{"index", answer},
                             {"finish_reason", std::move(finish)},
                             {"delta", std::move(delta)}}}));
}

Events ChatWriter::begin(const Usage&) {
  Events events;
  const Json role = {{"role", "assistant"}, {"content", nullptr}};
  for (int i = 0; i < request_.answers; ++i) events.push_back({"", chunk(i, role, nullptr)});
  return events;
}

Events ChatWriter::progress(const Usage& usage) {
  Json event = chunk(0, {{"role", "assistant"}, {"content", nullptr}}, nullptr);
  event["prompt_progress"] = progress_member(usage);
  return {{"", std::move(event)}};
}

Events ChatWriter::part(int answer, const ReplyPart& part, const ReplyDelta& delta,
                        const Usage& usage) {
  Events events;
  const auto add = [&](Json member) {
    events.push_back({"", chunk(answer, std::move(member), nullptr)});
  };
  if (!delta.reasoning.empty()) add({{"reasoning_content", delta.reasoning}});
  if (!delta.content.empty()) add({{"content", delta.content}});
  for (const ReplyDelta::Call& call : delta.calls) {
    Json member = {{"index", call.index}, {"function", {{"arguments", call.arguments}}}};
    if (!call.name.empty()) {
      member["id"] = call.id;
      member["type"] = "function";
      member["function"]["name"] = call.name;
    }
    add({{"tool_calls", Json::array({std::move(member)})}});
  }
  if (events.empty() && !part.probabilities.empty()) add(Json::object());
  if (events.empty()) return events;
  if (!part.probabilities.empty()) {
    events.back().data["choices"][0]["logprobs"] = chat_logprobs(part.probabilities);
  }
  if (request_.timings_per_token) events.back().data["timings"] = timings_member(usage);
  return events;
}

Events ChatWriter::end(int answer, const FinishedAnswer& finished, const ReplyDelta& delta) {
  Events events = part(answer, {}, delta, finished.usage);
  events.push_back({"", chunk(answer, Json::object(), name_of_chat(finished))});
  if (!request_.stream_usage) events.back().data["timings"] = timings_member(finished.usage);
  return events;
}

Events ChatWriter::finish(const std::vector<FinishedAnswer>& answers) {
  if (!request_.stream_usage) return {};
  return {{"", with_usage(reply(head_, "chat.completion.chunk", Json::array()), answers)}};
}

Json TextWriter::whole(const std::vector<FinishedAnswer>& answers) {
  Json choices = Json::array();
  for (const FinishedAnswer& each : answers) {
    const auto index = static_cast<int>(choices.size());
    std::vector<WrittenToken> tokens = each.prompt;
    std::ranges::copy(each.part.probabilities, std::back_inserter(tokens));
    choices.push_back({{"index", index},
                       {"finish_reason", name_of(each.finish)},
                       {"logprobs", request_.likeliest < 0 ? Json() : text_logprobs(tokens)},
                       {"text", (request_.echo ? prompt_of(index) : "") + each.part.text}});
  }
  return with_usage(reply(head_, "text_completion", std::move(choices)), answers);
}

Json TextWriter::chunk(int answer, const std::string& text, Json finish) const {
  return reply(head_, "text_completion",
               Json::array({{{"index", answer},
                             {"finish_reason", std::move(finish)},
                             {"logprobs", nullptr},
                             {"text", text}}}));
}

Events TextWriter::begin(const Usage&) {
  Events events;
  if (!request_.echo) return events;
  const auto answers = static_cast<int>(prompts_.size()) * request_.answers;
  for (int i = 0; i < answers; ++i) events.push_back({"", chunk(i, prompt_of(i), nullptr)});
  return events;
}

Events TextWriter::progress(const Usage& usage) {
  Json event = chunk(0, "", nullptr);
  event["prompt_progress"] = progress_member(usage);
  return {{"", std::move(event)}};
}

Events TextWriter::part(int answer, const ReplyPart& part, const ReplyDelta&, const Usage& usage) {
  Json event = chunk(answer, part.text, nullptr);
  if (!part.probabilities.empty()) {
    event["choices"][0]["logprobs"] = text_logprobs(part.probabilities);
  }
  if (request_.timings_per_token) event["timings"] = timings_member(usage);
  return {{"", std::move(event)}};
}

Events TextWriter::end(int answer, const FinishedAnswer& finished, const ReplyDelta& delta) {
  Json event = chunk(answer, delta.content, name_of(finished.finish));
  if (!request_.stream_usage) event["timings"] = timings_member(finished.usage);
  return {{"", std::move(event)}};
}

Events TextWriter::finish(const std::vector<FinishedAnswer>& answers) {
  if (!request_.stream_usage) return {};
  return {{"", with_usage(reply(head_, "text_completion", Json::array()), answers)}};
}

}  // namespace firp
