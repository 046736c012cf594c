// Attention of one row. See kernels_body.h.
//
// Scores are one chain of fma over the head a position; values are added position by position. The
// chains of several positions, heads and elements run side by side, which changes nothing in any.

constexpr int kMostHeadSize = 1024;

/// Fetches halves first .. first + count - 1 of `part`; nullptr: nothing.
inline void fetch(const Half* part, int first, int count) {
  if (part == nullptr) return;
  for (int i = 0; i < count; i += 32) __builtin_prefetch(part + first + i, 0, 3);
}

/// Scores of kHeads query heads with the positions first .. end - 1 of the page part whose
/// transposed keys begin at `keys`; `first` is a multiple of 16, and what lies between `end` and
/// the next such number is written, too. Fetches the page part at `ahead`, as large as the keys.
template <int kHeads, int kVectors = kAttentionVectors>
void score(const float* query, int head_size, const Half* keys, int first, int end,
           float (*scores)[kPagePositions], const Half* ahead) {
  for (; first + 16 * (kVectors - 1) < end; first += 16 * kVectors) {
    F32x16 sum[kHeads][kVectors];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[h][v] = splat(0.0f);
    }
    for (int i = 0; i < head_size; ++i) {
      fetch(ahead, i * kPagePositions, kPagePositions);
      F32x16 key[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        key[v] = load_half(keys + i * kPagePositions + first + 16 * v);
      }
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const F32x16 q = splat(query[h * head_size + i]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[h][v] = fma(q, key[v], sum[h][v]);
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) store(scores[h] + first + 16 * v, sum[h][v]);
    }
  }
  if constexpr (kVectors > 1) {
    if (first < end) score<kHeads, kVectors - 1>(query, head_size, keys, first, end, scores, ahead);
  }
}

/// result[h][i] = result[h][i] * correction[h] + sum over positions of weights[h][position] * its
/// value, from element i to the end of the head; positions without a value are not seen. Fetches
/// the page part at `ahead`.
template <int kHeads, int kVectors = kAttentionVectors>
void add_values(const float (*weights)[kPagePositions], const Half* const* values, int positions,
                int i, int head_size, const float* correction, float (*result)[kMostHeadSize],
                const Half* ahead) {
  for (; i + 16 * kVectors <= head_size; i += 16 * kVectors) {
    F32x16 sum[kHeads][kVectors];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sum[h][v] = mul(load(result[h] + i + 16 * v), splat(correction[h]));
      }
    }
    for (int position = 0; position < positions; ++position) {
      fetch(ahead, position * head_size, head_size);
      const Half* const at = values[position];
      if (at == nullptr) continue;
      F32x16 value[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) value[v] = load_half(at + i + 16 * v);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const F32x16 weight = splat(weights[h][position]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[h][v] = fma(weight, value[v], sum[h][v]);
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) store(result[h] + i + 16 * v, sum[h][v]);
    }
  }
  if constexpr (kVectors > 1) {
    add_values<kHeads, kVectors - 1>(weights, values, positions, i, head_size, correction, result,
                                     ahead);
  } else if (i < head_size) {
    F32x16 sum[kHeads];
    for (int h = 0; h < kHeads; ++h) sum[h] = mul(load(result[h] + i), splat(correction[h]));
    for (int position = 0; position < positions; ++position) {
      if (values[position] == nullptr) continue;
      Half tail[16] = {};
      for (int k = 0; k < head_size - i; ++k) tail[k] = values[position][i + k];
      const F32x16 value = load_half(tail);
      for (int h = 0; h < kHeads; ++h) sum[h] = fma(splat(weights[h][position]), value, sum[h]);
    }
    for (int h = 0; h < kHeads; ++h) store(result[h] + i, sum[h]);
  }
}

/// Whether the positions of a block from lane `lane` on lie in the same lanes of one scratch page:
/// a prompt's chunk, or the first branch of a tree.
inline bool in_their_lanes(const std::int32_t* slots, int count, int lane) {
  if (slots[0] == kNoSlot || slots[0] % kPagePositions != lane) return false;
  for (int i = 1; i < count; ++i) {
    if (slots[i] != slots[0] + i) return false;
  }
  return true;
}

