#include "decode/batch_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string_view>

#include "base/error.h"
#include "decode/test_model.h"
#include "engine/fake_engine.h"

namespace firp {
namespace {

using testing::Each;
using testing::ElementsAre;

/// What one session is asked for.
struct Request {
  std::vector<Token> prompt;
  DecodeOptions options;
  std::size_t tokens = 40;
  int arrives = 0;  ///< before this pass
};

using Text = std::vector<Token>;

Text some_tokens(int seed, int count, int vocabulary = TestModel::kVocabulary) {
  std::mt19937 random(seed);
  Text tokens(count);
  for (Token& token : tokens) token = static_cast<Token>(random() % vocabulary);
  return tokens;
}

/// What the requests get, decoded side by side. Those of a session that has ended are gone.
std::vector<Text> texts_of(BatchDecoder& decoder, std::span<const Request> requests,
                           DecodeStats* stats = nullptr) {
  std::vector<Text> texts(requests.size());
  std::vector<std::unique_ptr<Session>> sessions(requests.size());
  std::size_t ended = 0;
  for (int pass = 0; ended < requests.size(); ++pass) {
    if (pass == 10000) throw std::runtime_error("no end");
    std::vector<Session*> running;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      if (requests[i].arrives == pass) {
        sessions[i] = std::make_unique<Session>(decoder, requests[i].options);
        sessions[i]->append(requests[i].prompt);
      }
      if (sessions[i]) running.push_back(sessions[i].get());
    }
    if (running.empty()) continue;
    decoder.step(running);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      if (!sessions[i]) continue;
      for (const DecodedToken& each : sessions[i]->decoded()) texts[i].push_back(each.token);
      if (texts[i].size() < requests[i].tokens) continue;
      texts[i].resize(requests[i].tokens);
      if (stats != nullptr) *stats += sessions[i]->stats();
      sessions[i].reset();
      ++ended;
    }
  }
  return texts;
}

/// What plain decoding gives, of a session that is alone. `engine` should know nothing of it yet.
Text plain_text(Engine& engine, Request request) {
  BatchDecoder decoder(engine);
  request.options.method = DraftMethod::kNone;
  request.options.ngrams = request.options.adopts = false;
  request.options.tie_margin = 0;
  request.arrives = 0;
  return texts_of(decoder, {&request, 1}).front();
}

/// Requests that differ in all that a user may choose. Some begin alike.
std::vector<Request> requests(int count) {
  const SamplingOptions samplings[] = {{},
                                       {.temperature = 0.8f, .seed = 1},
                                       {.repeat_penalty = 1.3f},
                                       {.temperature = 1.5f, .top_k = 0, .top_p = 1, .seed = 2},
                                       {.temperature = 0.8f, .seed = 1, .stream = 7},
                                       {.temperature = 1, .top_k = 3, .repeat_penalty = 1.2f},
                                       {.dry = {.multiplier = 2}},
                                       {.temperature = 1, .mirostat = {.version = 1, .tau = 1.5f}},
                                       {.temperature = 1, .mirostat = {.version = 2, .tau = 1}},
                                       {.temperature = 1,
                                        .adaptive = {.target = 0.3f},
                                        .samplers = {Sampler::kTopK, Sampler::kAdaptiveP}}};
  std::vector<Request> all;
  for (int i = 0; i < count; ++i) {
    Text prompt = some_tokens(i % 3, 40);
    prompt.resize(1 + i * 17 % 40);
    const Text rest = some_tokens(100 + i, i * 29 % 70);
    prompt.insert(prompt.end(), rest.begin(), rest.end());
    all.push_back({.prompt = std::move(prompt),
                   .options = {.sampling = samplings[i % std::size(samplings)]},
                   .tokens = 20u + i * 7 % 13,
                   .arrives = i % 5 * 3});
  }
  return all;
}

