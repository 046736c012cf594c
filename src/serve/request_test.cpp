#include "serve/request.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <climits>

namespace firp {
namespace {

using testing::HasSubstr;

constexpr int kVocabulary = 100;

TextRequest parse(const std::string& body, Dialect dialect = Dialect::kChat) {
  return parse_request(body, dialect, {.max_tokens = INT_MAX, .vocabulary = kVocabulary});
}

const std::string kHi = R"("messages": [{"role": "user", "content": "Hi"}])";

/// The message of the RequestError that the body must end in.
std::string refusal(const std::string& body, Dialect dialect = Dialect::kChat) {
  try {
    parse(body, dialect);
  } catch (const RequestError& error) {
    EXPECT_TRUE(error.kind.status == 400 || error.kind.status == 413);
    return error.what();
  }
  ADD_FAILURE() << body << " was not refused";
  return "";
}

TEST(Api, ReadsAChat) {
  const TextRequest request = parse(R"({"model": "any", "messages": [
      {"role": "developer", "content": "Be short."}, {"role": "user", "content": "Hi"},
      {"role": "assistant", "content": null},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
      "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 42, "max_completion_tokens": 9,
      "stop": ["x", "yz"], "stream": true, "stream_options": {"include_usage": true},
      "presence_penalty": 0, "n": 1, "tools": [], "logprobs": false, "unknown": {}})");
  const Json& messages = request.chat->messages;
  ASSERT_EQ(messages.size(), 4u);
  EXPECT_EQ(messages[0]["role"], "developer");
  EXPECT_EQ(messages[1]["content"], "Hi");
  EXPECT_EQ(messages[2]["content"], "");
  EXPECT_EQ(messages[3]["content"][1]["text"], "b");
  EXPECT_TRUE(request.chat->tools.is_null());
  EXPECT_FALSE(request.chat->continues_answer);
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
    return parse_request("{" + kHi + fields + "}", Dialect::kChat,
                         {.sampling = defaults, .max_tokens = 100, .vocabulary = kVocabulary});
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
  EXPECT_THAT(refusal(R"({"messages": [{"role": "boss", "content": "x"}]})"), HasSubstr("'boss'"));
  EXPECT_THAT(refusal(R"({"messages": [{"role": "user", "content": 3}]})"), HasSubstr("'content'"));
  EXPECT_THAT(refusal(R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})"),
              HasSubstr("type text"));
  const std::pair<const char*, const char*> fields[] = {
      {R"("temperature": "hot")", "'temperature' must be a number"},
      {R"("temperature": -1)", "'temperature' must be at least 0"},
      {R"("top_p": 1.5)", "'top_p' must be between 0 and 1"},
      {R"("top_k": 2.5)", "'top_k' must be a whole number"},
      {R"("max_tokens": -2)", "'max_tokens' must be at least -1"},
      {R"("stop": [""])", "empty string"},
      {R"("stop": 3)", "'stop' must be a string"},
      {R"("stream": "yes")", "'stream' must be true or false"},
      {R"("stream_options": 1)", "'stream_options'"},
      {R"("n": 0)", "'n' must be at least 1"},
      {R"("n": 65)", "'n' must be at most 64"},
      {R"("n": 2, "best_of": 1)", "'best_of' must be at least 'n'"},
      {R"("best_of": 2, "stream": true)", "without 'stream'"},
      {R"("best_of": 65)", "'best_of' must be at most 64"},
      {R"("min_tokens": -1)", "'min_tokens' must be at least 0"},
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
      {R"("logit_bias": [["the", "x"]])", "a number, or false"},
      {R"("post_sampling_probs": true)", "'post_sampling_probs' is not supported"},
      {R"("logit_bias": {"1.5": 1})", "0 to 99"},
      {R"("logit_bias": {"5": true})", "a number, or false"},
      {R"("logit_bias": {"5": null})", "a number, or false"},
      {R"("tools": [{}])", "a tool is an object of type function"},
      {R"("tools": {})", "'tools' must be a list"},
      {R"("tools": [{"type": "function", "function": {}}])", "no 'name'"},
      {R"("tool_choice": "required")", "'tool_choice' needs 'tools'"},
      {R"("tool_choice": "sometimes")", "'tool_choice' is auto, none"},
      {R"("grammar": 3)", "'grammar' must be a string"},
      {R"("grammar": "root ::= [0-9]", "json_schema": {})", "not both"},
      {R"("json_schema": "text")", "'json_schema' must be a JSON schema"},
      {R"("response_format": {"type": "xml"})", "'response_format' is of type text"},
      {R"("response_format": {"type": "json_schema"})", "'schema'"},
      {R"("chat_template_kwargs": 3)", "'chat_template_kwargs' must be an object"},
      {R"("chat_template_kwargs": {"enable_thinking": "no"})", "'enable_thinking'"},
      {R"("reasoning_format": "tags")", "'reasoning_format' is none"},
      {R"("continue_final_message": true)", "not the assistant's"},
      {R"("echo": true)", "'echo' is not supported"},
      {R"("logprobs": 3)", "'logprobs' must be true or false"},
      {R"("top_logprobs": 3)", "'top_logprobs' needs 'logprobs'"},
      {R"("logprobs": true, "top_logprobs": 101)", "'top_logprobs' must be at most 100"},
      {R"("logprobs": true, "top_logprobs": -1)", "'top_logprobs' must be at least 0"},
  };
  for (const auto& [field, message] : fields) {
    EXPECT_THAT(refusal("{" + kHi + ", " + field + "}"), HasSubstr(message));
  }
  EXPECT_THAT(refusal("{}", Dialect::kText), HasSubstr("'prompt' is missing"));
  EXPECT_THAT(refusal(R"({"prompt": ""})", Dialect::kText), HasSubstr("empty"));
  EXPECT_THAT(refusal(R"({"prompt": []})", Dialect::kText), HasSubstr("empty"));
  EXPECT_THAT(refusal(R"({"prompt": [1, 100]})", Dialect::kText), HasSubstr("0 to 99"));
  EXPECT_THAT(refusal(R"({"prompt": "a", "logprobs": 101})", Dialect::kText),
              HasSubstr("'logprobs' must be at most 100"));
  EXPECT_THAT(refusal(R"({"input_suffix": ""})", Dialect::kInfill), HasSubstr("'input_prefix'"));
  EXPECT_THAT(refusal("{}", Dialect::kResponses), HasSubstr("'input' is missing"));
  EXPECT_THAT(refusal(R"({"input": [{"type": "item_reference"}]})", Dialect::kResponses),
              HasSubstr("'item_reference'"));
  EXPECT_THAT(refusal("{}", Dialect::kMessages), HasSubstr("'messages'"));
  EXPECT_THAT(refusal(R"({"messages": [{"role": "user", "content": [{"type": "image"}]}]})",
                      Dialect::kMessages),
              HasSubstr("'image'"));
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
                               "min_tokens",
                               "grammar",
                               "json_schema",
                               "chat_template_kwargs",
                               "reasoning_effort",
                               "parallel_tool_calls",
                               "response_fields",
                               "n_probs",
                               "input",
                               "instructions",
                               "input_prefix",
                               "input_suffix",
                               "input_extra",
                               "system",
                               "thinking",
                               "stop_sequences",
                               "text",
                               "reasoning",
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
                                "[{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}]",
                                "[{\"type\": \"function\", \"function\": {\"name\": 1}}]",
                                "[{\"type\": \"function_call\"}]"};
  for (const Dialect dialect : {Dialect::kChat, Dialect::kText, Dialect::kLlama, Dialect::kInfill,
                                Dialect::kResponses, Dialect::kMessages}) {
    for (const char* const name : names) {
      for (const char* const value : values) {
        std::string body = "{";
        if (std::string(name) != "messages") body += kHi + ", ";
        if (std::string(name) != "prompt") body += R"("prompt": "a", )";
        body += std::string("\"") + name + "\": " + value + "}";
        try {
          parse(body, dialect);
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
       {R"("guided_json": {"a": 1})", R"("smoothing_factor": 2)", R"("stop_token_ids": [1])",
        R"("repetition_penalty": 1.2)", R"("functions": [{"name": "f"}])",
        R"("post_sampling_probs": true)", R"("format": "json")", R"("options": {"temperature": 1})",
        R"("max_new_tokens": 5)", R"("add_special_tokens": false)", R"("think": true)",
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
              HasSubstr("a tool call has a 'function'"));
  EXPECT_THAT(refusal(R"({"messages": [{"role": "user"}]})"), HasSubstr("no 'content'"));
}

TEST(Api, ReadsEverySampler) {
  const TextRequest request = parse("{" + kHi +
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
  const TextRequest biased =
      parse("{" + kHi + R"(, "logit_bias": {"99": 100, "the": false, "9a": 2}})");
  EXPECT_EQ(biased.sampling.logit_bias.at(0).token, 99);
  ASSERT_EQ(biased.text_biases.size(), 2u);
  EXPECT_EQ(biased.text_biases[0].text, "the");
  EXPECT_TRUE(std::isinf(biased.text_biases[0].bias));
  EXPECT_EQ(biased.text_biases[1].text, "9a");
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
  const TextRequest request =
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
  for (std::size_t i = 0; i < kMostMembers; ++i) keys += fmt::format("\"k{}\": 1,", i);
  EXPECT_THAT(refusal("{" + keys + kHi + "}"), HasSubstr("members"));
  EXPECT_THAT(refusal(with("\"x\": [" + times("1,", kMostValues) + "1]")), HasSubstr("values"));

  const std::string one = R"({"role": "user", "content": ""},)";
  const auto messages = [&](std::size_t count) {
    return R"({"messages": [)" + times(one, count - 1) + one.substr(0, one.size() - 1) + "]}";
  };
  EXPECT_EQ(parse(messages(kMostMessages)).chat->messages.size(), kMostMessages);
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
    return parse(R"({"prompt": "a")" + fields + "}", Dialect::kText).likeliest;
  };
  EXPECT_EQ(of_text(""), -1);
  EXPECT_EQ(of_text(R"(, "logprobs": null)"), -1);
  EXPECT_EQ(of_text(R"(, "logprobs": 0)"), 0);
  EXPECT_EQ(of_text(R"(, "logprobs": 5)"), 5);
}

TEST(Api, ReadsToolsAndWhatTheModelIsToDoWithThem) {
  const std::string tools = R"(, "tools": [
      {"type": "function", "function": {"name": "a", "parameters": {"type": "object"}}},
      {"type": "function", "function": {"name": "b", "description": "does b"}}])";
  const auto chat_of = [&](const std::string& more) {
    return *parse("{" + kHi + tools + more + "}").chat;
  };
  EXPECT_EQ(chat_of("").tools.size(), 2u);
  EXPECT_EQ(chat_of("").tool_choice, ToolChoice::kAuto);
  EXPECT_EQ(chat_of(R"(, "tool_choice": "none")").tool_choice, ToolChoice::kNone);
  EXPECT_EQ(chat_of(R"(, "tool_choice": "required")").tool_choice, ToolChoice::kRequired);
  const ChatInput named =
      chat_of(R"(, "tool_choice": {"type": "function", "function": {"name": "b"}})");
  EXPECT_EQ(named.tool_choice, ToolChoice::kRequired);
  ASSERT_EQ(named.tools.size(), 1u);
  EXPECT_EQ(named.tools[0]["function"]["description"], "does b");
  const ChatInput calls = *parse(R"({"messages": [{"role": "user", "content": "x"},
      {"role": "assistant", "content": null, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "a", "arguments": {"k": 1}}}]},
      {"role": "tool", "tool_call_id": "1", "content": "y"}]})")
                               .chat;
  EXPECT_EQ(calls.messages[1]["tool_calls"][0]["function"]["arguments"], "{\"k\":1}");
  EXPECT_EQ(calls.messages[2]["tool_call_id"], "1");
}

