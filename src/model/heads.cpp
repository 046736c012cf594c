#include "model/heads.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "model/ggml_log.h"
#include "model/gguf_pointers.h"
#include "model/part_name.h"
#include "model/replaced_file.h"

namespace firp {
namespace {

// Version 1 holds maps alone, 2 no token input, 3 no other method and no row behind the last layer.
constexpr int kVersion = 4;
constexpr const char* kMedusaName = "medusa";
constexpr int kMostSteps = 64;
constexpr int kMostRank = 1 << 16;

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& reason) {
  throw Error(fmt::format("{}: {}", path.string(), reason));
}

int read_size(const GgufFile& file, std::string_view key, int least, int most) {
  const std::int64_t value = file.get_int(key);
  if (value < least || value > most) {
    fail(file.path(), fmt::format("{} is {}, not in {}..{}", key, value, least, most));
  }
  return static_cast<int>(value);
}

/// The identity of the model that a heads file was made for; an Error where it is no heads file.
ModelIdentity read_base(const GgufFile& file) {
  const std::string architecture = file.get_string("general.architecture");
  if (architecture != "firp") {
    fail(file.path(),
         fmt::format("not a FIRP heads file (its architecture is '{}')", one_line(architecture)));
  }
  const std::int64_t version = file.get_int("firp.version");
  if (version < 1 || version > kVersion) {
    fail(file.path(),
         fmt::format("heads of version {}: this program reads 1 to {}", version, kVersion));
  }
  return {.architecture = one_line(file.get_string("firp.base.architecture")),
          .layers = read_size(file, "firp.base.layers", 2, 1024),
          .hidden_size = read_size(file, "firp.base.hidden_size", 1, 1 << 16),
          .vocabulary_size = read_size(file, "firp.base.vocabulary_size", 1, 1 << 22),
          .tensor_hash = one_line(file.get_string("firp.base.tensor_hash"))};
}

std::string describe(const ModelIdentity& model) {
  return fmt::format("{}, {} layers, d {}, {} tokens, tensors {}", model.architecture, model.layers,
                     model.hidden_size, model.vocabulary_size, model.tensor_hash);
}

const Tensor& get_tensor(const GgufFile& file, const std::string& name, ggml_type type,
                         std::int64_t columns, std::int64_t rows) {
  const Tensor& tensor = file.get_tensor(name);
  if (tensor.type != type || tensor.shape != std::array<std::int64_t, 4>{columns, rows, 1, 1}) {
    fail(file.path(),
         fmt::format("tensor {} is {} [{}, {}, {}, {}], expected {} [{}, {}]", name,
                     ggml_type_name(tensor.type), tensor.shape[0], tensor.shape[1], tensor.shape[2],
                     tensor.shape[3], ggml_type_name(type), columns, rows));
  }
  return tensor;
}

/// What is wrong with it, or "".
std::string draft_vocabulary_problem(const std::vector<std::int32_t>& tokens, int vocabulary_size) {
  std::vector<bool> seen(static_cast<std::size_t>(vocabulary_size));
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= vocabulary_size) {
      return fmt::format("the draft vocabulary holds token {} of {}", token, vocabulary_size);
    }
    if (seen[static_cast<std::size_t>(token)]) {
      return fmt::format("the draft vocabulary holds token {} twice", token);
    }
    seen[static_cast<std::size_t>(token)] = true;
  }
  return "";
}

std::vector<float> read_finite(const GgufFile& file, const Tensor& tensor) {
  std::vector<float> values = dequantize(tensor);
  if (!std::ranges::all_of(values, [](float value) { return std::isfinite(value); })) {
    fail(file.path(), fmt::format("tensor {} holds a value that is not finite", tensor.name));
  }
  return values;
}

std::vector<float> read_token_input(const GgufFile& file, int step, int d) {
  const std::string name = fmt::format("step.{}.token", step);
  if (file.find_tensor(name) == nullptr) {
    return {};
  }
  return read_finite(file, get_tensor(file, name, GGML_TYPE_F16, d, d));
}

