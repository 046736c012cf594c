#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "bench/bench.h"
#include "decode/batch_decoder.h"
#include "engine/engine.h"
#include "plan/costs.h"

namespace firp {

/// Draft trees of a model that was run, and what of them was accepted: what a model of another
/// size may be imagined to draft.
struct Acceptance {
  std::string model;
  std::vector<VerifiedTree> passes;
};

/// Decodes the first turns of the prompts with trees of kMostPlannedNodes, and keeps each tree.
/// Those before `stop` became true. `decoder` has no planner, its engine heads.
Acceptance record_acceptance(BatchDecoder& decoder, const ChatTemplate& chat_template,
                             const DecodeOptions& options, std::span<const BenchPrompt> prompts,
                             int max_tokens,
                             const std::function<void(int done, int total)>& on_progress,
                             const std::atomic<bool>& stop);

/// A line of JSON for the model, and one for each pass.
std::string acceptance_text(const Acceptance& acceptance);
/// An Error names the line.
Acceptance read_acceptance(const std::filesystem::path& path);

/// Heads of the shape that `firp train` makes for a model of this one, of random numbers: a
/// drafting pass costs what it costs with true ones.
Heads random_heads_of(const ModelConfig& config);

struct SimulationOptions {
  int context = 256;  ///< committed positions at the beginning
  int tokens = 128;   ///< of each run
  int rounds = 3;     ///< in turn; sums count
  std::vector<int> trees = {kPlannedTree};
};

/// One way to decode.
struct SimulatedMethod {
  std::string name;
  long long tokens = 0;
  long long forwards = 0;
  long long nodes = 0;
  long long drafting_passes = 0;
  double seconds = 0;

  double tokens_per_second() const { return seconds > 0 ? tokens / seconds : 0; }
};

/// Of fixed trees and numbers of steps, what would give most by measured costs and recorded trees:
/// no planner can do much better.
struct BestFixed {
  int nodes = 0, steps = 0;
  double tokens_per_forward = 1;
  double speedup = 1;  ///< over plain decoding
};

struct SimulationResult {
  PassCosts costs;
  std::vector<SimulatedMethod> methods;  ///< plain the first
  BestFixed best;
};

/// Runs true passes, plain ones and such as verify and draft trees, of a model whose tokens mean
/// nothing: what would be accepted of a tree is taken from a pass of `acceptance`, drawn at random,
/// as far as the tree was verified and drafted. The engine must be fresh and have heads. Empty
/// methods where `stop` became true.
SimulationResult simulate_drafts(Engine& engine, const Acceptance& acceptance,
                                 const SimulationOptions& options,
                                 const std::function<void(int done, int total)>& on_progress,
                                 const std::atomic<bool>& stop);

/// By costs alone; costs.draft_seconds has a time for each number of steps.
BestFixed best_fixed_tree(const PassCosts& costs, std::span<const VerifiedTree> passes,
                          int context);

std::string simulation_table(const SimulationResult& result);
nlohmann::ordered_json simulation_json(nlohmann::ordered_json machine,
                                       const SimulationResult& result,
                                       const Acceptance& acceptance);

}  // namespace firp
