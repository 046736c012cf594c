#include "engine/kv_cache.h"

#include <algorithm>

namespace firp {
namespace {

// Large enough for huge pages: attention reads so many places that it would else wait for their
// addresses.
constexpr std::size_t kSlabBytes = std::size_t{16} << 20;

}  // namespace

KvCache::KvCache(const ModelConfig& config, int scratch_slots)
    : layers_(config.layers),
      kv_heads_(config.kv_heads),
      head_size_(config.head_size),
      part_halves_(std::size_t{2} * config.head_size * kPagePositions),
      slab_pages_(std::max<std::size_t>(1, kSlabBytes / (page_halves() * sizeof(Half)))) {
  for (int slot = 0; slot < scratch_slots; slot += kPagePositions) scratch_.push_back(take_page());
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

void KvCache::commit(int sequence, std::span<const int> slots) {
  Sequence& s = sequences_[sequence];
  for (const int slot : slots) {
    const int to = s.length % kPagePositions;
    const int from = slot % kPagePositions;
    if (to == 0) s.pages.push_back(take_page());
    Half* const page = s.pages.back();
    const Half* const scratch = scratch_page(slot);
    for (int part = 0; part < layers_ * kv_heads_; ++part) {
      const std::size_t at = offset(part / kv_heads_, part % kv_heads_);
      Half* const keys = page + at;
      const Half* const scratch_keys = scratch + at;
      for (int i = 0; i < head_size_; ++i) {
        keys[i * kPagePositions + to] = scratch_keys[i * kPagePositions + from];
      }
      const std::size_t values = std::size_t{kPagePositions} * head_size_;
      std::copy_n(scratch_keys + values + std::size_t(from) * head_size_, head_size_,
                  keys + values + std::size_t(to) * head_size_);
    }
    ++s.length;
  }
}

Half* KvCache::take_page() {
  if (free_pages_.empty()) {
    AlignedBytes& slab = memory_.emplace_back(slab_pages_ * page_halves() * sizeof(Half));
    for (std::size_t i = slab_pages_; i-- > 0;) {
      free_pages_.push_back(reinterpret_cast<Half*>(slab.data()) + i * part_halves_);
    }
  }
  Half* const page = free_pages_.back();
  free_pages_.pop_back();
  return page;
}

}  // namespace firp
