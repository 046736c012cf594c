#include "model/heads.h"

#include <fmt/format.h>
#include <ggml.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <limits>

#include "model/full_disk.h"
#include "model/test_files.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

using testing::HasSubstr;

TinyModelOptions small_options() {
  TinyModelOptions options;
  options.layers = 3;
  options.hidden_size = 32;
  options.query_heads = 2;
  options.kv_heads = 1;
  options.head_size = 16;
  options.feed_forward_size = 32;
  options.vocabulary_size = 16;
  return options;
}

class HeadsFile : public testing::Test {
 protected:
  HeadsFile() : model_path_(directory_ / "tiny.gguf") {
    write_tiny_model(model_path_, small_options());
    heads_.base = Model(model_path_).identity();
    for (int step = 1; step <= 4; ++step) {
      DraftMap map{.layer = 1 + step % 2, .weight = {}, .bias = {}};
      for (int i = 0; i < 32 * 32; ++i) {
        map.weight.push_back(
            ggml_fp16_to_fp32(ggml_fp32_to_fp16(std::sin(static_cast<float>(i * step)))));
      }
      for (int i = 0; i < 32; ++i) {
        map.bias.push_back(std::cos(static_cast<float>(i * step)));
      }
      map.token.assign(map.weight.rbegin(), map.weight.rend());
      SequentialHead sequence{.rank = 5, .state = {}, .token = {}, .bias = {}, .output = {}};
      for (int i = 0; i < 5 * 32; ++i) {
        sequence.state.push_back(static_cast<float>(i % 7 + step));
        sequence.token.push_back(static_cast<float>(i % 11 - step));
        sequence.output.push_back(static_cast<float>(i % 13) / 4);
      }
      for (int i = 0; i < 5; ++i) sequence.bias.push_back(0.1f * static_cast<float>(i + step));
      map.sequence = std::move(sequence);
      heads_.steps.push_back(std::move(map));
    }
    for (const int layer : {1, 2}) {
      Adapter adapter{.layer = layer, .rank = 3, .down = {}, .up = {}};
      for (int i = 0; i < 3 * 32; ++i) {
        adapter.down.push_back(static_cast<float>(i % 5 + layer));
        adapter.up.push_back(static_cast<float>(i % 9 - layer));
      }
      heads_.adapters.push_back(std::move(adapter));
    }
    heads_.draft_vocabulary = {7, 3, 15, 0};
    heads_.training = {.command = "firp train -m tiny.gguf",
                       .minutes = 3.25,
                       .rows = 5'000'000'000,
                       .top1 = {0.5f, 0.25f, 0.125f, 0.1f},
                       .top5 = {0.75f, 0.5f, 0.25f, 0.2f},
                       .sequence_top1 = {0.6f, 0.4f, 0.3f, 0.25f},
                       .tokens_per_forward_chain = 1.6f,
                       .tokens_per_forward_tree32 = 2.24f};
  }

  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path())) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  TemporaryDirectory directory_;
  std::filesystem::path model_path_;
  Heads heads_;
};

