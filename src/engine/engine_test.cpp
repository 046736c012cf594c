#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <random>

#include "base/error.h"
#include "engine/native_engine.h"
#include "engine/test_engines.h"
#include "engine/token_chain.h"
#include "kernels/kernels.h"
#include "kernels/test_products.h"
#include "model/tensor_types.h"
#include "model/test_files.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

/// The law: logits of a position do not depend on whether it was computed alone, in a tree with
/// pseudo rows beside it, or in a prefill chunk; nor on other sequences or the number of threads.
void expect_bit_equal_rows(const TinyModelOptions& options, const std::string& isa,
                           std::uint32_t seed, CacheType cache_type = CacheType::kF16) {
  SCOPED_TRACE(options.architecture + " " + ggml_type_name(options.type) + " " + isa +
               (cache_type == CacheType::kQ8_0 ? " Q8_0 cache" : ""));
  const TinyModel model(options, isa);
  std::mt19937 random(seed);
  NativeEngine batched(*model,
                       {.threads = 3, .context = 200, .max_rows = 128, .cache_type = cache_type});
  NativeEngine alone(*model,
                     {.threads = 1, .context = 200, .max_rows = 1, .cache_type = cache_type});
  ASSERT_EQ(batched.isa(), isa);
  // Steps that enter at different layers, a later step below an earlier one.
  batched.set_heads(random_heads((*model).config(), {2, 1, 2}, seed));
  const int vocabulary = options.vocabulary_size;
  const std::vector<Token> context =
      random_tokens(56 + static_cast<int>(random() % 12), vocabulary, random);
  const std::vector<Token> other = random_tokens(9, vocabulary, random);

  const int sequence = batched.add_sequence();
  const int neighbour = batched.add_sequence();
  append(batched, neighbour, other, 4);
  append(batched, sequence, context, 1 + static_cast<int>(random() % 40));
  const int reference = alone.add_sequence();
  append(alone, reference, context, 1);

  // A random tree below the context, a chain in the other sequence, pseudo rows below some nodes.
  std::vector<Row> rows;
  const int nodes = 1 + static_cast<int>(random() % 24);
  for (int i = 0; i < nodes; ++i) {
    const int parent = i == 0 ? kContext : static_cast<int>(random() % (i + 1)) - 1;
    rows.push_back({.sequence = sequence,
                    .parent = parent,
                    .token = static_cast<Token>(random() % vocabulary)});
  }
  rows.push_back({.sequence = neighbour, .token = 1});
  for (int node = 0; node < nodes; node += 2) {
    int parent = node;
    for (int step = 1; step <= 3; ++step) {
      rows.push_back({.sequence = sequence, .parent = parent, .step = step});
      parent = static_cast<int>(rows.size()) - 1;
    }
  }
  const Pass pass = batched.forward(rows);
  const std::span<const float> logits = pass.logits(first_rows(nodes));

  for (int node = 0; node < nodes; ++node) {
    std::vector<Token> path;
    for (int i = node; i != kContext; i = rows[i].parent) path.insert(path.begin(), rows[i].token);
    append(alone, reference, std::span(path).first(path.size() - 1), 1);
    const std::vector<float> expected = logits_alone(alone, reference, path.back());
    ASSERT_TRUE(bits_equal(logits.subspan(static_cast<std::size_t>(node) * vocabulary, vocabulary),
                           expected))
        << "node " << node << " of " << nodes << " on a context of " << context.size();
    alone.truncate(reference, static_cast<int>(context.size()));
  }
}

TEST(Engine, RowsAreBitEqualAloneInATreeAndInAChunk) {
  std::uint32_t seed = 1;
  for (const std::string& isa : available_isas()) {
    for (const char* architecture : {"llama", "qwen2", "qwen3"}) {
      for (const ggml_type type : kMatrixTypes) {
        // A quick run takes another seventh of them for each instruction set.
        if (!quick_tests() || seed % 7 == 0) {
          expect_bit_equal_rows({.architecture = architecture, .type = type}, isa, seed);
        }
        ++seed;
      }
    }
    // What these differ by is between the products: one type will do.
    for (const char* architecture : {"gemma2", "gemma3", "phi3", "olmo2", "smollm3", "granite",
                                     "qwen3moe", "olmoe", "granitemoe"}) {
      for (const int window : {5, 32, 70}) {
        if (!quick_tests() || seed % 8 == 0) {
          expect_bit_equal_rows({.architecture = architecture,
                                 .type = GGML_TYPE_Q4_1,
                                 .layers = 4,
                                 .sliding_window = window},
                                isa, seed);
        }
        ++seed;
      }
    }
    for (const CacheType cache_type : {CacheType::kF16, CacheType::kQ8_0}) {
      for (int trial = 0; trial < (quick_tests() ? 1 : 4); ++trial) {
        expect_bit_equal_rows({.type = GGML_TYPE_Q4_1,
                               .query_heads = 4,
                               .kv_heads = 2,
                               .head_size = trial % 2 == 0 ? 80 : 64,
                               .tied_head = true},
                              isa, seed++, cache_type);
      }
    }
  }
}

