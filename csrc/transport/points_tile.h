// Tiles of the plan between two clouds: products, costs, entries. What points_kernels.h and
// points_plan.h are made of.
//
// Included once per instruction set, by points_kernels.h: no include guard.

namespace points {

template <typename T>
constexpr int64_t width = columns<T>;  // points of a panel, and rows of a block at most

constexpr int64_t block_k = 64, flush = 32, chunk = 4;

template <typename T>
struct Limits;
template <>
struct Limits<float> {  // of 2^-126 .. 2^127: what underflows is below 2^-24 of any sum that passes
  static constexpr float sum = 0x1p-60f, step = 0x1p30f;
};
template <>
struct Limits<double> {
  static constexpr double sum = 0x1p-600, step = 0x1p300;
};

// Rows of a block: their entries, for all columns, should stay in the second or third cache.
template <typename T>
int64_t block_rows(int64_t m) {
  int64_t rows = width<T>;
  while (rows > 4 && rows * m * int64_t{sizeof(T)} > (int64_t{1} << 21)) rows /= 2;
  return rows;
}

template <typename T>
int64_t scratch_size(int64_t m, int64_t d) {
  const int64_t kept = block_rows<T>(m) * round_up(m, width<T>);
  const int64_t weighted = width<T> * (chunk * width<T> + 2 * d) + d;
  return kept > weighted ? kept : weighted;
}

// out (rows, width) = products of the rows from `row` on with panel `panel` of y.
template <typename T>
inline void multiply_tile(const Pair<T>& points, int64_t row, int64_t rows, int64_t panel, T* out,
                          int64_t stride) {
  constexpr int64_t w = width<T>;
  const T* a = points.x.panels + row / w * w * points.D + row % w;
  const T* b = points.y.panels + panel * w * points.D;
  int64_t k = 0;
  do {
    const int64_t run = points.D - k < block_k ? points.D - k : block_k;
    multiply_panel<T>(rows, run, a + k * w, 1, w, b + k * w, w, out, stride, k == 0);
    k += block_k;
  } while (k < points.D);
}

// exp2_of for N vectors, step by step for all of them: one after the other, the chain of a single
// vector (about 60 cycles) fills the scheduler, and half the units wait.
template <typename T, int N>
inline void exp2_many(Vec<T>* x) {
  using C = MathConstants<T>;
  using I = typename Simd<T>::ivec;
  const Vec<T> low = broadcast(T(-C::bias)), high = broadcast(T(C::bias + 1));
  Vec<T> shifted[N], sum[N];
#pragma GCC unroll 8
  for (int l = 0; l < N; ++l) x[l] = at_most<T>(high, at_least<T>(low, x[l]));
#pragma GCC unroll 8
  for (int l = 0; l < N; ++l) shifted[l] = x[l] + C::magic;
#pragma GCC unroll 8
  for (int l = 0; l < N; ++l) x[l] -= shifted[l] - C::magic;
#pragma GCC unroll 8
  for (int l = 0; l < N; ++l) sum[l] = x[l] * C::exp2[C::terms - 1] + C::exp2[C::terms - 2];
#pragma GCC unroll 16
  for (int i = C::terms - 3; i >= 0; --i) {
#pragma GCC unroll 8
    for (int l = 0; l < N; ++l) sum[l] = sum[l] * x[l] + C::exp2[i];
  }
#pragma GCC unroll 8
  for (int l = 0; l < N; ++l) sum[l] = sum[l] * x[l] + T{1};
#pragma GCC unroll 8
  for (int l = 0; l < N; ++l) {
    const I whole =
        reinterpret_cast<I>(shifted[l]) - std::bit_cast<typename Simd<T>::Int>(C::magic);
    const I scale = (whole + C::bias) << C::mantissa;
    x[l] = sum[l] * reinterpret_cast<Vec<T>>(scale);
  }
}

// A square |x|^2 + |y|^2 - 2 x.y is right to the rounding of |x|^2 + |y|^2. Below a share of that
// the differences of the points are squared instead. A distance is the root: that it be as right
// where it is small as where it is large takes a larger share.
template <Metric metric, typename T>
inline auto is_close(Vec<T> square, Vec<T> both) {
  constexpr T share =
      metric == Metric::euclidean ? T(0x1p-8) : 64 * std::numeric_limits<T>::epsilon();
  return square < share * both;
}

// Row i of a tile, in place: products become squared lengths of differences.
template <Metric metric, typename T>
inline void square_row(const Pair<T>& points, int64_t i, int64_t panel, Vec<T>* row) {
  constexpr int64_t w = width<T>, lanes = Simd<T>::lanes;
  const T* at = points.y.norms + panel * w;
  Vec<T> square[2];
  typename Simd<T>::ivec close[2];
  for (int l = 0; l < 2; ++l) {
    const Vec<T> both = points.x.norms[i] + load<T>(at + l * lanes);
    square[l] = both - T{2} * row[l];
    close[l] = is_close<metric, T>(square[l], both);
  }
  if (__builtin_expect(any(close[0] | close[1]), false)) {
    const T* x = points.x.panels + i / w * w * points.D + i % w;
    const T* y = points.y.panels + panel * w * points.D;
    Vec<T> sum[2] = {};
    for (int64_t k = 0; k < points.D; ++k) {
      for (int l = 0; l < 2; ++l) {
        const Vec<T> gap = x[k * w] - load<T>(y + k * w + l * lanes);
        sum[l] += gap * gap;
      }
    }
    for (int l = 0; l < 2; ++l) square[l] = close[l] ? sum[l] : square[l];
  }
  row[0] = square[0], row[1] = square[1];
}

// What the kernels read of a pair of points: for cosine the product, else the cost. The rows from
// `row` on against panel `panel` of y.
template <Metric metric, typename T>
inline void fill_tile(const Pair<T>& points, int64_t row, int64_t rows, int64_t panel, T* out,
                      int64_t stride) {
  constexpr int64_t lanes = Simd<T>::lanes;
  multiply_tile<T>(points, row, rows, panel, out, stride);
  if constexpr (metric == Metric::cosine) return;
  for (int64_t i = 0; i < rows; ++i) {
    T* at = out + i * stride;
    Vec<T> both[2] = {load<T>(at), load<T>(at + lanes)};
    square_row<metric, T>(points, row + i, panel, both);
    for (int l = 0; l < 2; ++l) {
      store<T>(at + l * lanes, metric == Metric::euclidean ? square_root<T>(both[l]) : both[l]);
    }
  }
}

// A tile, rows `width` apart: the one that was kept, or a new one in `scratch`.
template <Metric metric, typename T>
inline const T* tile_of(const Pair<T>& points, int64_t row, int64_t rows, int64_t panel,
                        T* scratch) {
  constexpr int64_t w = width<T>;
  if (points.kept) {
    const int64_t panels = (points.y.count + w - 1) / w;
    return points.kept + (row / w * panels + panel) * w * w + row % w * w;
  }
  fill_tile<metric, T>(points, row, rows, panel, scratch, w);
  return scratch;
}

// The cost of what a tile holds.
template <Metric metric, typename T>
inline Vec<T> cost(Vec<T> held) {
  return metric == Metric::cosine ? at_least<T>(Vec<T>{}, T{1} - held) : held;
}

template <typename T>
inline T sum_of(Vec<T> v) {
  T sum = 0;
  for (int i = 0; i < Simd<T>::lanes; ++i) sum += v[i];
  return sum;
}

// Calls f(metric as a type) with the metric of the pair.
template <typename F>
inline void with_metric(Metric metric, const F& f) {
  switch (metric) {
    case Metric::sqeuclidean:
      return f(std::integral_constant<Metric, Metric::sqeuclidean>{});
    case Metric::euclidean:
      return f(std::integral_constant<Metric, Metric::euclidean>{});
    case Metric::cosine:
      return f(std::integral_constant<Metric, Metric::cosine>{});
  }
}

template <typename T>
void keep_tiles(const Pair<T>& points, int64_t begin, int64_t end, T* out) {
  constexpr int64_t w = width<T>;
  const int64_t panels = (points.y.count + w - 1) / w;
  with_metric(points.metric, [&](auto metric) {
    for (int64_t row = begin; row < end; row += w) {
      for (int64_t p = 0; p < panels; ++p) {
        fill_tile<metric.value, T>(points, row, end - row < w ? end - row : w, p,
                                   out + (row / w * panels + p) * w * w, w);
      }
    }
  });
}

// Rows i .. i + R - 1 of a tile: costs and plan, two vectors a row.
template <Metric metric, typename T, int R, typename F>
inline void entries(const T* u, const Vec<T>* v, T scale, const T* tile, int64_t stride, int64_t i,
                    const F& f) {
  constexpr int64_t lanes = Simd<T>::lanes;
  Vec<T> c[2 * R], p[2 * R];
#pragma GCC unroll 8
  for (int l = 0; l < 2 * R; ++l) {
    c[l] = cost<metric, T>(load<T>(tile + (i + l / 2) * stride + l % 2 * lanes));
  }
#pragma GCC unroll 8
  for (int l = 0; l < 2 * R; ++l) p[l] = (u[i + l / 2] - c[l] * scale) + v[l % 2];
  exp2_many<T, 2 * R>(p);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) f(i + r, c[2 * r], c[2 * r + 1], p[2 * r], p[2 * r + 1]);
}