/// The sequential head of a step, or nothing where none of its four tensors is there.
std::optional<SequentialHead> read_sequence(const GgufFile& file, int step, int d) {
  const auto name = [&](std::string_view part) {
    return fmt::format("step.{}.sequence.{}", step, part);
  };
  const Tensor* const bias = file.find_tensor(name("bias"));
  if (bias == nullptr) {
    return std::nullopt;  // a part that stands alone is one tensor too many
  }
  const std::int64_t rank = bias->shape[0];
  if (rank < 1 || rank > kMostRank) {
    fail(file.path(),
         fmt::format("tensor {} has {} values, not 1..{}", bias->name, rank, kMostRank));
  }
  const auto read = [&](std::string_view part, ggml_type type, std::int64_t columns,
                        std::int64_t rows) {
    return read_finite(file, get_tensor(file, name(part), type, columns, rows));
  };
  return SequentialHead{.rank = static_cast<int>(rank),
                        .state = read("state", GGML_TYPE_F16, d, rank),
                        .token = read("token", GGML_TYPE_F16, d, rank),
                        .bias = read("bias", GGML_TYPE_F32, rank, 1),
                        .output = read("output", GGML_TYPE_F16, rank, d)};
}

/// All layers' adapters from layer `first` on, or none where that one has none.
std::vector<Adapter> read_adapters(const GgufFile& file, int first, int layers, int d) {
  std::vector<Adapter> adapters;
  const auto name = [](int layer, std::string_view part) {
    return fmt::format("adapter.{}.{}", layer, part);
  };
  if (file.find_tensor(name(first, "down")) == nullptr) {
    return adapters;
  }
  for (int layer = first; layer < layers; ++layer) {
    const std::int64_t rank = file.get_tensor(name(layer, "down")).shape[1];
    adapters.push_back(
        {.layer = layer,
         .rank = static_cast<int>(rank),
         .down = read_finite(file, get_tensor(file, name(layer, "down"), GGML_TYPE_F16, d, rank)),
         .up = read_finite(file, get_tensor(file, name(layer, "up"), GGML_TYPE_F16, rank, d))});
  }
  return adapters;
}

/// What is wrong with heads of Medusa's kind, or "".
std::string medusa_problem(const Heads& heads) {
  if (heads.method != HeadsMethod::kMedusa) return "";
  const bool at_the_end = std::ranges::all_of(
      heads.steps, [&](const DraftMap& step) { return step.layer == heads.base.layers; });
  if (at_the_end && !heads.has_token_input() && heads.adapters.empty()) return "";
  return "Medusa heads stand behind the last layer, without token input or adapters";
}

int earliest_layer(const Heads& heads) {
  return std::ranges::min_element(heads.steps, {}, &DraftMap::layer)->layer;
}

std::vector<std::int32_t> read_draft_vocabulary(const GgufFile& file, int vocabulary_size) {
  const Tensor* const found = file.find_tensor("draft_vocabulary");
  if (found == nullptr) {
    return {};
  }
  const std::int64_t size = found->shape[0];
  const Tensor& tensor = get_tensor(file, found->name, GGML_TYPE_I32, size, 1);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(size));
  std::memcpy(tokens.data(), tensor.data.data(), tokens.size() * sizeof(std::int32_t));
  if (const std::string problem = draft_vocabulary_problem(tokens, vocabulary_size);
      !problem.empty()) {
    fail(file.path(), problem);
  }
  return tokens;
}

std::vector<float> read_rates(const GgufFile& file, std::string_view key) {
  const std::vector<double> values = file.find_float_array(key).value_or(std::vector<double>());
  return {values.begin(), values.end()};
}

TrainingRecord read_training(const GgufFile& file) {
  return {.command = file.find_string("firp.training.command").value_or(""),
          .minutes = file.find_float("firp.training.minutes").value_or(0),
          .rows = file.find_int("firp.training.rows").value_or(0),
          .top1 = read_rates(file, "firp.training.top1"),
          .top5 = read_rates(file, "firp.training.top5"),
          .sequence_top1 = read_rates(file, "firp.training.sequence_top1"),
          .tokens_per_forward_chain = static_cast<float>(
              file.find_float("firp.training.tokens_per_forward_chain").value_or(0)),
          .tokens_per_forward_tree32 = static_cast<float>(
              file.find_float("firp.training.tokens_per_forward_tree32").value_or(0))};
}

