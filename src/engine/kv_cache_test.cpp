#include "engine/kv_cache.h"

#include <gtest/gtest.h>

namespace firp {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.layers = 2;
  config.kv_heads = 3;
  config.head_size = 8;
  return config;
}

/// Fills slot `slot` with halves that name the row, the part and the element.
void fill(KvCache& cache, int slot, int row) {
  for (int part = 0; part < 6; ++part) {
    auto* const keys =
        reinterpret_cast<Half*>(cache.scratch_page(slot) + cache.offset(part / 3, part % 3));
    Half* const values = keys + 8 * kPagePositions;
    for (int i = 0; i < 8; ++i) {
      keys[i * kPagePositions + slot % kPagePositions] =
          static_cast<Half>(row * 100 + part * 10 + i);
      values[slot % kPagePositions * 8 + i] = static_cast<Half>(row * 100 + part * 10 + i + 30000);
    }
  }
}

void expect_row(const KvCache& cache, int sequence, int position, int row) {
  const std::byte* const page = cache.pages(sequence)[position / kPagePositions];
  for (int part = 0; part < 6; ++part) {
    const auto* const keys = reinterpret_cast<const Half*>(page + cache.offset(part / 3, part % 3));
    const Half* const values = keys + 8 * kPagePositions;
    for (int i = 0; i < 8; ++i) {
      const auto key = static_cast<Half>(row * 100 + part * 10 + i);
      ASSERT_EQ(keys[i * kPagePositions + position % kPagePositions], key);
      ASSERT_EQ(values[position % kPagePositions * 8 + i], static_cast<Half>(key + 30000));
    }
  }
}

TEST(KvCache, CommitMovesSlotsInOrderAcrossPages) {
  KvCache cache(small_config(), CacheType::kF16, 130);
  const int a = cache.add_sequence();
  const int b = cache.add_sequence();
  std::vector<int> slots;
  for (int i = 0; i < 100; ++i) {
    slots.push_back((i * 7) % 130);
    fill(cache, slots.back(), i);
  }
  cache.commit(a, std::span(slots).first(70));
  cache.commit(b, std::span(slots).subspan(70, 10));
  cache.commit(a, std::span(slots).subspan(80, 20));
  EXPECT_EQ(cache.length(a), 90);
  EXPECT_EQ(cache.length(b), 10);
  EXPECT_EQ(cache.pages(a).size(), 2u);
  for (int i = 0; i < 70; ++i) expect_row(cache, a, i, i);
  for (int i = 0; i < 10; ++i) expect_row(cache, b, i, 70 + i);
  for (int i = 0; i < 20; ++i) expect_row(cache, a, 70 + i, 80 + i);
}

/// Passes of ten rows, of which some are kept; now and then behind ten of another sequence.
TEST(KvCache, PassesOfOneSequenceWriteWhereItsRowsBelong) {
  KvCache cache(small_config(), CacheType::kF16, 130);
  const int other = cache.add_sequence();
  const int sequence = cache.add_sequence();
  const std::vector<std::vector<int>> kept = {{0}, {0, 1, 2}, {0, 3, 7}, {0, 1, 2, 3, 9}, {0, 4}};
  std::vector<int> rows;  // at each position of the sequence
  for (int pass = 0; pass < 60; ++pass) {
    const bool alone = pass % 7 != 3;
    const int first = cache.begin_pass(alone ? sequence : other, alone);
    EXPECT_EQ(first, cache.length(alone ? sequence : other) % kPagePositions);
    const int own = alone ? 0 : 10;  // behind ten rows of the other one
    for (int row = 0; row < 10; ++row) {
      if (!alone) fill(cache, first + row, row);
      fill(cache, first + own + row, pass * 10 + row);
    }
    std::vector<int> slots;
    for (const int row : kept[pass % kept.size()]) {
      slots.push_back(first + own + row);
      rows.push_back(pass * 10 + row);
    }
    cache.commit(sequence, slots);
    if (!alone) cache.commit(other, std::vector<int>{first, first + 1});
  }
  ASSERT_GT(cache.length(sequence), 2 * kPagePositions);
  for (int i = 0; i < cache.length(sequence); ++i) expect_row(cache, sequence, i, rows[i]);
  for (int i = 0; i < cache.length(other); ++i) expect_row(cache, other, i, i % 2);
}

TEST(KvCache, AChunkOfOneSequenceIsNotMoved) {
  KvCache cache(small_config(), CacheType::kF16, 200);
  const int sequence = cache.add_sequence();
  for (int i = 0; i < 3; ++i) {
    const int first = cache.begin_pass(sequence, /*alone=*/true);
    std::vector<int> slots;
    std::vector<const std::byte*> pages;
    for (int row = 0; row < 100; ++row) {
      slots.push_back(first + row);
      fill(cache, first + row, row);
      pages.push_back(cache.scratch_page(first + row));
    }
    cache.commit(sequence, slots);
    for (int row = 0; row < 100; ++row) {
      const int position = 100 * i + row;
      EXPECT_EQ(cache.pages(sequence)[position / kPagePositions], pages[row]);
      expect_row(cache, sequence, position, row);
    }
  }
}

TEST(KvCache, TruncateKeepsTheBeginningAndFreesPages) {
  KvCache cache(small_config(), CacheType::kF16, 64);
  const int sequence = cache.add_sequence();
  for (int i = 0; i < 130; ++i) {
    fill(cache, i % 64, i);
    cache.commit(sequence, std::vector<int>{i % 64});
  }
  cache.truncate(sequence, 65);
  EXPECT_EQ(cache.pages(sequence).size(), 2u);
  fill(cache, 5, 200);
  cache.commit(sequence, std::vector<int>{5});
  for (int i = 0; i < 65; ++i) expect_row(cache, sequence, i, i);
  expect_row(cache, sequence, 65, 200);
  cache.truncate(sequence, 64);
  EXPECT_EQ(cache.pages(sequence).size(), 1u);
  cache.commit(sequence, std::vector<int>{5});
  expect_row(cache, sequence, 64, 200);
}

TEST(KvCache, SequenceNumbersAreReusedLowestFirst) {
  KvCache cache(small_config(), CacheType::kF16, 1);
  EXPECT_EQ(cache.add_sequence(), 0);
  EXPECT_EQ(cache.add_sequence(), 1);
  EXPECT_EQ(cache.add_sequence(), 2);
  cache.remove_sequence(1);
  cache.remove_sequence(0);
  EXPECT_FALSE(cache.has_sequence(0));
  EXPECT_EQ(cache.add_sequence(), 0);
  EXPECT_TRUE(cache.has_sequence(0));
  EXPECT_EQ(cache.length(0), 0);
}

}  // namespace
}  // namespace firp
