#include "serve/api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <climits>

namespace firp {
namespace {

using testing::HasSubstr;

CompletionRequest parse(const std::string& body, CompletionKind kind = CompletionKind::kChat) {
  return parse_request(body, kind, {}, INT_MAX);
}

const std::string kHi = R"("messages": [{"role": "user", "content": "Hi"}])";

/// The message of the RequestError that the body must end in.
std::string refusal(const std::string& body, CompletionKind kind = CompletionKind::kChat) {
  try {
    parse(body, kind);
  } catch (const RequestError& error) {
    EXPECT_EQ(error.status, 400);
    return error.what();
  }
  ADD_FAILURE() << body << " was not refused";
  return "";
}

TEST(Api, ReadsAChat) {
  const CompletionRequest request = parse(R"({"model": "any", "messages": [
      {"role": "developer", "content": "Be short."}, {"role": "user", "content": "Hi"},
      {"role": "assistant", "content": null},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
      "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 42, "max_completion_tokens": 9,
      "stop": ["x", "yz"], "stream": true, "stream_options": {"include_usage": true},
      "presence_penalty": 0, "n": 1, "tools": [], "logprobs": false, "unknown": {}})");
  ASSERT_EQ(request.messages.size(), 4u);
  EXPECT_EQ(request.messages[0].role, "system");
  EXPECT_EQ(request.messages[1].content, "Hi");
  EXPECT_EQ(request.messages[2].content, "");
  EXPECT_EQ(request.messages[3].content, "ab");
  EXPECT_EQ(request.sampling.temperature, 0.5f);
  EXPECT_EQ(request.sampling.top_p, 0.9f);
  EXPECT_EQ(request.sampling.top_k, 7);
  EXPECT_EQ(request.sampling.seed, 42u);
  EXPECT_EQ(request.max_tokens, 9);
  EXPECT_EQ(request.stops, (std::vector<std::string>{"x", "yz"}));
  EXPECT_TRUE(request.stream);
  EXPECT_TRUE(request.stream_usage);
}

TEST(Api, TakesTheServersDefaults) {
  SamplingOptions defaults;
  defaults.temperature = 0.7f;
  defaults.min_p = 0.2f;
  const auto with = [&](const std::string& fields) {
    return parse_request("{" + kHi + fields + "}", CompletionKind::kChat, defaults, 100);
  };
  EXPECT_EQ(with("").sampling.temperature, 0.7f);
  EXPECT_EQ(with(R"(, "temperature": null)").sampling.temperature, 0.7f);
  EXPECT_EQ(with(R"(, "temperature": 0)").sampling.temperature, 0.0f);
  EXPECT_EQ(with("").sampling.min_p, 0.2f);
  EXPECT_EQ(with("").max_tokens, 100);
  EXPECT_EQ(with(R"(, "max_tokens": 5)").max_tokens, 5);
  EXPECT_EQ(with(R"(, "max_tokens": 500)").max_tokens, 100) << "the server's limit";
  EXPECT_EQ(with(R"(, "n_predict": -1)").max_tokens, 100);
  EXPECT_FALSE(with("").stream);
}

TEST(Api, RefusesWhatIsWrong) {
  EXPECT_THAT(refusal("{"), HasSubstr("not JSON"));
  EXPECT_THAT(refusal("[]"), HasSubstr("JSON object"));
  EXPECT_THAT(refusal("\xff"), HasSubstr("not JSON"));
  EXPECT_THAT(refusal("{}"), HasSubstr("'messages'"));
  EXPECT_THAT(refusal(R"({"messages": []})"), HasSubstr("at least one"));
  EXPECT_THAT(refusal(R"({"messages": ["Hi"]})"), HasSubstr("'role'"));
  EXPECT_THAT(refusal(R"({"messages": [{"role": "tool", "content": "x"}]})"), HasSubstr("'tool'"));
  EXPECT_THAT(refusal(R"({"messages": [{"role": "user", "content": 3}]})"), HasSubstr("'content'"));
  EXPECT_THAT(refusal(R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})"),
              HasSubstr("type text"));
  const std::pair<const char*, const char*> fields[] = {
      {R"("temperature": "hot")", "'temperature' must be a number"},
      {R"("temperature": -1)", "'temperature' must be at least 0"},
      {R"("top_p": 1.5)", "'top_p' must be between 0 and 1"},
      {R"("top_k": 2.5)", "'top_k' must be a whole number"},
      {R"("max_tokens": 0)", "'max_tokens' must be at least 1"},
      {R"("max_tokens": -2)", "'max_tokens' must be at least -1"},
      {R"("stop": [""])", "empty string"},
      {R"("stop": 3)", "'stop' must be a string"},
      {R"("stream": "yes")", "'stream' must be true or false"},
      {R"("stream_options": 1)", "'stream_options'"},
      {R"("n": 2)", "'n' must be 1"},
      {R"("presence_penalty": 0.5)", "'presence_penalty' is not supported"},
      {R"("tools": [{}])", "'tools' is not supported"},
      {R"("logprobs": true)", "'logprobs' is not supported"},
      {R"("response_format": {"type": "json_object"})", "'response_format'"},
  };
  for (const auto& [field, message] : fields) {
    EXPECT_THAT(refusal("{" + kHi + ", " + field + "}"), HasSubstr(message));
  }
  EXPECT_THAT(refusal("{}", CompletionKind::kText), HasSubstr("'prompt' is missing"));
  EXPECT_THAT(refusal(R"({"prompt": ""})", CompletionKind::kText), HasSubstr("empty"));
  EXPECT_THAT(refusal(R"({"prompt": ["a"]})", CompletionKind::kText), HasSubstr("a string"));
}