/// The whole file in memory: it has a few MB.
std::vector<char> to_gguf(const Heads& heads) {
  const GgufPointer gguf(gguf_init_empty());
  const auto set_float_array = [&](const char* key, const std::vector<float>& values) {
    gguf_set_arr_data(gguf.get(), key, GGUF_TYPE_FLOAT32, values.data(), values.size());
  };
  gguf_set_val_str(gguf.get(), "general.architecture", "firp");
  gguf_set_val_u32(gguf.get(), "firp.version", kVersion);
  if (heads.method == HeadsMethod::kMedusa) {
    gguf_set_val_str(gguf.get(), "firp.method", kMedusaName);
  }
  gguf_set_val_u32(gguf.get(), "firp.step_count", static_cast<std::uint32_t>(heads.count()));
  std::vector<std::uint32_t> layers;
  for (const DraftMap& step : heads.steps) {
    layers.push_back(static_cast<std::uint32_t>(step.layer));
  }
  gguf_set_arr_data(gguf.get(), "firp.step_layers", GGUF_TYPE_UINT32, layers.data(), layers.size());
  gguf_set_val_str(gguf.get(), "firp.base.architecture", heads.base.architecture.c_str());
  gguf_set_val_u32(gguf.get(), "firp.base.layers", static_cast<std::uint32_t>(heads.base.layers));
  gguf_set_val_u32(gguf.get(), "firp.base.hidden_size",
                   static_cast<std::uint32_t>(heads.base.hidden_size));
  gguf_set_val_u32(gguf.get(), "firp.base.vocabulary_size",
                   static_cast<std::uint32_t>(heads.base.vocabulary_size));
  gguf_set_val_str(gguf.get(), "firp.base.tensor_hash", heads.base.tensor_hash.c_str());
  const TrainingRecord& training = heads.training;
  gguf_set_val_str(gguf.get(), "firp.training.command", training.command.c_str());
  gguf_set_val_f64(gguf.get(), "firp.training.minutes", training.minutes);
  gguf_set_val_i64(gguf.get(), "firp.training.rows", training.rows);
  set_float_array("firp.training.top1", training.top1);
  set_float_array("firp.training.top5", training.top5);
  if (!training.sequence_top1.empty()) {
    set_float_array("firp.training.sequence_top1", training.sequence_top1);
  }
  gguf_set_val_f32(gguf.get(), "firp.training.tokens_per_forward_chain",
                   training.tokens_per_forward_chain);
  gguf_set_val_f32(gguf.get(), "firp.training.tokens_per_forward_tree32",
                   training.tokens_per_forward_tree32);

  // gguf takes tensors from a ggml context; the data follows the metadata, each tensor padded.
  const GgmlPointer ggml(ggml_init(
      {.mem_size =
           (7 * heads.steps.size() + 2 * heads.adapters.size() + 1) * ggml_tensor_overhead() + 1024,
       .mem_buffer = nullptr,
       .no_alloc = true}));
  std::vector<char> data;
  const auto add_tensor = [&](const std::string& name, ggml_tensor* tensor, const void* values) {
    ggml_set_name(tensor, name.c_str());
    gguf_add_tensor(gguf.get(), tensor);
    const char* bytes = static_cast<const char*>(values);
    data.insert(data.end(), bytes, bytes + ggml_nbytes(tensor));
    data.resize(GGML_PAD(data.size(), GGUF_DEFAULT_ALIGNMENT));
  };
  const auto add_matrix = [&](const std::string& name, const std::vector<float>& values,
                              std::int64_t columns) {
    std::vector<ggml_fp16_t> half(values.size());
    const auto count = static_cast<std::int64_t>(values.size());
    ggml_fp32_to_fp16_row(values.data(), half.data(), count);
    add_tensor(name, ggml_new_tensor_2d(ggml.get(), GGML_TYPE_F16, columns, count / columns),
               half.data());
  };
  const auto add_vector = [&](const std::string& name, ggml_type type, const auto& values) {
    add_tensor(name, ggml_new_tensor_1d(ggml.get(), type, static_cast<std::int64_t>(values.size())),
               values.data());
  };
  const std::int64_t d = heads.base.hidden_size;
  for (std::size_t i = 0; i < heads.steps.size(); ++i) {
    const DraftMap& step = heads.steps[i];
    const std::string prefix = fmt::format("step.{}.", i + 1);
    add_matrix(prefix + "weight", step.weight, d);
    add_vector(prefix + "bias", GGML_TYPE_F32, step.bias);
    if (!step.token.empty()) {
      add_matrix(prefix + "token", step.token, d);
    }
    if (const std::optional<SequentialHead>& sequence = step.sequence) {
      add_matrix(prefix + "sequence.state", sequence->state, d);
      add_matrix(prefix + "sequence.token", sequence->token, d);
      add_vector(prefix + "sequence.bias", GGML_TYPE_F32, sequence->bias);
      add_matrix(prefix + "sequence.output", sequence->output, sequence->rank);
    }
  }
  for (const Adapter& adapter : heads.adapters) {
    add_matrix(fmt::format("adapter.{}.down", adapter.layer), adapter.down, d);
    add_matrix(fmt::format("adapter.{}.up", adapter.layer), adapter.up, adapter.rank);
  }
  if (!heads.draft_vocabulary.empty()) {
    add_vector("draft_vocabulary", GGML_TYPE_I32, heads.draft_vocabulary);
  }
  std::vector<char> file(gguf_get_meta_size(gguf.get()));
  gguf_get_meta_data(gguf.get(), file.data());
  file.insert(file.end(), data.begin(), data.end());
  return file;
}

