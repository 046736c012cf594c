#include "engine/native_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <stdexcept>

#include "engine/draft_head.h"
#include "engine/forward.h"
#include "model/error.h"

namespace firp {
namespace {

/// Heads made ready for an engine.
struct PackedHeads {
  HeadsMethod method;
  std::vector<PackedMap> maps;
  std::vector<PackedAdapter> adapters;
  std::vector<std::int32_t> vocabulary;  ///< that pseudo rows draft from; empty: all tokens
  DraftWeights weights;
  DraftHead head;
};

}  // namespace

struct NativeEngine::State {
  State(const Model& m, const EngineOptions& o)
      : model(m),
        options(checked(o)),
        kernels(default_kernels()),
        pool(options.threads),
        weights(m, pool, options.packed_cache),
        cache(m.config(), o.cache_type, options.max_rows + kPagePositions - 1),
        pass(m, weights, kernels, cache, pool, options.max_rows, options.context) {}

  /// Where the rows are in the pass's order, to be asked for what the head gives.
  std::vector<int> decoded(std::span<const int> asked) const;
  std::span<const PackedMap> maps() const {
    return heads ? std::span<const PackedMap>(heads->maps) : std::span<const PackedMap>();
  }

  const Model& model;
  const EngineOptions options;
  const Kernels& kernels;
  ThreadPool pool;
  Weights weights;
  std::optional<PackedHeads> heads;
  KvCache cache;
  ForwardPass pass;

