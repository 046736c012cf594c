#include "decode/pooling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>

#include "base/error.h"
#include "decode/batch_decoder.h"
#include "decode/test_model.h"
#include "engine/fake_engine.h"
#include "engine/llama_engine.h"

namespace firp {
namespace {

using testing::HasSubstr;

std::vector<Token> some_tokens(int count, int first) {
  std::vector<Token> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back((first + i * i) % TestModel::kVocabulary);
  return tokens;
}

/// The final state of each token, from passes of one row. [tokens x d]
std::vector<float> states_alone(Engine& engine, const std::vector<Token>& tokens) {
  const int sequence = engine.add_sequence();
  std::vector<float> states;
  for (const Token token : tokens) {
    const Row row = {.sequence = sequence, .token = token};
    const std::vector<int> capture = {engine.config().layers};
    const Pass pass = engine.forward({&row, 1}, capture);
    const std::span<const float> state = pass.final_state(0);
    states.insert(states.end(), state.begin(), state.end());
    pass.commit(sequence, std::vector<int>{0});
  }
  engine.remove_sequence(sequence);
  return states;
}

std::vector<float> embedding_alone(Engine& engine, const std::vector<Token>& tokens,
                                   Pooling pooling) {
  BatchDecoder decoder(engine);
  Session session(decoder, {.method = DraftMethod::kNone, .pooling = pooling});
  session.append(tokens);
  Session* const self = &session;
  while (session.is_reading()) decoder.step({&self, 1});
  return session.embedding();
}

class PoolingTest : public testing::Test {
 protected:
  TestModel model_;
  const std::unique_ptr<Engine> engine_ =
      model_.engine({.threads = 2, .context = 160, .max_rows = 16});
  const std::vector<Token> tokens_ = some_tokens(70, 3);
};

TEST_F(PoolingTest, PoolsTheStatesThatEachTokenHasAlone) {
  const std::vector<float> states = states_alone(*engine_, tokens_);
  const auto d = static_cast<std::size_t>(engine_->config().hidden_size);
  EXPECT_EQ(embedding_alone(*engine_, tokens_, Pooling::kNone), states);
  EXPECT_EQ(embedding_alone(*engine_, tokens_, Pooling::kCls),
            std::vector<float>(states.begin(), states.begin() + d));
  EXPECT_EQ(embedding_alone(*engine_, tokens_, Pooling::kLast),
            std::vector<float>(states.end() - d, states.end()));
  const std::vector<float> mean = embedding_alone(*engine_, tokens_, Pooling::kMean);
  ASSERT_EQ(mean.size(), d);
  for (std::size_t i = 0; i < d; ++i) {
    double sum = 0;
    for (std::size_t row = 0; row < tokens_.size(); ++row) sum += states[row * d + i];
    EXPECT_NEAR(mean[i], sum / static_cast<double>(tokens_.size()), 1e-6) << i;
  }
}

/// Also where others hold the same text, drafts stand beside it, and its place is taken meanwhile.
TEST_F(PoolingTest, IsTheSameBesideOthers) {
  for (const Pooling pooling : {Pooling::kMean, Pooling::kLast, Pooling::kCls, Pooling::kNone}) {
    const std::vector<float> alone = embedding_alone(*engine_, tokens_, pooling);
    BatchDecoder decoder(*engine_);
    Session writer(decoder, {.tree_nodes = 4});
    writer.append(tokens_);
    for (int i = 0; i < 5; ++i) writer.step();
    Session reader(decoder, {.tree_nodes = 4});
    reader.append(some_tokens(60, 5));
    Session same(decoder, {.method = DraftMethod::kNone, .pooling = pooling});
    same.append(tokens_);
    Session other(decoder, {.method = DraftMethod::kNone, .pooling = pooling});
    other.append(some_tokens(25, 1));
    bool released = false;
    for (int pass = 0; same.is_reading(); ++pass) {
      ASSERT_LT(pass, 200);
      std::vector<Session*> sessions = {&writer, &reader, &same};
      if (other.is_reading()) sessions.push_back(&other);
      decoder.step(sessions);
      EXPECT_TRUE(same.decoded().empty());
      if (same.seen() > 30 && !std::exchange(released, true)) same.release();
    }
    EXPECT_TRUE(released);
    EXPECT_EQ(same.adopted(), 0);
    EXPECT_EQ(same.embedding(), alone);
    EXPECT_EQ(other.embedding(), embedding_alone(*engine_, some_tokens(25, 1), pooling));
  }
}

/// A prompt that is read after it takes nothing from it, and what others hold stays.
TEST_F(PoolingTest, LeavesNothingBehind) {
  embedding_alone(*engine_, tokens_, Pooling::kMean);
  BatchDecoder decoder(*engine_);
  Session session(decoder, {.method = DraftMethod::kNone});
  session.append(tokens_);
  session.step();
  EXPECT_EQ(session.adopted(), 0);
}

TEST_F(PoolingTest, APassThatFailsTakesNoStates) {
  FakeEngine engine({.threads = 1, .context = 200, .max_rows = 8});
  const std::vector<Token> tokens = some_tokens(40, 2);
  const std::vector<float> expected = embedding_alone(engine, tokens, Pooling::kNone);
  BatchDecoder decoder(engine);
  Session session(decoder, {.method = DraftMethod::kNone, .pooling = Pooling::kNone});
  session.append(tokens);
  Session* const self = &session;
  int failed = 0;
  for (int pass = 0; session.is_reading(); ++pass) {
    if (pass == 1) engine.fail(FakeEngine::Call::kRun, 1);
    if (pass == 3) engine.fail(FakeEngine::Call::kCommit, 1);
    try {
      decoder.step({&self, 1});
    } catch (const Error&) {
      ++failed;
    }
  }
  EXPECT_EQ(failed, 2);
  EXPECT_EQ(session.embedding(), expected);
}

TEST_F(PoolingTest, TruncatedItBeginsAnew) {
  BatchDecoder decoder(*engine_);
  Session session(decoder, {.method = DraftMethod::kNone, .pooling = Pooling::kMean});
  session.append(tokens_);
  Session* const self = &session;
  decoder.step({&self, 1});
  session.truncate(10);
  while (session.is_reading()) decoder.step({&self, 1});
  EXPECT_EQ(session.embedding(),
            embedding_alone(*engine_, {tokens_.begin(), tokens_.begin() + 10}, Pooling::kMean));
}

/// libllama's own embedding of the tokens.
std::vector<float> llama_embedding(const std::filesystem::path& path,
                                   const std::vector<Token>& tokens,
                                   enum llama_pooling_type pooling) {
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_model_params model_parameters = llama_model_default_params();
  model_parameters.n_gpu_layers = 0;
  const std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
      llama_model_load_from_file(path.c_str(), model_parameters), llama_model_free);
  llama_context_params parameters = llama_context_default_params();
  parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 256;
  parameters.n_threads = parameters.n_threads_batch = 1;
  parameters.embeddings = true;
  parameters.pooling_type = pooling;
  const std::unique_ptr<llama_context, decltype(&llama_free)> context(
      llama_init_from_model(model.get(), parameters), llama_free);
  llama_batch batch = llama_batch_init(static_cast<std::int32_t>(tokens.size()), 0, 1);
  batch.n_tokens = static_cast<std::int32_t>(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    batch.token[i] = tokens[i];
    batch.pos[i] = static_cast<llama_pos>(i);
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = 1;
  }
  const int status = llama_decode(context.get(), batch);
  llama_batch_free(batch);
  if (status != 0) throw std::runtime_error("llama_decode failed");
  const float* const values = llama_get_embeddings_seq(context.get(), 0);
  return {values, values + llama_model_n_embd(model.get())};
}

double cosine(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double product = 0, of_a = 0, of_b = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    product += double{a[i]} * b[i];
    of_a += double{a[i]} * a[i];
    of_b += double{b[i]} * b[i];
  }
  return product / std::sqrt(of_a * of_b);
}