// f(i, C, C, P, P) for each row of a tile; both halves of a panel.
template <Metric metric, typename T, typename F>
inline void over_tile(const Pair<T>& points, const T* u, const T* v, int64_t row, int64_t rows,
                      int64_t panel, const T* tile, int64_t stride, const F& f) {
  constexpr int64_t w = width<T>, lanes = Simd<T>::lanes;
  constexpr int together = VECTOR_BYTES == 64 ? 4 : 2;
  const T* at_v = v + panel * w;
  const Vec<T> both[2] = {load<T>(at_v), load<T>(at_v + lanes)};
  const T scale = points.scale;
  int64_t i = 0;
  for (; i + together <= rows; i += together) {
    entries<metric, T, together>(u + row, both, scale, tile, stride, i, f);
  }
  for (; i < rows; ++i) {
    entries<metric, T, 1>(u + row, both, scale, tile, stride, i, f);
  }
}

// Running sums of a block's rows: in T for `flush` panels, then in double.
template <typename T>
struct RowSums {
  Vec<T> part[width<T>];
  double total[width<T>];

  explicit RowSums(int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) part[i] = Vec<T>{}, total[i] = 0;
  }
  void close(int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      total[i] += sum_of<T>(part[i]);
      part[i] = Vec<T>{};
    }
  }
};

template <typename T>
void norms(const T* panels, int64_t count, int64_t D, T* out) {
  constexpr int64_t w = width<T>, lanes = Simd<T>::lanes;
  for (int64_t i = 0; i < round_up(count, w); i += lanes) {
    const T* at = panels + i / w * w * D + i % w;
    Vec<T> total{};
    for (int64_t k = 0; k < D; k += block_k) {
      Vec<T> sum{};
      const int64_t last = k + block_k < D ? k + block_k : D;
      for (int64_t d = k; d < last; ++d) {
        const Vec<T> value = load<T>(at + d * w);
        sum += value * value;
      }
      total = k == 0 ? sum : total + sum;
    }
    store<T>(out + i, total);
  }
}

}  // namespace points