void check_writable(const Heads& heads, const std::filesystem::path& path) {
  constexpr float kLargestF16 = 65504.0f;
  const auto d = static_cast<std::size_t>(heads.base.hidden_size);
  if (heads.count() < 1 || heads.count() > kMostSteps) {
    fail(path, fmt::format("cannot write heads of {} steps (1..{})", heads.count(), kMostSteps));
  }
  const auto check_values = [&](const std::vector<float>& matrix,
                                const std::vector<float>& vector) {
    if (!std::ranges::all_of(matrix, [](float value) { return std::abs(value) <= kLargestF16; }) ||
        !std::ranges::all_of(vector, [](float value) { return std::isfinite(value); })) {
      fail(path, "cannot write heads: a weight is not finite or too large for F16");
    }
  };
  for (const DraftMap& step : heads.steps) {
    if (step.layer < 1 || step.layer > heads.base.layers || step.weight.size() != d * d ||
        step.bias.size() != d) {
      fail(path,
           fmt::format("cannot write heads: a step at layer {} with {} weights and {} biases "
                       "does not fit {}",
                       step.layer, step.weight.size(), step.bias.size(), describe(heads.base)));
    }
    check_values(step.weight, step.bias);
    if (step.token.size() != (heads.has_token_input() ? d * d : 0)) {
      fail(path,
           "cannot write heads: some steps have a token input, others none, or of other size");
    }
    check_values(step.token, {});
    if (step.sequence.has_value() != heads.has_sequential_head()) {
      fail(path, "cannot write heads: some steps have a sequential head, others none");
    }
    if (const std::optional<SequentialHead>& sequence = step.sequence) {
      const std::size_t size = static_cast<std::size_t>(sequence->rank) * d;
      if (sequence->rank < 1 || sequence->rank > kMostRank || sequence->state.size() != size ||
          sequence->token.size() != size || sequence->output.size() != size ||
          sequence->bias.size() != static_cast<std::size_t>(sequence->rank)) {
        fail(path, fmt::format("cannot write heads: a sequential head of rank {} has parts of "
                               "other sizes",
                               sequence->rank));
      }
      for (const auto* matrix : {&sequence->state, &sequence->token, &sequence->output}) {
        check_values(*matrix, sequence->bias);
      }
    }
  }
  for (std::size_t i = 0; i < heads.adapters.size(); ++i) {
    const Adapter& adapter = heads.adapters[i];
    const std::size_t size = static_cast<std::size_t>(adapter.rank) * d;
    if (adapter.layer != earliest_layer(heads) + static_cast<int>(i) ||
        heads.adapters.size() !=
            static_cast<std::size_t>(heads.base.layers - earliest_layer(heads)) ||
        adapter.rank < 1 || adapter.rank > kMostRank || adapter.down.size() != size ||
        adapter.up.size() != size) {
      fail(path,
           fmt::format("cannot write heads: the adapter of layer {} does not fit", adapter.layer));
    }
    check_values(adapter.down, {});
    check_values(adapter.up, {});
  }
  if (const std::string problem =
          draft_vocabulary_problem(heads.draft_vocabulary, heads.base.vocabulary_size);
      !problem.empty()) {
    fail(path, "cannot write heads: " + problem);
  }
  if (const std::string problem = medusa_problem(heads); !problem.empty()) fail(path, problem);
}

}  // namespace

