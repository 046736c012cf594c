#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/kernels.h"
#include "model/heads.h"
#include "model/model.h"
#include "model/vocabulary.h"

namespace firp {

struct EngineOptions {
  int threads = 0;     ///< 0: one per core
  int context = 4096;  ///< positions a sequence may hold
  int max_rows = 256;  ///< rows of one pass
  CacheType cache_type = CacheType::kF16;
};

inline constexpr int kContext = -1;  ///< a parent: the sequence's committed context
inline constexpr Token kNoToken = -1;

/// One row of a forward pass: a token, or a pseudo hidden state.
///
/// A row sees its sequence's committed context and its own ancestors in the batch. Its position is
/// its parent's plus one (the length of the context for a parent of kContext), plus the steps that
/// a pseudo row leaves out.
struct Row {
  int sequence = 0;
  int position = 0;
  int parent = kContext;  ///< an earlier row of the batch
  Token token = kNoToken;
  /// j >= 1: the row is p_{i,j}, made by draft map j from h_i^{t_j}, and runs through the layers
  /// from t_j on. Its parent is p_{i,j-1}, or for j = 1 the row of token i; a parent of an earlier
  /// step, or the row of token i for any j, leaves the steps between out of what it sees.
  int step = 0;
  /// For a pseudo row whose token i is not in the batch but the last of the committed context:
  /// h_i^{t_j}, as an earlier pass gave it. [d]; empty otherwise.
  std::span<const float> source = {};
  /// For a pseudo row of maps with a token input: the token at position i + 1.
  Token token_behind = kNoToken;

  bool is_pseudo() const { return step > 0; }
};

/// The most probable tokens of a row, best first.
struct BestTokens {
  std::vector<TokenLogit> tokens;
  float log_sum = 0;  ///< log sum exp of all the row's logits; 0 where that was not asked for
};

/// A token that pseudo rows propose, and the logarithm of the probability that they give it.
struct Candidate {
  Token token;
  float log_probability;
};

/// A part of a layer that a pass may leave out: 2 l is the attention of layer l, 2 l + 1 its
/// feed-forward.
using Sublayer = int;

struct PhaseTime {
  const char* name;
  double seconds;
  std::size_t weight_bytes;  ///< of all layers, read in this phase by a pass of one row
};

/// A batch of rows in; hidden states and logits out. The seam between the model's arithmetic and
/// everything that decides what to run: nothing above it knows how weights or keys are stored.
///
/// Not thread-safe: one caller at a time.
class Engine {
 public:
  /// Packs the weights. `model` must outlive the engine.
  Engine(const Model& model, const EngineOptions& options);
  ~Engine();
  Engine(Engine&&) noexcept;

  const ModelConfig& config() const;
  const EngineOptions& options() const;
  const char* isa() const;
  std::size_t weight_bytes() const;  ///< packed weights that a pass of one row reads

  /// Sets the maps that pseudo rows enter by. An Error where they do not fit the model.
  void set_heads(const Heads& heads);
  int draft_steps() const;          ///< K; 0 without heads
  bool token_input() const;         ///< whether pseudo rows need their token_behind
  int draft_layer(int step) const;  ///< t_j
  /// What deferred drafting captures: all t_j, each once; nothing for Medusa, which reads the final
  /// state.
  std::vector<int> draft_layers() const;
  bool medusa() const;  ///< whether pseudo rows are Medusa's

  int add_sequence();
  void remove_sequence(int sequence);
  int length(int sequence) const;  ///< committed positions
  /// Forgets the positions from `length` on.
  void truncate(int sequence, int length);

  /// Runs the rows through the layers. Keeps the residual stream of the rows after each layer in
  /// `capture_layers` (t layers done; 1 .. layers) until the next pass; of pseudo rows from t_j on,
  /// where it is p_{i,j} itself. Errors: a row over the context, too many rows;
  /// std::invalid_argument for a batch that breaks the rules above.
  ///
  /// `skipped`: parts that are left out, for a cheap guess at what all would give (self-speculative
  /// decoding, early exit). The rows of such a pass can't be committed.
  void forward(std::span<const Row> rows, std::span<const int> capture_layers = {},
               std::span<const Sublayer> skipped = {});

  /// The captured residual stream of row `row` of the last pass, h^t of a token row. [d]
  std::span<const float> hidden(int row, int layer) const;

  /// The final state of a row after the model's last norm: what the head reads. [d]
  std::span<const float> final_state(int row) const;

  /// What the pseudo row of `step` behind row `row` of the last pass is made from, a Row::source:
  /// the captured h^{t_j}, or Medusa's final state.
  std::span<const float> draft_source(int row, int step) const;

  /// Logits of some rows of the last pass: [rows.size() x vocabulary], valid until the next call.
  std::span<const float> logits(std::span<const int> rows);

  /// The `count` most probable tokens of each of some rows of the last pass, best first (of equal
  /// ones the smaller number first), with `log_sums` their log_sum, too. Cheaper than logits(),
  /// which it replaces where the rest of the distribution is not needed. Valid until the next call.
  std::span<const BestTokens> best_tokens(std::span<const int> rows, int count,
                                          bool log_sums = false);

  /// Takes pseudo rows of the last pass as what drafts_behind() gives from now on: those of one
  /// anchor, steps 1 .. rows.size().
  void propose(std::span<const int> pseudo_rows);

  /// Candidates for the token of a step, best first, kRankedCandidates at most: a list behind each
  /// of the tokens `previous` of the step before (of step 1: the model's own token). Without a
  /// sequential head the lists are the same.
  std::vector<std::vector<Candidate>> drafts_behind(int step, std::span<const Token> previous);

  /// Appends rows of the last pass, a path that hangs on the sequence's context, to that context.
  /// Pseudo rows are never committed.
  void commit(int sequence, std::span<const int> rows);

  /// Starts (or ends) measuring what passes spend their time on; phase_times() gives the sums since
  /// the start, as one of the threads saw them.
  void profile(bool on);
  std::vector<PhaseTime> phase_times() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace firp
