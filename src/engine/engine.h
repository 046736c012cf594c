#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/kernels.h"
#include "model/heads.h"
#include "model/model.h"
#include "model/vocabulary.h"

namespace firp {

struct EngineOptions {
  int threads = 0;     ///< 0: one per core
  int context = 4096;  ///< positions a sequence may hold
  int positions = 0;   ///< that all sequences may hold together; 0: one whole context
  int max_rows = 256;  ///< rows of one pass
  CacheType cache_type = CacheType::kF16;
  /// Whether passes that only draft may read rounded weights (engine/weights.h).
  bool rough_drafts = true;
  /// Whether packed weights are kept in the cache directory, and taken from there at the next start
  /// (engine/weights.h).
  bool packed_cache = false;
  /// Where another thread, or a signal, sets it, passes end with a Cancelled: the running one
  /// within a layer. A pass of a large model may take many seconds. Outlives the engine.
  const std::atomic<bool>* cancelled = nullptr;
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
  /// Whether logits, best tokens or the final state of a token row may be asked for: a prompt's
  /// rows do without, all but the last.
  bool decoded = true;

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
/// NativeEngine is ours for CPUs, whose rows depend on nothing else; LlamaEngine runs on libllama.
///
/// Not thread-safe: one caller at a time.
class Engine {
 public:
  virtual ~Engine() = default;

  virtual const ModelConfig& config() const = 0;
  virtual const EngineOptions& options() const = 0;
  virtual const char* isa() const = 0;           ///< what computes, for people and cache keys
  virtual std::size_t weight_bytes() const = 0;  ///< that a pass of one row reads

  /// Sets the maps that pseudo rows enter by. An Error where they do not fit the model.
  virtual void set_heads(const Heads& heads) = 0;
  virtual int draft_steps() const = 0;          ///< K; 0 without heads
  virtual bool token_input() const = 0;         ///< whether pseudo rows need their token_behind
  virtual int draft_layer(int step) const = 0;  ///< t_j
  virtual bool medusa() const = 0;              ///< whether pseudo rows are Medusa's
  /// What deferred drafting captures: all t_j, each once; nothing for Medusa, which reads the final
  /// state.
  std::vector<int> draft_layers() const;

  /// Positions that all sequences can hold together: libllama's options().positions, while the
  /// native engine takes memory as it goes.
  virtual int positions() const = 0;
  virtual int add_sequence() = 0;
  virtual void remove_sequence(int sequence) = 0;
  virtual bool has_sequence(int sequence) const = 0;
  virtual int length(int sequence) const = 0;  ///< committed positions
  /// Forgets the positions from `length` on.
  virtual void truncate(int sequence, int length) = 0;

  /// Runs the rows through the layers. Keeps the residual stream of the rows after each layer in
  /// `capture_layers` (t layers done; 1 .. layers) until the next pass; of pseudo rows from t_j on,
  /// where it is p_{i,j} itself. Errors: a row over the context, too many rows; Cancelled, after
  /// which there is no last pass; std::invalid_argument for a batch that breaks the rules above.
  ///
  /// `skipped`: parts that are left out, for a cheap guess at what all would give (self-speculative
  /// decoding, early exit). The rows of such a pass can't be committed.
  virtual void forward(std::span<const Row> rows, std::span<const int> capture_layers = {},
                       std::span<const Sublayer> skipped = {}) = 0;

  /// The captured residual stream of row `row` of the last pass, h^t of a token row. [d]
  virtual std::span<const float> hidden(int row, int layer) const = 0;

  /// The final state of a row after the model's last norm: what the head reads. [d]
  virtual std::span<const float> final_state(int row) const = 0;

  /// What the pseudo row of `step` behind row `row` of the last pass is made from, a Row::source:
  /// the captured h^{t_j}, or Medusa's final state.
  std::span<const float> draft_source(int row, int step) const;

  /// Logits of some rows of the last pass: [rows.size() x vocabulary], valid until the next call.
  virtual std::span<const float> logits(std::span<const int> rows) = 0;

  /// The `count` most probable tokens of each of some rows of the last pass, best first (of equal
  /// ones the smaller number first), with `log_sums` their log_sum, too. Cheaper than logits(),
  /// which it replaces where the rest of the distribution is not needed. Valid until the next call.
  /// An Error where no logit of a row is a number.
  virtual std::span<const BestTokens> best_tokens(std::span<const int> rows, int count,
                                                  bool log_sums = false) = 0;

  /// Takes pseudo rows of the last pass as what drafts_behind() gives from now on: those of one
  /// anchor, steps 1 .. rows.size().
  virtual void propose(std::span<const int> pseudo_rows) = 0;

  /// Candidates for the token of a step, best first, kRankedCandidates at most: a list behind each
  /// of the tokens `previous` of the step before (of step 1: the model's own token). Without a
  /// sequential head the lists are the same.
  virtual std::vector<std::vector<Candidate>> drafts_behind(int step,
                                                            std::span<const Token> previous) = 0;

  /// Appends rows of the last pass, a path that hangs on the sequence's context, to that context.
  /// Pseudo rows are never committed.
  virtual void commit(int sequence, std::span<const int> rows) = 0;

  /// Starts (or ends) measuring what passes spend their time on; phase_times() gives the sums since
  /// the start, as one of the threads saw them. Nothing where the engine cannot tell.
  virtual void profile(bool on) = 0;
  virtual std::vector<PhaseTime> phase_times() const = 0;

 protected:
  /// The rules of a batch, which all engines share; the errors of forward().
  void check_batch(std::span<const Row> rows, std::span<const int> capture_layers,
                   std::span<const Sublayer> skipped) const;
  /// The sizes of heads are the model's; the errors of set_heads().
  void check_fits(const Heads& heads) const;
  /// The rows of commit() are a path of token rows of the last pass, `rows`.
  void check_path(int sequence, std::span<const Row> rows, std::span<const int> path) const;
};

/// A mistake of the caller, not of the user.
[[noreturn]] void bad_batch(std::string_view why);

/// Steps between a row and its parent that the row does not see.
int steps_left_out(const Row& row, const Row* parent);

/// The Error of a row of logits among which none can be chosen: they are no finite numbers.
[[noreturn]] void refuse_logits();

/// The options with what 0 stands for, and an Error for options that make no sense.
EngineOptions checked(EngineOptions options);

}  // namespace firp