/// What is drafted for them: these options by turns.
struct Way {
  const char* name;
  std::vector<DecodeOptions> options;
  bool planned = false;
};
std::vector<Way> ways(Engine& drafter) {
  const PartialModel part = {.skipped = {2, 3}, .steps = 3};
  constexpr int kNodes = 4;
  std::vector<Way> ways = {
      {"FIRP", {{.tree_nodes = kNodes}}},
      {"in-pass", {{.drafting = Drafting::kInPass, .tree_nodes = kNodes}}},
      {"n-grams", {{.method = DraftMethod::kNone, .ngrams = true, .tree_nodes = kNodes}}},
      {"FIRP and n-grams", {{.ngrams = true, .tree_nodes = kNodes}}},
      {"a chain", {{.tree_nodes = kNodes, .chain = true}}},
      {"lookahead", {{.method = DraftMethod::kLookahead, .tree_nodes = kNodes}}},
      {"part",
       {{.method = DraftMethod::kPartialModel, .partial_model = part, .tree_nodes = kNodes}}},
      {"other model",
       {{.method = DraftMethod::kDraftModel, .draft_model = &drafter, .tree_nodes = kNodes}}},
      {"plain", {{.method = DraftMethod::kNone}}},
  };
  Way all = {"each another one", {}};
  for (const Way& way : ways) all.options.push_back(way.options.front());
  ways.push_back(std::move(all));
  ways.push_back({"planned", {{.ngrams = true}, {}}, /*planned=*/true});
  return ways;
}

void expect_texts_of_each_alone(const std::function<std::unique_ptr<Engine>(int max_rows)>& make,
                                std::span<const int> counts) {
  const std::unique_ptr<Engine> drafter = make(64);
  std::vector<Text> expected;
  for (const Request& each : requests(counts.back())) {
    expected.push_back(plain_text(*make(64), each));
  }
  for (const bool planned_only : {false, true}) {
    // As few as the largest tree needs; with a planner that is another one.
    for (const int max_rows : {planned_only ? 1 + kMostPlannedNodes : 20, 256}) {
      for (const Way& way : ways(*drafter)) {
        if (way.planned != planned_only) continue;
        for (const int count : counts) {
          const std::unique_ptr<Engine> engine = make(max_rows);
          Planner planner(PassCosts{{{1, 1e-3}, {32, 1.5e-3}}, {1e-5, 2e-5, 3e-5}, 0});
          BatchDecoder decoder(*engine, way.planned ? &planner : nullptr,
                               /*someone_waits=*/count % 8 != 0);
          std::vector<Request> all = requests(count);
          for (int i = 0; i < count; ++i) {
            const SamplingOptions sampling = all[i].options.sampling;
            all[i].options = way.options[i % way.options.size()];
            all[i].options.sampling = sampling;
          }
          DecodeStats stats;
          const std::vector<Text> texts = texts_of(decoder, all, &stats);
          for (int i = 0; i < count; ++i) {
            EXPECT_EQ(texts[i], expected[i])
                << way.name << ", " << i << " of " << count << ", " << max_rows << " rows";
          }
          if (count < 8 || max_rows < 256 || way.planned) continue;  // little room for drafts
          EXPECT_EQ(stats.forwards < stats.tokens, way.name != std::string_view("plain"))
              << way.name << ": drafts must have been right now and then";
        }
      }
    }
  }
}

TEST(BatchDecoder, TextsAreThoseOfEachSessionAlone) {
  for (const FakeEngine::Traits& traits :
       {FakeEngine::Traits{}, FakeEngine::Traits{.sequences_a_pass = 3},
        FakeEngine::Traits{.sequences_a_pass = 1},
        FakeEngine::Traits{.draft_accuracy = 0.2, .keeps_contexts_apart = true}}) {
    expect_texts_of_each_alone(
        [&](int max_rows) {
          return std::make_unique<FakeEngine>(EngineOptions{.context = 160, .max_rows = max_rows},
                                              traits);
        },
        std::vector{1, 2, 8, 16});
  }
}

/// The same with what the model's arithmetic makes of rows that stand side by side.
TEST(BatchDecoder, TextsOfTheNativeEngineAreThoseOfEachSessionAlone) {
  const TestModel model;
  expect_texts_of_each_alone(
      [&](int max_rows) {
        return model.engine({.threads = 2, .context = 160, .max_rows = max_rows});
      },
      quick_tests() ? std::vector{8} : std::vector{2, 16});
}

/// Sessions of a decoder on an engine without arithmetic. The engine's sequences have their
/// numbers.
class Decoders : public testing::Test {
 protected:
  explicit Decoders(const FakeEngine::Traits& traits = {}) : engine_({.context = 512}, traits) {}

