#include "serve/scheduler.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <climits>
#include <future>
#include <optional>
#include <thread>

#include "base/error.h"
#include "engine/llama_engine.h"
#include "model/heads.h"
#include "model/test_files.h"
#include "plan/measuring.h"
#include "serve/test_model.h"

namespace firp {
namespace {

class SchedulerTest : public testing::Test {
 protected:
  static constexpr int kMostWaiting = 256;

  static std::vector<Generation> generations(std::span<const Token> prompt, int max_tokens) {
    std::vector<Generation> list;
    list.push_back({.prompt = {prompt.begin(), prompt.end()}, .max_tokens = max_tokens});
    return list;
  }
  /// Of one answer.
  static Scheduler::Answer complete(
      Scheduler& scheduler, std::span<const Token> prompt, int max_tokens,
      const std::function<void(const ReplyPart&)>& on_part = [](const ReplyPart&) {},
      const std::function<bool()>& is_unwanted = [] { return false; }) {
    const Listener listener = {
        .on_part = [&](int, const ReplyPart& part, const Usage&) { on_part(part); },
        .is_unwanted = is_unwanted};
    return scheduler.complete(generations(prompt, max_tokens), listener).front();
  }
  static std::vector<Token> prompt(int i, int words) {
    std::string text = fmt::format("Text {}:", i);
    for (int k = 0; k < words; ++k) text += fmt::format(" w{}x{}", i, k);
    return Loaded::get().vocabulary.tokenize(text, /*add_bos=*/true);
  }
  static std::string answer(Scheduler& scheduler, std::span<const Token> tokens, int max_tokens) {
    std::string text;
    complete(scheduler, tokens, max_tokens, [&](const ReplyPart& part) { text += part.text; });
    return text;
  }
  static LlamaEngine llama_engine(int positions) {
    return LlamaEngine(Loaded::get().file, {.threads = 1, .context = positions}, {});
  }