template <typename Asked>
void expect_over(Asked asked) {
  try {
    asked();
    ADD_FAILURE() << "it answered";
  } catch (const std::logic_error& error) {
    EXPECT_STREQ(error.what(), "Engine: that pass is over");
  }
}

/// Whatever one asks a pass of at least a token row and a pseudo row of step 1 behind it.
void expect_over(const Pass& pass, int sequence) {
  const std::vector<int> rows = {0};
  const std::vector<std::vector<int>> anchors = {{1}};
  expect_over([&] { pass.rows(); });
  expect_over([&] { pass.position(0); });
  expect_over([&] { pass.hidden(0, 1); });
  expect_over([&] { pass.final_state(0); });
  expect_over([&] { pass.draft_source(0, 1); });
  expect_over([&] { pass.logits(rows); });
  expect_over([&] { pass.best_tokens(rows, 1); });
  expect_over([&] { pass.propose(anchors); });
  expect_over([&] { pass.propose(anchors[0]); });
  expect_over([&] { pass.propose(std::span<const std::vector<int>>()); });
  expect_over([&] { pass.commit(sequence, rows); });
}

TEST(Engine, APassThatIsOverSaysSo) {
  const TinyModel model({});
  std::atomic<bool> cancelled = false;
  NativeEngine engine(*model,
                      {.threads = 2, .context = 10, .positions = 100, .cancelled = &cancelled});
  engine.set_heads(random_heads((*model).config(), {1}, 1));
  const int sequence = engine.add_sequence();
  const std::vector<Row> rows = {{.sequence = sequence, .token = 3},
                                 {.sequence = sequence, .parent = 0, .step = 1}};
  const int captured[] = {1};
  const Pass first = engine.forward(rows, captured);
  const Pass second = engine.forward(rows, captured);
  expect_over(first, sequence);
  EXPECT_EQ(second.rows(), 2);

  // A pass that did not come about ends the one before it, too.
  EXPECT_THROW(engine.forward({}), std::invalid_argument);
  expect_over(second, sequence);
  const Pass third = engine.forward(rows, captured);
  cancelled = true;
  EXPECT_THROW(engine.forward(rows, captured), Cancelled);
  cancelled = false;
  expect_over(third, sequence);
  const Pass fourth = engine.forward(rows, captured);
  EXPECT_THROW(engine.forward(token_chain(sequence, std::vector<Token>(11, 1))), Error);
  expect_over(fourth, sequence);
  EXPECT_EQ(engine.length(sequence), 0);
}

TEST(Engine, APassAndItsProposalsOutliveWhatIsCommitted) {
  const TinyModel model({.type = GGML_TYPE_Q4_1});
  NativeEngine engine(*model, {.threads = 2, .context = 200, .positions = 1000});
  Heads heads = random_heads((*model).config(), {1, 2}, 1);
  add_sequential_heads(heads, 6, 2);
  engine.set_heads(heads);
  std::mt19937 random(3);
  const int a = engine.add_sequence(), b = engine.add_sequence();
  append(engine, a, random_tokens(63, 320, random), 63);
  const std::vector<Row> rows = {
      {.sequence = a, .token = 3},
      {.sequence = b, .token = 4},
      {.sequence = a, .parent = 0, .token = 5},
      {.sequence = a, .parent = 0, .step = 1},
      {.sequence = a, .parent = 3, .step = 2},
      {.sequence = b, .parent = 1, .step = 2},
  };
  const int captured[] = {1};
  const Pass pass = engine.forward(rows, captured);
  EXPECT_EQ(pass.rows(), 6);
  const std::vector<int> positions = {63, 0, 64, 64, 65, 2}, tokens = {2, 0, 1};
  const std::vector<std::vector<int>> anchors = {{3, 4}, {3}};
  const std::vector<Token> previous = {9, 10};
  // Everything that the pass gives, one behind the other.
  const auto all_results = [&] {
    std::vector<float> results = copied(pass.logits(tokens));
    const auto add = [&](std::span<const float> values) {
      results.insert(results.end(), values.begin(), values.end());
    };
    for (int row = 0; row < 6; ++row) {
      EXPECT_EQ(pass.position(row), positions[row]);
      if (row < 4) add(pass.hidden(row, 1));  // the others enter later
      add(pass.final_state(row));
    }
    for (const BestTokens& best : pass.best_tokens(tokens, 3, /*log_sums=*/true)) {
      for (const TokenLogit& each : best.tokens) add({&each.logit, 1});
    }
    for (const Proposal& proposal : pass.propose(anchors)) {
      for (int step = 1; step <= proposal.steps(); ++step) {
        for (const std::vector<Candidate>& list : proposal.behind(step, previous)) {
          for (const Candidate& each : list) add({&each.log_probability, 1});
        }
      }
    }
    return results;
  };
  const std::vector<float> before = all_results();
  const Proposal proposal = pass.propose(anchors[0]);
  pass.commit(b, std::vector<int>{1});
  EXPECT_TRUE(bits_equal(all_results(), before));
  pass.commit(a, std::vector<int>{0, 2});
  EXPECT_TRUE(bits_equal(all_results(), before));
  EXPECT_EQ(engine.length(a), 65);
  EXPECT_EQ(engine.length(b), 1);
  const int adopter = engine.add_sequence();
  EXPECT_EQ(engine.adopt(adopter, std::vector<Token>{4, 9}), 1);
  engine.retire_sequence(a);
  engine.remove_sequence(b);
  EXPECT_TRUE(bits_equal(all_results(), before));

  // A proposal even outlives the pass.
  const auto drafts = [&] {
    std::vector<float> probabilities;
    for (const std::vector<Candidate>& list : proposal.behind(2, previous)) {
      for (const Candidate& each : list) probabilities.push_back(each.log_probability);
    }
    return probabilities;
  };
  const std::vector<float> expected = drafts();
  engine.forward(token_chain(adopter, std::vector<Token>{1, 2, 3}));
  EXPECT_EQ(drafts(), expected);
}