  bool complete = false;  ///< the last pass left nothing out
  // The last pass: its rows in the caller's order, and where each of them is in the pass's order.
  std::vector<Row> rows;
  std::vector<int> index_of;
  std::vector<PassRow> pass_rows;
  std::vector<float> logits;
  std::vector<BestTokens> best;
};

NativeEngine::NativeEngine(const Model& model, const EngineOptions& options)
    : state_(std::make_unique<State>(model, options)) {}
NativeEngine::~NativeEngine() = default;
NativeEngine::NativeEngine(NativeEngine&&) noexcept = default;

const ModelConfig& NativeEngine::config() const { return state_->model.config(); }
const EngineOptions& NativeEngine::options() const { return state_->options; }
const char* NativeEngine::isa() const { return state_->kernels.isa; }
std::size_t NativeEngine::weight_bytes() const { return state_->weights.bytes(); }

void NativeEngine::set_heads(const Heads& heads) {
  check_fits(heads);
  const int d = config().hidden_size;
  const auto size = static_cast<std::size_t>(d);
  State& s = *state_;
  const bool rough = s.options.rough_drafts;
  const ggml_type map_type =
      rough && d % ggml_blck_size(kRoughMapType) == 0 ? kRoughMapType : GGML_TYPE_F16;
  std::vector<PackedMap> maps;
  for (const DraftMap& map : heads.steps) {
    if (map.token.empty()) {
      maps.push_back({map.layer, pack_values(map.weight, d, d, map_type), map.bias});
      continue;
    }
    std::vector<float> both;  // W and T side by side: one product
    for (std::size_t output = 0; output < size; ++output) {
      both.insert(both.end(), &map.weight[output * size], &map.weight[output * size] + size);
      both.insert(both.end(), &map.token[output * size], &map.token[output * size] + size);
    }
    maps.push_back({map.layer, pack_values(both, d, 2 * d, map_type), map.bias});
  }
  std::vector<PackedAdapter> adapters;
  for (const Adapter& adapter : heads.adapters) {
    adapters.push_back({adapter.layer, pack_values(adapter.down, adapter.rank, d, GGML_TYPE_F16),
                        pack_values(adapter.up, d, adapter.rank, GGML_TYPE_F16)});
  }
  // Rows that may run beside tokens, or may not, must draft the same both ways: in exact layers.
  const int first_layer = heads.has_token_input()
                              ? std::ranges::min_element(maps, {}, &PackedMap::layer)->layer
                              : config().layers;
  s.heads.emplace(PackedHeads{
      .method = heads.method,
      .maps = std::move(maps),
      .adapters = std::move(adapters),
      .vocabulary = heads.draft_vocabulary,
      .weights = DraftWeights(s.model, s.weights, first_layer, heads.draft_vocabulary, rough,
                              s.pool, s.options.packed_cache),
      .head = DraftHead(s.model.token_embedding(), s.model.head(), heads, s.kernels, s.pool)});
}

int NativeEngine::draft_steps() const { return static_cast<int>(state_->maps().size()); }
bool NativeEngine::token_input() const {
  return draft_steps() > 0 && state_->maps().front().reads_token(config().hidden_size);
}
bool NativeEngine::medusa() const {
  return draft_steps() > 0 && state_->heads->method == HeadsMethod::kMedusa;
}
int NativeEngine::draft_layer(int step) const { return state_->heads->maps.at(step - 1).layer; }

int NativeEngine::add_sequence() { return state_->cache.add_sequence(); }
void NativeEngine::remove_sequence(int sequence) { state_->cache.remove_sequence(sequence); }
bool NativeEngine::has_sequence(int sequence) const { return state_->cache.has_sequence(sequence); }
int NativeEngine::length(int sequence) const { return state_->cache.length(sequence); }
void NativeEngine::truncate(int sequence, int length) { state_->cache.truncate(sequence, length); }

void NativeEngine::forward(std::span<const Row> rows, std::span<const int> capture_layers,
                           std::span<const Sublayer> skipped) {
  State& s = *state_;
  check_batch(rows, capture_layers, skipped);
  s.complete = false;
  s.rows.assign(rows.begin(), rows.end());

  const auto entry_layer = [&](const Row& row) {
    return row.is_pseudo() ? s.maps()[row.step - 1].layer : 0;
  };
  std::vector<int> order(rows.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {},
                           [&](int i) { return std::pair(entry_layer(rows[i]), rows[i].step); });
  s.index_of.resize(rows.size());
  for (std::size_t index = 0; index < order.size(); ++index) {
    s.index_of[order[index]] = static_cast<int>(index);
  }

  s.pass_rows.resize(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Row& row = rows[i];
    PassRow& to = s.pass_rows[s.index_of[i]];
    to.sequence = row.sequence;
    to.position = row.position;
    to.token = row.token;
    to.step = row.step;
    to.token_behind = row.token_behind;
    to.entry_layer = entry_layer(row);
    to.source = row.source.empty() ? nullptr : row.source.data();
    to.source_row = -1;
    to.path.clear();
    const Row* const parent = row.parent == kContext ? nullptr : &rows[row.parent];
    if (parent != nullptr) to.path = s.pass_rows[s.index_of[row.parent]].path;
    to.path.insert(to.path.end(), steps_left_out(row, parent), kNoRow);
    to.path.push_back(s.index_of[i]);
    if (row.is_pseudo() && to.source == nullptr) to.source_row = *(to.path.end() - 1 - row.step);
  }
  const bool only_drafts = std::ranges::all_of(rows, &Row::is_pseudo);
  const bool rough = only_drafts && !s.heads->weights.layers.empty();
  s.pass.run({.rows = s.pass_rows,
              .layers = rough ? s.heads->weights.layers : s.weights.layers,
              .head = only_drafts ? s.heads->weights.head : s.weights.head,
              .maps = s.maps(),
              .adapters = s.heads ? s.heads->adapters : std::span<const PackedAdapter>(),
              .medusa = medusa(),
              .capture_layers = capture_layers,
              .skipped = skipped,
              .cancelled = s.options.cancelled});
  s.complete = skipped.empty();
}

std::span<const float> NativeEngine::hidden(int row, int layer) const {
  const float* const state = state_->pass.captured(state_->index_of.at(row), layer);
  if (state == nullptr) bad_batch("that hidden state was not captured");
  return {state, static_cast<std::size_t>(config().hidden_size)};
}

std::span<const float> NativeEngine::final_state(int row) const {
  return state_->pass.final_state(state_->index_of.at(row));
}

std::vector<int> NativeEngine::State::decoded(std::span<const int> asked) const {
  std::vector<int> indices;
  for (const int row : asked) {
    if (!rows.at(row).decoded) bad_batch("a row that was not to be decoded");
    indices.push_back(index_of[row]);
  }
  return indices;
}

std::span<const float> NativeEngine::logits(std::span<const int> rows) {
  State& s = *state_;
  s.logits.resize(rows.size() * static_cast<std::size_t>(config().vocabulary_size));
  s.pass.run_head(s.weights.head, s.decoded(rows), s.logits);
  return s.logits;
}

std::span<const BestTokens> NativeEngine::best_tokens(std::span<const int> rows, int count,
                                                      bool log_sums) {
  State& s = *state_;
  s.best.resize(rows.size());
  s.pass.best_of_head(s.weights.head, s.decoded(rows), count, log_sums, s.best);
  for (const BestTokens& row : s.best) {
    if (row.tokens.empty() || !std::isfinite(row.tokens.front().logit)) refuse_logits();
  }
  return s.best;
}

void NativeEngine::propose(std::span<const int> pseudo_rows) {
  State& s = *state_;
  PackedHeads& heads = *s.heads;
  const std::vector<int> indices = s.decoded(pseudo_rows);
  s.best.resize(indices.size());
  s.pass.best_of_head(heads.weights.head, indices, kRankedCandidates, /*sums=*/true, s.best);
  std::vector<std::span<const float>> states;
  for (std::size_t i = 0; i < indices.size(); ++i) {
    states.push_back(s.pass.final_state(indices[i]));
    if (heads.vocabulary.empty()) continue;
    for (TokenLogit& each : s.best[i].tokens) each.token = heads.vocabulary[each.token];
  }
  heads.head.propose(s.best, states);
}

std::vector<std::vector<Candidate>> NativeEngine::drafts_behind(int step,
                                                                std::span<const Token> previous) {
  return state_->heads->head.drafts_behind(step, previous);
}

void NativeEngine::commit(int sequence, std::span<const int> rows) {
  State& s = *state_;
  if (!s.complete) bad_batch("only a pass that ran, and left nothing out, can be committed");
  check_path(sequence, s.rows, rows);
  std::vector<int> slots;
  for (const int row : rows) slots.push_back(s.pass.slot(s.index_of[row]));
  s.cache.commit(sequence, slots);
}

void NativeEngine::profile(bool on) { state_->pass.profile(on); }

std::vector<PhaseTime> NativeEngine::phase_times() const {
  const State& s = *state_;
  const std::array<double, kPhases>& seconds = s.pass.phase_seconds();
  std::vector<PhaseTime> times;
  const auto add = [&](const char* name, Phase phase, auto bytes_of_layer) {
    std::size_t bytes = 0;
    for (const LayerWeights& layer : s.weights.layers) bytes += bytes_of_layer(layer);
    times.push_back({name, seconds[static_cast<int>(phase)], bytes});
  };
  const auto none = [](const LayerWeights&) { return std::size_t{0}; };
  add("embedding", Phase::kEmbedding, none);
  add("draft maps", Phase::kDraftMaps, none);
  add("norms", Phase::kNorms, none);
  add("query, key, value", Phase::kQueryKeyValue,
      [](const LayerWeights& w) { return w.query.bytes() + w.key.bytes() + w.value.bytes(); });
  add("rotation, cache", Phase::kRopeAndCache, none);
  add("attention", Phase::kAttention, none);
  add("attention output", Phase::kAttentionOutput,
      [](const LayerWeights& w) { return w.output.bytes(); });
  add("gate, up", Phase::kGateUp,
      [](const LayerWeights& w) { return w.gate.bytes() + w.up.bytes(); });
  add("down", Phase::kDown, [](const LayerWeights& w) { return w.down.bytes(); });
  add("head", Phase::kHead, none);
  times.back().weight_bytes = s.weights.head.bytes();
  add("barriers", Phase::kBarriers, none);
  return times;
}

}  // namespace firp
