#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>

#include "base/error.h"
#include "bench/load_bench.h"
#include "bench/peaks.h"
#include "bench/report.h"
#include "bench/timing.h"
#include "cli/decode_flags.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "kernels/kernels.h"
#include "model/ggml_log.h"
#include "model/part_name.h"
#include "plan/measuring.h"

namespace firp {
namespace {

struct InspectFlags {
  std::filesystem::path file;
  std::filesystem::path model;
  DecodeFlags decode;
};

template <typename... Arguments>
void line(std::string_view name, fmt::format_string<Arguments...> format, Arguments&&... values) {
  fmt::print("{:<18}{}\n", name, fmt::format(format, std::forward<Arguments>(values)...));
}

std::string size_text(double bytes) {
  constexpr double kMebi = 1 << 20;
  return bytes < 1024 * kMebi ? fmt::format("{:.1f} MiB", bytes / kMebi)
                              : fmt::format("{:.2f} GiB", bytes / (1024 * kMebi));
}

void inspect_tensors(const GgufFile& file) {
  std::map<std::string, double> bytes;
  double total = 0;
  for (const Tensor& tensor : file.tensors()) {
    bytes[ggml_type_name(tensor.type)] += static_cast<double>(tensor.data.size());
    total += static_cast<double>(tensor.data.size());
  }
  std::vector<std::pair<std::string, double>> types(bytes.begin(), bytes.end());
  std::ranges::sort(types, std::greater{}, &std::pair<std::string, double>::second);
  std::string text;
  for (const auto& [type, size] : types) {
    text += fmt::format("{}{} {:.0f} %", text.empty() ? "" : ", ", type, 100 * size / total);
  }
  line("tensors", "{}, {}: {}", file.tensors().size(), size_text(total), text);
}

/// What the planner decides by: what passes take, and how many tokens one must give to pay.
void inspect_costs(const PassCosts& costs, const std::filesystem::path& heads) {
  const double plain = costs.verify(1, 0);
  const double all_steps = costs.draft_seconds.empty() ? 0 : costs.draft_seconds.back();
  fmt::print("\n{:<18}{:>6}{:>10}{:>22}{:>22}\n", "planner", "rows", "ms", "n-grams pay above",
             heads.empty() ? "" : "FIRP pays above");
  for (const auto& [rows, seconds] : costs.verify_seconds) {
    const std::string drafted =
        heads.empty() ? "" : fmt::format("{:.2f} tokens", (seconds + all_steps) / plain);
    fmt::print("{:<18}{:>6}{:>10.2f}{:>15.2f} tokens{:>22}\n", "", rows, 1e3 * seconds,
               seconds / plain, drafted);
  }
  if (!heads.empty()) {
    std::string times;
    for (const double seconds : costs.draft_seconds) {
      times += fmt::format("{}{:.2f}", times.empty() ? "" : ", ", 1e3 * seconds);
    }
    line("", "drafting 1 to {} steps ahead with {} takes {} ms", costs.draft_seconds.size(),
         heads.filename().string(), times);
  }
}

/// What the file says of the model; `native`: whether our own engine knows it.
void inspect_sizes(const GgufFile& file, const Model* native) {
  const ModelIdentity sizes = sizes_of(file);
  const std::size_t files = file.paths().size();
  line("model", "{} ({}){}",
       one_line(file.find_string("general.name").value_or(model_name(file.path()))),
       one_line(sizes.architecture), files > 1 ? fmt::format(", in {} files", files) : "");
  if (native != nullptr) {
    const ModelConfig& config = native->config();
    line("sizes", "{} layers, d {}, {} query and {} KV heads of {}, feed-forward {}", config.layers,
         config.hidden_size, config.query_heads, config.kv_heads, config.head_size,
         config.feed_forward_size);
    line("vocabulary", "{} tokens, {} head", config.vocabulary_size,
         config.tied_head ? "tied" : "untied");
    line("context", "{} tokens trained for; {} of KV cache a token", config.trained_context,
         fmt::format("{:.1f} KiB", config.layers * 2.0 * config.kv_size() * sizeof(Half) / 1024));
  } else {
    line("sizes", "{} layers, d {}, {} tokens", sizes.layers, sizes.hidden_size,
         sizes.vocabulary_size);
  }
  inspect_tensors(file);
  line("identity", "{}", identify(file).tensor_hash);
}

void inspect_instructions(const Engine& engine) {
  std::string others;
  for (const std::string& isa : available_isas()) {
    if (isa != engine.isa()) others += (others.empty() ? "" : ", ") + isa;
  }
  line("instruction set", "{}{}", engine.isa(),
       others.empty() ? "" : fmt::format(" (FIRP_ISA can choose: {})", others));
}

void inspect_roofline(const Engine& engine, int threads) {
  const MachinePeaks peaks = [&] {
    ThreadPool pool(threads);
    return measure_peaks(pool, engine.isa());
  }();
  line("memory", "{:.1f} GB/s read by {} threads, measured now", peaks.bytes_per_second / 1e9,
       threads);
  line("arithmetic", "{:.0f} G 8-bit multiply-adds/s ({}), {:.1f} for each byte read",
       peaks.int8_per_second / 1e9, peaks.instruction, peaks.balance());
  line("roofline", "{:.0f} forward passes/s: no more while all weights come from memory",
       peaks.bytes_per_second / static_cast<double>(engine.weight_bytes()));
}

void inspect_model(const InspectFlags& flags, const std::shared_ptr<const GgufFile>& file) {
  const int threads = flags.decode.thread_count();
  std::optional<Model> native;
  try {
    native.emplace(file);
  } catch (const Unsupported&) {  // load_model() tells why
  }
  inspect_sizes(*file, native ? &*native : nullptr);
  fmt::print("\n");
  flush_output();

  const Stopwatch watch;
  const LoadedModel loaded = load_model(flags.decode, file, {.threads = threads});
  const double load_seconds = watch.seconds();
  Engine& engine = *loaded.engine;
  const auto bytes = static_cast<double>(engine.weight_bytes());
  line("processor", "{}, {} threads", cpu_name(), threads);
  if (loaded.model) {
    inspect_instructions(engine);
  } else {
    line("engine", "{}", engine.isa());
  }
  line("bytes a pass", "{} of weights", size_text(bytes));
  line("loading", "{:.2f} s, the file being in the system's cache; {} of memory at most",
       load_seconds, size_text(static_cast<double>(peak_resident_bytes())));
  if (loaded.model) inspect_roofline(engine, threads);
  const std::optional<std::filesystem::path> heads = find_heads(*file, heads_directories());
  if (heads) engine.set_heads(read_heads(*heads, file.get()));
  inspect_costs(measure_costs(engine), heads.value_or(""));
}

std::string percent(const std::vector<float>& rates) {
  std::string text;
  for (const float rate : rates) text += fmt::format("{:6.1f}", 100 * rate);
  return text.empty() ? "     -" : text;
}

/// Whether the heads fit is the exit status where a model is given.
int inspect_heads(const std::filesystem::path& path, const std::filesystem::path& model_path) {
  const Heads heads = read_heads(path, nullptr);
  const ModelIdentity& base = heads.base;
  std::string layers;
  for (const DraftMap& map : heads.steps) {
    layers += fmt::format("{}{}", layers.empty() ? "" : ", ", map.layer);
  }
  line("heads", "{} draft steps, entering after layers {}", heads.count(), layers);
  line("sequential head", "{}",
       heads.has_sequential_head() ? fmt::format("rank {}", heads.steps.front().sequence->rank)
                                   : "none");
  line("adapters", "{}",
       heads.adapters.empty() ? "none"
                              : fmt::format("rank {}, before {} layers",
                                            heads.adapters.front().rank, heads.adapters.size()));
  line("draft vocabulary", "{}",
       heads.draft_vocabulary.empty() ? "all tokens"
                                      : fmt::format("{} tokens", heads.draft_vocabulary.size()));
  line("for", "{}, {} layers, d {}, {} tokens, identity {}", base.architecture, base.layers,
       base.hidden_size, base.vocabulary_size, base.tensor_hash);
  const TrainingRecord& training = heads.training;
  line("trained by", "{}", one_line(training.command));
  line("training", "{:.1f} minutes, {} rows", training.minutes, training.rows);
  line("held out", "{:.2f} tokens per forward pass with a chain, {:.2f} with a tree of 32",
       training.tokens_per_forward_chain, training.tokens_per_forward_tree32);
  line("  top-1 % by step", "{}", percent(training.top1));
  line("  top-5 % by step", "{}", percent(training.top5));
  if (heads.has_sequential_head()) {
    line("  top-1 %, ranked", "{}", percent(training.sequence_top1));
  }
  if (model_path.empty()) return 0;
  const ModelIdentity model = identify(GgufFile(model_path));
  const bool fits = base.same_shapes(model);
  line("fits the model", "{}",
       base == model ? "yes"
       : fits        ? "yes: they were made with another file of the same shapes"
                     : "no: they were made for another one");
  return fits ? 0 : 1;
}

int run_inspect(const InspectFlags& flags) {
  const std::filesystem::path& path = flags.file.empty() ? flags.model : flags.file;
  if (path.empty()) throw Error("name a GGUF file: a model, or heads");
  int status = 0;
  if (GgufFile(path).get_string("general.architecture") == "firp") {
    status = inspect_heads(path, flags.file.empty() ? "" : flags.model);
  } else {
    inspect_model(flags, std::make_shared<const GgufFile>(path));
  }
  flush_output();
  return status;
}

}  // namespace

Verb add_inspect(CLI::App& program) {
  CLI::App* app =
      program.add_subcommand("inspect", "What is in a file, and how fast it can run here");
  const auto flags = std::make_shared<InspectFlags>();
  app->footer(R"(
Of a model: its sizes, the types of its weights, how many forward passes a second this machine's
memory allows, and what drafts must give to pay here. Of heads: what they were made for, how, and
what they showed; with -m, exit status 1 if they do not fit that model.

Examples:
  firp inspect model.gguf
  firp inspect model.gguf -ngl 99
  firp inspect model.firp.gguf -m model.gguf)");
  app->add_option("file", flags->file, "A model or heads, a GGUF file");
  app->add_option("-m,--model", flags->model, "The model that heads are checked against");
  flags->decode.add_threads_to(*app);
  flags->decode.add_engine_to(*app);
  return {app, [flags] { return run_inspect(*flags); }};
}

}  // namespace firp
