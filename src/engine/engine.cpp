#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <stdexcept>

#include "engine/draft_head.h"
#include "engine/forward.h"
#include "model/error.h"

namespace firp {
namespace {

int checked_threads(int threads) {
  if (threads < 0) throw Error("the number of threads must be at least 1");
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return threads > 0 ? threads : std::max(1, cores);
}

EngineOptions checked(EngineOptions options) {
  options.threads = checked_threads(options.threads);
  if (options.context < 1) throw Error("the context must hold at least 1 position");
  if (options.max_rows < 1) throw Error("a pass must hold at least 1 row");
  return options;
}

[[noreturn]] void bad_batch(std::string_view why) {
  throw std::invalid_argument(fmt::format("Engine: {}", why));
}

/// Steps between a row and its parent that the row does not see.
int steps_left_out(const Row& row, const Row* parent) {
  return row.is_pseudo() ? row.step - 1 - (parent != nullptr ? parent->step : 0) : 0;
}

/// Heads made ready for an engine.
struct PackedHeads {
  HeadsMethod method;
  std::vector<PackedMap> maps;
  std::vector<PackedAdapter> adapters;
  DraftHead head;
};

}  // namespace

struct Engine::State {
  State(const Model& m, const EngineOptions& o)
      : model(m),
        options(checked(o)),
        kernels(default_kernels()),
        pool(options.threads),
        weights(m, pool),
        cache(m.config(), o.cache_type, options.max_rows + kPagePositions - 1),
        pass(m, weights, kernels, cache, pool, options.max_rows) {}

