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
      ASSERT_EQ(keys[i * kPagePositions + position % kPagePositions], row * 100 + part * 10 + i);
      ASSERT_EQ(values[position % kPagePositions * 8 + i], row * 100 + part * 10 + i + 30000);
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
