#include "engine/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "engine/token_chain.h"

namespace firp {
namespace {

/// Two layers, the second with this window (0: none).
ModelConfig small_config(int window) {
  ModelConfig config;
  config.layers = 2;
  config.by_layer = {{}, {.window = window}};
  config.kv_heads = 2;
  config.head_size = 40;  // two groups of codes, the second one not full
  return config;
}
constexpr int kParts = 4;

/// All bytes of a page's part that belong to a lane, as places in it.
std::vector<std::size_t> bytes_of_lane(const PagePart& part, int lane) {
  std::vector<std::size_t> places;
  const auto add = [&](std::size_t first, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) places.push_back(first + i);
  };
  const std::size_t element = part.type == CacheType::kF16 ? sizeof(Half) : 1;
  for (int i = 0; i < part.head_size; ++i) add((i * kPagePositions + lane) * element, element);
  for (int group = 0; part.type == CacheType::kQ8_0 && group < part.groups(); ++group) {
    add(part.head_size * kPagePositions + (group * kPagePositions + lane) * sizeof(float),
        sizeof(float));
  }
  add(part.key_bytes() + lane * part.value_bytes(), part.value_bytes());
  return places;
}

/// A cache, and beside it what each of its sequences should hold: numbers that every row ever run
/// has for itself, and that name the bytes of its keys and values.
class NumberedCache {
 public:
  explicit NumberedCache(CacheType type, int window = 0)
      : cache_(small_config(window), type), window_(window) {
    for (int lane = 0; lane < kPagePositions; ++lane) {
      lane_bytes_.push_back(bytes_of_lane(cache_.part(), lane));
    }
  }

  const KvCache& operator*() const { return cache_; }
  int length(int sequence) const { return static_cast<int>(held_.at(sequence).size()); }

  void add(int sequence) {
    cache_.add_sequence(sequence);
    held_[sequence] = {};
  }
  void remove(int sequence) {
    cache_.remove_sequence(sequence);
    held_.erase(sequence);
  }
  void truncate(int sequence, int length) {
    length = cache_.keepable(sequence, length);
    cache_.truncate(sequence, length);
    if (length < this->length(sequence)) held_[sequence].resize(length);
  }
  void share(int from, int to, int length) {
    length = cache_.keepable(from, length);
    cache_.share(from, to, length);
    held_[to].assign(held_[from].begin(), held_[from].begin() + length);
  }

  /// Runs rows of these sequences: writes all of them.
  void run(std::vector<int> sequences) {
    sequences_ = std::move(sequences);
    const std::span<const int> slots = cache_.begin_pass(sequences_);
    slots_.assign(slots.begin(), slots.end());
    EXPECT_EQ(std::set<int>(slots_.begin(), slots_.end()).size(), slots_.size());
    first_number_ = next_number_;
    for (const int slot : slots_) write(slot, next_number_++);
  }
  /// Appends some of the last pass's rows, all of `sequence`.
  void commit(int sequence, std::span<const int> rows) {
    std::vector<int> slots;
    for (const int row : rows) {
      slots.push_back(slots_[row]);
      held_[sequence].push_back(first_number_ + row);
    }
    cache_.commit(sequence, slots);
  }
  /// Of one sequence, kept as a whole.
  void append(int sequence, int rows) {
    run(std::vector<int>(rows, sequence));
    commit(sequence, first_rows(rows));
  }

  std::vector<int> slots() const { return slots_; }
  /// Rows of the last pass that are this sequence's.
  std::vector<int> rows_of(int sequence) const {
    std::vector<int> rows;
    for (std::size_t row = 0; row < sequences_.size(); ++row) {
      if (sequences_[row] == sequence) rows.push_back(static_cast<int>(row));
    }
    return rows;
  }

