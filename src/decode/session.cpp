#include "decode/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/error.h"
#include "decode/batch_decoder.h"
#include "draft/draft_model.h"
#include "draft/lookahead.h"

namespace firp {
namespace {

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

/// `best` holds the token, and as many of the likeliest as there are to be.
TokenProbability probability_of(Token token, const BestTokens& best, int likeliest) {
  TokenProbability probability;
  const auto at = std::ranges::find(best.tokens, token, &TokenLogit::token);
  probability.log_probability = at->logit - best.log_sum;
  for (const TokenLogit& each :
       std::span(best.tokens).first(std::min<std::size_t>(best.tokens.size(), likeliest))) {
    probability.likeliest.push_back({each.token, each.logit - best.log_sum});
  }
  return probability;
}

TokenProbability probability_of(Token token, std::span<const float> logits, int likeliest) {
  const float greatest = std::ranges::max(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit} - greatest);
  BestTokens best = {.tokens = {}, .log_sum = static_cast<float>(greatest + std::log(sum))};
  for (std::size_t i = 0; i < logits.size(); ++i) {
    best.tokens.push_back({static_cast<Token>(i), logits[i]});
  }
  const auto end = best.tokens.begin() + std::min<std::ptrdiff_t>(likeliest, std::ssize(logits));
  std::ranges::partial_sort(best.tokens, end, likelier);
  return probability_of(token, best, likeliest);
}

/// The token is one of those that have a share.
TokenProbability probability_of(Token token, std::vector<TokenShare> shares, int likeliest) {
  std::ranges::stable_sort(shares, std::ranges::greater{}, &TokenShare::probability);
  TokenProbability probability;
  for (const TokenShare& each : shares) {
    const auto log_probability = static_cast<float>(std::log(each.probability));
    if (each.token == token) probability.log_probability = log_probability;
    if (std::ssize(probability.likeliest) < likeliest && each.probability > 0) {
      probability.likeliest.push_back({each.token, log_probability});
    }
  }
  return probability;
}

/// For a token that is sampled anew, as the first one was forbidden: a random number of its own.
SamplingOptions anew(SamplingOptions sampling) {
  constexpr int kAnew = 1 << 29;
  sampling.stream += kAnew;
  return sampling;
}

}  // namespace

Session::Session(BatchDecoder& decoder, const DecodeOptions& options)
    : decoder_(decoder),
      engine_(decoder.engine()),
      options_(options),
      source_(make_source(engine_, options)),
      sequence_(engine_.add_sequence()) {
  if (options.pooling) pooled_.emplace(*options.pooling);
  const bool drafts = source_ || options.ngrams;
  const int nodes = most_decoded() - 1;
  std::string problem;
  if (drafts && options.tree_nodes < 1) {
    problem = "a draft tree needs at least 1 node";
  } else if (drafts && rows_with(nodes) > engine_.options().max_rows) {
    problem = fmt::format("a draft tree of {} nodes needs {} rows a pass; at most {} fit", nodes,
                          rows_with(nodes), engine_.options().max_rows);
  }
  if (problem.empty()) return;
  engine_.remove_sequence(sequence_);
  throw Error(problem);
}

Session::~Session() {
  if (pooled_) {
    engine_.remove_sequence(sequence_);
  } else {
    engine_.retire_sequence(sequence_);
  }
}

int Session::seen() const { return engine_.length(sequence_); }
int Session::context() const { return engine_.options().context; }
int Session::most_decoded() const {
  if (pooled_) return 0;
  return 1 + (decoder_.planner() != nullptr ? kMostPlannedNodes : options_.tree_nodes);
}
int Session::rows_with(int nodes) const {
  return source_ ? source_->rows_a_pass(nodes) : 1 + nodes;
}

void Session::append(std::span<const Token> tokens) {
  const std::size_t limit = context();
  if (tokens_.size() + tokens.size() > limit) {
    throw Error(
        fmt::format("{} tokens do not fit into a context of {} ({} are taken); shorten the "
                    "prompt or ask for a larger context (-c)",
                    tokens.size(), limit, tokens_.size()));
  }
  if (tokens.empty()) return;
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  answer_begin_ = static_cast<int>(tokens_.size());
  grammar_.reset();
  states_.resize(tokens_.size(), state());  // samplers learn from what they chose
  drop_draft();
}

