// Prototypes: the k nearest of each row.
//
// Two scans of a row's tile of dots. The first finds the k-th best score (the cost without what all
// candidates share); the second takes every candidate within the rounding of the expansion,
// `slack` (|x|^2 + |mu|^2), and ranks it by its cost from differences. Of equal costs the lowest
// index wins, since candidates come in ascending order and only a smaller one takes a place.
//
// Included once per instruction set, by prototype_kernels.h: no include guard.

// The smaller of both; `so_far` where `value` is NaN.
template <typename T>
inline Vec<T> smaller_so_far(Vec<T> value, Vec<T> so_far) {
#if defined(WITH_AVX2) && !defined(WITH_AVX512)
  // These instructions return their second operand where one of them is NaN.
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm256_min_ps(__m256(value), __m256(so_far)));
  } else {
    return Vec<T>(_mm256_min_pd(__m256d(value), __m256d(so_far)));
  }
#endif
  return value < so_far ? value : so_far;
}

// -1 where a byte of the mask is set.
template <typename T>
inline typename Simd<T>::ivec lanes_of_mask(const uint8_t* mask, int64_t count) {
  using I = typename Simd<T>::ivec;
  // An array, not lanes one by one: a loop that the compiler turns into vectors.
  typename Simd<T>::Int set[Simd<T>::lanes] = {};
  if (count >= Simd<T>::lanes) {
    for (int64_t l = 0; l < Simd<T>::lanes; ++l) set[l] = mask[l] != 0 ? -1 : 0;
  } else {
    for (int64_t l = 0; l < count; ++l) set[l] = mask[l] != 0 ? -1 : 0;
  }
  return *reinterpret_cast<const I*>(set);
}

// The k best so far, ascending.
template <typename T>
struct Nearest {
  int64_t k, count = 0;
  T cost[32];  // not set before it is needed: k is 1 mostly
  int64_t index[32];

  explicit Nearest(int64_t wanted) : k(wanted) {}

  T worst() const { return count == k ? cost[k - 1] : infinite<T>; }
  void offer(T value, int64_t j) {
    if (!(value < worst())) return;
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && value < cost[at - 1]; --at) cost[at] = cost[at - 1], index[at] = index[at - 1];
    cost[at] = value, index[at] = j;
  }
};

template <typename T, Metric M>
struct Scan {
  const Prototypes<T>& f;
  const Block<T>& b;

  // Scores, in place of the dots; returns the least.
  T scores(int64_t i, T* S) const {
    constexpr int64_t lanes = Simd<T>::lanes;
    const uint8_t* mask =
        f.mask != nullptr && f.mask_row > 0 ? f.mask + (b.first + i) * f.mask_row : nullptr;
    Vec<T> best = broadcast(infinite<T>);
    for (int64_t j = 0; j < f.padded; j += lanes) {
      const Vec<T> dot = load(S + j);
      Vec<T> score;
      if constexpr (of_squares<M>) {
        score = load(f.norms + j) - T{2} * dot;
      } else if constexpr (M == Metric::cosine) {
        score = T{1} - dot;
      } else {
        score = -dot;
      }
      // A choice, not a sum: a NaN row leaves what is masked masked.
      score = load(f.offsets + j) == -infinite<T> ? broadcast(infinite<T>) : score;
      if (mask != nullptr) {
        score = lanes_of_mask<T>(mask + j, f.K - j) ? score : broadcast(infinite<T>);
      }
      store(S + j, score);
      best = smaller_so_far<T>(score, best);
    }
    return smallest_across<T>(best);
  }

  T kth(const T* S, int64_t k) const {
    Nearest<T> nearest(k);
    for (int64_t j = 0; j < f.padded; j += Simd<T>::lanes) {
      uint32_t better = bits_of<T>(load(S + j) < nearest.worst());
      for (; better != 0; better &= better - 1) {
        const int64_t at = j + std::countr_zero(better);
        nearest.offer(S[at], at);
      }
    }
    // With fewer than k, every finite score is a candidate.
    return nearest.count == k ? nearest.cost[k - 1] : std::numeric_limits<T>::max();
  }

