#include "serve/server.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <filesystem>
#include <fstream>
#include <future>
#include <optional>
#include <sstream>
#include <thread>

#include "serve/reply.h"
#include "serve/test_client.h"
#include "serve/test_model.h"
#include "serve/test_tls.h"

namespace firp {
namespace {

using testing::HasSubstr;

class ServerTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(std::filesystem::exists(real_model()))
        << real_model() << " is missing: run the tests by `make test`, which fetches it";
  }
  void TearDown() override {
    if (!server_) return;
    server_->stop();
    running_.join();
    server_.reset();
  }

  static ServedModel served(BatchDecoder& decoder) {
    return {decoder, Loaded::get().chat_template,
            DecodeOptions{.method = DraftMethod::kNone, .ngrams = true, .tree_nodes = 8}};
  }

  void start(ServerOptions options = {}, std::function<ServedModel()> load = nullptr) {
    Loaded& loaded = Loaded::get();
    options.port = 0;
    options.model_name = "smol";
    options.max_tokens = INT_MAX;
    if (options.log == LogFormat::kText) options.log = LogFormat::kNone;
    server_.emplace(served(*loaded.decoder), options, std::move(load));
    port_ = server_->bind();
    running_ = std::thread([this] { server_->run(); });
    httplib::Client client(options.listens_at_file() ? options.host : "127.0.0.1", port_);
    if (options.listens_at_file()) client.set_address_family(AF_UNIX);
    // Through TLS it has to begin by itself.
    while (options.ssl_key_file.empty() && !client.Get("/health")) std::this_thread::yield();
  }

  httplib::Result post(const std::string& path, const Json& body) {
    httplib::Client client("127.0.0.1", port_);
    client.set_read_timeout(600);
    return client.Post(path, body.dump(), "application/json");
  }
  Json chat(const std::string& question, Json fields = Json::object()) {
    fields["messages"] = Json::array({{{"role", "user"}, {"content", question}}});
    const httplib::Result result = post("/v1/chat/completions", fields);
    return result ? Json::parse(result->body) : Json();
  }
  static std::string request_of(const std::string& path, const std::string& body) {
    return fmt::format("POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{}", path,
                       body.size(), body);
  }
  static std::string text_of(const Json& reply) {
    return reply.at("choices").at(0).at("message").at("content");
  }

  std::optional<Server> server_;
  std::thread running_;
  int port_ = 0;
};

const std::string kQuestion = "Write a short story about a lighthouse.";

