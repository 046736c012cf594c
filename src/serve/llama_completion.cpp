#include "serve/llama_completion.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace firp {
namespace {

const char* name_of(FinishReason finish) {
  switch (finish) {
    case FinishReason::kEnd:
      return "eos";
    case FinishReason::kStopString:
      return "word";
    case FinishReason::kLength:
      break;
  }
  return "limit";
}

/// Only the members that are asked for, a/b being b in a.
Json chosen(const Json& whole, const std::vector<std::string>& fields) {
  if (fields.empty()) return whole;
  Json part = Json::object();
  for (const std::string& path : fields) {
    const Json* at = &whole;
    std::size_t begin = 0;
    while (at != nullptr && begin <= path.size()) {
      const std::size_t end = std::min(path.find('/', begin), path.size());
      const std::string name = path.substr(begin, end - begin);
      at = at->is_object() && at->contains(name) ? &(*at)[name] : nullptr;
      begin = end + 1;
    }
    if (at != nullptr) part[path] = *at;
  }
  return part;
}

/// llama.cpp's clients read the probabilities of one token in an event. Each has its token's text,
/// or as much of what has come: some of that may be of tokens before, which was held back.
std::vector<ReplyPart> token_by_token(const ReplyPart& part) {
  std::vector<ReplyPart> parts;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < part.probabilities.size(); ++i) {
    const WrittenToken& token = part.probabilities[i];
    std::size_t end = part.text.size();
    if (i + 1 < part.probabilities.size()) end = std::min(end, begin + token.token.bytes.size());
    while (end > begin && end < part.text.size() && continues_utf8(part.text[end])) --end;
    parts.push_back({.text = part.text.substr(begin, end - begin),
                     .tokens = {token.token.token},
                     .probabilities = {token}});
    begin = end;
  }
  return parts;
}

}  // namespace

Json settings_member(const SamplingOptions& s, int max_tokens) {
  Json biases = Json::array();
  for (const TokenLogit& bias : s.logit_bias) {
    // JSON has no infinity: null.
    biases.push_back({{"token", bias.token}, {"bias", bias.logit}});
  }
  return {{"max_tokens", max_tokens},
          {"n_predict", max_tokens},
          {"seed", s.seed},
          {"temperature", s.temperature},
          {"dynatemp_range", s.dynatemp_range},
          {"dynatemp_exponent", s.dynatemp_exponent},
          {"top_k", s.top_k},
          {"top_p", s.top_p},
          {"min_p", s.min_p},
          {"top_n_sigma", s.top_n_sigma},
          {"xtc_probability", s.xtc_probability},
          {"xtc_threshold", s.xtc_threshold},
          {"typical_p", s.typical_p},
          {"min_keep", s.min_keep},
          {"dry_multiplier", s.dry.multiplier},
          {"dry_base", s.dry.base},
          {"dry_allowed_length", s.dry.allowed_length},
          {"dry_penalty_last_n", s.dry.penalty_last_n},
          {"dry_sequence_breakers", s.dry.sequence_breakers},
          {"mirostat", s.mirostat.version},
          {"mirostat_tau", s.mirostat.tau},
          {"mirostat_eta", s.mirostat.eta},
          {"adaptive_target", s.adaptive.target},
          {"adaptive_decay", s.adaptive.decay},
          {"repeat_last_n", s.repeat_last_n},
          {"repeat_penalty", s.repeat_penalty},
          {"presence_penalty", s.presence_penalty},
          {"frequency_penalty", s.frequency_penalty},
          {"logit_bias", std::move(biases)}};
}

Json LlamaWriter::chunk(int answer, const ReplyPart& part, const Usage& usage) const {
  Json tokens = Json::array();
  if (request_.return_tokens || request_.stream) tokens = part.tokens;
  Json event = {{"index", answer},
                {"content", part.text},
                {"tokens", std::move(tokens)},
                {"stop", false},
                {"id_slot", usage.slot},
                {"tokens_predicted", usage.completion_tokens},
                {"tokens_evaluated", usage.prompt_tokens}};
  if (request_.timings_per_token) event["timings"] = timings_member(usage);
  if (!part.probabilities.empty()) {
    event["completion_probabilities"] =
        probabilities_member(part.probabilities, request_.after_sampling);
  }
  return event;
}

Json LlamaWriter::last(int answer, const FinishedAnswer& finished, bool streamed) const {
  Json settings = settings_member(request_.sampling, request_.max_tokens);
  settings["stop"] = request_.stops;
  settings["stream"] = request_.stream;
  settings["ignore_eos"] = request_.ignore_eos;
  settings["n_probs"] = std::max(request_.likeliest, 0);
  settings["grammar"] = request_.grammar;
  settings["timings_per_token"] = request_.timings_per_token;
  Json tokens = Json::array();
  if (request_.return_tokens && !streamed) tokens = finished.part.tokens;
  const bool is_full = finished.finish == FinishReason::kLength &&
                       finished.usage.completion_tokens < request_.max_tokens;
  Json reply = {{"index", answer},
                {"content", streamed ? "" : finished.part.text},
                {"tokens", std::move(tokens)},
                {"id_slot", finished.usage.slot},
                {"stop", true},
                {"model", head_.model},
                {"tokens_predicted", finished.usage.completion_tokens},
                {"tokens_evaluated", finished.usage.prompt_tokens},
                {"generation_settings", std::move(settings)},
                {"prompt", prompts_[answer / request_.answers]},
                {"has_new_line", finished.part.text.find('\n') != std::string::npos},
                {"truncated", is_full},
                {"stop_type", name_of(finished.finish)},
                {"stopping_word", finished.stop_string},
                {"tokens_cached", finished.usage.prompt_tokens + finished.usage.completion_tokens},
                {"timings", timings_member(finished.usage)}};
  if (!streamed && !finished.part.probabilities.empty()) {
    reply["completion_probabilities"] =
        probabilities_member(finished.part.probabilities, request_.after_sampling);
  }
  return chosen(reply, request_.response_fields);
}

Json LlamaWriter::whole(const std::vector<FinishedAnswer>& answers) {
  Json list = Json::array();
  for (const FinishedAnswer& each : answers) {
    list.push_back(last(static_cast<int>(list.size()), each, /*streamed=*/false));
  }
  return list.size() == 1 ? list[0] : list;
}

Events LlamaWriter::progress(const Usage& usage) {
  Json event = chunk(0, {}, usage);
  event["prompt_progress"] = progress_member(usage);
  return {{"", std::move(event)}};
}

Events LlamaWriter::part(int answer, const ReplyPart& part, const ReplyDelta&, const Usage& usage) {
  if (part.probabilities.size() <= 1) return {{"", chunk(answer, part, usage)}};
  Events events;
  Usage so_far = usage;
  so_far.completion_tokens -= static_cast<int>(part.probabilities.size());
  for (const ReplyPart& each : token_by_token(part)) {
    ++so_far.completion_tokens;
    events.push_back({"", chunk(answer, each, so_far)});
  }
  return events;
}

Events LlamaWriter::end(int answer, const FinishedAnswer& finished, const ReplyDelta&) {
  return {{"", last(answer, finished, /*streamed=*/true)}};
}

}  // namespace firp