TEST_F(HeadsFile, ComesBackAsItWasWritten) {
  const std::filesystem::path path = directory_ / "h.gguf";
  write_heads(heads_, path);
  const Model model(model_path_);
  const Heads read = read_heads(path, &model.file());
  EXPECT_EQ(read.base, heads_.base);
  ASSERT_EQ(read.count(), 4);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(read.steps[i].layer, heads_.steps[i].layer);
    EXPECT_EQ(read.steps[i].weight, heads_.steps[i].weight);
    EXPECT_EQ(read.steps[i].bias, heads_.steps[i].bias);
    EXPECT_EQ(read.steps[i].token, heads_.steps[i].token);
    ASSERT_TRUE(read.steps[i].sequence);
    EXPECT_EQ(read.steps[i].sequence->rank, 5);
    EXPECT_EQ(read.steps[i].sequence->state, heads_.steps[i].sequence->state);
    EXPECT_EQ(read.steps[i].sequence->token, heads_.steps[i].sequence->token);
    EXPECT_EQ(read.steps[i].sequence->bias, heads_.steps[i].sequence->bias);
    EXPECT_EQ(read.steps[i].sequence->output, heads_.steps[i].sequence->output);
  }
  ASSERT_EQ(read.adapters.size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(read.adapters[i].layer, heads_.adapters[i].layer);
    EXPECT_EQ(read.adapters[i].rank, 3);
    EXPECT_EQ(read.adapters[i].down, heads_.adapters[i].down);
    EXPECT_EQ(read.adapters[i].up, heads_.adapters[i].up);
  }
  EXPECT_EQ(read.draft_vocabulary, heads_.draft_vocabulary);
  EXPECT_EQ(read.training.command, heads_.training.command);
  EXPECT_EQ(read.training.minutes, heads_.training.minutes);
  EXPECT_EQ(read.training.rows, heads_.training.rows);
  EXPECT_EQ(read.training.top1, heads_.training.top1);
  EXPECT_EQ(read.training.top5, heads_.training.top5);
  EXPECT_EQ(read.training.sequence_top1, heads_.training.sequence_top1);
  EXPECT_EQ(read.training.tokens_per_forward_chain, heads_.training.tokens_per_forward_chain);
  EXPECT_EQ(read.training.tokens_per_forward_tree32, heads_.training.tokens_per_forward_tree32);
  EXPECT_EQ(files(), (std::vector<std::string>{"h.gguf", "tiny.gguf"}));
}

/// Maps alone, as version 1 had them.
Heads maps_alone(Heads heads) {
  for (DraftMap& step : heads.steps) {
    step.sequence.reset();
    step.token.clear();
  }
  heads.adapters.clear();
  heads.draft_vocabulary.clear();
  return heads;
}

TEST_F(HeadsFile, MapsAloneAreHeadsTooAlsoOfVersion1) {
  const std::filesystem::path path = directory_ / "h.gguf";
  write_heads(maps_alone(heads_), path);
  std::string bytes = read_bytes(path);
  for (const char version : {'\3', '\2', '\1'}) {
    bytes[bytes.find("firp.version") + 12 + 4] = version;
    write_bytes(path, bytes);
    const Heads read = read_heads(path, nullptr);
    ASSERT_EQ(read.count(), 4);
    EXPECT_FALSE(read.has_sequential_head());
    EXPECT_FALSE(read.has_token_input());
    EXPECT_TRUE(read.adapters.empty());
    EXPECT_TRUE(read.draft_vocabulary.empty());
    EXPECT_EQ(read.steps[3].weight, heads_.steps[3].weight);
  }
}

TEST_F(HeadsFile, MedusaHeadsAreKeptAndStandAtTheEnd) {
  const std::filesystem::path path = directory_ / "h.gguf";
  Heads heads = maps_alone(heads_);
  heads.method = HeadsMethod::kMedusa;
  EXPECT_THAT(error_of([&] { write_heads(heads, path); }), HasSubstr("behind the last layer"));
  for (DraftMap& step : heads.steps) step.layer = heads.base.layers;
  write_heads(heads, path);
  const Heads read = read_heads(path, nullptr);
  EXPECT_EQ(read.method, HeadsMethod::kMedusa);
  EXPECT_EQ(read.steps[1].weight, heads.steps[1].weight);
  std::string bytes = read_bytes(path);
  bytes.replace(bytes.find("medusa"), 6, "hydra!");
  write_bytes(path, bytes);
  EXPECT_THAT(error_of([&] { read_heads(path, nullptr); }), HasSubstr("'hydra!'"));
}

