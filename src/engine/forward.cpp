#include "engine/forward.h"

#include <algorithm>
#include <cmath>

namespace firp {
namespace {

bool reads_codes(const PackedMatrix& weight) {
  return weight.format().codes == CodeKind::kFourBit ||
         weight.format().codes == CodeKind::kEightBit;
}

void add(std::span<const float> bias, float* x) {
  for (std::size_t i = 0; i < bias.size(); ++i) x[i] += bias[i];
}

}  // namespace

ForwardPass::ForwardPass(const Model& model, const Weights& weights, const Kernels& kernels,
                         KvCache& cache, ThreadPool& pool, int max_rows)
    : model_(model),
      config_(model.config()),
      weights_(weights),
      kernels_(kernels),
      cache_(cache),
      pool_(pool),
      d_(config_.hidden_size),
      active_rows_(config_.layers),
      normed_(max_rows, config_.hidden_size),
      attended_(max_rows, config_.query_size()),
      gated_(max_rows, config_.feed_forward_size),
      map_input_(max_rows, config_.hidden_size),
      head_input_(max_rows, config_.hidden_size),
      slots_(pool.size()) {
  const auto allocate = [max_rows](std::vector<float>& buffer, int width) {
    buffer.resize(static_cast<std::size_t>(max_rows) * width);
  };
  allocate(residual_, d_);
  allocate(query_, config_.query_size());
  allocate(key_, config_.kv_size());
  allocate(value_, config_.kv_size());
  allocate(product_, d_);
  allocate(gate_, config_.feed_forward_size);
  allocate(up_, config_.feed_forward_size);
  allocate(final_states_, d_);
  allocate(cosines_, config_.rope.dimensions / 2);
  allocate(sines_, config_.rope.dimensions / 2);
}

void ForwardPass::run(std::span<const PassRow> rows, std::span<const PackedMap> maps,
                      std::span<const int> capture_layers) {
  rows_ = rows;
  maps_ = maps;
  capture_layers_.assign(capture_layers.begin(), capture_layers.end());
  const int count = static_cast<int>(rows.size());
  token_rows_ = static_cast<int>(
      std::ranges::count_if(rows, [](const PassRow& row) { return row.step == 0; }));
  first_layer_ = rows.front().entry_layer;
  for (int layer = 0, active = 0; layer < config_.layers; ++layer) {
    while (active < count && rows[active].entry_layer <= layer) ++active;
    active_rows_[layer] = active;
  }
  captured_.resize(std::max(captured_.size(), capture_layers_.size()));
  for (std::size_t i = 0; i < capture_layers_.size(); ++i) {
    captured_[i].resize(static_cast<std::size_t>(token_rows_) * d_);
  }
  pool_.run([this](int thread) { run_thread(thread); });
}

void ForwardPass::run_thread(int thread) {
  embed(thread);
  for (int layer = first_layer_; layer < config_.layers; ++layer) {
    enter_rows(layer, thread);
    attention(layer, thread);
    feed_forward(layer, thread);

    for (std::size_t i = 0; i < capture_layers_.size(); ++i) {
      if (capture_layers_[i] != layer + 1) continue;
      const auto [begin, end] = share(token_rows_, thread, pool_.size());
      std::copy(residual(begin), residual(end),
                captured_[i].data() + static_cast<std::size_t>(begin) * d_);
    }
  }
  const auto [begin, end] = share(static_cast<int>(rows_.size()), thread, pool_.size());
  for (int row = begin; row < end; ++row) {
    kernels_.rms_norm(residual(row), weights_.output_norm.data(), config_.rms_norm_epsilon, d_,
                      final_states_.data() + static_cast<std::size_t>(row) * d_);
  }
}

void ForwardPass::embed(int thread) {
  const auto [begin, end] = share(static_cast<int>(rows_.size()), thread, pool_.size());
  const int pairs = config_.rope.dimensions / 2;
  for (int row = begin; row < end; ++row) {
    if (rows_[row].step == 0) {
      dequantize_row(model_.token_embedding(), rows_[row].token,
                     {residual(row), static_cast<std::size_t>(d_)});
    }
    for (int pair = 0; pair < pairs; ++pair) {
      const float angle = static_cast<float>(rows_[row].position) * config_.rope.frequencies[pair];
      const std::size_t at = static_cast<std::size_t>(row) * pairs + pair;
      cosines_[at] = std::cos(angle) * config_.rope.magnitude;
      sines_[at] = std::sin(angle) * config_.rope.magnitude;
    }
  }
}

void ForwardPass::enter_rows(int layer, int thread) {
  const int before = layer == first_layer_ ? 0 : active_rows_[layer - 1];
  const int active = active_rows_[layer];
  if (active != before) {
    if (thread == 0) {
      normed_.resize(active, d_);
      attended_.resize(active, config_.query_size());
      gated_.resize(active, config_.feed_forward_size);
    }
    barrier(thread);
  }

  // p_{i,j} = W_j h_i^{t_j} + b_j, for all rows of a step that enters here.
  for (int first = std::max(before, token_rows_); first < active;) {
    const int step = rows_[first].step;
    int end = first;
    while (end < active && rows_[end].step == step) ++end;
    const PackedMap& map = maps_[step - 1];
    if (thread == 0) {
      map_input_.resize(end - first, d_);
      for (int row = first; row < end; ++row) {
        const PassRow& r = rows_[row];
        std::copy_n(r.source_row >= 0 ? residual(r.source_row) : r.source, d_,
                    map_input_.values(row - first));
      }
    }
    barrier(thread);
    multiply({{&map.weight, residual(first), static_cast<std::size_t>(d_)}}, map_input_, thread);
    barrier(thread);
    const auto [begin, last] = share(end - first, thread, pool_.size());
    for (int row = first + begin; row < first + last; ++row) add(map.bias, residual(row));
    barrier(thread);
    first = end;
  }
}

void ForwardPass::attention(int layer, int thread) {
  const LayerWeights& w = weights_.layers[layer];
  const int active = active_rows_[layer];
  const int head_size = config_.head_size;
  const int group = config_.query_heads / config_.kv_heads;
  const int pairs = config_.rope.dimensions / 2;
  const std::size_t query_size = config_.query_size();
  const std::size_t kv_size = config_.kv_size();

  normalize(w.attention_norm, reads_codes(w.query) || reads_codes(w.key) || reads_codes(w.value),
            thread);
  barrier(thread);
  multiply({{&w.query, query_.data(), query_size},
            {&w.key, key_.data(), kv_size},
            {&w.value, value_.data(), kv_size}},
           normed_, thread);
  barrier(thread);

  // Per row and KV head: its query heads, its key and its value get bias, norm and rotation; key
  // and value go to the row's scratch slot.
  const int tasks = active * config_.kv_heads;
  const auto [first_task, end_task] = share(tasks, thread, pool_.size());
  for (int task = first_task; task < end_task; ++task) {
    const int row = task / config_.kv_heads;
    const int kv_head = task % config_.kv_heads;
    const float* const cosines = cosines_.data() + static_cast<std::size_t>(row) * pairs;
    const float* const sines = sines_.data() + static_cast<std::size_t>(row) * pairs;
    const auto finish = [&](float* head, int index, const std::vector<float>& bias,
                            const std::vector<float>& norm) {
      if (!bias.empty()) {
        add(std::span(bias).subspan(static_cast<std::size_t>(index) * head_size, head_size), head);
      }
      if (!norm.empty()) {
        kernels_.rms_norm(head, norm.data(), config_.rms_norm_epsilon, head_size, head);
      }
      kernels_.rope(head, cosines, sines, pairs, config_.rope.interleaved);
    };
    for (int i = 0; i < group; ++i) {
      const int head = kv_head * group + i;
      finish(query_.data() + row * query_size + static_cast<std::size_t>(head) * head_size, head,
             w.query_bias, w.query_norm);
    }
    const std::size_t at = row * kv_size + static_cast<std::size_t>(kv_head) * head_size;
    finish(key_.data() + at, kv_head, w.key_bias, w.key_norm);
    if (!w.value_bias.empty()) {
      add(std::span(w.value_bias).subspan(static_cast<std::size_t>(kv_head) * head_size, head_size),
          value_.data() + at);
    }
    kernels_.store_kv(key_.data() + at, value_.data() + at, head_size,
                      cache_.scratch_page(row) + cache_.offset(layer, kv_head),
                      row % kPagePositions);
  }
  barrier(thread);

  // A row sees its sequence's committed context, its ancestors as far as they exist in this layer,
  // and itself.
  for (int task = first_task; task < end_task; ++task) {
    const int row = task / config_.kv_heads;
    const int kv_head = task % config_.kv_heads;
    const PassRow& r = rows_[row];
    std::vector<std::int32_t>& slots = slots_[thread];
    slots.assign(r.path.begin(), r.path.end());
    for (std::int32_t& slot : slots) {
      if (rows_[slot].entry_layer > layer) slot = kNoSlot;
    }
    const std::size_t at = static_cast<std::size_t>(kv_head) * group * head_size;
    kernels_.attend({.query = query_.data() + row * query_size + at,
                     .out = attended_.values(row) + at,
                     .group = group,
                     .head_size = head_size,
                     .scale = 1.0f / std::sqrt(static_cast<float>(head_size)),
                     .offset = cache_.offset(layer, kv_head),
                     .pages = cache_.pages(r.sequence),
                     .committed = cache_.length(r.sequence),
                     .scratch = cache_.scratch(),
                     .slots = slots});
  }
  barrier(thread);
  if (reads_codes(w.output)) {
    const auto [begin, end] = share(active, thread, pool_.size());
    for (int row = begin; row < end; ++row) kernels_.quantize(attended_, row);
    barrier(thread);
  }
  multiply({{&w.output, product_.data(), static_cast<std::size_t>(d_)}}, attended_, thread);
  add_to_residual(w.output, thread);
  barrier(thread);
}

void ForwardPass::feed_forward(int layer, int thread) {
  const LayerWeights& w = weights_.layers[layer];
  const int active = active_rows_[layer];
  const std::size_t width = config_.feed_forward_size;

  normalize(w.feed_forward_norm, reads_codes(w.gate) || reads_codes(w.up), thread);
  barrier(thread);

  // A thread makes the same outputs of gate and up, so it can combine them at once.
  const auto [first_block, end_block] = share(w.gate.blocks(), thread, pool_.size());
  kernels_.matmul(w.gate, first_block, end_block, normed_, gate_.data(), width);
  kernels_.matmul(w.up, first_block, end_block, normed_, up_.data(), width);
  const int begin = std::min(first_block * kBlockOutputs, config_.feed_forward_size);
  const int end = std::min(end_block * kBlockOutputs, config_.feed_forward_size);
  for (int row = 0; row < active; ++row) {
    kernels_.silu_multiply(gate_.data() + row * width + begin, up_.data() + row * width + begin,
                           end - begin, gated_.values(row) + begin);
  }
  barrier(thread);
  if (reads_codes(w.down)) {
    const auto [first_row, end_row] = share(active, thread, pool_.size());
    for (int row = first_row; row < end_row; ++row) kernels_.quantize(gated_, row);
    barrier(thread);
  }
  multiply({{&w.down, product_.data(), static_cast<std::size_t>(d_)}}, gated_, thread);
  add_to_residual(w.down, thread);
  barrier(thread);
}

void ForwardPass::normalize(const std::vector<float>& weight, bool codes, int thread) {
  const auto [begin, end] = share(normed_.rows(), thread, pool_.size());
  for (int row = begin; row < end; ++row) {
    kernels_.rms_norm(residual(row), weight.data(), config_.rms_norm_epsilon, d_,
                      normed_.values(row));
    if (codes) kernels_.quantize(normed_, row);
  }
}

void ForwardPass::multiply(std::initializer_list<Product> products, const Activations& x,
                           int thread) const {
  int blocks = 0;
  for (const Product& product : products) blocks += product.weight->blocks();
  const auto [begin, end] = share(blocks, thread, pool_.size());
  int first = 0;
  for (const Product& product : products) {
    const int count = product.weight->blocks();
    const int from = std::clamp(begin - first, 0, count);
    const int to = std::clamp(end - first, 0, count);
    if (from < to) kernels_.matmul(*product.weight, from, to, x, product.y, product.stride);
    first += count;
  }
}

void ForwardPass::add_to_residual(const PackedMatrix& weight, int thread) {
  const auto [first_block, end_block] = share(weight.blocks(), thread, pool_.size());
  const int begin = std::min(first_block * kBlockOutputs, d_);
  const int end = std::min(end_block * kBlockOutputs, d_);
  for (int row = 0; row < normed_.rows(); ++row) {
    const float* const product = product_.data() + static_cast<std::size_t>(row) * d_;
    add({product + begin, product + end}, residual(row) + begin);
  }
}

const float* ForwardPass::captured(int row, int layer) const {
  const auto at = std::ranges::find(capture_layers_, layer);
  if (at == capture_layers_.end() || row >= token_rows_) return nullptr;
  return captured_[at - capture_layers_.begin()].data() + static_cast<std::size_t>(row) * d_;
}

void ForwardPass::run_head(std::span<const int> rows, std::span<float> logits) {
  const int count = static_cast<int>(rows.size());
  head_input_.resize(count, d_);
  const bool codes = reads_codes(weights_.head);
  pool_.run([&](int thread) {
    const auto [begin, end] = share(count, thread, pool_.size());
    for (int i = begin; i < end; ++i) {
      std::ranges::copy(final_state(rows[i]), head_input_.values(i));
      if (codes) kernels_.quantize(head_input_, i);
    }
    barrier(thread);
    multiply({{&weights_.head, logits.data(), static_cast<std::size_t>(config_.vocabulary_size)}},
             head_input_, thread);
  });
}

}  // namespace firp
