#include "train/maps.h"

#include <cmath>

namespace firp {
namespace {

torch::Tensor exact(const torch::Tensor& x) { return x.detach().to(torch::kCPU, torch::kFloat64); }

torch::Tensor rounded(const torch::Tensor& x) {
  return x.clamp(-65504, 65504).to(torch::kFloat16).to(torch::kFloat64);
}

std::vector<float> values(const torch::Tensor& x) {
  const torch::Tensor x32 = x.to(torch::kFloat32).contiguous();
  return {x32.data_ptr<float>(), x32.data_ptr<float>() + x32.numel()};
}

torch::Tensor matrix(const std::vector<float>& values, std::int64_t rows) {
  return torch::tensor(values, torch::kFloat32).view({rows, -1});
}

}  // namespace

SequentialHeads SequentialHeads::initial(int steps, int rank, std::int64_t d, double state_scale,
                                         double token_scale, std::uint64_t seed) {
  torch::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const double bound = 1 / std::sqrt(2.0 * static_cast<double>(d));
  const auto random = [&] {
    return torch::rand({steps, rank, d}, generator).mul_(2 * bound).sub_(bound);
  };
  const torch::Tensor state = random(), token = random();
  return {state_scale,
          token_scale,
          state,
          token,
          torch::zeros({steps, rank}),
          torch::zeros({steps, d, rank})};
}

torch::Tensor SequentialHeads::correction(const torch::Tensor& states,
                                          const torch::Tensor& embeddings) const {
  const torch::Tensor by_step = embeddings.to(torch::kFloat32).transpose(0, 1) * token_scale;
  const torch::Tensor inner =
      torch::baddbmm(inner_of_states(states).transpose(0, 1), by_step, token.transpose(1, 2));
  return torch::bmm(torch::silu(inner), output.transpose(1, 2)).transpose(0, 1);
}

torch::Tensor SequentialHeads::inner_of_states(const torch::Tensor& states) const {
  const torch::Tensor by_step = states.to(torch::kFloat32).transpose(0, 1) * state_scale;
  return torch::baddbmm(bias.unsqueeze(1), by_step, state.transpose(1, 2)).transpose(0, 1);
}

torch::Tensor SequentialHeads::correction_behind(int step, const torch::Tensor& inner,
                                                 const torch::Tensor& embeddings) const {
  const torch::Tensor of_token =
      torch::mm(embeddings.to(torch::kFloat32) * token_scale, token[step].t());
  return torch::mm(torch::silu(inner + of_token), output[step].t());
}

Adapters Adapters::initial(int layers, int rank, std::int64_t d, std::uint64_t seed) {
  torch::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const double bound = 1 / std::sqrt(static_cast<double>(d));
  return {torch::rand({layers, rank, d}, generator).mul_(2 * bound).sub_(bound),
          torch::zeros({layers, d, rank})};
}

torch::Tensor Adapters::adapt(const torch::Tensor& rows, int index) const {
  const torch::Tensor scaled = rows * rows.square().mean(-1, true).add(kAdapterEpsilon).rsqrt();
  return rows + torch::linear(torch::silu(torch::linear(scaled, down[index])), up[index]);
}

torch::Tensor Maps::rows(const torch::Tensor& hidden, const torch::Tensor& embeddings) const {
  const torch::Tensor input = ((hidden - mean) / deviation).expand({steps(), -1, -1});
  torch::Tensor output = torch::baddbmm(bias.unsqueeze(1), input, weight.transpose(1, 2));
  if (method == HeadsMethod::kMedusa) {
    return (hidden + torch::silu(output)).transpose(0, 1);
  }
  if (token) {
    const torch::Tensor scaled = embeddings.to(torch::kFloat32) * token->scale;
    output = output.baddbmm(scaled.expand({steps(), -1, -1}), token->weight.transpose(1, 2));
  }
  return torch::addcmul(mean, output, deviation).transpose(0, 1);
}

std::vector<torch::Tensor*> Maps::parameters() {
  std::vector<torch::Tensor*> all = {&weight, &bias};
  if (token) {
    all.push_back(&token->weight);
  }
  if (sequence) {
    all.insert(all.end(), {&sequence->state, &sequence->token, &sequence->bias, &sequence->output});
  }
  if (adapters) {
    all.insert(all.end(), {&adapters->down, &adapters->up});
  }
  return all;
}

Maps Maps::to(torch::Device device) const {
  Maps out = *this;
  out.mean = mean.to(device);
  out.deviation = deviation.to(device);
  for (torch::Tensor* const parameter : out.parameters()) {
    *parameter = parameter->to(device);
  }
  return out;
}

Heads to_heads(const Maps& maps, const ModelIdentity& base) {
  const torch::NoGradGuard no_gradient;
  const torch::Tensor mean = exact(maps.mean), deviation = exact(maps.deviation);
  Heads heads;
  heads.base = base;
  heads.method = maps.method;
  const bool medusa = maps.method == HeadsMethod::kMedusa;  // whose output is not standardised
  const torch::Tensor out_mean = medusa ? torch::zeros_like(mean) : mean;
  const torch::Tensor out_deviation = medusa ? torch::ones_like(mean) : deviation;
  for (int step = 0; step < maps.steps(); ++step) {
    const torch::Tensor weight =
        rounded(exact(maps.weight[step]) * out_deviation.unsqueeze(1) / deviation);
    // With the rounded weights, so that the rounding is made up for as far as the mean goes.
    const torch::Tensor bias =
        out_mean + out_deviation * exact(maps.bias[step]) - torch::mv(weight, mean);
    DraftMap map{.layer = maps.layer, .weight = values(weight), .bias = values(bias)};
    if (maps.token) {
      map.token = values(
          rounded(exact(maps.token->weight[step]) * deviation.unsqueeze(1) * maps.token->scale));
    }
    if (const std::optional<SequentialHeads>& sequence = maps.sequence) {
      map.sequence = SequentialHead{
          .rank = sequence->rank(),
          .state = values(rounded(exact(sequence->state[step]) * sequence->state_scale)),
          .token = values(rounded(exact(sequence->token[step]) * sequence->token_scale)),
          .bias = values(exact(sequence->bias[step])),
          .output = values(rounded(exact(sequence->output[step])))};
    }
    heads.steps.push_back(std::move(map));
  }
  if (maps.adapters) {
    for (int i = 0; i < maps.adapters->down.size(0); ++i) {
      heads.adapters.push_back({.layer = maps.layer + i,
                                .rank = static_cast<int>(maps.adapters->down.size(1)),
                                .down = values(rounded(exact(maps.adapters->down[i]))),
                                .up = values(rounded(exact(maps.adapters->up[i])))});
    }
  }
  return heads;
}

Maps from_heads(const Heads& heads) {
  const auto d = static_cast<std::int64_t>(heads.steps.front().bias.size());
  const auto stack = [&](const auto& part) {
    std::vector<torch::Tensor> parts;
    for (const DraftMap& step : heads.steps) {
      parts.push_back(part(step));
    }
    return torch::stack(parts);
  };
  Maps maps{heads.steps.front().layer, torch::zeros(d), torch::ones(d),
            stack([&](const DraftMap& step) { return matrix(step.weight, d); }),
            stack([](const DraftMap& step) { return torch::tensor(step.bias); })};
  maps.method = heads.method;
  if (heads.has_token_input()) {
    maps.token = TokenInput{1, stack([&](const DraftMap& s) { return matrix(s.token, d); })};
  }
  if (heads.has_sequential_head()) {
    maps.sequence = SequentialHeads{
        1,
        1,
        stack([](const DraftMap& s) { return matrix(s.sequence->state, s.sequence->rank); }),
        stack([](const DraftMap& s) { return matrix(s.sequence->token, s.sequence->rank); }),
        stack([](const DraftMap& s) { return torch::tensor(s.sequence->bias); }),
        stack([&](const DraftMap& s) { return matrix(s.sequence->output, d); })};
  }
  if (!heads.adapters.empty()) {
    std::vector<torch::Tensor> down, up;
    for (const Adapter& adapter : heads.adapters) {
      down.push_back(matrix(adapter.down, adapter.rank));
      up.push_back(matrix(adapter.up, d));
    }
    maps.adapters = Adapters{torch::stack(down), torch::stack(up)};
  }
  return maps;
}

}  // namespace firp
