#include "serve/request_log.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>

#include "model/ggml_log.h"

namespace firp {
namespace {

Usage sum_of(const std::vector<Usage>& usages) {
  Usage sum;
  for (const Usage& each : usages) sum += each;
  return sum;
}

/// RFC 3339, in UTC.
std::string time_text(double now) {
  const auto milliseconds = static_cast<long long>(std::floor(now * 1e3));
  const auto seconds = static_cast<std::time_t>(milliseconds / 1000);
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(seconds), milliseconds % 1000);
}

constexpr const char* kLeft = "the client left";
constexpr int kLeftStatus = 499;

double rounded(double value) { return std::round(value * 1e4) / 1e4; }

}  // namespace

std::string text_line(const LoggedRequest& request) {
  const std::string path = one_line(request.path);
  if (request.client_left) return fmt::format("{}: {}", path, kLeft);
  if (!request.error.empty()) {
    const std::string error = one_line(request.error);
    return request.streams ? fmt::format("{}: {}", path, error)
                           : fmt::format("{}: {}, {}", path, request.status, error);
  }
  if (request.usages.empty()) return "";
  const Usage usage = sum_of(request.usages);
  const DecodeStats& stats = usage.stats;
  return fmt::format(
      "{}: {} tokens, {:.1f} tokens/s, {:.2f} tokens per forward pass; prompt: {} tokens, {} of "
      "them held, {:.2f} s",
      path, stats.tokens, stats.tokens_per_second(), stats.tokens_per_forward(),
      usage.prompt_tokens, usage.cached_tokens, stats.prefill_seconds);
}

std::string json_line(const LoggedRequest& request, double now) {
  Json line = {{"time", time_text(now)},
               {"client", request.client},
               {"method", one_line(request.method)},
               {"path", one_line(request.path)},
               {"status", request.client_left ? kLeftStatus : request.status},
               {"seconds", rounded(request.seconds)}};
  if (!request.id.empty() || !request.usages.empty()) {
    const Usage usage = sum_of(request.usages);
    double queue_seconds = 0;  // they wait at the same time
    for (const Usage& each : request.usages) {
      queue_seconds = std::max(queue_seconds, each.queue_seconds);
    }
    if (!request.id.empty()) line["id"] = request.id;
    line["stream"] = request.streams;
    line["queue_seconds"] = rounded(queue_seconds);
    line["prompt_tokens"] = usage.prompt_tokens;
    line["cached_tokens"] = usage.cached_tokens;
    line["completion_tokens"] = usage.completion_tokens;
    line["tokens_per_second"] = rounded(usage.stats.tokens_per_second());
    line["tokens_per_pass"] = rounded(usage.stats.tokens_per_forward());
    line["finish"] = !request.finish                            ? Json()
                     : *request.finish == FinishReason::kLength ? Json("length")
                                                                : Json("stop");
  }
  if (request.client_left) {
    line["error"] = kLeft;
  } else if (!request.error.empty()) {
    line["error"] = one_line(request.error);
  }
  return to_bytes(line);
}

}  // namespace firp
