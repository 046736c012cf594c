#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "decode/grammar.h"
#include "decode/pooling.h"
#include "decode/sampler.h"
#include "draft/firp.h"
#include "draft/ngram.h"
#include "draft/partial_model.h"
#include "engine/engine.h"
#include "plan/planner.h"

namespace firp {

class BatchDecoder;

/// Where drafts come from (draft/source.h); all but kFirp are rivals to compare with.
enum class DraftMethod { kNone, kFirp, kLookahead, kPartialModel, kDraftModel };

struct DecodeOptions {
  SamplingOptions sampling;
  /// That what is written between given tokens follows; null: none. A token that it forbids is
  /// sampled anew, from all that it allows. Drafts that it forbids cost no row.
  std::shared_ptr<const Grammar> grammar = nullptr;
  int min_tokens = 0;                       ///< of an answer, before which
  std::vector<Token> end_tokens = {};       ///< these are forbidden, too
  DraftMethod method = DraftMethod::kFirp;  ///< kFirp needs an engine with heads
  PartialModel partial_model;               ///< of kPartialModel
  Engine* draft_model = nullptr;            ///< of kDraftModel; outlives the session
  bool ngrams = false;  ///< drafts from the text itself join those of the method
  Drafting drafting = Drafting::kDeferred;
  int tree_nodes = 16;  ///< drafted tokens that a pass verifies, where no planner decides that
  bool chain = false;   ///< one branch: the most probable token of each step
  /// For engines whose rows depend on their batch within rounding: a token whose logit leads the
  /// next by less than this beside other rows is decided by a pass of its row alone. 0: never.
  /// Only where decoding is greedy and nothing is penalised.
  float tie_margin = 0;
  /// Of each token that is decoded its probability, and so many of the likeliest tokens in its
  /// place (Session::probabilities); -1: not asked for.
  int likeliest = -1;
  /// These are of what sampling draws from, not the model's own.
  bool after_sampling = false;
  /// Of given tokens, too (Session::prompt_probabilities). All of them have to be run for that:
  /// `adopts` must be false.
  bool tells_prompt = false;
  /// Whether what other sequences hold of its tokens is taken from them; not where reading is to be
  /// measured.
  bool adopts = true;
  /// The session reads all its tokens, each by a row of its own, and writes none: embedding() is
  /// what it is for. Nothing is adopted from others, or left to them.
  std::optional<Pooling> pooling = std::nullopt;
};

struct DecodedToken {
  Token token;
  bool drafted;  ///< an accepted draft; false: the model's own token at the end of a path
};

/// What the model itself says of a token that was decoded, whatever sampling made of it; or what
/// sampling made of it, where DecodeOptions::after_sampling asks for that.
struct TokenProbability {
  float log_probability = 0;
  std::vector<TokenLogit> likeliest = {};  ///< in its place, best first: log probabilities
};

/// A draft tree, and those of its nodes that the model would have written, root to leaf.
struct VerifiedTree {
  DraftTree tree;
  std::vector<int> accepted;
};

/// Where sequences share passes, the seconds of a pass count for each of them.
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

/// One sequence being decoded: its tokens, and the drafts for what comes next. It runs no pass of
/// its own: it says which rows it brings to one, and takes in what came of them (BatchDecoder).
class Session {
 public:
  /// `decoder` outlives the session. An Error where the method cannot draft with its engine.
  Session(BatchDecoder& decoder, const DecodeOptions& options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Tokens that are given (a prompt, a user's turn); they are run when the next token is asked
  /// for. Error when they pass the context (names the limit).
  void append(std::span<const Token> tokens);

  /// Runs passes of this session alone until one has decoded, and gives its tokens: at least one.
  /// They belong to the sequence.
  std::span<const DecodedToken> step();

  /// Forgets the tokens from `length` on (for an answer that was cut at an end token).
  void truncate(int length);

  /// Gives up the session's place in the engine's context. Its tokens stay, and are run again when
  /// the next one is asked for.
  void release();

  const std::vector<Token>& tokens() const { return tokens_; }
  /// What the last pass decoded; nothing where it read, or the session was not in it.
  std::span<const DecodedToken> decoded() const { return decoded_; }
  /// Of each token of decoded(), where DecodeOptions::likeliest asks for it.
  std::span<const TokenProbability> probabilities() const { return probabilities_; }
  /// Of the first given tokens but the very first, as far as they are run, where
  /// DecodeOptions::tells_prompt asks for it.
  std::span<const TokenProbability> prompt_probabilities() const { return prompt_probabilities_; }
  /// What the last pass that decoded verified.
  const VerifiedTree& verified() const { return verified_; }
  /// Whether given tokens are to be run before the next one can be decoded; with
  /// DecodeOptions::pooling, before embedding() is there, and the session must no longer be
  /// stepped.
  bool is_reading() const { return unread() > 0; }
  /// The final states of the tokens, pooled: [d], or [tokens x d]. An Error where they are no
  /// finite numbers.
  std::vector<float> embedding() const;
  int adopted() const { return adopted_; }  ///< tokens that other sequences had run
  int seen() const;                         ///< of the tokens, those in the engine's context
  int most_decoded() const;                 ///< tokens that a pass may give
  int context() const;                      ///< positions that the sequence may hold
  const DecodeStats& stats() const { return stats_; }

 private:
  friend class BatchDecoder;

  /// What the session brings to a pass, and what comes of it.
  struct Part {
    Session* session;
    int context = 0;     ///< committed positions before the pass
    int first_row = 0;   ///< of the pass
    int token_rows = 0;  ///< tokens that are read, or root and tree
    bool reads = false;  ///< nothing is decoded
    bool alone = false;  ///< the root's row and no other, since it was near a tie
    DraftTree tree;      ///< what is verified behind the root
    // What comes of it:
    std::optional<Grammar> grammar = std::nullopt;  ///< behind what was decoded
    std::vector<int> path;  ///< rows to commit; none where the root is too near a tie
    std::vector<DecodedToken> decoded;
    std::vector<TokenProbability> probabilities;
    std::vector<SamplerState> states;  ///< behind each of the decoded tokens
    bool ends_at_tie = false;

    bool is_undecided() const { return !reads && path.empty(); }
  };

  SamplerState state() const;
  /// Tokens that are run before anything is decoded.
  int to_read() const { return static_cast<int>(tokens_.size()) - (pooled_ ? 0 : 1); }
  int unread() const { return to_read() - seen(); }
  bool adopts() const { return options_.adopts && !pooled_; }
  int rows_with(int nodes) const;
  void begin_pass();
  Part plan_reading(int tokens, std::vector<Row>& rows);
  Part plan_verifying(int nodes, std::vector<Row>& rows);
  bool ties_matter(const Pass& pass) const;
  bool may_forbid() const { return options_.grammar || options_.min_tokens > 0; }
  bool allows(const Part& part, Token token) const;
  bool needs_logits() const;
  int best_tokens_needed(const Pass& pass) const;
  void choose(Part& part, const Pass& pass, std::span<const BestTokens> best) const;
  void choose(Part& part, std::span<const float> logits) const;
  std::vector<float> allowed_logits(const Part& part, std::span<const float> logits) const;
  template <typename Choose>
  void walk(Part& part, const Choose& choose) const;
  void tell_prompt(Part& part, const Pass& pass) const;
  void absorb_reading(Part& part, const Pass& pass);
  void absorb(Part& part);
  void catch_up_grammar();
  bool can_draft(const Part& part) const;
  DraftTree match_text();
  DraftTree forced_text() const;
  void take_draft(DraftTree tree, const DraftTree& match);
  void drop_draft();

  BatchDecoder& decoder_;
  Engine& engine_;
  const DecodeOptions options_;
  const std::unique_ptr<DraftSource> source_;
  const int sequence_;
  std::optional<Plan> plan_;  ///< with a planner, from the first pass that decodes on
  /// All tokens of the sequence; the first seen() of them are in its context.
  std::vector<Token> tokens_;
  std::vector<SamplerState> states_;  ///< behind each of them
  DraftTree tree_;                    ///< behind the last token; empty: nothing drafted
  bool alone_ = false;  ///< the next pass has the last token's row and no other: it was near a tie
  int answer_begin_ = 0;            ///< the tokens from here on were decoded
  std::optional<Grammar> grammar_;  ///< behind the first grammar_end_ tokens
  int grammar_end_ = 0;
  NgramSource ngrams_;
  std::vector<DecodedToken> decoded_;
  std::vector<TokenProbability> probabilities_;
  std::vector<TokenProbability> prompt_probabilities_;
  VerifiedTree verified_;
  std::optional<PooledStates> pooled_;  ///< of the first seen() tokens
  int adopted_ = 0;
  int most_seen_ = 0;                 ///< before it gave up its place, perhaps
  double undecided_seconds_ = 0;      ///< of passes since the last one that decoded
  unsigned long long last_pass_ = 0;  ///< in which it took part, by the decoder's count
  DecodeStats stats_;
};

/// Decodes until `max_tokens`, an end-of-generation token (which is not handed on), the end of the
/// context, `on_token` returning false, or a Cancelled. Tokens beyond the end are dropped from the
/// session. The statistics are of this call.
DecodeStats generate(Session& session, int max_tokens, const std::function<bool(Token)>& is_end,
                     const std::function<bool(const DecodedToken&)>& on_token);

}  // namespace firp
