#include "decode/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cmath>
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

}  // namespace

struct Session::State {
  Engine& engine;
  DecodeOptions options;
  const std::unique_ptr<DraftSource> source;
  const int sequence;
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
  int most_nodes() const { return options.planner ? Planner::kMostNodes : options.tree_nodes; }
};

Session::Session(Engine& engine, const DecodeOptions& options)
    : state_(new State{engine, options, make_source(engine, options), engine.add_sequence()}) {
  const bool drafts = state_->source || options.ngrams;
  const int nodes = state_->most_nodes();
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
  s.tree.clear();
  s.alone = false;
}

void Session::truncate(int length) {
  State& s = *state_;
  if (length >= static_cast<int>(s.tokens.size())) return;
  s.tokens.resize(length);
  s.engine.truncate(s.sequence, length);
  s.tree.clear();
  s.alone = false;
}

void Session::release() {
  State& s = *state_;
  s.engine.truncate(s.sequence, 0);
  s.tree.clear();
  s.alone = false;
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

std::span<const DecodedToken> Session::step() {
  State& s = *state_;
  if (s.tokens.empty()) throw Error("there is nothing to continue: the prompt is empty");
  if (s.unseen() == 0) s.engine.truncate(s.sequence, static_cast<int>(s.tokens.size()) - 1);
  s.prefill(INT_MAX);
  const Stopwatch watch;
  const int root_position = s.engine.length(s.sequence);
  Planner* const planner = s.options.planner;

  DraftTree tree = std::move(s.tree);
  s.tree.clear();
  if (planner != nullptr && !s.alone) {
    tree.resize(planner->nodes_worth_verifying(tree, root_position));
  }
  std::vector<Row> rows;
  std::vector<int> path;
  int token_rows = 0;
  bool with_source = false;
  while (path.empty()) {
    const bool alone = std::exchange(s.alone, false);
    if (alone) tree.clear();
    rows = s.rows_of(tree);
    token_rows = static_cast<int>(rows.size());
    with_source = s.source && !alone;
    if (with_source) s.source->add_rows(rows, s.tokens);
    s.engine.forward(rows, s.source ? s.source->captured_layers() : std::vector<int>());
    path = s.walk(rows, token_rows);
    s.stats.forwards += 1;
    s.stats.tie_passes += alone ? 1 : 0;
    s.stats.drafted += static_cast<long long>(tree.size());
  }

  s.engine.commit(s.sequence, path);
  if (planner != nullptr) {
    s.stats.expected_tokens += planner->expected_tokens(tree);
    s.stats.expected_seconds += planner->verify_seconds(token_rows, root_position);
    std::vector<int> accepted;
    for (const int row : std::span(path).subspan(1)) accepted.push_back(row - 1);
    planner->observe_pass(tree, accepted, watch.seconds(), root_position);
  }

  // Drafts for the next pass.
  const double verify_seconds = watch.seconds();
  DraftTree match;
  if (s.options.ngrams) {
    std::vector<Token> came;
    for (const DecodedToken& each : s.decoded) came.push_back(each.token);
    s.ngrams.observe(came);
    const int room = s.engine.options().context - static_cast<int>(s.tokens.size());
    match = s.ngrams.draft(s.tokens, std::min(room, s.most_nodes()));
  }
  const bool in_pass = s.source && s.source->rows_a_pass(0) > 1;  // drafted by the verifying pass
  if (s.source && !s.alone && (with_source || !in_pass) &&
      (planner == nullptr || planner->drafts(match, root_position))) {
    if (planner != nullptr) s.stats.expected_seconds += planner->draft_seconds();
    s.tree = s.source->draft({.sequence = s.sequence,
                              .tokens = s.tokens,
                              .row = path.back(),
                              .most_nodes = s.most_nodes(),
                              .chain = s.options.chain,
                              .most_steps = planner != nullptr ? planner->steps() : INT_MAX});
    if (!in_pass) s.stats.drafting_passes += 1;
    if (planner != nullptr) planner->observe_drafting(watch.seconds() - verify_seconds);
  }
  if (!match.empty()) {
    s.tree = join(s.tree, match);
    s.tree.resize(std::min<std::size_t>(s.tree.size(), s.most_nodes()));
  }
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
