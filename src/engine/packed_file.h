#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "kernels/packed_matrix.h"

namespace firp {

/// Where packed weights are kept for the next start, which maps them instead of packing.
struct PackedFile {
  std::filesystem::path path;
  std::string key;  ///< one line that says what was packed, from which state of the model's file
};

/// The `bytes` packed bytes of the file, in memory as soon as this returns; nullopt where it is not
/// there, or holds something else. The bytes themselves are not checked.
std::optional<AlignedBytes> map_packed_file(const PackedFile& file, std::size_t bytes);

/// The bytes, and behind them what map_packed_file() knows them by. An Error where there is no
/// room.
void write_packed_file(const PackedFile& file, std::span<const std::byte> bytes);

}  // namespace firp
