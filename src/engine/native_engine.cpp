#include "engine/native_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <stdexcept>

#include "base/error.h"
#include "engine/context_vocabulary.h"
#include "engine/draft_head.h"
#include "engine/forward.h"
#include "model/stream_hash.h"

namespace firp {
namespace {

/// Of a heads file's draft vocabulary, the most frequent tokens are read; rare ones come from the
/// context (docs/training.md).
constexpr std::size_t kReadVocabulary = 8192;

/// Heads made ready for an engine.
struct PackedHeads {
  HeadsMethod method;
  AlignedBytes memory;  ///< of maps and adapters
  std::vector<PackedMap> maps;
  std::vector<PackedAdapter> adapters;
  /// That pseudo rows draft from, besides the context's own; empty: all tokens.
  std::vector<std::int32_t> vocabulary;
  std::vector<bool> in_vocabulary;  ///< [tokens]; empty where all are
  DraftWeights weights;
  std::shared_ptr<DraftHead> head;  ///< nullptr where none is sequential
};

}  // namespace

struct NativeEngine::State {
  State(const Model& m, const EngineOptions& o)
      : model(m),
        options(checked(o)),
        kernels(default_kernels()),
        pool(options.threads),
        weights(m, pool, options.packed_cache),
        cache(m.config(), o.cache_type),
        pass(m, weights, kernels, cache, pool, options.max_rows, options.context) {}

  void add_context_tokens(int sequence, std::span<const Token> context,
                          std::span<const int> indices, std::span<BestTokens> proposed);
  void forget_context_tokens(int sequence) {
    if (sequence < std::ssize(context_vocabularies)) context_vocabularies[sequence].clear();
  }

  /// Where the rows are in the pass's order.
  std::vector<int> indices(std::span<const int> rows) const;
  std::span<const PackedMap> maps() const {
    return heads ? std::span<const PackedMap>(heads->maps) : std::span<const PackedMap>();
  }

  const Model& model;
  const EngineOptions options;
  const Kernels& kernels;
  ThreadPool pool;
  Weights weights;
  std::optional<PackedHeads> heads;
  std::vector<ContextVocabulary> context_vocabularies;  ///< by sequence; made as they are needed
  KvCache cache;
  ForwardPass pass;
  std::string context_form;  ///< made when it is first asked for

