#include "decode/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "decode/batch_decoder.h"
#include "decode/rounding.h"
#include "decode/test_model.h"
#include "engine/llama_engine.h"
#include "engine/native_engine.h"
#include "plan/measuring.h"

namespace firp {
namespace {

using testing::HasSubstr;

constexpr int kVocabulary = TestModel::kVocabulary;

class Sessions : public testing::Test {
 protected:
  struct Text {
    std::vector<Token> tokens;
    DecodeStats stats;
  };
  Text run(const DecodeOptions& options, int max_tokens = 100, Token end = kNoToken,
           Planner* planner = nullptr) {
    BatchDecoder decoder(*engine_, planner);
    Session session(decoder, options);
    session.append(kPrompt);
    Text text;
    text.stats = generate(
        session, max_tokens, [&](Token token) { return token == end; },
        [&](const DecodedToken& decoded) {
          text.tokens.push_back(decoded.token);
          return true;
        });
    std::vector<Token> expected = kPrompt;
    expected.insert(expected.end(), text.tokens.begin(), text.tokens.end());
    EXPECT_EQ(session.tokens(), expected);
    return text;
  }

  const std::vector<Token> kPrompt = {1, 2, 3, 4, 5, 6, 7, 0, 1, 2};
  TestModel model_;
  const std::unique_ptr<Engine> engine_ =
      model_.engine({.threads = 2, .context = 160, .max_rows = 256});
  BatchDecoder decoder_{*engine_};
};

std::vector<SamplingOptions> samplings() {
  return {{},
          {.temperature = 0.8f, .seed = 1},
          {.temperature = 1.5f, .top_k = 0, .top_p = 1, .min_p = 0, .seed = 2},
          {.repeat_penalty = 1.3f},
          {.temperature = 1.0f, .repeat_penalty = 1.2f, .repeat_last_n = 8, .seed = 3},
          {.temperature = 1.0f,
           .dynatemp_range = 0.5f,
           .logit_bias = {{3, 1.0f}},
           .top_k = 6,
           .typical_p = 0.9f,
           .xtc_probability = 0.5f,
           .frequency_penalty = 0.3f,
           .presence_penalty = 0.3f,
           .seed = 4},
          {.top_n_sigma = 1.5f, .xtc_probability = 0.4f, .seed = 5},
          {.dry = {.multiplier = 1.5f, .penalty_last_n = -1}},
          {.temperature = 0.9f, .dry = {.multiplier = 0.8f, .allowed_length = 1}, .seed = 6},
          {.temperature = 1, .mirostat = {.version = 1, .tau = 1.5f}, .seed = 7},
          {.temperature = 1.2f, .mirostat = {.version = 2, .tau = 1, .eta = 0.5f}, .seed = 8},
          {.temperature = 1,
           .repeat_penalty = 1.2f,
           .samplers = {Sampler::kTemperature, Sampler::kTopP, Sampler::kPenalties, Sampler::kTopK},
           .seed = 9},
          {.temperature = 1,
           .min_p = 0.1f,
           .min_keep = 3,
           .adaptive = {.target = 0.3f, .decay = 0.5f},
           .samplers = {Sampler::kMinP, Sampler::kAdaptiveP},
           .seed = 10}};
}

TEST_F(Sessions, TheTextIsTheSameWithAndWithoutDrafts) {
  for (const SamplingOptions& sampling : samplings()) {
    const Text plain = run({.sampling = sampling, .method = DraftMethod::kNone});
    ASSERT_EQ(plain.tokens.size(), 100u);
    EXPECT_EQ(plain.stats.forwards, 100);
    for (const Drafting drafting : {Drafting::kInPass, Drafting::kDeferred}) {
      for (const int nodes : {1, 2, 7, 16, 60}) {
        const Text drafted = run({.sampling = sampling, .drafting = drafting, .tree_nodes = nodes});
        EXPECT_EQ(drafted.tokens, plain.tokens) << nodes << " nodes";
        EXPECT_EQ(drafted.stats.tokens, 100);
        if (nodes == 60) {
          EXPECT_LT(drafted.stats.forwards, 70);
        }
      }
      EXPECT_EQ(run({.sampling = sampling, .drafting = drafting, .chain = true}).tokens,
                plain.tokens);
    }
    for (const DraftMethod method : {DraftMethod::kNone, DraftMethod::kFirp}) {
      for (const int nodes : {1, 9, 40}) {
        const Text drafted =
            run({.sampling = sampling, .method = method, .ngrams = true, .tree_nodes = nodes});
        EXPECT_EQ(drafted.tokens, plain.tokens) << nodes << " nodes, n-grams";
        EXPECT_LT(drafted.stats.forwards, 100);
      }
      // Whatever it chooses: passes that cost nothing, and passes that cost much.
      for (const double seconds : {1e-9, 1.0}) {
        Planner planner(PassCosts{{{1, 1e-3}, {32, 1e-3 + seconds}}, {1e-5, 2e-5, 1e-4}, 0});
        const DecodeOptions options = {.sampling = sampling, .method = method, .ngrams = true};
        EXPECT_EQ(run(options, 100, kNoToken, &planner).tokens, plain.tokens);
      }
    }
  }
}

TEST_F(Sessions, DeferredDraftsAreThoseOfTheSamePass) {
  for (const int nodes : {3, 12, 40}) {
    const Text in_pass = run({.drafting = Drafting::kInPass, .tree_nodes = nodes});
    const Text deferred = run({.drafting = Drafting::kDeferred, .tree_nodes = nodes});
    EXPECT_EQ(in_pass.stats.forwards, deferred.stats.forwards);
    EXPECT_EQ(in_pass.stats.drafted, deferred.stats.drafted);
  }
}

TEST_F(Sessions, TokenInputsDraftDeferredOnly) {
  for (DraftMap& map : model_.heads.steps) map.token.assign(map.weight.rbegin(), map.weight.rend());
  const Text without = run({.tree_nodes = 12});
  engine_->set_heads(model_.heads);
  const Text with = run({.tree_nodes = 12});
  EXPECT_EQ(with.tokens, without.tokens);
  EXPECT_NE(with.stats.forwards, without.stats.forwards) << "the drafts should be others";
  EXPECT_THROW(Session(decoder_, {.drafting = Drafting::kInPass, .tree_nodes = 12}), Error);
}

TEST_F(Sessions, MedusaHeadsDraftInBothWays) {
  const Text plain = run({.method = DraftMethod::kNone});
  model_.heads.method = HeadsMethod::kMedusa;
  for (DraftMap& map : model_.heads.steps) map.layer = model_.model->config().layers;
  engine_->set_heads(model_.heads);
  const Text deferred = run({.drafting = Drafting::kDeferred, .tree_nodes = 12});
  const Text in_pass = run({.drafting = Drafting::kInPass, .tree_nodes = 12});
  EXPECT_EQ(deferred.tokens, plain.tokens);
  EXPECT_EQ(in_pass.tokens, plain.tokens);
  EXPECT_LT(deferred.stats.forwards, plain.stats.forwards);
  EXPECT_EQ(deferred.stats.forwards, in_pass.stats.forwards);
}

TEST_F(Sessions, RivalsGiveTheSameTextWithFewerPasses) {
  const Model other(model_.directory / "tiny.gguf");
  NativeEngine drafter(other, {.threads = 1, .context = 130, .max_rows = 7});
  const PartialModel part = {.skipped = {2, 3}, .steps = 3};
  for (const SamplingOptions& sampling : samplings()) {
    const Text plain = run({.sampling = sampling, .method = DraftMethod::kNone});
    for (const DraftMethod method :
         {DraftMethod::kLookahead, DraftMethod::kPartialModel, DraftMethod::kDraftModel}) {
      for (const bool chain : {false, true}) {
        for (const bool ngrams : {false, true}) {
          const Text drafted = run({.sampling = sampling,
                                    .method = method,
                                    .partial_model = part,
                                    .draft_model = &drafter,
                                    .ngrams = ngrams,
                                    .tree_nodes = 20,
                                    .chain = chain});
          EXPECT_EQ(drafted.tokens, plain.tokens) << static_cast<int>(method);
          EXPECT_LT(drafted.stats.forwards, 100) << static_cast<int>(method);
        }
      }
    }
    Planner planner(PassCosts{{{1, 1e-3}, {32, 1.1e-3}}, {}, 0});
    const DecodeOptions options = {
        .sampling = sampling, .method = DraftMethod::kPartialModel, .partial_model = part};
    EXPECT_EQ(run(options, 100, kNoToken, &planner).tokens, plain.tokens);
    EXPECT_FALSE(planner.costs().draft_seconds.empty()) << "the first draft is timed";
  }
  // To the end of the context, and over the drafter's.
  EXPECT_EQ(run({.method = DraftMethod::kLookahead}, 1000).tokens.size(), 150u);
  EXPECT_EQ(run({.method = DraftMethod::kDraftModel, .draft_model = &drafter}, 1000).tokens,
            run({.method = DraftMethod::kNone}, 1000).tokens);
}

TEST_F(Sessions, ADrafterThatIsTheModelItselfIsAlwaysRight) {
  NativeEngine drafter(*model_.model, {.threads = 1, .context = 160, .max_rows = 64});
  const Text by_model =
      run({.method = DraftMethod::kDraftModel, .draft_model = &drafter, .chain = true});
  EXPECT_EQ(by_model.stats.forwards, 21) << "1 token, then 4 drafts and 1 token each time";
  const Text by_part = run({.method = DraftMethod::kPartialModel,
                            .partial_model = {.skipped = {}, .steps = 4},
                            .chain = true});
  EXPECT_EQ(by_part.stats.forwards, 21);
}

TEST_F(Sessions, LookaheadFindsTextThatRepeats) {
  // Greedy decoding of so small a model soon goes in circles.
  const Text plain = run({.method = DraftMethod::kNone}, 140);
  const Text drafted = run({.method = DraftMethod::kLookahead}, 140);
  EXPECT_EQ(drafted.tokens, plain.tokens);
  EXPECT_LT(drafted.stats.forwards, 100);
}

/// With drafts and without, and whether the best tokens are looked at or all logits.
TEST_F(Sessions, ProbabilitiesAreThoseOfTheModel) {
  const auto all = [&](DecodeOptions options) {
    options.likeliest = 3;
    Session session(decoder_, options);
    session.append(kPrompt);
    std::vector<TokenProbability> probabilities;
    while (probabilities.size() < 60) {
      const std::span<const DecodedToken> decoded = session.step();
      EXPECT_EQ(session.probabilities().size(), decoded.size());
      for (const TokenProbability& each : session.probabilities()) probabilities.push_back(each);
    }
    probabilities.resize(60);
    return probabilities;
  };
  const auto expect_equal = [](const std::vector<TokenProbability>& a,
                               const std::vector<TokenProbability>& b, float error) {
    for (std::size_t i = 0; i < a.size(); ++i) {
      ASSERT_NEAR(a[i].log_probability, b[i].log_probability, error) << i;
      ASSERT_EQ(a[i].likeliest.size(), 3u);
      for (std::size_t k = 0; k < 3; ++k) {
        EXPECT_EQ(a[i].likeliest[k].token, b[i].likeliest[k].token);
        EXPECT_NEAR(a[i].likeliest[k].logit, b[i].likeliest[k].logit, error);
      }
    }
  };
  for (const SamplingOptions& sampling :
       {SamplingOptions{}, SamplingOptions{.temperature = 1, .seed = 2},
        SamplingOptions{.temperature = 1, .top_k = 0, .seed = 2}}) {
    const auto plain = all({.sampling = sampling, .method = DraftMethod::kNone});
    expect_equal(all({.sampling = sampling, .tree_nodes = 12}), plain, 0);
    for (const TokenProbability& each : plain) {
      EXPECT_LE(each.log_probability, each.likeliest[0].logit);
      EXPECT_GE(each.likeliest[0].logit, std::log(1.0f / kVocabulary));
    }
  }
  // Top-k of the whole vocabulary is no top-k.
  expect_equal(
      all({.sampling =
               {.temperature = 1, .top_k = kVocabulary, .top_p = 1, .min_p = 0, .seed = 4}}),
      all({.sampling = {.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0, .seed = 4}}), 1e-5f);
}

/// Of what is left out nothing is told, and what is left sums to 1.
TEST_F(Sessions, ProbabilitiesCanBeThoseOfSampling) {
  const auto all = [&](int nodes) {
    Session session(decoder_, {.sampling = {.temperature = 0.7f, .top_k = 3, .seed = 2},
                               .tree_nodes = nodes,
                               .likeliest = 8,
                               .after_sampling = true});
    session.append(kPrompt);
    std::vector<TokenProbability> probabilities;
    while (probabilities.size() < 40) {
      session.step();
      std::ranges::copy(session.probabilities(), std::back_inserter(probabilities));
    }
    probabilities.resize(40);
    return probabilities;
  };
  const auto plain = all(1);
  const auto drafted = all(12);
  bool leaves_some = false;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const auto& likeliest = plain[i].likeliest;
    ASSERT_LE(likeliest.size(), 3u);
    leaves_some = leaves_some || likeliest.size() > 1;
    double sum = 0;
    bool is_there = false;
    for (const TokenLogit& each : likeliest) {
      sum += std::exp(double{each.logit});
      is_there = is_there || each.logit == plain[i].log_probability;
    }
    EXPECT_NEAR(sum, 1, 1e-5);
    EXPECT_TRUE(is_there);
    EXPECT_EQ(drafted[i].log_probability, plain[i].log_probability);
    EXPECT_EQ(drafted[i].likeliest.size(), likeliest.size());
  }
  EXPECT_TRUE(leaves_some);
}

TEST_F(Sessions, SaysWhatWasVerifiedAndAccepted) {
  Session session(decoder_, {.tree_nodes = 12});
  session.append(kPrompt);
  int accepted = 0;
  for (int pass = 0; pass < 40; ++pass) {
    const std::span<const DecodedToken> decoded = session.step();
    const VerifiedTree& verified = session.verified();
    ASSERT_EQ(verified.accepted.size() + 1, decoded.size());
    EXPECT_EQ(verified.tree.size(), pass == 0 ? 0u : 12u);
    int last = kRoot;
    for (std::size_t i = 0; i < verified.accepted.size(); ++i) {
      const DraftNode& node = verified.tree[verified.accepted[i]];
      EXPECT_EQ(node.parent, last);
      EXPECT_EQ(node.token, decoded[i].token);
      last = verified.accepted[i];
      ++accepted;
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST_F(Sessions, StopsWhereItIsTold) {
  const Text plain = run({.method = DraftMethod::kNone});
  for (const int max_tokens : {0, 1, 2, 3, 50}) {
    const Text drafted = run({.tree_nodes = 40}, max_tokens);
    EXPECT_EQ(drafted.tokens,
              std::vector<Token>(plain.tokens.begin(), plain.tokens.begin() + max_tokens));
  }
  for (Token end = 0; end < kVocabulary; ++end) {
    const auto at = std::ranges::find(plain.tokens, end);
    EXPECT_EQ(run({.tree_nodes = 40}, 100, end).tokens,
              std::vector<Token>(plain.tokens.begin(), at));
  }
  // The context holds 160 positions, 10 of them the prompt's.
  EXPECT_EQ(run({.method = DraftMethod::kNone}, 1000).tokens.size(), 150u);
  EXPECT_EQ(run({.tree_nodes = 40}, 1000).tokens, run({.method = DraftMethod::kNone}, 1000).tokens);
  EXPECT_EQ(run({.drafting = Drafting::kInPass, .tree_nodes = 40}, 1000).tokens.size(), 150u);
}

TEST_F(Sessions, AConversationContinuesAsIfItWereOneText) {
  const std::vector<Token> turn = {3, 3, 1};
  for (const SamplingOptions& sampling : samplings()) {
    std::vector<std::vector<Token>> texts;
    for (const DraftMethod method : {DraftMethod::kNone, DraftMethod::kFirp}) {
      Session session(decoder_, {.sampling = sampling, .method = method, .tree_nodes = 30});
      const auto never = [](Token) { return false; };
      const auto go_on = [](const DecodedToken&) { return true; };
      session.append(kPrompt);
      generate(session, 13, never, go_on);
      session.append(turn);
      generate(session, 20, never, go_on);
      session.truncate(25);
      generate(session, 20, never, go_on);
      texts.push_back(session.tokens());
      EXPECT_EQ(session.tokens().size(), 45u);
    }
    EXPECT_EQ(texts[0], texts[1]);
  }
}

/// What samplers learnt from tokens that were cut off is forgotten.
TEST_F(Sessions, TextThatIsCutAndDecodedAgainIsTheSame) {
  for (const SamplingOptions& sampling : samplings()) {
    Session session(decoder_, {.sampling = sampling, .tree_nodes = 12});
    session.append(kPrompt);
    while (session.tokens().size() < 50) session.step();
    std::vector<Token> first = session.tokens();
    session.truncate(20);
    while (session.tokens().size() < first.size()) session.step();
    std::vector<Token> again = session.tokens();
    again.resize(first.size());
    EXPECT_EQ(again, first);
  }
}

TEST_F(Sessions, MistakesAreNamed) {
  Session session(decoder_, {.method = DraftMethod::kNone});
  EXPECT_THROW(session.step(), Error);
  EXPECT_THROW(session.append(std::vector<Token>(161, 1)), Error);
  EXPECT_THROW(Session(decoder_, {.tree_nodes = 0}), Error);
  EXPECT_THROW(Session(decoder_, {.tree_nodes = 256}), Error);
  EXPECT_THROW(Session(decoder_, {.drafting = Drafting::kInPass, .tree_nodes = 64}), Error);
  write_tiny_model(model_.directory / "other.gguf", {.vocabulary_size = kVocabulary + 8});
  const Model other(model_.directory / "other.gguf");
  NativeEngine drafter(other, {.threads = 1, .context = 160});
  EXPECT_THROW(Session(decoder_, {.method = DraftMethod::kDraftModel, .draft_model = &drafter}),
               Error);
  EXPECT_EQ(drafter.add_sequence(), 0) << "a failed session must give its sequence back";
  engine_->set_heads({});
  EXPECT_THROW(Session(decoder_, {}), Error);
  const PassCosts costs = measure_costs(*engine_);  // without heads, too
  EXPECT_GT(costs.verify(1, 0), 0);
  EXPECT_TRUE(costs.draft_seconds.empty());
  EXPECT_EQ(engine_->add_sequence(), 1) << "a failed session must give its sequence back";
}

/// For engines whose rows depend on what is beside them: here every row is too near a tie.
TEST_F(Sessions, NearTiesAreDecidedAlone) {
  const Text plain = run({.method = DraftMethod::kNone});
  const Text alone = run({.tree_nodes = 8, .tie_margin = 1e30f});
  EXPECT_EQ(alone.tokens, plain.tokens);
  EXPECT_GE(alone.stats.tie_passes, alone.stats.tokens - 1);
  // Where more than the best token decides, no tie is looked for.
  for (const SamplingOptions& sampling :
       {SamplingOptions{.repeat_penalty = 1.1f}, SamplingOptions{.temperature = 0.8f, .seed = 3}}) {
    const Text sampled = run({.sampling = sampling, .tree_nodes = 8, .tie_margin = 1e30f});
    EXPECT_EQ(sampled.tokens, run({.sampling = sampling, .method = DraftMethod::kNone}).tokens);
    EXPECT_EQ(sampled.stats.tie_passes, 0);
  }
}

/// NaN must neither end a text without a word nor be taken for a token.
TEST(Session, AModelThatGivesNoNumbersIsAnErrorThatNamesItsFile) {
  const TemporaryDirectory directory;
  write_tiny_model(
      directory / "nan.gguf",
      {.vocabulary_size = kVocabulary, .logit_spread = std::numeric_limits<float>::quiet_NaN()});
  const auto file = std::make_shared<const GgufFile>(directory / "nan.gguf");
  const Model model(file);
  const EngineOptions options = {.threads = 1, .context = 64, .max_rows = 32};
  NativeEngine native(model, options);
  LlamaEngine llama(file, options, {});
  for (Engine* const engine : {static_cast<Engine*>(&native), static_cast<Engine*>(&llama)}) {
    for (const SamplingOptions& sampling :
         {SamplingOptions{}, SamplingOptions{.temperature = 1},
          SamplingOptions{.temperature = 1, .top_k = 0}, SamplingOptions{.repeat_penalty = 1.1f}}) {
      BatchDecoder decoder(*engine);
      Session session(decoder, {.sampling = sampling, .method = DraftMethod::kNone});
      session.append(std::vector<Token>{1, 2, 3});
      EXPECT_THAT(error_of([&] { session.step(); }), HasSubstr("its file is damaged"));
    }
    EXPECT_THROW(measure_costs(*engine), Error);
    EXPECT_THROW(measure_tie_margin(*engine), Error);
  }
}

TEST_F(Sessions, ALongPromptCanBeRunInParts) {
  std::vector<Token> prompt;
  for (int i = 0; i < 150; ++i) prompt.push_back(i * i % 7);
  const auto text_of = [&](Engine& engine, int parts) {
    BatchDecoder decoder(engine);
    Session session(decoder, {.tree_nodes = 4});
    EXPECT_FALSE(session.is_reading()) << "nothing to run";
    session.append(prompt);
    Session* const sessions[] = {&session};
    int passes = 0;
    for (; session.is_reading(); ++passes) {
      decoder.step(sessions);
      EXPECT_TRUE(session.decoded().empty());
    }
    EXPECT_EQ(passes, parts);
    std::vector<Token> text;
    while (text.size() < 6) {
      for (const DecodedToken& each : session.step()) text.push_back(each.token);
    }
    text.resize(6);
    return text;
  };
  const std::unique_ptr<Engine> narrow =
      model_.engine({.threads = 2, .context = 160, .max_rows = 60});
  EXPECT_EQ(text_of(*narrow, 3), text_of(*engine_, 1));
}

/// What is drafted for a sequence is decided by what came of its own passes, not by those of one
/// that has its turns in between.
TEST_F(Sessions, InTurnStopDraftingThatLosesAsOneDoesAlone) {
  const std::vector<Token> expected = run({.method = DraftMethod::kNone}).tokens;
  // Rows are too dear for any draft; a trial loses what makes it come again some 30 passes later.
  const PassCosts costs = {{{1, 1e-3}, {32, 1.0}}, {1e-4}, 0};
  Planner planner_of_one(costs, /*follow=*/false);
  const Text alone = run({}, 100, kNoToken, &planner_of_one);
  EXPECT_GT(alone.stats.drafting_passes, 3) << "more than one trial";
  EXPECT_LT(alone.stats.drafting_passes, 20);
  Planner planner(costs, /*follow=*/false);
  BatchDecoder decoder(*engine_, &planner);
  Session drafts(decoder, {});
  Session other(decoder, {.method = DraftMethod::kNone, .ngrams = true});
  drafts.append(kPrompt);
  other.append(kPrompt);
  std::vector<Token> text;
  while (text.size() < 100) {
    for (const DecodedToken& each : drafts.step()) text.push_back(each.token);
    other.step();
  }
  EXPECT_EQ(text, expected);
  EXPECT_EQ(drafts.stats().drafting_passes, alone.stats.drafting_passes);
}

}  // namespace
}  // namespace firp
