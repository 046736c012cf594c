#include "bench/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "base/error.h"
#include "bench/compare.h"
#include "bench/forward_bench.h"
#include "bench/html_report.h"
#include "bench/kernel_bench.h"
#include "bench/llama_peer.h"
#include "bench/load_bench.h"
#include "bench/random_weights.h"
#include "bench/report.h"
#include "bench/sessions_bench.h"
#include "bench/simulation.h"
#include "bench/synthetic_model.h"
#include "chat/conversation.h"
#include "cli/bench_methods.h"
#include "cli/decode_flags.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "engine/native_engine.h"
#include "kernels/kernels.h"
#include "model/ggml_log.h"
#include "model/part_name.h"

namespace firp {
namespace {

constexpr int kMostRows = 1024;     // of --rows of --kernels
constexpr int kMostPassRows = 128;  // of --forward: leaves room for pseudo rows in a pass
constexpr int kPeerContext = 8192;  // libllama takes the memory of its whole context at once

struct BenchFlags {
  DecodeFlags decode;
  std::filesystem::path prompts;
  MethodFlags method;
  std::string peer;
  int tokens = 128;
  int limit = 0;
  int turns = 0;
  int repeats = 1;
  std::filesystem::path json;
  std::filesystem::path report;
  std::vector<std::filesystem::path> from;
  std::filesystem::path figures;
  std::vector<std::filesystem::path> compare;

  bool kernels = false;
  std::vector<std::string> types = {"q4_0", "q4_1", "q4_K", "q6_K", "q8_0", "bf16", "f16"};
  std::vector<std::string> shapes = {"4096x4096"};
  std::vector<int> rows = {1, 2, 4, 8, 16, 32};

