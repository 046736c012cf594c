#include "serve/api.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <climits>

namespace firp {
namespace {

using testing::HasSubstr;

constexpr int kVocabulary = 100;

CompletionRequest parse(const std::string& body, CompletionKind kind = CompletionKind::kChat) {
  return parse_request(body, kind, {}, INT_MAX, kVocabulary);
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
    return parse_request("{" + kHi + fields + "}", CompletionKind::kChat, defaults, 100,
                         kVocabulary);
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
      {R"("presence_penalty": 2.5)", "'presence_penalty' must be between -2 and 2"},
      {R"("xtc_probability": 1.5)", "'xtc_probability' must be between 0 and 1"},
      {R"("dynatemp_range": -1)", "'dynatemp_range' must be at least 0"},
      {R"("ignore_eos": 1)", "'ignore_eos' must be true or false"},
      {R"("dry_multiplier": -1)", "'dry_multiplier' must be at least 0"},
      {R"("dry_base": 0.5)", "'dry_base' must be at least 1"},
      {R"("dry_allowed_length": -1)", "'dry_allowed_length' must be at least 0"},
      {R"("dry_penalty_last_n": -2)", "'dry_penalty_last_n' must be at least -1"},
      {R"("dry_sequence_breakers": "x")", "'dry_sequence_breakers' is a list"},
      {R"("dry_sequence_breakers": [3])", "'dry_sequence_breakers' must be a string"},
      {R"("dry_sequence_breakers": [""])", "'dry_sequence_breakers' has 1 to 40 bytes"},
      {R"("mirostat": 3)", "'mirostat' must be 0, 1 or 2"},
      {R"("mirostat": -1)", "'mirostat' must be at least 0"},
      {R"("mirostat_tau": -1)", "'mirostat_tau' must be at least 0"},
      {R"("mirostat_eta": "x")", "'mirostat_eta' must be a number"},
      {R"("adaptive_target": 2)", "'adaptive_target' must be between"},
      {R"("adaptive_decay": 1)", "'adaptive_decay' must be between 0 and 0.99"},
      {R"("min_keep": -1)", "'min_keep' must be at least 0"},
      {R"("samplers": 3)", "'samplers' is a list of names"},
      {R"("samplers": [3])", "'samplers' must be a string"},
      {R"("samplers": "q")", "'samplers': there is no sampler of the letter 'q'"},
      {R"("samplers": ["top-k", "best"])", "'samplers': there is no sampler of the name 'best'"},
      {R"("logit_bias": 3)", "a list of [token, bias]"},
      {R"("logit_bias": [3])", "a list of [token, bias]"},
      {R"("logit_bias": [[3]])", "a list of [token, bias]"},
      {R"("logit_bias": [[100, 1]])", "0 to 99"},
      {R"("logit_bias": [[-1, 1]])", "0 to 99"},
      {R"("logit_bias": [["the", 1]])", "0 to 99"},
      {R"("logit_bias": {"x": 1})", "0 to 99"},
      {R"("logit_bias": {"1.5": 1})", "0 to 99"},
      {R"("logit_bias": {"5": true})", "a number, or false"},
      {R"("logit_bias": {"5": null})", "a number, or false"},
      {R"("tools": [{}])", "'tools' is not supported"},
      {R"("logprobs": 3)", "'logprobs' must be true or false"},
      {R"("top_logprobs": 3)", "'top_logprobs' needs 'logprobs'"},
      {R"("logprobs": true, "top_logprobs": 21)", "'top_logprobs' must be at most 20"},
      {R"("logprobs": true, "top_logprobs": -1)", "'top_logprobs' must be at least 0"},
      {R"("response_format": {"type": "json_object"})", "'response_format'"},
  };
  for (const auto& [field, message] : fields) {
    EXPECT_THAT(refusal("{" + kHi + ", " + field + "}"), HasSubstr(message));
  }
  EXPECT_THAT(refusal("{}", CompletionKind::kText), HasSubstr("'prompt' is missing"));
  EXPECT_THAT(refusal(R"({"prompt": ""})", CompletionKind::kText), HasSubstr("empty"));
  EXPECT_THAT(refusal(R"({"prompt": ["a", "b"]})", CompletionKind::kText), HasSubstr("one string"));
  EXPECT_THAT(refusal(R"({"prompt": "a", "logprobs": 21})", CompletionKind::kText),
              HasSubstr("'logprobs' must be at most 20"));
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
                               "samplers",
                               "dry_multiplier",
                               "dry_sequence_breakers",
                               "mirostat",
                               "adaptive_decay",
                               "min_keep",
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
  for (const char* const field :
       {R"("chat_template_kwargs": {"enable_thinking": false})", R"("guided_json": {"a": 1})",
        R"("min_tokens": 3)", R"("smoothing_factor": 2)", R"("stop_token_ids": [1])",
        R"("tool_choice": "required")", R"("reasoning_effort": "low")",
        R"("add_generation_prompt": false)", R"("repetition_penalty": 1.2)", R"("n_probs": 3)",
        R"("format": "json")", R"("options": {"temperature": 1})", R"("max_new_tokens": 5)",
        R"("samplers": "kti")", R"("add_special_tokens": false)", R"("think": true)",
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

TEST(Api, ReadsEverySampler) {
  const CompletionRequest request = parse("{" + kHi +
                                          R"(, "presence_penalty": 0.5, "frequency_penalty": -1,
      "top_n_sigma": 1.5, "typical_p": 0.9, "xtc_probability": 0.25, "xtc_threshold": 0.2,
      "dynatemp_range": 0.3, "dynatemp_exponent": 2, "ignore_eos": true,
      "logit_bias": [[7, -1.5], [8, false]]})");
  const SamplingOptions& sampling = request.sampling;
  EXPECT_EQ(sampling.presence_penalty, 0.5f);
  EXPECT_EQ(sampling.frequency_penalty, -1.0f);
  EXPECT_EQ(sampling.top_n_sigma, 1.5f);
  EXPECT_EQ(sampling.typical_p, 0.9f);
  EXPECT_EQ(sampling.xtc_probability, 0.25f);
  EXPECT_EQ(sampling.xtc_threshold, 0.2f);
  EXPECT_EQ(sampling.dynatemp_range, 0.3f);
  EXPECT_EQ(sampling.dynatemp_exponent, 2.0f);
  EXPECT_TRUE(request.ignore_eos);
  ASSERT_EQ(sampling.logit_bias.size(), 2u);
  EXPECT_EQ(sampling.logit_bias[0].token, 7);
  EXPECT_EQ(sampling.logit_bias[0].logit, -1.5f);
  EXPECT_EQ(sampling.logit_bias[1].token, 8);
  EXPECT_TRUE(std::isinf(sampling.logit_bias[1].logit));
  EXPECT_EQ(parse("{" + kHi + R"(, "typ_p": 0.8})").sampling.typical_p, 0.8f);
  EXPECT_EQ(parse("{" + kHi + R"(, "logit_bias": {"99": 100}})").sampling.logit_bias[0].token, 99);
}

TEST(Api, ReadsSamplersThatLearnAndTheirOrder) {
  const SamplingOptions sampling = parse("{" + kHi + R"(, "dry_multiplier": 0.5, "dry_base": 2,
      "dry_allowed_length": 3, "dry_penalty_last_n": -1, "dry_sequence_breakers": ["\n\n", "#"],
      "mirostat": 2, "mirostat_tau": 4, "mirostat_eta": 0.25, "adaptive_target": 0.5,
      "adaptive_decay": 0.75, "min_keep": 5, "samplers": ["dry", "top_k", "temp"]})")
                                       .sampling;
  EXPECT_EQ(sampling.dry.multiplier, 0.5f);
  EXPECT_EQ(sampling.dry.base, 2.0f);
  EXPECT_EQ(sampling.dry.allowed_length, 3);
  EXPECT_EQ(sampling.dry.penalty_last_n, -1);
  EXPECT_EQ(sampling.dry.sequence_breakers, (std::vector<std::string>{"\n\n", "#"}));
  EXPECT_EQ(sampling.mirostat.version, 2);
  EXPECT_EQ(sampling.mirostat.tau, 4.0f);
  EXPECT_EQ(sampling.mirostat.eta, 0.25f);
  EXPECT_EQ(sampling.adaptive.target, 0.5f);
  EXPECT_EQ(sampling.adaptive.decay, 0.75f);
  EXPECT_EQ(sampling.min_keep, 5);
  EXPECT_EQ(sampling.samplers,
            (std::vector<Sampler>{Sampler::kDry, Sampler::kTopK, Sampler::kTemperature}));
  EXPECT_EQ(parse("{" + kHi + R"(, "samplers": "mt"})").sampling.samplers,
            (std::vector<Sampler>{Sampler::kMinP, Sampler::kTemperature}));
  EXPECT_TRUE(parse("{" + kHi + R"(, "samplers": []})").sampling.samplers.empty());
  EXPECT_EQ(parse("{" + kHi + "}").sampling.samplers, SamplingOptions().samplers);
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

TEST(Api, ReadsHowManyProbabilitiesAreWanted) {
  const auto of_chat = [](const std::string& fields) {
    return parse("{" + kHi + fields + "}").likeliest;
  };
  EXPECT_EQ(of_chat(""), -1);
  EXPECT_EQ(of_chat(R"(, "logprobs": false, "top_logprobs": 0)"), -1);
  EXPECT_EQ(of_chat(R"(, "logprobs": true)"), 0);
  EXPECT_EQ(of_chat(R"(, "logprobs": true, "top_logprobs": 20)"), 20);
  const auto of_text = [](const std::string& fields) {
    return parse(R"({"prompt": "a")" + fields + "}", CompletionKind::kText).likeliest;
  };
  EXPECT_EQ(of_text(""), -1);
  EXPECT_EQ(of_text(R"(, "logprobs": null)"), -1);
  EXPECT_EQ(of_text(R"(, "logprobs": 0)"), 0);
  EXPECT_EQ(of_text(R"(, "logprobs": 5)"), 5);
}

TEST(Api, WritesProbabilitiesInBothForms) {
  const std::vector<WrittenToken> tokens = {
      {.token = {"a", -0.5f}, .likeliest = {{"b", -0.25f}, {"a", -0.5f}}, .offset = 0},
      {.token = {"\xff", -1.0f}, .likeliest = {}, .offset = 1, .drafted = true}};
  ReplyHead head = {"1", 12, "m", CompletionKind::kChat, /*tells_tokens=*/true};
  const auto logprobs = [&] {
    return whole_reply(head, {"a", tokens}, FinishReason::kStop, {})["choices"][0]["logprobs"];
  };
  const Json chat = logprobs()["content"];
  ASSERT_EQ(chat.size(), 2u);
  EXPECT_EQ(chat[0]["token"], "a");
  EXPECT_EQ(chat[0]["logprob"], -0.5);
  EXPECT_EQ(chat[0]["top_logprobs"][0]["token"], "b");
  EXPECT_EQ(chat[1]["bytes"], Json::array({255}));
  EXPECT_FALSE(chat[0].contains("drafted"));
  EXPECT_EQ(chat[1]["drafted"], true);
  EXPECT_THAT(to_bytes(chat), HasSubstr("\xef\xbf\xbd"));
  EXPECT_EQ(text_chunk(head, {"a", tokens})["choices"][0]["logprobs"]["content"], chat);
  EXPECT_FALSE(first_chunk(head)["choices"][0].contains("logprobs"));

  head.kind = CompletionKind::kText;
  const Json text = logprobs();
  EXPECT_EQ(text["tokens"][0], "a");
  EXPECT_EQ(text["token_logprobs"], Json::array({-0.5, -1}));
  EXPECT_EQ(text["top_logprobs"][0], Json({{"b", -0.25}, {"a", -0.5}}));
  EXPECT_EQ(text["text_offset"], Json::array({0, 1}));
  head.tells_tokens = false;
  EXPECT_TRUE(logprobs().is_null());
}

TEST(Api, WritesReplies) {
  const ReplyHead head = {"chatcmpl-1", 12, "m", CompletionKind::kChat};
  Usage usage = {.prompt_tokens = 10, .cached_tokens = 4, .completion_tokens = 6};
  usage.stats.forwards = 3;
  usage.stats.tokens = 6;
  const Json whole = whole_reply(head, {.text = "text"}, FinishReason::kLength, usage);
  EXPECT_EQ(whole["object"], "chat.completion");
  EXPECT_EQ(whole["choices"][0]["message"]["content"], "text");
  EXPECT_EQ(whole["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(whole["usage"]["total_tokens"], 16);
  EXPECT_EQ(whole["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
  EXPECT_EQ(whole["timings"]["prompt_n"], 6);
  EXPECT_EQ(whole["timings"]["draft_n_accepted"], 3);
  EXPECT_EQ(whole["timings"]["tokens_per_forward_pass"], 2.0);
  EXPECT_EQ(first_chunk(head)["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(text_chunk(head, {.text = "x"})["choices"][0]["delta"]["content"], "x");
  EXPECT_TRUE(text_chunk(head, {.text = "x"})["choices"][0]["finish_reason"].is_null());
  EXPECT_EQ(last_chunk(head, FinishReason::kStop, usage)["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(usage_chunk(head, usage)["choices"].empty());

  const ReplyHead text = {"cmpl-1", 12, "m", CompletionKind::kText};
  EXPECT_EQ(whole_reply(text, {.text = "t"}, FinishReason::kStop, usage)["choices"][0]["text"],
            "t");
  EXPECT_EQ(text_chunk(text, {.text = "x"})["choices"][0]["text"], "x");
  EXPECT_EQ(to_bytes(Json("a\xff")), "\"a\xef\xbf\xbd\"") << "no byte of the model's is an error";
}

}  // namespace
}  // namespace firp