  // The last pass. Its order is another one than the caller's.
  std::vector<int> index_of;  ///< the caller's rows in the pass's order
  std::vector<PassRow> pass_rows;
  std::vector<float> logits;
  std::vector<BestTokens> best;
};

NativeEngine::NativeEngine(const Model& model, const EngineOptions& options)
    : state_(std::make_unique<State>(model, options)) {}
NativeEngine::~NativeEngine() = default;

const ModelConfig& NativeEngine::config() const { return state_->model.config(); }
const EngineOptions& NativeEngine::options() const { return state_->options; }
const char* NativeEngine::isa() const { return state_->kernels.isa; }
std::size_t NativeEngine::weight_bytes() const { return state_->weights.read_bytes(config()); }

void NativeEngine::set_heads(const Heads& heads) {
  check_fits(heads);
  const int d = config().hidden_size;
  const auto size = static_cast<std::size_t>(d);
  State& s = *state_;
  const bool rough = s.options.rough_drafts;
  const ggml_type map_type =
      rough && d % ggml_blck_size(kRoughMapType) == 0 ? kRoughMapType : GGML_TYPE_F16;
  std::vector<PackedMap> maps(heads.steps.size());
  std::vector<PackedAdapter> adapters(heads.adapters.size());
  std::vector<std::vector<float>> with_token(heads.steps.size());  // W and T side by side
  std::vector<MatrixOfValues> matrices;
  for (std::size_t i = 0; i < maps.size(); ++i) {
    const DraftMap& map = heads.steps[i];
    maps[i].layer = map.layer;
    maps[i].bias = map.bias;
    std::vector<float>& both = with_token[i];
    for (std::size_t output = 0; !map.token.empty() && output < size; ++output) {
      both.insert(both.end(), &map.weight[output * size], &map.weight[output * size] + size);
      both.insert(both.end(), &map.token[output * size], &map.token[output * size] + size);
    }
    const std::vector<float>& values = map.token.empty() ? map.weight : both;
    matrices.push_back(
        {&maps[i].weight, values, d, static_cast<int>(values.size() / size), map_type});
  }
  for (std::size_t i = 0; i < adapters.size(); ++i) {
    const Adapter& adapter = heads.adapters[i];
    adapters[i].layer = adapter.layer;
    matrices.push_back({&adapters[i].down, adapter.down, adapter.rank, d, GGML_TYPE_F16});
    matrices.push_back({&adapters[i].up, adapter.up, d, adapter.rank, GGML_TYPE_F16});
  }
  AlignedBytes memory = pack_values(matrices);
  // Rows that may run beside tokens, or may not, must draft the same both ways: in exact layers.
  const int first_layer = heads.has_token_input()
                              ? std::ranges::min_element(maps, {}, &PackedMap::layer)->layer
                              : config().layers;
  std::vector<std::int32_t> vocabulary = heads.draft_vocabulary;
  vocabulary.resize(std::min(vocabulary.size(), kReadVocabulary));
  std::vector<bool> in_vocabulary(vocabulary.empty() ? 0 : config().vocabulary_size);
  for (const std::int32_t token : vocabulary) in_vocabulary[token] = true;
  std::shared_ptr<DraftHead> head;
  if (heads.has_sequential_head()) {
    head = std::make_shared<DraftHead>(s.model.token_embedding(), s.model.head(), heads, s.kernels,
                                       s.pool);
  }
  s.context_vocabularies.clear();
  s.heads.emplace(PackedHeads{.method = heads.method,
                              .memory = std::move(memory),
                              .maps = std::move(maps),
                              .adapters = std::move(adapters),
                              .vocabulary = vocabulary,
                              .in_vocabulary = std::move(in_vocabulary),
                              .weights = DraftWeights(s.model, s.weights, first_layer, vocabulary,
                                                      rough, s.pool, s.options.packed_cache),
                              .head = std::move(head)});
}

int NativeEngine::draft_steps() const { return static_cast<int>(state_->maps().size()); }
bool NativeEngine::token_input() const {
  return draft_steps() > 0 && state_->maps().front().reads_token(config().hidden_size);
}
bool NativeEngine::medusa() const {
  return draft_steps() > 0 && state_->heads->method == HeadsMethod::kMedusa;
}
int NativeEngine::draft_layer(int step) const { return state_->heads->maps.at(step - 1).layer; }

void NativeEngine::add_context(int sequence) { state_->cache.add_sequence(sequence); }
void NativeEngine::remove_context(int sequence) {
  state_->cache.remove_sequence(sequence);
  state_->forget_context_tokens(sequence);
}
int NativeEngine::keepable_context(int sequence, int length) const {
  return state_->cache.keepable(sequence, length);
}
void NativeEngine::truncate_context(int sequence, int length) {
  state_->cache.truncate(sequence, length);
  state_->forget_context_tokens(sequence);
}
void NativeEngine::share_context(int from, int to, int length) {
  state_->cache.share(from, to, length);
}

std::string NativeEngine::context_form() const {
  State& s = *state_;
  if (!s.model.has_file() || !s.context_form.empty()) return s.context_form;
  const ModelConfig& c = config();
  StreamHash settings;
  const auto add = [&](int each) { settings.add_word(static_cast<std::uint64_t>(each)); };
  for (const int each :
       {c.query_heads, c.kv_heads, c.head_size, c.feed_forward_size, static_cast<int>(c.activation),
        static_cast<int>(c.head_norms), int{c.norms_before}, int{c.norms_after}, int{c.qkv_bias}}) {
    add(each);
  }
  for (const float each : {c.rms_norm_epsilon, c.embedding_scale, c.residual_scale,
                           c.attention_scale, c.attention_softcap}) {
    settings.add_word(std::bit_cast<std::uint32_t>(each));
  }
  for (const LayerConfig& layer : c.by_layer) {
    add(layer.window);
    add(layer.rope);
  }
  for (const RopeConfig& rope : c.ropes) {
    add(rope.dimensions);
    add(int{rope.interleaved});
    settings.add_word(std::bit_cast<std::uint32_t>(rope.magnitude));
    settings.add(std::as_bytes(rope.frequencies_for(s.options.context)));
  }
  const ModelIdentity identity = s.model.identity();
  s.context_form =
      fmt::format("{} of {} layers, tensors {}, settings {:016x}; cache {}; native, {}",
                  identity.architecture, identity.layers, identity.tensor_hash, settings.value(),
                  ggml_type_name(ggml_type_of(s.options.cache_type)), isa());
  return s.context_form;
}

std::size_t NativeEngine::context_bytes(int length) const {
  const std::size_t pages =
      (static_cast<std::size_t>(length) + kPagePositions - 1) / kPagePositions;
  return pages * state_->cache.page_bytes();
}

void NativeEngine::write_context(int sequence, const WriteBytes& write) const {
  const KvCache& cache = state_->cache;
  std::vector<std::byte> page(cache.page_bytes());
  for (int i = 0; i * kPagePositions < cache.length(sequence); ++i) {
    cache.read_page(sequence, i, page);
    write(page);
  }
}

void NativeEngine::read_context(int sequence, int length, const ReadBytes& read) {
  KvCache& cache = state_->cache;
  std::vector<std::byte> page(cache.page_bytes());
  for (int left = length; left > 0; left -= kPagePositions) {
    read(page);
    cache.append_page(sequence, page, std::min(left, kPagePositions));
  }
}

int NativeEngine::held_positions() const { return state_->cache.positions_in_use(); }

void NativeEngine::run(const Batch& batch) {
  State& s = *state_;
  const std::span<const Row> rows = batch.rows;
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
    to.position = batch.positions[i];
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
              .capture_layers = batch.capture_layers,
              .skipped = batch.skipped,
              .cancelled = s.options.cancelled});
}

