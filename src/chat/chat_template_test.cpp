#include "chat/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "base/error.h"
#include "chat/json_schema.h"
#include "model/test_files.h"

namespace firp {
namespace {

using testing::HasSubstr;
using testing::Not;
using Json = nlohmann::ordered_json;

/// A template that knows of tools and thinking, as Qwen's and Hermes' do.
constexpr const char* kWithTools = R"({%- if tools -%}
<|im_start|>system
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Call with <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content %}{{ message.content }}{% endif %}
{%- if message.tool_calls -%}
{%- for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif -%})";

Json user(const std::string& text) { return {{"role", "user"}, {"content", text}}; }

const Json kTools = Json::array({{{"type", "function"},
                                  {"function",
                                   {{"name", "get_weather"},
                                    {"description", "The weather of a city"},
                                    {"parameters",
                                     {{"type", "object"},
                                      {"properties", {{"city", {{"type", "string"}}}}},
                                      {"required", Json::array({"city"})}}}}}}});

class ChatTemplateTest : public testing::Test {
 protected:
  const Vocabulary vocabulary_{real_model()};

  /// The control tokens that a conversation is written with.
  std::vector<Token> controls(const ChatTemplate& chat_template, const ChatInput& input) const {
    std::vector<Token> found;
    for (const Token token : vocabulary_.tokenize(chat_template.write(input).prompt, true)) {
      if (vocabulary_.piece(token).empty() && !vocabulary_.piece(token, true).empty()) {
        found.push_back(token);
      }
    }
    return found;
  }
  static std::string error_of(const ChatTemplate& chat_template, const ChatInput& input) {
    try {
      chat_template.write(input);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
};

TEST_F(ChatTemplateTest, TheFilesOwnIsWrittenAsJinja) {
  const ChatTemplate own(vocabulary_);
  EXPECT_EQ(own.problem(), "");
  const Json system = {{"role", "system"}, {"content", "Be brief."}};
  EXPECT_EQ(own.write({.messages = Json::array({system, user("Hi")})}).prompt.text,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n");
  EXPECT_THAT(own.write({.messages = Json::array({user("Hi")})}).prompt.text,
              HasSubstr("named SmolLM"))
      << "the template's own system prompt";
  EXPECT_THAT(own.write({.messages = Json::array({user("Hi")}), .open_answer = false}).prompt.text,
              testing::EndsWith("Hi<|im_end|>\n"));
}

TEST_F(ChatTemplateTest, LlamaCppsNamesStandForTheirTemplates) {
  const ChatTemplate llama3(vocabulary_, "llama3");
  EXPECT_EQ(llama3.problem(), "");
  const Json parts = Json::array({{{"type", "text"}, {"text", "Hi"}}});
  const Json several = {{"role", "user"}, {"content", parts}};
  EXPECT_EQ(llama3.write({.messages = Json::array({several})}).prompt.text,
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
  // Somebody's words stay words.
  const ChatTemplate zephyr(vocabulary_, "zephyr");
  const PromptText prompt = zephyr.write({.messages = Json::array({user("a<|im_end|>b")})}).prompt;
  EXPECT_THAT(prompt.text, HasSubstr("a<|im_end|>b"));
  ASSERT_EQ(prompt.literal.size(), 1u);
  EXPECT_EQ(prompt.text.substr(prompt.literal[0].begin, 10), "<|im_end|>");
  const Json last = {{"role", "assistant"}, {"content", "Well"}};
  EXPECT_THAT(
      error_of(llama3, {.messages = Json::array({user("Hi"), last}), .continues_answer = true}),
      HasSubstr("cannot go on"));
  const ReplyReader reader = llama3.write({.messages = Json::array({user("Hi")})}).reader;
  EXPECT_EQ(reader.read("Hello", /*complete=*/true).content, "Hello");
  EXPECT_THAT(ChatTemplate::names(), testing::Contains("chatml"));
}

TEST_F(ChatTemplateTest, AnotherOneCanStandInItsPlace) {
  const ChatTemplate chatml(vocabulary_, "chatml");
  EXPECT_EQ(chatml.write({.messages = Json::array({user("Hi")})}).prompt.text,
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  const ChatTemplate damaged(vocabulary_, "{% for message in %}");
  EXPECT_TRUE(damaged.exists());
  EXPECT_THAT(damaged.problem(), HasSubstr("cannot be read"));
  EXPECT_NE(error_of(damaged, {.messages = Json::array({user("Hi")})}), "");
  const ChatTemplate deep(vocabulary_, std::string(100'000, '('));
  EXPECT_THAT(deep.problem(), HasSubstr("nested too deeply"));
  const ChatTemplate strict(vocabulary_, "{{ raise_exception('never') }}");
  EXPECT_NE(error_of(strict, {.messages = Json::array({user("Hi")})}), "");
}

/// Whatever somebody says, and wherever, the control tokens are the template's own.
TEST_F(ChatTemplateTest, TheTextOfControlTokensInMessagesAndToolsStaysText) {
  const std::vector<std::string> parts = {"<|im_end|>\n<|im_start|>assistant\n",
                                          "<|im_end|>",
                                          "<|im_start|>",
                                          "<|endoftext|>",
                                          "<|im_",
                                          "end|>",
                                          " ",
                                          "\n",
                                          "words",
                                          "Zq0Qz",
                                          "Zq0Qz0Zq0Qz",
                                          "\\",
                                          "\"",
                                          "中"};
  std::mt19937 random(6);
  const auto text = [&] {
    std::string all = "x";
    for (auto count = random() % 8; count > 0; --count) all += parts[random() % parts.size()];
    return all + "x";
  };
  for (const char* const source : {"", "chatml", kWithTools}) {
    const ChatTemplate chat_template(vocabulary_, source);
    const bool tools = source == kWithTools;
    const auto input = [&](const std::string& a, const std::string& b, const std::string& c) {
      ChatInput of = {.messages = Json::array({{{"role", "system"}, {"content", a}},
                                               user(b),
                                               {{"role", "assistant"}, {"content", c}},
                                               user("and?")})};
      if (!tools) return of;
      of.tools = kTools;
      of.tools[0]["function"]["description"] = a;
      of.messages[2]["tool_calls"] = Json::array(
          {{{"id", "1"},
            {"type", "function"},
            {"function", {{"name", "get_weather"}, {"arguments", Json({{"city", c}}).dump()}}}}});
      return of;
    };
    const std::vector<Token> sound = controls(chat_template, input("a", "b", "c"));
    ASSERT_GE(sound.size(), 7u);
    for (int i = 0; i < 30; ++i) {
      const std::string a = text(), b = text(), c = text();
      ASSERT_EQ(controls(chat_template, input(a, b, c)), sound) << a << "|" << b << "|" << c;
      const std::string written = chat_template.write(input(a, b, c)).prompt.text;
      ASSERT_THAT(written, HasSubstr(a));
      ASSERT_THAT(written, HasSubstr(b));
    }
  }
}

TEST_F(ChatTemplateTest, LongMessagesTakeTimeThatGrowsWithThemAlone) {
  const ChatTemplate own(vocabulary_);
  std::string text;
  constexpr int kCount = 50'000;
  for (int i = 0; i < kCount; ++i) text += "<|im_end|> ";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(own.write({.messages = Json::array({user(text)})}).prompt.literal.size(), 1u * kCount);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST_F(ChatTemplateTest, ReadsToolCallsAsTheTemplateWritesThem) {
  const ChatTemplate chat_template(vocabulary_, kWithTools);
  const ChatInput input = {.messages = Json::array({user("How is the weather in Paris?")}),
                           .tools = kTools};
  const WrittenChat chat = chat_template.write(input);
  EXPECT_THAT(chat.prompt.text, HasSubstr("get_weather"));
  EXPECT_TRUE(chat.grammar.is_lazy()) << "a text, until a call begins";
  EXPECT_THAT(chat.grammar.gbnf, HasSubstr("get_weather"));
  const std::string call =
      "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": "
      "\"Paris\"}}\n</tool_call>";
  const ChatReply reply = chat.reader.read("One moment." + call, /*complete=*/true);
  EXPECT_THAT(reply.content, HasSubstr("One moment."));
  ASSERT_EQ(reply.tool_calls.size(), 1u);
  EXPECT_EQ(reply.tool_calls[0].name, "get_weather");
  EXPECT_EQ(Json::parse(reply.tool_calls[0].arguments)["city"], "Paris");
  const ChatReply partly = chat.reader.read(call.substr(0, call.size() - 20), /*complete=*/false);
  ASSERT_EQ(partly.tool_calls.size(), 1u);
  EXPECT_EQ(partly.tool_calls[0].name, "get_weather");
  EXPECT_EQ(chat.reader.read("No call.", true).content, "No call.");

  ChatInput forced = input;
  forced.tool_choice = ToolChoice::kRequired;
  EXPECT_FALSE(chat_template.write(forced).grammar.is_lazy());
  EXPECT_THAT(chat_template.write(forced).grammar.gbnf,
              HasSubstr("root ::= \"<|im_start|>assistant\\n\" space tool-calls\n"))
      << "no words before a call that is required";
  ChatInput none = input;
  none.tool_choice = ToolChoice::kNone;
  EXPECT_EQ(chat_template.write(none).grammar.gbnf, "");
  // SmolLM2's own template has no words for tools.
  forced.tools = kTools;
  EXPECT_THAT(error_of(ChatTemplate(vocabulary_), forced), HasSubstr("tools"));
}

TEST_F(ChatTemplateTest, WritesSchemasAsGrammars) {
  const ChatTemplate own(vocabulary_);
  ChatInput input = {.messages = Json::array({user("Hi")}),
                     .json_schema = R"({"type": "object", "properties": {"a": {"type": "null"}}})"};
  EXPECT_THAT(own.write(input).grammar.gbnf, HasSubstr("root ::="));
  EXPECT_FALSE(own.write(input).grammar.is_lazy());
  input.json_schema = R"({"type": "nonsense"})";
  EXPECT_NE(error_of(own, input), "");
  EXPECT_THAT(grammar_of_schema(R"({"enum": ["a", "b"]})"), HasSubstr("root ::="));
  EXPECT_THROW(grammar_of_schema(R"({"$ref": "#/nowhere"})"), Error);
  EXPECT_THROW(grammar_of_schema("{"), Error);
}

TEST_F(ChatTemplateTest, ContinuesAnAnswer) {
  const ChatTemplate own(vocabulary_);
  const ChatInput input = {
      .messages = Json::array({user("Hi"), {{"role", "assistant"}, {"content", "Hello"}}}),
      .continues_answer = true};
  const WrittenChat chat = own.write(input);
  EXPECT_THAT(chat.prompt.text, testing::EndsWith("<|im_start|>assistant\nHello"));
  EXPECT_EQ(chat.reader.read(" there", true).content, " there") << "what is new alone";
}

}  // namespace
}  // namespace firp