  const DecodeOptions plain_{.method = DraftMethod::kNone};
};

/// Each prompt fits; what earlier ones hold is given up for the next one.
TEST_F(SchedulerTest, PromptsOneAfterTheOtherFindRoomOnBothEngines) {
  Loaded& loaded = Loaded::get();
  LlamaEngine llama = llama_engine(512);
  for (Engine* const engine :
       {static_cast<Engine*>(&*loaded.engine), static_cast<Engine*>(&llama)}) {
    BatchDecoder decoder(*engine);
    Scheduler scheduler(decoder, loaded.vocabulary, plain_, 4, kMostWaiting);
    for (int i = 0; i < 6; ++i) {
      ASSERT_GT(prompt(i, 40).size(), 512u / 4) << "four of them do not fit together";
      EXPECT_FALSE(answer(scheduler, prompt(i, 40), 4).empty()) << engine->isa() << " " << i;
    }
  }
}

/// The oldest goes on, the others wait, or begin again: all have the text that they have alone.
TEST_F(SchedulerTest, AnswersThatDoNotFitTogetherAreAllGiven) {
  Loaded& loaded = Loaded::get();
  LlamaEngine llama = llama_engine(512);
  for (Engine* const engine :
       {static_cast<Engine*>(&*loaded.engine), static_cast<Engine*>(&llama)}) {
    BatchDecoder decoder(*engine);
    std::optional<Scheduler> scheduler(std::in_place, decoder, loaded.vocabulary,
                                       DecodeOptions{.method = DraftMethod::kNone, .ngrams = true},
                                       4, kMostWaiting);
    constexpr int kAnswers = 5, kTokens = 50;
    std::vector<std::future<std::string>> together;
    for (int i = 0; i < kAnswers; ++i) {
      together.push_back(std::async(std::launch::async,
                                    [&, i] { return answer(*scheduler, prompt(i, 50), kTokens); }));
    }
    std::vector<std::string> texts;
    for (std::future<std::string>& each : together) texts.push_back(each.get());
    scheduler.reset();  // the engine is another one's now
    Scheduler alone(decoder, loaded.vocabulary, plain_, 1, kMostWaiting);
    for (int i = 0; i < kAnswers; ++i) {
      EXPECT_FALSE(texts[i].empty());
      if (engine == &llama) continue;  // whose rows are the same within rounding
      if (quick_tests() && i > 0) continue;
      EXPECT_EQ(texts[i], answer(alone, prompt(i, 50), kTokens)) << i;
    }
  }
}

/// Also where who waits is told so by an error.
TEST_F(SchedulerTest, NobodyNeedWaitForASlot) {
  Loaded& loaded = Loaded::get();
  BatchDecoder decoder(*loaded.engine);
  Scheduler scheduler(decoder, loaded.vocabulary, plain_, 1, kMostWaiting);
  std::future<std::string> busy =
      std::async(std::launch::async, [&] { return answer(scheduler, prompt(0, 8), 100); });
  while (!scheduler.status().slots[0].is_busy) std::this_thread::yield();
  EXPECT_THROW(scheduler.erase(0, [] { return true; }), Cancelled);
  EXPECT_THROW(scheduler.erase(0, []() -> bool { throw RequestError(kTimedOut, "late"); }),
               RequestError);
  EXPECT_FALSE(busy.get().empty());
  EXPECT_GT(scheduler.erase(0, [] { return false; }), 0);
}

/// As `firp serve` has it: heads, n-grams, and a planner that decides for each sequence.
TEST_F(SchedulerTest, AnswersAtOnceHavePlainsTextWithAPlannerToo) {
  Loaded& loaded = Loaded::get();
  NativeEngine engine(*loaded.model, {.threads = 2, .context = 512});
  engine.set_heads(read_heads(FIRP_HEADS, loaded.file.get()));
  constexpr int kAnswers = 5, kTokens = 32;
  BatchDecoder without_planner(engine);
  std::optional<Scheduler> plain(std::in_place, without_planner, loaded.vocabulary, plain_, 1,
                                 kMostWaiting);
  std::vector<std::string> expected;
  for (int i = 0; i < kAnswers; ++i) expected.push_back(answer(*plain, prompt(i, 8), kTokens));
  plain.reset();  // the engine is another one's now
  // Whatever it decides: drafts that pay, drafts that lose, and what is true of this machine.
  const PassCosts cheap = {.verify_seconds = {{1, 1e-3}, {32, 1.1e-3}},
                           .draft_seconds = {1e-5, 2e-5}};
  const PassCosts dear = {.verify_seconds = {{1, 1e-3}, {32, 1}}, .draft_seconds = {1e-2, 2e-2}};
  for (const PassCosts& costs : {cheap, dear, measure_costs(engine)}) {
    Planner planner(costs);
    BatchDecoder decoder(engine, &planner);
    Scheduler scheduler(decoder, loaded.vocabulary, {.ngrams = true}, 3, kMostWaiting);
    std::vector<std::future<Scheduler::Answer>> together;
    std::vector<std::string> texts(kAnswers);
    for (int i = 0; i < kAnswers; ++i) {
      together.push_back(std::async(std::launch::async, [&, i] {
        return complete(scheduler, prompt(i, 8), kTokens,
                        [&](const ReplyPart& part) { texts[i] += part.text; });
      }));
    }
    long long drafting_passes = 0;
    for (std::future<Scheduler::Answer>& each : together) {
      drafting_passes += each.get().usage.stats.drafting_passes;
    }
    EXPECT_EQ(texts, expected);
    EXPECT_GT(drafting_passes, 0);
  }
}

/// A draft that ends behind the context must not make the answer longer.
TEST_F(SchedulerTest, AnswersEndWithTheContextHoweverTheyAreDrafted) {
  Loaded& loaded = Loaded::get();
  const DecodeOptions ngrams = {.method = DraftMethod::kNone, .ngrams = true, .tree_nodes = 16};
  for (int length = 470; length < 480; ++length) {
    std::vector<Token> tokens;  // a text that repeats itself, and goes on so
    const std::vector<Token> words =
        loaded.vocabulary.tokenize(" one two three four five", /*add_bos=*/false);
    for (int i = 0; i < length; ++i) tokens.push_back(words[i % words.size()]);
    for (const DecodeOptions& options : {plain_, ngrams}) {
      Scheduler scheduler(*loaded.decoder, loaded.vocabulary, options, 1, kMostWaiting);
      const Scheduler::Answer all = complete(scheduler, tokens, INT_MAX);
      EXPECT_LE(all.usage.prompt_tokens + all.usage.completion_tokens, 512) << length;
    }
  }
}

/// Before a request finds out.
TEST_F(SchedulerTest, WhatCannotDraftIsRefusedAtTheStart) {
  Loaded& loaded = Loaded::get();
  EXPECT_THROW(Scheduler(*loaded.decoder, loaded.vocabulary, {.method = DraftMethod::kFirp}, 1,
                         kMostWaiting),
               Error)
      << "there are no heads";
}

TEST_F(SchedulerTest, ALoneAnswerMayHaveAllThereIs) {
  Loaded& loaded = Loaded::get();
  Scheduler scheduler(*loaded.decoder, loaded.vocabulary, plain_, 4, kMostWaiting);
  for (int i = 0; i < 3; ++i) answer(scheduler, prompt(i, 40), 2);  // which hold most of it
  const std::vector<Token> tokens = prompt(9, 100);
  ASSERT_GT(tokens.size(), 400u);
  const Scheduler::Answer all = complete(scheduler, tokens, INT_MAX);
  if (all.finish == FinishReason::kLength) {
    EXPECT_EQ(all.usage.prompt_tokens + all.usage.completion_tokens, 512);
  }
}

/// In the queue, and while the prompt is read or the answer written.
TEST_F(SchedulerTest, UnwantedAnswersEnd) {
  Loaded& loaded = Loaded::get();
  std::optional<Scheduler> only(std::in_place, *loaded.decoder, loaded.vocabulary, plain_, 1,
                                kMostWaiting);
  Scheduler& scheduler = *only;
  for (const int last_look : {0, 1, 2}) {
    int looks = 0;
    EXPECT_THROW(complete(
                     scheduler, prompt(last_look, 100), INT_MAX, [](const ReplyPart&) {},
                     [&] { return looks++ == last_look; }),
                 Cancelled);
    EXPECT_EQ(looks, last_look + 1);
  }
  std::atomic<bool> begun = false, leave = false;
  std::atomic<int> waits = 0;
  auto running = std::async(std::launch::async, [&] {
    EXPECT_THROW(complete(
                     scheduler, prompt(1, 10), INT_MAX, [&](const ReplyPart&) { begun = true; },
                     [&] { return leave.load(); }),
                 Cancelled);
  });
  while (!begun) std::this_thread::yield();
  auto queued = std::async(std::launch::async, [&] {
    EXPECT_THROW(
        complete(
            scheduler, prompt(2, 10), 1, [](const ReplyPart&) {}, [&] { return ++waits >= 3; }),
        Cancelled);
  });
  queued.wait();
  leave = true;
  running.wait();
  const std::vector<Token> tokens = prompt(3, 20);
  const std::string after = answer(scheduler, tokens, 8);
  only.reset();  // the engine is another one's now
  Scheduler alone(*loaded.decoder, loaded.vocabulary, plain_, 1, kMostWaiting);
  EXPECT_EQ(after, answer(alone, tokens, 8)) << "nothing is left of them";
}

/// Answers to one request are told apart, and each has the text of its own random numbers.
TEST_F(SchedulerTest, SeveralAnswersToARequestAreThoseOfTheirStreams) {
  Loaded& loaded = Loaded::get();
  Scheduler scheduler(*loaded.decoder, loaded.vocabulary, plain_, 2, kMostWaiting);
  const auto with_stream = [&](int stream) {
    std::vector<Generation> list = generations(prompt(1, 2), 24);
    list[0].sampling.temperature = 1.5f;
    list[0].sampling.seed = 3;
    list[0].sampling.stream = stream;
    return list[0];
  };
  const auto texts_of = [&](std::vector<Generation> list) {
    std::vector<std::string> texts(list.size());
    scheduler.complete(std::move(list),
                       {.on_part = [&](int answer, const ReplyPart& part, const Usage&) {
                         texts[answer] += part.text;
                       }});
    return texts;
  };
  const std::vector<std::string> together =
      texts_of({with_stream(0), with_stream(1), with_stream(2)});
  for (int i = 0; i < 3; ++i) EXPECT_EQ(together[i], texts_of({with_stream(i)})[0]);
  EXPECT_NE(together[0], together[1]);
}

/// Texts lose their places to answers that began before, and are read again.
TEST_F(SchedulerTest, EmbeddingsThatDoNotFitBesideAnswersAreTheSame) {
  Loaded& loaded = Loaded::get();
  LlamaEngine llama = llama_engine(512);
  std::vector<std::vector<Token>> texts;
  for (int i = 0; i < 7; ++i) texts.push_back(prompt(i, i % 2 == 0 ? 50 : 4));
  for (Engine* const engine :
       {static_cast<Engine*>(&*loaded.engine), static_cast<Engine*>(&llama)}) {
    BatchDecoder decoder(*engine);
    Scheduler scheduler(decoder, loaded.vocabulary, plain_, 3, kMostWaiting);
    const auto embed = [&](const std::vector<std::vector<Token>>& some) {
      return scheduler.embed(some, Pooling::kMean, [] { return false; });
    };
    std::vector<std::future<std::string>> written;
    for (int i = 0; i < 2; ++i) {
      written.push_back(
          std::async(std::launch::async, [&, i] { return answer(scheduler, prompt(i, 40), 20); }));
    }
    const std::vector<Scheduler::Answer> beside = embed(texts);
    for (std::future<std::string>& each : written) EXPECT_FALSE(each.get().empty());
    ASSERT_EQ(beside.size(), texts.size());
    for (std::size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ(beside[i].usage.prompt_tokens, std::ssize(texts[i]));
      EXPECT_EQ(beside[i].usage.cached_tokens, 0);
      ASSERT_EQ(std::ssize(beside[i].embedding), engine->config().hidden_size);
      if (engine == &llama) continue;  // whose rows are the same within rounding
      EXPECT_EQ(beside[i].embedding, embed({texts[i]}).front().embedding) << i;
    }
    EXPECT_TRUE(std::ranges::none_of(scheduler.status().slots, &Scheduler::Slot::is_busy));
  }
}

TEST_F(SchedulerTest, EmbeddingsThatNobodyWantsEnd) {
  Loaded& loaded = Loaded::get();
  Scheduler scheduler(*loaded.decoder, loaded.vocabulary, plain_, 2, kMostWaiting);
  const std::vector<std::vector<Token>> texts(200, prompt(1, 80));
  EXPECT_THROW(scheduler.embed(texts, Pooling::kMean, [] { return true; }), Cancelled);
  EXPECT_LT(scheduler.status().answers, 200);
  EXPECT_FALSE(answer(scheduler, prompt(2, 4), 4).empty());
}

TEST_F(SchedulerTest, TooManyThatWaitAreRefused) {
  Loaded& loaded = Loaded::get();
  Scheduler scheduler(*loaded.decoder, loaded.vocabulary, plain_, 1, kMostWaiting);
  std::atomic<bool> leave = false;
  std::atomic<int> refused = 0, cancelled = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < kMostWaiting + 1 + 5; ++i) {
    threads.emplace_back([&] {
      try {
        complete(
            scheduler, prompt(1, 10), INT_MAX, [](const ReplyPart&) {},
            [&] { return leave.load(); });
      } catch (const RequestError& error) {
        EXPECT_EQ(error.kind.status, 503);
        ++refused;
      } catch (const Cancelled&) {
        ++cancelled;
      }
    });
  }
  while (refused < 5) std::this_thread::yield();
  EXPECT_THROW(scheduler.refuse_if_full(1), RequestError);
  leave = true;
  for (std::thread& each : threads) each.join();
  EXPECT_EQ(refused, 5);
  EXPECT_EQ(cancelled, kMostWaiting + 1);
}

}  // namespace
}  // namespace firp
