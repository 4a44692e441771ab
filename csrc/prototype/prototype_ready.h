// Prototypes: rows of x and of mu made ready for the product.
//
// Included once per instruction set, by prototype_kernels.h: no include guard.

// Sums of a dot run over this many terms, then start anew.
constexpr int64_t dot_run = 128;

template <typename T>
constexpr T infinite = std::numeric_limits<T>::infinity();

template <typename T>
inline bool has_squares(const Prototypes<T>& f) {
  return f.metric == PrototypeMetric::sqeuclidean || f.metric == PrototypeMetric::euclidean;
}

// Row i of x as it was given: where it lies, or widened into `room`.
template <typename T>
inline const T* given_row(const Prototypes<T>& f, int64_t i, T* room) {
  const int64_t at = i * f.D;
  if constexpr (sizeof(T) == 4) {
    if (f.element == Element::bf16) {
      widen_row(static_cast<const Bf16*>(f.x) + at, room, f.D);
      return room;
    }
    if (f.element == Element::f16) {
      widen_row(static_cast<const F16*>(f.x) + at, room, f.D);
      return room;
    }
  }
  return static_cast<const T*>(f.x) + at;
}

// a, or a - b where there is a b. (A function: g++ compiles a lambda under the pragma for the plain
// instruction set.)
template <typename T>
inline Vec<T> gap(const T* a, const T* b, int64_t k) {
  return b == nullptr ? load(a + k) : load(a + k) - load(b + k);
}

// Sum of (a_k - b_k)^2; b null: of a_k^2.
template <typename T>
inline T squared_length(const T* a, const T* b, int64_t D) {
  constexpr int64_t lanes = Simd<T>::lanes, chains = 4;
  Vec<T> sum[chains] = {};
  int64_t k = 0;
  for (; k + chains * lanes <= D; k += chains * lanes) {
    for (int64_t c = 0; c < chains; ++c) {
      const Vec<T> d = gap(a, b, k + c * lanes);
      sum[c] += d * d;
    }
  }
  for (; k + lanes <= D; k += lanes) {
    const Vec<T> d = gap(a, b, k);
    sum[0] += d * d;
  }
  T total = sum_across<T>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; k < D; ++k) {
    const T d = b == nullptr ? a[k] : a[k] - b[k];
    total += d * d;
  }
  return total;
}

// `from`, centred under squares, normalised under cosine, into `row` (which may be `from`); 0 in
// the padding of the depth. Returns its squared length, under cosine 1 / |row| (0 for a zero
// vector).
template <typename T>
inline T make_ready(const Prototypes<T>& f, const T* from, T* row) {
  constexpr int64_t lanes = Simd<T>::lanes, chains = 4;
  const T* centre = f.centre;
  Vec<T> sum[chains] = {};
  int64_t k = 0;
  // One pass: read, centred, kept, and its square summed up.
  for (; k + chains * lanes <= f.D; k += chains * lanes) {
    for (int64_t c = 0; c < chains; ++c) {
      const Vec<T> value = gap(from, centre, k + c * lanes);
      store(row + k + c * lanes, value);
      sum[c] += value * value;
    }
  }
  for (; k + lanes <= f.D; k += lanes) {
    const Vec<T> value = gap(from, centre, k);
    store(row + k, value);
    sum[0] += value * value;
  }
  T square = sum_across<T>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; k < f.D; ++k) {
    row[k] = centre == nullptr ? from[k] : from[k] - centre[k];
    square += row[k] * row[k];
  }
  for (; k < f.depth; ++k) row[k] = 0;
  if (f.metric != PrototypeMetric::cosine) return square;
  const T inverse = square < std::numeric_limits<T>::min() ? T{0} : 1 / std::sqrt(square);
  for (k = 0; k + lanes <= f.D; k += lanes) store(row + k, load(row + k) * inverse);
  for (; k < f.D; ++k) row[k] *= inverse;
  return inverse;
}