TEST(Engine, WhoAsksForNothingIsGivenNothing) {
  const TinyModel model({});
  for (const bool sequential : {false, true}) {
    NativeEngine engine(*model, {.threads = 2, .context = 10});
    Heads heads = random_heads((*model).config(), {1}, 1);
    if (sequential) add_sequential_heads(heads, 6, 2);
    engine.set_heads(heads);
    const std::vector<Row> rows = {{.sequence = engine.add_sequence(), .token = 3},
                                   {.sequence = 0, .parent = 0, .step = 1}};
    const Pass pass = engine.forward(rows);
    EXPECT_TRUE(pass.logits({}).empty());
    EXPECT_TRUE(pass.best_tokens({}, 4).empty());
    EXPECT_TRUE(pass.propose(std::span<const std::vector<int>>()).empty());
    const std::vector<std::vector<int>> anchors = {{}, {1}};
    const std::vector<Proposal> proposals = pass.propose(anchors);
    EXPECT_EQ(proposals[0].steps(), 0);
    EXPECT_EQ(proposals[1].steps(), 1);
    EXPECT_TRUE(proposals[1].behind(1, {}).empty());
    EXPECT_EQ(pass.propose(std::vector<int>()).steps(), 0);
  }
}

TEST(Engine, OnlyAPathOfThePassIsCommitted) {
  const TinyModel model({});
  NativeEngine engine(*model, {.threads = 1, .context = 10, .positions = 100});
  engine.set_heads(random_heads((*model).config(), {1}, 1));
  const int a = engine.add_sequence(), b = engine.add_sequence();
  const std::vector<Row> rows = {
      {.sequence = a, .token = 1},
      {.sequence = a, .parent = 0, .token = 2},
      {.sequence = a, .parent = 0, .token = 3},
      {.sequence = a, .parent = 0, .step = 1},
      {.sequence = b, .token = 4},
  };
  const Pass pass = engine.forward(rows);
  for (const std::vector<int>& path :
       std::vector<std::vector<int>>{{1}, {0, 1, 2}, {0, 3}, {0, 4}, {4}, {-1}, {0, 5}}) {
    EXPECT_THROW(pass.commit(a, path), std::invalid_argument);
  }
  EXPECT_EQ(engine.length(a), 0);
  pass.commit(a, {});
  pass.commit(a, std::vector<int>{0, 2});
  EXPECT_THROW(pass.commit(a, std::vector<int>{0}), std::invalid_argument) << "a second path";
  EXPECT_EQ(engine.length(a), 2);
}

