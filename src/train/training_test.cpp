#include <gtest/gtest.h>

#include <random>

#include "engine/llama_engine.h"
#include "engine/native_engine.h"
#include "model/full_disk.h"
#include "model/test_files.h"
#include "model/tiny_model.h"
#include "train/by_distillation.h"
#include "train/by_regression.h"
#include "train/training_log.h"
#include "train/training_run.h"

namespace firp {
namespace {

/// A tiny model, and texts that follow a rule that maps can learn: each token decides the next.
class TrainingTest : public ::testing::Test {
 protected:
  TrainingTest()
      : model_((write_tiny_model(directory_ / "tiny.gguf", {}), directory_ / "tiny.gguf")) {}

  /// What train() starts from once it has texts.
  Checkpoint begin(int updates, std::uint64_t seed = 1) const {
    Checkpoint checkpoint;
    checkpoint.base = model_.identity();
    checkpoint.options = options(updates, seed);
    checkpoint.layer = 1;
    std::mt19937 generator(2);
    for (int i = 0; i < 24; ++i) {
      Text text{.tokens = {}, .answer_begin = 10, .greedy = i < 4, .held_out = i < 4};
      Token token = static_cast<Token>(generator() % 320);
      for (int k = 0; k < 40 + i; ++k) {
        text.tokens.push_back(token);
        token = (token * 7 + 11) % 320;
      }
      checkpoint.texts.push_back(std::move(text));
    }
    return checkpoint;
  }

  TrainOptions options(int updates, std::uint64_t seed = 1) const {
    TrainOptions out;
    out.model = directory_ / "tiny.gguf";
    out.output = directory_ / "heads.gguf";
    out.draft_steps = 2;
    out.sequence_rank = 8;
    out.adapter_rank = 4;
    out.updates = updates;
    out.seed = seed;
    return out;
  }

  /// Trains from `checkpoint` on; stops itself after `stop_after` updates, if there are so many.
  TrainReport run(const Checkpoint& checkpoint, int stop_after = 1 << 30, int threads = 1) {
    NativeEngine engine(model_, {.threads = threads, .context = 256, .max_rows = 64});
    std::atomic<bool> stop{false};
    TrainOptions now = options(0);
    now.log = log_;
    const auto on_progress = [&](const TrainProgress& progress) {
      if (progress.phase != TrainPhase::kDistillation || progress.done == 0) return;
      if (progress.done >= stop_after) stop = true;
    };
    return train_by_distillation(model_, engine, TrainingRun(checkpoint, now, on_progress, stop));
  }

  Heads heads() const { return read_heads(directory_ / "heads.gguf", &model_.file()); }
  std::filesystem::path checkpoint_file() const { return directory_ / "heads.gguf.checkpoint"; }

  static void expect_same_maps(const Heads& a, const Heads& b) {
    ASSERT_EQ(a.count(), b.count());
    for (int step = 0; step < a.count(); ++step) {
      EXPECT_EQ(a.steps[step].weight, b.steps[step].weight) << "step " << step + 1;
      EXPECT_EQ(a.steps[step].bias, b.steps[step].bias) << "step " << step + 1;
      ASSERT_TRUE(a.steps[step].sequence && b.steps[step].sequence);
      EXPECT_EQ(a.steps[step].sequence->state, b.steps[step].sequence->state);
      EXPECT_EQ(a.steps[step].sequence->output, b.steps[step].sequence->output);
    }
    ASSERT_EQ(a.adapters.size(), b.adapters.size());
    for (std::size_t i = 0; i < a.adapters.size(); ++i) {
      EXPECT_EQ(a.adapters[i].down, b.adapters[i].down);
      EXPECT_EQ(a.adapters[i].up, b.adapters[i].up);
    }
  }

