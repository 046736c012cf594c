// Norms, activations, positions, and the choice of tokens. See kernels_body.h.

/// 16 values from p, of which `n` are there; the rest is zero.
inline F32x16 load_tail(const float* p, int n) {
  float padded[16] = {};
  for (int i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
}

inline void store_tail(float* p, F32x16 x, int n) {
  float padded[16];
  store(padded, x);
  for (int i = 0; i < n; ++i) p[i] = padded[i];
}

/// Calls out[i] = one(a[i], b[i]), vectors of 16 at a time.
template <typename One>
void for_pairs(const float* a, const float* b, int n, float* out, One one) {
  int i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, one(load(a + i), load(b + i)));
  if (i < n) store_tail(out + i, one(load_tail(a + i, n - i), load_tail(b + i, n - i)), n - i);
}

float inverse_rms(const float* x, float epsilon, int n) {
  // Four sums, so that they do not wait for each other.
  F32x16 squares[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  int i = 0;
  for (int k = 0; i < n; i += 16, k = (k + 1) % 4) {
    const F32x16 part = i + 16 <= n ? load(x + i) : load_tail(x + i, n - i);
    squares[k] = fma(part, part, squares[k]);
  }
  const float sum = reduce_add(add(add(squares[0], squares[1]), add(squares[2], squares[3])));
  return 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + epsilon);
}

void scale(const float* x, float factor, const float* weight, int n, float* out) {
  for_pairs(x, weight, n, out,
            [all = splat(factor)](F32x16 value, F32x16 by) { return mul(mul(value, all), by); });
}

void add_scaled(const float* x, float factor, const float* weight, int n, float* out) {
  const F32x16 all = splat(factor);
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    store(out + i, fma(mul(load(x + i), all), load(weight + i), load(out + i)));
  }
  if (i < n) {
    const int left = n - i;
    const F32x16 scaled = mul(load_tail(x + i, left), all);
    store_tail(out + i, fma(scaled, load_tail(weight + i, left), load_tail(out + i, left)), left);
  }
}

void rope(float* head, const float* cosines, const float* sines, int n, bool interleaved) {
  const int pairs = n / 2;
  int pair = 0;
  if (interleaved) {
    for (; pair + 8 <= pairs; pair += 8) {
      store(head + 2 * pair, turn_neighbours(load(head + 2 * pair), cosines + pair, sines + pair));
    }
    for (; pair < pairs; ++pair) {
      float* const a = head + 2 * pair;
      const float turned = a[0] * cosines[pair] - a[1] * sines[pair];
      a[1] = a[0] * sines[pair] + a[1] * cosines[pair];
      a[0] = turned;
    }
    return;
  }
  float* const other = head + pairs;
  for (; pair + 16 <= pairs; pair += 16) {
    const F32x16 a = load(head + pair), b = load(other + pair);
    const F32x16 cosine = load(cosines + pair), sine = load(sines + pair);
    store(head + pair, sub(mul(a, cosine), mul(b, sine)));
    store(other + pair, add(mul(a, sine), mul(b, cosine)));
  }
  for (; pair < pairs; ++pair) {
    const float turned = head[pair] * cosines[pair] - other[pair] * sines[pair];
    other[pair] = head[pair] * sines[pair] + other[pair] * cosines[pair];
    head[pair] = turned;
  }
}

/// e^x to about 2 units in the last place; 0 for x < -87 (and for -infinity).
inline F32x16 exp(F32x16 x) {
  const F32x16 bounded = min(max(x, splat(-87.0f)), splat(88.0f));
  const I32x16 power = to_int(mul(bounded, splat(1.44269504f)));
  const F32x16 n = to_float(power);
  // ln 2 in two parts, so that the remainder is exact to the last bits.
  F32x16 r = fma(n, splat(-0.693359375f), bounded);
  r = fma(n, splat(2.12194440e-4f), r);
  F32x16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, mul(r, r), add(r, splat(1.0f)));
  return zero_where_below(x, -87.0f, mul(p, power_of_two(power)));
}

void silu_multiply(const float* gate, const float* up, int n, float* out) {
  for_pairs(gate, up, n, out, [](F32x16 g, F32x16 u) {
    return mul(div(g, add(splat(1.0f), exp(sub(splat(0.0f), g)))), u);
  });
}

void gelu_multiply(const float* gate, const float* up, int n, float* out) {
  // (1 + tanh(y)) / 2 = 1 / (1 + e^-2y)
  constexpr float kTwice = -2.0f * 0.79788456f;  // -2 sqrt(2 / pi)
  for_pairs(gate, up, n, out, [](F32x16 g, F32x16 u) {
    const F32x16 inner = fma(mul(splat(0.044715f), g), mul(g, g), g);
    return mul(div(g, add(splat(1.0f), exp(mul(splat(kTwice), inner)))), u);
  });
}