/// The largest of states is about 3; ggml rounds activations to 8 bits for Q4_1, as we do.
TEST_F(PoolingTest, AgreesWithLibllamaOnBothEngines) {
  const std::filesystem::path path = model_.directory / "tiny.gguf";
  LlamaEngine llama(std::make_shared<const GgufFile>(path),
                    {.threads = 1, .context = 160, .max_rows = 32}, {});
  const std::pair<Pooling, enum llama_pooling_type> kinds[] = {
      {Pooling::kMean, LLAMA_POOLING_TYPE_MEAN},
      {Pooling::kLast, LLAMA_POOLING_TYPE_LAST},
      {Pooling::kCls, LLAMA_POOLING_TYPE_CLS}};
  std::vector<std::vector<float>> all;
  for (const auto& [ours, theirs] : kinds) {
    const std::vector<float> expected = llama_embedding(path, tokens_, theirs);
    for (Engine* const engine : {engine_.get(), static_cast<Engine*>(&llama)}) {
      const std::vector<float> seen = embedding_alone(*engine, tokens_, ours);
      EXPECT_GT(cosine(seen, expected), 0.9995) << engine->isa() << " " << theirs;
      double ratio = 0;
      for (std::size_t i = 0; i < seen.size(); ++i) ratio += std::abs(seen[i] / expected[i]);
      EXPECT_NEAR(ratio / static_cast<double>(seen.size()), 1, 0.1) << "the length is theirs";
    }
    for (const std::vector<float>& other : all) EXPECT_LT(cosine(expected, other), 0.99);
    all.push_back(expected);
  }
}

TEST(PoolingNames, AreLlamaCpps) {
  EXPECT_EQ(pooling_of_name("last"), Pooling::kLast);
  EXPECT_THAT(error_of([] { pooling_of_name("rank"); }), HasSubstr("mean, last, cls or none"));
}

TEST(PoolingNames, AFileThatDoesNotSayMeansMean) {
  const TestModel model;
  EXPECT_EQ(pooling_of(GgufFile(model.directory / "tiny.gguf")), Pooling::kMean);
}

}  // namespace
}  // namespace firp
