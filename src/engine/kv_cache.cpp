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

KvCache::KvCache(const ModelConfig& config, CacheType type)
    : layers_(config.layers),
      kv_heads_(config.kv_heads),
      part_{.type = type, .head_size = config.head_size},
      slab_pages_(std::max<std::size_t>(1, kSlabBytes / page_bytes())) {}

void KvCache::add_sequence(int sequence) {
  sequences_.resize(std::max(sequences_.size(), static_cast<std::size_t>(sequence) + 1));
}

void KvCache::remove_sequence(int sequence) { truncate(sequence, 0); }

void KvCache::truncate(int sequence, int length) {
  Sequence& s = sequences_[sequence];
  s.length = std::min(s.length, length);
  const std::size_t keep = (s.length + kPagePositions - 1) / kPagePositions;
  while (s.pages.size() > keep) {
    let_go(s.pages.back());
    s.pages.pop_back();
  }
}

void KvCache::share(int from, int to, int length) {
  const Sequence& source = sequences_[from];
  Sequence& target = sequences_[to];
  const int whole = length / kPagePositions;
  target.pages.assign(source.pages.begin(), source.pages.begin() + whole);
  for (const std::byte* page : target.pages) ++more_users_[page];
  // Both will write into the page where they part.
  if (length % kPagePositions > 0) target.pages.push_back(copy_of(source.pages[whole]));
  target.length = length;
}

std::span<const int> KvCache::begin_pass(std::span<const int> sequences) {
  for (std::size_t i = 0; i < scratch_.size(); ++i) {
    if (is_scratch_[i]) free_pages_.push_back(scratch_[i]);
  }
  scratch_.clear();
  is_scratch_.clear();
  const auto add_page = [this](std::byte* page, bool is_scratch) {
    scratch_.push_back(page);
    is_scratch_.push_back(is_scratch);
  };
  slots_.assign(sequences.size(), 0);
  for (const int sequence : sequences) sequences_[sequence].next_slot = -1;
  // Sequence by sequence, since the pages of each follow each other.
  for (std::size_t first = 0; first < sequences.size(); ++first) {
    Sequence& s = sequences_[sequences[first]];
    if (s.next_slot >= 0) continue;
    const int lane = s.length % kPagePositions;
    s.next_slot = static_cast<int>(scratch_.size()) * kPagePositions + lane;
    if (lane > 0) {
      std::byte*& last = s.pages.back();
      if (is_shared(last)) {
        std::byte* const own = copy_of(last);
        let_go(last);
        last = own;
      }
      add_page(last, /*is_scratch=*/false);
    }
    for (std::size_t row = first; row < sequences.size(); ++row) {
      if (sequences[row] != sequences[first]) continue;
      if (s.next_slot == static_cast<int>(scratch_.size()) * kPagePositions) {
        add_page(take_page(), /*is_scratch=*/true);
      }
      slots_[row] = s.next_slot++;
    }
  }
  return slots_;
}

void KvCache::commit(int sequence, std::span<const int> slots) {
  Sequence& s = sequences_[sequence];
  for (const int slot : slots) {
    const int to = s.length % kPagePositions;
    const int from = slot % kPagePositions;
    const int page_of_slot = slot / kPagePositions;
    std::byte* const scratch = scratch_[page_of_slot];
    if (to == 0) {
      const bool keeps = from == 0 && is_scratch_[page_of_slot];
      if (keeps) is_scratch_[page_of_slot] = false;
      s.pages.push_back(keeps ? scratch : take_page());
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

void KvCache::read_page(int sequence, int page, std::span<std::byte> to) const {
  const Sequence& s = sequences_[sequence];
  const int positions = std::min(s.length - page * kPagePositions, kPagePositions);
  if (positions < kPagePositions) std::ranges::fill(to, std::byte{});
  for (int part = 0; part < layers_ * kv_heads_; ++part) {
    const std::byte* const from = s.pages[page] + offset(part / kv_heads_, part % kv_heads_);
    std::byte* const copy = to.data() + part * part_.bytes();
    if (positions == kPagePositions) {
      std::copy_n(from, part_.bytes(), copy);
      continue;
    }
    for (int i = 0; i < positions; ++i) copy_position(part_, from, i, copy, i);
  }
}

void KvCache::append_page(int sequence, std::span<const std::byte> from, int positions) {
  Sequence& s = sequences_[sequence];
  std::byte* const page = take_page();
  for (int part = 0; part < layers_ * kv_heads_; ++part) {
    std::copy_n(from.data() + part * part_.bytes(), part_.bytes(),
                page + offset(part / kv_heads_, part % kv_heads_));
  }
  s.pages.push_back(page);
  s.length += positions;
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

void KvCache::let_go(std::byte* page) {
  const auto users = more_users_.find(page);
  if (users == more_users_.end()) {
    free_pages_.push_back(page);
  } else if (--users->second == 0) {
    more_users_.erase(users);
  }
}

std::byte* KvCache::copy_of(const std::byte* page) {
  std::byte* const copy = take_page();
  for (int part = 0; part < layers_ * kv_heads_; ++part) {
    const std::size_t at = offset(part / kv_heads_, part % kv_heads_);
    std::copy_n(page + at, part_.bytes(), copy + at);
  }
  return copy;
}

}  // namespace firp
