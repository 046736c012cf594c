// Attention. See kernels_body.h.
//
// Scores are one chain of fma over the head a position; values are added position by position. The
// chains of several positions, heads and elements run side by side, which changes nothing in any.
// The rows of a tree or of a prompt see the same pages: heads of several rows share a tile, and so
// what was brought from the cache's type.

/// Reads of a page part of each type (PagePart): keys of 16 positions, 16 elements of a value, or
/// the last n of them.
struct F16Cache {
  static F32x16 keys(const std::byte* part, int /*head_size*/, int i, int position) {
    return load_half(reinterpret_cast<const Half*>(part) + i * kPagePositions + position);
  }
  static F32x16 value(const std::byte* row, int /*head_size*/, int i) {
    return load_half(reinterpret_cast<const Half*>(row) + i);
  }
  static F32x16 end_of_value(const std::byte* row, int /*head_size*/, int i, int n) {
    Half tail[16] = {};
    for (int k = 0; k < n; ++k) tail[k] = reinterpret_cast<const Half*>(row)[i + k];
    return load_half(tail);
  }
};
struct Q8Cache {
  static F32x16 keys(const std::byte* part, int head_size, int i, int position) {
    const auto* const scales = reinterpret_cast<const float*>(part + head_size * kPagePositions);
    return mul(load_bytes(part + i * kPagePositions + position),
               load(scales + i / 32 * kPagePositions + position));
  }
  static F32x16 value(const std::byte* row, int head_size, int i) {
    const int groups = (head_size + 31) / 32;
    return mul(load_bytes(row + groups * sizeof(float) + i),
               splat(reinterpret_cast<const float*>(row)[i / 32]));
  }
  static F32x16 end_of_value(const std::byte* row, int head_size, int i, int /*n*/) {
    return value(row, head_size, i);
  }
};

/// Calls `function` with `count`, 1 .. kMost, as its template argument.
template <int kMost, typename Function>
void with_count(int count, Function function) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_count<kMost - 1>(count, function);
  }
  function.template operator()<kMost>();
}

/// What is fetched to the cache meanwhile, in even steps; nullptr: nothing.
struct Ahead {
  const std::byte* at = nullptr;
  std::size_t step_bytes = 0;
};

/// g++ leaves out calls of a function that does nothing but this.
[[gnu::always_inline]] inline void fetch(const Ahead& ahead, int step) {
  if (ahead.at == nullptr) return;
  for (std::size_t i = 0; i < ahead.step_bytes; i += 64) {
    __builtin_prefetch(ahead.at + step * ahead.step_bytes + i, 0, 3);
  }
}

/// Scores of kHeads query heads with the positions first .. end - 1 of the page part at `part`;
/// `first` is a multiple of 16, and what lies between `end` and the next such number is written,
/// too. A step of `ahead` is an element.
template <typename Cache, int kHeads, int kVectors = kAttentionVectors>
void score(const AttentionHead* heads, int head_size, const std::byte* part, int first, int end,
           float (*scores)[kPagePositions], const Ahead& ahead) {
  const float* query[kHeads];
  for (int h = 0; h < kHeads; ++h) query[h] = heads[h].query;
  for (; first + 16 * (kVectors - 1) < end; first += 16 * kVectors) {
    F32x16 sum[kHeads][kVectors];
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[h][v] = splat(0.0f);
    }
    for (int i = 0; i < head_size; ++i) {
      fetch(ahead, i);
      F32x16 key[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        key[v] = Cache::keys(part, head_size, i, first + 16 * v);
      }
#pragma GCC unroll 8
      for (int h = 0; h < kHeads; ++h) {
        const F32x16 q = splat(query[h][i]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[h][v] = fma(q, key[v], sum[h][v]);
      }
    }
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) store(scores[h] + first + 16 * v, sum[h][v]);
    }
  }
  if constexpr (kVectors > 1) {
    if (first < end) {
      score<Cache, kHeads, kVectors - 1>(heads, head_size, part, first, end, scores, ahead);
    }
  }
}