  Session& add(const Text& prompt, const DecodeOptions& options, BatchDecoder& decoder) {
    sessions_.push_back(std::make_unique<Session>(decoder, options));
    sessions_.back()->append(prompt);
    return *sessions_.back();
  }
  Session& add(const Text& prompt, const DecodeOptions& options = {}) {
    return add(prompt, options, decoder_);
  }
  std::vector<Session*> all() const {
    std::vector<Session*> all;
    for (const std::unique_ptr<Session>& session : sessions_) all.push_back(session.get());
    return all;
  }
  /// The passes that a step ran.
  std::vector<FakeEngine::Ran> step() {
    engine_.passes.clear();
    decoder_.step(all());
    return engine_.passes;
  }
  /// `session` is what plain decoding would have made of its first `given` tokens.
  void expect_plain(const Session& session, std::size_t given, const SamplingOptions& sampling = {},
                    const FakeEngine::Traits& traits = {}) {
    const Text& tokens = session.tokens();
    FakeEngine other({.context = 512}, traits);
    Text expected(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(given));
    ASSERT_GT(tokens.size(), given);
    const Text text = plain_text(
        other,
        {.prompt = expected, .options = {.sampling = sampling}, .tokens = tokens.size() - given});
    expected.insert(expected.end(), text.begin(), text.end());
    EXPECT_EQ(tokens, expected);
  }

  FakeEngine engine_;
  BatchDecoder decoder_{engine_};
  std::vector<std::unique_ptr<Session>> sessions_;
};

TEST_F(Decoders, OnePassDecodesForAllAndOneDraftsForAll) {
  for (int i = 0; i < 8; ++i) add(some_tokens(i, 10 + i), {.tree_nodes = 6});
  std::vector<FakeEngine::Ran> passes = step();
  ASSERT_EQ(passes.size(), 1u) << "all prompts are read in one pass";
  EXPECT_EQ(passes[0].sequences(), 8);
  EXPECT_EQ(passes[0].decoders(), 0);
  EXPECT_TRUE(passes[0].captured.empty());
  for (int i = 0; i < 20; ++i) {
    passes = step();
    ASSERT_EQ(passes.size(), 2u);
    EXPECT_EQ(passes[0].decoders(), 8);
    EXPECT_FALSE(passes[0].drafts());
    EXPECT_EQ(passes[0].token_rows(), i == 0 ? 8 : 8 * 7);
    EXPECT_THAT(passes[0].captured, ElementsAre(1, 2));
    EXPECT_TRUE(passes[1].drafts());
    EXPECT_EQ(passes[1].sequences(), 8);
    EXPECT_TRUE(passes[1].captured.empty());
  }
}

TEST_F(Decoders, CapturesNothingWhereNothingReadsIt) {
  add(some_tokens(1, 5), {.method = DraftMethod::kNone});
  add(some_tokens(2, 5), {.drafting = Drafting::kInPass});
  add(some_tokens(3, 5), {.method = DraftMethod::kLookahead});
  for (int i = 0; i < 10; ++i) {
    const std::vector<FakeEngine::Ran> passes = step();
    ASSERT_EQ(passes.size(), 1u) << "what drafts in the pass needs no other one";
    EXPECT_TRUE(passes[0].captured.empty());
  }
}

TEST_F(Decoders, WithAPlannerThatForbidsDraftsOneRowEachIsRun) {
  Planner planner(PassCosts{{{1, 1e-3}, {32, 1.0}}, {1e-3}, 0}, /*follow=*/false);
  BatchDecoder decoder(engine_, &planner);
  for (int i = 0; i < 4; ++i) add(some_tokens(i, 10), {}, decoder);
  for (int i = 0; i < 30; ++i) decoder.step(all());
  engine_.passes.clear();
  decoder.step(all());
  ASSERT_EQ(engine_.passes.size(), 1u);
  EXPECT_EQ(engine_.passes[0].rows.size(), 4u);
}

