#include "train/ridge.h"

#include "model/error.h"

namespace firp {
namespace {

// Per anchor, in units of the inputs' variance. Agreement hardly depends on it from 1e-4 to 1e-2.
constexpr double kRidge = 1e-3;

}  // namespace

RidgeRegression::RidgeRegression(int layer, int steps, const torch::Tensor& sample)
    : layer_(layer), steps_(steps) {
  const torch::Tensor exact = sample.to(torch::kFloat64);
  mean_ = exact.mean(0).to(torch::kFloat32);
  deviation_ = exact.std(0, false).clamp_min(1e-6).to(torch::kFloat32);
  const std::int64_t d = sample.size(1);
  inputs_ = torch::zeros({d + 1, d + 1}, torch::kFloat64);
  targets_ = torch::zeros({steps, d + 1, d}, torch::kFloat64);
}

void RidgeRegression::add(const torch::Tensor& hidden) {
  const std::int64_t count = hidden.size(0) - steps_;
  if (count <= 0) {
    return;
  }
  const torch::Tensor states = (hidden - mean_) / deviation_;
  const torch::Tensor inputs = torch::cat({states.narrow(0, 0, count), torch::ones({count, 1})}, 1);
  const torch::Tensor transposed = inputs.t();
  inputs_ += torch::mm(transposed, inputs);
  for (int step = 0; step < steps_; ++step) {
    targets_[step] += torch::mm(transposed, states.narrow(0, step + 1, count));
  }
  anchors_ += count;
}

Maps RidgeRegression::solve() const {
  const std::int64_t d = mean_.size(0);
  torch::Tensor penalty =
      torch::full({d + 1}, kRidge * static_cast<double>(anchors_), torch::kFloat64);
  penalty[d] = 1e-9;  // the bias is free
  const auto [factor, failure] = at::linalg_cholesky_ex(inputs_ + penalty.diag());
  if (anchors_ == 0 || failure.item<int>() != 0) {
    throw Error("the training text is too short, or the model's hidden states are not finite");
  }
  const torch::Tensor solution =
      torch::cholesky_solve(targets_, factor.expand({steps_, d + 1, d + 1})).transpose(1, 2);
  return {layer_, mean_, deviation_, solution.narrow(2, 0, d).to(torch::kFloat32).contiguous(),
          solution.select(2, d).to(torch::kFloat32).contiguous()};
}

}  // namespace firp
