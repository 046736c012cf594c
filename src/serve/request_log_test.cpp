#include "serve/request_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace firp {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

Usage usage_of(int prompt, int cached, int completion, double queue_seconds) {
  Usage usage = {.prompt_tokens = prompt,
                 .cached_tokens = cached,
                 .completion_tokens = completion,
                 .queue_seconds = queue_seconds,
                 .stats = {}};
  usage.stats.tokens = completion;
  usage.stats.forwards = 2;
  usage.stats.decode_seconds = 0.5;
  return usage;
}

LoggedRequest text_request() {
  return {.method = "POST",
          .path = "/v1/completions",
          .client = "127.0.0.1",
          .status = 200,
          .seconds = 1.5,
          .id = "cmpl-1",
          .usages = {usage_of(10, 2, 6, 0.25), usage_of(10, 9, 4, 0.5)},
          .finish = FinishReason::kLength};
}

TEST(RequestLog, TellsARequestAsJson) {
  const std::string text = json_line(text_request(), 1795938003.0625);
  EXPECT_EQ(text.find('\n'), std::string::npos);
  const Json line = Json::parse(text);
  EXPECT_EQ(line["time"], "2026-11-29T07:40:03.062Z");
  EXPECT_EQ(line["method"], "POST");
  EXPECT_EQ(line["path"], "/v1/completions");
  EXPECT_EQ(line["client"], "127.0.0.1");
  EXPECT_EQ(line["status"], 200);
  EXPECT_EQ(line["seconds"], 1.5);
  EXPECT_EQ(line["id"], "cmpl-1");
  EXPECT_EQ(line["prompt_tokens"], 20);
  EXPECT_EQ(line["cached_tokens"], 11);
  EXPECT_EQ(line["completion_tokens"], 10) << "of all answers";
  EXPECT_EQ(line["queue_seconds"], 0.5) << "they waited at the same time";
  EXPECT_EQ(line["tokens_per_second"], 10);
  EXPECT_EQ(line["tokens_per_pass"], 2.5);
  EXPECT_EQ(line["finish"], "length");
  EXPECT_FALSE(line.contains("error"));
}

TEST(RequestLog, TellsErrors) {
  LoggedRequest refused = {.method = "GET",
                           .path = "/\"a\n\xff{",
                           .client = "::1",
                           .status = 404,
                           .error = "no\r\n\"\\"};
  const std::string text = json_line(refused, 0);
  EXPECT_EQ(text.find('\n'), std::string::npos);
  const Json line = Json::parse(text);
  EXPECT_EQ(line["path"], "/\"a??{");
  EXPECT_EQ(line["error"], "no??\"\\");
  EXPECT_FALSE(line.contains("prompt_tokens"));
  EXPECT_EQ(text_line(refused), "/\"a??{: 404, no??\"\\");

  LoggedRequest left = text_request();
  left.client_left = true;
  left.finish = {};
  left.error = "the server is ending";
  EXPECT_EQ(Json::parse(json_line(left, 0))["status"], 499);
  EXPECT_EQ(Json::parse(json_line(left, 0))["error"], "the client left");
  EXPECT_TRUE(Json::parse(json_line(left, 0))["finish"].is_null());
  EXPECT_EQ(text_line(left), "/v1/completions: the client left");
}

TEST(RequestLog, IsNoLongerThanAPipeTakesAtOnce) {
  LoggedRequest request = text_request();
  request.method = request.path = request.error = std::string(100000, '"');
  EXPECT_LT(json_line(request, 0).size(), 4096u);
  EXPECT_LT(text_line(request).size(), 4096u);
}

TEST(RequestLog, TellsTextsAndErrorsAloneAsText) {
  EXPECT_EQ(text_line(text_request()),
            "/v1/completions: 10 tokens, 10.0 tokens/s, 2.50 tokens per forward pass; prompt: 20 "
            "tokens, 11 of them held, 0.00 s");
  EXPECT_EQ(text_line({.method = "GET", .path = "/health", .client = "::1", .status = 200}), "");
}

}  // namespace
}  // namespace firp