TEST(Engine, CommittedTreeRowsEqualRowsThatWereRunAlone) {
  const TinyModel model({.type = GGML_TYPE_Q4_1});
  for (const CacheType cache_type : {CacheType::kF16, CacheType::kQ8_0}) {
    NativeEngine engine(*model, {.threads = 2, .context = 100, .cache_type = cache_type});
    std::mt19937 random(5);
    const std::vector<Token> context = random_tokens(60, 320, random);
    const int tree = engine.add_sequence();
    const int plain = engine.add_sequence();
    append(engine, tree, context, 60);
    append(engine, plain, context, 60);
    // Nodes 0 - 2 - 4 are accepted; 1 and 3 are other branches.
    const std::vector<Token> tokens = {5, 6, 7, 8, 9};
    const std::vector<int> parents = {kContext, 0, 0, 1, 2};
    std::vector<Row> rows;
    for (int i = 0; i < 5; ++i) {
      rows.push_back({.sequence = tree, .parent = parents[i], .token = tokens[i]});
    }
    engine.forward(rows).commit(tree, std::vector<int>{0, 2, 4});
    append(engine, plain, std::vector<Token>{5, 7, 9}, 1);
    ASSERT_EQ(engine.length(tree), engine.length(plain));
    for (Token token = 20; token < 26; ++token) {
      const std::vector<float> a = logits_alone(engine, tree, token);
      const std::vector<float> b = logits_alone(engine, plain, token);
      ASSERT_TRUE(bits_equal(a, b));
    }
  }
}

/// A chain of pseudo rows behind the last committed token, whose token behind is 9.
std::vector<Row> deferred_rows(int sequence, const std::vector<std::vector<float>>& sources) {
  std::vector<Row> rows;
  for (int i = 0; i < std::ssize(sources); ++i) {
    rows.push_back({.sequence = sequence,
                    .parent = i - 1,
                    .step = i + 1,
                    .source = sources[i],
                    .token_behind = 9});
  }
  return rows;
}

void expect_deferred_rows_of_the_same_pass(const std::vector<int>& layers, bool token_input,
                                           HeadsMethod method = HeadsMethod::kFirp) {
  const TinyModel model({.type = GGML_TYPE_Q8_0, .layers = 3});
  NativeEngine engine(*model, {.threads = 2, .context = 100, .rough_drafts = !token_input});
  Heads heads = random_heads((*model).config(), layers, 3, token_input);
  heads.method = method;
  engine.set_heads(heads);
  std::mt19937 random(6);
  const int sequence = engine.add_sequence();
  append(engine, sequence, random_tokens(62, 320, random), 31);

  std::vector<Row> rows = {{.sequence = sequence, .token = 3},
                           {.sequence = sequence, .parent = 0, .token = 4}};
  for (int step = 1; step <= 3; ++step) {
    rows.push_back({.sequence = sequence, .parent = step, .step = step, .token_behind = 9});
  }
  const Pass pass = engine.forward(rows, std::vector<int>{1, 2, 3});
  std::vector<std::vector<float>> expected, sources;
  for (int row = 2; row < 5; ++row) {
    expected.push_back(copied(pass.final_state(row)));
    sources.push_back(copied(pass.draft_source(1, row - 1)));
  }
  pass.commit(sequence, std::vector<int>{0, 1});

  const Pass deferred = engine.forward(deferred_rows(sequence, sources));
  for (int row = 0; row < 3; ++row) {
    EXPECT_TRUE(bits_equal(deferred.final_state(row), expected[row])) << "step " << row + 1;
  }
  EXPECT_FALSE(bits_equal(expected[0], expected[1]));
}

TEST(Engine, DeferredPseudoRowsEqualThoseOfTheSamePass) {
  for (const std::vector<int>& layers :
       {std::vector<int>{1, 1, 1}, {2, 1, 2}, {1, 2, 2}, {3, 3, 3}, {2, 3, 1}}) {
    for (const bool token_input : {false, true}) {
      expect_deferred_rows_of_the_same_pass(layers, token_input);
    }
  }
  expect_deferred_rows_of_the_same_pass({3, 3, 3}, false, HeadsMethod::kMedusa);
}

TEST(Engine, RoundedWeightsAreReadByDraftingPassesAlone) {
  const TinyModel model({.type = GGML_TYPE_F16, .layers = 3});
  const Heads heads = random_heads((*model).config(), {1, 2}, 3, /*token_input=*/true);
  std::vector<std::vector<float>> tokens, drafts, committed;
  for (const bool rough : {false, true}) {
    NativeEngine engine(*model, {.threads = 2, .context = 100, .rough_drafts = rough});
    engine.set_heads(heads);
    std::mt19937 random(6);
    const int sequence = engine.add_sequence();
    append(engine, sequence, random_tokens(62, 320, random), 31);
    const Pass pass =
        engine.forward(std::vector<Row>{{.sequence = sequence, .token = 3}}, engine.draft_layers());
    tokens.push_back(copied(pass.logits(std::vector<int>{0})));
    std::vector<std::vector<float>> sources;
    for (int step = 1; step <= 2; ++step) sources.push_back(copied(pass.draft_source(0, step)));
    pass.commit(sequence, std::vector<int>{0});
    const Pass deferred = engine.forward(deferred_rows(sequence, sources));
    drafts.push_back(copied(deferred.final_state(1)));
    committed.push_back(logits_alone(engine, sequence, 9));
  }
  EXPECT_TRUE(bits_equal(tokens[0], tokens[1]));
  EXPECT_TRUE(bits_equal(committed[0], committed[1]));
  const double difference = relative_difference(drafts[1], drafts[0]);
  EXPECT_GT(difference * difference, 1e-4);
  EXPECT_LT(difference * difference, 0.1);
}

