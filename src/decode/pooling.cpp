#include "decode/pooling.h"

#include <fmt/format.h>

#include <array>

#include "base/error.h"
#include "model/ggml_log.h"

namespace firp {

Pooling pooling_of_name(std::string_view name) {
  if (name == "mean") return Pooling::kMean;
  if (name == "last") return Pooling::kLast;
  if (name == "cls") return Pooling::kCls;
  if (name == "none") return Pooling::kNone;
  throw Error(fmt::format("--pooling is mean, last, cls or none, not '{}'", one_line(name)));
}

Pooling pooling_of(const GgufFile& file) {
  const auto type =
      file.find_int(file.get_string("general.architecture") + ".pooling_type").value_or(1);
  // llama.cpp's numbers.
  static constexpr std::array kPoolings = {Pooling::kNone, Pooling::kMean, Pooling::kCls,
                                           Pooling::kLast};
  if (type >= 0 && type < std::ssize(kPoolings)) return kPoolings[type];
  throw Error(
      fmt::format("{}: the model's own way to make embeddings (pooling type {}) is not done here; "
                  "--pooling mean, last, cls or none takes another one",
                  file.path().string(), type));
}

void PooledStates::add(std::span<const float> state) {
  const bool first = tokens_++ == 0;
  switch (pooling_) {
    case Pooling::kMean:
      sum_.resize(state.size());
      for (std::size_t i = 0; i < state.size(); ++i) sum_[i] += state[i];
      break;
    case Pooling::kLast:
      states_.assign(state.begin(), state.end());
      break;
    case Pooling::kCls:
      if (first) states_.assign(state.begin(), state.end());
      break;
    case Pooling::kNone:
      states_.insert(states_.end(), state.begin(), state.end());
      break;
  }
}

void PooledStates::clear() { *this = PooledStates(pooling_); }

std::vector<float> PooledStates::values() const {
  if (pooling_ != Pooling::kMean) return states_;
  std::vector<float> mean;
  const auto tokens = static_cast<double>(tokens_);
  for (const double sum : sum_) mean.push_back(static_cast<float>(sum / tokens));
  return mean;
}

}  // namespace firp