void Session::truncate(int length) {
  if (length >= static_cast<int>(tokens_.size())) return;
  tokens_.resize(length);
  answer_begin_ = std::min(answer_begin_, length);
  states_.resize(length, state());
  most_seen_ = std::min(most_seen_, length);
  engine_.truncate(sequence_, length);
  if (pooled_) release();  // what is pooled cannot be taken apart
  drop_draft();
}

void Session::release() {
  engine_.truncate(sequence_, 0);
  if (pooled_) pooled_->clear();
  drop_draft();
}

/// The next pass has another root than the one that was drafted behind.
void Session::drop_draft() {
  tree_.clear();
  alone_ = false;
  if (plan_) Planner::forget_next(*plan_);
}

std::span<const DecodedToken> Session::step() {
  Session* const self = this;
  do {
    decoder_.step({&self, 1});
  } while (decoded_.empty());
  return decoded_;
}

/// Brings the grammar behind the last token.
void Session::catch_up_grammar() {
  if (!options_.grammar) return;
  const auto length = static_cast<int>(tokens_.size());
  if (!grammar_ || grammar_end_ > length) {
    grammar_ = *options_.grammar;
    grammar_end_ = answer_begin_;
  }
  for (; grammar_end_ < length; ++grammar_end_) grammar_->accept(tokens_[grammar_end_]);
}

/// The last token is always run: it is the root of the next pass that decodes, or its state is
/// asked for.
void Session::begin_pass() {
  if (tokens_.empty()) throw Error("there is nothing to continue: the prompt is empty");
  catch_up_grammar();
  const int most = to_read();
  if (seen() > most) engine_.truncate(sequence_, most);
  if (!adopts() || seen() == most) return;
  most_seen_ = std::max(most_seen_, seen());
  const int now = engine_.adopt(sequence_, std::span(tokens_).first(most));
  adopted_ += std::max(0, now - most_seen_);
  most_seen_ = std::max(most_seen_, now);
}

Session::Part Session::plan_reading(int tokens, std::vector<Row>& rows) {
  Part part = {.session = this,
               .context = seen(),
               .first_row = static_cast<int>(rows.size()),
               .token_rows = tokens,
               .reads = true};
  for (int i = 0; i < tokens; ++i) {
    part.path.push_back(part.first_row + i);
    rows.push_back({.sequence = sequence_,
                    .parent = i == 0 ? kContext : part.first_row + i - 1,
                    .token = tokens_[part.context + i],
                    .decoded = pooled_.has_value() || options_.tells_prompt});
  }
  return part;
}

/// The root, which is the last token, the first `nodes` of the tree, and what the source adds.
Session::Part Session::plan_verifying(int nodes, std::vector<Row>& rows) {
  Part part = {.session = this,
               .context = seen(),
               .first_row = static_cast<int>(rows.size()),
               .token_rows = 1 + nodes,
               .alone = alone_,
               .tree = {tree_.begin(), tree_.begin() + nodes},
               .grammar = grammar_};
  rows.push_back({.sequence = sequence_, .token = tokens_.back()});
  for (const DraftNode& node : part.tree) {
    rows.push_back(
        {.sequence = sequence_, .parent = part.first_row + node.parent + 1, .token = node.token});
  }
  if (source_ && !alone_) source_->add_rows(rows, part.first_row, tokens_);
  return part;
}

/// Of the samplers, behind the last token.
SamplerState Session::state() const {
  return states_.empty() ? SamplerState(options_.sampling) : states_.back();
}

/// Walks from the root along the model's own choices, as far as the tree foresaw them: the path.
/// `choose` gives the token behind a row, the first of the part being 0; nullopt ends the walk
/// before that row. It ends with the context, too, where there is no room for what comes next.
template <typename Choose>
void Session::walk(Part& part, const Choose& choose) const {
  for (int row = 0, next = 0; next >= 0; row = next) {
    const auto length = static_cast<int>(tokens_.size() + part.decoded.size());
    if (row > 0 && length >= context()) return;
    const std::optional<Token> token = choose(row);
    if (!token) {
      part.ends_at_tie = true;
      return;
    }
    part.path.push_back(part.first_row + row);
    next = -1;
    for (int node = row; node < std::ssize(part.tree); ++node) {
      if (part.tree[node].parent == row - 1 && part.tree[node].token == *token) next = node + 1;
    }
    part.decoded.push_back({*token, next >= 0});
    if (part.grammar) part.grammar->accept(*token);
  }
}

