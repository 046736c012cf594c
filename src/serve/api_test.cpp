#include "serve/api.h"

#include <fmt/format.h>
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
    EXPECT_TRUE(error.kind.status == 400 || error.kind.status == 413);
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
  EXPECT_THAT(refusal("\xff"), HasSubstr("not valid UTF-8"));
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
  EXPECT_THAT(refusal(R"({"prompt": ["a", "b"]})", CompletionKind::kText), HasSubstr("one string"));
}

/// Whatever type a field has, the request is taken or refused: nothing else is thrown.
TEST(Api, NoTypeOfAnyFieldIsOurError) {
  const char* const names[] = {"model",
                               "messages",
                               "prompt",
                               "temperature",
                               "top_p",
                               "top_k",
                               "min_p",
                               "repeat_penalty",
                               "repeat_last_n",
                               "seed",
                               "stop",
                               "stream",
                               "stream_options",
                               "max_tokens",
                               "n_predict",
                               "max_completion_tokens",
                               "response_format",
                               "tools",
                               "tool_choice",
                               "modalities",
                               "n",
                               "logprobs",
                               "logit_bias",
                               "ignore_eos",
                               "user"};
  const char* const values[] = {"null",
                                "true",
                                "false",
                                "0",
                                "-1",
                                "1",
                                "1.5",
                                "1e308",
                                "-1e308",
                                "18446744073709551615",
                                "\"\"",
                                "\"x\"",
                                "[]",
                                "[1]",
                                "[[]]",
                                "[null]",
                                "[{}]",
                                "{}",
                                "{\"type\": 1}",
                                "{\"type\": null}",
                                "[{\"role\": 1}]",
                                "[{\"role\": \"user\", \"content\": [[]]}]",
                                "[{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}]"};
  for (const CompletionKind kind : {CompletionKind::kChat, CompletionKind::kText}) {
    for (const char* const name : names) {
      for (const char* const value : values) {
        std::string body = "{";
        if (std::string(name) != "messages") body += kHi + ", ";
        if (std::string(name) != "prompt") body += R"("prompt": "a", )";
        body += std::string("\"") + name + "\": " + value + "}";
        try {
          parse(body, kind);
        } catch (const RequestError& error) {
          EXPECT_LT(error.kind.status, 500) << body;
          EXPECT_STRNE(error.what(), "") << body;
        } catch (const std::exception& error) {
          ADD_FAILURE() << body << ": " << error.what();
        }
      }
    }
  }
}

TEST(Api, RefusesByNameWhatWouldChangeTheAnswer) {
  for (const char* const field : {R"("chat_template_kwargs": {"enable_thinking": false})",
                                  R"("guided_json": {"a": 1})",
                                  R"("min_tokens": 3)",
                                  R"("ignore_eos": true)",
                                  R"("mirostat": 2)",
                                  R"("typical_p": 0.5)",
                                  R"("stop_token_ids": [1])",
                                  R"("tool_choice": "required")",
                                  R"("reasoning_effort": "low")",
                                  R"("add_generation_prompt": false)",
                                  R"("repetition_penalty": 1.2)",
                                  R"("n_probs": 3)",
                                  R"("xtc_probability": 0.1)",
                                  R"("format": "json")",
                                  R"("options": {"temperature": 1})",
                                  R"("max_new_tokens": 5)",
                                  R"("logprobs": 0)",
                                  R"("samplers": "kt")",
                                  R"("add_special_tokens": false)",
                                  R"("think": true)",
                                  R"("modalities": ["text", "audio"])"}) {
    const std::string name = std::string(field).substr(1, std::string(field).find('"', 1) - 1);
    EXPECT_THAT(refusal("{" + kHi + ", " + field + "}"), HasSubstr("'" + name + "'")) << field;
  }
  for (const char* const neutral :
       {R"("min_tokens": 0)", R"("ignore_eos": false)", R"("mirostat": 0)", R"("typical_p": 1.0)",
        R"("stop_token_ids": [])", R"("tool_choice": "auto")", R"("tool_choice": "none")",
        R"("add_generation_prompt": true)", R"("repetition_penalty": 1)", R"("tools": null)",
        R"("chat_template_kwargs": {})", R"("samplers": "edkypmxt")", R"("logprobs": false)",
        R"("top_k": -7)", R"("modalities": ["text"])", R"("n": 1)", R"("top_n_sigma": -1)",
        R"("skip_special_tokens": true)"}) {
    EXPECT_NO_THROW(parse("{" + kHi + ", " + neutral + "}")) << neutral;
  }
  EXPECT_THAT(refusal(R"({"messages": [{"role": "user", "content": "Hi"},
      {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]}]})"),
              HasSubstr("'tool_calls'"));
  EXPECT_THAT(refusal(R"({"messages": [{"role": "user"}]})"), HasSubstr("no 'content'"));
}