  bool forward = false;
  bool load = false;
  std::vector<int> sessions;
  std::string synthetic;
  std::filesystem::path record;
  std::filesystem::path acceptance;
  int context = ForwardBenchOptions().context;
};

nlohmann::ordered_json settings(const BenchFlags& flags, const DecodeOptions& options,
                                const std::vector<BenchMethod>& methods) {
  const SamplingOptions& sampling = options.sampling;
  nlohmann::ordered_json json = {
      {"prompts", flags.prompts.filename().string()},
      {"tokens_per_turn", flags.tokens},
      {"limit_per_category", flags.limit},
      {"turns", flags.turns},
      {"repeats", flags.repeats},
      {"tree", flags.method.trees},
      {"chain", options.chain},
      {"drafting", flags.decode.drafting},
      {"temperature", sampling.temperature},
  };
  if (sampling.temperature > 0) {
    json["top_k"] = sampling.top_k;
    json["top_p"] = sampling.top_p;
    json["min_p"] = sampling.min_p;
    json["seed"] = sampling.seed;
  }
  json["repeat_penalty"] = sampling.repeat_penalty;
  for (const BenchMethod& method : methods) {
    if (!method.note.empty()) json["notes"][method.name] = method.note;
  }
  return json;
}

void require_rows(const std::vector<int>& rows, int most) {
  require_at_least(*std::ranges::min_element(rows), 1, "--rows");
  if (*std::ranges::max_element(rows) > most) {
    throw Error(fmt::format("--rows must be at most {}", most));
  }
}

/// Times that were taken while others worked are no measure of this machine.
void tell_of_other_load(double cores) {
  if (cores < kNegligibleLoadCores) return;
  fmt::print("Other programs took {:.2f} cores meanwhile: on a quiet machine it is faster.\n",
             cores);
}

int run_kernels(const BenchFlags& flags) {
  KernelBenchOptions options{.rows = flags.rows};
  for (const std::string& type : flags.types) options.types.push_back(parse_matrix_type(type));
  for (const std::string& shape : flags.shapes) {
    options.shapes.push_back(parse_matrix_shape(shape));
    const int inputs = options.shapes.back().inputs;
    const bool any = std::ranges::any_of(
        options.types, [&](ggml_type type) { return has_whole_blocks(type, inputs); });
    if (!any) require_whole_blocks(options.types.front(), inputs);
  }
  require_rows(flags.rows, kMostRows);
  const int threads = flags.decode.thread_count();
  if (!flags.json.empty()) require_writable(flags.json);

  const Kernels& kernels = default_kernels();
  const OtherLoad load;
  ThreadPool pool(threads);
  const MachinePeaks peaks = measure_peaks(pool, kernels.isa);
  fmt::print("{}, {}\n{}", cpu_name(), kernels.isa, kernel_table_head(peaks));
  const auto results = bench_kernels(options, kernels, pool, peaks, [](const KernelResult& result) {
    fmt::print("{}", kernel_table_line(result));
    flush_output();
  });
  tell_of_other_load(load.cores());
  flush_output();
  if (!flags.json.empty()) {
    nlohmann::ordered_json machine = machine_json(peaks, kernels.isa);
    machine["other_load_cores"] = load.cores();
    write_json(kernel_json(std::move(machine), results), flags.json);
  }
  return 0;
}

int report_forward(const BenchFlags& flags, Engine& engine, const Model* model,
                   const GgufFile* file, const std::filesystem::path& heads, LlamaPeer* peer) {
  const OtherLoad load;
  ThreadPool pool(engine.options().threads);
  const MachinePeaks peaks = measure_peaks(pool, engine.isa());
  const ForwardBenchOptions options = {.context = flags.context, .rows = flags.rows};
  const ForwardResult result = bench_forward(engine, model, options, pool, peaks, peer);
  fmt::print("{}, {}; {}{}, context of {}\n{}", cpu_name(), engine.isa(), engine.config().name,
             file != nullptr ? "" : " (random weights, for speed only)", flags.context,
             forward_table(result, peaks));
  tell_of_other_load(load.cores());
  flush_output();
  if (!flags.json.empty()) {
    nlohmann::ordered_json machine = machine_json(peaks, engine.isa());
    machine.update(bench_machine(engine, file, heads));
    machine["other_load_cores"] = load.cores();
    write_json(forward_json(std::move(machine), result, options), flags.json);
  }
  return 0;
}

int run_forward(BenchFlags& flags) {
  require_rows(flags.rows, kMostPassRows);
  require_at_least(flags.context, 1, "--context");
  const int threads = flags.decode.thread_count();
  if (!flags.json.empty()) require_writable(flags.json);
  const int positions =
      std::max(flags.context + 2 * kMostPassRows, ForwardBenchOptions().prefill_tokens);
  if (!flags.synthetic.empty()) {
    const SyntheticModel synthetic(flags.synthetic);
    const bool on_llama = flags.decode.engine == "llama" || offloads(flags.decode.llama);
    const EngineOptions options = {
        .threads = threads, .context = positions, .cache_type = flags.decode.cache_type()};
    std::optional<SyntheticFile> file;
    if (on_llama || !flags.peer.empty()) file.emplace(synthetic);
    std::optional<LlamaPeer> peer;
    if (!flags.peer.empty()) {
      peer.emplace(file->path(), threads, positions, flags.decode.cache_type());
    }
    LlamaPeer* const beside = peer ? &*peer : nullptr;
    if (on_llama) {
      flags.decode.engine = "llama";
      flags.decode.context = positions;
      const LoadedModel loaded =
          load_model(flags.decode, std::make_shared<const GgufFile>(file->path()), options);
      return report_forward(flags, *loaded.engine, nullptr, nullptr, {}, beside);
    }
    NativeEngine engine(synthetic.model(), options);
    return report_forward(flags, engine, &synthetic.model(), nullptr, {}, beside);
  }
  flags.decode.context = positions;
  const int small[] = {1};  // trees are not used here
  Decoder decoder(flags.decode, small);
  std::optional<LlamaPeer> peer;
  if (!flags.peer.empty()) {
    peer.emplace(flags.decode.model, threads, positions, flags.decode.cache_type());
  }
  const Model* const native = decoder.loaded.model ? &*decoder.loaded.model : nullptr;
  return report_forward(flags, decoder.engine, native, decoder.file.get(), decoder.heads_path,
                        peer ? &*peer : nullptr);
}

int run_load(const BenchFlags& flags) {
  const int threads = flags.decode.thread_count();
  if (!flags.json.empty()) require_writable(flags.json);
  std::optional<SyntheticFile> file;
  if (!flags.synthetic.empty()) file.emplace(SyntheticModel(flags.synthetic));
  const OtherLoad load;
  ThreadPool pool(threads);
  const LoadResult result =
      bench_load(file ? file->path() : flags.decode.model, pool, flags.decode.packed_cache);
  fmt::print("{}, {} threads\n{}", cpu_name(), threads, load_table(result));
  tell_of_other_load(load.cores());
  flush_output();
  if (!flags.json.empty()) {
    write_json(load_json({{"cpu", cpu_name()}, {"threads", threads}}, result), flags.json);
  }
  return 0;
}

/// The prompts that come with the program: they lie where its heads do.
std::filesystem::path default_prompts() {
  for (const std::filesystem::path& heads : heads_directories()) {
    std::filesystem::path path = heads.parent_path() / "prompts" / "default.jsonl";
    if (std::filesystem::exists(path)) return path;
  }
  throw Error(
      "prompts/default.jsonl is neither in this folder nor by the program; name a file "
      "with --prompts");
}

int run_sessions(BenchFlags& flags) {
  constexpr int kMostSessions = 64;
  for (const int sessions : flags.sessions) {
    require_at_least(sessions, 1, "--sessions");
    if (sessions > kMostSessions) {
      throw Error(fmt::format("--sessions must be at most {}", kMostSessions));
    }
  }
  if (!flags.json.empty()) require_writable(flags.json);
  if (flags.prompts.empty()) flags.prompts = default_prompts();
  const auto prompts = read_bench_prompts(flags.prompts, flags.limit, /*turns=*/1);
  const int most = most_tokens(flags.tokens);
  if (flags.method.trees.size() > 1) throw Error("--sessions takes one size of --tree");
  require_at_least(flags.method.trees.front(), kPlannedTree, "--tree");
  const OtherLoad load;
  Decoder decoder(flags.decode, flags.method.trees);
  std::vector<std::vector<Token>> tokens;
  for (const BenchPrompt& prompt : prompts) {
    tokens.push_back(Conversation(decoder.chat_template).user_turn(prompt.turns.front()));
  }
  const auto longest = std::ranges::max(tokens, {}, &std::vector<Token>::size).size();
  if (static_cast<long long>(longest) + most >= decoder.engine.options().context) {
    throw Error(
        fmt::format("{} tokens behind a prompt of {} do not fit into a context of {} (-n, -c)",
                    most, longest, decoder.engine.options().context));
  }
  SessionsBenchOptions options = {
      .sessions = flags.sessions, .tokens = most, .rounds = std::max(3, flags.repeats)};
  std::ranges::sort(options.sessions);
  catch_interrupts();
  BatchDecoder plain(decoder.engine);
  StatusLine status;
  const auto results = bench_sessions(plain, decoder.batch, decoder.options, tokens, options,
                                      [&](int done, int total) {
                                        status.show(fmt::format("{} of {}", done, total));
                                        return !interrupted;
                                      });
  status.clear();
  if (results.empty()) return kExitInterrupted;
  fmt::print("{}, {} threads ({}); {}, {} tokens of each session\n{}", cpu_name(),
             decoder.engine.options().threads, decoder.engine.isa(), model_name(flags.decode.model),
             options.tokens, sessions_table(results));
  tell_of_other_load(load.cores());
  flush_output();
  if (!flags.json.empty()) {
    write_json(sessions_json(bench_machine(decoder.engine, decoder.file.get(), decoder.heads_path),
                             results),
               flags.json);
  }
  return 0;
}

/// An acceptance file of the model.
int run_record(BenchFlags& flags) {
  require_writable(flags.record);
  if (flags.prompts.empty()) flags.prompts = default_prompts();
  const auto prompts = read_bench_prompts(flags.prompts, flags.limit, /*turns=*/1);
  const int most = most_tokens(flags.tokens);
  flags.decode.draft = "firp";
  const int trees[] = {kMostPlannedNodes};
  Decoder decoder(flags.decode, trees);
  catch_interrupts();
  StatusLine status;
  const Acceptance acceptance = record_acceptance(
      decoder.batch, decoder.chat_template, decoder.options, prompts, most,
      [&](int done, int total) { status.show(fmt::format("{} of {} prompts", done, total)); },
      interrupted);
  status.clear();
  if (interrupted) return kExitInterrupted;
  write_text(acceptance_text(acceptance), flags.record);
  const auto passes = static_cast<double>(acceptance.passes.size());
  double accepted = 0;
  for (const VerifiedTree& pass : acceptance.passes) {
    accepted += static_cast<double>(pass.accepted.size());
  }
  fmt::print("{} passes of {} prompts: {:.2f} tokens a pass with trees of {}\n", passes,
             prompts.size(), 1 + accepted / passes, kMostPlannedNodes);
  flush_output();
  return 0;
}

int run_simulation(const BenchFlags& flags) {
  require_at_least(flags.context, 1, "--context");
  require_at_least(flags.tokens, 1, "-n");
  if (!flags.json.empty()) require_writable(flags.json);
  const Acceptance acceptance = read_acceptance(flags.acceptance);
  const SyntheticModel synthetic(flags.synthetic);
  const OtherLoad load;
  NativeEngine engine(synthetic.model(),
                      {.threads = flags.decode.thread_count(),
                       .context = flags.context + flags.tokens + 2 * kMostPlannedNodes,
                       .cache_type = flags.decode.cache_type(),
                       .rough_drafts = flags.decode.draft_weights == "rounded"});
  engine.set_heads(random_heads_of(engine.config()));
  catch_interrupts();
  StatusLine status;
  const SimulationOptions options = {.context = flags.context,
                                     .tokens = flags.tokens,
                                     .rounds = std::max(3, flags.repeats),
                                     .trees = flags.method.trees};
  const SimulationResult result = simulate_drafts(
      engine, acceptance, options,
      [&](int done, int total) { status.show(fmt::format("{} of {} runs", done, total)); },
      interrupted);
  status.clear();
  if (result.methods.empty()) return kExitInterrupted;
  fmt::print(
      "SIMULATED: passes of {} with random weights, {} threads ({}), context of {}; accepted "
      "drafts\n"
      "drawn from {} passes of {}\n{}",
      engine.config().name, engine.options().threads, engine.isa(), flags.context,
      acceptance.passes.size(), one_line(acceptance.model), simulation_table(result));
  tell_of_other_load(load.cores());
  flush_output();
  if (!flags.json.empty()) {
    nlohmann::ordered_json machine = bench_machine(engine, nullptr, {});
    machine["other_load_cores"] = load.cores();
    write_json(simulation_json(std::move(machine), result, acceptance), flags.json);
  }
  return 0;
}

int run_compare(const BenchFlags& flags) {
  fmt::print("{}", comparison_text(read_bench_report(flags.compare.front()),
                                   read_bench_report(flags.compare.back())));
  flush_output();
  return 0;
}

/// None where no folder is named.
std::vector<ReportFigure> figures_of(const BenchFlags& flags) {
  return flags.figures.empty() ? std::vector<ReportFigure>() : read_figures(flags.figures);
}

/// The page of earlier results.
int run_report(const BenchFlags& flags) {
  std::vector<BenchReport> reports;
  for (const std::filesystem::path& path : flags.from) reports.push_back(read_bench_report(path));
  write_text(html_report(reports, figures_of(flags)), flags.report);
  return 0;
}

int run_prompts(BenchFlags& flags) {
  const int most = most_tokens(flags.tokens);
  require_at_least(flags.limit, 0, "--limit");
  require_at_least(flags.turns, 0, "--turns");
  require_at_least(flags.repeats, 1, "--repeats");
  flags.method.prepare(flags.decode);
  if (!flags.json.empty()) require_writable(flags.json);
  if (!flags.report.empty()) require_writable(flags.report);
  const std::vector<ReportFigure> figures = figures_of(flags);
  if (flags.prompts.empty()) flags.prompts = default_prompts();
  const auto prompts = read_bench_prompts(flags.prompts, flags.limit, flags.turns);

  Decoder decoder(flags.decode, flags.method.trees);
  StatusLine status;
  std::vector<BenchMethod> methods = make_methods(
      flags.method, decoder, [&](const std::string& name) { status.show("preparing " + name); });
  std::optional<LlamaPeer> peer;
  if (!flags.peer.empty()) {
    peer.emplace(flags.decode.model, flags.decode.thread_count(),
                 flags.decode.context_size().value_or(
                     std::min(decoder.engine.options().context, kPeerContext)),
                 flags.decode.cache_type());
    std::ranges::move(peer->methods(decoder.chat_template, decoder.options.sampling),
                      std::back_inserter(methods));
  }

  BenchReport report = {
      .machine = bench_machine(decoder.engine, decoder.file.get(), decoder.heads_path),
      .settings = settings(flags, decoder.options, methods)};
  {
    ThreadPool pool(decoder.engine.options().threads);
    report.machine.update(
        machine_json(measure_peaks(pool, decoder.engine.isa()), decoder.engine.isa()));
  }

  catch_interrupts(Patience::kUntilItIsKept);
  const OtherLoad load;
  const Stopwatch watch;
  report.records = run_bench(
      prompts, methods, most, flags.repeats,
      [&](int done, int total) {
        const double seconds = watch.seconds();
        status.show(done == 0 ? "warming up"
                              : fmt::format("{} of {} prompts, {} left", done, total,
                                            duration(seconds * (total - done) / done)));
      },
      interrupted);
  status.clear();
  if (report.records.empty()) throw Error("interrupted before the first prompt was done");
  report.machine["other_load_cores"] = load.cores();

  fmt::print("{}", bench_table(sum_up(report.records)));
  for (const BenchMethod& method : methods) {
    if (!method.note.empty()) fmt::print("{}: {}\n", method.name, method.note);
  }
  tell_of_other_load(load.cores());
  flush_output();
  if (!flags.json.empty()) write_json(bench_json(report), flags.json);
  if (!flags.report.empty()) write_text(html_report({&report, 1}, figures), flags.report);
  return interrupted ? kExitInterrupted : 0;
}

void require_what_the_mode_needs(const BenchFlags& flags) {
  if (!flags.synthetic.empty() && !flags.forward && !flags.load && flags.acceptance.empty()) {
    throw CLI::ValidationError("--synthetic", "needs --forward, --load or --acceptance");
  }
  if (!flags.synthetic.empty() && flags.decode.packed_cache) {
    throw CLI::ValidationError("--packed-cache", "a synthetic model has no file that stays");
  }
  if (flags.kernels || !flags.synthetic.empty()) return;
  if (!flags.compare.empty() || !flags.from.empty()) return;
  if (flags.decode.model.empty()) throw CLI::RequiredError("--model");
}

int run_bench_verb(BenchFlags& flags) {
  if (!flags.compare.empty()) return run_compare(flags);
  if (!flags.from.empty()) return run_report(flags);
  if (flags.kernels) return run_kernels(flags);
  if (flags.load) return run_load(flags);
  if (!flags.sessions.empty()) return run_sessions(flags);
  if (!flags.record.empty()) return run_record(flags);
  if (!flags.acceptance.empty()) return run_simulation(flags);
  return flags.forward ? run_forward(flags) : run_prompts(flags);
}

}  // namespace

Verb add_bench(CLI::App& program) {
  CLI::App* app = program.add_subcommand("bench", "Measure against plain decoding");
  const auto flags = std::make_shared<BenchFlags>();
  app->footer(R"(
Tokens per second of whole answers. PROMPTS has a conversation a line, as Spec-Bench, GSM8K or CNN/DM:
  {"question_id": 81, "category": "writing", "turns": ["Write ...", "Now shorten it."]}
  {"question": "Natalia sold ...", "answer": "..."}      asked as it stands, in the chat template
  {"article": "(CNN) ...", "highlights": "..."}          asked as "Summarize: (CNN) ..."
Every method answers every prompt, one prompt after the other. Seconds are those of decoding; those
of the prompts are in the JSON beside them. "spread": of tokens/s over --repeats; "+-": the standard
error over prompts. "same text": prompts with exactly plain's tokens. Ctrl-C ends it with the
prompts done so far.

With --compare: which tokens/s, tokens per pass and speed-ups of two results are beyond the noise:
over their common prompts, further apart than chance explains in 99 of 100 cases.

With --kernels: products of random weights with some rows, from memory: ours and ggml's in the
faster of its forms, in turn, on as many threads. Milliseconds of as many products as stand behind
the shape, best and median. The limit is what the machine allows, measured at the start: "m", the
file's bytes at its read bandwidth, or "a", the multiply-adds with the instructions that the scales
need; whichever is longer. "GB/s" counts the bytes of our packed form.

With --forward: a whole pass with some rows, a tree of tokens on a context, from embedding to the
logits of all rows; with heads also with pseudo rows in the upper layers; and the prefill of 512
tokens. "limit" is that of all matrices and of the cache. --synthetic takes a model of random
weights in a known shape: its speed is real, its text is not. With --peer it is also written to a
temporary file (in TMPDIR) for llama.cpp.

With --load: how long it takes until the model is ready, with its file out of the system's cache
("cold") and in it ("warm"), beside reading the file; and the memory that it holds meanwhile.

With --sessions: what so many sessions come to that share their passes, as those of `firp serve` do:
T(n), a pass with a row of each on its own context; tokens/s of all together without drafts, over
those of one session, and as a share of what T(n) allows; and with drafts (--repeats rounds, 3 at least).

With --record and then --synthetic and --acceptance: what drafts would come to with a model that is
not at hand. Its passes are run with random weights and take the time that they take; accepted is
what was accepted of the trees of the recorded model, drawn at random. The planner (or --tree)
chooses. It is a simulation: a larger model may well draft better or worse.

docs/performance.md has more.

Examples:
  firp bench model.gguf
  firp bench model.gguf --prompts question.jsonl --limit 5 --repeats 3
  firp bench -m model.gguf --prompts question.jsonl --tree 8,16,32 --json result.json
  firp bench -m model.gguf --prompts question.jsonl --methods plain --peer llama.cpp -t 4
  firp bench model.gguf --json new.json --report new.html
  firp bench --compare old.json new.json
  firp bench --report all.html --from spec-bench.json gsm8k.json --figures figures
  firp bench --kernels --types q4_0,q4_K --rows 1,8 -t 2
  firp bench --kernels --types q6_K --shapes 4096x14336,128256x4096 --json kernels.json
  firp bench --kernels --types q4_0 --shapes 576x576,1536x576,576x1536,49152x576 --rows 1,8,64
  firp bench --forward model.gguf --rows 1,8,32 --peer llama.cpp
  firp bench --forward --synthetic llama-7b:q4_0 --peer llama.cpp -t 2
  firp bench --load model.gguf
  firp bench model.gguf --sessions 1,2,4,8,16
  firp bench model.gguf --prompts question.jsonl --record drafts.jsonl
  firp bench --synthetic llama-7b:q4_1 --acceptance drafts.jsonl --tree 0,4,8)");
  flags->decode.add_model_to(*app);
  app->get_option("--model")->required(false);  // not for --kernels
  CLI::Option* const prompts = app->add_option("--prompts", flags->prompts,
                                               "The prompts, JSONL (default: our own small set)");
  app->add_option("--peer", flags->peer,
                  "Another program beside ours: llama.cpp, plain and with n-grams as its drafts")
      ->check(CLI::IsMember({"llama.cpp"}));
  app->add_option("-n,--predict,--n-predict", flags->tokens, kPredictHelp)->capture_default_str();
  app->add_option("--limit", flags->limit, "Prompts of each category at most (default: all)");
  app->add_option("--turns", flags->turns, "Turns of each prompt at most (default: all)");
  app->add_option("--repeats", flags->repeats, "Runs of each prompt; the one of median time counts")
      ->capture_default_str();
  app->add_option("--json", flags->json, "Write the results to this file");
  CLI::Option* const report = app->add_option("--report", flags->report,
                                              "Write the results to this file as a page of HTML");
  app->add_option("--figures", flags->figures,
                  "A folder of *.svg for the page, with their captions in *.txt of the same name")
      ->needs(report);
  app->add_option("--from", flags->from, "Make the page from earlier --json; nothing is run")
      ->needs(report)
      ->excludes(prompts);
  CLI::Option* const compare =
      app->add_option("--compare", flags->compare,
                      "Say what differs between two earlier --json beyond the noise: OLD NEW")
          ->expected(2)
          ->multi_option_policy(CLI::MultiOptionPolicy::Throw)  // the last of one would do
          ->excludes(prompts)
          ->excludes(report);
  flags->decode.add_decoding_to(*app);
  flags->decode.add_engine_to(*app);
  flags->method.add_to(*app);

  CLI::App* const speed = app->add_option_group("Speed of the parts");
  CLI::Option* const kernels =
      speed
          ->add_flag("--kernels", flags->kernels, "Time products of matrices with rows, and ggml's")
          ->excludes(prompts)
          ->excludes(report)
          ->excludes(compare);
  speed->add_option("--types", flags->types, "Weight types")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->needs(kernels)
      ->default_str("q4_0,q4_1,q4_K,q6_K,q8_0,bf16,f16");
  speed->add_option("--shapes", flags->shapes, "Matrices, outputs x inputs")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->needs(kernels)
      ->default_str("4096x4096");
  CLI::Option* const forward =
      speed->add_flag("--forward", flags->forward, "Time whole passes of the model, and prefill")
          ->excludes(prompts)
          ->excludes(report)
          ->excludes(compare)
          ->excludes(kernels);
  speed->add_flag("--load", flags->load, "Time loading the model, and the memory that it takes")
      ->excludes(prompts)
      ->excludes(report)
      ->excludes(compare)
      ->excludes(kernels)
      ->excludes(forward);
  speed
      ->add_option("--sessions", flags->sessions,
                   "Time so many sessions at once, 64 at most: 1,2,4,8,16 say")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->excludes(report)
      ->excludes(compare)
      ->excludes(kernels)
      ->excludes(forward)
      ->excludes(app->get_option("--load"))
      ->excludes(app->get_option("--peer"))
      ->excludes(app->get_option("--turns"))
      ->excludes(app->get_option("--methods"))
      ->excludes(app->get_option("--rivals"));
  speed
      ->add_option("--synthetic", flags->synthetic,
                   "A model of random weights instead of a file: SHAPE:TYPE, shapes llama-1b, "
                   "llama-3b, llama-7b, llama-8b, smollm2-135m")
      ->excludes(prompts)
      ->excludes(app->get_option("--model"));
  CLI::Option* const record =
      speed->add_option("--record", flags->record,
                        "Decode the prompts and write what is accepted of each draft tree to this "
                        "file, for --acceptance");
  CLI::Option* const acceptance =
      speed
          ->add_option(
              "--acceptance", flags->acceptance,
              "Simulate drafts: passes of the --synthetic model, of whose trees as much is "
              "accepted as of those in this file")
          ->needs(app->get_option("--synthetic"));
  for (CLI::Option* const mode : {record, acceptance}) {
    for (const char* const other : {"--report", "--compare", "--kernels", "--forward", "--load",
                                    "--sessions", "--peer", "--methods", "--rivals"}) {
      mode->excludes(app->get_option(other));
    }
  }
  CLI::Option* const context =
      speed->add_option("--context", flags->context, "Tokens that stand before the rows of a pass")
          ->capture_default_str();
  speed->add_option("--rows", flags->rows, "Numbers of rows, for --kernels or --forward")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->excludes(prompts)
      ->default_str("1,2,4,8,16,32");

  app->callback([flags, context] {
    if (!context->empty() && !flags->forward && flags->acceptance.empty()) {
      throw CLI::ValidationError("--context", "needs --forward or --acceptance");
    }
    require_what_the_mode_needs(*flags);
  });
  return {app, [flags] { return run_bench_verb(*flags); }};
}

}  // namespace firp
