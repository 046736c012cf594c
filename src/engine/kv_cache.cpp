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
    : part_{.type = type, .head_size = config.head_size} {
  for (const LayerConfig& layer : config.by_layer) {
    // The page where a context ends stays, also where a row sees itself alone.
    const int window = layer.window == 1 ? 2 : layer.window;
    auto group = std::ranges::find(groups_, window, &Group::window);
    if (group == groups_.end()) {
      groups_.push_back(
          {.window = window, .kv_heads = config.kv_heads, .part_bytes = part_.bytes()});
      group = groups_.end() - 1;
    }
    places_.push_back({static_cast<int>(group - groups_.begin()), group->layers++});
  }
  for (Group& group : groups_) {
    group.slab_pages = std::max<std::size_t>(1, kSlabBytes / group.page_bytes());
  }
}

void KvCache::add_sequence(int sequence) {
  sequences_.resize(std::max(sequences_.size(), static_cast<std::size_t>(sequence) + 1));
  sequences_[sequence].pages.resize(groups_.size());
}

void KvCache::remove_sequence(int sequence) { truncate(sequence, 0); }

int KvCache::keepable(int sequence, int length) const {
  const Sequence& s = sequences_[sequence];
  const int kept = std::min(length, s.length);
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const int first = std::max(0, kept - groups_[g].window + 1);  // what the next row sees
    const bool is_there =
        groups_[g].window == 0 || first >= kept || s.pages[g][first / kPagePositions] != nullptr;
    if (!is_there) return 0;
  }
  return kept;
}

void KvCache::truncate(int sequence, int length) {
  Sequence& s = sequences_[sequence];
  s.length = std::min(s.length, length);
  const std::size_t keep = (s.length + kPagePositions - 1) / kPagePositions;
  for (std::size_t g = 0; g < s.pages.size(); ++g) {
    while (s.pages[g].size() > keep) {
      groups_[g].let_go(s.pages[g].back());
      s.pages[g].pop_back();
    }
  }
}

void KvCache::share(int from, int to, int length) {
  const Sequence& source = sequences_[from];
  Sequence& target = sequences_[to];
  const int whole = length / kPagePositions;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    std::vector<std::byte*>& pages = target.pages[g];
    pages.assign(source.pages[g].begin(), source.pages[g].begin() + whole);
    for (const std::byte* const page : pages) {
      if (page != nullptr) ++group.more_users[page];
    }
    // Both will write into the page where they part.
    if (length % kPagePositions > 0) pages.push_back(group.copy_of(source.pages[g][whole]));
  }
  target.length = length;
}

std::span<const int> KvCache::begin_pass(std::span<const int> sequences) {
  for (Group& group : groups_) {
    for (std::size_t i = 0; i < group.scratch.size(); ++i) {
      if (is_scratch_[i]) group.free_pages.push_back(group.scratch[i]);
    }
    group.scratch.clear();
  }
  is_scratch_.clear();
  slots_.assign(sequences.size(), 0);
  for (const int sequence : sequences) sequences_[sequence].next_slot = -1;
  // Sequence by sequence, since the pages of each follow each other.
  for (std::size_t first = 0; first < sequences.size(); ++first) {
    Sequence& s = sequences_[sequences[first]];
    if (s.next_slot >= 0) continue;
    const int lane = s.length % kPagePositions;
    s.next_slot = static_cast<int>(is_scratch_.size()) * kPagePositions + lane;
    if (lane > 0) {
      for (std::size_t g = 0; g < groups_.size(); ++g) {
        Group& group = groups_[g];
        std::byte*& last = s.pages[g].back();
        if (group.more_users.contains(last)) {
          std::byte* const own = group.copy_of(last);
          group.let_go(last);
          last = own;
        }
        group.scratch.push_back(last);
      }
      is_scratch_.push_back(false);
    }
    for (std::size_t row = first; row < sequences.size(); ++row) {
      if (sequences[row] != sequences[first]) continue;
      if (s.next_slot == static_cast<int>(is_scratch_.size()) * kPagePositions) {
        for (Group& group : groups_) group.scratch.push_back(group.take_page());
        is_scratch_.push_back(true);
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
    const bool keeps = to == 0 && from == 0 && is_scratch_[page_of_slot];
    if (keeps) is_scratch_[page_of_slot] = false;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      Group& group = groups_[g];
      std::byte* const scratch = group.scratch[page_of_slot];
      if (to == 0) s.pages[g].push_back(keeps ? scratch : group.take_page());
      std::byte* const page = s.pages[g].back();
      // Within a page rows move down, over rows that were left out.
      const bool in_place = page == scratch && from == to;
      for (int part = 0; !in_place && part < group.parts(); ++part) {
        copy_position(part_, scratch + group.offset(part), from, page + group.offset(part), to);
      }
    }
    ++s.length;
  }
  // A window more than is needed: who takes an answer back need not have everything read again.
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    if (const int window = groups_[g].window; window > 0) {
      groups_[g].give_back(s.pages[g], s.length - 2 * window + 1);
    }
  }
}

