#pragma once

#include <cstddef>

namespace firp {

/// Bytes of the last-level cache; 32 MiB where the system does not tell.
std::size_t last_level_cache_bytes();

}  // namespace firp