  // What rounding may have done to a score, as a share of |x|^2 + |mu|^2, at worst: n terms of a
  // run of the dot, its runs, the terms of a norm's chain, half an eps each, and a few more.
  T slack() const {
    constexpr T eps = std::numeric_limits<T>::epsilon();
    const int64_t terms = std::min(f.D, dot_run) + f.D / dot_run + f.D / (4 * Simd<T>::lanes);
    return eps * (T(terms) / 2 + 8);
  }

  // The score without what rounding may have added to it.
  Vec<T> bound(const T* S, int64_t j, T slack) const {
    if constexpr (of_squares<M>) return load(S + j) - slack * load(f.norms + j);
    return load(S + j);
  }

  // Above what a candidate's bound cannot be: the k-th best score with its own error, for which
  // |mu|^2 <= 2 |x|^2 + 2 |x - mu|^2, and the row's part of the candidate's.
  T limit(int64_t i, T score, T slack) const {
    if constexpr (of_squares<M>) {
      const T norm = b.norms[i];
      return score + slack * (4 * norm + 2 * std::max(score + norm, T{0}));
    }
    if constexpr (M == Metric::cosine) return std::max(score + 2 * slack, close_share<T, M>);
    return score;
  }

  T exact(const T* given, int64_t i, T score, int64_t j) const {
    if constexpr (M == Metric::dot) return score;
    // A zero vector has distance 1, whatever its differences are.
    if (M == Metric::cosine && (b.norms[i] == 0 || f.norms[j] == 0)) return score;
    return cost_of_differences<T, M>(f, b, given, i, j);
  }
};

template <typename T, Metric M>
void assign_as(const Prototypes<T>& f, const PrototypeRows<T>& io, int64_t begin, int64_t end,
               T* scratch) {
  constexpr int64_t lanes = Simd<T>::lanes;
  Block<T> b = block_in(f, scratch);
  const Scan<T, M> scan{f, b};
  const T slack = scan.slack();
  for (int64_t block = begin; block < end; ++block) {
    read_block(f, block, b);
    dots(f, b);
    for (int64_t i = 0; i < b.rows; ++i) {
      T* S = b.S + i * b.tile;
      const T least = scan.scores(i, S);
      const T limit = scan.limit(i, io.k == 1 ? least : scan.kth(S, io.k), slack);
      const T* given = of_squares<M> ? given_row(f, b.first + i, b.room) : nullptr;
      Nearest<T> nearest(io.k);
      for (int64_t j = 0; j < f.padded; j += lanes) {
        uint32_t candidates = bits_of<T>(scan.bound(S, j, slack) <= limit);
        for (; candidates != 0; candidates &= candidates - 1) {
          const int64_t at = j + std::countr_zero(candidates);
          if (S[at] < infinite<T>) nearest.offer(scan.exact(given, i, S[at], at), at);
        }
      }
      T* distance = io.distance + (b.first + i) * io.k;
      int64_t* index = io.index + (b.first + i) * io.k;
      T rest = infinite<T>;
      if (nearest.count == 0) {
        // All NaN, or nothing that may be used. NaN is the one value that differs from itself.
        bool some = false, all = true;
        for (int64_t j = 0; j < f.K; ++j) {
          if (S[j] == infinite<T>) continue;
          some = true, all &= S[j] != S[j];
        }
        if (some && all) rest = std::numeric_limits<T>::quiet_NaN();
      }
      for (int64_t slot = 0; slot < io.k; ++slot) {
        const bool found = slot < nearest.count;
        const T cost = found ? nearest.cost[slot] : rest;
        distance[slot] = M == Metric::euclidean ? std::sqrt(cost) : cost;
        index[slot] = found ? nearest.index[slot] : -1;
      }
    }
  }
}