  /// Every sequence holds what it should, in as many pages as that needs.
  void expect_all() const {
    for (const auto& [sequence, numbers] : held_) {
      ASSERT_EQ(cache_.length(sequence), std::ssize(numbers));
      for (const int layer : {0, 1}) {
        ASSERT_EQ(cache_.pages(sequence, layer).size(),
                  (numbers.size() + kPagePositions - 1) / kPagePositions);
      }
      for (int position = 0; position < std::ssize(numbers); ++position) {
        ASSERT_TRUE(is_at(sequence, position, numbers[position]))
            << "position " << position << " of sequence " << sequence;
      }
      if (window_ == 0) continue;
      const auto pages = cache_.pages(sequence, 1);
      ASSERT_LE(std::ssize(pages) - std::ranges::count(pages, nullptr),
                2 * window_ / kPagePositions + 2);
    }
  }

 private:
  static std::byte value(int number, int part, std::size_t place) {
    const auto mixed =
        static_cast<std::uint32_t>(number * kParts + part) * 2654435761u + 40503u * place;
    return static_cast<std::byte>(mixed >> 16);
  }
  void write(int slot, int number) {
    for (int part = 0; part < kParts; ++part) {
      const int layer = part / 2;
      std::byte* const to = cache_.scratch_page(layer, slot) + cache_.offset(layer, part % 2);
      const std::vector<std::size_t>& places = lane_bytes_[slot % kPagePositions];
      for (std::size_t i = 0; i < places.size(); ++i) to[places[i]] = value(number, part, i);
    }
  }
  /// In the second layer only what the next row's window reaches need be there.
  bool is_at(int sequence, int position, int number) const {
    bool all = true;
    for (int part = 0; part < kParts; ++part) {
      const int layer = part / 2;
      const std::byte* const page = cache_.pages(sequence, layer)[position / kPagePositions];
      if (page == nullptr && layer == 1 && position <= length(sequence) - window_) continue;
      if (page == nullptr) return false;
      const std::byte* const from = page + cache_.offset(layer, part % 2);
      const std::vector<std::size_t>& places = lane_bytes_[position % kPagePositions];
      for (std::size_t i = 0; i < places.size(); ++i) {
        all = all && from[places[i]] == value(number, part, i);
      }
    }
    return all;
  }

