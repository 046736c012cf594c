#include "serve/reply.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <utility>

#include "serve/llama_completion.h"
#include "serve/messages.h"
#include "serve/openai.h"
#include "serve/responses.h"

namespace firp {
namespace {

/// What `now` has behind `before`; nothing where it goes on in another way.
std::string rest(const std::string& before, const std::string& now) {
  return now.starts_with(before) ? now.substr(before.size()) : "";
}

}  // namespace

Usage& Usage::operator+=(const Usage& other) {
  prompt_tokens += other.prompt_tokens;
  cached_tokens += other.cached_tokens;
  read_tokens += other.read_tokens;
  completion_tokens += other.completion_tokens;
  queue_seconds += other.queue_seconds;
  stats += other.stats;
  return *this;
}

ReplyDelta difference(const ChatReply& before, const ChatReply& now, bool complete) {
  ReplyDelta delta = {.content = rest(before.content, now.content),
                      .reasoning = rest(before.reasoning, now.reasoning),
                      .calls = {}};
  const auto is_told = [&](const std::vector<ToolCall>& calls, std::size_t i, bool all) {
    return i < calls.size() && !calls[i].name.empty() &&
           (all || i + 1 < calls.size() || !calls[i].arguments.empty());
  };
  for (std::size_t i = 0; i < now.tool_calls.size(); ++i) {
    if (!is_told(now.tool_calls, i, complete)) break;
    const ToolCall& call = now.tool_calls[i];
    const bool known = is_told(before.tool_calls, i, /*all=*/false);
    std::string arguments =
        known ? rest(before.tool_calls[i].arguments, call.arguments) : call.arguments;
    if (known && arguments.empty()) continue;
    delta.calls.push_back({.index = static_cast<int>(i),
                           .id = known ? "" : call.id,
                           .name = known ? "" : call.name,
                           .arguments = std::move(arguments)});
  }
  return delta;
}

std::unique_ptr<ReplyWriter> make_reply_writer(const TextRequest& request, ReplyHead head,
                                               std::vector<std::string> prompts) {
  switch (request.dialect) {
    case Dialect::kChat:
      return std::make_unique<ChatWriter>(request, std::move(head), std::move(prompts));
    case Dialect::kText:
      return std::make_unique<TextWriter>(request, std::move(head), std::move(prompts));
    case Dialect::kLlama:
    case Dialect::kInfill:
      return std::make_unique<LlamaWriter>(request, std::move(head), std::move(prompts));
    case Dialect::kResponses:
      return std::make_unique<ResponsesWriter>(request, std::move(head));
    case Dialect::kMessages:
      return std::make_unique<MessagesWriter>(request, std::move(head));
  }
  return nullptr;
}

std::vector<FinishedAnswer> best_answers(std::vector<FinishedAnswer> tried,
                                         const TextRequest& request) {
  if (request.tried == request.answers) return tried;
  const auto mean_log_probability = [](const FinishedAnswer& answer) {
    double sum = 0;
    for (const WrittenToken& each : answer.part.probabilities) sum += each.token.log_probability;
    return sum / std::max<double>(1, std::ssize(answer.part.probabilities));
  };
  std::vector<FinishedAnswer> best;
  for (auto prompt = tried.begin(); prompt != tried.end(); prompt += request.tried) {
    std::ranges::stable_sort(prompt, prompt + request.tried, std::ranges::greater{},
                             mean_log_probability);
    std::move(prompt, prompt + request.answers, std::back_inserter(best));
  }
  for (FinishedAnswer& each : best) {
    if (request.likeliest < 0) each.part.probabilities.clear();
  }
  return best;
}

/// Answers to one prompt share its tokens.
Json usage_member(const std::vector<FinishedAnswer>& answers) {
  const int prompt = answers.front().usage.prompt_tokens;
  const int cached = answers.front().usage.cached_tokens;
  int completion = 0;
  for (const FinishedAnswer& each : answers) completion += each.usage.completion_tokens;
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion},
          {"prompt_tokens_details", {{"cached_tokens", cached}}}};
}

Events ReplyWriter::error(const RequestError& error) { return {{"", error_reply(error)}}; }

Json progress_member(const Usage& usage) {
  return {{"total", usage.prompt_tokens},
          {"cache", usage.cached_tokens},
          {"processed", usage.read_tokens},
          {"time_ms", 1e3 * usage.stats.prefill_seconds}};
}

/// llama.cpp's names, and FIRP's own measure.
Json timings_member(const Usage& usage) {
  const DecodeStats& stats = usage.stats;
  const int read = usage.read_tokens - usage.cached_tokens;
  const long long from_drafts = stats.tokens - stats.forwards;
  const auto each = [](double seconds, double count) {
    return count > 0 ? 1e3 * seconds / count : 0;
  };
  return {{"cache_n", usage.cached_tokens},
          {"prompt_n", read},
          {"prompt_ms", 1e3 * stats.prefill_seconds},
          {"prompt_per_token_ms", each(stats.prefill_seconds, read)},
          {"prompt_per_second", stats.prefill_seconds > 0 ? read / stats.prefill_seconds : 0},
          {"predicted_n", usage.completion_tokens},
          {"predicted_ms", 1e3 * stats.decode_seconds},
          {"predicted_per_token_ms", each(stats.decode_seconds, usage.completion_tokens)},
          {"predicted_per_second", stats.tokens_per_second()},
          {"draft_n", stats.drafted},
          {"draft_n_accepted", std::max(from_drafts, 0LL)},
          {"forward_passes", stats.forwards},
          {"tokens_per_forward_pass", stats.tokens_per_forward()}};
}

namespace {

/// With what OpenAI's clients expect: text, and the bytes, since a token may be a part of a
/// character.
Json token_member(const ReplyToken& token, bool after_sampling) {
  Json bytes = Json::array();
  for (const char byte : token.bytes) bytes.push_back(static_cast<unsigned char>(byte));
  Json member = {{"id", token.token}, {"token", token.bytes}, {"bytes", std::move(bytes)}};
  if (after_sampling) {
    member["prob"] = std::exp(token.log_probability);
  } else {
    member["logprob"] = token.log_probability;
  }
  return member;
}

}  // namespace

Json probabilities_member(const std::vector<WrittenToken>& tokens, bool after_sampling) {
  const char* const others = after_sampling ? "top_probs" : "top_logprobs";
  Json list = Json::array();
  for (const WrittenToken& each : tokens) {
    Json member = token_member(each.token, after_sampling);
    member[others] = Json::array();
    for (const ReplyToken& other : each.likeliest) {
      member[others].push_back(token_member(other, after_sampling));
    }
    if (each.drafted) member["drafted"] = true;
    list.push_back(std::move(member));
  }
  return list;
}

Json error_reply(const RequestError& error) {
  Json reply = {{"message", error.what()},
                {"type", error.kind.type},
                {"param", error.param.empty() ? Json() : Json(error.param)},
                {"code", error.kind.code}};
  reply.update(error.more);
  return {{"error", std::move(reply)}};
}

std::string to_bytes(const Json& value) {
  return value.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

Json token_with_piece(Token token, const std::string& piece) {
  Json member = {{"id", token}};
  try {
    require_utf8(piece, "a piece");
    member["piece"] = piece;
  } catch (const Error&) {
    member["piece"] = Json::array();
    for (const char byte : piece) member["piece"].push_back(static_cast<unsigned char>(byte));
  }
  return member;
}

}  // namespace firp
