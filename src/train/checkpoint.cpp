#include "train/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <span>

#include "base/error.h"
#include "model/replaced_file.h"

namespace firp {
namespace {

constexpr std::int64_t kVersion = 4;

std::string describe(const ModelIdentity& base) {
  return fmt::format("{} {}x{} {}", base.architecture, base.layers, base.hidden_size,
                     base.tensor_hash);
}

}  // namespace

std::filesystem::path checkpoint_path(const TrainOptions& options) {
  return options.output.string() + ".checkpoint";
}

void write_checkpoint(const Checkpoint& checkpoint, const std::filesystem::path& path) {
  torch::serialize::OutputArchive archive;
  const auto put = [&](const std::string& key, c10::IValue value) { archive.write(key, value); };
  put("version", kVersion);
  put("base", describe(checkpoint.base));
  put("medusa", checkpoint.options.method == HeadsMethod::kMedusa);
  put("draft_steps", static_cast<std::int64_t>(checkpoint.options.draft_steps));
  put("token_input", checkpoint.options.token_input);
  put("sequence_rank", static_cast<std::int64_t>(checkpoint.options.sequence_rank));
  put("adapter_rank", static_cast<std::int64_t>(checkpoint.options.adapter_rank));
  put("updates", static_cast<std::int64_t>(checkpoint.options.updates));
  put("minutes", checkpoint.options.minutes);
  put("learning_rate", static_cast<double>(checkpoint.options.learning_rate));
  put("seed", static_cast<std::int64_t>(checkpoint.options.seed));
  put("layer", static_cast<std::int64_t>(checkpoint.layer));
  put("planned_updates", static_cast<std::int64_t>(checkpoint.planned_updates));
  for (int phase = 0; phase < kTrainPhases; ++phase) {
    put(fmt::format("phase_minutes.{}", phase), checkpoint.phase_minutes[phase]);
  }
  // Texts: all tokens in a row; for each text its length, answer_begin and flags.
  std::vector<std::int32_t> tokens, shapes;
  for (const Text& text : checkpoint.texts) {
    tokens.insert(tokens.end(), text.tokens.begin(), text.tokens.end());
    shapes.insert(shapes.end(), {static_cast<std::int32_t>(text.tokens.size()), text.answer_begin,
                                 text.greedy, text.held_out});
  }
  archive.write("tokens", torch::tensor(tokens, torch::kInt32));
  archive.write("texts", torch::tensor(shapes, torch::kInt32));
  put("has_state", checkpoint.state.has_value());
  if (checkpoint.state) {
    const Distillation::State& state = *checkpoint.state;
    put("updates_done", static_cast<std::int64_t>(state.updates));
    archive.write("mean", state.maps.mean.cpu());
    archive.write("deviation", state.maps.deviation.cpu());
    Maps maps = state.maps;
    const std::vector<torch::Tensor*> parameters = maps.parameters();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      archive.write(fmt::format("parameter.{}", i), parameters[i]->cpu());
      archive.write(fmt::format("mean.{}", i), state.means[i].cpu());
      archive.write(fmt::format("square.{}", i), state.squares[i].cpu());
    }
    if (maps.token) {
      put("token_input_scale", maps.token->scale);
    }
    if (maps.sequence) {
      put("state_scale", maps.sequence->state_scale);
      put("token_scale", maps.sequence->token_scale);
    }
  }

  ReplacedFile file(path);
  std::exception_ptr failure;  // kept until the archive, whose destructor writes too, is done
  archive.save_to([&](const void* data, std::size_t size) {
    try {
      if (!failure) file.write(std::span(static_cast<const std::byte*>(data), size));
    } catch (const Error&) {
      failure = std::current_exception();
    }
    return size;
  });
  if (failure) std::rethrow_exception(failure);
  file.replace();
}