  KvCache cache_;
  const int window_;
  std::vector<std::vector<std::size_t>> lane_bytes_;
  std::map<int, std::vector<int>> held_;
  int next_number_ = 0;
  // Of the last pass.
  int first_number_ = 0;
  std::vector<int> sequences_, slots_;  ///< of its rows
};

constexpr CacheType kTypes[] = {CacheType::kF16, CacheType::kQ8_0};

/// Rows of two sequences that alternate, and of which every third is kept.
TEST(KvCache, CommitMovesSlotsInOrderAcrossPages) {
  for (const CacheType type : kTypes) {
    NumberedCache cache(type);
    cache.add(0);
    cache.add(1);
    cache.append(0, 30);
    std::vector<int> sequences;
    for (int row = 0; row < 400; ++row) sequences.push_back(row % 2);
    cache.run(sequences);
    for (const int sequence : {1, 0}) {
      std::vector<int> kept;
      for (int row = sequence; row < 400; row += 6) kept.push_back(row);
      cache.commit(sequence, kept);
    }
    EXPECT_EQ(cache.length(0), 97);
    EXPECT_EQ(cache.length(1), 67);
    cache.expect_all();
  }
}

/// Passes of ten rows, of which some are kept; now and then behind ten of another sequence.
TEST(KvCache, RowsOfAPassLieWhereTheyBelong) {
  NumberedCache cache(CacheType::kF16);
  const int other = 0, sequence = 1;
  cache.add(other);
  cache.add(sequence);
  const std::vector<std::vector<int>> kept = {{0}, {0, 1, 2}, {0, 3, 7}, {0, 1, 2, 3, 9}, {0, 4}};
  for (int pass = 0; pass < 60; ++pass) {
    const bool alone = pass % 7 != 3;
    std::vector<int> sequences(10, sequence);
    if (!alone) sequences.insert(sequences.begin(), 10, other);
    cache.run(sequences);
    for (const int of : {other, sequence}) {
      const std::vector<int> rows = cache.rows_of(of);
      for (int i = 0; i < std::ssize(rows); ++i) {
        EXPECT_EQ(cache.slots()[rows[i]] % kPagePositions, (cache.length(of) + i) % kPagePositions);
      }
    }
    std::vector<int> rows;
    for (const int row : kept[pass % kept.size()]) rows.push_back(cache.rows_of(sequence)[row]);
    cache.commit(sequence, rows);
    if (!alone) cache.commit(other, std::vector<int>{0, 1});
    cache.expect_all();
  }
  EXPECT_GT(cache.length(sequence), 2 * kPagePositions);
}

TEST(KvCache, AChunkIsNotMoved) {
  NumberedCache cache(CacheType::kF16);
  cache.add(0);
  cache.add(1);
  for (int i = 0; i < 3; ++i) {
    std::vector<int> sequences(100, 0);
    sequences.insert(sequences.end(), 30, 1);
    cache.run(sequences);
    std::vector<const std::byte*> pages;
    for (const int slot : cache.slots()) {
      pages.push_back((*cache).scratch(0)[slot / kPagePositions]);
    }
    for (const int sequence : {1, 0}) {
      const int before = cache.length(sequence);
      const std::vector<int> rows = cache.rows_of(sequence);
      cache.commit(sequence, rows);
      for (std::size_t row = 0; row < rows.size(); ++row) {
        EXPECT_EQ((*cache).pages(sequence, 0)[(before + row) / kPagePositions], pages[rows[row]]);
      }
    }
    cache.expect_all();
  }
}

TEST(KvCache, TruncateKeepsTheBeginningAndFreesPages) {
  NumberedCache cache(CacheType::kF16);
  cache.add(0);
  cache.append(0, 130);
  for (const int length : {128, 65, 64, 1, 0}) {
    cache.truncate(0, length);
    cache.expect_all();
    cache.append(0, 1);
    cache.expect_all();
    cache.truncate(0, length);
  }
}

TEST(KvCache, WholePagesAreSharedUntilSomebodyWritesIntoThem) {
  for (const CacheType type : kTypes) {
    NumberedCache cache(type);
    for (int sequence = 0; sequence < 3; ++sequence) cache.add(sequence);
    cache.append(0, 130);
    cache.share(0, 1, 129);
    cache.share(1, 2, 128);
    for (const int sequence : {1, 2}) {
      EXPECT_EQ((*cache).pages(sequence, 0)[0], (*cache).pages(0, 0)[0]);
      EXPECT_EQ((*cache).pages(sequence, 0)[1], (*cache).pages(0, 0)[1]);
    }
    EXPECT_NE((*cache).pages(1, 0)[2], (*cache).pages(0, 0)[2]);
    // In the middle of a page that three have, each goes its own way.
    for (const int sequence : {1, 0, 2}) {
      cache.truncate(sequence, 100);
      cache.append(sequence, 50);
      cache.expect_all();
      EXPECT_EQ((*cache).pages(sequence, 0)[0], (*cache).pages(0, 0)[0]);
    }
    std::set<const std::byte*> second_pages;
    for (int sequence = 0; sequence < 3; ++sequence) {
      second_pages.insert((*cache).pages(sequence, 0)[1]);
    }
    EXPECT_EQ(second_pages.size(), 3u);
  }
}

/// Some operations in any order that an engine may ask for, all sequences held against their
/// numbers after each; in the end they are removed.
void run_some_operations(NumberedCache& cache, std::mt19937& random, int operations) {
  const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
  std::vector<int> present, absent = {0, 1, 2, 3, 4};
  cache.run({});
  const auto change_one = [&](std::span<const int> but) {
    const int sequence = present[below(static_cast<int>(present.size()))];
    if (std::ranges::count(but, sequence) > 0) return;
    const int source = present[below(static_cast<int>(present.size()))];
    const int kind = below(16);
    if (kind == 0 && present.size() > 1) {
      cache.remove(sequence);
      std::erase(present, sequence);
      absent.push_back(sequence);
    } else if (kind == 1) {
      cache.truncate(sequence, below(cache.length(sequence) + 1));
    } else if (kind <= 4) {
      cache.truncate(sequence, std::max(0, cache.length(sequence) - below(20)));
    } else if (kind <= 7 && source != sequence) {
      cache.truncate(sequence, 0);
      // Whole pages as often as others.
      const int length = cache.length(source) - below(cache.length(source) / 4 + 1);
      cache.share(source, sequence,
                  below(2) == 0 ? length : length / kPagePositions * kPagePositions);
    }
  };
  for (int i = 0; i < operations; ++i) {
    if (present.empty() || (!absent.empty() && below(8) == 0)) {
      present.push_back(absent.back());
      absent.pop_back();
      cache.add(present.back());
    } else if (below(3) == 0) {
      change_one({});
    } else {
      std::vector<int> rows;
      const int own = 1 + below(2) * below(80);  // a chunk of one now and then
      rows.assign(own, present[below(static_cast<int>(present.size()))]);
      for (int row = below(60); row-- > 0;) {
        rows.push_back(present[below(static_cast<int>(present.size()))]);
      }
      cache.run(rows);
      std::ranges::sort(rows);
      rows.erase(std::ranges::unique(rows).begin(), rows.end());
      std::ranges::shuffle(rows, random);
      while (!rows.empty()) {
        const int sequence = rows.back();
        std::vector<int> kept;
        const int share = below(4);  // of the rows that are rejected
        for (const int row : cache.rows_of(sequence)) {
          if (below(3) >= share) kept.push_back(row);
        }
        if (cache.length(sequence) < 250) cache.commit(sequence, kept);
        rows.pop_back();
        // What happens to others between the commits of a pass is not its rows' concern.
        if (below(3) == 0) change_one(rows);
        ASSERT_NO_FATAL_FAILURE(cache.expect_all());
      }
    }
    ASSERT_NO_FATAL_FAILURE(cache.expect_all()) << "operation " << i;
  }
  for (const int sequence : present) cache.remove(sequence);
}

TEST(KvCache, SequencesThatShareHoldWhatEachWasGiven) {
  for (const CacheType type : kTypes) {
    std::mt19937 random(1);
    NumberedCache cache(type);
    ASSERT_NO_FATAL_FAILURE(run_some_operations(cache, random, 1500));
  }
}

TEST(KvCache, WindowsKeepWhatTheyReach) {
  for (const CacheType type : kTypes) {
    for (const int window : {1, 20, 64, 100}) {
      std::mt19937 random(window);
      NumberedCache cache(type, window);
      ASSERT_NO_FATAL_FAILURE(run_some_operations(cache, random, 700)) << window;
    }
  }
}

TEST(KvCache, KeepsALengthWhoseWindowIsThere) {
  NumberedCache cache(CacheType::kF16, /*window=*/100);
  cache.add(0);
  for (int i = 0; i < 10; ++i) cache.append(0, 64);
  EXPECT_EQ((*cache).keepable(0, 640), 640);
  EXPECT_EQ((*cache).keepable(0, 800), 640);
  EXPECT_EQ((*cache).keepable(0, 540), 540);
  EXPECT_EQ((*cache).keepable(0, 440), 0) << "its window begins in a page that was given back";
  EXPECT_EQ((*cache).keepable(0, 0), 0);
  EXPECT_LT((*cache).positions_in_use(), 640);
  cache.truncate(0, 540);
  EXPECT_EQ(cache.length(0), 540);
  cache.expect_all();
  cache.truncate(0, 440);
  EXPECT_EQ(cache.length(0), 0);
}

TEST(KvCache, PagesOfRemovedSequencesAreTakenAgain) {
  NumberedCache cache(CacheType::kF16);
  std::set<const std::byte*> seen;
  std::size_t after_first = 0;
  for (int round = 0; round < 4; ++round) {
    // A page that is lost is one more that the next round has to take from the slab.
    std::mt19937 random(2);
    ASSERT_NO_FATAL_FAILURE(run_some_operations(cache, random, 400));
    cache.run({});
    cache.add(0);
    cache.append(0, 3000);  // more than the operations had
    seen.insert((*cache).pages(0, 0).begin(), (*cache).pages(0, 0).end());
    cache.remove(0);
    if (round == 0) after_first = seen.size();
  }
  EXPECT_EQ(seen.size(), after_first);
}

}  // namespace
}  // namespace firp