TEST(BatchDecoder, NobodyStarves) {
  constexpr int kSessions = 10;
  struct Case {
    int sequences_a_pass, max_rows;
    DecodeOptions options;
    int a_pass;  ///< sessions that fit
  };
  const DecodeOptions plain = {.method = DraftMethod::kNone};
  const DecodeOptions in_pass = {.drafting = Drafting::kInPass, .tree_nodes = 4};
  for (const Case& each : {Case{1, 64, plain, 1}, Case{3, 64, plain, 3}, Case{100, 4, plain, 4},
                           Case{100, 20, in_pass, 5}, Case{100, 1, plain, 1}}) {
    FakeEngine engine({.context = 256, .max_rows = each.max_rows},
                      {.sequences_a_pass = each.sequences_a_pass});
    BatchDecoder decoder(engine, nullptr, /*someone_waits=*/false);  // whatever passes take
    std::vector<std::unique_ptr<Session>> sessions;
    std::vector<Session*> all;
    for (int i = 0; i < kSessions; ++i) {
      sessions.push_back(std::make_unique<Session>(decoder, each.options));
      sessions.back()->append(some_tokens(i, i % 2 == 0 ? 2 : 30));
      all.push_back(sessions.back().get());
    }
    const int interval = (kSessions + each.a_pass - 1) / each.a_pass;
    std::map<int, int> last;  // pass in which a sequence took part
    for (int pass = 1; pass <= 400; ++pass) {
      decoder.step(all);
      for (const Row& row : engine.passes.back().rows) last[row.sequence] = pass;
      for (int i = 0; i < kSessions; ++i) {
        // What is read in chunks may take turns with others that read.
        const int most = all[i]->is_reading() ? 2 * interval : interval;
        ASSERT_LE(pass - last[i], most) << i << " of " << each.a_pass << " a pass";
      }
    }
    for (const Session* const session : all) {
      EXPECT_GE(session->stats().tokens, 100 * each.a_pass / kSessions);
    }
  }
}

TEST_F(Decoders, AllDecodeWhileALongPromptIsRead) {
  add(some_tokens(1, 3));
  add(some_tokens(2, 3), {.method = DraftMethod::kNone});
  for (int i = 0; i < 3; ++i) step();
  Session& reader = add(some_tokens(3, 400));
  int chunks = 0;
  for (; reader.is_reading(); ++chunks) {
    const int before = reader.seen();
    const std::vector<FakeEngine::Ran> passes = step();
    EXPECT_EQ(passes[0].sequences(), 3);
    EXPECT_EQ(passes[0].decoders(), 2);
    EXPECT_TRUE(reader.decoded().empty());
    for (const int i : {0, 1}) EXPECT_FALSE(sessions_[i]->decoded().empty());
    if (chunks == 0) {
      EXPECT_EQ(reader.seen() - before, ReadingPace().rows());
    }
  }
  EXPECT_GE(chunks, 2);
  while (reader.tokens().size() < 420) step();
  expect_plain(*sessions_[0], 3);
  expect_plain(*sessions_[1], 3);
  expect_plain(reader, 400);
}

TEST_F(Decoders, WhereNobodyWaitsPromptsTakeAllRowsThatRootsLeave) {
  BatchDecoder decoder(engine_, nullptr, /*someone_waits=*/false);
  const DecodeOptions options = {.tree_nodes = 6, .adopts = false};
  add(some_tokens(1, 3), options, decoder);
  for (int i = 0; i < 3; ++i) decoder.step(all());
  // More of them than can be read at once.
  for (int i = 0; i < 3; ++i) add(some_tokens(10 + i, 400), options, decoder);
  for (int i = 0; i < 4; ++i) {
    engine_.passes.clear();
    decoder.step(all());
    EXPECT_EQ(engine_.passes[0].rows.size(), 256u);
    EXPECT_EQ(engine_.passes[0].decoders(), 1);
    EXPECT_FALSE(sessions_[0]->decoded().empty());
  }
  for (int i = 0; i < 20; ++i) decoder.step(all());
  expect_plain(*sessions_[0], 3);
  for (int i = 1; i <= 3; ++i) expect_plain(*sessions_[i], 400);
}

