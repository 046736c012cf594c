#pragma once

#include <cstdint>

namespace firp {

/// Shapes of AMX's tile registers, as ldtilecfg reads and sttilecfg writes them.
struct alignas(64) AmxShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(AmxShapes) == 64);

}  // namespace firp
