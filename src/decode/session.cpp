#include "decode/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cmath>
#include <optional>
#include <utility>

#include "draft/draft_model.h"
#include "draft/lookahead.h"
#include "draft/ngram.h"
#include "engine/token_chain.h"
#include "model/error.h"

namespace firp {
namespace {

constexpr int kPrefillRows = 128;  ///< of a pass beside which other sessions wait
constexpr int kStream = 0;         ///< of random numbers: the same for every session

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Nothing where nothing but n-grams drafts.
std::unique_ptr<DraftSource> make_source(Engine& engine, const DecodeOptions& options) {
  switch (options.method) {
    case DraftMethod::kNone:
      return nullptr;
    case DraftMethod::kFirp:
      return std::make_unique<FirpSource>(engine, options.drafting);
    case DraftMethod::kLookahead:
      return std::make_unique<LookaheadSource>(engine);
    case DraftMethod::kPartialModel:
      return std::make_unique<PartialModelSource>(engine, options.partial_model);
    case DraftMethod::kDraftModel:
      return std::make_unique<DraftModelSource>(engine, *options.draft_model);
  }
  return nullptr;
}

/// How much is drafted and verified: a tree of one size, or, with a planner, what the sequence's
/// plan says.
struct Extent {
  Planner* planner;
  int tree_nodes;
  std::optional<Plan> plan = std::nullopt;  ///< from the first pass on

  int most_nodes() const { return planner != nullptr ? kMostPlannedNodes : tree_nodes; }
  int most_steps() const { return planner != nullptr ? planner->steps(*plan) : INT_MAX; }

  /// What is known by the first pass is a better beginning than what was when the session was made.
  void begin() {
    if (planner != nullptr && !plan) plan = planner->begin();
  }
  void cut(DraftTree& tree, int context) const {
    if (planner != nullptr) tree.resize(planner->nodes_worth_verifying(*plan, tree, context));
  }
  /// A pass verified `tree` and accepted the rows of `path`.
  void observe_pass(const DraftTree& tree, std::span<const int> path, double seconds, int context,
                    DecodeStats& stats) {
    if (planner == nullptr) return;
    const int rows = static_cast<int>(tree.size()) + 1;
    stats.expected_tokens += plan->calibration.expected_tokens(tree);
    stats.expected_seconds += planner->verify_seconds(*plan, rows, context);
    std::vector<int> accepted;
    for (const int row : path.subspan(1)) accepted.push_back(row - 1);
    planner->observe_pass(*plan, tree, accepted, seconds, context);
  }
  /// Whether the source drafts for the next pass, `match` being there without it.
  bool decide_drafting(const DraftTree& match, int context, DecodeStats& stats) {
    if (planner == nullptr) return true;
    if (!planner->decide(*plan, match, context)) return false;
    stats.expected_seconds += planner->draft_seconds(*plan);
    return true;
  }
  void observe_drafting(double seconds) const {
    if (planner != nullptr) planner->observe_drafting(*plan, seconds);
  }
  void forget_next() {
    if (plan) Planner::forget_next(*plan);
  }
};

}  // namespace

struct Session::State {
  Engine& engine;
  DecodeOptions options;
  const std::unique_ptr<DraftSource> source;
  const int sequence;
  Extent extent{options.planner, options.tree_nodes};
  /// All tokens of the sequence; the first engine.length() of them are in its context.
  std::vector<Token> tokens;
  DraftTree tree;      ///< behind the last token; empty: nothing drafted
  bool alone = false;  ///< the next pass has the last token's row and no other: it was near a tie
  NgramSource ngrams;
  std::vector<DecodedToken> decoded;
  DecodeStats stats;

  int unseen() const { return static_cast<int>(tokens.size()) - engine.length(sequence); }
  void prefill(int most_tokens);
  std::vector<Row> rows_of(const DraftTree& draft_tree) const;
  std::vector<int> walk(std::span<const Row> rows, int token_rows);
  struct Verified {
    int last_row;  ///< of the accepted path
    bool alone;    ///< the pass had the last token's row and no other
  };
  Verified verify(DraftTree verified);
  void draft(const Verified& last, int context);
  void drop_draft();
};

Session::Session(Engine& engine, const DecodeOptions& options)
    : state_(new State{engine, options, make_source(engine, options), engine.add_sequence()}) {
  const bool drafts = state_->source || options.ngrams;
  const int nodes = state_->extent.most_nodes();
  const int rows = state_->source ? state_->source->rows_a_pass(nodes) : 1 + nodes;
  std::string problem;
  if (drafts && options.tree_nodes < 1) {
    problem = "a draft tree needs at least 1 node";
  } else if (drafts && rows > engine.options().max_rows) {
    problem = fmt::format("a draft tree of {} nodes needs {} rows a pass; at most {} fit", nodes,
                          rows, engine.options().max_rows);
  }
  if (!problem.empty()) {
    engine.remove_sequence(state_->sequence);
    throw Error(problem);
  }
}

Session::~Session() { state_->engine.remove_sequence(state_->sequence); }

const std::vector<Token>& Session::tokens() const { return state_->tokens; }
const DecodeStats& Session::stats() const { return state_->stats; }
int Session::context() const { return state_->engine.options().context; }

void Session::append(std::span<const Token> tokens) {
  State& s = *state_;
  const std::size_t limit = s.engine.options().context;
  if (s.tokens.size() + tokens.size() > limit) {
    throw Error(
        fmt::format("{} tokens do not fit into a context of {} ({} are taken); shorten the "
                    "prompt or ask for a larger context (-c)",
                    tokens.size(), limit, s.tokens.size()));
  }
  s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.end());
  if (tokens.empty()) return;
  s.drop_draft();
}