std::span<const float> NativeEngine::hidden(int row, int layer) const {
  const float* const state = state_->pass.captured(state_->index_of.at(row), layer);
  if (state == nullptr) bad_batch("that hidden state was not captured");
  return {state, static_cast<std::size_t>(config().hidden_size)};
}

std::span<const float> NativeEngine::final_state(int row) const {
  return state_->pass.final_state(state_->index_of.at(row));
}

std::vector<int> NativeEngine::State::indices(std::span<const int> rows) const {
  std::vector<int> indices;
  for (const int row : rows) indices.push_back(index_of.at(row));
  return indices;
}

std::span<const float> NativeEngine::logits(std::span<const int> rows) {
  State& s = *state_;
  s.logits.resize(rows.size() * static_cast<std::size_t>(config().vocabulary_size));
  s.pass.run_head(s.weights.head, s.indices(rows), s.logits);
  return s.logits;
}

std::span<const BestTokens> NativeEngine::best_tokens(std::span<const int> rows, int count,
                                                      bool log_sums) {
  State& s = *state_;
  s.best.resize(rows.size());
  s.pass.best_of_head(s.weights.head, s.indices(rows), count, log_sums, s.best);
  return s.best;
}

/// Adds the sequence's own rare tokens to what rows of it propose.
void NativeEngine::State::add_context_tokens(int sequence, std::span<const Token> context,
                                             std::span<const int> indices,
                                             std::span<BestTokens> proposed) {
  context_vocabularies.resize(
      std::max(context_vocabularies.size(), static_cast<std::size_t>(sequence) + 1));
  ContextVocabulary& vocabulary = context_vocabularies[sequence];
  vocabulary.follow(context, heads->in_vocabulary, model.head(), heads->weights.head.format().type);
  if (vocabulary.tokens().empty()) return;
  const PackedMatrix head = vocabulary.head();
  std::vector<BestTokens> own(proposed.size());
  pass.best_of_head(head, indices, kRankedCandidates, /*sums=*/true, own);
  for (std::size_t i = 0; i < proposed.size(); ++i) {
    BestTokens& row = proposed[i];
    const float larger = std::max(row.log_sum, own[i].log_sum);
    row.log_sum =
        larger + std::log(std::exp(row.log_sum - larger) + std::exp(own[i].log_sum - larger));
    const auto middle = std::ssize(row.tokens);
    for (const TokenLogit& each : own[i].tokens) {
      row.tokens.push_back({vocabulary.tokens()[each.token], each.logit});
    }
    std::ranges::inplace_merge(row.tokens, row.tokens.begin() + middle, std::greater(),
                               &TokenLogit::logit);
    row.tokens.resize(std::min<std::size_t>(row.tokens.size(), kRankedCandidates));
  }
}

