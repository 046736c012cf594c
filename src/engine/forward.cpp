#include "engine/forward.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/clock.h"
#include "base/error.h"

namespace firp {
namespace {

void add(std::span<const float> bias, float* x) {
  for (std::size_t i = 0; i < bias.size(); ++i) x[i] += bias[i];
}

bool have_same_inputs(const PassRow& a, const PassRow& b) {
  return a.source_row == b.source_row && a.source == b.source && a.token_behind == b.token_behind;
}

}  // namespace

ForwardPass::ForwardPass(const Model& model, const Weights& weights, const Kernels& kernels,
                         KvCache& cache, ThreadPool& pool, int max_rows, int context)
    : model_(model),
      config_(model.config()),
      weights_(weights),
      kernels_(kernels),
      cache_(cache),
      pool_(pool),
      d_(config_.hidden_size),
      active_rows_(config_.layers + 1),
      skipped_(2 * static_cast<std::size_t>(config_.layers)),
      normed_(max_rows, config_.hidden_size),
      attended_(max_rows, config_.query_size()),
      gated_(max_rows * std::max(1, config_.experts_used), config_.feed_forward_size),
      map_input_(max_rows, 2 * config_.hidden_size),
      head_input_(max_rows, config_.hidden_size),
      adapter_input_(max_rows, config_.hidden_size),
      adapter_inner_(max_rows, config_.hidden_size),
      ones_(config_.hidden_size, 1.0f),
      choices_(static_cast<std::size_t>(max_rows) * config_.experts_used),
      gathered_(choices_.size()),
      expert_input_(static_cast<int>(choices_.size()), config_.hidden_size),
      slots_(max_rows),
      heads_(pool.size()),
      chunk_logits_(pool.size()),
      thread_best_(pool.size()) {
  const auto allocate = [max_rows](std::vector<float>& buffer, int width) {
    buffer.resize(static_cast<std::size_t>(max_rows) * width);
  };
  allocate(residual_, d_);
  allocate(query_, config_.query_size());
  allocate(key_, config_.kv_size());
  allocate(value_, config_.kv_size());
  const int gated_width = std::max(1, config_.experts_used) * config_.feed_forward_size;
  allocate(gate_, gated_width);
  allocate(up_, gated_width);
  allocate(router_logits_, config_.experts);
  allocate(expert_outputs_, config_.experts_used * d_);
  allocate(final_states_, d_);
  if (!adds_directly()) allocate(added_, d_);
  allocate(query_inverses_, 1);
  allocate(key_inverses_, 1);
  for (const RopeConfig& rope : config_.ropes) {
    rotations_.push_back({rope.frequencies_for(context), rope.magnitude, {}, {}});
  }
}

void ForwardPass::run(const ForwardTask& task) {
  const std::span<const PassRow> rows = task.rows;
  rows_ = rows;
  layers_ = task.layers;
  next_head_ = &task.head;
  maps_ = task.maps;
  adapters_ = task.adapters;
  medusa_ = task.medusa;
  cancelled_ = task.cancelled;
  ends_early_ = false;
  capture_layers_.assign(task.capture_layers.begin(), task.capture_layers.end());
  skipped_.assign(skipped_.size(), false);
  for (const Sublayer part : task.skipped) skipped_[part] = true;
  const int count = static_cast<int>(rows.size());
  token_rows_ = static_cast<int>(
      std::ranges::count_if(rows, [](const PassRow& row) { return row.step == 0; }));
  first_layer_ = rows.front().entry_layer;
  std::vector<int> sequences;
  for (const PassRow& row : rows) sequences.push_back(row.sequence);
  row_slots_ = cache_.begin_pass(sequences);
  for (int layer = 0, active = 0; layer <= config_.layers; ++layer) {
    while (active < count && rows[active].entry_layer <= layer) ++active;
    active_rows_[layer] = active;
  }
  captured_.resize(std::max(captured_.size(), capture_layers_.size()));
  for (std::size_t i = 0; i < capture_layers_.size(); ++i) {
    captured_[i].resize(static_cast<std::size_t>(count) * d_);
  }
  turn_to(std::ranges::max(rows, {}, &PassRow::position).position + 1);
  pool_.run_on_free_cores([this](int thread) { run_thread(thread); });
  if (ends_early_) throw Cancelled();
}

void ForwardPass::run_thread(int thread) {
  begin_profile(thread);
  embed(thread);
  for (int layer = first_layer_; layer < config_.layers; ++layer) {
    enter_rows(layer, thread);
    capture(layer, thread);
    adapt_rows(layer, thread);
    if (!skipped_[2 * layer]) attention(layer, thread);
    if (!skipped_[2 * layer + 1]) feed_forward(layer, thread);
    if (ends_early_) return;
  }
  finish_rows(thread);
}

/// The output norm; rows that enter behind the last layer do so before it, Medusa's after it.
void ForwardPass::finish_rows(int thread) {
  const auto final_state = [this](int row) {
    return final_states_.data() + static_cast<std::size_t>(row) * d_;
  };
  const int count = static_cast<int>(rows_.size());
  if (!medusa_) enter_rows(config_.layers, thread);
  capture(config_.layers, thread);
  const auto [begin, end] = share(medusa_ ? token_rows_ : count, thread, pool_.running());
  for (int row = begin; row < end; ++row) {
    const float inverse = kernels_.inverse_rms(residual(row), config_.rms_norm_epsilon, d_);
    kernels_.scale(residual(row), inverse, weights_.output_norm.data(), d_, final_state(row));
  }
  barrier(thread, Phase::kNorms);
  if (!medusa_ || token_rows_ == count) return;

  enter_rows(config_.layers, thread);
  const auto [first, last] = share(count - token_rows_, thread, pool_.running());
  for (int row = token_rows_ + first; row < token_rows_ + last; ++row) {
    kernels_.silu_multiply(residual(row), ones_.data(), d_, final_state(row));
    add({source(rows_[row]), static_cast<std::size_t>(d_)}, final_state(row));
  }
  barrier(thread, Phase::kDraftMaps);
}

const float* ForwardPass::source(const PassRow& row) {
  if (row.source_row < 0) return row.source;
  return medusa_ ? final_state(row.source_row).data() : residual(row.source_row);
}

void ForwardPass::embed(int thread) {
  const auto [begin, end] = share(token_rows_, thread, pool_.running());
  for (int row = begin; row < end; ++row) {
    float* const x = residual(row);
    dequantize_row(model_.token_embedding(), rows_[row].token, {x, static_cast<std::size_t>(d_)});
    if (config_.embedding_scale != 1.0f) {
      kernels_.scale(x, config_.embedding_scale, ones_.data(), d_, x);
    }
  }
}

/// Extends the tables of rotations to so many positions.
void ForwardPass::turn_to(int positions) {
  for (Rotation& rotation : rotations_) {
    const std::size_t pairs = rotation.frequencies.size();
    for (std::size_t position = rotation.cosines.size() / std::max<std::size_t>(pairs, 1);
         position < static_cast<std::size_t>(positions) && pairs > 0; ++position) {
      for (const float frequency : rotation.frequencies) {
        const float angle = static_cast<float>(position) * frequency;
        rotation.cosines.push_back(std::cos(angle) * rotation.magnitude);
        rotation.sines.push_back(std::sin(angle) * rotation.magnitude);
      }
    }
  }
}

void ForwardPass::enter_rows(int layer, int thread) {
  const int before = layer == first_layer_ ? 0 : active_rows_[layer - 1];
  const int active = active_rows_[layer];
  if (active == before) return;
  if (thread == 0) {
    normed_.resize(active, d_);
    attended_.resize(active, config_.query_size());
    gated_.resize(active, config_.feed_forward_size);
    expert_rows_ = {{.expert = 0, .first = 0, .count = active}};
    // A row sees its ancestors as far as they exist in this layer, and itself.
    for (int row = 0; row < active; ++row) {
      slots_[row].clear();
      for (const std::int32_t other : rows_[row].path) {
        const bool seen = other != kNoRow && rows_[other].entry_layer <= layer;
        slots_[row].push_back(seen ? slot(other) : kNoSlot);
      }
    }
  }
  barrier(thread, Phase::kEmbedding);

  // Neighbouring steps whose rows have the same inputs are made at once.
  const auto end_of_step = [&](int row) {
    const int step = rows_[row].step;
    while (row < active && rows_[row].step == step) ++row;
    return row;
  };
  for (int first = std::max(before, token_rows_); first < active;) {
    const int anchors = end_of_step(first) - first;
    const std::span<const PassRow> of_first = rows_.subspan(first, anchors);
    int end = first + anchors;
    while (end < active && end_of_step(end) == end + anchors &&
           std::ranges::equal(of_first, rows_.subspan(end, anchors), have_same_inputs)) {
      end += anchors;
    }
    make_rows(first, anchors, end, thread);
    first = end;
  }
}

/// p_{i,j} = W_j h_i^{t_j} + T_j e_{i+1} + b_j, for rows `first` .. `end`: steps of `anchors` rows,
/// all of the same anchors. One product of all maps: small ones cost more in barriers than in
/// bytes.
void ForwardPass::make_rows(int first, int anchors, int end, int thread) {
  const PackedMap& first_map = maps_[rows_[first].step - 1];
  if (thread == 0) {
    map_input_.resize(anchors, first_map.weight.inputs());
    for (int anchor = 0; anchor < anchors; ++anchor) {
      const PassRow& row = rows_[first + anchor];
      float* const input = map_input_.values(anchor);
      std::copy_n(source(row), d_, input);
      if (first_map.reads_token(d_)) {
        dequantize_row(model_.token_embedding(), row.token_behind,
                       {input + d_, static_cast<std::size_t>(d_)});
      }
    }
    map_products_.clear();
    for (int row = first; row < end; ++row) {
      const PackedMap& map = maps_[rows_[row].step - 1];
      std::ranges::copy(map.bias, residual(row));
      if ((row - first) % anchors > 0) continue;
      map_products_.push_back(
          {&map.weight, residual(row), static_cast<std::size_t>(d_), /*add=*/true});
    }
  }
  barrier(thread, Phase::kDraftMaps);
  prepare(map_input_, first_map.weight, thread);
  barrier(thread, Phase::kDraftMaps);
  multiply(map_products_, map_input_, nullptr, thread);
  barrier(thread, Phase::kDraftMaps);
}

/// Until the next barrier, nothing may change the residual stream.
void ForwardPass::capture(int layer, int thread) {
  const auto at = std::ranges::find(capture_layers_, layer);
  if (at == capture_layers_.end()) return;
  const auto [begin, end] = share(states_after(layer), thread, pool_.running());
  std::copy(residual(begin), residual(end),
            captured_[at - capture_layers_.begin()].data() + static_cast<std::size_t>(begin) * d_);
}

void ForwardPass::adapt_rows(int layer, int thread) {
  const auto adapter = std::ranges::find(adapters_, layer, &PackedAdapter::layer);
  const int rows = active_rows_[layer] - token_rows_;
  if (adapter == adapters_.end() || rows <= 0) return;
  const int rank = adapter->down.outputs();
  if (thread == 0) {
    adapter_input_.resize(rows, d_);
    adapter_inner_.resize(rows, rank);
    for (int row = 0; row < rows; ++row) {
      const float* const x = residual(token_rows_ + row);
      kernels_.scale(x, kernels_.inverse_rms(x, kAdapterEpsilon, d_), ones_.data(), d_,
                     adapter_input_.values(row));
    }
    std::vector<float>& inner = chunk_logits_[0];
    inner.resize(std::max(inner.size(), static_cast<std::size_t>(rows) * rank));
    kernels_.matmul({.weights = adapter->down,
                     .first_block = 0,
                     .end_block = adapter->down.blocks(),
                     .y = inner.data(),
                     .y_stride = static_cast<std::size_t>(rank)},
                    adapter_input_);
    for (int row = 0; row < rows; ++row) {
      const float* const x = inner.data() + static_cast<std::size_t>(row) * rank;
      kernels_.silu_multiply(x, ones_.data(), rank, adapter_inner_.values(row));
    }
  }
  barrier(thread, Phase::kDraftMaps);
  multiply({{&adapter->up, residual(token_rows_), static_cast<std::size_t>(d_), /*add=*/true}},
           adapter_inner_, nullptr, thread);
  barrier(thread, Phase::kDraftMaps);
}

void ForwardPass::attention(int layer, int thread) {
  const LayerWeights& w = layers_[layer];
  const int active = active_rows_[layer];
  const int head_size = config_.head_size;
  const int group = config_.query_heads / config_.kv_heads;
  const std::size_t query_size = config_.query_size();
  const std::size_t kv_size = config_.kv_size();

  normalize(w.attention_norm, {&w.query, &w.key, &w.value}, thread);
  barrier(thread, Phase::kNorms);
  multiply({{&w.query, query_.data(), query_size},
            {&w.key, key_.data(), kv_size},
            {&w.value, value_.data(), kv_size}},
           normed_, &w.output, thread);
  barrier(thread, Phase::kQueryKeyValue);
  if (config_.head_norms == HeadNorms::kAll) {
    const auto [begin, end] = share(active, thread, pool_.running());
    for (int row = begin; row < end; ++row) {
      query_inverses_[row] = kernels_.inverse_rms(query_.data() + row * query_size,
                                                  config_.rms_norm_epsilon, config_.query_size());
      key_inverses_[row] = kernels_.inverse_rms(key_.data() + row * kv_size,
                                                config_.rms_norm_epsilon, config_.kv_size());
    }
    barrier(thread, Phase::kNorms);
  }

  // Per row and KV head: its query heads, its key and its value get bias, norm and rotation; key
  // and value go to the row's scratch slot.
  const LayerConfig& layer_config = config_.by_layer[layer];
  const auto [first_task, end_task] = share(active * config_.kv_heads, thread, pool_.running());
  for (int task = first_task; task < end_task; ++task) {
    const int row = task % active;  // keys of neighbouring rows share cache lines
    const int kv_head = task / active;
    const auto part_of = [&](const std::vector<float>& vector, int index) {
      return std::span(vector).subspan(static_cast<std::size_t>(index) * head_size, head_size);
    };
    const auto finish = [&](float* head, int index, const std::vector<float>& bias,
                            const std::vector<float>& norm, float inverse_of_all) {
      if (!bias.empty()) add(part_of(bias, index), head);
      if (config_.head_norms == HeadNorms::kEach) {
        const float inverse = kernels_.inverse_rms(head, config_.rms_norm_epsilon, head_size);
        kernels_.scale(head, inverse, norm.data(), head_size, head);
      } else if (config_.head_norms == HeadNorms::kAll) {
        kernels_.scale(head, inverse_of_all, part_of(norm, index).data(), head_size, head);
      }
      if (layer_config.rope < 0) return;
      const Rotation& rotation = rotations_[layer_config.rope];
      const RopeConfig& rope = config_.ropes[layer_config.rope];
      const std::size_t at = static_cast<std::size_t>(rows_[row].position) * rope.dimensions / 2;
      kernels_.rope(head, rotation.cosines.data() + at, rotation.sines.data() + at, rope.dimensions,
                    rope.interleaved);
    };
    for (int i = 0; i < group; ++i) {
      const int head = kv_head * group + i;
      finish(query_.data() + row * query_size + static_cast<std::size_t>(head) * head_size, head,
             w.query_bias, w.query_norm, query_inverses_[row]);
    }
    const std::size_t at = row * kv_size + static_cast<std::size_t>(kv_head) * head_size;
    finish(key_.data() + at, kv_head, w.key_bias, w.key_norm, key_inverses_[row]);
    if (!w.value_bias.empty()) add(part_of(w.value_bias, kv_head), value_.data() + at);
    kernels_.store_kv(key_.data() + at, value_.data() + at, cache_.part(),
                      cache_.scratch_page(layer, slot(row)) + cache_.offset(layer, kv_head),
                      slot(row) % kPagePositions);
  }
  barrier(thread, Phase::kRopeAndCache);

  // The heads of all rows of a KV head stand together: they share what is brought from the cache.
  std::vector<AttentionHead>& heads = heads_[thread];
  const int of_kv_head = active * group;
  const auto attend = [&](int begin, int end, bool) {
    for (int at = begin; at < end; ++at) {
      const int kv_head = at / of_kv_head;
      const int row = at % of_kv_head / group;
      const std::size_t first = static_cast<std::size_t>(kv_head * group + at % group) * head_size;
      heads.push_back({.query = query_.data() + row * query_size + first,
                       .out = attended_.values(row) + first,
                       .slots = slots_[row]});
      const int sequence = rows_[row].sequence;
      const int after = at + 1;
      const bool more = after < end && after / of_kv_head == kv_head &&
                        rows_[after % of_kv_head / group].sequence == sequence;
      if (more) continue;
      kernels_.attend({.heads = heads,
                       .part = cache_.part(),
                       .scale = config_.attention_scale,
                       .softcap = config_.attention_softcap,
                       .window = layer_config.window,
                       .offset = cache_.offset(layer, kv_head),
                       .pages = cache_.pages(sequence, layer),
                       .committed = cache_.length(sequence),
                       .scratch = cache_.scratch(layer)});
      heads.clear();
    }
  };
  pool_.divide(thread, config_.kv_heads * of_kv_head, kTileHeads, attend);
  barrier(thread, Phase::kAttention);
  if (kernels_.form(w.output.format().kind) != ActivationForm::kValues) {
    prepare(attended_, w.output, thread);
    barrier(thread, Phase::kAttentionOutput);
  }
  multiply({product_to_residual(w.output)}, attended_, &w.gate, thread);
  barrier(thread, Phase::kAttentionOutput);
  add_to_residual(w.attention_post_norm, thread);
}

void ForwardPass::feed_forward(int layer, int thread) {
  const LayerWeights& w = layers_[layer];
  const PackedMatrix* const next =
      layer + 1 < config_.layers ? &layers_[layer + 1].query : next_head_;
  const bool mixes = config_.experts > 0;
  if (mixes) {
    normalize(w.feed_forward_norm, {&w.router}, thread);
  } else {
    normalize(w.feed_forward_norm, {&w.gate, &w.up}, thread);
  }
  barrier(thread, Phase::kNorms);
  if (thread == 0 && cancelled_ != nullptr) {
    ends_early_ = cancelled_->load(std::memory_order_relaxed);
  }
  if (mixes) route(w, thread);
  gate_and_up(w, mixes ? expert_input_ : normed_, thread);
  barrier(thread, Phase::kGateUp);
  if (mixes) {
    add_experts(w, thread);
  } else {
    multiply({product_to_residual(w.down)}, gated_, next, thread);
    barrier(thread, Phase::kDown);
    add_to_residual(w.feed_forward_post_norm, thread);
  }
}

/// Chooses the experts of each row, and gathers the rows of each expert, so that its weights are
/// read once for all of them.
void ForwardPass::route(const LayerWeights& w, int thread) {
  const int rows = normed_.rows(), used = config_.experts_used;
  multiply({{&w.router, router_logits_.data(), static_cast<std::size_t>(config_.experts)}}, normed_,
           &w.gate, thread);
  barrier(thread, Phase::kExperts);
  const auto [begin, end] = share(rows, thread, pool_.running());
  std::vector<TokenLogit> best(used);
  for (int row = begin; row < end; ++row) {
    const float* const logits =
        router_logits_.data() + static_cast<std::size_t>(row) * config_.experts;
    int size = 0;
    kernels_.select_best(logits, config_.experts, 0, best.data(), size, used);
    // Where logits are no numbers the row becomes none, too.
    for (; size < used; ++size) best[size] = {size, std::numeric_limits<float>::quiet_NaN()};
    const ExpSum all = kernels_.sum_exp(logits, config_.experts);
    float total = 0;
    for (const TokenLogit& each : best) total += std::exp(each.logit - all.largest);
    if (config_.expert_weights == ExpertWeights::kOfAll) total = all.sum;
    for (int i = 0; i < used; ++i) {
      choices_[row * used + i] = {.expert = best[i].token,
                                  .weight = std::exp(best[i].logit - all.largest) / total};
    }
  }
  barrier(thread, Phase::kExperts);
  if (thread == 0) {
    const std::span<Choice> choices = std::span(choices_).first(rows * used);
    std::vector<int> counts(config_.experts), next(config_.experts);
    for (const Choice& choice : choices) ++counts[choice.expert];
    std::exclusive_scan(counts.begin(), counts.end(), next.begin(), 0);
    expert_rows_.clear();
    for (int expert = 0; expert < config_.experts; ++expert) {
      if (counts[expert] > 0) expert_rows_.push_back({expert, next[expert], counts[expert]});
    }
    for (std::size_t i = 0; i < choices.size(); ++i) {
      choices[i].gathered = next[choices[i].expert]++;
      gathered_[choices[i].gathered] = static_cast<int>(i) / used;
    }
    expert_input_.resize(rows * used, d_);
    gated_.resize(rows * used, config_.feed_forward_size);
  }
  barrier(thread, Phase::kExperts);
  const auto [first, last] = share(rows * used, thread, pool_.running());
  for (int i = first; i < last; ++i) {
    std::copy_n(normed_.values(gathered_[i]), d_, expert_input_.values(i));
    prepare_for({&w.gate, &w.up}, expert_input_, i, 0, expert_input_.group_count());
  }
  barrier(thread, Phase::kExperts);
}

/// `gated_`: activation(gate x) * up x, of each expert for its rows.
void ForwardPass::gate_and_up(const LayerWeights& w, Activations& x, int thread) {
  const int width = config_.feed_forward_size;
  const auto activate =
      config_.activation == Activation::kGelu ? kernels_.gelu_multiply : kernels_.silu_multiply;

  // The same outputs of gate and up are made at once, whole groups of the next product's inputs, so
  // that they can be combined and rounded on the spot.
  constexpr int kGroupBlocks = 32 / kBlockOutputs;
  const int groups = gated_.group_count();
  const int blocks = (width + kBlockOutputs - 1) / kBlockOutputs;  // of an expert
  const ActivationForm form = kernels_.form(w.down.format().kind);
  constexpr int kTileGroups = kTileBlocks / kGroupBlocks;
  const auto make = [&](const ExpertRows& expert, int first_group, int end_group,
                        const std::byte* next) {
    const Activations rows = x.some_rows(expert.first, expert.count);
    const int base = expert.expert * blocks;
    const int first_block = base + std::min(first_group * kGroupBlocks, blocks);
    const int end_block = base + std::min(end_group * kGroupBlocks, blocks);
    // By the outputs of all experts, as products are.
    const std::ptrdiff_t outputs =
        (static_cast<std::ptrdiff_t>(expert.first) - expert.expert) * width;
    if (first_block < end_block) {
      kernels_.matmul({.weights = w.gate,
                       .first_block = first_block,
                       .end_block = end_block,
                       .y = gate_.data() + outputs,
                       .y_stride = static_cast<std::size_t>(width),
                       .next = w.up.block(first_block)},
                      rows);
      kernels_.matmul({.weights = w.up,
                       .first_block = first_block,
                       .end_block = end_block,
                       .y = up_.data() + outputs,
                       .y_stride = static_cast<std::size_t>(width),
                       .next = next != nullptr ? next : w.gate.block(end_block)},
                      rows);
    }
    const int begin = std::min(first_group * 32, width);
    const int end = std::min(end_group * 32, width);
    for (int row = expert.first; row < expert.first + expert.count; ++row) {
      const std::size_t at = static_cast<std::size_t>(row) * width + begin;
      activate(gate_.data() + at, up_.data() + at, end - begin, gated_.values(row) + begin);
      kernels_.prepare(gated_, row, first_group, end_group, form);
    }
  };
  const int units = static_cast<int>(expert_rows_.size()) * groups;
  pool_.divide(thread, units, kTileGroups, [&](int begin, int end, bool goes_on) {
    while (begin < end) {
      const int first = begin % groups;
      const int last = std::min(groups, first + end - begin);
      const ExpertRows& expert = expert_rows_[begin / groups];
      begin += last - first;
      make(expert, first, last, begin < end || goes_on ? nullptr : share_of(&w.down, thread));
    }
  });
}

/// Adds what the experts make of their rows to the residual stream, by the rows' weights: in the
/// order of a row's own choices, whoever is beside it.
void ForwardPass::add_experts(const LayerWeights& w, int thread) {
  const int blocks = d_ / kBlockOutputs;  // of an expert
  const int units = static_cast<int>(expert_rows_.size()) * blocks;
  pool_.divide(thread, units, kTileBlocks, [&](int begin, int end, bool) {
    while (begin < end) {
      const int first = begin % blocks;
      const int last = std::min(blocks, first + end - begin);
      const ExpertRows& expert = expert_rows_[begin / blocks];
      const std::ptrdiff_t outputs =
          (static_cast<std::ptrdiff_t>(expert.first) - expert.expert) * d_;
      kernels_.matmul({.weights = w.down,
                       .first_block = expert.expert * blocks + first,
                       .end_block = expert.expert * blocks + last,
                       .y = expert_outputs_.data() + outputs,
                       .y_stride = static_cast<std::size_t>(d_)},
                      gated_.some_rows(expert.first, expert.count));
      begin += last - first;
    }
  });
  barrier(thread, Phase::kDown);
  const int used = config_.experts_used;
  const auto [begin, end] = share(normed_.rows() * d_, thread, pool_.running());
  for (int unit = begin; unit < end;) {
    const int row = unit / d_, first = unit % d_;
    const int count = std::min(d_ - first, end - unit);
    for (const Choice& choice : std::span(choices_).subspan(row * used, used)) {
      const std::size_t at = static_cast<std::size_t>(choice.gathered) * d_ + first;
      kernels_.add_scaled(expert_outputs_.data() + at, choice.weight * config_.residual_scale,
                          ones_.data(), count, residual(row) + first);
    }
    unit += count;
  }
  barrier(thread, Phase::kNorms);
}

void ForwardPass::normalize(const std::vector<float>& weight,
                            std::initializer_list<const PackedMatrix*> readers, int thread) {
  const int groups = normed_.group_count();
  const auto [begin, end] = share(normed_.rows() * groups, thread, pool_.running());
  for (int unit = begin; unit < end;) {
    const int row = unit / groups;
    const int first = unit % groups;
    const int last = std::min(groups, first + end - unit);
    const int first_input = std::min(32 * first, d_);
    const int end_input = std::min(32 * last, d_);
    // Threads that share a row take its norm each for itself.
    if (weight.empty()) {
      std::copy(residual(row) + first_input, residual(row) + end_input,
                normed_.values(row) + first_input);
    } else {
      const float inverse = kernels_.inverse_rms(residual(row), config_.rms_norm_epsilon, d_);
      kernels_.scale(residual(row) + first_input, inverse, weight.data() + first_input,
                     end_input - first_input, normed_.values(row) + first_input);
    }
    prepare_for(readers, normed_, row, first, last);
    unit += last - first;
  }
}

void ForwardPass::prepare_for(std::initializer_list<const PackedMatrix*> readers, Activations& x,
                              int row, int first, int end) const {
  ActivationForm done = ActivationForm::kValues;
  for (const PackedMatrix* reader : readers) {
    const ActivationForm form = kernels_.form(reader->format().kind);
    if (form != done) kernels_.prepare(x, row, first, end, form);
    if (form != ActivationForm::kValues) done = form;
  }
}

void ForwardPass::add_to_residual(const std::vector<float>& weight, int thread) {
  if (adds_directly()) return;
  const auto [begin, end] = share(normed_.rows() * d_, thread, pool_.running());
  for (int unit = begin; unit < end;) {
    const int row = unit / d_, first = unit % d_;
    const int count = std::min(d_ - first, end - unit);
    const float* const x = added_.data() + static_cast<std::size_t>(row) * d_;
    // Threads that share a row take its norm each for itself.
    const float inverse =
        weight.empty() ? 1.0f : kernels_.inverse_rms(x, config_.rms_norm_epsilon, d_);
    kernels_.add_scaled(x + first, inverse * config_.residual_scale,
                        (weight.empty() ? ones_ : weight).data() + first, count,
                        residual(row) + first);
    unit += count;
  }
  barrier(thread, Phase::kNorms);
}

void ForwardPass::finish_logits(float* logits, int n) const {
  if (config_.logit_scale != 1.0f) {
    for (int i = 0; i < n; ++i) logits[i] *= config_.logit_scale;
  }
  if (config_.logit_softcap > 0) kernels_.soft_cap(logits, config_.logit_softcap, n);
}

void ForwardPass::prepare(Activations& x, const PackedMatrix& reader, int thread) const {
  const ActivationForm form = kernels_.form(reader.format().kind);
  const int groups = x.group_count();
  const auto [begin, end] = share(x.rows() * groups, thread, pool_.running());
  for (int unit = begin; unit < end;) {
    const int first = unit % groups;
    const int last = std::min(groups, first + end - unit);
    kernels_.prepare(x, unit / groups, first, last, form);
    unit += last - first;
  }
}

void ForwardPass::multiply(std::span<const Product> products, const Activations& x,
                           const PackedMatrix* next, int thread) const {
  int blocks = 0;
  for (const Product& product : products) blocks += product.weight->blocks();
  pool_.divide(thread, blocks, kTileBlocks, [&](int begin, int end, bool goes_on) {
    int first = 0;
    for (const Product& product : products) {
      const int count = product.weight->blocks();
      const int from = std::clamp(begin - first, 0, count);
      const int to = std::clamp(end - first, 0, count);
      first += count;
      if (from == to) continue;
      // What follows in memory is the next of these products, or more of this thread's share; where
      // that ends, its share of the next matrix.
      const bool more = first < end || goes_on;
      kernels_.matmul({.weights = *product.weight,
                       .first_block = from,
                       .end_block = to,
                       .y = product.y,
                       .y_stride = product.stride,
                       .add = product.add,
                       .next = more ? product.weight->block(to) : share_of(next, thread)},
                      x);
    }
  });
}

const std::byte* ForwardPass::share_of(const PackedMatrix* matrix, int thread) const {
  if (matrix == nullptr) return nullptr;
  return matrix->block(share(matrix->blocks(), thread, pool_.running()).begin);
}

const float* ForwardPass::captured(int row, int layer) const {
  const auto at = std::ranges::find(capture_layers_, layer);
  if (at == capture_layers_.end() || row >= states_after(layer)) return nullptr;
  return captured_[at - capture_layers_.begin()].data() + static_cast<std::size_t>(row) * d_;
}

void ForwardPass::prepare_head(const PackedMatrix& head, std::span<const int> rows, int thread) {
  const auto [begin, end] = share(static_cast<int>(rows.size()), thread, pool_.running());
  for (int i = begin; i < end; ++i) {
    std::ranges::copy(final_state(rows[i]), head_input_.values(i));
    kernels_.prepare(head_input_, i, 0, head_input_.group_count(),
                     kernels_.form(head.format().kind));
  }
}

void ForwardPass::run_head(const PackedMatrix& head, std::span<const int> rows,
                           std::span<float> logits) {
  if (rows.empty()) return;
  head_input_.resize(static_cast<int>(rows.size()), d_);
  pool_.run_on_free_cores([&](int thread) {
    begin_profile(thread);
    prepare_head(head, rows, thread);
    barrier(thread, Phase::kHead);
    multiply({{&head, logits.data(), static_cast<std::size_t>(head.outputs())}}, head_input_,
             nullptr, thread);
    barrier(thread, Phase::kHead);
    const auto [begin, end] = share(static_cast<int>(rows.size()), thread, pool_.running());
    for (int row = begin; row < end; ++row) {
      finish_logits(logits.data() + static_cast<std::size_t>(row) * head.outputs(), head.outputs());
    }
  });
}

void ForwardPass::best_of_head(const PackedMatrix& head, std::span<const int> rows, int count,
                               bool sums, std::span<BestTokens> best) {
  if (rows.empty()) return;
  const int row_count = static_cast<int>(rows.size());
  const int chunks = (head.outputs() + kHeadChunk - 1) / kHeadChunk;
  constexpr int kChunkBlocks = kHeadChunk / kBlockOutputs;
  head_input_.resize(row_count, d_);
  chunk_sums_.resize(static_cast<std::size_t>(sums ? chunks * row_count : 0));
  pool_.run_on_free_cores([&](int thread) {
    begin_profile(thread);
    prepare_head(head, rows, thread);
    std::vector<BestTokens>& own = thread_best_[thread];
    own.resize(row_count);
    for (BestTokens& row : own) row.tokens.clear();
    std::vector<float>& logits = chunk_logits_[thread];
    logits.resize(static_cast<std::size_t>(row_count) * kHeadChunk);
    barrier(thread, Phase::kHead);

    pool_.divide(thread, chunks, /*grain=*/1, [&](int begin, int end, bool goes_on) {
      for (int chunk = begin; chunk < end; ++chunk) {
        const int first = chunk * kHeadChunk;
        const int outputs = std::min(kHeadChunk, head.outputs() - first);
        const int end_block = std::min((chunk + 1) * kChunkBlocks, head.blocks());
        kernels_.matmul({.weights = head,
                         .first_block = chunk * kChunkBlocks,
                         .end_block = end_block,
                         .y = logits.data() - first,
                         .y_stride = kHeadChunk,
                         .next = chunk + 1 < end || goes_on ? head.block(end_block) : nullptr},
                        head_input_);
        for (int row = 0; row < row_count; ++row) {
          float* const of_row = logits.data() + static_cast<std::size_t>(row) * kHeadChunk;
          finish_logits(of_row, outputs);
          std::vector<TokenLogit>& tokens = own[row].tokens;
          int size = static_cast<int>(tokens.size());
          tokens.resize(count);
          kernels_.select_best(of_row, outputs, first, tokens.data(), size, count);
          tokens.resize(size);
          if (sums) {
            chunk_sums_[static_cast<std::size_t>(chunk) * row_count + row] =
                kernels_.sum_exp(of_row, outputs);
          }
        }
      }
    });
    barrier(thread, Phase::kHead);
  });

  for (int row = 0; row < row_count; ++row) {
    std::vector<TokenLogit>& tokens = best[row].tokens;
    tokens.clear();
    for (int thread = 0; thread < pool_.running(); ++thread) {
      const std::vector<TokenLogit>& own = thread_best_[thread][row].tokens;
      tokens.insert(tokens.end(), own.begin(), own.end());
    }
    std::ranges::sort(tokens, likelier);
    tokens.resize(std::min<std::size_t>(tokens.size(), count));
    best[row].log_sum = 0;
    if (!sums || tokens.empty()) continue;
    double sum = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const ExpSum& part = chunk_sums_[static_cast<std::size_t>(chunk) * row_count + row];
      sum += part.sum * std::exp(static_cast<double>(part.largest) - tokens.front().logit);
    }
    best[row].log_sum = static_cast<float>(tokens.front().logit + std::log(sum));
  }
}

void ForwardPass::profile(bool on) {
  profiling_ = on;
  if (on) phase_seconds_.fill(0);
}

void ForwardPass::begin_profile(int thread) {
  if (thread == 0 && profiling_) phase_begin_ = now_seconds();
}

void ForwardPass::barrier(int thread, Phase ended) {
  const bool timed = thread == 0 && profiling_;
  const double before = timed ? now_seconds() : 0;
  pool_.barrier(thread);
  if (!timed) return;
  const double after = now_seconds();
  phase_seconds_[static_cast<int>(ended)] += before - phase_begin_;
  phase_seconds_[static_cast<int>(Phase::kBarriers)] += after - before;
  phase_begin_ = after;
}

}  // namespace firp
