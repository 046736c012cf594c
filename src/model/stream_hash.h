#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

namespace firp {

/// A hash of 64 bits over a stream of bytes, in 8 independent lanes so that it runs at memory
/// speed. Every step is a bijection of its lane: a change of any one byte changes the result.
class StreamHash {
 public:
  void add(std::span<const std::byte> bytes) {
    add_word(bytes.size());
    std::size_t i = 0;
    for (; i + kStripe <= bytes.size(); i += kStripe) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        step(lanes_[lane], load(bytes.data() + i + lane * 8));
      }
    }
    std::byte rest[kStripe] = {};
    std::copy(bytes.begin() + static_cast<std::ptrdiff_t>(i), bytes.end(), rest);
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      step(lanes_[lane], load(rest + lane * 8));
    }
  }

  void add(std::string_view text) { add(std::as_bytes(std::span(text))); }
  void add_word(std::uint64_t word) { step(lanes_[0], word); }

  std::uint64_t value() const {
    std::uint64_t hash = 0;
    for (const std::uint64_t lane : lanes_) {
      step(hash, lane);
    }
    // The finaliser of SplitMix64: every bit of the input reaches every bit of the output.
    hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
    return hash ^ (hash >> 31);
  }

 private:
  static constexpr std::size_t kLanes = 8;
  static constexpr std::size_t kStripe = kLanes * 8;
  static_assert(std::endian::native == std::endian::little);

  static std::uint64_t load(const std::byte* from) {
    std::uint64_t word;
    std::memcpy(&word, from, 8);
    return word;
  }

  static void step(std::uint64_t& lane, std::uint64_t word) {
    lane = std::rotl(lane ^ word, 29) * 0x9e3779b97f4a7c15u;
  }

  std::uint64_t lanes_[kLanes] = {1, 2, 3, 4, 5, 6, 7, 8};
};

}  // namespace firp