std::vector<Proposal> NativeEngine::propose(std::span<const std::vector<int>> anchors) {
  State& s = *state_;
  PackedHeads& heads = *s.heads;
  std::vector<int> all;
  for (const std::vector<int>& rows : anchors) all.insert(all.end(), rows.begin(), rows.end());
  const std::vector<int> indices = s.indices(all);
  std::vector<BestTokens> best(indices.size());
  s.pass.best_of_head(heads.weights.head, indices, kRankedCandidates, /*sums=*/true, best);
  if (!heads.vocabulary.empty()) {
    for (BestTokens& row : best) {
      for (TokenLogit& each : row.tokens) each.token = heads.vocabulary[each.token];
    }
    std::size_t done = 0;
    for (const std::vector<int>& of_anchor : anchors) {
      if (of_anchor.empty()) continue;
      const int sequence = rows()[of_anchor.front()].sequence;
      s.add_context_tokens(sequence, contexts().tokens(sequence),
                           std::span(indices).subspan(done, of_anchor.size()),
                           std::span(best).subspan(done, of_anchor.size()));
      done += of_anchor.size();
    }
  }
  std::vector<Proposal> proposals;
  auto next = best.begin();
  auto next_index = indices.begin();
  for (const std::vector<int>& rows : anchors) {
    std::vector<BestTokens> of_anchor;
    std::vector<std::span<const float>> states;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      of_anchor.push_back(std::move(*next++));
      states.push_back(s.pass.final_state(*next_index++));
    }
    std::vector<float> inner;
    if (heads.head != nullptr) inner = heads.head->take_states(states);
    proposals.emplace_back(std::move(of_anchor), heads.head, std::move(inner));
  }
  return proposals;
}

void NativeEngine::commit(int sequence, std::span<const int> path) {
  State& s = *state_;
  std::vector<int> slots;
  for (const int row : path) slots.push_back(s.pass.slot(s.index_of[row]));
  s.cache.commit(sequence, slots);
}

void NativeEngine::profile(bool on) { state_->pass.profile(on); }

std::vector<PhaseTime> NativeEngine::phase_times() const {
  const State& s = *state_;
  const std::array<double, kPhases>& seconds = s.pass.phase_seconds();
  std::vector<PhaseTime> times;
  using Part = PackedMatrix LayerWeights::*;
  const auto add = [&](const char* name, Phase phase, std::initializer_list<Part> parts = {}) {
    double bytes = 0;
    for (const LayerWeights& layer : s.weights.layers) {
      for (const Part part : parts) {
        const PackedMatrix& matrix = layer.*part;
        if (matrix.outputs() == 0) continue;
        bytes += share_read(config(), layer, &matrix) * static_cast<double>(matrix.bytes());
      }
    }
    times.push_back({name, seconds[static_cast<int>(phase)], static_cast<std::size_t>(bytes)});
  };
  add("embedding", Phase::kEmbedding);
  add("draft maps", Phase::kDraftMaps);
  add("norms", Phase::kNorms);
  add("query, key, value", Phase::kQueryKeyValue,
      {&LayerWeights::query, &LayerWeights::key, &LayerWeights::value});
  add("rotation, cache", Phase::kRopeAndCache);
  add("attention", Phase::kAttention);
  add("attention output", Phase::kAttentionOutput, {&LayerWeights::output});
  if (config().experts > 0) add("experts", Phase::kExperts, {&LayerWeights::router});
  add("gate, up", Phase::kGateUp, {&LayerWeights::gate, &LayerWeights::up});
  add("down", Phase::kDown, {&LayerWeights::down});
  add("head", Phase::kHead);
  times.back().weight_bytes = s.weights.head.bytes();
  add("barriers", Phase::kBarriers);
  return times;
}

}  // namespace firp