template <int kHeads>
void attend_heads(const AttentionTask& task, const float* query, float* out) {
  const int head_size = task.head_size;
  const std::int32_t* const slots = task.slots.data();
  const int end = task.committed + static_cast<int>(task.slots.size());
  const Half* const* const pages = task.pages.data();
  const Half* const* const scratch = task.scratch.data();
  const int keys_halves = kPagePositions * head_size;

  float result[kHeads][kMostHeadSize];
  float largest[kHeads], sum[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    for (int i = 0; i < head_size + 15; ++i) result[h][i] = 0.0f;
    largest[h] = -__builtin_inff();
    sum[h] = 0.0f;
  }

  for (int begin = 0; begin < end; begin += kPagePositions) {
    const int positions = end - begin < kPagePositions ? end - begin : kPagePositions;
    int in_page = task.committed - begin;
    in_page = in_page < 0 ? 0 : in_page > positions ? positions : in_page;

    float scores[kHeads][kPagePositions];
    const Half* values[kPagePositions];
    if (in_page < positions) {
      const std::int32_t* const here = slots + (begin + in_page - task.committed);
      if (in_their_lanes(here, positions - in_page, in_page)) {
        const Half* const keys = scratch[here[0] / kPagePositions] + task.offset;
        score<kHeads>(query, head_size, keys, in_page / 16 * 16, positions, scores, nullptr);
        for (int i = in_page; i < positions; ++i) values[i] = keys + keys_halves + i * head_size;
      } else {
        // Scores come 16 slots at a time, too.
        float slot_scores[kHeads][kPagePositions];
        int scored = -1;
        for (int i = in_page; i < positions; ++i) {
          const std::int32_t slot = here[i - in_page];
          if (slot == kNoSlot) {
            for (int h = 0; h < kHeads; ++h) scores[h][i] = -__builtin_inff();
            values[i] = nullptr;
            continue;
          }
          const Half* const keys = scratch[slot / kPagePositions] + task.offset;
          const int lane = slot % kPagePositions;
          if (slot / 16 != scored) {
            scored = slot / 16;
            score<kHeads>(query, head_size, keys, lane / 16 * 16, lane + 1, slot_scores, nullptr);
          }
          for (int h = 0; h < kHeads; ++h) scores[h][i] = slot_scores[h][lane];
          values[i] = keys + keys_halves + lane * head_size;
        }
      }
    }
    if (in_page > 0) {
      // The scores behind them, in the same 16 lanes, must not be lost.
      const Half* const keys = pages[begin / kPagePositions] + task.offset;
      const int whole = in_page / 16 * 16;
      score<kHeads>(query, head_size, keys, 0, whole, scores, keys + keys_halves);
      if (whole < in_page) {
        float lanes[kHeads][kPagePositions];
        score<kHeads>(query, head_size, keys, whole, in_page, lanes, nullptr);
        for (int h = 0; h < kHeads; ++h) {
          for (int i = whole; i < in_page; ++i) scores[h][i] = lanes[h][i];
        }
      }
      for (int i = 0; i < in_page; ++i) values[i] = keys + keys_halves + i * head_size;
    }

    float correction[kHeads];
    for (int h = 0; h < kHeads; ++h) {
      for (int i = positions; i < kPagePositions; ++i) scores[h][i] = -__builtin_inff();
      F32x16 s[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) s[v] = mul(load(scores[h] + 16 * v), splat(task.scale));
      const float block_largest = reduce_max(max(max(s[0], s[1]), max(s[2], s[3])));
      const float new_largest = largest[h] > block_largest ? largest[h] : block_largest;
      // Nothing seen so far (a block of missing pseudo rows): no scale to bring it to yet.
      const float shift = new_largest == -__builtin_inff() ? 0.0f : new_largest;
      correction[h] = 1.0f;  // e^0, exactly
      if (largest[h] != shift) {
        float shrink[16];
        store(shrink, exp(splat(largest[h] - shift)));
        correction[h] = shrink[0];
      }
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        s[v] = exp(sub(s[v], splat(shift)));
        store(scores[h] + 16 * v, s[v]);
      }
      sum[h] = sum[h] * correction[h] + reduce_add(add(add(s[0], s[1]), add(s[2], s[3])));
      largest[h] = new_largest;
    }
    const int next = begin + kPagePositions;
    add_values<kHeads>(
        scores, values, positions, 0, head_size, correction, result,
        next < task.committed ? pages[next / kPagePositions] + task.offset : nullptr);
  }
  for (int h = 0; h < kHeads; ++h) {
    const float inverse_sum = 1.0f / sum[h];
    for (int i = 0; i < head_size; ++i) out[h * head_size + i] = result[h][i] * inverse_sum;
  }
}

void attend(const AttentionTask& task) {
  for (int head = 0; head < task.group;) {
    const float* const query = task.query + head * task.head_size;
    float* const out = task.out + head * task.head_size;
    switch (task.group - head) {
      case 1:
        attend_heads<1>(task, query, out);
        return;
      case 2:
        attend_heads<2>(task, query, out);
        return;
      case 3:
        attend_heads<3>(task, query, out);
        return;
      default:
        attend_heads<4>(task, query, out);
        head += 4;
    }
  }
}