TEST(Engine, RowsBehindTheLastLayerAreWhatTheirEquationsSay) {
  const TinyModel model({.type = GGML_TYPE_F32});
  const ModelConfig& config = (*model).config();
  const int d = config.hidden_size;
  for (const HeadsMethod method : {HeadsMethod::kFirp, HeadsMethod::kMedusa}) {
    Heads heads = random_heads(config, {config.layers}, 5);
    heads.method = method;
    NativeEngine engine(*model, {.threads = 2, .context = 100, .rough_drafts = false});
    engine.set_heads(heads);
    const int sequence = engine.add_sequence();
    const Pass pass =
        engine.forward(std::vector<Row>{{.sequence = sequence, .token = 9},
                                        {.sequence = sequence, .parent = 0, .step = 1}},
                       std::vector<int>{config.layers});
    const std::span<const float> h = pass.draft_source(0, 1);
    ASSERT_EQ(h.data() == pass.final_state(0).data(), method == HeadsMethod::kMedusa);
    std::vector<double> p(d);
    for (int i = 0; i < d; ++i) {
      p[i] = heads.steps[0].bias[i];
      for (int k = 0; k < d; ++k) p[i] += double{heads.steps[0].weight[i * d + k]} * h[k];
    }
    if (method == HeadsMethod::kMedusa) {
      for (int i = 0; i < d; ++i) p[i] = h[i] + p[i] / (1 + std::exp(-p[i]));
    } else {
      const double mean =
          std::inner_product(p.begin(), p.end(), p.begin(), 0.0) / d + config.rms_norm_epsilon;
      const std::vector<float> weight =
          dequantize((*model).file().get_tensor("output_norm.weight"));
      for (int i = 0; i < d; ++i) p[i] *= weight[i] / std::sqrt(mean);
    }
    const std::span<const float> state = pass.final_state(1);
    for (int i = 0; i < d; ++i) EXPECT_NEAR(state[i], p[i], 1e-2 * (1 + std::abs(p[i]))) << i;
  }
}

TEST(Engine, APassThatSkipsTheLastLayersEndsWithTheEarlierOnes) {
  // The final state of a pass without layer 2 is the norm of what layer 1 left.
  const TinyModel model({.type = GGML_TYPE_Q8_0, .layers = 2});
  const ModelConfig& config = (*model).config();
  NativeEngine engine(*model, {.threads = 2, .context = 100});
  const int sequence = engine.add_sequence();
  std::mt19937 random(8);
  append(engine, sequence, random_tokens(70, 320, random), 35);
  const std::vector<Row> rows = {{.sequence = sequence, .token = 3},
                                 {.sequence = sequence, .parent = 0, .token = 4}};
  const int captured[] = {1};
  const Pass whole = engine.forward(rows, captured);
  const std::vector<float> full = copied(whole.final_state(1));
  const std::vector<float> h = copied(whole.hidden(1, 1));

  const Sublayer skipped[] = {2, 3};
  const Pass cut = engine.forward(rows, {}, skipped);
  const std::vector<float> early = copied(cut.final_state(1));
  std::vector<float> expected(h.size());
  const std::vector<float> weight = dequantize((*model).file().get_tensor("output_norm.weight"));
  const Kernels& kernels = default_kernels();
  kernels.scale(h.data(),
                kernels.inverse_rms(h.data(), config.rms_norm_epsilon, config.hidden_size),
                weight.data(), config.hidden_size, expected.data());
  EXPECT_TRUE(bits_equal(early, expected));
  EXPECT_FALSE(bits_equal(early, full));
  EXPECT_THROW(cut.commit(sequence, std::vector<int>{0}), std::invalid_argument);

  const Sublayer attention[] = {2};  // a part alone changes the result, too
  const Pass without_attention = engine.forward(rows, {}, attention);
  EXPECT_FALSE(bits_equal(without_attention.final_state(1), early));
  EXPECT_FALSE(bits_equal(without_attention.final_state(1), full));
  const Sublayer unknown[] = {4};
  EXPECT_THROW(engine.forward(rows, {}, unknown), std::invalid_argument);
  EXPECT_TRUE(bits_equal(engine.forward(rows).final_state(1), full));
}

