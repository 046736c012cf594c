#include "serve/reply.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace firp {
namespace {

using testing::HasSubstr;

TextRequest request_of(Dialect dialect, int likeliest = -1) {
  TextRequest request = {.dialect = dialect, .max_tokens = 10, .likeliest = likeliest};
  request.chat.emplace();
  return request;
}

FinishedAnswer answer_of(const std::string& text) {
  FinishedAnswer answer = {
      .part = {.text = text, .tokens = {1}},
      .reply = {.content = text},
      .usage = {
          .prompt_tokens = 10, .cached_tokens = 4, .read_tokens = 10, .completion_tokens = 6}};
  answer.usage.stats.forwards = 3;
  answer.usage.stats.tokens = 6;
  return answer;
}

const ReplyHead kHead = {"resp_1", 12, "m"};

TEST(Reply, OfAChatIsOpenAIs) {
  const TextRequest request = request_of(Dialect::kChat);
  const auto writer = make_reply_writer(request, kHead, {""});
  const Json whole = writer->whole({answer_of("text")});
  EXPECT_EQ(whole["object"], "chat.completion");
  EXPECT_EQ(whole["choices"][0]["message"]["content"], "text");
  EXPECT_EQ(whole["choices"][0]["finish_reason"], "length");
  EXPECT_TRUE(whole["choices"][0]["logprobs"].is_null());
  EXPECT_EQ(whole["usage"]["total_tokens"], 16);
  EXPECT_EQ(whole["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
  EXPECT_EQ(whole["timings"]["prompt_n"], 6);
  EXPECT_EQ(whole["timings"]["draft_n_accepted"], 3);
  EXPECT_EQ(whole["timings"]["tokens_per_forward_pass"], 2.0);
  const Events begin = writer->begin({});
  ASSERT_EQ(begin.size(), 1u);
  EXPECT_EQ(begin[0].data["choices"][0]["delta"]["role"], "assistant");
  const Events part = writer->part(0, {.text = "te"}, {.content = "te"}, {});
  EXPECT_EQ(part.at(0).data["choices"][0]["delta"]["content"], "te");
  const Events end = writer->end(0, answer_of("text"), {});
  EXPECT_EQ(end.back().data["choices"][0]["finish_reason"], "length");
  EXPECT_TRUE(end.back().data.contains("timings"));
  EXPECT_TRUE(writer->finish({answer_of("text")}).empty());
}

TEST(Reply, TellsToolCallsAsTheyGrow) {
  const TextRequest request = request_of(Dialect::kChat);
  const auto writer = make_reply_writer(request, kHead, {""});
  const ChatReply none = {};
  const ChatReply named = {.tool_calls = {{"1", "f", ""}}};
  const ChatReply begun = {.tool_calls = {{"1", "f", "{\"a"}}};
  const ChatReply all = {.tool_calls = {{"1", "f", "{\"a\": 1}"}}};
  EXPECT_TRUE(difference(none, named, false).empty()) << "the name may grow";
  EXPECT_EQ(difference(none, named, true).calls.at(0).name, "f");
  const ReplyDelta first = difference(named, begun, false);
  ASSERT_EQ(first.calls.size(), 1u);
  EXPECT_EQ(first.calls[0].name, "f");
  const ReplyDelta second = difference(begun, all, false);
  ASSERT_EQ(second.calls.size(), 1u);
  EXPECT_EQ(second.calls[0].name, "");
  EXPECT_EQ(second.calls[0].arguments, "\": 1}");
  const Json event = writer->part(0, {}, first, {}).at(0).data["choices"][0]["delta"];
  EXPECT_EQ(event["tool_calls"][0]["function"]["name"], "f");
  EXPECT_EQ(event["tool_calls"][0]["id"], "1");
  FinishedAnswer answer = answer_of("");
  answer.reply = all;
  answer.finish = FinishReason::kEnd;
  const Json whole = writer->whole({answer})["choices"][0];
  EXPECT_EQ(whole["finish_reason"], "tool_calls");
  EXPECT_EQ(whole["message"]["tool_calls"][0]["function"]["arguments"], "{\"a\": 1}");
}

TEST(Reply, TellsProbabilitiesInBothForms) {
  FinishedAnswer answer = answer_of("a");
  answer.part.probabilities = {
      {.token = {5, "a", -0.5f}, .likeliest = {{6, "b", -0.25f}, {5, "a", -0.5f}}, .offset = 0},
      {.token = {7, "\xff", -1.0f}, .likeliest = {}, .offset = 1, .drafted = true}};
  const TextRequest chat_request = request_of(Dialect::kChat, 2);
  const auto chat_writer = make_reply_writer(chat_request, kHead, {""});
  const Json chat = chat_writer->whole({answer})["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(chat.size(), 2u);
  EXPECT_EQ(chat[0]["token"], "a");
  EXPECT_EQ(chat[0]["logprob"], -0.5);
  EXPECT_EQ(chat[0]["top_logprobs"][0]["token"], "b");
  EXPECT_EQ(chat[1]["bytes"], Json::array({255}));
  EXPECT_FALSE(chat[0].contains("drafted"));
  EXPECT_EQ(chat[1]["drafted"], true);
  EXPECT_THAT(to_bytes(chat), HasSubstr("\xef\xbf\xbd"));
  EXPECT_EQ(chat_writer->part(0, answer.part, {.content = "a"}, {})
                .back()
                .data["choices"][0]["logprobs"]["content"],
            chat);

  const TextRequest text_request = request_of(Dialect::kText, 2);
  const Json text =
      make_reply_writer(text_request, kHead, {""})->whole({answer})["choices"][0]["logprobs"];
  EXPECT_EQ(text["tokens"][0], "a");
  EXPECT_EQ(text["token_logprobs"], Json::array({-0.5, -1}));
  EXPECT_EQ(text["top_logprobs"][0], Json({{"b", -0.25}, {"a", -0.5}}));
  EXPECT_EQ(text["text_offset"], Json::array({0, 1}));
}

TEST(Reply, OfLlamaCppHasItsMembers) {
  TextRequest request = request_of(Dialect::kLlama);
  const Json whole = make_reply_writer(request, kHead, {"p"})->whole({answer_of("a\nb")});
  EXPECT_EQ(whole["content"], "a\nb");
  EXPECT_EQ(whole["stop_type"], "limit");
  EXPECT_EQ(whole["prompt"], "p");
  EXPECT_EQ(whole["has_new_line"], true);
  EXPECT_EQ(whole["tokens"], Json::array());
  request.response_fields = {"content", "timings/predicted_n", "none"};
  EXPECT_EQ(make_reply_writer(request, kHead, {"p"})->whole({answer_of("a")}),
            Json({{"content", "a"}, {"timings/predicted_n", 6}}));
}

TEST(Reply, OfLlamaCppHasAnEventForEachTokenWithProbabilities) {
  TextRequest request = request_of(Dialect::kLlama, 1);
  request.stream = true;
  const auto writer = make_reply_writer(request, kHead, {"p"});
  // A letter of two bytes in two tokens, behind one that was held back.
  const ReplyPart part = {
      .text = "x a\xc3\xa9",
      .tokens = {1, 2, 3},
      .probabilities = {{.token = {1, " a", -1}, .likeliest = {}, .offset = 1},
                        {.token = {2, "\xc3", -1}, .likeliest = {}, .offset = 3},
                        {.token = {3, "\xa9", -1}, .likeliest = {}, .offset = 3}}};
  const Events events = writer->part(0, part, {}, {.completion_tokens = 7});
  ASSERT_EQ(events.size(), 3u);
  std::string text;
  for (int i = 0; i < 3; ++i) {
    const Json& data = events[i].data;
    EXPECT_EQ(data["tokens"], Json::array({i + 1}));
    EXPECT_EQ(data["tokens_predicted"], 5 + i);
    ASSERT_EQ(data["completion_probabilities"].size(), 1u);
    EXPECT_EQ(data["completion_probabilities"][0]["id"], i + 1);
    EXPECT_EQ(data["stop"], false);
    text += data["content"];
    EXPECT_EQ(to_bytes(data["content"]).find("\xef\xbf\xbd"), std::string::npos) << "half a letter";
  }
  EXPECT_EQ(text, part.text);
}

/// The names of the events, in their order.
std::vector<std::string> names_of(const Events& events) {
  std::vector<std::string> names;
  for (const Event& each : events) names.push_back(each.name);
  return names;
}

TEST(Reply, OfAnthropicIsInBlocks) {
  const TextRequest request = request_of(Dialect::kMessages);
  const auto writer = make_reply_writer(request, kHead, {""});
  EXPECT_EQ(names_of(writer->begin({})), std::vector<std::string>{"message_start"});
  EXPECT_EQ(names_of(writer->part(0, {}, {.content = "x", .reasoning = "hm"}, {})),
            (std::vector<std::string>{"content_block_start", "content_block_delta",
                                      "content_block_delta", "content_block_stop",
                                      "content_block_start", "content_block_delta"}));
  FinishedAnswer answer = answer_of("x");
  answer.finish = FinishReason::kStopString;
  answer.stop_string = "END";
  const Events end = writer->end(0, answer, {});
  EXPECT_EQ(names_of(end),
            (std::vector<std::string>{"content_block_stop", "message_delta", "message_stop"}));
  EXPECT_EQ(end[1].data["delta"]["stop_sequence"], "END");
  answer.reply.tool_calls = {{"1", "f", "{\"k\": 1}"}};
  const Json whole = writer->whole({answer});
  EXPECT_EQ(whole["content"][1]["input"]["k"], 1);
  EXPECT_EQ(whole["usage"]["input_tokens"], 6);
}

TEST(Reply, OfResponsesIsInItems) {
  const TextRequest request = request_of(Dialect::kResponses);
  const auto writer = make_reply_writer(request, kHead, {""});
  EXPECT_EQ(names_of(writer->begin({})),
            (std::vector<std::string>{"response.created", "response.in_progress"}));
  const Events part = writer->part(0, {}, {.content = "x"}, {});
  EXPECT_EQ(names_of(part),
            (std::vector<std::string>{"response.output_item.added", "response.content_part.added",
                                      "response.output_text.delta"}));
  FinishedAnswer answer = answer_of("x");
  answer.finish = FinishReason::kEnd;
  const Events end = writer->end(0, answer, {});
  EXPECT_EQ(names_of(end),
            (std::vector<std::string>{"response.output_text.done", "response.content_part.done",
                                      "response.output_item.done", "response.completed"}));
  EXPECT_EQ(end.back().data["response"]["output"][0]["content"][0]["text"], "x");
}

}  // namespace
}  // namespace firp