/// out[i] = out[i] * correction[h] + sum over positions first .. end - 1 of weights[h][position] *
/// its value, for each head, from element i on; positions without a value are not seen. A step of
/// `ahead` is a position.
template <typename Cache, int kHeads, int kVectors = kAttentionVectors>
void add_values(const AttentionHead* heads, const float (*weights)[kPagePositions],
                const std::byte* const* values, int first, int end, int i, int head_size,
                const float* correction, const Ahead& ahead) {
  for (; i + 16 * kVectors <= head_size; i += 16 * kVectors) {
    F32x16 sum[kHeads][kVectors];
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        sum[h][v] = mul(load(heads[h].out + i + 16 * v), splat(correction[h]));
      }
    }
    for (int position = first; position < end; ++position) {
      fetch(ahead, position);
      const std::byte* const row = values[position];
      if (row == nullptr) continue;
      F32x16 value[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) value[v] = Cache::value(row, head_size, i + 16 * v);
#pragma GCC unroll 8
      for (int h = 0; h < kHeads; ++h) {
        const F32x16 weight = splat(weights[h][position]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[h][v] = fma(weight, value[v], sum[h][v]);
      }
    }
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) store(heads[h].out + i + 16 * v, sum[h][v]);
    }
  }
  if constexpr (kVectors > 1) {
    add_values<Cache, kHeads, kVectors - 1>(heads, weights, values, first, end, i, head_size,
                                            correction, ahead);
  } else if (i < head_size) {
    const int n = head_size - i;
    for (int h = 0; h < kHeads; ++h) {
      F32x16 sum = mul(load_tail(heads[h].out + i, n), splat(correction[h]));
      for (int position = first; position < end; ++position) {
        const std::byte* const row = values[position];
        if (row == nullptr) continue;
        const F32x16 value = Cache::end_of_value(row, head_size, i, n);
        sum = fma(splat(weights[h][position]), value, sum);
      }
      store_tail(heads[h].out + i, sum, n);
    }
  }
}

/// The softmax of a head over the blocks so far; the sum of its values is in the head's `out`.
struct Softmax {
  float largest = -__builtin_inff();  ///< of the scores
  float sum = 0.0f;                   ///< of e^(score - largest)
};

/// A score that is not seen, -infinity, stays so: the difference is 0 for all others.
inline F32x16 capped_score(F32x16 score, float cap) {
  return add(capped(score, cap), sub(score, max(score, splat(-__FLT_MAX__))));
}

/// Turns the scores of a block into weights. correction[h]: what the sum of values is to be
/// multiplied by before those of the block are added. Step by step for all heads, so that none
/// waits for its own.
template <int kHeads>
void weigh(Softmax* softmax, float (*scores)[kPagePositions], const AttentionTask& task,
           float* correction) {
  float shift[kHeads];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    F32x16 s[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      s[v] = mul(load(scores[h] + 16 * v), splat(task.scale));
      if (task.softcap > 0) s[v] = capped_score(s[v], task.softcap);
      store(scores[h] + 16 * v, s[v]);
    }
    const float largest = reduce_max(max(max(s[0], s[1]), max(s[2], s[3])));
    shift[h] = softmax[h].largest > largest ? softmax[h].largest : largest;
  }
  for (int h = 0; h < kHeads; ++h) {
    const float before = softmax[h].largest;
    softmax[h].largest = shift[h];
    // Nothing seen so far (a block of missing pseudo rows): no scale to bring it to yet.
    if (shift[h] == -__builtin_inff()) shift[h] = 0.0f;
    correction[h] = 1.0f;  // e^0, exactly
    if (before != shift[h]) {
      float shrink[16];
      store(shrink, exp(splat(before - shift[h])));
      correction[h] = shrink[0];
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    F32x16 s[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      s[v] = exp(sub(load(scores[h] + 16 * v), splat(shift[h])));
      store(scores[h] + 16 * v, s[v]);
    }
    const float sum = reduce_add(add(add(s[0], s[1]), add(s[2], s[3])));
    softmax[h].sum = softmax[h].sum * correction[h] + sum;
  }
}

/// A block of 64 positions, as a tile of kHeads heads sees it.
template <int kHeads>
struct AttentionBlock {
  const std::byte* page;  ///< the page part where the first `shared` positions lie for all heads
  int shared;
  int first_slot;         ///< of its first position in the heads' slots; negative: in the context
  int hidden[kHeads];     ///< of its first positions: before the head's window
  int positions[kHeads];  ///< up to a head's own
};