void KvCache::read_page(int sequence, int page, std::span<std::byte> to) const {
  const Sequence& s = sequences_[sequence];
  const int positions = std::min(s.length - page * kPagePositions, kPagePositions);
  std::byte* copy = to.data();
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const std::byte* const source = s.pages[g][page];
    const int there = source != nullptr ? positions : 0;
    for (int part = 0; part < groups_[g].parts(); ++part, copy += part_.bytes()) {
      const std::byte* const from = source + groups_[g].offset(part);
      if (there == kPagePositions) {
        std::copy_n(from, part_.bytes(), copy);
        continue;
      }
      std::fill_n(copy, part_.bytes(), std::byte{});
      for (int i = 0; i < there; ++i) copy_position(part_, from, i, copy, i);
    }
  }
}

void KvCache::append_page(int sequence, std::span<const std::byte> from, int positions) {
  Sequence& s = sequences_[sequence];
  s.length += positions;
  const std::byte* copy = from.data();
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    std::byte* const page = s.pages[g].emplace_back(group.take_page());
    for (int part = 0; part < group.parts(); ++part, copy += part_.bytes()) {
      std::copy_n(copy, part_.bytes(), page + group.offset(part));
    }
    // Of pages that were given back zeros were saved: no more than the window is sure to be there.
    if (group.window > 0) group.give_back(s.pages[g], s.length - group.window + 1);
  }
}

std::size_t KvCache::page_bytes() const {
  std::size_t bytes = 0;
  for (const Group& group : groups_) bytes += group.page_bytes();
  return bytes;
}

int KvCache::positions_in_use() const {
  std::size_t bytes = 0;
  for (const Group& group : groups_) {
    bytes +=
        (group.memory.size() * group.slab_pages - group.free_pages.size()) * group.page_bytes();
  }
  return static_cast<int>(bytes * kPagePositions / page_bytes());
}

std::byte* KvCache::Group::take_page() {
  if (free_pages.empty()) {
    AlignedBytes& slab = memory.emplace_back(slab_pages * page_bytes());
    for (std::size_t i = slab_pages; i-- > 0;) free_pages.push_back(slab.data() + i * part_bytes);
  }
  std::byte* const page = free_pages.back();
  free_pages.pop_back();
  return page;
}

void KvCache::Group::let_go(std::byte* page) {
  if (page == nullptr) return;
  const auto users = more_users.find(page);
  if (users == more_users.end()) {
    free_pages.push_back(page);
  } else if (--users->second == 0) {
    more_users.erase(users);
  }
}

std::byte* KvCache::Group::copy_of(const std::byte* page) {
  std::byte* const copy = take_page();
  for (int part = 0; part < parts(); ++part) {
    std::copy_n(page + offset(part), part_bytes, copy + offset(part));
  }
  return copy;
}

void KvCache::Group::give_back(std::vector<std::byte*>& pages, int first_kept) {
  for (int page = first_kept / kPagePositions - 1; page >= 0 && pages[page] != nullptr; --page) {
    let_go(std::exchange(pages[page], nullptr));
  }
}

}  // namespace firp
