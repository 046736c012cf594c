#include "bench/forward_bench.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "base/error.h"
#include "bench/kernel_bench.h"
#include "bench/load_bench.h"
#include "bench/synthetic_model.h"
#include "engine/native_engine.h"
#include "model/test_files.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

constexpr int kHeadSteps = 2;

Heads some_heads(const ModelConfig& config) {
  Heads heads;
  for (int step = 1; step <= kHeadSteps; ++step) {
    const auto d = static_cast<std::size_t>(config.hidden_size);
    DraftMap& map = heads.steps.emplace_back();
    map.layer = step;
    map.weight.assign(d * d, 0.001f);
    map.bias.assign(d, 0.1f);
  }
  return heads;
}

MachinePeaks round_peaks() {
  MachinePeaks peaks;
  peaks.threads = 1;
  peaks.bytes_per_second = 1e9;
  peaks.int8_per_second = 100e9;
  peaks.f32_per_second = 10e9;
  return peaks;
}

class ForwardBench : public testing::Test {
 protected:
  ForwardBench() { write_tiny_model(directory_ / "tiny.gguf", {.type = GGML_TYPE_Q4_0}); }
  Model model() const { return Model(directory_ / "tiny.gguf"); }

  const TemporaryDirectory directory_;
};

TEST_F(ForwardBench, MeasuresEveryNumberOfRowsWithAndWithoutPseudoRows) {
  const Model tiny = model();
  NativeEngine engine(tiny, {.threads = 1, .context = 256});
  engine.set_heads(some_heads(tiny.config()));
  ThreadPool pool(1);
  // A prompt of more than one pass, and pages that the context fills in part.
  const ForwardBenchOptions options = {.context = 70, .rows = {1, 5}, .prefill_tokens = 100};
  const ForwardResult result = bench_forward(engine, &tiny, options, pool, round_peaks(), nullptr);

  ASSERT_EQ(result.passes.size(), 5u);
  const std::pair<int, int> expected[] = {{1, 0}, {5, 0}, {0, 2}, {1, 2}, {5, 2}};
  for (std::size_t i = 0; i < 5; ++i) {
    const PassResult& pass = result.passes[i];
    EXPECT_EQ(std::pair(pass.token_rows, pass.pseudo_rows), expected[i]);
    EXPECT_GT(pass.ours.best, 0);
    EXPECT_GE(pass.ours.median, pass.ours.best);
    EXPECT_EQ(pass.limit_seconds > 0, pass.token_rows > 0);  // a drafting pass has none
    EXPECT_FALSE(pass.peer);
  }
  EXPECT_EQ(result.prefill.tokens, 100);
  EXPECT_GT(result.prefill.ours.best, 0);
  EXPECT_GT(result.read_bytes_per_second, 1e8);
  EXPECT_EQ(result.weight_bytes, engine.weight_bytes());

  const auto json = forward_json({{"cpu", "x"}}, result, options);
  EXPECT_EQ(json["mode"], "forward");
  EXPECT_EQ(json["machine"]["cpu"], "x");
  EXPECT_EQ(json["settings"]["context"], 70);
  ASSERT_EQ(json["passes"].size(), 5u);
  for (const char* key : {"token_rows", "pseudo_rows", "best_seconds", "median_seconds",
                          "limit_seconds", "llama_cpp_best_seconds"}) {
    EXPECT_TRUE(json["passes"][0].contains(key)) << key;
  }
  EXPECT_TRUE(json["passes"][0]["llama_cpp_best_seconds"].is_null());
  EXPECT_EQ(json["prefill"]["tokens"], 100);
  ASSERT_FALSE(json["phases"].empty());
  for (const auto& phase : json["phases"]) {
    EXPECT_EQ(phase["mean_seconds"].size(), 2u);  // one for each number of rows
    EXPECT_TRUE(phase["drafting_mean_seconds"].is_number()) << phase;
  }
  EXPECT_NE(forward_table(result, round_peaks()).find(" drafting\n"), std::string::npos);
  EXPECT_NE(forward_table(result, round_peaks()).find("prefill of 100 tokens"), std::string::npos);
}