/// Whether best tokens alone don't tell what comes next.
bool Session::needs_logits() const {
  return tokens_to_sample_from(options_.sampling) == 0 ||
         (options_.likeliest >= 0 && (may_forbid() || options_.after_sampling));
}

/// Of each of its rows.
int Session::best_tokens_needed(const Pass& pass) const {
  // Where the likeliest token is forbidden, one of the next as a rule is not.
  constexpr int kWithGrammar = 8;
  return std::max({tokens_to_sample_from(options_.sampling), options_.likeliest,
                   ties_matter(pass) ? 2 : 1, may_forbid() ? kWithGrammar : 1});
}

/// Beside other rows, a row that is too near a tie cannot be decided.
bool Session::ties_matter(const Pass& pass) const {
  return options_.tie_margin > 0 && tokens_to_sample_from(options_.sampling) == 1 &&
         pass.rows() > 1;
}

/// By the best tokens of the part's token rows.
void Session::choose(Part& part, const Pass& pass, std::span<const BestTokens> best) const {
  const std::size_t enough = tokens_to_sample_from(options_.sampling);
  const bool ties = ties_matter(pass);
  // As far as penalties look back.
  const auto last =
      std::min<std::ptrdiff_t>(std::ssize(tokens_), std::max(0, options_.sampling.repeat_last_n));
  std::vector<Token> history(tokens_.end() - last, tokens_.end());
  SamplerState state = this->state();
  walk(part, [&](int row) -> std::optional<Token> {
    const std::span<const TokenLogit> of_row = best[row].tokens;
    const auto allowed = [&](Token each) { return allows(part, each); };
    if (ties &&
        (of_row[0].logit - of_row[1].logit < options_.tie_margin || !allowed(of_row[0].token))) {
      return std::nullopt;
    }
    const auto position = static_cast<int>(tokens_.size() + part.decoded.size());
    const SamplerState before = state;
    Token token = sample_token(of_row.first(std::min(enough, of_row.size())), history, position,
                               options_.sampling, state);
    if (!allowed(token)) {
      const auto next =
          enough == 1 ? std::ranges::find_if(of_row, allowed, &TokenLogit::token) : of_row.end();
      if (next != of_row.end()) {
        token = next->token;
      } else {
        const int row_of_pass = part.first_row + row;
        state = before;
        token = sample_token(allowed_logits(part, pass.logits({&row_of_pass, 1})), history,
                             position, anew(options_.sampling), state);
      }
    }
    history.push_back(token);
    part.states.push_back(state);
    if (options_.likeliest >= 0) {
      part.probabilities.push_back(probability_of(token, best[row], options_.likeliest));
    }
    return token;
  });
}

/// Whether the token may stand behind what the part has decoded.
bool Session::allows(const Part& part, Token token) const {
  const auto written = static_cast<int>(tokens_.size() + part.decoded.size()) - answer_begin_;
  if (written < options_.min_tokens && std::ranges::count(options_.end_tokens, token) > 0) {
    return false;
  }
  return !part.grammar || part.grammar->allows(token);
}

/// What may not stand behind what the part has decoded has -infinity.
std::vector<float> Session::allowed_logits(const Part& part, std::span<const float> logits) const {
  std::vector<float> allowed(logits.begin(), logits.end());
  if (part.grammar) part.grammar->mask(allowed);
  for (const Token token : options_.end_tokens) {
    if (!allows(part, token)) allowed[token] = -std::numeric_limits<float>::infinity();
  }
  if (std::ranges::none_of(allowed, [](float logit) { return std::isfinite(logit); })) {
    throw Error("the grammar allows nothing that this model's tokens can write");
  }
  return allowed;
}

/// By all logits of the part's token rows.
void Session::choose(Part& part, std::span<const float> logits) const {
  const std::size_t vocabulary = engine_.config().vocabulary_size;
  std::vector<Token> history = tokens_;
  SamplerState state = this->state();
  walk(part, [&](int row) -> std::optional<Token> {
    const std::span<const float> of_row = logits.subspan(row * vocabulary, vocabulary);
    const auto position = static_cast<int>(history.size());
    const SamplerState before = state;
    std::span<const float> from = of_row;
    std::vector<float> allowed;
    Token token = sample_token(from, history, position, options_.sampling, state);
    if (!allows(part, token)) {
      state = before;
      from = allowed = allowed_logits(part, of_row);
      token = sample_token(from, history, position, anew(options_.sampling), state);
    }
    if (options_.likeliest >= 0 && options_.after_sampling) {
      part.probabilities.push_back(
          probability_of(token, distribution(from, history, position, options_.sampling, before),
                         options_.likeliest));
    } else if (options_.likeliest >= 0) {
      part.probabilities.push_back(probability_of(token, of_row, options_.likeliest));
    }
    history.push_back(token);
    part.states.push_back(state);
    return token;
  });
}

