#pragma once

#include <atomic>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/contexts.h"
#include "engine/pass.h"
#include "engine/row.h"
#include "kernels/kernels.h"
#include "model/heads.h"
#include "model/model.h"
#include "model/vocabulary.h"

namespace firp {

struct EngineOptions {
  int threads = 0;     ///< 0: one per core
  int context = 4096;  ///< positions a sequence may hold
  /// That all sequences may hold together; 0: one whole context. What retired sequences hold is
  /// dropped where it would be more.
  int positions = 0;
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
  Engine() = default;
  virtual ~Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

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

  /// Positions that live sequences can hold together: libllama's options().positions, while the
  /// native engine takes memory as it goes.
  virtual int positions() const { return INT_MAX; }
  /// Of options().positions, those that live sequences do not hold; negative where they hold more.
  int free_positions() const { return options().positions - contexts_.held_by_live(); }
  /// Sequences whose rows a pass may hold.
  virtual int sequences_a_pass() const { return INT_MAX; }

  int add_sequence();
  void remove_sequence(int sequence);
  /// Ends a sequence, but what it holds can still be adopted, until memory is wanted; the one that
  /// was not wanted for longest goes first.
  void retire_sequence(int sequence);
  bool has_sequence(int sequence) const { return contexts_.is_live(sequence); }
  int length(int sequence) const { return contexts_.length(sequence); }  ///< committed positions
  /// Forgets the positions from `length` on; all of them, where layers with a window would need
  /// keys that were given back. So look at length() afterwards.
  void truncate(int sequence, int length);
  /// Makes the context of `sequence` the longest beginning of `tokens` that any sequence holds,
  /// itself included, without running a row. Its length.
  int adopt(int sequence, std::span<const Token> tokens);

  /// Forgets of `tokens` what lies behind the first `keep`, where retired sequences hold it that
  /// hold nothing else.
  void forget(std::span<const Token> tokens, int keep);

  /// What the bytes of a context depend on besides its tokens, in a line: an engine with the same
  /// line can take them in. Empty: this engine gives none.
  virtual std::string context_form() const { return {}; }
  /// Of a context of so many positions.
  virtual std::size_t context_bytes(int /*length*/) const { return 0; }
  using WriteBytes = std::function<void(std::span<const std::byte>)>;
  using ReadBytes = std::function<void(std::span<std::byte>)>;
  /// Gives the keys and values of a sequence's context, part by part.
  virtual void write_context(int /*sequence*/, const WriteBytes& /*write*/) const {}
  /// Takes them in, as a retired sequence that has read these tokens. An Error where there is no
  /// room. What `read` throws leaves nothing behind.
  void take_in(std::span<const Token> tokens, const ReadBytes& read);

  /// Runs the rows through the layers. The pass captures the residual stream of its rows after each
  /// layer in `capture_layers` (t layers done; 1 .. layers). Errors: a row over the context;
  /// Cancelled; std::invalid_argument for a batch that breaks the rules of Row or has too many
  /// rows. Nothing is committed by a pass that threw.
  ///
  /// `skipped`: parts that are left out, for a cheap guess at what all would give (self-speculative
  /// decoding, early exit). The rows of such a pass can't be committed.
  Pass forward(std::span<const Row> rows, std::span<const int> capture_layers = {},
               std::span<const Sublayer> skipped = {});

  /// Starts (or ends) measuring what passes spend their time on; phase_times() gives the sums since
  /// the start, as one of the threads saw them. Nothing where the engine cannot tell.
  virtual void profile(bool /*on*/) {}
  virtual std::vector<PhaseTime> phase_times() const { return {}; }

 protected:
  friend class Pass;

  /// What a pass is to run, checked. `positions`: of the rows.
  struct Batch {
    std::span<const Row> rows;
    std::span<const int> positions;
    std::span<const int> capture_layers;
    std::span<const Sublayer> skipped;
  };

  // What an engine does for forward() and for the running pass; arguments were checked.
  virtual void run(const Batch& batch) = 0;
  virtual std::span<const float> hidden(int row, int layer) const = 0;
  virtual std::span<const float> final_state(int row) const = 0;
  virtual std::span<const float> logits(std::span<const int> rows) = 0;
  virtual std::span<const BestTokens> best_tokens(std::span<const int> rows, int count,
                                                  bool log_sums) = 0;
  virtual std::vector<Proposal> propose(std::span<const std::vector<int>> anchors) = 0;
  virtual void commit(int sequence, std::span<const int> path) = 0;

  // The same for what sequences hold. `to` of share_context() holds nothing.
  virtual void add_context(int sequence) = 0;
  virtual void remove_context(int sequence) = 0;
  /// Of the first `length` positions, as many as can be kept when the others go.
  virtual int keepable_context(int /*sequence*/, int length) const { return length; }
  virtual void truncate_context(int sequence, int length) = 0;
  virtual void share_context(int from, int to, int length) = 0;
  /// The context of `sequence`, which holds nothing, becomes one that write_context() gave.
  virtual void read_context(int /*sequence*/, int /*length*/, const ReadBytes& /*read*/) {}
  /// Whether a context must lie in one piece. Then none is shared: the last retired one is kept,
  /// and whoever adopts it takes it over.
  virtual bool keeps_contexts_apart() const { return false; }
  /// Positions that all sequences take room for, retired ones included.
  virtual int held_positions() const { return contexts_.held(); }
  /// Removes the retired sequence that was not wanted for longest. Whether there was one.
  bool drop_retired();

  const Contexts& contexts() const { return contexts_; }
  /// The rows of the last pass, without their sources.
  std::span<const Row> rows() const { return rows_; }

  /// The sizes of heads are the model's; the errors of set_heads().
  void check_fits(const Heads& heads) const;

 private:
  void check_batch(std::span<const Row> rows, std::span<const int> capture_layers,
                   std::span<const Sublayer> skipped) const;
  void check_row(std::span<const Row> rows, int i) const;
  void check_decoded(std::span<const int> rows) const;

  Contexts contexts_;
  // The last pass.
  unsigned long long pass_ = 0;  ///< its number
  bool complete_ = false;        ///< it ran, and left nothing out
  std::vector<Row> rows_;
  std::vector<int> positions_;
};

/// A mistake of the caller, not of the user.
[[noreturn]] void bad_batch(std::string_view why);

/// The options with what 0 stands for, and an Error for options that make no sense.
EngineOptions checked(EngineOptions options);

/// The Error of logits among which none can be chosen: they are no finite numbers.
[[noreturn]] void refuse_logits();

}  // namespace firp
