#include "train/upper_layers.h"

#include <cmath>
#include <limits>
#include <map>
#include <numeric>

namespace firp {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, in F32, the result in `type`.
// Written with its gradient because autograd's own chain of small operations costs twice as much.
struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& weight, double epsilon,
                               torch::ScalarType type) {
    const torch::Tensor x32 = x.to(torch::kFloat32);
    const torch::Tensor inverse = x32.square().mean(-1, true).add_(epsilon).rsqrt_();
    const torch::Tensor normed = x32 * inverse;
    context->save_for_backward({normed, inverse, weight});
    context->saved_data["type"] = static_cast<std::int64_t>(x.scalar_type());
    return (normed * weight).to(type);
  }
  static tensor_list backward(AutogradContext* context, const tensor_list& gradients) {
    const auto saved = context->get_saved_variables();
    const torch::Tensor &normed = saved[0], &inverse = saved[1], &weight = saved[2];
    const torch::Tensor gradient = gradients[0].to(torch::kFloat32) * weight;
    const torch::Tensor along = (gradient * normed).mean(-1, true);
    const auto type = static_cast<torch::ScalarType>(context->saved_data["type"].toInt());
    return {torch::addcmul(gradient, normed, along, -1).mul_(inverse).to(type), {}, {}, {}};
  }
};

// Turns pairs (k, k + dimensions / 2) of heads [R, heads, head_size]; cosine and sine are
// [R, 1, dimensions / 2]. The gradient turns back.
struct Rope : torch::autograd::Function<Rope> {
  static torch::Tensor turn(const torch::Tensor& x, const torch::Tensor& cosine,
                            const torch::Tensor& sine) {
    const torch::Tensor x32 = x.to(torch::kFloat32);
    const std::int64_t half = cosine.size(-1);
    const torch::Tensor first = x32.narrow(-1, 0, half), second = x32.narrow(-1, half, half);
    torch::Tensor out = torch::empty_like(x);
    out.narrow(-1, 0, half).copy_((first * cosine).addcmul_(second, sine, -1));
    out.narrow(-1, half, half).copy_((second * cosine).addcmul_(first, sine));
    const std::int64_t rest = x.size(-1) - 2 * half;
    if (rest > 0) {
      out.narrow(-1, 2 * half, rest).copy_(x.narrow(-1, 2 * half, rest));
    }
    return out;
  }
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& cosine, const torch::Tensor& sine) {
    context->save_for_backward({cosine, sine});
    return turn(x, cosine, sine);
  }
  static tensor_list backward(AutogradContext* context, const tensor_list& gradients) {
    const auto saved = context->get_saved_variables();
    return {turn(gradients[0], saved[0], -saved[1]), {}, {}};
  }
};

// silu(gate) * up or gelu(gate) * up, where x holds both side by side.
struct ActivateMultiply : torch::autograd::Function<ActivateMultiply> {
  static torch::Tensor activated(const torch::Tensor& gate, bool gelu) {
    return gelu ? torch::gelu(gate, "tanh") : torch::silu(gate);
  }
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x, bool gelu) {
    context->save_for_backward({x});
    context->saved_data["gelu"] = gelu;
    const std::int64_t size = x.size(-1) / 2;
    return activated(x.narrow(-1, 0, size), gelu).mul_(x.narrow(-1, size, size));
  }
  static tensor_list backward(AutogradContext* context, const tensor_list& gradients) {
    const torch::Tensor x = context->get_saved_variables()[0];
    const bool gelu = context->saved_data["gelu"].toBool();
    const std::int64_t size = x.size(-1) / 2;
    const torch::Tensor gate = x.narrow(-1, 0, size), up = x.narrow(-1, size, size);
    const torch::Tensor of_gate = gradients[0] * up;
    torch::Tensor gradient = torch::empty_like(x);
    gradient.narrow(-1, 0, size)
        .copy_(gelu ? at::gelu_backward(of_gate, gate, "tanh") : at::silu_backward(of_gate, gate));
    gradient.narrow(-1, size, size).copy_(activated(gate, gelu).mul_(gradients[0]));
    return {gradient, {}};
  }
};

