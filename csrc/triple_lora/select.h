// The k largest of n scores, by value, ties to the lower index: two passes over integer keys.
//
// A strided sample brackets the k-th largest key; one pass counts what lies above the bracket and
// collects what lies in it; the exact threshold is found among the few collected; a second pass
// writes the indices, ascending. If the bracket misses, all keys are partitioned instead: same
// result, slower. Cost: O(n) with two vector compares an element.
//
// Included once per instruction set (common/each_capability.h): no include guard.

// Keys order as the scores do: -0 equals +0, -inf below every number, NaN below -inf.
template <typename S, typename K>
void keys_of(const S* scores, int64_t n, K* keys) {
  using T = std::conditional_t<sizeof(K) == 8, double, float>;
  constexpr int top = sizeof(K) * 8 - 1;
  for (int64_t i = 0; i < n; ++i) {
    const T value = static_cast<T>(widen(scores[i])) + T{0};
    const K bits = std::bit_cast<K>(value);
    const K key = bits ^ ((bits >> top) & std::numeric_limits<K>::max());
    keys[i] = value != value ? std::numeric_limits<K>::min() : key;
  }
}

// Bit i is set where keys[i] > bound, for 64 keys.
template <typename K>
inline uint64_t above(const K* keys, K bound) {
  uint64_t mask = 0;
#if VECTOR_BYTES == 64
  if constexpr (sizeof(K) == 4) {
    const __m512i limit = _mm512_set1_epi32(bound);
    for (int i = 0; i < 4; ++i) {
      const __m512i v = _mm512_loadu_si512(keys + 16 * i);
      mask |= uint64_t{_mm512_cmpgt_epi32_mask(v, limit)} << (16 * i);
    }
    return mask;
  }
#elif VECTOR_BYTES == 32
  if constexpr (sizeof(K) == 4) {
    const __m256i limit = _mm256_set1_epi32(bound);
    for (int i = 0; i < 8; ++i) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + 8 * i));
      const __m256 greater = _mm256_castsi256_ps(_mm256_cmpgt_epi32(v, limit));
      mask |= uint64_t(uint8_t(_mm256_movemask_ps(greater))) << (8 * i);
    }
    return mask;
  }
#endif
  for (int i = 0; i < 64; ++i) mask |= uint64_t{keys[i] > bound} << i;
  return mask;
}

template <typename K>
K threshold_by_partition(const K* keys, int64_t n, int64_t k) {
  std::vector<K> copy(keys, keys + n);
  std::nth_element(copy.begin(), copy.begin() + (k - 1), copy.end(), std::greater<K>());
  return copy[k - 1];
}

// The k-th largest key; `keys` is readable up to a multiple of 64, filled with the smallest key.
template <typename K>
K threshold(const K* keys, int64_t n, int64_t k) {
  constexpr int64_t sampled = 256;
  if (n < 4 * sampled) return threshold_by_partition(keys, n, k);
  K sample[sampled];
  for (int64_t i = 0; i < sampled; ++i) sample[i] = keys[i * n / sampled];
  std::sort(sample, sample + sampled, std::greater<K>());
  const double share = static_cast<double>(k) / n;
  const double middle = share * sampled, spread = 3 + 4 * std::sqrt(middle * (1 - share));
  const int64_t first = static_cast<int64_t>(middle - spread);
  const int64_t last = static_cast<int64_t>(middle + spread) + 1;
  const K high = first < 0 ? std::numeric_limits<K>::max() : sample[first];
  const K low = last >= sampled ? std::numeric_limits<K>::min() : sample[last];
  // Keys above `high` are counted, keys in (low - 1, high] collected.
  const bool everything = low == std::numeric_limits<K>::min();
  std::vector<K> held;
  held.reserve(n / 4);
  int64_t greater = 0;
  for (int64_t i = 0; i < n; i += 64) {
    const uint64_t over = above(keys + i, high);
    greater += __builtin_popcountll(over);
    uint64_t in = (everything ? ~uint64_t{0} : above<K>(keys + i, low - 1)) & ~over;
    if (n - i < 64) in &= (uint64_t{1} << (n - i)) - 1;
    while (in != 0) {
      held.push_back(keys[i + __builtin_ctzll(in)]);
      in &= in - 1;
    }
  }
  const int64_t left = k - greater;
  if (left < 1 || left > static_cast<int64_t>(held.size())) {
    return threshold_by_partition(keys, n, k);
  }
  std::nth_element(held.begin(), held.begin() + (left - 1), held.end(), std::greater<K>());
  return held[left - 1];
}

// index (k) of the k largest, ascending.
template <typename K>
void largest(const K* keys, int64_t n, int64_t k, int64_t* index) {
  if (k == n) {
    for (int64_t i = 0; i < n; ++i) index[i] = i;
    return;
  }
  const K bound = threshold(keys, n, k);
  int64_t written = 0, equal = k;
  for (int64_t i = 0; i < n; i += 64) equal -= __builtin_popcountll(above(keys + i, bound));
  for (int64_t i = 0; i < n; i += 64) {
    uint64_t chosen = above(keys + i, bound);
    if (equal > 0) {
      for (int64_t j = 0; j < 64 && i + j < n && equal > 0; ++j) {
        if (keys[i + j] == bound) chosen |= uint64_t{1} << j, --equal;
      }
    }
    while (chosen != 0) {
      index[written++] = i + __builtin_ctzll(chosen);
      chosen &= chosen - 1;
    }
  }
}

template <typename S>
void select_rows(const S* scores, int64_t n, int64_t k, int64_t begin, int64_t end,
                 int64_t* index) {
  using K = std::conditional_t<sizeof(S) == 8, int64_t, int32_t>;
  const int64_t padded = (n + 63) / 64 * 64;
  Scratch<K> keys(padded);
  std::fill(keys.get() + n, keys.get() + padded, std::numeric_limits<K>::min());
  for (int64_t m = begin; m < end; ++m) {
    keys_of<S, K>(scores + m * n, n, keys.get());
    largest<K>(keys.get(), n, k, index + m * k);
  }
}

inline void select(Element element, const void* scores, int64_t n, int64_t k, int64_t begin,
                   int64_t end, int64_t* index) {
  with_element(element, [&](auto kind) {
    select_rows(static_cast<const decltype(kind)*>(scores), n, k, begin, end, index);
  });
}
