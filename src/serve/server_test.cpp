#include "serve/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include <climits>
#include <future>
#include <optional>
#include <thread>

#include "decode/conversation.h"
#include "engine/native_engine.h"
#include "model/test_files.h"
#include "serve/api.h"

namespace firp {
namespace {

using testing::HasSubstr;

/// The real model, loaded once, and what plain decoding makes of a prompt.
class Loaded {
 public:
  Loaded() : file(std::make_shared<const GgufFile>(real_model())), vocabulary(real_model()) {
    model.emplace(file);
    engine.emplace(*model, EngineOptions{.threads = 2, .context = 512});
  }
  static Loaded& get() {
    static Loaded loaded;
    return loaded;
  }

  std::string plain(const std::string& question, int tokens, const SamplingOptions& sampling = {}) {
    Session session(*engine, {.sampling = sampling, .method = DraftMethod::kNone});
    session.append(Conversation(vocabulary).user_turn(question));
    std::string text;
    generate(
        session, tokens, [&](Token token) { return vocabulary.is_end_of_generation(token); },
        [&](const DecodedToken& token) {
          text += vocabulary.piece(token.token);
          return true;
        });
    return text;
  }

  std::shared_ptr<const GgufFile> file;
  Vocabulary vocabulary;
  std::optional<Model> model;
  std::optional<NativeEngine> engine;
};

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
  }

  void start(ServerOptions options = {}) {
    Loaded& loaded = Loaded::get();
    options.port = 0;
    options.model_name = "smol";
    options.max_tokens = INT_MAX;
    options.log = false;
    server_.emplace(*loaded.engine, loaded.vocabulary,
                    DecodeOptions{.method = DraftMethod::kNone, .ngrams = true, .tree_nodes = 8},
                    options);
    port_ = server_->bind();
    running_ = std::thread([this] { server_->run(); });
    httplib::Client client("127.0.0.1", port_);
    while (!client.Get("/health")) std::this_thread::yield();
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
    text += choice["delta"].value("content", "");
    if (!choice["finish_reason"].is_null()) finish = choice["finish_reason"];
  }
  EXPECT_EQ(text, whole);
  EXPECT_EQ(finish, "length");
  EXPECT_EQ(last, "[DONE]");
  EXPECT_EQ(usages, 1);
}

/// The law, for requests: an answer does not depend on what else is answered, nor on the slot.
TEST_F(ServerTest, AnswersSeveralAtOnceAsIfEachWereAlone) {
  start({.slots = 2});
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

TEST_F(ServerTest, DoesNotReadAgainWhatASlotHolds) {
  start({.slots = 2});
  const Json first = chat(kQuestion, {{"max_tokens", 24}});
  EXPECT_EQ(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
  const Json again = chat(kQuestion, {{"max_tokens", 24}});
  EXPECT_EQ(again["usage"]["prompt_tokens_details"]["cached_tokens"],
            again["usage"]["prompt_tokens"].get<int>() - 1);
  EXPECT_EQ(text_of(again), text_of(first));
  // The conversation goes on, another one between its turns.
  chat("Name three colours.", {{"max_tokens", 4}});
  const Json third = Json::parse(
      post("/v1/chat/completions",
           {{"messages", Json::array({{{"role", "user"}, {"content", kQuestion}},
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
  const Json france = chat("What is the capital of France?");
  EXPECT_THAT(text_of(france), HasSubstr("Paris"));
  EXPECT_EQ(france["choices"][0]["finish_reason"], "stop") << "the model's own end";
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
  EXPECT_THAT(results[1].first->body, HasSubstr("context of 512"));
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

TEST_F(ServerTest, AsksForItsKey) {
  start({.api_key = "secret"});
  httplib::Client client("127.0.0.1", port_);
  EXPECT_EQ(client.Get("/health")->status, 200);
  EXPECT_THAT(client.Get("/")->body, HasSubstr("</html>"));
  EXPECT_EQ(client.Get("/v1/models")->status, 401);
  EXPECT_EQ(client.Get("/v1/models", {{"Authorization", "Bearer wrong"}})->status, 401);
  const httplib::Result models = client.Get("/v1/models", {{"Authorization", "Bearer secret"}});
  EXPECT_EQ(models->status, 200);
  EXPECT_EQ(Json::parse(models->body)["data"][0]["id"], "smol");
}

/// Who goes away frees the slot.
TEST_F(ServerTest, NoticesThatNobodyListens) {
  const std::string expected = Loaded::get().plain("Hi", 3);  // before the server has the engine
  start({.slots = 1});
  httplib::Client client("127.0.0.1", port_);
  const Json body = {{"prompt", "Once upon a time"}, {"stream", true}, {"temperature", 1}};
  httplib::Request request;
  request.method = "POST";
  request.path = "/v1/completions";
  request.body = body.dump();
  int parts = 0;
  request.content_receiver = [&](const char*, std::size_t, std::uint64_t, std::uint64_t) {
    return ++parts < 2;
  };
  client.send(request);
  EXPECT_EQ(text_of(chat("Hi", {{"max_tokens", 3}})), expected);
}

TEST_F(ServerTest, TellsThatAPortIsTaken) {
  start();
  Loaded& loaded = Loaded::get();
  Server second(*loaded.engine, loaded.vocabulary, {.method = DraftMethod::kNone},
                {.port = port_, .slots = 1, .max_tokens = 1, .log = false});
  EXPECT_THAT(error_of([&] { second.bind(); }), HasSubstr(std::to_string(port_)));
}

}  // namespace
}  // namespace firp