TEST(Api, TakesLlamaCppsMinusOne) {
  const CompletionRequest request =
      parse("{" + kHi + R"(, "top_k": -1, "repeat_last_n": -1, "max_tokens": -1})");
  EXPECT_EQ(request.sampling.top_k, -1);
  EXPECT_EQ(request.sampling.repeat_last_n, -1);
  EXPECT_EQ(request.max_tokens, INT_MAX);
  EXPECT_EQ(parse("{" + kHi + R"(, "max_tokens": 16.0})").max_tokens, 16);
}

TEST(Api, BoundsBodiesBeforeWorkIsDone) {
  const auto with = [](const std::string& field) { return "{" + kHi + ", " + field + "}"; };
  const auto times = [](const std::string& text, std::size_t count) {
    std::string all;
    for (std::size_t i = 0; i < count; ++i) all += text;
    return all;
  };
  const auto deep = [&](int depth) {  // inside the object
    return with("\"x\": " + times("[", depth) + times("]", depth));
  };
  EXPECT_NO_THROW(parse(deep(kMostDepth - 1)));
  EXPECT_THAT(refusal(deep(kMostDepth)), HasSubstr("deep"));
  EXPECT_THAT(refusal("{\"x\": " + times("[", 5000000)), HasSubstr("deep"));

  std::string keys;
  for (std::size_t i = 0; i < kMostValues; ++i) keys += fmt::format("\"k{}\": 1,", i);
  EXPECT_THAT(refusal("{" + keys + kHi + "}"), HasSubstr("values"));

  const std::string one = R"({"role": "user", "content": ""},)";
  const auto messages = [&](std::size_t count) {
    return R"({"messages": [)" + times(one, count - 1) + one.substr(0, one.size() - 1) + "]}";
  };
  EXPECT_EQ(parse(messages(kMostMessages)).messages.size(), kMostMessages);
  EXPECT_THAT(refusal(messages(kMostMessages + 1)), HasSubstr("'messages' may hold"));

  const auto stop = [&](std::size_t size) {
    return with("\"stop\": \"" + std::string(size, 's') + "\"");
  };
  EXPECT_NO_THROW(parse(stop(kMostStopBytes)));
  EXPECT_THAT(refusal(stop(kMostStopBytes + 1)), HasSubstr("'stop'"));
  EXPECT_THAT(refusal(with("\"stop\": [" + times("\"a\",", kMostStops) + "\"a\"]")),
              HasSubstr("64 strings"));
}

TEST(Api, SaysWhereABodyIsNotJson) {
  EXPECT_THAT(refusal("{\"a\": \xff}"), HasSubstr("not valid UTF-8 (at byte 6)"));
  EXPECT_THAT(refusal(R"({"a": 1e999})"), HasSubstr("out of range"));
  EXPECT_THAT(refusal(R"({"a" 1})"), HasSubstr("not JSON (at byte 6)"));
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
