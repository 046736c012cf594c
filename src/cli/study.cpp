#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "base/error.h"
#include "cli/decode_flags.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "model/message.h"
#include "study/experiments.h"
#include "study/texts.h"
#ifdef FIRP_HAS_TRAIN
#include "train/layer_scan.h"
#endif

namespace firp {
namespace {

const std::vector<std::string> kStudies = {"rows", "agreement", "layer", "similarity",
                                           "mask", "tree",      "curve", "all"};
constexpr int kTextPositions = 2048;  // a prompt and its answer, at most

struct StudyFlags {
  DecodeFlags decode;
  std::string name;
  std::vector<std::filesystem::path> files;  ///< a model and heads; of curve: logs
  std::vector<std::filesystem::path> heads, logs;
  std::filesystem::path output = "study", prompts;
  int tokens = 4000, fitted_tokens = 40000;
  std::vector<int> rows = {1, 2, 4, 8, 16, 32, 64};
  std::vector<int> trees = {0, 1, 2, 4, 8, 16, 32, 64};
  std::int64_t seed = 1000;  // not that of training, whose texts would not be new

  bool wants(const std::string& study) const { return name == study || name == "all"; }
};

#ifdef FIRP_HAS_TRAIN
constexpr bool kHasTrain = true;
#else
constexpr bool kHasTrain = false;
/// Stands for that of train/, which is in firp-train alone.
std::vector<Heads> ridge_heads(Engine&, const ModelIdentity&, std::span<const Text>,
                               std::span<const int>, int) {
  return {};
}
#endif

void tell(const std::filesystem::path& folder, const std::string& name, const Finding& finding) {
  write_finding(folder, name, finding);
  fmt::print("{}: {}", (folder / name).string() + ".png", finding.caption);
  flush_output();
}

std::vector<int> scanned_layers(int layers) {
  const int stride = std::max(1, layers / 15);
  std::vector<int> scanned;
  for (int layer = stride; layer < layers; layer += stride) scanned.push_back(layer);
  scanned.push_back(layers);
  return scanned;
}

std::vector<std::filesystem::path> heads_of(const StudyFlags& flags, const GgufFile& model) {
  std::vector<std::filesystem::path> paths(flags.files.begin() + 1, flags.files.end());
  paths.insert(paths.end(), flags.heads.begin(), flags.heads.end());
  if (!paths.empty()) return paths;
  if (const auto found = find_heads(model, heads_directories())) return {*found};
  throw Error(fmt::format("there are no heads for {0}; `firp train -m {0}` makes them",
                          flags.files.front().string()));
}

int run_on_model(const StudyFlags& flags) {
  const auto need_native = [&](bool there) {
    if (flags.name == "mask" && !there) throw Error("firp study mask needs --engine native");
  };
  need_native(flags.decode.engine != "llama" && !offloads(flags.decode.llama));
  const auto file = std::make_shared<const GgufFile>(flags.files.front());
  const bool needs_texts = flags.name != "rows";
  std::vector<NamedHeads> heads;
  std::vector<std::string> prompts;
  if (needs_texts && flags.name != "layer") heads = name_heads(heads_of(flags, *file), *file);
  if (!flags.prompts.empty()) prompts = read_prompts(flags.prompts);
  const int most_rows = std::max(std::ranges::max(flags.rows), std::ranges::max(flags.trees) + 1);
  const LoadedModel loaded =
      load_model(flags.decode, file,
                 {.threads = flags.decode.thread_count(),
                  .context = kTextPositions,
                  .max_rows = std::max(EngineOptions().max_rows, most_rows)});
  Engine& engine = *loaded.engine;
  const Model* const native = loaded.model ? &*loaded.model : nullptr;
  need_native(native != nullptr);
  if (flags.wants("rows")) tell(flags.output, "rows", study_rows(engine, native, flags.rows));
  if (!needs_texts) return 0;

  const bool linear = kHasTrain && (flags.wants("layer") || flags.wants("agreement"));
  StatusLine status;
  const StudyTexts texts = write_study_texts(
      engine, Vocabulary(flags.files.front()), prompts, flags.tokens,
      linear ? flags.fitted_tokens : 0, seed_of(flags.seed), [&](long long done, long long total) {
        status.show(fmt::format("Writing texts: {} of {} tokens", done, total));
      });
  status.clear();
  if (texts.measured.empty()) throw Error("the model wrote no text to measure on; more --tokens?");

  std::vector<Heads> maps;
  if (linear) {
    const int layers = engine.config().layers;
    const int steps = heads.empty() ? 4 : heads.front().heads.count();
    status.show("Ridge regression");
    maps = ridge_heads(engine, identify(*file), texts.fitted,
                       flags.wants("layer") ? scanned_layers(layers) : std::vector<int>{layers},
                       steps);
    status.clear();
  }
  const auto study = [&](const std::string& name, const auto& find) {
    if (!flags.wants(name)) return;
    status.show(fmt::format("Measuring: {}", name));
    const Finding finding = find();
    status.clear();
    tell(flags.output, name, finding);
  };
  const std::span<const Heads> to_the_end =
      std::span<const Heads>(maps).last(std::min<std::size_t>(maps.size(), 1));
  study("agreement", [&] {
    return study_agreement(engine, heads, to_the_end, /*early_exit=*/native != nullptr,
                           texts.measured);
  });
  if (!maps.empty()) study("layer", [&] { return study_layer(engine, maps, texts.measured); });
  study("similarity", [&] { return study_similarity(engine, heads.front(), texts.measured); });
  if (native != nullptr) {  // llama.cpp has no such rows: `all` goes without
    study("mask", [&] { return study_mask(engine, heads.front(), texts.measured); });
  }
  std::vector<Text> decoded;  // a third of them takes long enough
  for (std::size_t i = 0; i < texts.measured.size(); i += 3) decoded.push_back(texts.measured[i]);
  study("tree", [&] { return study_tree(engine, heads.front(), decoded, flags.trees); });
  return 0;
}

int run_study(StudyFlags& flags, char** arguments) {
  if (flags.name == "curve") {
    flags.logs.insert(flags.logs.begin(), flags.files.begin(), flags.files.end());
    if (flags.logs.empty()) throw Error("which training? firp study curve LOG.csv ...");
  } else if (flags.files.empty()) {
    throw Error(fmt::format("which model? firp study {} MODEL.gguf", flags.name));
  }
  flags.decode.thread_count();
  require_at_least(flags.tokens, 1, "--tokens");
  require_at_least(flags.fitted_tokens, 1, "--fitted-tokens");
  for (const int rows : flags.rows) require_at_least(rows, 1, "--rows");
  for (const int nodes : flags.trees) require_at_least(nodes, 0, "--tree");
  if (!kHasTrain && (flags.wants("layer") || flags.wants("agreement"))) {
    execv((program_directory() / "firp-train").c_str(), arguments);
    if (flags.name == "layer") {
      throw Error(
          "firp-train is not beside this program: `make build` makes it, with LibTorch (Debian: "
          "libtorch-dev)");
    }
    say("firp: firp-train is not beside this program, so there is no ridge regression\n");
  }
  require_gnuplot();
  std::error_code error;
  std::filesystem::create_directories(flags.output, error);
  if (!std::filesystem::is_directory(flags.output)) {
    throw Error(
        fmt::format("cannot make the folder {}: {}", flags.output.string(), error.message()));
  }
  if (flags.wants("curve") && !flags.logs.empty()) {
    tell(flags.output, "curve", study_curve(flags.logs));
  }
  return flags.name == "curve" ? 0 : run_on_model(flags);
}

}  // namespace

Verb add_study(CLI::App& program, char** arguments) {
  CLI::App* app = program.add_subcommand("study", "The method's experiments, as figures");
  const auto flags = std::make_shared<StudyFlags>();
  app->footer(R"(
Each writes NAME.csv, NAME.svg, NAME.png and a caption, NAME.txt; gnuplot draws them.
  rows        time of a forward pass by its rows, and the machine's limits
  agreement   how often drafts are the model's own tokens, by step and method
  layer       the same by the layer where pseudo states enter (ridge regression)
  similarity  pseudo and real states, layer by layer
  mask        pseudo rows with and without attention to earlier ones
  tree        tokens per forward pass and speed, by the size of the draft tree
  curve       tokens per forward pass over the time of training (firp train --log)
  all         all of them

Examples:
  firp study rows model.gguf
  firp study agreement model.gguf firp.gguf paper.gguf medusa.gguf --prompts questions.jsonl
  firp study curve maps.csv medusa.csv
  firp study all model.gguf --heads model.firp.gguf --log maps.csv -o figures)");
  app->add_option("name", flags->name, "Which experiment")
      ->required()
      ->check(CLI::IsMember(kStudies));
  app->add_option("files", flags->files,
                  "The model and, behind it, heads (default: those that fit it); of curve: logs");
  app->add_option("--heads", flags->heads,
                  "Further heads: agreement compares all, the others take the first");
  app->add_option("--log", flags->logs, "Logs of firp train --log, for curve");
  app->add_option("-o,--output", flags->output, "Folder of the figures")->capture_default_str();
  app->add_option("--prompts", flags->prompts,
                  "User turns to measure on, JSONL with \"turns\" (default: the model's own)");
  app->add_option("--tokens", flags->tokens, "Tokens of greedy answers to measure on, about")
      ->capture_default_str();
  app->add_option("--fitted-tokens", flags->fitted_tokens,
                  "Tokens of the model's own answers for ridge regression")
      ->capture_default_str();
  app->add_option("--rows", flags->rows, "Rows of passes, for rows")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  app->add_option("--tree", flags->trees, "Sizes of draft trees, for tree; 0: a chain")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  flags->decode.add_threads_to(*app);
  app->add_option("-s,--seed", flags->seed, "Seed of the model's own prompts; -1: any")
      ->capture_default_str();
  flags->decode.add_engine_to(*app);
  return {app, [flags, arguments] { return run_study(*flags, arguments); }};
}

}  // namespace firp