TEST_F(HeadsFile, OfOtherShapesAreRefusedAndOfASiblingTaken) {
  const std::filesystem::path path = directory_ / "h.gguf";
  write_heads(heads_, path);
  TinyModelOptions options = small_options();
  options.seed = 2;
  write_tiny_model(directory_ / "sibling.gguf", options);
  EXPECT_FALSE(read_heads(path, &Model(model_path_).file()).for_sibling);
  EXPECT_TRUE(read_heads(path, &Model(directory_ / "sibling.gguf").file()).for_sibling);
  options.layers += 1;
  write_tiny_model(directory_ / "other.gguf", options);
  const Model other(directory_ / "other.gguf");
  const std::string message = error_of([&] { read_heads(path, &other.file()); });
  EXPECT_THAT(message, HasSubstr(path.string()));
  EXPECT_THAT(message, HasSubstr("other.gguf"));
  EXPECT_THAT(message, HasSubstr(heads_.base.tensor_hash));
  EXPECT_THAT(message, HasSubstr(other.identity().tensor_hash));
  EXPECT_THAT(error_of([&] { read_heads(model_path_, nullptr); }), HasSubstr("not a FIRP heads"));
}

TEST_F(HeadsFile, ImpossibleHeadsAreNotWritten) {
  const auto message = [&](auto change) {
    Heads heads = heads_;
    change(heads);
    return error_of([&] { write_heads(heads, directory_ / "h.gguf"); });
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(message([](Heads& heads) { heads.steps.clear(); }), HasSubstr("0 steps"));
  EXPECT_THAT(message([](Heads& heads) { heads.steps[1].layer = 0; }), HasSubstr("layer 0"));
  EXPECT_THAT(message([](Heads& heads) { heads.steps[1].layer = 4; }), HasSubstr("layer 4"));
  EXPECT_THAT(message([](Heads& heads) { heads.steps[1].weight.pop_back(); }), HasSubstr("fit"));
  EXPECT_THAT(message([&](Heads& heads) { heads.steps[3].weight[5] = nan; }), HasSubstr("finite"));
  EXPECT_THAT(message([](Heads& heads) { heads.steps[3].weight[5] = 7e4f; }), HasSubstr("F16"));
  EXPECT_THAT(message([&](Heads& heads) { heads.steps[3].bias[5] = nan; }), HasSubstr("finite"));
  EXPECT_THAT(message([](Heads& heads) { heads.steps[2].token.clear(); }), HasSubstr("others"));
  EXPECT_THAT(message([](Heads& heads) { heads.steps[2].token.pop_back(); }), HasSubstr("size"));
  EXPECT_THAT(message([](Heads& heads) { heads.steps[2].token[4] = 7e4f; }), HasSubstr("F16"));
  EXPECT_THAT(message([](Heads& heads) { heads.steps[2].sequence.reset(); }), HasSubstr("others"));
  EXPECT_THAT(message([](Heads& heads) { heads.steps[2].sequence->rank = 6; }),
              HasSubstr("rank 6"));
  EXPECT_THAT(message([](Heads& heads) { heads.steps[2].sequence->token.pop_back(); }),
              HasSubstr("rank 5"));
  EXPECT_THAT(message([](Heads& heads) { heads.steps[2].sequence->output[0] = 7e4f; }),
              HasSubstr("F16"));
  EXPECT_THAT(message([&](Heads& heads) { heads.steps[2].sequence->bias[0] = nan; }),
              HasSubstr("finite"));
  EXPECT_THAT(message([](Heads& heads) { heads.adapters.pop_back(); }), HasSubstr("adapter"));
  EXPECT_THAT(message([](Heads& heads) { heads.adapters[1].layer = 1; }), HasSubstr("layer 1"));
  EXPECT_THAT(message([](Heads& heads) { heads.adapters[1].up.pop_back(); }), HasSubstr("layer 2"));
  EXPECT_THAT(message([](Heads& heads) { heads.adapters[1].up[0] = 7e4f; }), HasSubstr("F16"));
  EXPECT_THAT(message([](Heads& heads) { heads.draft_vocabulary[1] = 16; }), HasSubstr("16 of 16"));
  EXPECT_THAT(message([](Heads& heads) { heads.draft_vocabulary[1] = 7; }), HasSubstr("7 twice"));
  EXPECT_EQ(files(), (std::vector<std::string>{"tiny.gguf"}));
}

TEST_F(HeadsFile, DamagedPartsOfTheSequentialHeadAreNamed) {
  const std::filesystem::path path = directory_ / "h.gguf";
  write_heads(heads_, path);
  const std::string good = read_bytes(path);
  // Of a tensor's entry: its name, the number of its extents, the extents, its type.
  const auto message = [&](const std::string& tensor, std::size_t skip, char value) {
    std::string bytes = good;
    bytes[bytes.find(tensor) + tensor.size() + skip] = value;
    write_bytes(path, bytes);
    return error_of([&] { read_heads(path, nullptr); });
  };
  constexpr std::size_t kFirstExtent = 4, kSecondExtent = 12, kTypeOfMatrix = 20;
  for (const std::string part : {"state", "token", "output"}) {  // turned: [r, d] for [d, r]
    const std::string name = "step.2.sequence." + part;
    std::string bytes = good;
    const std::size_t entry = bytes.find(name) + name.size();
    std::swap(bytes[entry + kFirstExtent], bytes[entry + kSecondExtent]);
    write_bytes(path, bytes);
    EXPECT_THAT(error_of([&] { read_heads(path, nullptr); }),
                HasSubstr("tensor " + name + " is f16"));
  }
  // 5 and 6 values take the same room in the file.
  EXPECT_THAT(message("step.2.sequence.bias", kFirstExtent, 6),
              HasSubstr("step.2.sequence.state is f16 [32, 5, 1, 1], expected f16 [32, 6]"));
  EXPECT_THAT(message("step.2.sequence.output", kTypeOfMatrix, GGML_TYPE_BF16),
              HasSubstr("step.2.sequence.output"));
  EXPECT_THAT(message("step.2.sequence.output", std::size_t(-1), 'x'),
              HasSubstr("step.2.sequence.output is missing"));
  EXPECT_THAT(message("step.2.sequence.bias", std::size_t(-1), 'x'), HasSubstr("steps 1 and 2"));
  EXPECT_THAT(message("step.1.sequence.bias", std::size_t(-1), 'x'), HasSubstr("steps 1 and 2"));
  EXPECT_THAT(message("step.2.token", std::size_t(-1), 'x'), HasSubstr("steps 1 and 2"));
  EXPECT_THAT(message("step.2.token", kTypeOfMatrix, GGML_TYPE_BF16), HasSubstr("step.2.token"));
  EXPECT_THAT(message("draft_vocabulary", std::size_t(-1), 'x'), HasSubstr("33 tensors where 32"));
  EXPECT_THAT(message("adapter.2.up", std::size_t(-1), 'x'), HasSubstr("adapter.2.up is missing"));
  EXPECT_THAT(message("adapter.1.down", std::size_t(-1), 'x'), HasSubstr("33 tensors where 29"));
  std::string bytes = good;
  bytes[bytes.size() - 32] = 16;  // the draft vocabulary's data come last, padded to 32
  write_bytes(path, bytes);
  EXPECT_THAT(error_of([&] { read_heads(path, nullptr); }), HasSubstr("token 16 of 16"));
  bytes[bytes.size() - 32] = 3;
  write_bytes(path, bytes);
  EXPECT_THAT(error_of([&] { read_heads(path, nullptr); }), HasSubstr("token 3 twice"));
}

TEST_F(HeadsFile, DamagedValuesAreNamed) {
  const std::filesystem::path path = directory_ / "h.gguf";
  write_heads(maps_alone(heads_), path);
  const std::string good = read_bytes(path);
  const auto message = [&](const std::string& key, std::size_t skip, std::uint32_t value) {
    std::string bytes = good;
    const std::size_t offset = bytes.find(key) + key.size() + skip;
    bytes.replace(offset, 4, reinterpret_cast<const char*>(&value), 4);
    write_bytes(path, bytes);
    return error_of([&] { read_heads(path, nullptr); });
  };
  EXPECT_THAT(message("firp.version", 4, 5), HasSubstr("version 5"));
  EXPECT_THAT(message("firp.step_count", 4, 3), HasSubstr("4 elements for 3 steps"));
  EXPECT_THAT(message("firp.step_count", 4, 0), HasSubstr("firp.step_count"));
  EXPECT_THAT(message("firp.step_layers", 16, 0), HasSubstr("layer 0"));
  EXPECT_THAT(message("firp.step_layers", 16, 4), HasSubstr("layer 4"));
  EXPECT_THAT(message("firp.base.hidden_size", 4, 64), HasSubstr("step.1.weight"));
  std::string infinite = good;
  infinite.replace(good.size() - 4, 4, std::string("\0\0\x80\x7f", 4));
  write_bytes(path, infinite);
  EXPECT_THAT(error_of([&] { read_heads(path, nullptr); }), HasSubstr("step.4.bias"));
}

TEST_F(HeadsFile, FailuresToWriteLeaveWhatWasThere) {
  const std::filesystem::path path = directory_ / "h.gguf";
  write_bytes(path, "old");
  const std::string message = error_of([&] {
    const FullDisk full(5000);
    write_heads(heads_, path);
  });
  EXPECT_THAT(message, testing::AllOf(HasSubstr(path.string()), HasSubstr("File too large")));
  EXPECT_EQ(read_bytes(path), "old");
  EXPECT_EQ(files(), (std::vector<std::string>{"h.gguf", "tiny.gguf"}));

  EXPECT_THAT(error_of([&] { write_heads(heads_, directory_ / "none" / "h.gguf"); }),
              HasSubstr("No such file or directory"));
  EXPECT_THAT(error_of([&] { write_heads(heads_, directory_.path()); }), HasSubstr("regular file"));
  EXPECT_THAT(error_of([&] { write_heads(heads_, "/dev/full"); }), HasSubstr("regular file"));
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/full"));
  if (geteuid() != 0) {  // root may write anywhere
    const std::filesystem::path closed = directory_ / "closed";
    std::filesystem::create_directory(closed);
    std::filesystem::permissions(closed, std::filesystem::perms::owner_read);
    EXPECT_THAT(error_of([&] { write_heads(heads_, closed / "h.gguf"); }),
                HasSubstr("Permission denied"));
    std::filesystem::permissions(closed, std::filesystem::perms::owner_all);
  }
}

TEST_F(HeadsFile, ALinkKeepsPointingToThem) {
  write_bytes(directory_ / "real.gguf", "old");
  std::filesystem::create_symlink("real.gguf", directory_ / "link.gguf");
  write_heads(heads_, directory_ / "link.gguf");
  EXPECT_TRUE(std::filesystem::is_symlink(directory_ / "link.gguf"));
  EXPECT_EQ(read_heads(directory_ / "real.gguf", nullptr).count(), 4);
}

TEST_F(HeadsFile, IsFoundBesideTheModelAndByIdentity) {
  const Model model(model_path_);
  const std::filesystem::path shelf = directory_ / "shelf";
  EXPECT_EQ(find_heads(model.file(), {directory_ / "none"}), std::nullopt);
  std::filesystem::create_directory(shelf);
  write_bytes(shelf / "a.gguf", "damaged");
  std::filesystem::copy_file(model_path_, shelf / "b.gguf");
  std::filesystem::create_directory(shelf / "c.gguf");
  Heads others = heads_;
  others.base.tensor_hash = "0000000000000000";
  write_heads(others, shelf / "d.gguf");
  EXPECT_EQ(find_heads(model.file(), {shelf}), shelf / "d.gguf");  // of a sibling
  others.base.vocabulary_size += 1;
  write_heads(others, shelf / "d.gguf");
  EXPECT_EQ(find_heads(model.file(), {shelf}), std::nullopt);
  others.base = heads_.base;
  others.base.tensor_hash = "0000000000000000";
  write_heads(others, shelf / "d.gguf");
  write_heads(heads_, shelf / "e.gguf");
  EXPECT_EQ(find_heads(model.file(), {directory_ / "none", shelf}), shelf / "e.gguf");
  write_heads(heads_, directory_ / "tiny.firp.gguf");
  EXPECT_EQ(find_heads(model.file(), {shelf}), directory_ / "tiny.firp.gguf");
}

}  // namespace
}  // namespace firp