Heads read_heads(const std::filesystem::path& path, const GgufFile* model) {
  const GgufFile file(path);
  Heads heads;
  heads.base = read_base(file);
  if (model != nullptr) {
    const ModelIdentity identity = identify(*model);
    heads.for_sibling = heads.base != identity;
    if (!heads.base.same_shapes(identity)) {
      throw Error(fmt::format("heads {} were made for another model ({}), not for {} ({})",
                              path.string(), describe(heads.base), model->path().string(),
                              describe(identity)));
    }
  }

  if (const auto method = file.find_string("firp.method")) {
    if (*method != kMedusaName) {
      fail(path, fmt::format("heads of an unknown method '{}'", one_line(*method)));
    }
    heads.method = HeadsMethod::kMedusa;
  }
  const int count = read_size(file, "firp.step_count", 1, kMostSteps);
  const auto layers = file.find_int_array("firp.step_layers").value_or(std::vector<std::int64_t>());
  if (layers.size() != static_cast<std::size_t>(count)) {
    fail(path, fmt::format("firp.step_layers has {} elements for {} steps", layers.size(), count));
  }
  const int d = heads.base.hidden_size;
  for (int step = 1; step <= count; ++step) {
    const std::int64_t layer = layers[static_cast<std::size_t>(step - 1)];
    if (layer < 1 || layer > heads.base.layers) {
      fail(path, fmt::format("step {} enters after layer {}, not in 1..{}", step, layer,
                             heads.base.layers));
    }
    heads.steps.push_back(
        {.layer = static_cast<int>(layer),
         .weight = read_finite(
             file, get_tensor(file, fmt::format("step.{}.weight", step), GGML_TYPE_F16, d, d)),
         .bias = read_finite(
             file, get_tensor(file, fmt::format("step.{}.bias", step), GGML_TYPE_F32, d, 1)),
         .token = read_token_input(file, step, d),
         .sequence = read_sequence(file, step, d)});
    if (heads.steps.back().sequence.has_value() != heads.has_sequential_head()) {
      fail(path, fmt::format("steps 1 and {}: one has a sequential head, the other none", step));
    }
    if (heads.steps.back().token.empty() == heads.has_token_input()) {
      fail(path, fmt::format("steps 1 and {}: one has a token input, the other none", step));
    }
  }
  heads.adapters = read_adapters(file, earliest_layer(heads), heads.base.layers, d);
  heads.draft_vocabulary = read_draft_vocabulary(file, heads.base.vocabulary_size);
  const std::size_t known =
      static_cast<std::size_t>(count) *
          (2 + (heads.has_token_input() ? 1 : 0) + (heads.has_sequential_head() ? 4 : 0)) +
      2 * heads.adapters.size() + (heads.draft_vocabulary.empty() ? 0 : 1);
  if (file.tensors().size() != known) {
    fail(path, fmt::format("{} tensors where {} belong to heads of {} steps", file.tensors().size(),
                           known, count));
  }
  if (const std::string problem = medusa_problem(heads); !problem.empty()) fail(path, problem);
  heads.training = read_training(file);
  return heads;
}

void write_heads(const Heads& heads, const std::filesystem::path& path) {
  check_writable(heads, path);
  // A link stays and its target is replaced; a device or directory must not be.
  std::error_code error;
  const std::filesystem::path existing = std::filesystem::canonical(path, error);
  const std::filesystem::path target = error ? path : existing;
  if (!error && !std::filesystem::is_regular_file(target, error)) {
    fail(path, "cannot write: it exists and is not a regular file");
  }
  ReplacedFile file(target);
  const std::vector<char> gguf = to_gguf(heads);
  file.write(std::string_view(gguf.data(), gguf.size()));
  file.replace();
}

std::filesystem::path heads_beside(const std::filesystem::path& model) {
  std::filesystem::path beside = model_stem(model);
  beside += ".firp.gguf";
  return beside;
}

std::optional<std::filesystem::path> find_heads(
    const GgufFile& model, const std::vector<std::filesystem::path>& directories) {
  const std::filesystem::path beside = heads_beside(model.path());
  std::error_code error;
  if (std::filesystem::exists(beside, error)) {
    return beside;
  }

  std::vector<std::filesystem::path> candidates;
  for (const std::filesystem::path& directory : directories) {
    std::vector<std::filesystem::path> files;
    for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end;
         entry.increment(error)) {
      if (entry->path().extension() == ".gguf") {
        files.push_back(entry->path());
      }
    }
    std::ranges::sort(files);
    candidates.insert(candidates.end(), files.begin(), files.end());
  }
  const ModelIdentity sizes = sizes_of(model);
  std::optional<ModelIdentity> identity;  // hashes the model's bytes: only where one may fit
  std::optional<std::filesystem::path> of_sibling;
  for (const std::filesystem::path& candidate : candidates) {
    try {
      const ModelIdentity base = read_base(GgufFile(candidate));
      if (!base.same_shapes(sizes)) {
        continue;
      }
      if (!identity) {
        identity = identify(model);
      }
      if (base == *identity) {
        return candidate;
      }
      if (!of_sibling) {
        of_sibling = candidate;
      }
    } catch (const Error&) {
      // Not a heads file, or a damaged one: not ours to complain about.
    }
  }
  return of_sibling;
}

}  // namespace firp