void Session::truncate(int length) {
  State& s = *state_;
  if (length >= static_cast<int>(s.tokens.size())) return;
  s.tokens.resize(length);
  s.engine.truncate(s.sequence, length);
  s.drop_draft();
}

void Session::release() {
  State& s = *state_;
  s.engine.truncate(s.sequence, 0);
  s.drop_draft();
}

/// Runs tokens that were given, but not the last, which is the root of the next pass.
void Session::State::prefill(int most_tokens) {
  const Stopwatch watch;
  const std::span<const Token> all(tokens);
  const int count = std::min(unseen() - 1, most_tokens);
  append_tokens(engine, sequence, all.subspan(engine.length(sequence), count));
  stats.prefill_seconds += watch.seconds();
}

bool Session::prefill_pass() {
  State& s = *state_;
  if (!is_reading()) return false;
  s.prefill(kPrefillRows);
  return is_reading();
}

bool Session::is_reading() const { return state_->unseen() > 1; }
int Session::most_decoded() const { return 1 + state_->extent.most_nodes(); }
int Session::seen() const { return state_->engine.length(state_->sequence); }

void Session::set_sampling(const SamplingOptions& sampling) { state_->options.sampling = sampling; }

/// Row 0 is the root, the last token; rows 1 .. N are the nodes of the tree.
std::vector<Row> Session::State::rows_of(const DraftTree& draft_tree) const {
  const int root_position = engine.length(sequence);
  std::vector<Row> rows = {{.sequence = sequence,
                            .position = root_position,
                            .parent = kContext,
                            .token = tokens.back()}};
  for (const DraftNode& node : draft_tree) {
    rows.push_back({.sequence = sequence,
                    .position = root_position + node.depth,
                    .parent = node.parent + 1,
                    .token = node.token});
  }
  return rows;
}

/// Walks from the root along the model's own choices, as far as the tree foresaw them, and gives
/// that path. Ends before a row that is too near a tie to be decided beside others; with no path
/// where that is the root.
std::vector<int> Session::State::walk(std::span<const Row> rows, int token_rows) {
  const std::vector<int> all = first_rows(token_rows);
  const int enough = tokens_to_sample_from(options.sampling);
  const std::size_t vocabulary = engine.config().vocabulary_size;
  const bool ties_matter = options.tie_margin > 0 && enough == 1 && rows.size() > 1;
  std::span<const BestTokens> best;
  std::span<const float> logits;
  if (enough > 0) {
    best = engine.best_tokens(all, ties_matter ? std::max(enough, 2) : enough);
  } else {
    logits = engine.logits(all);
  }
  const auto is_tie = [&](int row) {
    if (!ties_matter) return false;
    const std::vector<TokenLogit>& two = best[row].tokens;
    return two[0].logit - two[1].logit < options.tie_margin;
  };
  decoded.clear();
  std::vector<int> path;
  for (int row = 0, next = 0; next >= 0; row = next) {
    if (is_tie(row)) {
      alone = true;
      break;
    }
    path.push_back(row);
    const int position = static_cast<int>(tokens.size());
    const Token token = enough > 0
                            ? sample_token(best[row].tokens, kStream, position, options.sampling)
                            : sample_token(logits.subspan(row * vocabulary, vocabulary), tokens,
                                           kStream, position, options.sampling);
    tokens.push_back(token);
    next = -1;
    for (int child = row + 1; child < token_rows; ++child) {
      if (rows[child].parent == row && rows[child].token == token) next = child;
    }
    decoded.push_back({token, next >= 0});
  }
  return path;
}

/// The next pass has another root than the one that was drafted behind.
void Session::State::drop_draft() {
  tree.clear();
  alone = false;
  extent.forget_next();
}

