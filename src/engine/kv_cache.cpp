#include "engine/kv_cache.h"

#include <algorithm>
#include <utility>

namespace firp {
namespace {

// Large enough for huge pages: attention reads so many places that it would else wait for their
// addresses.
constexpr std::size_t kSlabBytes = std::size_t{16} << 20;

/// Copies lane `from` of `rows` rows of 64 to lane `to`.
template <typename T>
void copy_lane(int rows, const std::byte* source, int from, std::byte* target, int to) {
  const T* const read = reinterpret_cast<const T*>(source) + from;
  T* const written = reinterpret_cast<T*>(target) + to;
  for (int i = 0; i < rows; ++i) written[i * kPagePositions] = read[i * kPagePositions];
}

void copy_position(const PagePart& part, const std::byte* source, int from, std::byte* target,
                   int to) {
  if (part.type == CacheType::kF16) {
    copy_lane<Half>(part.head_size, source, from, target, to);
  } else {
    copy_lane<std::byte>(part.head_size, source, from, target, to);
    const int codes = part.head_size * kPagePositions;
    copy_lane<float>(part.groups(), source + codes, from, target + codes, to);
  }
  std::copy_n(source + part.key_bytes() + from * part.value_bytes(), part.value_bytes(),
              target + part.key_bytes() + to * part.value_bytes());
}

}  // namespace

KvCache::KvCache(const ModelConfig& config, CacheType type, int scratch_slots)
    : layers_(config.layers),
      kv_heads_(config.kv_heads),
      part_{.type = type, .head_size = config.head_size},
      slab_pages_(std::max<std::size_t>(1, kSlabBytes / page_bytes())) {
  for (int slot = 0; slot < scratch_slots; slot += kPagePositions) {
    own_scratch_.push_back(take_page());
  }
  scratch_ = own_scratch_;
}

int KvCache::add_sequence() {
  const auto unused = std::ranges::find_if(sequences_, [](const Sequence& s) { return !s.used; });
  const int sequence = static_cast<int>(unused - sequences_.begin());
  if (unused == sequences_.end()) sequences_.emplace_back();
  sequences_[sequence].used = true;
  return sequence;
}

void KvCache::remove_sequence(int sequence) {
  truncate(sequence, 0);
  sequences_[sequence].used = false;
}

bool KvCache::has_sequence(int sequence) const {
  return sequence >= 0 && sequence < static_cast<int>(sequences_.size()) &&
         sequences_[sequence].used;
}

void KvCache::truncate(int sequence, int length) {
  Sequence& s = sequences_[sequence];
  s.length = std::min(s.length, length);
  const std::size_t keep = (s.length + kPagePositions - 1) / kPagePositions;
  while (s.pages.size() > keep) {
    free_pages_.push_back(s.pages.back());
    s.pages.pop_back();
  }
}

int KvCache::begin_pass(int sequence, bool alone) {
  for (std::byte*& page : own_scratch_) {
    if (page == nullptr) page = take_page();
  }
  scratch_ = own_scratch_;
  alone_ = alone;
  const int first_slot = length(sequence) % kPagePositions;
  if (alone && first_slot > 0) scratch_.front() = sequences_[sequence].pages.back();
  return first_slot;
}

void KvCache::commit(int sequence, std::span<const int> slots) {
  Sequence& s = sequences_[sequence];
  for (const int slot : slots) {
    const int to = s.length % kPagePositions;
    const int from = slot % kPagePositions;
    std::byte* const scratch = scratch_page(slot);
    if (to == 0) {
      std::byte*& own = own_scratch_[slot / kPagePositions];
      const bool keeps = alone_ && from == 0 && own == scratch;
      s.pages.push_back(keeps ? std::exchange(own, nullptr) : take_page());
    }
    std::byte* const page = s.pages.back();
    // Within a page rows move down, over rows that were left out.
    const bool in_place = page == scratch && from == to;
    for (int part = 0; !in_place && part < layers_ * kv_heads_; ++part) {
      const std::size_t at = offset(part / kv_heads_, part % kv_heads_);
      copy_position(part_, scratch + at, from, page + at, to);
    }
    ++s.length;
  }
}

std::byte* KvCache::take_page() {
  if (free_pages_.empty()) {
    AlignedBytes& slab = memory_.emplace_back(slab_pages_ * page_bytes());
    for (std::size_t i = slab_pages_; i-- > 0;) {
      free_pages_.push_back(slab.data() + i * part_.bytes());
    }
  }
  std::byte* const page = free_pages_.back();
  free_pages_.pop_back();
  return page;
}

}  // namespace firp