TEST(Api, WithoutASeedEachRequestHasAnother) {
  const auto seed = [](const std::string& field) {
    return parse("{" + kHi + field + "}").sampling.seed;
  };
  EXPECT_NE(seed(""), seed(""));
  EXPECT_NE(seed(R"(, "seed": -1)"), seed(R"(, "seed": -1)"));
  EXPECT_EQ(seed(R"(, "seed": 0)"), 0u);
}

TEST(Api, WritesReplies) {
  const ReplyHead head = {"chatcmpl-1", 12, "m", CompletionKind::kChat};
  Usage usage = {.prompt_tokens = 10, .cached_tokens = 4, .completion_tokens = 6};
  usage.stats.forwards = 3;
  usage.stats.tokens = 6;
  const Json whole = whole_reply(head, "text", FinishReason::kLength, usage);
  EXPECT_EQ(whole["object"], "chat.completion");
  EXPECT_EQ(whole["choices"][0]["message"]["content"], "text");
  EXPECT_EQ(whole["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(whole["usage"]["total_tokens"], 16);
  EXPECT_EQ(whole["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
  EXPECT_EQ(whole["timings"]["prompt_n"], 6);
  EXPECT_EQ(whole["timings"]["draft_n_accepted"], 3);
  EXPECT_EQ(whole["timings"]["tokens_per_forward_pass"], 2.0);
  EXPECT_EQ(first_chunk(head)["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(text_chunk(head, "x")["choices"][0]["delta"]["content"], "x");
  EXPECT_TRUE(text_chunk(head, "x")["choices"][0]["finish_reason"].is_null());
  EXPECT_EQ(last_chunk(head, FinishReason::kStop, usage)["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(usage_chunk(head, usage)["choices"].empty());

  const ReplyHead text = {"cmpl-1", 12, "m", CompletionKind::kText};
  EXPECT_EQ(whole_reply(text, "t", FinishReason::kStop, usage)["choices"][0]["text"], "t");
  EXPECT_EQ(text_chunk(text, "x")["choices"][0]["text"], "x");
  EXPECT_EQ(to_bytes(Json("a\xff")), "\"a\xef\xbf\xbd\"") << "no byte of the model's is an error";
}

}  // namespace
}  // namespace firp