torch::Tensor load(const firp::Tensor& tensor) {
  std::vector<float> values = dequantize(tensor);
  std::vector<std::int64_t> shape = {tensor.columns()};
  if (tensor.rows() > 1) {
    shape.insert(shape.begin(), tensor.rows());
  }
  return torch::from_blob(values.data(), shape, torch::kFloat32).clone();
}

// The order of a head's elements that makes the file's pairs (k, k + dimensions / 2). Queries and
// keys take it alike, so their products stay the same and one form of RoPE is enough.
torch::Tensor rope_order(const ModelConfig& config) {
  std::vector<std::int64_t> order(config.head_size);
  std::iota(order.begin(), order.end(), 0);
  const RopeConfig& rope = config.ropes.front();
  const int half = rope.dimensions / 2;
  for (int k = 0; rope.interleaved && k < half; ++k) {
    order[k] = 2 * k;
    order[half + k] = 2 * k + 1;
  }
  return torch::tensor(order);
}

// Reorders the outputs of a query or key projection (or bias, or norm weight) head by head.
torch::Tensor reorder_heads(const torch::Tensor& weight, const torch::Tensor& order) {
  std::vector<std::int64_t> by_head = weight.sizes().vec();
  by_head[0] = weight.size(0) / order.size(0);
  by_head.insert(by_head.begin() + 1, order.size(0));
  return weight.view(by_head).index_select(1, order).reshape(weight.sizes());
}

}  // namespace

UpperLayers::UpperLayers(const Model& model, int first_layer, torch::Device device,
                         torch::ScalarType type)
    : config_(model.config()), first_layer_(first_layer), device_(device), type_(type) {
  const auto vector = [&](const torch::Tensor& values) { return values.to(device); };
  const auto matrix = [&](const torch::Tensor& values) { return values.to(device, type); };

  const torch::Tensor order = rope_order(config_);
  const auto optional = [&](const firp::Tensor* tensor) {
    return tensor != nullptr ? vector(load(*tensor)) : torch::Tensor();
  };
  for (int index = first_layer; index < config_.layers; ++index) {
    const LayerTensors& tensors = model.layers()[index];
    Layer layer;
    layer.attention_norm = optional(tensors.attention_norm);
    layer.query_key_value =
        matrix(torch::cat({reorder_heads(load(*tensors.query), order),
                           reorder_heads(load(*tensors.key), order), load(*tensors.value)}));
    if (config_.qkv_bias) {
      layer.query_key_value_bias = matrix(
          torch::cat({reorder_heads(load(*tensors.query_bias), order),
                      reorder_heads(load(*tensors.key_bias), order), load(*tensors.value_bias)}));
    }
    if (config_.head_norms != HeadNorms::kNone) {
      layer.query_norm = vector(reorder_heads(load(*tensors.query_norm), order));
      layer.key_norm = vector(reorder_heads(load(*tensors.key_norm), order));
    }
    layer.output = matrix(load(*tensors.output));
    layer.attention_post_norm = optional(tensors.attention_post_norm);
    layer.feed_forward_norm = optional(tensors.feed_forward_norm);
    const std::int64_t experts = std::max(1, config_.experts);
    const auto of_experts = [&](const firp::Tensor* tensor) {
      return load(*tensor).view({experts, -1, tensor->columns()});
    };
    layer.gate_up = matrix(torch::cat({of_experts(tensors.gate), of_experts(tensors.up)}, 1));
    layer.down = matrix(of_experts(tensors.down));
    layer.router = optional(tensors.router);
    layer.feed_forward_post_norm = optional(tensors.feed_forward_post_norm);
    layers_.push_back(std::move(layer));
  }
  output_norm_ = vector(load(model.output_norm()));
  head_ = matrix(load(model.head()));
  embedding_ = config_.tied_head ? head_ : matrix(load(model.token_embedding()));
  if (config_.logit_scale != 1) head_ = head_ * config_.logit_scale;
  embedding_scale_ = 1 / embedding_.to(torch::kFloat32).square().mean().sqrt().item<double>();
  for (const RopeConfig& rope : config_.ropes) {
    frequencies_.push_back(torch::tensor(rope.frequencies, torch::kFloat32).to(device));
  }
}