TEST_F(Decoders, APromptOfManyIsReadOnce) {
  const Text prompt = some_tokens(1, 200);
  for (int i = 0; i < 8; ++i) {
    add(prompt, {.sampling = {.temperature = 1, .stream = i}, .method = DraftMethod::kNone});
  }
  for (int i = 0; i < 12; ++i) decoder_.step(all());
  int read = 0;
  for (const FakeEngine::Ran& pass : engine_.passes) {
    read += static_cast<int>(std::ranges::count(pass.rows, false, &Row::decoded));
  }
  EXPECT_EQ(read, 199) << "all but the last token, which is decoded by each";
  std::set<Text> texts;
  int adopted = 0;
  for (int i = 0; i < 8; ++i) {
    expect_plain(*sessions_[i], 200, {.temperature = 1, .stream = i});
    texts.insert(sessions_[i]->tokens());
    adopted += sessions_[i]->adopted();
  }
  EXPECT_GT(texts.size(), 4u) << "the streams are different";
  EXPECT_EQ(adopted, 7 * 199);

  // Those that ended are found as well, with what they wrote.
  Text turn = sessions_[3]->tokens();
  turn.resize(turn.size() - 1);
  const int known = static_cast<int>(turn.size());
  turn.insert(turn.end(), {1, 2, 3});
  sessions_.clear();
  Session& ninth = add(turn);
  step();
  EXPECT_EQ(ninth.adopted(), known);
  EXPECT_EQ(ninth.seen(), known + 2);
  for (int i = 0; i < 10; ++i) step();
  expect_plain(ninth, turn.size());

  Session& reader = add(prompt, {.adopts = false});
  engine_.passes.clear();
  while (reader.tokens().size() == prompt.size()) step();
  EXPECT_EQ(reader.adopted(), 0);
  expect_plain(reader, 200);
}

/// In chunks, beside one that decodes: who has read less takes over what another one has read.
TEST_F(Decoders, APromptOfManyIsReadOnceInChunks) {
  add(some_tokens(5, 3), {.method = DraftMethod::kNone});
  for (int i = 0; i < 3; ++i) step();
  const Text prompt = some_tokens(1, 300);
  for (int i = 0; i < 4; ++i) add(prompt, {.method = DraftMethod::kNone});
  engine_.passes.clear();
  while (std::ranges::any_of(all(), &Session::is_reading)) decoder_.step(all());
  int read = 0;
  for (const FakeEngine::Ran& pass : engine_.passes) {
    read += static_cast<int>(std::ranges::count(pass.rows, false, &Row::decoded));
  }
  EXPECT_GE(read, 299);
  EXPECT_LT(read, 299 + 3 * 32) << "at the end, so few are not worth waiting for";
  for (int i = 0; i < 5; ++i) step();
  for (int i = 1; i <= 4; ++i) expect_plain(*sessions_[i], 300);
}

TEST(BatchDecoder, ContextsThatLieApartAreTakenOverFromWhoEnded) {
  FakeEngine engine({.context = 256}, {.keeps_contexts_apart = true});
  BatchDecoder decoder(engine);
  const Request request = {.prompt = some_tokens(1, 100), .options = {}};
  const Text first = texts_of(decoder, {&request, 1}).front();
  Session session(decoder, {});
  session.append(request.prompt);
  session.step();
  EXPECT_EQ(session.adopted(), 99);
  const Request both[] = {request, request};
  EXPECT_THAT(texts_of(decoder, both), Each(first));
}

/// What a session looks like from outside.
struct Seen {
  explicit Seen(const Session& session)
      : tokens(session.tokens()), seen(session.seen()), stats(session.stats()) {}
  void expect_same(const Session& session) const {
    EXPECT_EQ(session.tokens(), tokens);
    EXPECT_EQ(session.seen(), seen);
    EXPECT_TRUE(session.decoded().empty());
    const DecodeStats& now = session.stats();
    EXPECT_EQ(now.tokens, stats.tokens);
    EXPECT_EQ(now.forwards, stats.forwards);
    EXPECT_EQ(now.drafted, stats.drafted);
    EXPECT_EQ(now.drafting_passes, stats.drafting_passes);
    EXPECT_EQ(now.prefill_seconds, stats.prefill_seconds);
    EXPECT_EQ(now.decode_seconds, stats.decode_seconds);
  }
  Text tokens;
  int seen;
  DecodeStats stats;
};

