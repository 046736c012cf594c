#include "train/maps.h"

namespace firp {

torch::Tensor Maps::rows(const torch::Tensor& hidden) const {
  const torch::Tensor input = ((hidden - mean) / deviation).expand({steps(), -1, -1});
  const torch::Tensor output = torch::baddbmm(bias.unsqueeze(1), input, weight.transpose(1, 2));
  return torch::addcmul(mean, output, deviation).transpose(0, 1);
}

Maps Maps::to(torch::Device device) const {
  return {layer, mean.to(device), deviation.to(device), weight.to(device), bias.to(device)};
}

Heads to_heads(const Maps& maps, const ModelIdentity& base) {
  const torch::NoGradGuard no_gradient;
  const auto exact = [](const torch::Tensor& x) {
    return x.detach().to(torch::kCPU, torch::kFloat64);
  };
  const torch::Tensor mean = exact(maps.mean), deviation = exact(maps.deviation);
  Heads heads;
  heads.base = base;
  for (int step = 0; step < maps.steps(); ++step) {
    const torch::Tensor unrounded = exact(maps.weight[step]) * deviation.unsqueeze(1) / deviation;
    const torch::Tensor weight =
        unrounded.clamp(-65504, 65504).to(torch::kFloat16).to(torch::kFloat64);
    // With the rounded weights, so that the rounding is made up for as far as the mean goes.
    const torch::Tensor bias = mean + deviation * exact(maps.bias[step]) - torch::mv(weight, mean);
    const torch::Tensor weight32 = weight.to(torch::kFloat32).contiguous();
    const torch::Tensor bias32 = bias.to(torch::kFloat32).contiguous();
    heads.steps.push_back(
        {maps.layer,
         {weight32.data_ptr<float>(), weight32.data_ptr<float>() + weight32.numel()},
         {bias32.data_ptr<float>(), bias32.data_ptr<float>() + bias32.numel()}});
  }
  return heads;
}

Maps from_heads(const Heads& heads) {
  std::vector<torch::Tensor> weights, biases;
  for (const DraftMap& step : heads.steps) {
    const torch::Tensor bias = torch::tensor(step.bias, torch::kFloat32);
    weights.push_back(torch::tensor(step.weight, torch::kFloat32).view({bias.size(0), -1}));
    biases.push_back(bias);
  }
  const torch::Tensor weight = torch::stack(weights);
  const std::int64_t d = weight.size(-1);
  return {heads.steps.front().layer, torch::zeros(d), torch::ones(d), weight, torch::stack(biases)};
}

}  // namespace firp