TEST(Api, ContinuesTheAssistantsLastMessage) {
  const auto chat_of = [](const std::string& more) {
    return *parse(R"({"messages": [{"role": "user", "content": "x"},
        {"role": "assistant", "content": "It"}])" +
                  more + "}")
                .chat;
  };
  EXPECT_TRUE(chat_of("").continues_answer);
  EXPECT_FALSE(chat_of(R"(, "continue_final_message": false)").continues_answer);
  EXPECT_FALSE(chat_of(R"(, "add_generation_prompt": true)").continues_answer);
}

TEST(Api, ReadsPromptsOfEveryForm) {
  const auto prompts_of = [](const std::string& prompt) {
    return parse(R"({"prompt": )" + prompt + "}", Dialect::kLlama).prompts;
  };
  EXPECT_EQ(prompts_of(R"("a")").size(), 1u);
  EXPECT_EQ(prompts_of(R"(["a", "b"])").size(), 2u);
  EXPECT_EQ(prompts_of("[[1, 2], [3]]").size(), 2u);
  const std::vector<Prompt> mixed = prompts_of(R"([1, 2, "a", 3])");
  ASSERT_EQ(mixed.size(), 1u);
  ASSERT_EQ(mixed[0].size(), 3u);
  EXPECT_EQ(std::get<std::vector<Token>>(mixed[0][0]), (std::vector<Token>{1, 2}));
  EXPECT_EQ(std::get<std::string>(mixed[0][1]), "a");
}