/// The captured states of a row, of all `layers` one behind the other.
std::vector<float> states_of(const Pass& pass, int row, std::span<const int> layers) {
  std::vector<float> states;
  for (const int layer : layers) {
    const std::span<const float> h = pass.hidden(row, layer);
    states.insert(states.end(), h.begin(), h.end());
  }
  return states;
}

TEST(Engine, APseudoRowThatEntersAsATokensStateStaysThatTokens) {
  const TinyModel model({.type = GGML_TYPE_Q4_1, .layers = 4});
  NativeEngine engine(*model, {.threads = 2, .context = 100});
  const int sequence = engine.add_sequence();
  std::mt19937 random(9);
  append(engine, sequence, random_tokens(63, 320, random), 63);
  std::vector<Row> rows = {{.sequence = sequence, .token = 3},
                           {.sequence = sequence, .parent = 0, .token = 4}};
  const int layers[] = {2, 3, 4}, all_layers[] = {1, 2, 3, 4};
  const Pass of_tokens = engine.forward(rows, all_layers);
  const std::vector<float> expected = states_of(of_tokens, 1, layers);
  const std::vector<float> final_state = copied(of_tokens.final_state(1));

  // p_{i,1} = b = h_{i+1}^2, whatever h_i is.
  Heads heads = random_heads((*model).config(), {2}, 1);
  heads.adapters.clear();
  std::ranges::fill(heads.steps[0].weight, 0.0f);
  std::ranges::copy(of_tokens.hidden(1, 2), heads.steps[0].bias.begin());
  engine.set_heads(heads);
  rows[1].token = 9;
  rows.push_back({.sequence = sequence, .parent = 0, .step = 1});
  const Pass pass = engine.forward(rows, all_layers);
  EXPECT_TRUE(bits_equal(states_of(pass, 2, layers), expected));
  EXPECT_TRUE(bits_equal(pass.final_state(2), final_state));
  EXPECT_FALSE(bits_equal(states_of(pass, 1, layers), expected));
  EXPECT_THROW(pass.hidden(2, 1), std::invalid_argument);  // it enters later

  heads.method = HeadsMethod::kMedusa;
  heads.steps[0].layer = (*model).config().layers;
  engine.set_heads(heads);
  const Pass of_medusa = engine.forward(rows, all_layers);
  EXPECT_THROW(of_medusa.hidden(2, 4),
               std::invalid_argument);  // it is never in the residual stream
}

TEST(Engine, PseudoRowsThatHangOnTheirTokenSeeNoEarlierStep) {
  const TinyModel model({.type = GGML_TYPE_Q4_1, .layers = 3});
  const int layers[] = {1, 2, 3};
  NativeEngine engine(*model, {.threads = 2, .context = 100});
  const int sequence = engine.add_sequence();
  std::mt19937 random(9);
  append(engine, sequence, random_tokens(62, 320, random), 31);
  const Row token = {.sequence = sequence, .token = 3};
  const auto pseudo = [&](int step, int parent) {
    return Row{.sequence = sequence, .parent = parent, .step = step};
  };
  const std::vector<Row> chain = {token, pseudo(1, 0), pseudo(2, 1), pseudo(3, 2)};
  const std::vector<Row> apart = {token, pseudo(1, 0), pseudo(2, 0), pseudo(3, 0)};

  engine.set_heads(random_heads((*model).config(), {1, 1, 1}, 4));
  // The states of each row of a pass of its own.
  const auto states = [&](std::span<const Row> rows) {
    const Pass pass = engine.forward(rows, layers);
    std::vector<std::vector<float>> of_rows;
    for (int row = 0; row < pass.rows(); ++row) of_rows.push_back(states_of(pass, row, layers));
    return of_rows;
  };
  const std::vector<std::vector<float>> of_chain = states(chain), of_apart = states(apart);
  EXPECT_TRUE(bits_equal(of_apart[0], of_chain[0]));
  EXPECT_TRUE(bits_equal(of_apart[1], of_chain[1]));
  for (int step = 2; step <= 3; ++step) {
    EXPECT_FALSE(bits_equal(of_apart[step], of_chain[step]));
    EXPECT_TRUE(bits_equal(states(std::vector<Row>{token, pseudo(step, 0)})[1], of_apart[step]))
        << step;
  }

  // A row that leaves out a step sees the others.
  const std::vector<float> without_second =
      states(std::vector<Row>{token, pseudo(1, 0), pseudo(3, 1)})[2];
  EXPECT_FALSE(bits_equal(without_second, of_chain[3]));
  EXPECT_FALSE(bits_equal(without_second, of_apart[3]));

  // Deferred.
  const Pass pass = engine.forward(std::vector<Row>{token}, layers);
  const std::vector<float> source = copied(pass.hidden(0, 1));
  pass.commit(sequence, std::vector<int>{0});
  std::vector<Row> deferred = {pseudo(1, kContext), pseudo(2, kContext), pseudo(3, kContext)};
  for (Row& row : deferred) row.source = source;
  const std::vector<std::vector<float>> of_deferred = states(deferred);
  for (int row = 0; row < 3; ++row) {
    EXPECT_TRUE(bits_equal(of_deferred[row], of_apart[row + 1])) << row + 1;
  }
  engine.truncate(sequence, 62);

  // An earlier step that exists in no layer is not seen by a chain, either.
  engine.set_heads(random_heads((*model).config(), {3, 1}, 4));
  const Pass in_chain = engine.forward(std::span(chain).first(3), layers);
  const std::vector<float> unseen = states_of(in_chain, 2, layers);
  const Pass hanging = engine.forward(std::span(apart).first(3), layers);
  EXPECT_TRUE(bits_equal(states_of(hanging, 2, layers), unseen));
}