TEST_F(ForwardBench, TellsOfThePhases) {
  ForwardResult result;
  result.read_bytes_per_second = 1e9;
  result.passes = {{.token_rows = 1, .ours = {.best = 0.004, .median = 0.005}},
                   {.token_rows = 8, .ours = {.best = 0.006, .median = 0.007}}};
  result.prefill = {.tokens = 10, .ours = {.best = 1, .median = 1}, .limit_seconds = 1};
  EXPECT_EQ(forward_table(result, round_peaks()).find("phase"), std::string::npos);
  EXPECT_TRUE(forward_json({}, result, {})["passes"][0]["limit_seconds"].is_null());  // not known
  result.phases = {{.name = "gate, up", .weight_bytes = 2'000'000, .seconds = {0.0031, 0.0042}}};
  const std::string table = forward_table(result, round_peaks());
  const std::size_t line = table.find("gate, up");
  ASSERT_NE(line, std::string::npos);
  for (const char* figure : {" 2.0", " 2.000", " 3.100", " 4.200"}) {
    EXPECT_NE(table.find(figure, line), std::string::npos) << figure << " in\n" << table;
  }
  const auto json = forward_json({}, result, {.rows = {1, 8}});
  EXPECT_EQ(json["phases"][0]["phase"], "gate, up");
  EXPECT_EQ(json["phases"][0]["mean_seconds"][1], 0.0042);
  EXPECT_EQ(json["phases"][0]["rows"][1], 8);
  EXPECT_TRUE(json["phases"][0]["drafting_mean_seconds"].is_null());  // no heads
}

TEST_F(ForwardBench, TheLimitIsTheSumOfItsParts) {
  const Model tiny = model();
  const ModelConfig& c = tiny.config();
  const MachinePeaks peaks = round_peaks();
  const auto bytes = [](const Tensor& tensor) { return static_cast<double>(tensor.data.size()); };
  double layer_bytes = 0;
  const LayerTensors& layer = tiny.layers().front();
  for (const Tensor* matrix :
       {layer.query, layer.key, layer.value, layer.output, layer.gate, layer.up, layer.down}) {
    layer_bytes += bytes(*matrix);
  }
  const double cache_bytes = 100 * 2.0 * c.kv_size() * 2;
  EXPECT_NEAR(pass_limit_seconds(tiny, {1, 1, 1}, 1, 100, CacheType::kF16, peaks),
              (3 * (layer_bytes + cache_bytes) + bytes(tiny.head())) / 1e9, 1e-12);
  // The lowest layer has no rows; the head has many, and costs arithmetic.
  EXPECT_NEAR(pass_limit_seconds(tiny, {0, 1, 1}, 100, 0, CacheType::kF16, peaks),
              2 * layer_bytes / 1e9 + 100.0 * c.vocabulary_size * c.hidden_size * 1.25 / 100e9,
              1e-12);
}

TEST(SyntheticModelTest, HasTheShapesAndRuns) {
  const SyntheticModel synthetic("smollm2-135m:q4_1");
  const Model& model = synthetic.model();
  const ModelConfig& c = model.config();
  EXPECT_FALSE(model.has_file());
  EXPECT_EQ(c.layers, 30);
  EXPECT_EQ(c.hidden_size, 576);
  EXPECT_EQ(c.vocabulary_size, 49152);
  EXPECT_EQ(model.layers().back().gate->rows(), 1536);
  EXPECT_EQ(model.layers().back().gate->columns(), 576);
  EXPECT_EQ(model.layers().back().key->rows(), 192);
  EXPECT_EQ(model.layers().front().down, model.layers().back().down) << "layers share tensors";
  EXPECT_EQ(&model.head(), &model.token_embedding());
  EXPECT_EQ(model.head().type, GGML_TYPE_Q4_1);
  EXPECT_EQ(model.identity().tensor_hash, "");

  // In total as many weights as the real file has in matrices: 134.5 M.
  double weights = static_cast<double>(model.head().elements());
  for (const LayerTensors& layer : model.layers()) {
    for (const Tensor* matrix :
         {layer.query, layer.key, layer.value, layer.output, layer.gate, layer.up, layer.down}) {
      weights += static_cast<double>(matrix->elements());
    }
  }
  EXPECT_NEAR(weights, 134.5e6, 0.1e6);

  NativeEngine engine(model, {.threads = 2, .context = 64});
  const Row rows[] = {{.sequence = engine.add_sequence(), .token = 5},
                      {.parent = 0, .token = 12345},
                      {.parent = 0, .token = 49151}};
  const Pass pass = engine.forward(rows);
  constexpr int kAll[] = {0, 1, 2};
  double power = 0;
  for (const float logit : pass.logits(kAll)) {
    ASSERT_TRUE(std::isfinite(logit));
    power += logit * logit;
  }
  const double spread = std::sqrt(power / (3.0 * c.vocabulary_size));
  EXPECT_GT(spread, 0.5);
  EXPECT_LT(spread, 10);
}

