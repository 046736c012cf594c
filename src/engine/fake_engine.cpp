#include "engine/fake_engine.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <stdexcept>

#include "base/error.h"

namespace firp {
namespace {

std::uint64_t mix(std::uint64_t a, std::uint64_t b) {  // SplitMix64's finaliser
  std::uint64_t x = a + 0x9E3779B97F4A7C15u * (b + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

/// In [0, 1).
float share(std::uint64_t a, std::uint64_t b) {
  return static_cast<float>(mix(a, b) >> 40) * 0x1.0p-24f;
}

}  // namespace

int FakeEngine::Ran::sequences() const {
  std::set<int> all;
  for (const Row& row : rows) all.insert(row.sequence);
  return static_cast<int>(all.size());
}
int FakeEngine::Ran::token_rows() const {
  return static_cast<int>(rows.size() - std::ranges::count_if(rows, &Row::is_pseudo));
}
int FakeEngine::Ran::decoders() const {
  std::set<int> all;
  for (const Row& row : rows) {
    if (row.decoded) all.insert(row.sequence);
  }
  return static_cast<int>(all.size());
}

FakeEngine::FakeEngine(const EngineOptions& options, const Traits& traits)
    : options_(checked(options)), traits_(traits) {
  config_.layers = kLayers;
  config_.vocabulary_size = traits.vocabulary;
  config_.hidden_size = static_cast<int>(written({}).size());
}

FakeEngine::Place FakeEngine::behind(Place place, Token token) {
  return {mix(place.hash, token), place.length + 1, token};
}
FakeEngine::Place FakeEngine::behind(std::span<const Token> tokens) {
  Place place;
  for (const Token token : tokens) place = behind(place, token);
  return place;
}

/// As a hidden state, whose values are exact.
std::vector<float> FakeEngine::written(const Place& place) {
  std::vector<float> state = {static_cast<float>(place.length), static_cast<float>(place.last)};
  for (int part = 0; part < 4; ++part) {
    state.push_back(static_cast<float>(place.hash >> (16 * part) & 0xFFFF));
  }
  return state;
}
FakeEngine::Place FakeEngine::read(std::span<const float> state) {
  Place place = {0, static_cast<int>(state[0]), static_cast<Token>(state[1])};
  for (int part = 0; part < 4; ++part) {
    place.hash |= static_cast<std::uint64_t>(state[2 + part]) << (16 * part);
  }
  return place;
}

std::vector<float> FakeEngine::logits_of(const Place& place, std::uint64_t noise) const {
  std::vector<float> logits(traits_.vocabulary);
  for (std::size_t token = 0; token < logits.size(); ++token) {
    logits[token] = 3 * share(place.last, token) + share(place.hash, token);
    if (noise > 0) logits[token] += traits_.rounding * (share(place.hash ^ noise, token) - 0.5f);
  }
  return logits;
}

BestTokens FakeEngine::best_of(std::span<const float> logits, int count) const {
  BestTokens best;
  float sum = 0;
  for (std::size_t token = 0; token < logits.size(); ++token) {
    best.tokens.push_back({static_cast<Token>(token), logits[token]});
    sum += std::exp(logits[token]);
  }
  best.log_sum = std::log(sum);
  std::ranges::stable_sort(best.tokens, std::greater{}, &TokenLogit::logit);
  best.tokens.resize(std::min<std::size_t>(best.tokens.size(), count));
  return best;
}

/// What the pseudo row of `step` behind `anchor` proposes: as if all before were the likeliest.
BestTokens FakeEngine::candidates(const Place& anchor, int step) const {
  Place place = anchor;
  BestTokens best = best_of(logits_of(place, 0), kRankedCandidates);
  for (int each = 1; each <= step; ++each) {
    place = behind(place, best.tokens.front().token);
    best = best_of(logits_of(place, 0), kRankedCandidates);
  }
  if (share(place.hash, 1000) >= traits_.draft_accuracy) best.tokens.erase(best.tokens.begin());
  return best;
}

std::optional<FakeEngine::Fault> FakeEngine::fault(Call call) {
  const auto due = faults_.find(call);
  if (due == faults_.end() || --due->second.calls > 0) return std::nullopt;
  const Fault kind = due->second.kind;
  faults_.erase(due);
  if (kind == Fault::kCancelled) throw Cancelled();
  if (kind == Fault::kError) throw Error("a fault that was asked for");
  return kind;
}

void FakeEngine::run(const Batch& batch) {
  fault(Call::kRun);
  places_.clear();
  states_.clear();
  for (std::size_t i = 0; i < batch.rows.size(); ++i) {
    const Row& row = batch.rows[i];
    const std::vector<Token>& context = cache_.at(row.sequence);
    if (!std::ranges::equal(context, contexts().tokens(row.sequence))) {
      throw std::logic_error("FakeEngine: a context is not what was committed");
    }
    Place place = row.parent == kContext ? behind(context) : places_[row.parent];
    if (!row.source.empty() && read(row.source) != place) {
      throw std::logic_error("FakeEngine: a source that is not of the sequence's last token");
    }
    if (!row.is_pseudo()) place = behind(place, row.token);
    if (batch.positions[i] != place.length - 1 + row.step) {
      throw std::logic_error("FakeEngine: a wrong position");
    }
    places_.push_back(place);
    if (!batch.skipped.empty()) place.hash = mix(place.hash, batch.skipped.size());
    states_.push_back(written(place));
  }
  noise_ = traits_.rounding > 0 && batch.rows.size() > 1 ? batch.rows.size() : 0;
  passes.push_back({.rows = {batch.rows.begin(), batch.rows.end()},
                    .captured = {batch.capture_layers.begin(), batch.capture_layers.end()}});
}

std::span<const float> FakeEngine::hidden(int row, int layer) const {
  if (std::ranges::count(passes.back().captured, layer) == 0) bad_batch("not captured");
  return states_.at(row);
}

std::vector<float> FakeEngine::row_logits(int row, std::optional<Fault> fault) const {
  std::vector<float> logits = logits_of(read(states_.at(row)), noise_);
  if (fault) std::ranges::fill(logits, std::numeric_limits<float>::quiet_NaN());
  return logits;
}

std::span<const float> FakeEngine::logits(std::span<const int> rows) {
  const std::optional<Fault> nan = fault(Call::kHead);
  logits_.clear();
  for (const int row : rows) {
    const std::vector<float> of_row = row_logits(row, nan);
    logits_.insert(logits_.end(), of_row.begin(), of_row.end());
  }
  return logits_;
}

std::span<const BestTokens> FakeEngine::best_tokens(std::span<const int> rows, int count,
                                                    bool /*log_sums*/) {
  const std::optional<Fault> nan = fault(Call::kHead);
  best_.clear();
  for (const int row : rows) best_.push_back(best_of(row_logits(row, nan), count));
  return best_;
}

std::vector<Proposal> FakeEngine::propose(std::span<const std::vector<int>> anchors) {
  std::vector<Proposal> proposals;
  for (const std::vector<int>& pseudo_rows : anchors) {
    std::vector<BestTokens> best;
    for (const int row : pseudo_rows) {
      best.push_back(candidates(places_.at(row), passes.back().rows.at(row).step));
    }
    proposals.emplace_back(std::move(best));
  }
  return proposals;
}

void FakeEngine::commit(int sequence, std::span<const int> path) {
  fault(Call::kCommit);
  for (const int row : path) cache_.at(sequence).push_back(passes.back().rows[row].token);
}

void FakeEngine::add_context(int sequence) {
  if (!cache_.try_emplace(sequence).second) throw std::logic_error("FakeEngine: added twice");
}
void FakeEngine::remove_context(int sequence) {
  if (cache_.erase(sequence) == 0) throw std::logic_error("FakeEngine: removed twice");
}
void FakeEngine::truncate_context(int sequence, int length) { cache_.at(sequence).resize(length); }
void FakeEngine::share_context(int from, int to, int length) {
  if (!cache_.at(to).empty()) throw std::logic_error("FakeEngine: shared into a context");
  const std::vector<Token>& source = cache_.at(from);
  cache_.at(to).assign(source.begin(), source.begin() + length);
}

}  // namespace firp