TEST(Engine, BestTokensAreThoseOfTheLogits) {
  const TinyModel model({.type = GGML_TYPE_Q8_0, .vocabulary_size = 1300});  // not whole chunks
  for (const int threads : {1, 2, 3}) {
    NativeEngine engine(*model, {.threads = threads, .context = 100});
    const int sequence = engine.add_sequence();
    const std::vector<Token> tokens = {0, 7, 14, 21, 28, 35, 42, 49, 56};
    const Pass pass = engine.forward(token_chain(sequence, tokens));
    const std::vector<int> asked = {8, 0, 3};
    const std::vector<float> logits = copied(pass.logits(asked));
    const std::span<const BestTokens> best = pass.best_tokens(asked, 40, /*log_sums=*/true);
    ASSERT_EQ(best.size(), asked.size());
    for (std::size_t row = 0; row < asked.size(); ++row) {
      const auto of_row = std::span(logits).subspan(row * 1300, 1300);
      std::vector<int> order(1300);
      std::iota(order.begin(), order.end(), 0);
      std::ranges::stable_sort(order, std::greater(), [&](int i) { return of_row[i]; });
      double sum = 0;
      for (const float logit : of_row) sum += std::exp(double{logit});
      EXPECT_NEAR(best[row].log_sum, std::log(sum), 1e-4);
      ASSERT_EQ(best[row].tokens.size(), 40u);
      for (int i = 0; i < 40; ++i) {
        ASSERT_EQ(best[row].tokens[i].token, order[i]);
        ASSERT_EQ(best[row].tokens[i].logit, of_row[order[i]]);
      }
    }
  }
}

/// The formula of docs/heads-format.md, in double.
TEST(Engine, DraftsBehindATokenAreRankedByTheSequentialHead) {
  const TinyModel model({.type = GGML_TYPE_F32, .vocabulary_size = 300});
  const int d = (*model).config().hidden_size;
  Heads heads = random_heads((*model).config(), {2, 1}, 3);
  for (int token = 0; token < 300; token += 2) heads.draft_vocabulary.push_back(298 - token);
  constexpr int kRank = 18;
  add_sequential_heads(heads, kRank, 4);
  NativeEngine engine(*model, {.threads = 2, .context = 100, .rough_drafts = false});
  engine.set_heads(heads);
  const int sequence = engine.add_sequence();
  const Pass pass = engine.forward(std::vector<Row>{
      {.sequence = sequence, .token = 9},
      {.sequence = sequence, .parent = 0, .step = 1},
      {.sequence = sequence, .parent = 1, .step = 2},
  });
  const Proposal proposal = pass.propose(std::vector<int>{1, 2});
  ASSERT_EQ(proposal.steps(), 2);
  const std::vector<Token> previous = {5, 280, 33};
  for (int step = 1; step <= 2; ++step) {
    const auto lists = proposal.behind(step, previous);
    ASSERT_EQ(lists.size(), previous.size());
    const std::span<const float> n = pass.final_state(step);
    const SequentialHead& head = *heads.steps[step - 1].sequence;
    const auto row_of = [&](const Tensor& matrix, Token token) {
      std::vector<float> row(d);
      dequantize_row(matrix, token, row);
      return row;
    };
    const auto logit = [&](Token token, const std::vector<double>& state) {
      const std::vector<float> row = row_of((*model).head(), token);
      return std::inner_product(row.begin(), row.end(), state.begin(), 0.0);
    };
    const std::vector<double> plain(n.begin(), n.end());
    // The row's own best candidates, and the probability that it gives all of them.
    std::vector<std::pair<double, Token>> own;
    double all = 0, mass = 0;
    for (const Token token : heads.draft_vocabulary) {
      own.push_back({logit(token, plain), token});
      all += std::exp(own.back().first);
    }
    std::ranges::sort(own, std::greater());
    own.resize(kRankedCandidates);
    for (const auto& [value, token] : own) mass += std::exp(value) / all;
    for (std::size_t p = 0; p < previous.size(); ++p) {
      const std::vector<float> e = row_of((*model).token_embedding(), previous[p]);
      std::vector<double> state = plain;
      for (int r = 0; r < kRank; ++r) {
        double x = head.bias[r];
        for (int i = 0; i < d; ++i) {
          x += double{head.state[r * d + i]} * n[i] + double{head.token[r * d + i]} * e[i];
        }
        for (int i = 0; i < d; ++i) {
          state[i] += double{head.output[i * kRank + r]} * x / (1 + std::exp(-x));
        }
      }
      double sum = 0;
      for (const auto& [value, token] : own) sum += std::exp(logit(token, state));
      ASSERT_EQ(lists[p].size(), static_cast<std::size_t>(kRankedCandidates));
      for (std::size_t k = 0; k < lists[p].size(); ++k) {
        const Candidate& candidate = lists[p][k];
        EXPECT_TRUE(std::ranges::any_of(
            own, [&](const auto& each) { return each.second == candidate.token; }));
        EXPECT_NEAR(candidate.log_probability,
                    logit(candidate.token, state) - std::log(sum) + std::log(mass), 2e-3);
        if (k > 0) {
          EXPECT_LE(candidate.log_probability, lists[p][k - 1].log_probability);
        }
      }
    }
  }
}