TEST_F(ServerTest, AnswersWithThePlainText) {
  start();
  const Json reply = chat(kQuestion, {{"max_tokens", 40}});
  EXPECT_EQ(text_of(reply), Loaded::get().plain(kQuestion, 40));
  EXPECT_EQ(reply["model"], "smol");
  EXPECT_EQ(reply["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(reply["usage"]["completion_tokens"], 40);
  EXPECT_LE(reply["timings"]["forward_passes"], 40);

  SamplingOptions sampling;
  sampling.temperature = 0.8f;
  sampling.seed = 5;
  const Json fields = {{"max_tokens", 40}, {"temperature", 0.8}, {"seed", 5}};
  EXPECT_EQ(text_of(chat(kQuestion, fields)), Loaded::get().plain(kQuestion, 40, sampling));
}

TEST_F(ServerTest, FindsTheTextsThatBreakRepetitions) {
  start();
  SamplingOptions sampling;
  sampling.dry = {.multiplier = 2, .allowed_length = 0, .penalty_last_n = -1};
  sampling.dry.sequence_breakers = {" the", "."};
  const std::string without = Loaded::get().plain(kQuestion, 40, sampling);
  sampling.dry.texts = token_texts(Loaded::get().vocabulary);
  const std::string with = Loaded::get().plain(kQuestion, 40, sampling);
  EXPECT_NE(with, without) << "breakers should have a say";
  const Json fields = {{"max_tokens", 40},
                       {"dry_multiplier", 2},
                       {"dry_allowed_length", 0},
                       {"dry_penalty_last_n", -1},
                       {"dry_sequence_breakers", {" the", "."}}};
  EXPECT_EQ(text_of(chat(kQuestion, fields)), with);
}

TEST_F(ServerTest, StreamsTheSameTextInEvents) {
  start();
  const std::string whole = text_of(chat(kQuestion, {{"max_tokens", 40}}));
  const httplib::Result result =
      post("/v1/chat/completions",
           {{"messages", Json::array({{{"role", "user"}, {"content", kQuestion}}})},
            {"max_tokens", 40},
            {"stream", true},
            {"stream_options", {{"include_usage", true}}}});
  ASSERT_TRUE(result);
  EXPECT_THAT(result->get_header_value("Content-Type"), HasSubstr("text/event-stream"));
  std::string text, finish, last;
  int usages = 0;
  for (std::size_t at = 0, end; (end = result->body.find("\n\n", at)) != std::string::npos;
       at = end + 2) {
    const std::string event = result->body.substr(at, end - at);
    ASSERT_TRUE(event.starts_with("data: ")) << event;
    last = event.substr(6);
    if (last == "[DONE]") continue;
    const Json chunk = Json::parse(last);
    usages += static_cast<int>(chunk.contains("usage"));
    if (chunk["choices"].empty()) continue;
    const Json& choice = chunk["choices"][0];
    const Json& content = choice["delta"].value("content", Json());
    if (content.is_string()) text += content.get<std::string>();
    if (!choice["finish_reason"].is_null()) finish = choice["finish_reason"];
  }
  EXPECT_EQ(text, whole);
  EXPECT_EQ(finish, "length");
  EXPECT_EQ(last, "[DONE]");
  EXPECT_EQ(usages, 1);
}

TEST_F(ServerTest, TellsTokensAndTextsOfThem) {
  start();
  const auto tokens_of = [&](const Json& body) {
    return Json::parse(post("/tokenize", body)->body)["tokens"];
  };
  const std::string text = "A lighthouse \u2014 at sea.";
  const Json tokens = tokens_of({{"content", text}});
  EXPECT_GT(tokens.size(), 4u);
  EXPECT_EQ(Json::parse(post("/detokenize", {{"tokens", tokens}})->body)["content"], text);
  const Json pieces = tokens_of({{"content", text}, {"with_pieces", true}});
  EXPECT_EQ(pieces[0]["id"], tokens[0]);
  EXPECT_EQ(pieces[0]["piece"], "A");
  EXPECT_EQ(tokens_of({{"content", "<|im_end|>"}}).size(), 1u);
  EXPECT_GT(tokens_of({{"content", "<|im_end|>"}, {"parse_special", false}}).size(), 1u);
  EXPECT_EQ(tokens_of({{"content", ""}}), Json::array());
  for (const auto& [path, body] : {std::pair{"/tokenize", Json::object()},
                                   {"/tokenize", Json({{"content", 3}})},
                                   {"/tokenize", Json({{"content", std::string(4 << 20, 'a')}})},
                                   {"/detokenize", Json::object()},
                                   {"/detokenize", Json({{"tokens", "a"}})},
                                   {"/detokenize", Json({{"tokens", {1000000}}})},
                                   {"/detokenize", Json({{"tokens", {-1}}})}}) {
    EXPECT_EQ(post(path, body)->status, 400) << path;
  }
}

TEST_F(ServerTest, TellsTheProbabilitiesOfWhatItWrites) {
  start();
  const Json fields = {{"max_tokens", 24}, {"logprobs", true}, {"top_logprobs", 3}};
  const Json reply = chat(kQuestion, fields);
  std::string text;
  for (const Json& token : reply["choices"][0]["logprobs"]["content"]) {
    text += token["token"].get<std::string>();
    ASSERT_EQ(token["top_logprobs"].size(), 3u);
    EXPECT_EQ(token["top_logprobs"][0]["token"], token["token"]) << "greedy";
    EXPECT_EQ(token["top_logprobs"][0]["logprob"], token["logprob"]);
    EXPECT_LE(token["top_logprobs"][1]["logprob"], token["logprob"]);
    EXPECT_LE(token["logprob"], 0);
  }
  EXPECT_EQ(text, text_of(reply));
  EXPECT_EQ(reply["choices"][0]["logprobs"]["content"].size(), 24u);

  // Those that were drafted are told; where the last pass is cut, its own token does not count.
  int drafted = 0;
  for (const Json& token : reply["choices"][0]["logprobs"]["content"]) {
    drafted += static_cast<int>(token.value("drafted", false));
  }
  const int accepted = reply["timings"]["draft_n_accepted"];
  EXPECT_GE(drafted, accepted);
  EXPECT_LE(drafted, accepted + 1);

  // A stream tells the same.
  Json body = {{"messages", Json::array({{{"role", "user"}, {"content", kQuestion}}})},
               {"stream", true}};
  body.update(fields);
  const httplib::Result result = post("/v1/chat/completions", body);
  ASSERT_TRUE(result);
  Json all = Json::array();
  for (std::size_t at = 0, end; (end = result->body.find("\n\n", at)) != std::string::npos;
       at = end + 2) {
    const std::string event = result->body.substr(at + 6, end - at - 6);
    if (event == "[DONE]") continue;
    const Json choice = Json::parse(event)["choices"][0];
    if (choice.contains("logprobs")) {
      for (const Json& token : choice["logprobs"]["content"]) all.push_back(token);
    }
  }
  EXPECT_EQ(all, reply["choices"][0]["logprobs"]["content"]);
}

/// What programs that score texts ask for: the prompt is run, whatever is held of it.
TEST_F(ServerTest, TellsTheProbabilitiesOfAPromptThatItRepeats) {
  start();
  std::string words = "These are";
  for (int i = 0; i < 280; ++i) words += i % 7 == 0 ? " stones" : " and";
  const auto logprobs_of = [&](Json body) {
    body.update({{"logprobs", 2}});
    const Json choice = Json::parse(post("/v1/completions", body)->body)["choices"][0];
    Json told = choice["logprobs"];
    told["text"] = choice["text"];
    return told;
  };
  const Json tokens = Json::parse(post("/tokenize", {{"content", words}})->body)["tokens"];
  ASSERT_GT(tokens.size(), 256u) << "more than a pass reads";
  const Json written = logprobs_of({{"prompt", tokens}, {"max_tokens", 6}});
  Json all = tokens;
  for (const Json& token : written["content"]) all.push_back(token["id"]);
  for (const int max_tokens : {0, 1, 0}) {
    const Json told = logprobs_of({{"prompt", all}, {"max_tokens", max_tokens}, {"echo", true}});
    ASSERT_EQ(told["tokens"].size(), all.size() + max_tokens);
    EXPECT_TRUE(told["token_logprobs"][0].is_null()) << "nothing is before it";
    EXPECT_TRUE(told["top_logprobs"][0].is_null());
    std::string text;
    for (std::size_t i = 0; i < told["tokens"].size(); ++i) {
      EXPECT_EQ(told["text_offset"][i], text.size());
      text += told["tokens"][i].get<std::string>();
      if (i == 0) continue;
      EXPECT_LE(told["token_logprobs"][i], 0);
      EXPECT_EQ(told["top_logprobs"][i].size(), 2u);
    }
    EXPECT_EQ(text, told["text"]);
    for (std::size_t i = 0; i < written["tokens"].size(); ++i) {
      const std::size_t at = tokens.size() + i;
      EXPECT_EQ(told["tokens"][at], written["tokens"][i]);
      EXPECT_NEAR(told["token_logprobs"][at].get<float>(),
                  written["token_logprobs"][i].get<float>(), 1e-5);
      EXPECT_EQ(told["top_logprobs"][at].begin().key(), written["tokens"][i]) << "greedy";
    }
  }
  // The end has no text, but is one of the tokens: who scores leaves out the last one.
  const Json ends = {{"prompt", "Hi"},
                     {"max_tokens", 1},
                     {"echo", true},
                     {"logit_bias", {{Loaded::get().vocabulary.end_tokens().front(), 100}}}};
  const Json told = logprobs_of(ends);
  EXPECT_EQ(told["text"], "Hi");
  ASSERT_EQ(told["tokens"].size(), 2u);
  EXPECT_EQ(told["text_offset"], Json({0, 2}));
  for (const Json& more : {Json({{"stream", true}}), Json({{"logprobs", 6}})}) {
    Json body = {{"prompt", "a"}, {"echo", true}, {"logprobs", 1}};
    body.update(more);
    EXPECT_EQ(post("/v1/completions", body)->status, 400) << more;
  }
}

/// The law, for requests: an answer does not depend on what else is answered, nor on what was.
TEST_F(ServerTest, AnswersSeveralAtOnceAsIfEachWereAlone) {
  start({.parallel = 2});
  const std::vector<std::string> questions = {kQuestion, "Name three colours.",
                                              "What is the capital of France?", kQuestion};
  std::vector<std::future<std::string>> answers;
  for (std::size_t i = 0; i < questions.size(); ++i) {
    answers.push_back(std::async(std::launch::async, [&, i] {
      Json fields = {{"max_tokens", 32}};
      if (i % 2 == 1) fields.update({{"temperature", 0.9}, {"seed", 3}});
      return text_of(chat(questions[i], fields));
    }));
  }
  std::vector<std::string> texts;
  for (std::future<std::string>& answer : answers) texts.push_back(answer.get());
  SamplingOptions sampling;
  sampling.temperature = 0.9f;
  sampling.seed = 3;
  for (std::size_t i = 0; i < questions.size(); ++i) {
    EXPECT_EQ(texts[i],
              Loaded::get().plain(questions[i], 32, i % 2 == 1 ? sampling : SamplingOptions()))
        << questions[i];
  }
}

TEST_F(ServerTest, DoesNotReadAgainWhatAnotherRequestHasRead) {
  start({.parallel = 2});
  const std::string question = "Which of the seven seas did nobody but this test ask about?";
  const Json first = chat(question, {{"max_tokens", 24}});
  EXPECT_LT(first["usage"]["prompt_tokens_details"]["cached_tokens"].get<int>(),
            first["usage"]["prompt_tokens"].get<int>() - 10)
      << "no more than what all chats begin with";
  const Json again = chat(question, {{"max_tokens", 24}});
  EXPECT_EQ(again["usage"]["prompt_tokens_details"]["cached_tokens"],
            again["usage"]["prompt_tokens"].get<int>() - 1);
  EXPECT_EQ(text_of(again), text_of(first));
  // The conversation goes on, another one between its turns.
  chat("Name three colours.", {{"max_tokens", 4}});
  const Json third = Json::parse(
      post("/v1/chat/completions",
           {{"messages", Json::array({{{"role", "user"}, {"content", question}},
                                      {{"role", "assistant"}, {"content", text_of(first)}},
                                      {{"role", "user"}, {"content", "Go on."}}})},
            {"max_tokens", 4}})
          ->body);
  EXPECT_GE(third["usage"]["prompt_tokens_details"]["cached_tokens"],
            first["usage"]["prompt_tokens"].get<int>() + 20);
}

TEST_F(ServerTest, EndsAtStopStrings) {
  start();
  const std::string whole = Loaded::get().plain(kQuestion, 40);
  const std::string stop = whole.substr(whole.size() / 2, 5);
  const Json reply = chat(kQuestion, {{"max_tokens", 40}, {"stop", stop}});
  EXPECT_EQ(text_of(reply), whole.substr(0, whole.find(stop)));
  EXPECT_EQ(reply["choices"][0]["finish_reason"], "stop");
  const Json hello = chat("Hi");
  EXPECT_THAT(text_of(hello), HasSubstr("Hello"));
  EXPECT_EQ(hello["choices"][0]["finish_reason"], "stop") << "the model's own end";
}

TEST_F(ServerTest, ContinuesText) {
  start();
  const httplib::Result result =
      post("/v1/completions", {{"prompt", "The capital of France is"}, {"max_tokens", 4}});
  ASSERT_TRUE(result);
  const Json reply = Json::parse(result->body);
  EXPECT_EQ(reply["object"], "text_completion");
  EXPECT_THAT(reply["choices"][0]["text"].get<std::string>(), HasSubstr("Paris"));
}

TEST_F(ServerTest, RefusesWithAMessage) {
  start();
  std::string endless;
  for (int i = 0; i < 600; ++i) endless += " word";
  const std::pair<httplib::Result, int> results[] = {
      {post("/v1/chat/completions", Json::object()), 400},
      {post("/v1/completions", {{"prompt", endless}}), 400},
      {post("/v1/completions", {{"prompt", "a"}, {"temperature", "x"}}), 400},
      {post("/v1/nothing", Json::object()), 404},
  };
  for (const auto& [result, status] : results) {
    ASSERT_TRUE(result);
    EXPECT_EQ(result->status, status) << result->body;
    EXPECT_FALSE(Json::parse(result->body)["error"]["message"].get<std::string>().empty());
  }
  EXPECT_THAT(results[1].first->body, HasSubstr("context length is 512"));
  EXPECT_EQ(text_of(chat("Hi", {{"max_tokens", 3}})), Loaded::get().plain("Hi", 3))
      << "it goes on after errors";
}

TEST_F(ServerTest, FillsTheContextAndStops) {
  start();
  std::string prompt;
  for (int i = 0; i < 480; ++i) prompt += " word";
  const Json reply = Json::parse(post("/v1/completions", {{"prompt", prompt}})->body);
  EXPECT_LE(reply["usage"]["total_tokens"], 512);
  if (reply["choices"][0]["finish_reason"] == "length") {
    EXPECT_EQ(reply["usage"]["total_tokens"], 512);
  }
}

TEST_F(ServerTest, LetsItsPageRunNothingElse) {
  start();
  httplib::Client client("127.0.0.1", port_);
  const httplib::Result page = client.Get("/");
  const std::string rules = page->get_header_value("Content-Security-Policy");
  EXPECT_THAT(rules, HasSubstr("default-src 'none'; script-src 'self'"));
  EXPECT_THAT(rules, Not(HasSubstr("unsafe")));
  EXPECT_EQ(page->body.find("<script>"), std::string::npos) << "which the rules would not run";
  EXPECT_EQ(client.Get("/page.js")->get_header_value("Content-Type"),
            "text/javascript; charset=utf-8");
  EXPECT_EQ(client.Get("/page.css")->get_header_value("Content-Type"), "text/css; charset=utf-8");
}

TEST_F(ServerTest, AsksForItsKey) {
  start({.api_keys = {"other", "sec%41ret"}});
  httplib::Client client("127.0.0.1", port_);
  EXPECT_EQ(client.Get("/health")->status, 200);
  EXPECT_THAT(client.Get("/")->body, HasSubstr("</html>"));
  EXPECT_THAT(client.Get("/page.js")->body, HasSubstr("v1/chat/completions"));
  EXPECT_THAT(client.Get("/page.css")->body, HasSubstr("color-scheme"));
  EXPECT_EQ(client.Get("/v1/models")->status, 401);
  const auto models_with = [&](const std::string& key) {
    return client.Get("/v1/models", httplib::Headers{{"Authorization", key}});
  };
  EXPECT_EQ(models_with("Bearer wrong")->status, 401);
  EXPECT_EQ(models_with("bearer sec%41ret")->status, 200) << "as it is, in any case of 'Bearer'";
  const httplib::Result models = models_with("Bearer sec%41ret");
  EXPECT_EQ(models->status, 200);
  EXPECT_EQ(Json::parse(models->body)["data"][0]["id"], "smol");
}

/// Nothing is computed for who has gone: while an answer is written, whole or as a stream, while a
/// prompt is read, and in the queue. Others would wait for minutes else.
TEST_F(ServerTest, EndsTheWorkOfClientsWhoLeave) {
  const std::string expected = Loaded::get().plain("Hi", 3);  // before the server has the engine
  std::string long_prompt;
  for (int i = 0; i < 480; ++i) long_prompt += " word";
  const Json bodies[] = {{{"prompt", "1, 2, 3, 4, 5,"}},
                         {{"prompt", "1, 2, 3, 4, 5,"}, {"stream", true}},
                         {{"prompt", long_prompt}, {"stream", true}},
                         {{"prompt", "1, 2, 3, 4, 5,"}, {"max_tokens", 400}}};
  start({.parallel = 1});
  std::vector<RawClient> clients;
  for (const Json& body : bodies) {
    clients.emplace_back(port_);
    clients.back().send(request_of("/v1/completions", body.dump()));
  }
  clients[1].receive("data:", 200);  // some of them have begun by then
  clients.clear();
  EXPECT_EQ(text_of(chat("Hi", {{"max_tokens", 3}})), expected);
  const Json again = chat("Hi", {{"max_tokens", 3}});
  EXPECT_EQ(text_of(again), expected) << "and nothing is left of them";
}

/// Each as much as is free: a lone answer may fill the context, several share it, and who finds no
/// room waits.
TEST_F(ServerTest, SharesTheContextAmongItsAnswers) {
  const std::string long_question = "Repeat this: " + [] {
    std::string words;
    for (int i = 0; i < 180; ++i) words += fmt::format("w{} ", i % 10);
    return words;
  }();
  const std::string expected = Loaded::get().plain(long_question, 100);
  start({.parallel = 4});
  std::vector<std::future<Json>> answers;
  for (int i = 0; i < 4; ++i) {
    answers.push_back(std::async(std::launch::async, [&] {
      return chat(long_question, {{"max_tokens", 100}});
    }));
  }
  for (std::future<Json>& each : answers) {
    const Json answer = each.get();
    ASSERT_TRUE(answer.contains("choices")) << answer;
    EXPECT_EQ(text_of(answer), expected);
  }
}

TEST_F(ServerTest, TakesCurlsBodiesOfAnySize) {
  start();
  std::string words;
  for (int i = 0; i < 400; ++i) words += "word ";
  const std::string body =
      Json({{"prompt", words}, {"max_tokens", 1}, {"user", std::string(20000, 'u')}}).dump();
  httplib::Client client("127.0.0.1", port_);
  client.set_read_timeout(600);
  const httplib::Result result =
      client.Post("/v1/completions", body, "application/x-www-form-urlencoded");
  ASSERT_TRUE(result);
  EXPECT_EQ(result->status, 200) << result->body;
}

TEST_F(ServerTest, BoundsWhatComesIn) {
  start();
  const auto status_of = [&](const std::string& request) {
    const RawClient client(port_);
    client.send(request);
    const std::string reply = client.receive("\r\n");
    return reply.substr(0, std::string("HTTP/1.1 400").size());
  };
  const std::string head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n";
  EXPECT_EQ(status_of(head + "Content-Length: 33554433\r\n\r\n"), "HTTP/1.1 413");
  EXPECT_EQ(status_of(head + "Content-Length: 99999999999999999999\r\n\r\n"), "HTTP/1.1 413");
  EXPECT_EQ(status_of(head + "Content-Length: -1\r\n\r\n"), "HTTP/1.1 400");
  std::string chunks = head + "Transfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 33; ++i) chunks += "100000\r\n" + std::string(1 << 20, ' ') + "\r\n";
  EXPECT_EQ(status_of(chunks + "0\r\n\r\n"), "HTTP/1.1 413");
  EXPECT_EQ(status_of(head + "Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n" +
                      std::string(20, 'x')),
            "HTTP/1.1 415");
  EXPECT_EQ(status_of(head + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), "HTTP/1.1 415");
  EXPECT_EQ(status_of(head + "Host: localhost\r\nContent-Length: 0\r\n\r\n"), "HTTP/1.1 400");
  EXPECT_EQ(status_of(head + "Content-Type: multipart/form-data; boundary=x\r\n"
                             "Content-Length: 3\r\n\r\nabc"),
            "HTTP/1.1 415");
  EXPECT_EQ(status_of("GET /health HTTP/1.1\r\nX: " + std::string(20000, 'x') + "\r\n\r\n"),
            "HTTP/1.1 400");
  std::string headers = "GET /health HTTP/1.1\r\n";
  for (int i = 0; i < 20; ++i) headers += "X: " + std::string(5000, 'x') + "\r\n";
  EXPECT_EQ(status_of(headers + "\r\n"), "HTTP/1.1 431");
}

/// What clients know an error by.
TEST_F(ServerTest, ErrorsHaveTheCodesThatClientsKnow) {
  start();
  std::string endless;
  for (int i = 0; i < 600; ++i) endless += " word";
  const Json full = chat(endless)["error"];
  EXPECT_EQ(full["code"], "context_length_exceeded");
  EXPECT_EQ(full["type"], "exceed_context_size_error");
  EXPECT_THAT(full["message"].get<std::string>(),
              HasSubstr("model's maximum context length is 512 tokens"));
  EXPECT_EQ(full["n_ctx"], 512);
  EXPECT_GT(full["n_prompt_tokens"], 600);

  httplib::Client client("127.0.0.1", port_);
  const auto error_of = [](const httplib::Result& result) {
    return fmt::format("{} {}", result->status,
                       Json::parse(result->body)["error"]["code"].get<std::string>());
  };
  EXPECT_EQ(error_of(client.Get("/v1/nothing")), "404 unknown_url");
  const httplib::Result wrong = client.Get("/v1/completions");
  EXPECT_EQ(error_of(wrong), "405 method_not_supported");
  EXPECT_THAT(wrong->get_header_value("Allow"), HasSubstr("POST"));
  EXPECT_EQ(error_of(client.Delete("/health")), "405 method_not_supported");
  EXPECT_EQ(error_of(post("/v1/completions", {{"prompt", "a"}, {"suffix", "b"}})),
            "400 unsupported_parameter");
  EXPECT_EQ(
      error_of(post("/v1/completions", {{"prompt", "a"}, {"response_format", {{"type", 1}}}})),
      "400 invalid_value");
  EXPECT_EQ(error_of(post("/v1/completions", {{"prompt", "a"}, {"grammar", "root ::= ("}})),
            "400 invalid_value");
  for (const char* const path : {"/v1/embeddings", "/embeddings", "/embedding", "/v1/rerank"}) {
    EXPECT_EQ(error_of(post(path, {{"input", "a"}})), "501 not_supported");
  }
  EXPECT_EQ(error_of(client.Get("/metrics")), "501 not_supported");
  EXPECT_EQ(Json::parse(post("/v1/messages", Json::object())->body)["error"]["type"],
            "invalid_request_error");
}

/// OpenAI's form and llama.cpp's own, alone and beside an answer that is written.
TEST_F(ServerTest, MakesTheSameEmbeddingsAloneAndBesideAChat) {
  start({.embeddings = EmbeddingOptions()});
  std::string longer;
  for (int i = 0; i < 60; ++i) longer += fmt::format(" word {}", i);
  const std::vector<std::string> texts = {"Hello world", longer, "a", "b", longer, "c"};
  const auto embeddings = [&](const Json& input) {
    return Json::parse(post("/v1/embeddings", {{"input", input}})->body);
  };
  const Json together = embeddings(texts);
  ASSERT_EQ(together["data"].size(), texts.size());
  const std::size_t size = Loaded::get().engine->config().hidden_size;
  int tokens = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const Json alone = embeddings(texts[i]);
    EXPECT_EQ(alone["data"][0]["embedding"].size(), size);
    EXPECT_EQ(alone["data"][0]["embedding"], together["data"][i]["embedding"]) << i;
    EXPECT_EQ(together["data"][i]["index"], i);
    tokens += alone["usage"]["prompt_tokens"].get<int>();
  }
  EXPECT_NE(together["data"][0]["embedding"], together["data"][2]["embedding"]);
  EXPECT_EQ(together["usage"]["total_tokens"], tokens);
  const Json own = Json::parse(post("/embedding", {{"content", texts[0]}})->body);
  EXPECT_EQ(own[0]["embedding"][0], together["data"][0]["embedding"]);

  // The same text is read as a prompt, too: what a chat holds does not change what is pooled.
  std::atomic<bool> ended = false;
  std::future<Json> answer = std::async(std::launch::async, [&] {
    Json reply = chat(longer, {{"max_tokens", 60}});
    ended = true;
    return reply;
  });
  int asked = 0;
  for (; asked == 0 || !ended; ++asked) {
    EXPECT_EQ(embeddings(texts)["data"], together["data"]);
  }
  EXPECT_EQ(text_of(answer.get()), Loaded::get().plain(longer, 60));
}

TEST_F(ServerTest, SaysWhatIsWrongWithATextToEmbed) {
  start({.embeddings = EmbeddingOptions()});
  const auto error_of = [&](const std::string& path, const Json& body) {
    const httplib::Result result = post(path, body);
    const Json error = Json::parse(result->body)["error"];
    return fmt::format("{} {} {}", result->status, error["code"].get<std::string>(),
                       error["message"].get<std::string>());
  };
  std::string large;
  for (int i = 0; i < 600; ++i) large += " word";
  EXPECT_THAT(error_of("/v1/embeddings", {{"input", {"a", large}}}),
              testing::StartsWith("400 context_length_exceeded a text of 600 tokens is too large"));
  EXPECT_THAT(error_of("/v1/embeddings", {{"input", {"a", ""}}}),
              testing::StartsWith("400 invalid_value a text of 'input' is empty"));
  EXPECT_THAT(error_of("/embeddings", {{"content", Json::array()}}),
              testing::StartsWith("400 invalid_value a text of 'content' is empty"));
  // All positions of the context may be the text's: nothing is written.
  const std::vector<Token> whole(512, 5);
  EXPECT_EQ(post("/v1/embeddings", {{"input", whole}})->status, 200);
}

TEST_F(ServerTest, GivesAVectorForEachTokenWithoutPooling) {
  start({.embeddings = EmbeddingOptions{.pooling = Pooling::kNone, .norm = -1}});
  const Json vectors = Json::parse(post("/embeddings", {{"input", {7, 8, 9}}})->body);
  ASSERT_EQ(vectors[0]["embedding"].size(), 3u);
  // What comes later changes nothing of what is before.
  const Json shorter = Json::parse(post("/embeddings", {{"input", {7, 8}}})->body);
  EXPECT_EQ(vectors[0]["embedding"][1], shorter[0]["embedding"][1]);
  const httplib::Result refused = post("/v1/embeddings", {{"input", {7, 8, 9}}});
  EXPECT_EQ(refused->status, 400);
  EXPECT_THAT(refused->body, HasSubstr("ask /embeddings"));
  std::vector<std::vector<Token>> many(20, std::vector<Token>(500, 7));
  EXPECT_EQ(post("/embeddings", {{"input", many}})->status, 413);
}

/// The text under a grammar is that of plain decoding under it, greedy and sampled; ours alone has
/// drafts there.
TEST_F(ServerTest, FollowsSchemasWithAndWithoutDraftsAlike) {
  Loaded& loaded = Loaded::get();
  const Json schema = {{"type", "object"},
                       {"properties",
                        {{"name", {{"type", "string"}, {"maxLength", 12}}},
                         {"favourite_colour", {{"enum", {"red", "green", "blue"}}}},
                         {"age", {{"type", "integer"}}}}},
                       {"required", {"name", "favourite_colour", "age"}}};
  const std::string question = "Describe a sailor as JSON.";
  for (const float temperature : {0.0f, 1.0f}) {
    SamplingOptions sampling;
    sampling.temperature = temperature;
    sampling.seed = 7;
    const WrittenChat chat = loaded.chat_template.write(
        {.messages = Json::array({{{"role", "user"}, {"content", question}}}),
         .json_schema = schema.dump()});
    Session plain(loaded.plain_decoder(),
                  {.sampling = sampling,
                   .grammar = std::make_shared<const Grammar>(loaded.vocabulary, chat.grammar),
                   .method = DraftMethod::kNone});
    plain.append(loaded.vocabulary.tokenize(chat.prompt, /*add_bos=*/true));
    std::string expected;
    generate(
        plain, 80, [&](Token token) { return loaded.vocabulary.is_end_of_generation(token); },
        [&](const DecodedToken& token) {
          expected += loaded.vocabulary.piece(token.token);
          return true;
        });
    // The model may put it into a block of code, which the reader takes off.
    expected = chat.reader.read(expected, /*complete=*/true).content;
    const Json parsed = Json::parse(expected);
    EXPECT_TRUE(parsed["age"].is_number_integer()) << expected;
    if (!server_) start();
    const Json reply = this->chat(
        question,
        {{"max_tokens", 80},
         {"temperature", temperature},
         {"seed", 7},
         {"response_format", {{"type", "json_schema"}, {"json_schema", {{"schema", schema}}}}}});
    EXPECT_EQ(text_of(reply), expected);
    EXPECT_GT(reply["timings"]["draft_n_accepted"], 0) << "what the grammar forces is drafted";
    TearDown();
  }
}

TEST_F(ServerTest, GivesSeveralAnswersAndContinuesTokens) {
  start();
  const Json reply =
      chat(kQuestion, {{"max_tokens", 8}, {"n", 3}, {"temperature", 1}, {"seed", 1}});
  ASSERT_EQ(reply["choices"].size(), 3u);
  EXPECT_EQ(reply["choices"][2]["index"], 2);
  EXPECT_NE(reply["choices"][0]["message"]["content"], reply["choices"][1]["message"]["content"]);
  EXPECT_EQ(reply["usage"]["completion_tokens"], 24);
  const std::string text = "The capital of France is";
  const Json tokens = Json::parse(post("/tokenize", {{"content", text}})->body)["tokens"];
  const Json both = Json::parse(
      post("/v1/completions", {{"prompt", Json::array({tokens, text})}, {"max_tokens", 4}})->body);
  ASSERT_EQ(both["choices"].size(), 2u);
  EXPECT_EQ(both["choices"][0]["text"], both["choices"][1]["text"]);
  const Json echo = Json::parse(
      post("/v1/completions", {{"prompt", text}, {"max_tokens", 4}, {"echo", true}})->body);
  EXPECT_EQ(echo["choices"][0]["text"], text + both["choices"][0]["text"].get<std::string>());
  const Json native = Json::parse(post("/completion", {{"prompt", text}, {"n_predict", 4}})->body);
  EXPECT_EQ(native["content"], both["choices"][0]["text"]);
  EXPECT_EQ(native["stop_type"], "limit");
  const Json least = chat("Hi", {{"min_tokens", 30}, {"max_tokens", 40}});
  EXPECT_GE(least["usage"]["completion_tokens"], 30);
}

TEST_F(ServerTest, SpeaksAnthropicsAndOpenAIsOtherForms) {
  start();
  const std::string expected = Loaded::get().plain("Name three colours.", 12);
  const Json messages = {
      {"messages", Json::array({{{"role", "user"}, {"content", "Name three colours."}}})},
      {"max_tokens", 12}};
  const Json message = Json::parse(post("/v1/messages", messages)->body);
  EXPECT_EQ(message["content"][0]["text"], expected);
  const Json counted = Json::parse(post("/v1/messages/count_tokens", messages)->body);
  EXPECT_EQ(counted["input_tokens"], message["usage"]["input_tokens"].get<int>() +
                                         message["usage"]["cache_read_input_tokens"].get<int>());
  const Json response = Json::parse(
      post("/v1/responses", {{"input", "Name three colours."}, {"max_output_tokens", 12}})->body);
  EXPECT_EQ(response["output"][0]["content"][0]["text"], expected);
  const Json prompt = Json::parse(post("/apply-template", messages)->body);
  EXPECT_THAT(prompt["prompt"].get<std::string>(), HasSubstr("Name three colours."));
}

TEST_F(ServerTest, FollowsAGrammarOfTheRequestsOwn) {
  start();
  const Json fields = {{"max_tokens", 8}, {"grammar", R"(root ::= "a"{5})"}};
  const Json reply = chat(kQuestion, fields);
  EXPECT_EQ(text_of(reply), "aaaaa");
  EXPECT_EQ(reply["choices"][0]["finish_reason"], "stop");
  const Json wrong = chat(kQuestion, {{"grammar", "root ::= this is (no GBNF"}});
  EXPECT_EQ(wrong["error"]["param"], "grammar");
}

TEST_F(ServerTest, GivesTheBestOfWhatItTries) {
  start();
  Json fields = {
      {"prompt", "The keeper"}, {"max_tokens", 12}, {"temperature", 1.2}, {"seed", 3}, {"n", 4},
      {"logprobs", 0}};
  const auto mean_of = [](const Json& choice) {
    double sum = 0;
    for (const Json& each : choice["logprobs"]["token_logprobs"]) sum += each.get<double>();
    return sum / choice["logprobs"]["token_logprobs"].size();
  };
  const Json all = Json::parse(post("/v1/completions", fields)->body)["choices"];
  ASSERT_EQ(all.size(), 4u);
  const auto best = std::ranges::max_element(all, {}, mean_of);
  fields["n"] = 1;
  fields["best_of"] = 4;
  const Json given = Json::parse(post("/v1/completions", fields)->body)["choices"];
  ASSERT_EQ(given.size(), 1u);
  EXPECT_EQ(given[0]["text"], (*best)["text"]);
  fields.erase("logprobs");
  EXPECT_TRUE(
      Json::parse(post("/v1/completions", fields)->body)["choices"][0]["logprobs"].is_null());
}

TEST_F(ServerTest, TellsHowFarAPromptIsRead) {
  start();
  const Json body = {{"prompt", "Once upon a time there was a lighthouse"},
                     {"n_predict", 2},
                     {"stream", true},
                     {"return_progress", true},
                     {"timings_per_token", true}};
  for (const bool held : {false, true}) {
    const httplib::Result result = post("/completion", body);
    ASSERT_TRUE(result);
    std::vector<Json> events;
    for (std::size_t at = 0, end; (end = result->body.find("\n\n", at)) != std::string::npos;
         at = end + 2) {
      const Json event = Json::parse(result->body.substr(at + 6, end - at - 6));
      if (event.contains("prompt_progress")) events.push_back(event);
    }
    ASSERT_GE(events.size(), 2u);
    const Json& first = events.front()["prompt_progress"];
    EXPECT_EQ(first["processed"], first["cache"]);
    EXPECT_EQ(events.front()["timings"]["prompt_n"], 0);
    EXPECT_EQ(first["cache"] > 0, held);
    const Json& last = events.back()["prompt_progress"];
    EXPECT_EQ(last["processed"], last["total"]);
    EXPECT_GT(events.back()["timings"]["prompt_n"], 0);
  }
}

TEST_F(ServerTest, TakesItsSeedAndBiasesInWords) {
  start({.seed = 9});
  const auto complete = [&](Json fields) {
    if (!fields.contains("prompt")) fields["prompt"] = "The keeper of the lighthouse";
    fields["n_predict"] = 20;
    const httplib::Result result = post("/completion", fields);
    return result ? Json::parse(result->body) : Json();
  };
  const Json first = complete({{"temperature", 1}});
  EXPECT_EQ(first["generation_settings"]["seed"], 9);
  EXPECT_EQ(first["content"], complete({{"temperature", 1}})["content"]);
  EXPECT_NE(complete({{"temperature", 1}, {"seed", -1}})["generation_settings"]["seed"], 9);

  const std::string text = complete(Json::object())["content"];
  ASSERT_THAT(text, HasSubstr(" the"));
  const Json biased = complete({{"logit_bias", {{" the", false}}}});
  EXPECT_THAT(std::string(biased["content"]), Not(HasSubstr(" the ")));
  EXPECT_TRUE(biased["generation_settings"]["logit_bias"][0]["bias"].is_null());

  const Json sampled =
      complete({{"temperature", 1}, {"n_probs", 5}, {"post_sampling_probs", true}});
  for (const Json& token : sampled.at("completion_probabilities")) {
    double sum = 0;
    for (const Json& each : token.at("top_probs")) sum += each.at("prob").get<double>();
    EXPECT_GT(token.at("prob"), 0);
    EXPECT_LE(sum, 1.0001);
  }
  const Json object = complete({{"prompt", {{"prompt_string", "Once"}}}});
  EXPECT_TRUE(object["content"].is_string());
}

TEST_F(ServerTest, TellsWhatItDoes) {
  start({.tells_metrics = true});
  chat("Hi", {{"max_tokens", 5}});
  httplib::Client client("127.0.0.1", port_);
  const std::string metrics = client.Get("/metrics")->body;
  EXPECT_THAT(metrics, HasSubstr("llamacpp:tokens_predicted_total 5\n"));
  EXPECT_THAT(metrics, testing::ContainsRegex("\nprocess_resident_memory_bytes [1-9]"));
  EXPECT_THAT(metrics, testing::ContainsRegex("\nfirp:free_positions [1-9]"));
  const Json slots = Json::parse(client.Get("/slots")->body);
  ASSERT_EQ(slots.size(), 4u);
  EXPECT_EQ(slots[0]["is_processing"], false);
  const Json props = Json::parse(client.Get("/props")->body);
  EXPECT_EQ(props["total_slots"], 4);
  EXPECT_THAT(props["chat_template"].get<std::string>(), HasSubstr("im_start"));
}

TEST_F(ServerTest, PagesOfOtherOriginsCannotUseIt) {
  start();
  httplib::Client client("127.0.0.1", port_);
  const auto ask = [&](const std::string& origin, const std::string& host) {
    return client.Post("/v1/completions", httplib::Headers{{"Origin", origin}, {"Host", host}},
                       R"({"prompt": "a", "max_tokens": 1})", "text/plain");
  };
  EXPECT_EQ(ask("https://evil.example", "localhost")->status, 403);
  EXPECT_EQ(ask("http://localhost:3000", "evil.example:8080")->status, 403);
  const httplib::Result allowed = ask("http://localhost:3000", "127.0.0.1");
  EXPECT_EQ(allowed->status, 200);
  EXPECT_EQ(allowed->get_header_value("Access-Control-Allow-Origin"), "http://localhost:3000");
  const httplib::Result preflight = client.Options(
      "/v1/chat/completions",
      httplib::Headers{{"Origin", "http://localhost:3000"},
                       {"Access-Control-Request-Method", "POST"},
                       {"Access-Control-Request-Headers", "authorization,x-stainless-os"}});
  EXPECT_EQ(preflight->status, 200);
  EXPECT_THAT(preflight->get_header_value("Access-Control-Allow-Headers"),
              HasSubstr("x-stainless-os"));
}

/// HTTP/1.0 knows no chunks, and no reply is a file to be had in parts.
TEST_F(ServerTest, AnswersOldClientsInTheirWords) {
  start();
  const std::string body =
      Json({{"prompt", "The capital of France is"}, {"max_tokens", 4}, {"stream", true}}).dump();
  const RawClient client(port_);
  client.send(fmt::format("POST /v1/completions HTTP/1.0\r\nContent-Length: {}\r\n\r\n{}",
                          body.size(), body));
  const std::string reply = client.receive();
  EXPECT_THAT(reply, Not(HasSubstr("chunked")));
  EXPECT_THAT(reply, HasSubstr("\r\n\r\ndata: {"));
  EXPECT_TRUE(reply.ends_with("data: [DONE]\n\n")) << reply;

  httplib::Client parts("127.0.0.1", port_);
  const httplib::Result whole = parts.Get("/", httplib::Headers{{"Range", "bytes=0-9"}});
  EXPECT_EQ(whole->status, 200);
  EXPECT_THAT(whole->body, HasSubstr("</html>"));
}

/// An answer that was cut is not passed off as one.
TEST_F(ServerTest, SaysThatItEndsWhenItCutsAnswers) {
  start();
  RawClient streamed(port_), whole(port_);
  const Json body = {{"prompt", "1, 2, 3, 4, 5,"}, {"ignored", 1}};
  streamed.send(
      request_of("/v1/completions", Json({{"prompt", "1, 2, 3,"}, {"stream", true}}).dump()));
  whole.send(request_of("/v1/completions", body.dump()));
  const std::string begun = streamed.receive("data:");
  server_->stop();
  const std::string rest = begun + streamed.receive();
  EXPECT_THAT(rest, HasSubstr("server_ending"));
  EXPECT_THAT(rest, Not(HasSubstr("[DONE]")));
  const std::string reply = whole.receive();
  EXPECT_TRUE(reply.empty() || reply.starts_with("HTTP/1.1 503")) << reply;
}

/// Answers that no machine could complete in a second.
TEST_F(ServerTest, EndsRequestsThatTakeTooLong) {
  const std::string expected = Loaded::get().plain("Hi", 3);
  start({.parallel = 1, .request_seconds = 1});
  const Json endless = {
      {"prompt", "1, 2, 3, 4, 5,"}, {"ignore_eos", true}, {"n", 64}, {"temperature", 1}};
  const httplib::Result whole = post("/v1/completions", endless);
  ASSERT_TRUE(whole);
  EXPECT_EQ(whole->status, 504) << whole->body;
  EXPECT_EQ(Json::parse(whole->body)["error"]["code"], "request_timed_out");
  Json body = endless;
  body["stream"] = true;
  const httplib::Result stream = post("/v1/completions", body);
  ASSERT_TRUE(stream);
  EXPECT_EQ(stream->status, 200);
  EXPECT_THAT(stream->body, HasSubstr("request_timed_out"));
  EXPECT_THAT(stream->body, Not(HasSubstr("[DONE]")));
  // Its work ends as well: the only place is free again.
  EXPECT_EQ(text_of(chat("Hi", {{"max_tokens", 3}})), expected);
}

TEST_F(ServerTest, SleepsAndWakes) {
  std::atomic<int> loads = 0;
  start({.parallel = 2, .tells_metrics = true, .idle_seconds = 1}, [&] {
    ++loads;
    return served(*Loaded::get().decoder);
  });
  httplib::Client client("127.0.0.1", port_);
  const auto sleeps = [&]() -> bool {
    return Json::parse(client.Get("/props")->body)["is_sleeping"];
  };
  const auto falls_asleep = [&] {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!sleeps() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return sleeps();
  };
  const Json fields = {{"max_tokens", 12}};
  const std::string expected = text_of(chat(kQuestion, fields));
  EXPECT_FALSE(sleeps());
  ASSERT_TRUE(falls_asleep());

  // What is told of it does not wake it.
  for (const char* const path : {"/health", "/v1/models", "/props", "/slots"}) {
    EXPECT_EQ(client.Get(path)->status, 200) << path;
  }
  const std::string first = client.Get("/metrics")->body, second = client.Get("/metrics")->body;
  EXPECT_THAT(first, HasSubstr("llamacpp:tokens_predicted_total 12\n"));
  EXPECT_THAT(first, testing::ContainsRegex("\nllamacpp:predicted_tokens_seconds [1-9]"));
  EXPECT_THAT(second, HasSubstr("\nllamacpp:predicted_tokens_seconds 0\n"));
  EXPECT_EQ(post("/v1/nothing", Json::object())->status, 404);
  EXPECT_EQ(post("/v1/completions", {{"prompt", 1.5}})->status, 400);
  EXPECT_TRUE(sleeps());
  EXPECT_EQ(loads, 0);

  // Several at once wake it once, and what was counted stays.
  auto other = std::async(std::launch::async, [&] { return text_of(chat(kQuestion, fields)); });
  EXPECT_EQ(text_of(chat(kQuestion, fields)), expected);
  EXPECT_EQ(other.get(), expected);
  EXPECT_EQ(loads, 1);
  EXPECT_FALSE(sleeps());
  EXPECT_THAT(client.Get("/metrics")->body, HasSubstr("llamacpp:tokens_predicted_total 36\n"));
  ASSERT_TRUE(falls_asleep());
  EXPECT_GT(Json::parse(post("/v1/messages/count_tokens",
                             {{"messages", Json::array({{{"role", "user"}, {"content", "Hi"}}})}})
                            ->body)["input_tokens"],
            0);
  EXPECT_EQ(loads, 2);
}

TEST_F(ServerTest, SaysWhyAModelThatSleptCannotBeLoaded) {
  std::atomic<bool> is_broken = true;
  start({.idle_seconds = 1}, [&] {
    if (is_broken) throw Error("smol.gguf is gone");
    return served(*Loaded::get().decoder);
  });
  httplib::Client client("127.0.0.1", port_);
  while (!Json::parse(client.Get("/props")->body)["is_sleeping"].get<bool>()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  const httplib::Result failed = post("/v1/completions", {{"prompt", "a"}, {"max_tokens", 1}});
  EXPECT_EQ(failed->status, 500);
  EXPECT_EQ(Json::parse(failed->body)["error"]["code"], "model_failed");
  EXPECT_THAT(failed->body, HasSubstr("smol.gguf is gone"));
  is_broken = false;
  EXPECT_EQ(post("/v1/completions", {{"prompt", "a"}, {"max_tokens", 1}})->status, 200);
}

TEST_F(ServerTest, AnswersVertexAi) {
  start({.vertex = VertexRoutes{.predict = "/predict", .health = "/ready"}});
  httplib::Client client("127.0.0.1", port_);
  EXPECT_EQ(client.Get("/ready")->status, 200);
  const Json messages = Json::array({{{"role", "user"}, {"content", kQuestion}}});
  const httplib::Result result =
      post("/predict",
           {{"instances",
             {{{"@requestFormat", "chatCompletions"},
               {"messages", messages},
               {"max_tokens", 12},
               {"stream", true}},
              {{"@requestFormat", "/v1/completions"}, {"prompt", "1, 2, 3,"}, {"max_tokens", 4}},
              {{"@requestFormat", "chatCompletions"}, {"messages", 1}},
              {{"@requestFormat", "models"}},
              {{"prompt", "a"}}}}});
  ASSERT_EQ(result->status, 200) << result->body;
  const Json predictions = Json::parse(result->body)["predictions"];
  ASSERT_EQ(predictions.size(), 5u);
  EXPECT_EQ(text_of(predictions[0]), Loaded::get().plain(kQuestion, 12));
  EXPECT_EQ(predictions[1]["usage"]["completion_tokens"], 4);
  EXPECT_EQ(predictions[2]["error"]["param"], "messages");
  EXPECT_EQ(predictions[3]["error"]["param"], "@requestFormat");
  EXPECT_EQ(predictions[4]["error"]["param"], "instances");
  EXPECT_EQ(post("/predict", {{"prompt", "a"}})->status, 400);
}

TEST_F(ServerTest, VertexAiMayAskAnEndpointItself) {
  start({.vertex = VertexRoutes{.predict = "/v1/completions", .health = "/health"}});
  EXPECT_EQ(post("/v1/completions", {{"prompt", "a"}, {"max_tokens", 1}})->status, 200);
  server_->stop();
  running_.join();
  Loaded& loaded = Loaded::get();
  server_.emplace(served(*loaded.decoder), ServerOptions{.port = 0,
                                                         .max_tokens = 1,
                                                         .log = LogFormat::kNone,
                                                         .vertex = VertexRoutes{.predict = "p"}});
  EXPECT_THROW(server_->bind(), Error);
  server_.reset();
}

TEST_F(ServerTest, ListsAliasesAndTags) {
  start({.aliases = {"code", "smol"}, .tags = {"small"}});
  httplib::Client client("127.0.0.1", port_);
  const Json model = Json::parse(client.Get("/v1/models")->body)["data"][0];
  EXPECT_EQ(model["aliases"], Json({"code", "smol"}));
  EXPECT_EQ(model["tags"], Json::array({"small"}));
}

TEST_F(ServerTest, TellsPagesWhatItIsToldTo) {
  start({.cors_methods = "POST", .cors_headers = "*", .cors_credentials = true});
  httplib::Client client("127.0.0.1", port_);
  const auto asked = [&](const char* origin) {
    return client.Options("/completion", httplib::Headers{{"Origin", origin},
                                                          {"Access-Control-Request-Headers", "A"}});
  };
  const httplib::Result mine = asked("http://localhost:3000");
  EXPECT_EQ(mine->get_header_value("Access-Control-Allow-Credentials"), "true");
  EXPECT_EQ(mine->get_header_value("Access-Control-Allow-Headers"), "*");
  EXPECT_EQ(mine->get_header_value("Access-Control-Allow-Methods"), "POST");
  EXPECT_FALSE(asked("https://evil.example")->has_header("Access-Control-Allow-Credentials"));
}

TEST_F(ServerTest, RefusesAListOfNoMessages) {
  start();
  const Json none = {{"messages", Json::array()}, {"max_tokens", 4}};
  EXPECT_EQ(post("/v1/messages", none)->status, 400);
  EXPECT_EQ(post("/v1/chat/completions", none)->status, 400);
}

TEST_F(ServerTest, LogsAnObjectForEachRequest) {
  testing::internal::CaptureStderr();
  start({.log = LogFormat::kJson});
  const Json reply =
      chat(kQuestion, {{"max_tokens", 8}, {"n", 2}, {"temperature", 1}, {"seed", 1}});
  post("/v1/completions", {{"prompt", "a"}, {"max_tokens", 4}, {"stream", true}});
  post("/v1/nothing", Json::object());
  post("/v1/completions", {{"prompt", 1.5}});
  server_->stop();
  running_.join();
  server_.reset();
  std::vector<Json> lines;
  std::istringstream log(testing::internal::GetCapturedStderr());
  for (std::string line; std::getline(log, line);) {
    lines.push_back(Json::parse(line));
    if (lines.back()["path"] == "/health") lines.pop_back();  // as often as start() asked
  }
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[0]["path"], "/v1/chat/completions");
  EXPECT_EQ(lines[0]["client"], "127.0.0.1");
  EXPECT_EQ(lines[0]["id"], reply["id"]);
  EXPECT_EQ(lines[0]["completion_tokens"], reply["usage"]["completion_tokens"]) << "of both";
  EXPECT_EQ(lines[0]["prompt_tokens"], 2 * reply["usage"]["prompt_tokens"].get<int>());
  EXPECT_EQ(lines[0]["finish"], "length");
  EXPECT_GE(lines[0]["seconds"], lines[0]["queue_seconds"]);
  EXPECT_EQ(lines[1]["stream"], true);
  EXPECT_EQ(lines[1]["completion_tokens"], 4);
  EXPECT_EQ(lines[2]["status"], 404);
  EXPECT_EQ(lines[3]["status"], 400);
  EXPECT_FALSE(lines[3]["error"].get<std::string>().empty());
}

TEST_F(ServerTest, AnswersThroughTls) {
  const TestCertificate certificate("server");
  start({.ssl_key_file = certificate.key, .ssl_cert_file = certificate.certificate});
  TlsClient client(port_, certificate);
  ASSERT_TRUE(client.connected());
  client.send(
      request_of("/v1/completions", R"({"prompt": "1, 2, 3,", "max_tokens": 20, "stream": true})"));
  EXPECT_THAT(client.receive("[DONE]"), HasSubstr("[DONE]"));
}

TEST_F(ServerTest, AnswersThroughAFile) {
  const std::string file = testing::TempDir() + "server-test.sock";
  std::filesystem::remove(file);
  start({.host = file});
  httplib::Client client(file);
  client.set_address_family(AF_UNIX);
  const auto models_of = [&](const std::string& host) {
    return client.Get("/v1/models", httplib::Headers{{"Host", host}});
  };
  EXPECT_EQ(models_of("localhost")->status, 200);
  EXPECT_EQ(models_of("evil.example")->status, 403) << "as a page could have it through a proxy";
  EXPECT_FALSE(server_->is_open());
}

TEST_F(ServerTest, AnswersPreflightsOfOthersWithoutLeave) {
  start();
  httplib::Client client("127.0.0.1", port_);
  const httplib::Result preflight =
      client.Options("/v1/chat/completions", httplib::Headers{{"Origin", "https://evil.example"}});
  EXPECT_EQ(preflight->status, 200);
  EXPECT_FALSE(preflight->has_header("Access-Control-Allow-Origin"));
  EXPECT_FALSE(preflight->has_header("Access-Control-Allow-Methods"));
}

TEST_F(ServerTest, ListensAtSeveralAddresses) {
  start({.more_hosts = {"127.0.0.2", "127.0.0.3"}});
  EXPECT_FALSE(server_->is_open());
  for (const char* const host : {"127.0.0.1", "127.0.0.2", "127.0.0.3"}) {
    httplib::Client client(host, port_);
    const httplib::Result result =
        client.Post("/v1/completions", R"({"prompt": "a", "max_tokens": 2})", "application/json");
    ASSERT_TRUE(result) << host;
    EXPECT_EQ(result->status, 200);
  }
  // One that waits for its client does not hold up the end, wherever it came in.
  httplib::Client idle("127.0.0.2", port_);
  idle.set_keep_alive(true);
  EXPECT_TRUE(idle.Get("/health"));
  Loaded& loaded = Loaded::get();
  Server second(served(*loaded.decoder), {.host = "127.0.0.9",
                                          .more_hosts = {"127.0.0.2"},
                                          .port = port_,
                                          .max_tokens = 1,
                                          .log = LogFormat::kNone});
  EXPECT_THAT(error_of([&] { second.bind(); }),
              HasSubstr(fmt::format("127.0.0.2:{}: the port is taken", port_)));
}

TEST_F(ServerTest, TellsThatAPortIsTaken) {
  start();
  Loaded& loaded = Loaded::get();
  Server second({*loaded.decoder, loaded.chat_template, {.method = DraftMethod::kNone}},
                {.port = port_, .parallel = 1, .max_tokens = 1, .log = LogFormat::kNone});
  EXPECT_THAT(error_of([&] { second.bind(); }), HasSubstr(std::to_string(port_)));
}

/// Servers that keep slots on disk, each with an engine of its own.
class SlotsOnDisk : public ServerTest {
 protected:
  void SetUp() override {
    ServerTest::SetUp();
    restart();
  }
  /// A server that knows nothing of what was before.
  void restart() {
    TearDown();
    decoder_.reset();
    engine_.reset();
    Loaded& loaded = Loaded::get();
    engine_.emplace(*loaded.model, EngineOptions{.threads = 2, .context = 512});
    decoder_.emplace(*engine_);
    server_.emplace(served(*decoder_), ServerOptions{.port = 0,
                                                     .parallel = 2,
                                                     .model_name = "smol",
                                                     .max_tokens = INT_MAX,
                                                     .slot_folder = folder_ / "slots",
                                                     .log = LogFormat::kNone});
    port_ = server_->bind();
    running_ = std::thread([this] { server_->run(); });
    httplib::Client client("127.0.0.1", port_);
    while (!client.Get("/health")) std::this_thread::yield();
  }
  Json complete(const std::string& prompt, int slot, int tokens = 12) {
    const httplib::Result result =
        post("/completion", {{"prompt", prompt}, {"id_slot", slot}, {"n_predict", tokens}});
    EXPECT_TRUE(result);
    return result ? Json::parse(result->body) : Json();
  }
  httplib::Result act(const std::string& slot, const std::string& action, const Json& body) {
    return post("/slots/" + slot + "?action=" + action, body);
  }
  static int cached(const Json& reply) { return reply.at("timings").at("cache_n"); }

  const TemporaryDirectory folder_;
  const bool made_ = std::filesystem::create_directory(folder_ / "slots");
  std::optional<NativeEngine> engine_;
  std::optional<BatchDecoder> decoder_;
  const std::string prompt_ =
      "The lighthouse keeper wrote into his book every evening what he had seen of the sea, and";
};

TEST_F(SlotsOnDisk, OutliveTheServer) {
  const Json before = complete(prompt_, 1);
  EXPECT_EQ(before["id_slot"], 1);
  EXPECT_EQ(cached(before), 0);
  const httplib::Result saved = act("1", "save", {{"filename", "a.bin"}});
  ASSERT_TRUE(saved);
  ASSERT_EQ(saved->status, 200) << saved->body;
  const Json of_save = Json::parse(saved->body);
  const int prompt_tokens = before["tokens_evaluated"];
  EXPECT_EQ(of_save["id_slot"], 1);
  EXPECT_EQ(of_save["filename"], "a.bin");
  EXPECT_GE(of_save["n_saved"], prompt_tokens);
  EXPECT_EQ(of_save["n_written"], std::filesystem::file_size(folder_ / "slots" / "a.bin"));
  EXPECT_TRUE(of_save["timings"]["save_ms"].is_number());

  restart();
  const httplib::Result restored = act("0", "restore", {{"filename", "a.bin"}});
  ASSERT_TRUE(restored);
  ASSERT_EQ(restored->status, 200) << restored->body;
  const Json of_restore = Json::parse(restored->body);
  EXPECT_EQ(of_restore["id_slot"], 0);
  EXPECT_EQ(of_restore["n_restored"], of_save["n_saved"]);
  EXPECT_EQ(of_restore["n_read"], of_save["n_written"]);
  EXPECT_TRUE(of_restore["timings"]["restore_ms"].is_number());
  const Json after = complete(prompt_, 0);
  EXPECT_EQ(cached(after), prompt_tokens - 1) << "all but the last is held";
  EXPECT_EQ(after["content"], before["content"]);
}

TEST_F(SlotsOnDisk, AnErasedSlotIsReadAgain) {
  complete(prompt_, 0);
  const Json again = complete(prompt_, 0);
  EXPECT_GT(cached(again), 0);
  const httplib::Result erased = act("0", "erase", Json::object());
  ASSERT_TRUE(erased);
  const Json reply = Json::parse(erased->body);
  EXPECT_EQ(reply["id_slot"], 0);
  EXPECT_GE(reply["n_erased"], again["tokens_evaluated"]);
  EXPECT_EQ(act("0", "save", {{"filename", "none.bin"}})->status, 400);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "slots" / "none.bin"));
  EXPECT_EQ(cached(complete(prompt_, 0)), 0);
}