TEST(Api, ReadsResponsesAndMessagesAsChats) {
  const TextRequest response = parse(R"({"instructions": "Be brief.", "max_output_tokens": 7,
      "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "done"}],
      "tools": [{"type": "web_search"}, {"type": "function", "name": "f"}]})",
                                     Dialect::kResponses);
  EXPECT_EQ(response.max_tokens, 7);
  const Json& items = response.chat->messages;
  ASSERT_EQ(items.size(), 4u);
  EXPECT_EQ(items[0]["content"], "Be brief.");
  EXPECT_EQ(items[2]["reasoning_content"], "hm");
  EXPECT_EQ(items[2]["tool_calls"][0]["id"], "c");
  EXPECT_EQ(items[3]["role"], "tool");
  EXPECT_EQ(response.chat->tools.size(), 1u);

  const TextRequest message = parse(R"({"system": [{"type": "text", "text": "Be brief."}],
      "max_tokens": 9, "stop_sequences": ["x"], "thinking": {"type": "disabled"},
      "messages": [{"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"},
          {"type": "tool_use", "id": "c", "name": "f", "input": {"k": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "done"},
          {"type": "text", "text": "and?"}]}],
      "tools": [{"name": "f", "input_schema": {"type": "object"}}],
      "tool_choice": {"type": "any"}})",
                                    Dialect::kMessages);
  EXPECT_EQ(message.max_tokens, 9);
  EXPECT_EQ(message.stops, std::vector<std::string>{"x"});
  EXPECT_FALSE(message.chat->thinks);
  EXPECT_EQ(message.chat->tool_choice, ToolChoice::kRequired);
  const Json& turns = message.chat->messages;
  ASSERT_EQ(turns.size(), 5u);
  EXPECT_EQ(turns[2]["tool_calls"][0]["function"]["arguments"], "{\"k\":1}");
  EXPECT_EQ(turns[2]["reasoning_content"], "hm");
  EXPECT_EQ(turns[3]["role"], "tool");
  EXPECT_EQ(turns[4]["content"][0]["text"], "and?");
}

}  // namespace
}  // namespace firp