std::vector<UpperLayers::Angles> UpperLayers::angles_at(const torch::Tensor& positions) const {
  std::vector<Angles> all;
  for (std::size_t i = 0; i < frequencies_.size(); ++i) {
    const torch::Tensor angles =
        (positions.to(torch::kFloat32).unsqueeze(1) * frequencies_[i]).unsqueeze(1);
    const float magnitude = config_.ropes[i].magnitude;
    all.push_back({angles.cos().mul_(magnitude), angles.sin().mul_(magnitude)});
  }
  return all;
}

torch::Tensor UpperLayers::norm(const torch::Tensor& x, const torch::Tensor& weight) const {
  if (!weight.defined()) return x.to(type_);
  return RmsNorm::apply(x, weight, config_.rms_norm_epsilon, type_);
}

torch::Tensor UpperLayers::heads_of(const torch::Tensor& projected, const torch::Tensor& weight,
                                    torch::ScalarType type) const {
  const std::vector<std::int64_t> shape = {projected.size(0), -1, config_.head_size};
  switch (config_.head_norms) {
    case HeadNorms::kNone:
      break;
    case HeadNorms::kEach:
      return RmsNorm::apply(projected.reshape(shape), weight, config_.rms_norm_epsilon, type);
    case HeadNorms::kAll:
      return RmsNorm::apply(projected, weight, config_.rms_norm_epsilon, type).reshape(shape);
  }
  return projected.reshape(shape);
}

torch::Tensor UpperLayers::feed_forward(const Layer& weights, const torch::Tensor& x) const {
  const auto expert = [&](int index, const torch::Tensor& rows) {
    const torch::Tensor inner = torch::linear(rows, weights.gate_up[index]);
    return torch::linear(ActivateMultiply::apply(inner, config_.activation == Activation::kGelu),
                         weights.down[index]);
  };
  if (config_.experts == 0) return expert(0, x);
  const torch::Tensor shares =
      torch::softmax(torch::linear(x.to(torch::kFloat32), weights.router), -1);
  auto [weight, chosen] = shares.topk(config_.experts_used);
  if (config_.expert_weights == ExpertWeights::kOfUsed) weight = weight / weight.sum(-1, true);
  torch::Tensor out = torch::zeros_like(x);
  for (int index = 0; index < config_.experts; ++index) {
    const torch::Tensor users = (chosen == index).nonzero();  // [users, 2]: row, and which choice
    if (users.size(0) == 0) continue;
    const torch::Tensor rows = users.select(1, 0);
    const torch::Tensor by = weight.index({rows, users.select(1, 1)}).unsqueeze(1).to(type_);
    out = out.index_add(0, rows, expert(index, x.index_select(0, rows)) * by);
  }
  return out;
}

torch::Tensor UpperLayers::keys_values(int layer, const torch::Tensor& hidden) const {
  const torch::NoGradGuard no_gradient;
  const Layer& weights = layers_[layer - first_layer_];
  const std::int64_t rows = hidden.size(0);
  const int query_size = config_.query_size(), kv_size = config_.kv_size();

  const torch::Tensor x = norm(hidden.to(device_), weights.attention_norm);
  const torch::Tensor projected = torch::linear(
      x, weights.query_key_value.slice(0, query_size),
      config_.qkv_bias ? weights.query_key_value_bias.slice(0, query_size) : torch::Tensor());
  torch::Tensor keys = heads_of(projected.narrow(1, 0, kv_size), weights.key_norm, torch::kFloat32)
                           .to(torch::kFloat32);
  const torch::Tensor values =
      projected.narrow(1, kv_size, kv_size).view({rows, config_.kv_heads, config_.head_size});
  if (const int rope = config_.by_layer[layer].rope; rope >= 0) {
    const std::vector<Angles> angles =
        angles_at(torch::arange(rows, torch::TensorOptions().device(device_)));
    keys = Rope::turn(keys, angles[rope].cosine, angles[rope].sine);
  }
  return torch::stack({keys, values.to(torch::kFloat32)})
      .permute({0, 2, 1, 3})
      .to(type_ == torch::kFloat32 ? torch::kFloat16 : type_)
      .contiguous();
}

