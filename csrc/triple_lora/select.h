// The k largest of n scores, by value, ties to the lower index: two passes over integer keys.
//
// A strided sample brackets the k-th largest key; one pass counts what lies above the bracket and
// collects what lies in it; the exact threshold is found among what was collected, in the same way;
// a last pass writes the indices, ascending. If a bracket misses, all keys are partitioned instead:
// same result, slower. Cost: O(n) with a few vector compares an element.
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
#if defined(WITH_AVX512)
  if constexpr (sizeof(K) == 4) {
    const __m512i limit = _mm512_set1_epi32(bound);
    for (int i = 0; i < 4; ++i) {
      const __m512i v = _mm512_loadu_si512(keys + 16 * i);
      mask |= uint64_t{_mm512_cmpgt_epi32_mask(v, limit)} << (16 * i);
    }
    return mask;
  }
#elif defined(WITH_AVX2)
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

// The k-th largest key, and how many are larger.
template <typename K>
struct Threshold {
  K key;
  int64_t larger;
};

template <typename K>
Threshold<K> partition_threshold(const K* keys, int64_t n, int64_t k) {
  std::vector<K> copy(keys, keys + n);
  std::nth_element(copy.begin(), copy.begin() + (k - 1), copy.end(), std::greater<K>());
  const K key = copy[k - 1];
  // Behind the partition larger keys stand only before k.
  return {key, std::count_if(copy.begin(), copy.begin() + (k - 1), [&](K v) { return v > key; })};
}

// `keys` and `held` have room up to a multiple of 64 past n; what `keys` holds there is the smallest
// key. A long bracket is narrowed by another round on what was collected.
template <typename K>
Threshold<K> threshold(const K* keys, int64_t n, int64_t k, K* held) {
  constexpr int64_t sampled = 256;
  constexpr K smallest = std::numeric_limits<K>::min();
  if (n < 2 * sampled) return partition_threshold(keys, n, k);
  K sample[sampled];
  for (int64_t i = 0; i < sampled; ++i) sample[i] = keys[i * n / sampled];
  const double share = static_cast<double>(k) / n;
  const double middle = share * sampled, spread = 3 + 4 * std::sqrt(middle * (1 - share));
  const int64_t first = static_cast<int64_t>(middle - spread);
  const int64_t last = static_cast<int64_t>(middle + spread) + 1;
  K high = std::numeric_limits<K>::max(), low = smallest;
  K* from = sample;
  if (first >= 0) {
    std::nth_element(sample, sample + first, sample + sampled, std::greater<K>());
    high = sample[first];
    from = sample + first;
  }
  if (last < sampled) {
    std::nth_element(from, sample + last, sample + sampled, std::greater<K>());
    low = sample[last];
  }
  // Keys above `high` are counted, keys in [low, high] collected.
  int64_t larger = 0;
  K* end = held;
  for (int64_t i = 0; i < n; i += 64) {
    const uint64_t over = above(keys + i, high);
    larger += __builtin_popcountll(over);
    uint64_t in = (low == smallest ? ~uint64_t{0} : above<K>(keys + i, low - 1)) & ~over;
    if (n - i < 64) in &= (uint64_t{1} << (n - i)) - 1;
    while (in != 0) {
      *end++ = keys[i + __builtin_ctzll(in)];
      in &= in - 1;
    }
  }
  const int64_t count = end - held, left = k - larger;
  if (left < 1 || left > count) return partition_threshold(keys, n, k);  // the sample misled
  if (count > n / 2) {
    const Threshold<K> found = partition_threshold(held, count, left);
    return {found.key, larger + found.larger};
  }
  const int64_t padded = (count + 63) / 64 * 64;
  std::fill(end, held + padded, smallest);
  const Threshold<K> found = threshold(held, count, left, held + padded);
  return {found.key, larger + found.larger};
}

// index (k) of the k largest, ascending.
template <typename K>
void largest(const K* keys, int64_t n, int64_t k, K* held, int64_t* index) {
  const Threshold<K> bound = threshold(keys, n, k, held);
  int64_t equal = k - bound.larger;
  const int64_t* end = index + k;
  for (int64_t i = 0; i < n && index < end; i += 64) {
    uint64_t chosen = above(keys + i, bound.key);
    if (equal > 0) {
      // Keys equal to the bound: the first `equal` of them, by index.
      uint64_t ties = (bound.key == std::numeric_limits<K>::min()
                           ? ~uint64_t{0}
                           : above<K>(keys + i, bound.key - 1)) & ~chosen;
      if (n - i < 64) ties &= (uint64_t{1} << (n - i)) - 1;
      while (ties != 0 && equal > 0) {
        chosen |= ties & -ties;
        ties &= ties - 1;
        --equal;
      }
    }
    while (chosen != 0) {
      *index++ = i + __builtin_ctzll(chosen);
      chosen &= chosen - 1;
    }
  }
}

template <typename S>
void select_rows(const S* scores, int64_t n, int64_t k, int64_t begin, int64_t end,
                 int64_t* index) {
  using K = std::conditional_t<sizeof(S) == 8, int64_t, int32_t>;
  if (k == n) {
    for (int64_t m = begin; m < end; ++m) {
      for (int64_t i = 0; i < n; ++i) index[m * k + i] = i;
    }
    return;
  }
  const int64_t padded = (n + 63) / 64 * 64;
  // Each round holds at most half of what the one before held, rounded up to 64.
  Scratch<K> keys(padded), held(2 * padded + 64 * 16);
  std::fill(keys.get() + n, keys.get() + padded, std::numeric_limits<K>::min());
  for (int64_t m = begin; m < end; ++m) {
    keys_of<S, K>(scores + m * n, n, keys.get());
    largest<K>(keys.get(), n, k, held.get(), index + m * k);
  }
}

inline void select(Element element, const void* scores, int64_t n, int64_t k, int64_t begin,
                   int64_t end, int64_t* index) {
  with_element(element, [&](auto kind) {
    select_rows(static_cast<const decltype(kind)*>(scores), n, k, begin, end, index);
  });
}
