#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <optional>
#include <span>

namespace firp {

/// What one prompt adds to sums, such as its tokens and its seconds.
template <std::size_t N>
using Summands = std::array<double, N>;

template <std::size_t N>
Summands<N> sum(std::span<const Summands<N>> items) {
  Summands<N> total = {};
  for (const Summands<N>& item : items) {
    for (std::size_t k = 0; k < N; ++k) total[k] += item[k];
  }
  return total;
}

/// The standard error of `estimate`, a function of the sums, over items that might as well have
/// been others: the jackknife, which leaves out each item once. None for fewer than two.
template <std::size_t N, typename Estimate>
std::optional<double> jackknife_error(std::span<const Summands<N>> items,
                                      const Estimate& estimate) {
  const auto count = static_cast<double>(items.size());
  if (items.size() < 2) return std::nullopt;
  const Summands<N> total = sum(items);
  double first = 0, second = 0;  // sums of the deviations from the estimate and of their squares
  for (const Summands<N>& item : items) {
    Summands<N> rest = total;
    for (std::size_t k = 0; k < N; ++k) rest[k] -= item[k];
    const double deviation = estimate(rest) - estimate(total);
    first += deviation;
    second += deviation * deviation;
  }
  const double variance = std::max(0.0, second - first * first / count);
  return std::sqrt(variance * (count - 1) / count);
}

/// Of a sample; none for fewer than two.
inline std::optional<double> standard_deviation(std::span<const double> values) {
  if (values.size() < 2) return std::nullopt;
  const auto count = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / (count - 1));
}

}  // namespace firp