TEST(SyntheticModelTest, AsAFileItIsTheSameModel) {
  const SyntheticModel synthetic("smollm2-135m:q4_0");
  const SyntheticFile file(synthetic);
  const Model read(file.path());
  EXPECT_EQ(read.config().name, synthetic.model().config().name);
  EXPECT_EQ(read.config().tied_head, synthetic.model().config().tied_head);
  EXPECT_EQ(read.config().trained_context, synthetic.model().config().trained_context);
  const auto logits = [](const Model& model) {
    NativeEngine engine(model, {.threads = 2, .context = 64});
    const Row rows[] = {{.sequence = engine.add_sequence(), .token = 5},
                        {.parent = 0, .token = 12345}};
    const Pass pass = engine.forward(rows);
    constexpr int kLast[] = {1};
    const std::span<const float> row = pass.logits(kLast);
    return std::vector<float>(row.begin(), row.end());
  };
  EXPECT_EQ(logits(read), logits(synthetic.model()));
}

TEST(SyntheticModelTest, ItsFileLeavesNothingBehind) {
  const TemporaryDirectory directory;
  const char* const before = std::getenv("TMPDIR");
  const std::string restored = before != nullptr ? before : "";
  setenv("TMPDIR", directory.path().c_str(), 1);
  const SyntheticFile file(SyntheticModel("smollm2-135m:q4_0"));
  before != nullptr ? setenv("TMPDIR", restored.c_str(), 1) : unsetenv("TMPDIR");
  EXPECT_GT(std::filesystem::file_size(file.path()), 70'000'000u);
  EXPECT_TRUE(std::filesystem::is_empty(directory.path())) << "even while it is in use";
}

TEST(SyntheticModelTest, NamesWhatItHasWhenAskedForAnother) {
  const auto error = [](const char* name) { return error_of([&] { SyntheticModel model(name); }); };
  EXPECT_NE(error("llama-7b").find("llama-7b:q4_0"), std::string::npos);
  EXPECT_NE(error("llama-9b:q4_0").find("llama-8b"), std::string::npos);
  EXPECT_NE(error("llama-7b:q4").find("q4_K"), std::string::npos);
  EXPECT_NE(error("smollm2-135m:q4_K").find("576"), std::string::npos);
}

TEST(LoadBench, MeasuresLoadingAndReading) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory / "tiny.gguf";
  write_tiny_model(path, {.type = GGML_TYPE_Q4_0});
  ThreadPool pool(2);
  const LoadResult result = bench_load(path, pool, /*packed_cache=*/false);
  EXPECT_EQ(result.file_bytes, std::filesystem::file_size(path));
  const Model model(path);
  EXPECT_EQ(result.packed_bytes, NativeEngine(model, {.threads = 1}).weight_bytes());
  EXPECT_GT(result.peak_resident_bytes, result.packed_bytes);
  for (const ColdAndWarm& seconds : {result.load_seconds, result.read_seconds}) {
    EXPECT_GT(seconds.cold, 0);
    EXPECT_GT(seconds.warm, 0);
  }
  EXPECT_THROW(bench_load(directory / "nothing.gguf", pool, false), Error);
}

TEST(TimingTest, CountsWhatOthersTake) {
  const OtherLoad load;
  EXPECT_GE(load.cores(), 0);
  EXPECT_LT(load.cores(), 10000);
}

}  // namespace
}  // namespace firp
