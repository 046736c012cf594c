#include "train/ridge.h"

#include "base/error.h"

namespace firp {
namespace {

// Per anchor, in units of the inputs' variance. Agreement hardly depends on it from 1e-4 to 1e-2.
constexpr double kRidge = 1e-3;

}  // namespace

RidgeRegression::RidgeRegression(int layer, int steps, const torch::Tensor& sample,
                                 std::optional<double> token_scale)
    : layer_(layer), steps_(steps), token_scale_(token_scale) {
  const torch::Tensor exact = sample.to(torch::kFloat64);
  mean_ = exact.mean(0).to(torch::kFloat32);
  deviation_ = exact.std(0, false).clamp_min(1e-6).to(torch::kFloat32);
  const std::int64_t d = sample.size(1), n = (token_scale ? 2 * d : d) + 1;
  inputs_ = torch::zeros({n, n}, torch::kFloat64);
  targets_ = torch::zeros({steps, n, d}, torch::kFloat64);
}

void RidgeRegression::add(const torch::Tensor& hidden, const torch::Tensor& embeddings) {
  const std::int64_t count = hidden.size(0) - steps_;
  if (count <= 0) {
    return;
  }
  const torch::Tensor states = (hidden - mean_) / deviation_;
  std::vector<torch::Tensor> parts = {states.narrow(0, 0, count)};
  if (token_scale_) {
    parts.push_back(embeddings.narrow(0, 0, count).to(torch::kFloat32) * *token_scale_);
  }
  parts.push_back(torch::ones({count, 1}));
  const torch::Tensor inputs = torch::cat(parts, 1);
  const torch::Tensor transposed = inputs.t();
  inputs_ += torch::mm(transposed, inputs);
  for (int step = 0; step < steps_; ++step) {
    targets_[step] += torch::mm(transposed, states.narrow(0, step + 1, count));
  }
  anchors_ += count;
}

Maps RidgeRegression::solve() const {
  const std::int64_t d = mean_.size(0), n = inputs_.size(0);
  torch::Tensor penalty = torch::full({n}, kRidge * static_cast<double>(anchors_), torch::kFloat64);
  penalty[n - 1] = 1e-9;  // the bias is free
  const auto [factor, failure] = at::linalg_cholesky_ex(inputs_ + penalty.diag());
  if (anchors_ == 0 || failure.item<int>() != 0) {
    throw Error("the training text is too short, or the model's hidden states are not finite");
  }
  const torch::Tensor solution = torch::cholesky_solve(targets_, factor.expand({steps_, n, n}))
                                     .transpose(1, 2)
                                     .to(torch::kFloat32);
  Maps maps{layer_, mean_, deviation_, solution.narrow(2, 0, d).contiguous(),
            solution.select(2, n - 1).contiguous()};
  if (token_scale_) {
    maps.token = TokenInput{*token_scale_, solution.narrow(2, d, d).contiguous()};
  }
  return maps;
}

}  // namespace firp