torch::Tensor UpperLayers::forward(int layer, const torch::Tensor& rows,
                                   const torch::Tensor& anchors, const torch::Tensor& context,
                                   const std::optional<Adapters>& adapters) const {
  const std::int64_t sequences = rows.size(0), per_sequence = rows.size(1), steps = rows.size(2);
  const std::int64_t chain_rows = per_sequence * steps;  // of one sequence
  const std::int64_t length = context.size(-2);
  const int kv_heads = config_.kv_heads, head_size = config_.head_size;
  const int group = config_.query_heads / kv_heads;
  const int query_size = config_.query_size(), kv_size = config_.kv_size();
  const auto on_device = torch::TensorOptions().device(device_);

  // The rows' positions i + j: [B, A, K].
  const torch::Tensor positions = anchors.unsqueeze(2) + torch::arange(1, steps + 1, on_device);
  const std::vector<Angles> angles = angles_at(positions.flatten());

  // What each row sees: real positions up to its anchor, then the rows of its own chain up to
  // itself; in layers with a window no further back than that. [B, 1, A, K, 1, T + A K], 0 or
  // -infinity.
  const torch::Tensor sees_context = (torch::arange(length, on_device) <= anchors.unsqueeze(2))
                                         .view({sequences, 1, per_sequence, 1, 1, length})
                                         .expand({sequences, 1, per_sequence, steps, 1, length});
  const torch::Tensor row = torch::arange(chain_rows, on_device);
  const torch::Tensor chain = torch::div(row, steps, "floor");
  const torch::Tensor sees_chain = ((chain.unsqueeze(1) == chain) & (row.unsqueeze(1) >= row))
                                       .view({1, 1, per_sequence, steps, 1, chain_rows})
                                       .expand({sequences, 1, per_sequence, steps, 1, chain_rows});
  const torch::Tensor sees = torch::cat({sees_context, sees_chain}, -1);
  const torch::Tensor column_positions =
      torch::cat({torch::arange(length, on_device)
                      .view({1, 1, 1, 1, 1, length})
                      .expand({sequences, 1, 1, 1, 1, length}),
                  positions.view({sequences, 1, 1, 1, 1, chain_rows})},
                 -1);
  const torch::Tensor distances =
      positions.view({sequences, 1, per_sequence, steps, 1, 1}) - column_positions;
  std::map<int, torch::Tensor> masks;  // by window
  const auto mask_of = [&](int window) -> const torch::Tensor& {
    torch::Tensor& mask = masks[window];
    if (mask.defined()) return mask;
    const torch::Tensor seen = window > 0 ? sees & (distances < window) : sees;
    mask = torch::zeros({}, on_device.dtype(type_))
               .masked_fill(seen.logical_not(), -std::numeric_limits<float>::infinity());
    return mask;
  };

  const auto attention_layout = [&](const torch::Tensor& heads, std::int64_t per_kv_head) {
    return heads.view({sequences, chain_rows, kv_heads, per_kv_head, head_size})
        .transpose(1, 2)
        .reshape({sequences * kv_heads, chain_rows * per_kv_head, head_size});
  };

  torch::Tensor x = rows.reshape({-1, config_.hidden_size});
  for (int index = layer; index < config_.layers; ++index) {
    const Layer& weights = layers_[index - first_layer_];
    if (adapters) {
      x = adapters->adapt(x, index - layer);
    }
    const LayerConfig& layer_config = config_.by_layer[index];
    const auto add = [&](const torch::Tensor& output, const torch::Tensor& post_norm) {
      const torch::Tensor added = norm(output, post_norm);
      x = config_.residual_scale == 1 ? x + added : x + added * config_.residual_scale;
    };
    const torch::Tensor projected = torch::linear(
        norm(x, weights.attention_norm), weights.query_key_value, weights.query_key_value_bias);
    torch::Tensor query = heads_of(projected.narrow(1, 0, query_size), weights.query_norm, type_);
    torch::Tensor key = heads_of(projected.narrow(1, query_size, kv_size), weights.key_norm, type_);
    if (layer_config.rope >= 0) {
      const auto& [cosine, sine] = angles[layer_config.rope];
      query = Rope::apply(query, cosine, sine);
      key = Rope::apply(key, cosine, sine);
    }
    query = attention_layout(query, group);
    key = attention_layout(key, 1);
    const torch::Tensor value =
        attention_layout(projected.narrow(1, query_size + kv_size, kv_size), 1);

    const torch::Tensor real = context[index - first_layer_].to(type_);
    const std::vector<std::int64_t> flat = {sequences * kv_heads, length, head_size};
    const torch::Tensor keys = torch::cat({real[0].reshape(flat), key}, 1);
    const torch::Tensor values = torch::cat({real[1].reshape(flat), value}, 1);
    torch::Tensor scores = torch::bmm(query * config_.attention_scale, keys.transpose(1, 2));
    if (const float cap = config_.attention_softcap; cap > 0)
      scores = torch::tanh(scores / cap) * cap;
    scores = scores.view({sequences, kv_heads, per_sequence, steps, group, length + chain_rows})
                 .add_(mask_of(layer_config.window))
                 .view({sequences * kv_heads, chain_rows * group, length + chain_rows});
    const torch::Tensor attended = torch::bmm(torch::softmax(scores, -1), values)
                                       .view({sequences, kv_heads, chain_rows, group * head_size})
                                       .transpose(1, 2)
                                       .reshape({-1, query_size});
    add(torch::linear(attended, weights.output), weights.attention_post_norm);

    add(feed_forward(weights, norm(x, weights.feed_forward_norm)), weights.feed_forward_post_norm);
  }
  return norm(x, output_norm_).view({sequences, per_sequence, steps, config_.hidden_size});
}