  void check(std::span<const Row> batch) const;
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

Engine::Engine(const Model& model, const EngineOptions& options)
    : state_(std::make_unique<State>(model, options)) {}
Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;

const ModelConfig& Engine::config() const { return state_->model.config(); }
const EngineOptions& Engine::options() const { return state_->options; }
const char* Engine::isa() const { return state_->kernels.isa; }
std::size_t Engine::weight_bytes() const { return state_->weights.bytes(); }

void Engine::set_heads(const Heads& heads) {
  const int d = config().hidden_size;
  const auto size = static_cast<std::size_t>(d);
  std::vector<PackedMap> maps;
  for (const DraftMap& map : heads.steps) {
    const bool token_input = heads.has_token_input();
    if (map.layer < 1 || map.layer > config().layers || map.weight.size() != size * size ||
        map.bias.size() != size || map.token.size() != (token_input ? size * size : 0)) {
      throw Error(fmt::format("these heads do not fit the model: a map at layer {} of {}",
                              map.layer, config().layers));
    }
    if (!token_input) {
      maps.push_back({map.layer, pack_f16(map.weight, d, d), map.bias});
      continue;
    }
    std::vector<float> both;  // W and T side by side: one product
    for (std::size_t output = 0; output < size; ++output) {
      both.insert(both.end(), &map.weight[output * size], &map.weight[output * size] + size);
      both.insert(both.end(), &map.token[output * size], &map.token[output * size] + size);
    }
    maps.push_back({map.layer, pack_f16(both, d, 2 * d), map.bias});
  }
  std::vector<PackedAdapter> adapters;
  for (const Adapter& adapter : heads.adapters) {
    if (adapter.rank > d) throw Error("these heads do not fit the model: an adapter is too large");
    adapters.push_back({adapter.layer, pack_f16(adapter.down, adapter.rank, d),
                        pack_f16(adapter.up, d, adapter.rank)});
  }
  State& s = *state_;
  s.heads.emplace(PackedHeads{heads.method, std::move(maps), std::move(adapters),
                              DraftHead(s.model, s.weights, heads, s.kernels, s.pool)});
}

int Engine::draft_steps() const { return static_cast<int>(state_->maps().size()); }
bool Engine::token_input() const {
  return draft_steps() > 0 && state_->maps().front().reads_token(config().hidden_size);
}
bool Engine::medusa() const {
  return draft_steps() > 0 && state_->heads->method == HeadsMethod::kMedusa;
}
int Engine::draft_layer(int step) const { return state_->heads->maps.at(step - 1).layer; }
std::vector<int> Engine::draft_layers() const {
  std::vector<int> layers;
  if (medusa()) return layers;
  for (const PackedMap& map : state_->maps()) {
    if (std::ranges::count(layers, map.layer) == 0) layers.push_back(map.layer);
  }
  return layers;
}

int Engine::add_sequence() { return state_->cache.add_sequence(); }
void Engine::remove_sequence(int sequence) { state_->cache.remove_sequence(sequence); }
int Engine::length(int sequence) const { return state_->cache.length(sequence); }
void Engine::truncate(int sequence, int length) { state_->cache.truncate(sequence, length); }

void Engine::State::check(std::span<const Row> batch) const {
  if (batch.empty()) bad_batch("an empty batch");
  if (batch.size() > static_cast<std::size_t>(options.max_rows)) {
    bad_batch(fmt::format("{} rows in a pass of at most {}", batch.size(), options.max_rows));
  }
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const Row& row = batch[i];
    if (!cache.has_sequence(row.sequence)) bad_batch("an unknown sequence");
    if (row.parent != kContext && (row.parent < 0 || row.parent >= static_cast<int>(i) ||
                                   batch[row.parent].sequence != row.sequence)) {
      bad_batch("a parent that is not an earlier row of the same sequence");
    }
    const Row* const parent = row.parent == kContext ? nullptr : &batch[row.parent];
    if (row.is_pseudo() && parent != nullptr && row.step <= parent->step) {
      bad_batch("a pseudo row whose parent is not of an earlier step");
    }
    const int expected = (parent != nullptr ? parent->position + 1 : cache.length(row.sequence)) +
                         steps_left_out(row, parent);
    if (row.position != expected) {
      bad_batch(fmt::format("a row at position {} instead of {}", row.position, expected));
    }
    if (row.position >= options.context) {
      throw Error(fmt::format("the context of {} positions is full; a larger one (-c) holds more",
                              options.context));
    }
    if (!row.is_pseudo()) {
      if (parent != nullptr && parent->is_pseudo()) bad_batch("a token row below a pseudo row");
      if (row.token < 0 || row.token >= model.config().vocabulary_size) {
        bad_batch(fmt::format("token {} is not in the vocabulary", row.token));
      }
      continue;
    }
    if (row.step > static_cast<int>(maps().size())) bad_batch("a pseudo row without a draft map");
    if (maps()[row.step - 1].reads_token(model.config().hidden_size) &&
        (row.token_behind < 0 || row.token_behind >= model.config().vocabulary_size)) {
      bad_batch("a pseudo row of such maps needs the token behind its anchor");
    }
    int top = static_cast<int>(i);
    while (batch[top].is_pseudo() && batch[top].parent != kContext) top = batch[top].parent;
    const bool in_batch = !batch[top].is_pseudo();
    if (row.source.size() !=
        (in_batch ? 0 : static_cast<std::size_t>(model.config().hidden_size))) {
      bad_batch("a pseudo row needs its token in the batch, or else its source");
    }
  }
}

void Engine::forward(std::span<const Row> rows, std::span<const int> capture_layers,
                     std::span<const Sublayer> skipped) {
  State& s = *state_;
  s.check(rows);
  for (const int layer : capture_layers) {
    if (layer < 1 || layer > config().layers) bad_batch("a capture layer that does not exist");
  }
  for (const Sublayer part : skipped) {
    if (part < 0 || part >= 2 * config().layers) bad_batch("a part to skip that does not exist");
  }
  s.complete = skipped.empty();
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
  s.pass.run({.rows = s.pass_rows,
              .maps = s.maps(),
              .adapters = s.heads ? s.heads->adapters : std::span<const PackedAdapter>(),
              .medusa = medusa(),
              .capture_layers = capture_layers,
              .skipped = skipped});
}

std::span<const float> Engine::hidden(int row, int layer) const {
  const float* const state = state_->pass.captured(state_->index_of.at(row), layer);
  if (state == nullptr) bad_batch("that hidden state was not captured");
  return {state, static_cast<std::size_t>(config().hidden_size)};
}

std::span<const float> Engine::final_state(int row) const {
  return state_->pass.final_state(state_->index_of.at(row));
}

std::span<const float> Engine::draft_source(int row, int step) const {
  return medusa() ? final_state(row) : hidden(row, draft_layer(step));
}

std::span<const float> Engine::logits(std::span<const int> rows) {
  State& s = *state_;
  std::vector<int> indices;
  for (const int row : rows) indices.push_back(s.index_of.at(row));
  s.logits.resize(rows.size() * static_cast<std::size_t>(config().vocabulary_size));
  s.pass.run_head(s.weights.head, indices, s.logits);
  return s.logits;
}

std::span<const BestTokens> Engine::best_tokens(std::span<const int> rows, int count,
                                                bool log_sums) {
  State& s = *state_;
  std::vector<int> indices;
  for (const int row : rows) indices.push_back(s.index_of.at(row));
  s.best.resize(rows.size());
  s.pass.best_of_head(s.weights.head, indices, count, log_sums, s.best);
  return s.best;
}

void Engine::propose(std::span<const int> pseudo_rows) {
  State& s = *state_;
  std::vector<int> indices;
  for (const int row : pseudo_rows) indices.push_back(s.index_of.at(row));
  s.heads->head.propose(s.pass, indices);
}

std::vector<std::vector<Candidate>> Engine::drafts_behind(int step,
                                                          std::span<const Token> previous) {
  return state_->heads->head.drafts_behind(step, previous);
}

void Engine::commit(int sequence, std::span<const int> rows) {
  State& s = *state_;
  if (!s.complete) bad_batch("a pass that left out parts of the model can't be committed");
  std::vector<int> slots;
  int parent = kContext;
  for (const int row : rows) {
    const Row& r = s.rows.at(row);
    if (r.sequence != sequence || r.parent != parent || r.is_pseudo() ||
        r.position != s.cache.length(sequence) + static_cast<int>(slots.size())) {
      bad_batch("only a path of token rows that hangs on the context can be committed");
    }
    slots.push_back(s.pass.slot(s.index_of[row]));
    parent = row;
  }
  s.cache.commit(sequence, slots);
}

void Engine::profile(bool on) { state_->pass.profile(on); }

std::vector<PhaseTime> Engine::phase_times() const {
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