TEST_F(Decoders, AfterAPassThatThrewAllIsAsItWas) {
  using enum FakeEngine::Call;
  using enum FakeEngine::Fault;
  // In the pass: of best tokens, of logits behind them, and of commits any of the four.
  struct Case {
    FakeEngine::Call call;
    int nth;
    FakeEngine::Fault fault;
  };
  const SamplingOptions penalty = {.repeat_penalty = 1.3f, .repeat_last_n = -1};
  add(some_tokens(1, 10), {.ngrams = true, .tree_nodes = 6});
  add(some_tokens(2, 10), {.drafting = Drafting::kInPass, .tree_nodes = 6});
  add(some_tokens(3, 10), {.sampling = penalty, .method = DraftMethod::kLookahead});
  for (int i = 0; i < 6; ++i) step();
  for (const Case& each :
       {Case{kRun, 1, kError}, Case{kRun, 1, kCancelled}, Case{kHead, 1, kError},
        Case{kHead, 1, kNan}, Case{kHead, 2, kCancelled}, Case{kHead, 2, kNan},
        Case{kCommit, 1, kError}, Case{kCommit, 2, kError}, Case{kCommit, 4, kCancelled}}) {
    Session& reader = add(some_tokens(4, 300), {.adopts = false});
    std::vector<Seen> before;
    for (const Session* const session : all()) before.emplace_back(*session);
    engine_.fail(each.call, each.nth, each.fault);
    EXPECT_THROW(step(), Error);
    for (std::size_t i = 0; i < before.size(); ++i) before[i].expect_same(*sessions_[i]);
    for (int i = 0; i < 3; ++i) step();
    EXPECT_GT(reader.seen(), 0);
    sessions_.pop_back();
    for (int i = 0; i < 3; ++i)
      expect_plain(*sessions_[i], 10, i == 2 ? penalty : SamplingOptions());
  }
}

TEST_F(Decoders, WhatAPassDecodedStaysWhereDraftingFails) {
  add(some_tokens(1, 10));
  add(some_tokens(2, 10),
      {.method = DraftMethod::kPartialModel, .partial_model = {.skipped = {2, 3}, .steps = 3}});
  for (int i = 0; i < 3; ++i) step();
  // The second pass of a step is that of the pseudo rows; then the other one's drafts.
  for (const int pass : {2, 3, 5}) {
    std::vector<Text> before;
    for (const Session* const session : all()) before.push_back(session->tokens());
    engine_.fail(FakeEngine::Call::kRun, pass);
    EXPECT_THROW(step(), Error);
    for (std::size_t i = 0; i < before.size(); ++i) {
      ASSERT_FALSE(sessions_[i]->decoded().empty());
      for (const DecodedToken& each : sessions_[i]->decoded()) before[i].push_back(each.token);
      EXPECT_EQ(sessions_[i]->tokens(), before[i]);
    }
    for (int i = 0; i < 3; ++i) step();
  }
  for (const int i : {0, 1}) expect_plain(*sessions_[i], 10);
}

/// What was not handed on is not part of the conversation.
TEST_F(Decoders, AnAnswerThatIsInterruptedWhileDraftingEndsWhereItsTokensDo) {
  Session& session = add(some_tokens(1, 10));
  Text text = session.tokens();
  const auto is_end = [](Token) { return false; };
  const auto on_token = [&](const DecodedToken& each) {
    text.push_back(each.token);
    if (text.size() == 15) engine_.fail(FakeEngine::Call::kRun, 2, FakeEngine::Fault::kCancelled);
    return true;
  };
  generate(session, 100, is_end, on_token);
  EXPECT_GE(text.size(), 15u);
  EXPECT_LT(text.size(), 25u);
  EXPECT_EQ(session.tokens(), text);
  generate(session, 20, is_end, on_token);
  expect_plain(session, 10);
}

TEST_F(Decoders, AMistakeOfOneLeavesNothingBehindThatLooksDecoded) {
  Session& good = add(some_tokens(1, 10));
  for (int i = 0; i < 3; ++i) step();
  ASSERT_FALSE(good.decoded().empty());
  Session& empty = add({});
  Session* const reversed[] = {&empty, &good};
  EXPECT_THROW(decoder_.step(reversed), Error);
  EXPECT_TRUE(good.decoded().empty()) << "who takes tokens after each step would take them twice";
}

/// Decodes `turns` one after the other. What came over the length that a turn asks for is cut off.
Text conversation(const std::function<void(Session&)>& step, Session& session, int seed) {
  for (int turn = 0; turn < 4; ++turn) {
    session.append(some_tokens(10 * seed + turn, 1 + (seed + turn) % 5 * 9));
    const int end = static_cast<int>(session.tokens().size()) + 5 + (seed + turn) % 3;
    while (std::ssize(session.tokens()) < end) step(session);
    session.truncate(end - turn % 3);
    if ((seed + turn) % 2 == 0) session.release();
  }
  return session.tokens();
}