/// Runs the pass that verifies `verified`, behind a root which is the last token, and commits the
/// path that it gives.
Session::State::Verified Session::State::verify(DraftTree verified) {
  const Stopwatch watch;
  const int context = engine.length(sequence);
  if (!alone) extent.cut(verified, context);
  std::vector<int> path;
  bool by_row_alone = false;
  while (path.empty()) {
    by_row_alone = std::exchange(alone, false);
    if (by_row_alone) verified.clear();
    std::vector<Row> rows = rows_of(verified);
    const int token_rows = static_cast<int>(rows.size());
    if (source && !by_row_alone) source->add_rows(rows, tokens);
    engine.forward(rows, source ? source->captured_layers() : std::vector<int>());
    path = walk(rows, token_rows);
    stats.forwards += 1;
    stats.tie_passes += by_row_alone ? 1 : 0;
    stats.drafted += static_cast<long long>(verified.size());
  }
  engine.commit(sequence, path);
  extent.observe_pass(verified, path, watch.seconds(), context, stats);
  return {path.back(), by_row_alone};
}

/// Drafts for the next pass. `context`: that of the last one.
void Session::State::draft(const Verified& last, int context) {
  const Stopwatch watch;
  DraftTree match;
  if (options.ngrams) {
    std::vector<Token> came;
    for (const DecodedToken& each : decoded) came.push_back(each.token);
    ngrams.observe(came);
    const int room = engine.options().context - static_cast<int>(tokens.size());
    match = ngrams.draft(tokens, std::min(room, extent.most_nodes()));
  }
  const bool in_pass = source && source->rows_a_pass(0) > 1;  // drafted by the verifying pass
  const bool can_draft = source && !alone && (!last.alone || !in_pass);
  if (can_draft && extent.decide_drafting(match, context, stats)) {
    tree = source->draft({.sequence = sequence,
                          .tokens = tokens,
                          .row = last.last_row,
                          .most_nodes = extent.most_nodes(),
                          .chain = options.chain,
                          .most_steps = extent.most_steps()});
    if (!in_pass) stats.drafting_passes += 1;
    extent.observe_drafting(watch.seconds());
  }
  if (!match.empty()) {
    tree = join(tree, match);
    tree.resize(std::min<std::size_t>(tree.size(), extent.most_nodes()));
  }
}

std::span<const DecodedToken> Session::step() {
  State& s = *state_;
  if (s.tokens.empty()) throw Error("there is nothing to continue: the prompt is empty");
  if (s.unseen() == 0) s.engine.truncate(s.sequence, static_cast<int>(s.tokens.size()) - 1);
  s.prefill(INT_MAX);
  const Stopwatch watch;
  const int context = s.engine.length(s.sequence);
  s.extent.begin();
  const State::Verified last = s.verify(std::exchange(s.tree, {}));
  s.draft(last, context);
  s.stats.tokens += static_cast<long long>(s.decoded.size());
  s.stats.decode_seconds += watch.seconds();
  return s.decoded;
}

double DecodeStats::tokens_per_second() const {
  return decode_seconds > 0 ? static_cast<double>(tokens) / decode_seconds : 0;
}
double DecodeStats::tokens_per_forward() const {
  return forwards > 0 ? static_cast<double>(tokens) / static_cast<double>(forwards) : 0;
}

DecodeStats& DecodeStats::operator+=(const DecodeStats& other) {
  tokens += other.tokens;
  forwards += other.forwards;
  drafted += other.drafted;
  drafting_passes += other.drafting_passes;
  tie_passes += other.tie_passes;
  expected_tokens += other.expected_tokens;
  expected_seconds += other.expected_seconds;
  prefill_seconds += other.prefill_seconds;
  decode_seconds += other.decode_seconds;
  return *this;
}

DecodeStats& DecodeStats::operator-=(const DecodeStats& other) {
  tokens -= other.tokens;
  forwards -= other.forwards;
  drafted -= other.drafted;
  drafting_passes -= other.drafting_passes;
  tie_passes -= other.tie_passes;
  expected_tokens -= other.expected_tokens;
  expected_seconds -= other.expected_seconds;
  prefill_seconds -= other.prefill_seconds;
  decode_seconds -= other.decode_seconds;
  return *this;
}

DecodeStats generate(Session& session, int max_tokens, const std::function<bool(Token)>& is_end,
                     const std::function<bool(const DecodedToken&)>& on_token) {
  const DecodeStats before = session.stats();
  const int room = session.context() - static_cast<int>(session.tokens().size());
  const int limit = std::min(max_tokens, room);
  int tokens = 0;
  bool going = true;
  const auto step = [&]() -> std::span<const DecodedToken> {
    try {
      return session.step();
    } catch (const Cancelled&) {
      going = false;
      return {};
    }
  };
  while (going && tokens < limit) {
    const std::size_t start = session.tokens().size();
    const std::span<const DecodedToken> decoded = step();
    std::size_t used = 0;
    while (going && used < decoded.size() && tokens < limit) {
      if (is_end(decoded[used].token)) {
        going = false;
        break;
      }
      going = on_token(decoded[used]);
      ++used;
      ++tokens;
    }
    if (used < decoded.size()) session.truncate(static_cast<int>(start + used));
  }
  DecodeStats stats = session.stats();
  stats -= before;
  stats.tokens = tokens;
  return stats;
}

}  // namespace firp
