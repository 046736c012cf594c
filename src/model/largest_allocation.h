#pragma once

#include <atomic>
#include <cstddef>

namespace firp {

/// The largest single allocation through operator new since it was last set to 0: shows what a
/// damaged file makes us ask for. For tests.
extern std::atomic<std::size_t> largest_allocation;

}  // namespace firp