TEST_F(SlotsOnDisk, ErasingOneLeavesWhatAnotherRemembers) {
  complete(prompt_, 0);
  complete(prompt_ + " every night he lit the lamp.", 1);
  act("1", "erase", Json::object());
  const Json again = complete(prompt_, 0);
  EXPECT_EQ(cached(again), again["tokens_evaluated"].get<int>() - 1);
  EXPECT_EQ(act("0", "save", {{"filename", "kept.bin"}})->status, 200);
}

TEST_F(SlotsOnDisk, AreRefusedByWhatIsWrong) {
  complete(prompt_, 0);
  std::ofstream(folder_ / "outside.bin") << "not of the folder";
  std::ofstream(folder_ / "slots" / "foreign.bin") << "something else altogether, and longer";
  const std::pair<Json, const char*> bad[] = {
      {{{"filename", "../outside.bin"}}, "name of a file"},
      {{{"filename", (folder_ / "outside.bin").string()}}, "name of a file"},
      {{{"filename", "a/b"}}, "name of a file"},
      {{{"filename", ".."}}, "name of a file"},
      {{{"filename", "."}}, "name of a file"},
      {{{"filename", ""}}, "name of a file"},
      {{{"filename", "a\\b"}}, "name of a file"},
      {{{"filename", "a\nb"}}, "name of a file"},
      {{{"filename", std::string(201, 'a')}}, "name of a file"},
      {{{"filename", 3}}, "filename"},
      {Json::object(), "missing"}};
  for (const auto& [body, why] : bad) {
    for (const char* const action : {"save", "restore"}) {
      const httplib::Result result = act("0", action, body);
      ASSERT_TRUE(result);
      EXPECT_EQ(result->status, 400) << body;
      EXPECT_THAT(result->body, HasSubstr(why)) << body;
    }
  }
  const Json good = {{"filename", "a.bin"}};
  for (const char* const slot : {"2", "-1", "x", "1x", "", "99999999999"}) {
    EXPECT_EQ(act(slot, "save", good)->status, 400) << slot;
  }
  EXPECT_THAT(act("0", "copy", good)->body, HasSubstr("'action' is"));
  EXPECT_THAT(act("0", "restore", good)->body, HasSubstr("no such file"));
  EXPECT_THAT(act("0", "restore", {{"filename", "foreign.bin"}})->body, HasSubstr("no saved"));
  EXPECT_EQ(act("0", "restore", {{"filename", "foreign.bin"}})->status, 400);
  EXPECT_EQ(act("0", "save", good)->status, 200) << "a restore that fails leaves the slot";
  EXPECT_EQ(post("/completion", {{"prompt", prompt_}, {"id_slot", 2}})->status, 400);
}