torch::Tensor UpperLayers::normed(const torch::Tensor& hidden) const {
  return RmsNorm::apply(hidden.to(device_), output_norm_, config_.rms_norm_epsilon,
                        torch::kFloat32);
}

torch::Tensor UpperLayers::final_states(const Maps& maps, const torch::Tensor& hidden,
                                        const torch::Tensor& embeddings,
                                        const torch::Tensor& anchors,
                                        const torch::Tensor& context) const {
  const std::vector<std::int64_t> shape = {anchors.size(0), anchors.size(1), maps.steps(),
                                           config_.hidden_size};
  if (maps.method == HeadsMethod::kMedusa) {
    return maps.rows(normed(hidden), embeddings).reshape(shape).to(type_);
  }
  return forward(maps.layer, maps.rows(hidden.to(device_), embeddings).reshape(shape), anchors,
                 context, maps.adapters);
}

torch::Device fast_device() { return torch::cuda::is_available() ? torch::kCUDA : torch::kCPU; }

torch::ScalarType fast_type(torch::Device device) {
  if (device.is_cuda()) {
    return torch::kBFloat16;
  }
#if defined(__x86_64__) && defined(__GNUC__)
  if (at::hasMKLDNN() && __builtin_cpu_supports("avx512bf16")) {
    return torch::kBFloat16;
  }
#endif
  return torch::kFloat32;
}

}  // namespace firp