/// cap * tanh(x / cap)
inline F32x16 capped(F32x16 x, float cap) {
  const F32x16 e = exp(mul(x, splat(2.0f / cap)));
  return mul(splat(cap), sub(splat(1.0f), div(splat(2.0f), add(e, splat(1.0f)))));
}

void soft_cap(float* x, float cap, int n) {
  for_pairs(x, x, n, x, [cap](F32x16 a, F32x16) { return capped(a, cap); });
}

void store_kv(const float* key, const float* value, const PagePart& part, std::byte* to, int lane) {
  const int head_size = part.head_size;
  std::byte* const row = to + part.key_bytes() + lane * part.value_bytes();
  if (part.type == CacheType::kF16) {
    auto* const keys = reinterpret_cast<Half*>(to);
    auto* const values = reinterpret_cast<Half*>(row);
    for (int i = 0; i < head_size; i += 16) {
      const int n = head_size - i < 16 ? head_size - i : 16;
      Half halves[16];
      store_half(halves, load_tail(key + i, n));
      for (int k = 0; k < n; ++k) keys[(i + k) * kPagePositions + lane] = halves[k];
      store_half(halves, load_tail(value + i, n));
      for (int k = 0; k < n; ++k) values[i + k] = halves[k];
    }
    return;
  }
  const int groups = part.groups();
  auto* const key_scales = reinterpret_cast<float*>(to + head_size * kPagePositions);
  auto* const value_scales = reinterpret_cast<float*>(row);
  std::byte* const value_codes = row + groups * sizeof(float);
  for (int g = 0; g < groups; ++g) {
    const int n = head_size - 32 * g < 32 ? head_size - 32 * g : 32;
    ActivationGroup group;
    float padded[32] = {};
    for (int k = 0; k < n; ++k) padded[k] = key[32 * g + k];
    quantize(padded, group);
    key_scales[g * kPagePositions + lane] = group.scale;
    for (int k = 0; k < n; ++k) {
      to[(32 * g + k) * kPagePositions + lane] = static_cast<std::byte>(group.codes[k]);
    }
    for (int k = 0; k < n; ++k) padded[k] = value[32 * g + k];
    quantize(padded, group);
    value_scales[g] = group.scale;
    __builtin_memcpy(value_codes + 32 * g, group.codes, 32);
  }
}

void select_best(const float* logits, int n, int first, TokenLogit* best, int& size, int count) {
  const auto better = [](float logit, int token, const TokenLogit& other) {
    return logit > other.logit || (logit == other.logit && token < other.token);
  };
  for (int i = 0; i < n; i += 16) {
    const bool whole = i + 16 <= n;
    // Most of the time none of 16 is good enough; NaNs never are.
    if (whole && size == count && !any_at_least(load(logits + i), best[size - 1].logit)) continue;
    for (int k = i; k < n && k < i + 16; ++k) {
      const float logit = logits[k];
      if (!(logit == logit)) continue;
      if (size == count && !better(logit, first + k, best[size - 1])) continue;
      int at = size < count ? size++ : size - 1;
      for (; at > 0 && better(logit, first + k, best[at - 1]); --at) best[at] = best[at - 1];
      best[at] = {first + k, logit};
    }
  }
}

float dot(const float* a, const float* b, int n) {
  F32x16 sums[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  int i = 0;
  for (int k = 0; i + 16 <= n; i += 16, k = (k + 1) % 4) {
    sums[k] = fma(load(a + i), load(b + i), sums[k]);
  }
  float rest = 0.0f;
  for (; i < n; ++i) rest += a[i] * b[i];
  return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3]))) + rest;
}

ExpSum sum_exp(const float* logits, int n) {
  // max() takes the second argument where the first is NaN, and e^-infinity is 0.
  const F32x16 least = splat(-__builtin_inff());
  F32x16 most = least;
  for (int i = 0; i < n; i += 16) {
    float tail[16];
    for (int k = 0; n - i < 16 && k < 16; ++k) tail[k] = logits[i + k < n ? i + k : i];
    most = max(load(n - i < 16 ? tail : logits + i), most);
  }
  const float largest = reduce_max(most);
  if (!(largest > -__builtin_inff())) return {largest, 0.0f};
  F32x16 sum = splat(0.0f);
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    sum = add(sum, exp(max(sub(load(logits + i), splat(largest)), least)));
  }
  float rest = 0.0f;
  for (; i < n; ++i) {
    float one[16];
    store(one, exp(max(sub(splat(logits[i]), splat(largest)), least)));
    rest += one[0];
  }
  return {largest, reduce_add(sum) + rest};
}
