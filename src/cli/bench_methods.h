#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "bench/bench.h"
#include "cli/decode_flags.h"

namespace firp {

/// Which ways to decode `firp bench` sets beside each other.
struct MethodFlags {
  std::vector<std::string> methods = {"plain", "firp"};
  std::vector<std::string> rivals;  ///< NAME=FILE: heads of other methods, each a method
  std::filesystem::path draft_model;
  std::vector<int> trees = {kPlannedTree};
  bool free_rows = false;

  void add_to(CLI::App& app);

  /// Refuses what can be refused before anything is measured, and sets in `flags` what the engine
  /// must be made ready for.
  void prepare(DecodeFlags& flags) const;
};

/// The methods, ready to run on the decoder's engine one at a time. `decoder` outlives them. Those
/// that must choose what they leave out of the model do it here, which takes a while: `on_method`
/// is told the name of each before.
std::vector<BenchMethod> make_methods(const MethodFlags& flags, Decoder& decoder,
                                      const std::function<void(const std::string&)>& on_method);

}  // namespace firp
