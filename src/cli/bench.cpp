#include "bench/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <set>

#include "bench/llama_peer.h"
#include "bench/report.h"
#include "cli/decode_flags.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "model/error.h"

namespace firp {
namespace {

constexpr int kPeerContext = 8192;  // libllama takes the memory of its whole context at once

struct BenchFlags {
  DecodeFlags decode;
  std::filesystem::path prompts;
  std::vector<std::string> methods = {"plain", "firp"};
  std::vector<int> trees = {16};
  std::string peer;
  int tokens = 128;
  int limit = 0;
  int turns = 0;
  std::filesystem::path json;
};

bool has(const std::vector<std::string>& names, const std::string& name) {
  return std::ranges::count(names, name) > 0;
}

std::vector<BenchMethod> make_methods(const BenchFlags& flags, Decoder& decoder) {
  std::vector<BenchMethod> methods;
  for (const std::string& name : flags.methods) {
    DecodeOptions options = decoder.options;
    if (name == kPlain) {
      options.method = DraftMethod::kNone;
      methods.push_back(engine_method(name, decoder.engine, decoder.vocabulary, options));
      continue;
    }
    for (const int tree : flags.trees) {
      options.tree_nodes = tree;
      methods.push_back(
          engine_method(flags.trees.size() == 1 ? name : fmt::format("{}-tree{}", name, tree),
                        decoder.engine, decoder.vocabulary, options));
    }
  }
  return methods;
}

nlohmann::ordered_json settings(const BenchFlags& flags, const DecodeOptions& options) {
  const SamplingOptions& sampling = options.sampling;
  nlohmann::ordered_json json = {
      {"prompts", flags.prompts.filename().string()},
      {"tokens_per_turn", flags.tokens},
      {"limit_per_category", flags.limit},
      {"turns", flags.turns},
      {"tree", flags.trees},
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
  return json;
}

int run_bench_verb(BenchFlags& flags) {
  require_at_least(flags.tokens, 1, "-n");
  require_at_least(flags.limit, 0, "--limit");
  require_at_least(flags.turns, 0, "--turns");
  if (std::set(flags.methods.begin(), flags.methods.end()).size() != flags.methods.size() ||
      std::set(flags.trees.begin(), flags.trees.end()).size() != flags.trees.size()) {
    throw Error("a method or tree size is named twice");
  }
  require_at_least(*std::ranges::min_element(flags.trees), 1, "--tree");
  if (!flags.json.empty()) require_writable(flags.json);
  const auto prompts = read_bench_prompts(flags.prompts, flags.limit, flags.turns);

  flags.decode.draft = has(flags.methods, "firp") ? "firp" : "none";
  Decoder decoder(flags.decode, *std::ranges::max_element(flags.trees));
  std::vector<BenchMethod> methods = make_methods(flags, decoder);
  std::optional<LlamaPeer> peer;
  if (!flags.peer.empty()) {
    peer.emplace(
        flags.decode.model, decoder.vocabulary, flags.decode.thread_count(),
        flags.decode.context.value_or(std::min(decoder.engine.options().context, kPeerContext)),
        decoder.options.sampling);
    methods.push_back(peer->method());
  }

  catch_interrupts();
  StatusLine status;
  const auto start = std::chrono::steady_clock::now();
  const auto results = run_bench(
      prompts, methods, flags.tokens,
      [&](int done, int total) {
        const double seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        status.show(done == 0 ? "warming up"
                              : fmt::format("{} of {} prompts, {} left", done, total,
                                            duration(seconds * (total - done) / done)));
      },
      interrupted);
  status.clear();
  if (results.empty()) throw Error("interrupted before the first prompt was done");

  fmt::print("{}", bench_table(results));
  flush_output();
  if (!flags.json.empty()) {
    write_json(bench_json(bench_machine(decoder.engine, decoder.model, decoder.heads_path),
                          settings(flags, decoder.options), results),
               flags.json);
  }
  return interrupted ? kExitInterrupted : 0;
}

}  // namespace

Verb add_bench(CLI::App& program) {
  CLI::App* app = program.add_subcommand("bench", "Measure against plain decoding");
  const auto flags = std::make_shared<BenchFlags>();
  app->footer(R"(
PROMPTS has a conversation a line, as Spec-Bench's question.jsonl:
  {"question_id": 81, "category": "writing", "turns": ["Write ...", "Now shorten it."]}
Every method answers every prompt, one prompt after the other. Seconds are those of decoding; those
of the prompts are in the JSON beside them. "same text": prompts with exactly plain's tokens.
Ctrl-C ends it with the prompts done so far.

Examples:
  firp bench model.gguf --prompts question.jsonl --limit 5
  firp bench -m model.gguf --prompts question.jsonl --tree 8,16,32 --json result.json
  firp bench -m model.gguf --prompts question.jsonl --methods plain --peer llama.cpp -t 4)");
  flags->decode.add_model_to(*app);
  app->add_option("--prompts", flags->prompts, "The prompts, JSONL")->required();
  app->add_option("--methods", flags->methods, "Methods to run: plain, firp")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember({"plain", "firp"}))
      ->default_str("plain,firp");
  app->add_option("--peer", flags->peer, "Another program's plain decoding beside them: llama.cpp")
      ->check(CLI::IsMember({"llama.cpp"}));
  app->add_option("-n,--predict,--n-predict", flags->tokens, "Tokens of an answer at most")
      ->capture_default_str();
  app->add_option("--limit", flags->limit, "Prompts of each category at most (default: all)");
  app->add_option("--turns", flags->turns, "Turns of each prompt at most (default: all)");
  app->add_option("--json", flags->json, "Write the results to this file");
  flags->decode.add_decoding_to(*app);
  app->get_option_group("Drafting")
      ->add_option("--tree", flags->trees, "Sizes of the draft tree; several give several methods")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->default_str("16");
  return {app, [flags] { return run_bench_verb(*flags); }};
}

}  // namespace firp