/// Whether positions lie in the first lanes of a scratch page, as those of a prompt's chunk do.
inline bool in_first_lanes(const std::int32_t* slots, int count) {
  if (slots[0] == kNoSlot || slots[0] % kPagePositions != 0) return false;
  for (int i = 1; i < count; ++i) {
    if (slots[i] != slots[0] + i) return false;
  }
  return true;
}

inline const std::byte* part_of(const AttentionTask& task, std::int32_t slot) {
  return task.scratch[slot / kPagePositions] + task.offset;
}

/// The first position that a head sees.
inline int first_seen(const AttentionTask& task, const AttentionHead& head) {
  const int end = task.committed + static_cast<int>(head.slots.size());
  return task.window > 0 && end > task.window ? end - task.window : 0;
}

template <int kHeads>
AttentionBlock<kHeads> block_at(const AttentionTask& task, const AttentionHead* heads, int begin) {
  AttentionBlock<kHeads> block;
  block.first_slot = begin - task.committed;
  int least = kPagePositions;
  for (int h = 0; h < kHeads; ++h) {
    const int left = static_cast<int>(heads[h].slots.size()) - block.first_slot;
    block.positions[h] = left < 0 ? 0 : left < kPagePositions ? left : kPagePositions;
    least = block.positions[h] < least ? block.positions[h] : least;
    const int before = first_seen(task, heads[h]) - begin;
    block.hidden[h] = before < 0 ? 0 : before < kPagePositions ? before : kPagePositions;
  }
  if (block.first_slot < 0) {
    block.page = task.pages[begin / kPagePositions] + task.offset;
    block.shared = -block.first_slot < kPagePositions ? -block.first_slot : kPagePositions;
    return block;
  }
  block.page = nullptr;
  block.shared = least;
  for (int h = 0; h < kHeads && least > 0; ++h) {
    const std::int32_t* const slots = heads[h].slots.data() + block.first_slot;
    if (h > 0 && slots == heads[h - 1].slots.data() + block.first_slot) continue;
    if (!in_first_lanes(slots, least) || (h > 0 && part_of(task, slots[0]) != block.page)) {
      block.shared = 0;
      break;
    }
    block.page = part_of(task, slots[0]);
  }
  return block;
}

/// Scores of the positions that do not lie in the common page. Their keys are in scratch slots,
/// which are taken for all heads together, a page at a time.
template <typename Cache, int kHeads>
void score_slots(const AttentionTask& task, const AttentionHead* heads,
                 const AttentionBlock<kHeads>& block, float (*scores)[kPagePositions]) {
  std::int32_t first = kNoSlot, last = kNoSlot;
  for (int h = 0; h < kHeads; ++h) {
    for (int i = block.shared; i < block.positions[h]; ++i) {
      const std::int32_t slot = heads[h].slots[block.first_slot + i];
      if (slot == kNoSlot) {
        scores[h][i] = -__builtin_inff();
        continue;
      }
      first = first == kNoSlot || slot < first ? slot : first;
      last = slot > last ? slot : last;
    }
  }
  for (std::int32_t lane = first / 16 * 16; lane <= last;) {
    const std::int32_t page = lane / kPagePositions * kPagePositions;
    const int end = last - page < kPagePositions ? last - page + 1 : kPagePositions;
    float slot_scores[kHeads][kPagePositions];
    score<Cache, kHeads>(heads, task.part.head_size, part_of(task, page), lane - page, end,
                         slot_scores, {});
    for (int h = 0; h < kHeads; ++h) {
      for (int i = block.shared; i < block.positions[h]; ++i) {
        const std::int32_t slot = heads[h].slots[block.first_slot + i];
        if (slot >= page && slot < page + kPagePositions)
          scores[h][i] = slot_scores[h][slot - page];
      }
    }
    lane = page + kPagePositions;
  }
}

