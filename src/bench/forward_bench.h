#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench/peaks.h"
#include "bench/timing.h"
#include "engine/engine.h"

namespace firp {

class LlamaPeer;

struct ForwardBenchOptions {
  int context = 256;  ///< committed positions that the rows of a pass hang on
  std::vector<int> rows = {1, 2, 4, 8, 16, 32};
  int prefill_tokens = 512;
};

/// A whole pass, from embedding to logits of all its rows: token rows as a binary tree on the
/// context, and pseudo rows as a chain from the tree's root. Without token rows it is a drafting
/// pass, whose rows start from the last committed token, and ends with what they propose. The
/// layers below the draft maps see `token_rows` rows, those above and the head see `token_rows +
/// pseudo_rows`.
struct PassResult {
  int token_rows = 0;
  int pseudo_rows = 0;
  Timing ours;
  std::optional<Timing> peer;  ///< llama.cpp's pass of one token
  /// At the measured peaks, matrix by matrix, and the cache read once; 0: not known.
  double limit_seconds = 0;
};

struct PrefillResult {
  int tokens = 0;
  Timing ours;
  std::optional<Timing> peer;
  double limit_seconds = 0;
};

/// A part of the pass, over all layers; empty lists where the engine does not tell.
struct PhaseResult {
  std::string name;
  std::size_t weight_bytes = 0;            ///< packed, that a pass of one row reads in it
  std::vector<double> seconds;             ///< means, for each number of rows of the options
  std::optional<double> drafting_seconds;  ///< of a drafting pass, where there are heads
};

struct ForwardResult {
  std::vector<PassResult> passes;
  std::vector<PhaseResult> phases;
  PrefillResult prefill;
  double read_bytes_per_second = 0;  ///< the best read of memory beside these samples
  std::size_t weight_bytes = 0;      ///< packed, of a pass of one row
};

/// Measures passes of every number of rows, with pseudo rows where the engine has draft maps, and
/// the prefill. `model`: whose limits stand beside them; may be nullptr. With a peer, its plain
/// decoding at the same context and its prefill in turn with ours. The engine must be fresh, with
/// room for the context, the prefill and the rows.
ForwardResult bench_forward(Engine& engine, const Model* model, const ForwardBenchOptions& options,
                            ThreadPool& pool, const MachinePeaks& peaks, LlamaPeer* peer);

/// The least seconds of a pass: for each matrix the longer of its bytes at the bandwidth and its
/// multiply-adds at the peak. `rows_of_layer`: rows in each layer; `head_rows`: in the head.
double pass_limit_seconds(const Model& model, const std::vector<int>& rows_of_layer, int head_rows,
                          int context, CacheType cache_type, const MachinePeaks& peaks);

std::string forward_table(const ForwardResult& result, const MachinePeaks& peaks);
nlohmann::ordered_json forward_json(nlohmann::ordered_json machine, const ForwardResult& result,
                                    const ForwardBenchOptions& options);

}  // namespace firp
