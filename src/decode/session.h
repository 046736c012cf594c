#pragma once

#include <functional>
#include <span>
#include <vector>

#include "decode/sampler.h"
#include "draft/firp.h"
#include "draft/partial_model.h"
#include "engine/engine.h"
#include "plan/planner.h"

namespace firp {

/// Where drafts come from (draft/source.h); all but kFirp are rivals to compare with.
enum class DraftMethod { kNone, kFirp, kLookahead, kPartialModel, kDraftModel };

struct DecodeOptions {
  SamplingOptions sampling;
  DraftMethod method = DraftMethod::kFirp;  ///< kFirp needs an engine with heads
  PartialModel partial_model;               ///< of kPartialModel
  Engine* draft_model = nullptr;            ///< of kDraftModel; outlives the session
  bool ngrams = false;  ///< drafts from the text itself join those of the method
  Drafting drafting = Drafting::kDeferred;
  int tree_nodes = 16;  ///< drafted tokens that a pass verifies
  bool chain = false;   ///< one branch: the most probable token of each step
  /// Where set, it decides how much of a tree of kMostPlannedNodes is verified, and whether
  /// anything is drafted; tree_nodes is not used. Only for methods that draft in passes of their
  /// own. Outlives the session.
  Planner* planner = nullptr;
  /// For engines whose rows depend on their batch within rounding: a token whose logit leads the
  /// next by less than this beside other rows is decided by a pass of its row alone. 0: never.
  /// Only where decoding is greedy and nothing is penalised.
  float tie_margin = 0;
};

struct DecodedToken {
  Token token;
  bool drafted;  ///< an accepted draft; false: the model's own token at the end of a path
};

struct DecodeStats {
  long long tokens = 0;
  long long forwards = 0;         ///< passes that verify and decode (the prompt's are not counted)
  long long drafted = 0;          ///< tree nodes verified
  long long drafting_passes = 0;  ///< passes that were drafted for by passes of their own
  long long tie_passes = 0;       ///< forwards of one row, for tokens that were too near a tie
  // What the planner expected of the forwards, where there is one; to be held against tokens and
  // decode_seconds.
  double expected_tokens = 0;
  double expected_seconds = 0;
  double prefill_seconds = 0;
  double decode_seconds = 0;

  // 0 where nothing was decoded.
  double tokens_per_second() const;
  double tokens_per_forward() const;

  DecodeStats& operator+=(const DecodeStats& other);
  DecodeStats& operator-=(const DecodeStats& other);
};

/// One sequence being decoded: its tokens, and the drafts for what comes next.
class Session {
 public:
  Session(Engine& engine, const DecodeOptions& options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Tokens that are given (a prompt, a user's turn), in chunks; they are run when the next token
  /// is asked for. Error when they pass the context (names the limit).
  void append(std::span<const Token> tokens);

  /// Runs some of the tokens that were given, as step() would all of them, so that other sessions
  /// of the engine have a turn in between. Whether any are left.
  bool prefill_pass();
  /// Whether tokens are left that prefill_pass() would run.
  bool is_reading() const;

  /// Runs one pass and gives the tokens that it decoded: at least one. They belong to the sequence.
  std::span<const DecodedToken> step();

  /// Of the tokens that come. Those drawn depend on the seed, their positions and what stands
  /// before them, and on no other session.
  void set_sampling(const SamplingOptions& sampling);

  /// Forgets the tokens from `length` on (for an answer that was cut at an end token).
  void truncate(int length);

  /// Gives up the session's place in the engine's context. Its tokens stay, and are run again when
  /// the next one is asked for.
  void release();

  const std::vector<Token>& tokens() const;
  int seen() const;          ///< of the tokens, those in the engine's context
  int most_decoded() const;  ///< tokens that a step may give
  int context() const;       ///< positions that the sequence may hold
  const DecodeStats& stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Decodes until `max_tokens`, an end-of-generation token (which is not handed on), the end of the
/// context, `on_token` returning false, or a Cancelled. Tokens beyond the end are dropped from the
/// session. The statistics are of this call.
DecodeStats generate(Session& session, int max_tokens, const std::function<bool(Token)>& is_end,
                     const std::function<bool(const DecodedToken&)>& on_token);

}  // namespace firp