TEST_F(SlotsOnDisk, WhoAsksForATakenSlotWaitsForIt) {
  auto first = std::async(std::launch::async, [&] { return complete(prompt_, 1, 200); });
  httplib::Client client("127.0.0.1", port_);
  Json slots;
  do {
    slots = Json::parse(client.Get("/slots")->body);
  } while (slots[1]["is_processing"] == false &&
           first.wait_for(std::chrono::seconds(0)) == std::future_status::timeout);
  ASSERT_EQ(slots.size(), 2u);
  EXPECT_EQ(slots[0]["is_processing"], false);
  auto second = std::async(std::launch::async, [&] { return complete("Once upon", 1, 4); });
  auto save = std::async(std::launch::async, [&] {
    return act("1", "save", {{"filename", "late.bin"}});
  });
  EXPECT_EQ(complete("Two roads", 0, 4)["id_slot"], 0) << "the other slot is free";
  EXPECT_EQ(first.get()["id_slot"], 1);
  EXPECT_EQ(second.get()["id_slot"], 1);
  EXPECT_EQ(save.get()->status, 200);
  slots = Json::parse(client.Get("/slots")->body);
  EXPECT_EQ(slots[0]["id"], 0);
  EXPECT_EQ(slots[1]["id"], 1);
  EXPECT_EQ(slots[1]["n_ctx"], 512);
  EXPECT_EQ(slots[1]["next_token"][0]["n_decoded"], 0) << "it is over";
  EXPECT_EQ(slots[1]["next_token"][0]["n_remain"], -1);
  EXPECT_EQ(slots[1]["params"]["n_predict"], 4);
}

TEST_F(ServerTest, KeepsNoSlotsOnDiskUnlessToldWhere) {
  start();
  const httplib::Result result = post("/slots/0?action=save", {{"filename", "a.bin"}});
  ASSERT_TRUE(result);
  EXPECT_EQ(result->status, 501);
  EXPECT_THAT(result->body, HasSubstr("--slot-save-path"));
}

}  // namespace
}  // namespace firp