  TemporaryDirectory directory_;
  Model model_;
  std::filesystem::path log_;  ///< of run(); empty: none
};

TEST_F(TrainingTest, TheSameSeedGivesTheSameMaps) {
  constexpr int kNever = 100, kThreads = 2;
  const TrainReport report = run(begin(4), kNever, kThreads);
  EXPECT_EQ(report.updates, 4);
  EXPECT_FALSE(report.stopped);
  EXPECT_FALSE(std::filesystem::exists(checkpoint_file()));
  const Heads first = heads();
  run(begin(4), kNever, kThreads);
  expect_same_maps(heads(), first);
  run(begin(4, /*seed=*/2), kNever, kThreads);
  EXPECT_NE(heads().steps[0].weight, first.steps[0].weight);
}

TEST_F(TrainingTest, AStoppedRunThatIsResumedGivesTheMapsOfAnUnbrokenOne) {
  run(begin(10));
  const Heads unbroken = heads();
  std::filesystem::remove(directory_ / "heads.gguf");

  const TrainReport stopped = run(begin(10), 1);
  EXPECT_TRUE(stopped.stopped);
  EXPECT_TRUE(stopped.heads_written);
  EXPECT_LT(stopped.updates, 10);
  EXPECT_NE(heads().steps[0].weight, unbroken.steps[0].weight);
  ASSERT_TRUE(std::filesystem::exists(checkpoint_file()));

  Checkpoint resumed = read_checkpoint(checkpoint_file(), model_.identity());
  EXPECT_EQ(resumed.state->updates, stopped.updates);
  const TrainReport report = run(resumed);
  EXPECT_EQ(report.updates, 10);
  expect_same_maps(heads(), unbroken);
}

TEST_F(TrainingTest, TheLogHoldsTheBeginningAndTheEndAndIsContinued) {
  log_ = directory_ / "log.csv";
  begin_training_log(log_, /*steps=*/2, /*resume=*/false);
  Checkpoint checkpoint = begin(30);
  checkpoint.phase_minutes[0] = 5;  // of an earlier phase
  run(checkpoint, 1);
  begin_training_log(log_, 2, /*resume=*/true);
  run(read_checkpoint(checkpoint_file(), model_.identity()));

  const std::vector<TrainingLogLine> lines = read_training_log(log_);
  ASSERT_EQ(lines.size(), 3u);  // the beginning, the resumed one's beginning, the end
  const int stopped_at = lines[1].updates;
  EXPECT_GT(stopped_at, 0);
  const int updates[] = {0, stopped_at, 30};
  for (int i = 0; i < 3; ++i) {
    const TrainingLogLine& line = lines[i];
    EXPECT_EQ(line.updates, updates[i]);
    EXPECT_EQ(line.rows, updates[i] * kSequencesAnUpdate * kAnchorsASequence * 2);
    EXPECT_GE(line.seconds, i == 0 ? 300 : lines[i - 1].seconds);
    EXPECT_EQ(line.top1.size(), 2u);
    EXPECT_GE(line.tokens_per_forward.chain, 1);
    EXPECT_GE(line.tokens_per_forward.tree32, line.tokens_per_forward.tree8);
  }
  EXPECT_TRUE(std::isnan(lines[0].loss));
  EXPECT_GT(lines[2].loss, 0);
}

TEST_F(TrainingTest, ALogIsReadAsItWasWrittenAndOtherFilesAreRefused) {
  const std::filesystem::path path = directory_ / "log.csv";
  begin_training_log(path, 2, /*resume=*/true);
  const TrainingLogLine line = {
      .seconds = 61.5,
      .updates = 7,
      .rows = 5'000'000'000,
      .loss = 1.25,
      .top1 = {0.5f, 0.25f},
      .tokens_per_forward = {.chain = 1.5f, .tree8 = 2, .tree16 = 2.25f, .tree32 = 2.5f}};
  EXPECT_NE(error_of([&] { read_training_log(path); }).find("no measurement"), std::string::npos);
  append_to_training_log(path, line);
  const std::vector<TrainingLogLine> read = read_training_log(path);
  ASSERT_EQ(read.size(), 1u);
  EXPECT_EQ(read[0].seconds, 61.5);
  EXPECT_EQ(read[0].updates, 7);
  EXPECT_EQ(read[0].rows, 5'000'000'000);
  EXPECT_EQ(read[0].loss, 1.25);
  EXPECT_EQ(read[0].top1, line.top1);
  EXPECT_EQ(read[0].tokens_per_forward.chain, 1.5f);
  EXPECT_EQ(read[0].tokens_per_forward.tree32, 2.5f);

  write_bytes(path, read_bytes(path) + "1,2,x,4,5,6,7,8,9,10\n");
  EXPECT_NE(error_of([&] { read_training_log(path); }).find("line 3"), std::string::npos);
  write_bytes(path, "a,b\n1,2\n");
  EXPECT_NE(error_of([&] { read_training_log(path); }).find("no log"), std::string::npos);
  begin_training_log(path, 2, /*resume=*/false);  // a new training's
  EXPECT_NE(error_of([&] { read_training_log(path); }).find("no measurement"), std::string::npos);
  EXPECT_NE(error_of([&] {
              begin_training_log(directory_ / "no" / "log.csv", 2, false);
            }).find("cannot write the log"),
            std::string::npos);
}

TEST_F(TrainingTest, TextsThatWereKeptAreTrainedOnAgain) {
  write_checkpoint(begin(3), directory_ / "texts");
  TrainOptions again = options(3);
  again.layer = 1;
  again.threads = 1;
  again.texts = directory_ / "texts";
  const auto ignore = [](const TrainProgress& progress) {
    EXPECT_NE(progress.phase, TrainPhase::kSynthesis);
  };
  const TrainReport report = train(again, ignore, std::atomic<bool>(false));
  EXPECT_EQ(report.texts, 24);
  const Heads from_file = heads();
  run(begin(3));
  expect_same_maps(from_file, heads());

  std::ofstream(directory_ / "texts") << "no texts";
  EXPECT_THROW(train(again, ignore, std::atomic<bool>(false)), Error);
}

TEST_F(TrainingTest, MedusaHeadsStandBehindTheLastLayerAndResume) {
  const auto begin_medusa = [&](int updates) {
    Checkpoint checkpoint = begin(updates);
    checkpoint.options.method = HeadsMethod::kMedusa;
    checkpoint.options.sequence_rank = checkpoint.options.adapter_rank = 0;
    checkpoint.options.token_input = false;
    checkpoint.layer = model_.config().layers;
    return checkpoint;
  };
  run(begin_medusa(6));
  const Heads unbroken = heads();
  EXPECT_EQ(unbroken.method, HeadsMethod::kMedusa);
  EXPECT_EQ(unbroken.steps[1].layer, model_.config().layers);
  const auto largest = [](const std::vector<float>& x) { return *std::ranges::max_element(x); };
  EXPECT_GT(largest(unbroken.steps[0].weight), 0.0f);

  run(begin_medusa(6), 1);
  run(read_checkpoint(checkpoint_file(), model_.identity()));
  EXPECT_EQ(heads().steps[0].weight, unbroken.steps[0].weight);
  EXPECT_EQ(heads().steps[1].bias, unbroken.steps[1].bias);
}

TEST_F(TrainingTest, MoreUpdatesLowerTheDivergenceAndASequentialHeadMoreSo) {
  at::set_num_threads(1);
  // The held-out figures of random models say little; the loss on their own distribution does.
  NativeEngine engine(model_, {.threads = 1, .context = 256, .max_rows = 64});
  const UpperLayers upper(model_, 1, torch::kCPU, torch::kFloat32);
  std::vector<TeacherText> texts;
  for (const Text& text : begin(1).texts) texts.push_back(run_teacher(engine, upper, text));
  torch::manual_seed(1);
  const int d = model_.config().hidden_size;
  const auto train = [&](std::optional<SequentialHeads> sequence) {
    Maps maps = {1, torch::zeros(d), torch::ones(d), torch::zeros({2, d, d}), torch::zeros({2, d})};
    maps.sequence = std::move(sequence);
    Distillation distillation(upper, texts, Distillation::initial_state(maps), 2e-3f, 1);
    const double before = distillation.update(100);
    double after = 0;
    for (int i = 1; i < 100; ++i) after = distillation.update(100);
    return std::pair(before, after);
  };
  const auto [before, after] = train({});
  EXPECT_LT(after, 0.7 * before);
  EXPECT_GT(after, 0);
  const auto [sequence_before, sequence_after] = train(SequentialHeads::initial(2, 32, d, 1, 1, 1));
  EXPECT_DOUBLE_EQ(sequence_before, before);  // a fresh head corrects nothing
  EXPECT_LT(sequence_after, 0.8 * after);
  EXPECT_GT(sequence_after, 0);
}

// As for an architecture that only libllama knows: no gradient goes through the model.
TEST_F(TrainingTest, RegressionOnAnyEngineMakesHeads) {
  const auto file = std::make_shared<const GgufFile>(directory_ / "tiny.gguf");
  Checkpoint checkpoint = begin(60);
  checkpoint.options.layer = 1;
  double first_loss = 0, last_loss = 0;
  const auto train_with = [&](Engine& engine) {
    const std::atomic<bool> stop{false};
    first_loss = 0;
    const auto on_progress = [&](const TrainProgress& progress) {
      if (progress.phase != TrainPhase::kDistillation) return;
      if (first_loss == 0) first_loss = progress.loss;
      last_loss = progress.loss;
    };
    return train_by_regression(*file, engine,
                               TrainingRun(checkpoint, options(0), on_progress, stop));
  };
  LlamaEngine llama(file, {.threads = 1, .context = 256, .positions = 512, .max_rows = 64}, {});
  const TrainReport report = train_with(llama);
  EXPECT_TRUE(report.heads_written);
  EXPECT_EQ(report.layer, 1);
  EXPECT_LT(first_loss, 0.5);  // these texts' states are a map away from each other
  EXPECT_LT(last_loss, 1.1 * first_loss);
  EXPECT_GE(report.evaluation.best().tree8, report.evaluation.best().chain);
  EXPECT_GE(report.evaluation.best().chain, 1.0f);
  const Heads of_llama = heads();
  ASSERT_EQ(of_llama.count(), 2);
  EXPECT_TRUE(of_llama.has_token_input());
  EXPECT_TRUE(of_llama.has_sequential_head());
  EXPECT_NE(std::ranges::max(of_llama.steps[1].sequence->output), 0.0f);
  EXPECT_TRUE(of_llama.adapters.empty());

  // The same maps from our own engine's hidden states, within rounding.
  NativeEngine native(model_, {.threads = 1, .context = 256, .max_rows = 64});
  train_with(native);
  const Heads of_native = heads();
  const std::vector<float>& a = of_llama.steps[0].weight;
  const std::vector<float>& b = of_native.steps[0].weight;
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  EXPECT_LT(difference, 0.01 * size);
}

TEST_F(TrainingTest, ACheckpointHoldsEverything) {
  Checkpoint checkpoint = begin(30, /*seed=*/9);
  checkpoint.planned_updates = 30;
  checkpoint.phase_minutes[2] = 1.5;
  torch::manual_seed(3);
  const int d = model_.config().hidden_size;
  const Maps maps = {1,
                     torch::randn(d),
                     torch::rand(d) + 1,
                     torch::randn({2, d, d}),
                     torch::randn({2, d}),
                     TokenInput{0.25, torch::randn({2, d, d})},
                     SequentialHeads::initial(2, 8, d, 0.5, 2, 4),
                     Adapters::initial(model_.config().layers - 1, 5, d, 4)};
  checkpoint.options.sequence_rank = 8;
  checkpoint.options.adapter_rank = 5;
  checkpoint.state = Distillation::initial_state(maps);
  for (torch::Tensor& moment : checkpoint.state->means) moment.normal_();
  for (torch::Tensor& moment : checkpoint.state->squares) moment.normal_();
  checkpoint.state->updates = 7;
  write_checkpoint(checkpoint, checkpoint_file());
  const Checkpoint read = read_checkpoint(checkpoint_file(), model_.identity());
  EXPECT_EQ(read.options.seed, 9u);
  EXPECT_EQ(read.options.draft_steps, 2);
  EXPECT_EQ(read.options.updates, 30);
  EXPECT_EQ(read.layer, 1);
  EXPECT_EQ(read.planned_updates, 30);
  EXPECT_EQ(read.phase_minutes[2], 1.5);
  ASSERT_EQ(read.texts.size(), checkpoint.texts.size());
  for (std::size_t i = 0; i < read.texts.size(); ++i) {
    EXPECT_EQ(read.texts[i].tokens, checkpoint.texts[i].tokens);
    EXPECT_EQ(read.texts[i].answer_begin, checkpoint.texts[i].answer_begin);
    EXPECT_EQ(read.texts[i].greedy, checkpoint.texts[i].greedy);
    EXPECT_EQ(read.texts[i].held_out, checkpoint.texts[i].held_out);
  }
  ASSERT_TRUE(read.state);
  EXPECT_EQ(read.state->updates, 7);
  EXPECT_TRUE(torch::equal(read.state->maps.weight, maps.weight));
  EXPECT_TRUE(torch::equal(read.state->maps.deviation, maps.deviation));
  ASSERT_TRUE(read.state->maps.token);
  EXPECT_EQ(read.state->maps.token->scale, 0.25);
  EXPECT_TRUE(torch::equal(read.state->maps.token->weight, maps.token->weight));
  ASSERT_TRUE(read.state->maps.sequence);
  EXPECT_EQ(read.state->maps.sequence->state_scale, 0.5);
  EXPECT_EQ(read.state->maps.sequence->token_scale, 2);
  EXPECT_TRUE(torch::equal(read.state->maps.sequence->token, maps.sequence->token));
  ASSERT_TRUE(read.state->maps.adapters);
  EXPECT_TRUE(torch::equal(read.state->maps.adapters->down, maps.adapters->down));
  ASSERT_EQ(read.state->means.size(), 9u);
  for (std::size_t i = 0; i < 9; ++i) {
    EXPECT_TRUE(torch::equal(read.state->means[i], checkpoint.state->means[i]));
    EXPECT_TRUE(torch::equal(read.state->squares[i], checkpoint.state->squares[i]));
  }
}

TEST_F(TrainingTest, CheckpointsThatCannotBeUsedAreRefused) {
  const Checkpoint checkpoint = begin(30);
  EXPECT_NE(error_of([&] {
              read_checkpoint(checkpoint_file(), model_.identity());
            }).find("no checkpoint"),
            std::string::npos);
  write_checkpoint(checkpoint, checkpoint_file());
  ModelIdentity other = model_.identity();
  other.tensor_hash = "0123456789abcdef";
  EXPECT_NE(error_of([&] { read_checkpoint(checkpoint_file(), other); }).find("another model"),
            std::string::npos);
  const std::string good = read_bytes(checkpoint_file());
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{10}, good.size() / 2, good.size() - 1}) {
    write_bytes(checkpoint_file(), good.substr(0, size));
    EXPECT_NE(
        error_of([&] { read_checkpoint(checkpoint_file(), model_.identity()); }).find("damaged"),
        std::string::npos)
        << size;
  }
}

TEST_F(TrainingTest, AFullDiskLeavesTheLastCheckpoint) {
  write_checkpoint(begin(30), checkpoint_file());
  const std::string before = read_bytes(checkpoint_file());
  Checkpoint larger = begin(30);
  const int d = model_.config().hidden_size;
  larger.state = Distillation::initial_state(
      {1, torch::zeros(d), torch::ones(d), torch::zeros({2, d, d}), torch::zeros({2, d})});
  const std::string message = error_of([&] {
    const FullDisk full(20000);
    write_checkpoint(larger, checkpoint_file());
  });
  EXPECT_NE(message.find("cannot write"), std::string::npos) << message;
  EXPECT_EQ(read_bytes(checkpoint_file()), before);
  for (const auto& entry : std::filesystem::directory_iterator(checkpoint_file().parent_path())) {
    EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos) << entry.path();
  }
}

}  // namespace
}  // namespace firp