/// A turn at a time of each, the others' steps between its own.
TEST_F(Decoders, ConversationsThatAreCutAndReleasedGoOnAsPlainOnesDo) {
  std::mt19937 random(1);
  std::vector<Text> texts;
  const auto side_by_side = [&](Session&) {
    decoder_.step(all());
    // Somebody loses its place, and has to read again.
    sessions_[random() % sessions_.size()]->release();
  };
  for (int i = 0; i < 3; ++i) add(some_tokens(90 + i, 5), {.ngrams = i == 1, .tree_nodes = 5});
  for (int i = 0; i < 6; ++i) {
    const DecodeOptions options = {.ngrams = i % 3 == 0,
                                   .drafting = i % 2 == 0 ? Drafting::kInPass : Drafting::kDeferred,
                                   .tree_nodes = 5,
                                   .adopts = i % 4 < 2};
    Session& session = add({}, options);
    FakeEngine other({.context = 512});
    BatchDecoder plain(other);
    Session alone(plain, {.method = DraftMethod::kNone});
    EXPECT_EQ(conversation(side_by_side, session, i),
              conversation([](Session& s) { s.step(); }, alone, i));
  }
  for (int i = 0; i < 3; ++i) expect_plain(*sessions_[i], 5);
}

TEST_F(Decoders, WhatWasDraftedBehindAnotherTextIsNotVerified) {
  Session& session = add(some_tokens(1, 20), {.ngrams = true, .tree_nodes = 6});
  const auto rows_that_decode = [&] {
    while (session.is_reading()) step();
    return step()[0].token_rows();
  };
  EXPECT_EQ(rows_that_decode(), 1);
  EXPECT_EQ(rows_that_decode(), 7);
  session.append(some_tokens(2, 3));
  EXPECT_EQ(rows_that_decode(), 1);
  EXPECT_EQ(rows_that_decode(), 7);
  session.truncate(static_cast<int>(session.tokens().size()) - 1);
  EXPECT_EQ(rows_that_decode(), 1);
  EXPECT_EQ(rows_that_decode(), 7);
  session.release();
  EXPECT_EQ(rows_that_decode(), 1);
}

/// Rows whose logits depend on how many are beside them, as those of libllama's kernels do.
class RoundingDecoders : public Decoders {
 protected:
  static constexpr float kRounding = 0.5f;
  RoundingDecoders() : Decoders({.rounding = kRounding}) {}

  void add_some(float tie_margin) {
    const Drafting in_pass = Drafting::kInPass;
    add(some_tokens(1, 10), {.tree_nodes = 5, .tie_margin = tie_margin});
    add(some_tokens(2, 10), {.drafting = in_pass, .tree_nodes = 5, .tie_margin = tie_margin});
    add(some_tokens(3, 10), {.method = DraftMethod::kNone, .tie_margin = tie_margin});
    add(some_tokens(4, 10), {.ngrams = true, .tree_nodes = 5, .tie_margin = tie_margin});
    add(some_tokens(5, 10), {.method = DraftMethod::kLookahead, .tie_margin = tie_margin});
  }
};

TEST_F(RoundingDecoders, NearTiesAreDecidedAlone) {
  add_some(1.01f * kRounding);
  int passes = 0;
  const auto text_is_short = [](const Session* session) { return session->tokens().size() < 80; };
  for (; std::ranges::any_of(all(), text_is_short) && passes < 2000; ++passes) step();
  EXPECT_LT(passes, 2000);
  long long ties = 0;
  for (const std::unique_ptr<Session>& session : sessions_) {
    expect_plain(*session, 10);
    EXPECT_GT(session->stats().tie_passes, 0);
    ties += session->stats().tie_passes;
  }
  EXPECT_LT(ties, passes / 2 + 200) << "most tokens are decided beside others";
}

TEST_F(RoundingDecoders, WithoutAMarginRoundingDecides) {
  add_some(0);
  for (int i = 0; i < 80; ++i) step();
  int differ = 0;
  for (const std::unique_ptr<Session>& session : sessions_) {
    FakeEngine other({.context = 512});
    const Text prompt(session->tokens().begin(), session->tokens().begin() + 10);
    const Text text = plain_text(other, {.prompt = prompt, .options = {}, .tokens = 80});
    differ += !std::equal(text.begin(), text.end(), session->tokens().begin() + 10);
  }
  EXPECT_GT(differ, 0);
}

