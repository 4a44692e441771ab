// Prototypes: a tile of dots, and distances from it.
//
// Included once per instruction set, by prototype_kernels.h: no include guard.

using Metric = PrototypeMetric;

// One copy for all callers: the tiles of all heights are long to compile.
template <typename T>
__attribute__((noinline)) void product(int64_t rows, int64_t K, const T* a, int64_t a_row,
                                       int64_t a_k, const T* b, int64_t b_k, T* c, int64_t c_row,
                                       bool zero) {
  multiply_panel<T>(rows, K, a, a_row, a_k, b, b_k, c, c_row, zero);
}

template <typename T>
__attribute__((noinline)) void half_product(int64_t rows, int64_t K, const T* a, int64_t a_row,
                                            int64_t a_k, const T* b, int64_t b_k, T* c,
                                            int64_t c_row, bool zero) {
  multiply_half_panel<T>(rows, K, a, a_row, a_k, b, b_k, c, c_row, zero);
}

// S = ready rows times all panels.
template <typename T>
inline void dots(const Prototypes<T>& f, const Block<T>& b) {
  constexpr int64_t wide = columns<T>;
  for (int64_t j = 0; j < f.padded; j += wide) {
    const T* panel = f.panels + j * f.D;
    const auto multiply = f.padded - j < wide ? half_product<T> : product<T>;
    int64_t k = 0;
    do {
      multiply(b.rows, std::min(dot_run, f.D - k), b.ready + k, f.stride, 1, panel + k * wide, wide,
               b.S + j, b.tile, k == 0);
      k += dot_run;
    } while (k < f.D);
  }
}

// Below this share of |x|^2 + |mu|^2 a square comes from differences: at 1024 eps rounding has
// taken a sixteenth of it at worst (a run of 128 terms that all round the same way), mostly a
// hundredth. A distance is the root of a square: that it be as right where it is small as where it
// is large takes a larger share.
template <typename T, Metric M>
constexpr T close_share =
    M == Metric::euclidean ? T(0x1p-8)
                           : (M == Metric::cosine ? 64 : 1024) * std::numeric_limits<T>::epsilon();

template <Metric M>
constexpr bool of_squares = M == Metric::sqeuclidean || M == Metric::euclidean;
template <Metric M>
constexpr bool can_be_close = M != Metric::dot;

// Squares (both Euclids), 1 - cos, or -dot, from the dots of one row, in place. Returns whether a
// pair of the row is close.
template <typename T, Metric M>
inline bool costs_of_dots(const Prototypes<T>& f, T norm, T* S) {
  constexpr int64_t lanes = Simd<T>::lanes;
  constexpr T share = close_share<T, M>;
  typename Simd<T>::ivec close{};
  for (int64_t j = 0; j < f.padded; j += lanes) {
    const Vec<T> dot = load(S + j);
    if constexpr (of_squares<M>) {
      const Vec<T> both = load(f.norms + j) + norm;
      const Vec<T> square = both - T{2} * dot;
      // Not `<`: squares that overflow leave a NaN, which differences resolve.
      close |= ~(square >= share * both);
      store(S + j, square);
    } else if constexpr (M == Metric::cosine) {
      const Vec<T> distance = T{1} - dot;
      close |= distance < share;
      store(S + j, distance);
    } else {
      store(S + j, -dot);
    }
  }
  return can_be_close<M> && any(close);
}

template <typename T, Metric M>
inline bool is_close(const Prototypes<T>& f, T norm, T cost, int64_t j) {
  if constexpr (of_squares<M>) return !(cost >= close_share<T, M> * (norm + f.norms[j]));
  return cost < close_share<T, M>;
}

// Cost of a pair from the differences of x and mu: as given under squares (what centring rounded is
// what two tight clusters far apart consist of), else of the normalised rows.
template <typename T, Metric M>
inline T cost_of_differences(const Prototypes<T>& f, const Block<T>& b, const T* given, int64_t i,
                             int64_t j) {
  if constexpr (of_squares<M>) return squared_length<T>(given, f.mu + j * f.D, f.D);
  return squared_length<T>(b.ready + i * f.stride, f.ready + j * f.stride, f.D) / 2;
}

// Pairs of a block that are close, for the gradients: (row, prototype), then dL/ddot.
template <typename T>
struct ClosePair {
  int64_t row, column;
  T weight;
};

template <typename T, Metric M>
__attribute__((noinline)) void mend_close(const Prototypes<T>& f, const Block<T>& b, int64_t i,
                                          T* S, std::vector<ClosePair<T>>* pairs) {
  const T* given = of_squares<M> ? given_row(f, b.first + i, b.room) : nullptr;
  for (int64_t j = 0; j < f.K; ++j) {
    if (!is_close<T, M>(f, b.norms[i], S[j], j)) continue;
    S[j] = cost_of_differences<T, M>(f, b, given, i, j);
    if (pairs != nullptr && of_squares<M>) pairs->push_back({i, j, T{0}});
  }
}

// The tile's costs: squares, 1 - cos or -dot.
template <typename T, Metric M>
inline void costs(const Prototypes<T>& f, const Block<T>& b,
                  std::vector<ClosePair<T>>* pairs = nullptr) {
  dots(f, b);
  for (int64_t i = 0; i < b.rows; ++i) {
    T* S = b.S + i * b.tile;
    if (__builtin_expect(costs_of_dots<T, M>(f, b.norms[i], S), false)) {
      mend_close<T, M>(f, b, i, S, pairs);
    }
  }
}

// A cost as a distance.
template <typename T, Metric M>
inline Vec<T> distance_of(Vec<T> cost) {
  if constexpr (M == Metric::euclidean) return square_root<T>(cost);
  return cost;
}

template <typename T, Metric M>
void distance_as(const Prototypes<T>& f, const PrototypeRows<T>& io, int64_t begin, int64_t end,
                 T* scratch) {
  constexpr int64_t lanes = Simd<T>::lanes;
  Block<T> b = block_in(f, scratch);
  for (int64_t block = begin; block < end; ++block) {
    read_block(f, block, b);
    costs<T, M>(f, b);
    for (int64_t i = 0; i < b.rows; ++i) {
      T* S = b.S + i * b.tile;
      if constexpr (M == Metric::euclidean) {
        for (int64_t j = 0; j < f.padded; j += lanes) {
          store(S + j, distance_of<T, M>(load(S + j)));
        }
      }
      std::memcpy(io.distance + (b.first + i) * f.K, S, sizeof(T) * f.K);
    }
  }
}