Checkpoint read_checkpoint(const std::filesystem::path& path, const ModelIdentity& base) {
  if (!std::filesystem::is_regular_file(path)) {
    throw Error(fmt::format("there is no checkpoint {} to resume from", path.string()));
  }
  const auto damaged = [&] {
    return Error(
        fmt::format("the checkpoint {} is damaged; remove it and train anew", path.string()));
  };
  Checkpoint out;
  std::string base_in_file;
  try {
    torch::serialize::InputArchive archive;
    archive.load_from(path.string(), torch::Device(torch::kCPU));
    const auto get = [&](const std::string& key) {
      c10::IValue value;
      archive.read(key, value);
      return value;
    };
    const auto get_int = [&](const std::string& key) { return static_cast<int>(get(key).toInt()); };
    const auto get_tensor = [&](const std::string& key) {
      torch::Tensor tensor;
      archive.read(key, tensor);
      return tensor;
    };
    const auto get_floats = [&](const std::string& key, std::vector<std::int64_t> shape) {
      const torch::Tensor tensor = get_tensor(key);
      if (tensor.scalar_type() != torch::kFloat32 || tensor.sizes() != shape) {
        throw damaged();
      }
      return tensor;
    };
    if (get_int("version") != kVersion) {
      throw damaged();
    }
    base_in_file = get("base").toStringRef();
    out.base = base;
    out.options.method = get("medusa").toBool() ? HeadsMethod::kMedusa : HeadsMethod::kFirp;
    out.options.draft_steps = get_int("draft_steps");
    out.options.token_input = get("token_input").toBool();
    out.options.sequence_rank = get_int("sequence_rank");
    out.options.adapter_rank = get_int("adapter_rank");
    out.options.updates = get_int("updates");
    out.options.minutes = get("minutes").toDouble();
    out.options.learning_rate = static_cast<float>(get("learning_rate").toDouble());
    out.options.seed = static_cast<std::uint64_t>(get("seed").toInt());
    out.layer = get_int("layer");
    out.planned_updates = get_int("planned_updates");
    for (int phase = 0; phase < kTrainPhases; ++phase) {
      out.phase_minutes[phase] = get(fmt::format("phase_minutes.{}", phase)).toDouble();
    }
    const torch::Tensor tokens = get_tensor("tokens"), shapes = get_tensor("texts");
    const auto* const token = tokens.data_ptr<std::int32_t>();
    const auto* const shape = shapes.data_ptr<std::int32_t>();
    std::int64_t begin = 0;
    for (std::int64_t i = 0; i + 4 <= shapes.numel(); i += 4) {
      Text text;
      if (shape[i] < 3 || begin + shape[i] > tokens.numel() || shape[i + 1] < 0 ||
          shape[i + 1] > shape[i]) {
        throw damaged();
      }
      text.tokens.assign(token + begin, token + begin + shape[i]);
      begin += shape[i];
      if (std::ranges::any_of(text.tokens,
                              [&](Token t) { return t < 0 || t >= base.vocabulary_size; })) {
        throw damaged();
      }
      text.answer_begin = shape[i + 1];
      text.greedy = shape[i + 2] != 0;
      text.held_out = shape[i + 3] != 0;
      out.texts.push_back(std::move(text));
    }
    if (out.layer < 0 || out.layer > base.layers || out.options.draft_steps < 1 ||
        out.options.draft_steps > kMaxDraftSteps || out.options.sequence_rank < 0 ||
        out.options.sequence_rank > kMaxSequenceRank || out.options.adapter_rank < 0 ||
        out.options.adapter_rank > kMaxAdapterRank || out.texts.empty()) {
      throw damaged();
    }
    if (get("has_state").toBool()) {
      Distillation::State state;
      state.updates = get_int("updates_done");
      const std::int64_t d = base.hidden_size, steps = out.options.draft_steps;
      state.maps = {out.layer, get_floats("mean", {d}), get_floats("deviation", {d}),
                    torch::empty({steps, d, d}), torch::empty({steps, d})};
      state.maps.method = out.options.method;
      if (out.options.token_input) {
        state.maps.token =
            TokenInput{get("token_input_scale").toDouble(), torch::empty({steps, d, d})};
      }
      if (const int rank = out.options.sequence_rank; rank > 0) {
        state.maps.sequence =
            SequentialHeads{get("state_scale").toDouble(),  get("token_scale").toDouble(),
                            torch::empty({steps, rank, d}), torch::empty({steps, rank, d}),
                            torch::empty({steps, rank}),    torch::empty({steps, d, rank})};
      }
      if (const int rank = out.options.adapter_rank; rank > 0) {
        const int layers = base.layers - out.layer;
        state.maps.adapters =
            Adapters{torch::empty({layers, rank, d}), torch::empty({layers, d, rank})};
      }
      const std::vector<torch::Tensor*> parameters = state.maps.parameters();
      for (std::size_t i = 0; i < parameters.size(); ++i) {
        const std::vector<std::int64_t> sizes = parameters[i]->sizes().vec();
        *parameters[i] = get_floats(fmt::format("parameter.{}", i), sizes);
        state.means.push_back(get_floats(fmt::format("mean.{}", i), sizes));
        state.squares.push_back(get_floats(fmt::format("square.{}", i), sizes));
      }
      out.state = std::move(state);
    }
  } catch (const Error&) {
    throw;
  } catch (const std::exception&) {  // whatever LibTorch makes of a damaged archive
    throw damaged();
  }
  if (base_in_file != describe(base)) {
    throw Error(fmt::format("the checkpoint {} is of another model", path.string()));
  }
  return out;
}

}  // namespace firp