/// A signal, or a server that stops, need not wait for a pass of seconds.
TEST(Engine, ACancelledPassEndsAndLeavesNothing) {
  const TinyModel model({});
  std::atomic<bool> cancelled = false;
  NativeEngine engine(*model, {.threads = 3, .context = 64, .cancelled = &cancelled});
  NativeEngine other(*model, {.threads = 1, .context = 64});
  std::mt19937 random(1);
  const std::vector<Token> tokens = random_tokens(20, TinyModelOptions().vocabulary_size, random);
  const int sequence = engine.add_sequence();
  append(engine, sequence, tokens, 20);
  append(other, other.add_sequence(), tokens, 20);
  for (int i = 0; i < 20; ++i) {
    cancelled = true;
    EXPECT_THROW(append(engine, sequence, tokens, 20), Cancelled);
    EXPECT_EQ(engine.length(sequence), 20 + i);
    cancelled = false;
    EXPECT_TRUE(bits_equal(logits_alone(engine, sequence, i), logits_alone(other, 0, i)));
  }
}

TEST(Engine, BatchesThatBreakTheRulesAreRefused) {
  const TinyModel model({.layers = 2});
  NativeEngine engine(*model, {.threads = 1, .context = 4, .max_rows = 8});
  const int sequence = engine.add_sequence();
  const auto refused = [&](std::vector<Row> rows) {
    EXPECT_THROW(engine.forward(rows), std::invalid_argument);
  };
  refused({});
  refused(std::vector<Row>(9, {.sequence = sequence, .token = 1}));
  refused({{.sequence = 7, .token = 1}});
  refused({{.sequence = sequence, .token = 320}});
  refused({{.sequence = sequence, .token = -1}});
  refused({{.sequence = sequence, .parent = 0, .token = 1}});
  refused({{.sequence = sequence, .parent = 1, .token = 1}, {.sequence = sequence, .token = 1}});
  const int other = engine.add_sequence();
  refused({{.sequence = other, .token = 1}, {.sequence = sequence, .parent = 0, .token = 1}});
  refused({{.sequence = sequence, .step = 1}});
  engine.set_heads(random_heads((*model).config(), {1, 1}, 1));
  refused({{.sequence = sequence, .step = 1}});  // no source
  refused({{.sequence = sequence, .token = 1},
           {.sequence = sequence, .parent = 0, .step = 1},
           {.sequence = sequence, .parent = 1, .step = 1}});
  refused({{.sequence = sequence, .token = 1},
           {.sequence = sequence, .parent = 0, .step = 1},
           {.sequence = sequence, .parent = 1, .token = 1}});
  append(engine, sequence, std::vector<Token>{1, 2, 3, 4}, 4);
  EXPECT_THROW(engine.forward(std::vector<Row>{{.sequence = sequence, .token = 1}}), Error);
  engine.set_heads(random_heads((*model).config(), {1}, 1, /*token_input=*/true));
  EXPECT_TRUE(engine.token_input());
  const std::vector<float> source((*model).config().hidden_size, 1.0f);
  for (const Token behind : {kNoToken, 320}) {
    refused({{.sequence = sequence, .step = 1, .source = source, .token_behind = behind}});
  }
  EXPECT_THROW(engine.set_heads(random_heads((*model).config(), {3}, 1)), Error);
  EXPECT_THROW(NativeEngine(*model, {.threads = -1}), Error);
}

}  // namespace
}  // namespace firp