/// Sessions that come and go, texts that are cut and continued, passes that fail, in random order:
/// each token is the one that a plain session beside would have decoded.
TEST(BatchDecoder, AnyOrderOfEventsGivesEachItsText) {
  constexpr float kRounding = 0.3f;
  struct Pair {
    std::unique_ptr<Session> session, plain;
  };
  for (int seed = 0; seed < (quick_tests() ? 20 : 200); ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
    const bool rounds = below(3) == 0, planned = below(3) == 0;
    const EngineOptions engine_options = {
        .context = 200, .positions = 200 + below(400), .max_rows = planned ? 33 : 20 + below(30)};
    FakeEngine engine(engine_options, {.sequences_a_pass = below(2) == 0 ? 100 : 1 + below(4),
                                       .keeps_contexts_apart = below(2) == 0,
                                       .rounding = rounds ? kRounding : 0});
    FakeEngine other({.context = 200}), drafter({.context = 150 + below(100)});
    Planner planner(PassCosts{{{1, 1e-3}, {32, 1e-3 * (1 + below(4))}}, {1e-4}, 0});
    BatchDecoder decoder(engine, planned ? &planner : nullptr, below(2) == 0), beside(other);
    std::vector<Way> all = ways(drafter);
    if (planned) all.erase(all.begin(), all.end() - 1);
    std::vector<Pair> pairs;
    for (int event = 0; event < 300; ++event) {
      if (pairs.empty() || (pairs.size() < 8 && below(12) == 0)) {
        const std::vector<DecodeOptions>& options =
            all[below(static_cast<int>(all.size()))].options;
        DecodeOptions of_session = options[below(static_cast<int>(options.size()))];
        // Where rows round, only ties that are decided alone keep texts the same.
        if (!rounds) of_session.sampling = requests(10)[below(10)].options.sampling;
        of_session.tie_margin = rounds ? 1.01f * kRounding : 0;
        of_session.adopts = below(4) > 0;
        Pair& pair = pairs.emplace_back(
            std::make_unique<Session>(decoder, of_session),
            std::make_unique<Session>(beside, DecodeOptions{.sampling = of_session.sampling,
                                                            .method = DraftMethod::kNone}));
        const Text prompt = some_tokens(below(4), 1 + below(120));
        pair.session->append(prompt);
        pair.plain->append(prompt);
      }
      Pair& one = pairs[below(static_cast<int>(pairs.size()))];
      const auto length = static_cast<int>(one.session->tokens().size());
      const int kind = length > 180 ? 1 : below(16);
      if (kind == 0) {
        one.session->release();
      } else if (kind == 1) {
        const int kept = 1 + below(length);
        one.session->truncate(kept);
        one.plain->truncate(kept);
      } else if (kind == 2 && length < 150) {
        const Text turn = some_tokens(below(100), 1 + below(20));
        one.session->append(turn);
        one.plain->append(turn);
      } else if (kind == 3 && pairs.size() > 1) {
        std::swap(one, pairs.back());
        pairs.pop_back();
      } else if (kind == 4) {
        engine.fail(static_cast<FakeEngine::Call>(below(3)), 1 + below(6),
                    static_cast<FakeEngine::Fault>(below(3)));
      }
      std::ranges::shuffle(pairs, random);
      std::vector<Session*> sessions;
      const int taking_part = 1 + below(static_cast<int>(pairs.size()));
      for (int i = 0; i < taking_part; ++i) sessions.push_back(pairs[i].session.get());
      try {
        decoder.step(sessions);
      } catch (const Error&) {
      }
      for (const Pair& pair : pairs) {
        if (std::ranges::count(sessions, pair.session.get()) == 0) continue;
        for (const DecodedToken& each : pair.session->decoded()) {
          ASSERT_EQ(each.token, pair.plain->step()[0].token) << seed << ", " << event;
        }
        ASSERT_EQ(pair.session->tokens(), pair.plain->tokens()) << seed << ", " << event;
      }
    }
  }
}

TEST_F(Decoders, ASessionThatFailsGivesItsSequenceBack) {
  for (const DecodeOptions& options :
       {DecodeOptions{.tree_nodes = 0}, DecodeOptions{.tree_nodes = 256},
        DecodeOptions{.drafting = Drafting::kInPass, .tree_nodes = 64}}) {
    EXPECT_THROW(add({}, options), Error);
  }
  engine_.set_heads({});
  EXPECT_THROW(add({}), Error);
  EXPECT_EQ(engine_.add_sequence(), 0);
}

}  // namespace
}  // namespace firp
