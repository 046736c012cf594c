#include "plan/costs.h"

#include <iterator>

namespace firp {

double PassCosts::verify(const PassSize& size) const {
  const int rows = size.rows;
  const double attention = position_seconds * size.attended;
  const auto above = verify_seconds.lower_bound(rows);
  if (above == verify_seconds.end()) {
    const auto& [most, seconds] = *verify_seconds.rbegin();
    return attention + seconds * rows / most;
  }
  if (above->first == rows || above == verify_seconds.begin()) return attention + above->second;
  const auto below = std::prev(above);
  const double share = static_cast<double>(rows - below->first) / (above->first - below->first);
  return attention + below->second + share * (above->second - below->second);
}

}  // namespace firp