/// What the model says of the tokens behind those that the part reads.
void Session::tell_prompt(Part& part, const Pass& pass) const {
  constexpr int kRowsAtOnce = 16;  // each has a logit for every token of the vocabulary
  const std::size_t vocabulary = engine_.config().vocabulary_size;
  for (int first = 0; first < part.token_rows; first += kRowsAtOnce) {
    const int count = std::min(kRowsAtOnce, part.token_rows - first);
    const std::span<const float> logits = pass.logits(std::span(part.path).subspan(first, count));
    for (int i = 0; i < count; ++i) {
      part.probabilities.push_back(probability_of(tokens_[part.context + first + i + 1],
                                                  logits.subspan(i * vocabulary, vocabulary),
                                                  options_.likeliest));
    }
  }
}

/// Takes in what its part of the pass read.
void Session::absorb_reading(Part& part, const Pass& pass) {
  if (pooled_) {
    for (const int row : part.path) pooled_->add(pass.final_state(row));
  }
  // One that gave up its place reads again what it has told of.
  const int told = static_cast<int>(prompt_probabilities_.size()) - part.context;
  for (int i = std::max(told, 0); i < std::ssize(part.probabilities); ++i) {
    prompt_probabilities_.push_back(std::move(part.probabilities[i]));
  }
}

/// Takes in what its part of the pass decoded.
void Session::absorb(Part& part) {
  for (const DecodedToken& each : part.decoded) tokens_.push_back(each.token);
  grammar_ = std::move(part.grammar);
  grammar_end_ = static_cast<int>(tokens_.size());
  states_.insert(states_.end(), part.states.begin(), part.states.end());
  alone_ = part.ends_at_tie;
  tree_.clear();
  stats_.forwards += 1;
  stats_.tie_passes += part.alone ? 1 : 0;
  stats_.drafted += std::ssize(part.tree);
  stats_.tokens += std::ssize(part.decoded);
  decoded_ = part.decoded;
  probabilities_ = part.probabilities;
  verified_ = {part.tree, {}};
  for (std::size_t i = 1; i < part.path.size(); ++i) {
    verified_.accepted.push_back(part.path[i] - part.first_row - 1);
  }
}

std::vector<float> Session::embedding() const {
  std::vector<float> values = pooled_->values();
  if (!std::ranges::all_of(values, [](float value) { return std::isfinite(value); })) {
    refuse_logits();
  }
  return values;
}

/// Whether the source can draft behind the part's path, which ended.
bool Session::can_draft(const Part& part) const {
  return source_ && !alone_ && !(part.alone && source_->drafts_in_pass());
}

/// What the text itself has behind its last token.
DraftTree Session::match_text() {
  if (!options_.ngrams) return {};
  std::vector<Token> came;
  for (const DecodedToken& each : decoded_) came.push_back(each.token);
  ngrams_.observe(came);
  const int room = context() - static_cast<int>(tokens_.size());
  return ngrams_.draft(tokens_, std::min(room, most_decoded() - 1));
}

/// What the grammar leaves no choice about behind the last token.
DraftTree Session::forced_text() const {
  // A single token would be drafted by others, too, and more behind it.
  constexpr int kWorthDrafting = 2;
  if (!grammar_ || (!source_ && !options_.ngrams)) return {};
  const int room = context() - static_cast<int>(tokens_.size());
  const std::vector<Token> tokens = grammar_->forced(std::min(room, most_decoded() - 1));
  DraftTree tree;
  if (std::ssize(tokens) < kWorthDrafting) return tree;
  for (int depth = 1; depth <= std::ssize(tokens); ++depth) {
    tree.push_back({.token = tokens[depth - 1], .parent = depth - 2, .depth = depth});
  }
  return tree;
}

void Session::take_draft(DraftTree tree, const DraftTree& match) {
  tree_ = match.empty() ? std::move(tree) : join(tree, match);
  if (grammar_) tree_ = allowed_part(tree_, *grammar_);
  tree_.resize(std::min<std::size_t>(tree_.size(), most_decoded() - 1));
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
      return session.decoded();  // what it decoded before its drafting was interrupted
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