/// `fetches`: the context's next block, too.
template <typename Cache, int kHeads>
void attend_block(const AttentionTask& task, const AttentionHead* heads, Softmax* softmax,
                  int begin, bool fetches) {
  const int head_size = task.part.head_size;
  const std::size_t key_bytes = task.part.key_bytes();
  const std::size_t value_bytes = task.part.value_bytes();
  const AttentionBlock<kHeads> block = block_at<kHeads>(task, heads, begin);

  float scores[kHeads][kPagePositions];
  if (block.shared > 0) {
    Ahead ahead;
    if (fetches) ahead = {block.page + key_bytes, kPagePositions * value_bytes / head_size};
    score<Cache, kHeads>(heads, head_size, block.page, 0, block.shared, scores, ahead);
  }
  score_slots<Cache, kHeads>(task, heads, block, scores);

  float correction[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    for (int i = block.positions[h]; i < kPagePositions; ++i) scores[h][i] = -__builtin_inff();
    for (int i = 0; i < block.hidden[h]; ++i) scores[h][i] = -__builtin_inff();
  }
  weigh<kHeads>(softmax, scores, task, correction);

  const std::byte* values[kPagePositions];
  if (block.shared > 0) {
    for (int i = 0; i < block.shared; ++i) values[i] = block.page + key_bytes + i * value_bytes;
    const int next = begin + kPagePositions;
    Ahead ahead;
    if (fetches && next < task.committed) {
      ahead = {task.pages[next / kPagePositions] + task.offset, key_bytes / kPagePositions};
    }
    add_values<Cache, kHeads>(heads, scores, values, 0, block.shared, 0, head_size, correction,
                              ahead);
    for (int h = 0; h < kHeads; ++h) correction[h] = 1.0f;
  }
  // Those in slots, for the heads of each row.
  for (int h = 0; h < kHeads;) {
    const std::int32_t* const slots = heads[h].slots.data();
    const int row = h;
    while (h < kHeads && heads[h].slots.data() == slots) ++h;
    if (block.positions[row] <= block.shared) continue;
    for (int i = block.shared; i < block.positions[row]; ++i) {
      const std::int32_t slot = slots[block.first_slot + i];
      values[i] = slot == kNoSlot
                      ? nullptr
                      : part_of(task, slot) + key_bytes + slot % kPagePositions * value_bytes;
    }
    with_count<kHeads>(h - row, [&]<int kOfRow>() {
      add_values<Cache, kOfRow>(heads + row, scores + row, values, block.shared,
                                block.positions[row], 0, head_size, correction + row, {});
    });
  }
}

template <typename Cache>
void attend_all(const AttentionTask& task) {
  // Few enough that their queries and sums stay in the first-level cache beside a block.
  constexpr int kTogether = 8 * kAttentionHeads;
  const int count = static_cast<int>(task.heads.size());
  for (int first = 0; first < count; first += kTogether) {
    const AttentionHead* const heads = task.heads.data() + first;
    const int together = count - first < kTogether ? count - first : kTogether;
    Softmax softmax[kTogether];
    int first_position = first_seen(task, heads[0]), end = 0;
    for (int h = 0; h < together; ++h) {
      for (int i = 0; i < task.part.head_size; ++i) heads[h].out[i] = 0.0f;
      const int sees = task.committed + static_cast<int>(heads[h].slots.size());
      end = sees > end ? sees : end;
      const int from = first_seen(task, heads[h]);
      first_position = from < first_position ? from : first_position;
    }
    const int tiles = (together + kAttentionHeads - 1) / kAttentionHeads;
    // A block that lies before a head's window leaves its sums as they are, to the bit: its weights
    // are 0.
    for (int begin = first_position / kPagePositions * kPagePositions; begin < end;
         begin += kPagePositions) {
      for (int tile = 0; tile < tiles; ++tile) {
        const int h = tile * together / tiles;
        with_count<kAttentionHeads>((tile + 1) * together / tiles - h, [&]<int kHeads>() {
          attend_block<Cache, kHeads>(task, heads + h, softmax + h, begin, tile == 0);
        });
      }
    }
    for (int h = 0; h < together; ++h) {
      const float inverse_sum = 1.0f / softmax[h].sum;
      for (int i = 0; i < task.part.head_size; ++i) heads[h].out[i] *= inverse_sum;
    }
  }
}

void attend(const AttentionTask& task) {
  if (task.part.type == CacheType::kQ8_0) return attend_all<Q8Cache>(task);
  attend_all<F16Cache>(task);
}