// Panels first .. last of the prototypes. One that no row may use counts as the centre: what it
// holds, NaN perhaps, reaches no other.
template <typename T>
void prepare(const Prototypes<T>& f, int64_t first, int64_t last) {
  constexpr int64_t wide = columns<T>;
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t end = std::min(f.K, (panel + 1) * wide);
    for (int64_t j = panel * wide; j < std::min(f.padded, (panel + 1) * wide); ++j) {
      f.norms[j] = 0;
      f.offsets[j] = -infinite<T>;
    }
    for (int64_t j = panel * wide; j < end; ++j) {
      T* row = f.ready + j * f.stride;
      const T prior = f.log_prior == nullptr ? T{0} : f.log_prior[j];
      if (prior == -infinite<T> || (f.mask != nullptr && f.mask_row == 0 && !f.mask[j])) {
        std::fill(row, row + f.depth, T{0});
        continue;
      }
      f.norms[j] = make_ready(f, f.mu + j * f.D, row);
      f.offsets[j] = prior * T(1.44269504088896340736);
    }
    pack_panel<T, T>(f.ready, 1, f.stride, f.D, f.K, panel * wide, f.panels + panel * wide * f.D);
    // In W ready, W is 0 or NaN where a prototype that is not finite stands.
    for (int64_t j = panel * wide; j < end; ++j) {
      T* row = f.ready + j * f.stride;
      T rest = 0;
      for (int64_t k = 0; k < f.D; ++k) rest += row[k] - row[k];
      if (rest != 0) std::fill(row, row + f.depth, T{0});
    }
  }
}

// A block of rows, ready, and its tile of dots or what becomes of it.
template <typename T>
struct Block {
  int64_t first, rows;  // rows first .. first + rows of x
  T* ready;             // (block, stride)
  T* norms;             // as `Prototypes::norms`
  T* S;                 // (block, tile)
  int64_t tile;
  T* kept;                // (block, tile): distances, where the gradients need them
  T* gradient;            // (block, stride)
  T* room;                // (depth)
  T* given;               // (tile)
  T* own;                 // (block): what a row's own vector enters its gradient with
  T* totals;              // (block): sums of exponentials
  PrototypeSums<T> part;  // (padded) each: the block's own sums over rows
};

template <typename T>
int64_t tile_stride(const Prototypes<T>& f) {
  // Rows a multiple of 2 KiB apart would fall on few sets of the first cache.
  return round_up(f.padded, columns<T>) + 64 / static_cast<int64_t>(sizeof(T));
}

template <typename T>
int64_t scratch_size(const Prototypes<T>& f) {
  return 2 * f.block * (f.stride + tile_stride(f)) + 3 * round_up(f.block, columns<T>) + f.depth +
         2 * f.padded + tile_stride(f);
}

template <typename T>
Block<T> block_in(const Prototypes<T>& f, T* scratch) {
  Block<T> b{};
  const auto take = [&](int64_t count) {
    T* p = scratch;
    scratch += count;
    return p;
  };
  b.tile = tile_stride(f);
  b.ready = take(f.block * f.stride), b.gradient = take(f.block * f.stride);
  b.S = take(f.block * b.tile), b.kept = take(f.block * b.tile);
  b.norms = take(round_up(f.block, columns<T>)), b.room = take(f.depth);
  b.given = take(b.tile), b.own = take(round_up(f.block, columns<T>));
  b.totals = take(round_up(f.block, columns<T>));
  b.part = {nullptr, take(f.padded), take(f.padded)};
  return b;
}

template <typename T>
inline void read_block(const Prototypes<T>& f, int64_t index, Block<T>& b) {
  b.first = index * f.block;
  b.rows = std::min(f.block, f.N - b.first);
  std::fill_n(b.part.own, f.padded, T{0}), std::fill_n(b.part.logit, f.padded, T{0});
  for (int64_t i = 0; i < b.rows; ++i) {
    T* row = b.ready + i * f.stride;
    b.norms[i] = make_ready(f, given_row(f, b.first + i, row), row);
  }
}

// The block's sums into the stripe's.
template <typename T>
inline void add_part(const Prototypes<T>& f, const PrototypeSums<T>& sums, const Block<T>& b) {
  constexpr int64_t lanes = Simd<T>::lanes;
  for (int64_t j = 0; j < f.padded; j += lanes) {
    store(sums.own + j, load(sums.own + j) + load(b.part.own + j));
    store(sums.logit + j, load(sums.logit + j) + load(b.part.logit + j));
  }
}

// A row that takes no part, whatever it holds.
template <typename T>
inline void silence(const Prototypes<T>& f, Block<T>& b, int64_t i) {
  std::fill_n(b.ready + i * f.stride, f.depth, T{0});
  b.norms[i] = 0;
}
