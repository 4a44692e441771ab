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
  const int64_t weighted = width<T> * (chunk * width<T> + d);
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

// The products of a tile, rows `width` apart: those that were kept, or new ones in `scratch`.
template <typename T>
inline const T* products(const Pair<T>& points, int64_t row, int64_t rows, int64_t panel,
                         T* scratch) {
  constexpr int64_t w = width<T>;
  if (points.kept) {
    const int64_t panels = (points.y.count + w - 1) / w;
    return points.kept + (row / w * panels + panel) * w * w + row % w * w;
  }
  multiply_tile<T>(points, row, rows, panel, scratch, w);
  return scratch;
}

template <typename T>
void keep_products(const Pair<T>& points, int64_t begin, int64_t end, T* out) {
  constexpr int64_t w = width<T>;
  const int64_t panels = (points.y.count + w - 1) / w;
  for (int64_t row = begin; row < end; row += w) {
    for (int64_t p = 0; p < panels; ++p) {
      multiply_tile<T>(points, row, end - row < w ? end - row : w, p,
                       out + (row / w * panels + p) * w * w, w);
    }
  }
}

template <typename T>
inline Vec<T> square_root(Vec<T> x) {
#if defined(WITH_AVX512)
  if constexpr (sizeof(T) == 4) return Vec<T>(_mm512_maskz_sqrt_ps(0xFFFF, __m512(x)));
  else return Vec<T>(_mm512_maskz_sqrt_pd(0xFF, __m512d(x)));
#elif defined(WITH_AVX2)
  if constexpr (sizeof(T) == 4) return Vec<T>(_mm256_sqrt_ps(__m256(x)));
  else return Vec<T>(_mm256_sqrt_pd(__m256d(x)));
#else
  for (int i = 0; i < Simd<T>::lanes; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

// The larger and the smaller of a constant and x: one instruction each. A NaN in x stays.
template <typename T>
inline Vec<T> at_least(Vec<T> low, Vec<T> x) {
#if defined(WITH_AVX512)
  if constexpr (sizeof(T) == 4) return Vec<T>(_mm512_maskz_max_ps(0xFFFF, __m512(low), __m512(x)));
  else return Vec<T>(_mm512_maskz_max_pd(0xFF, __m512d(low), __m512d(x)));
#elif defined(WITH_AVX2)
  if constexpr (sizeof(T) == 4) return Vec<T>(_mm256_max_ps(__m256(low), __m256(x)));
  else return Vec<T>(_mm256_max_pd(__m256d(low), __m256d(x)));
#else
  return low > x ? low : x;
#endif
}

template <typename T>
inline Vec<T> at_most(Vec<T> high, Vec<T> x) {
#if defined(WITH_AVX512)
  if constexpr (sizeof(T) == 4) return Vec<T>(_mm512_maskz_min_ps(0xFFFF, __m512(high), __m512(x)));
  else return Vec<T>(_mm512_maskz_min_pd(0xFF, __m512d(high), __m512d(x)));
#elif defined(WITH_AVX2)
  if constexpr (sizeof(T) == 4) return Vec<T>(_mm256_min_ps(__m256(high), __m256(x)));
  else return Vec<T>(_mm256_min_pd(__m256d(high), __m256d(x)));
#else
  return high < x ? high : x;
#endif
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

template <Metric metric, typename T>
inline Vec<T> cost(Vec<T> product, T norm_x, Vec<T> norm_y) {
  const Vec<T> zero{};
  if constexpr (metric == Metric::cosine) {
    return at_least<T>(zero, T{1} - product);
  } else {
    const Vec<T> square = at_least<T>(zero, (norm_x + norm_y) - T{2} * product);
    return metric == Metric::euclidean ? square_root<T>(square) : square;
  }
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

// Rows i .. i + R - 1 of a tile, which holds products: costs and plan, two vectors a row.
template <Metric metric, typename T, int R, typename F>
inline void entries(const T* u, const T* norm_x, const Vec<T>* norm_y, const Vec<T>* v, T scale,
                    const T* tile, int64_t stride, int64_t i, const F& f) {
  constexpr int64_t lanes = Simd<T>::lanes;
  Vec<T> c[2 * R], p[2 * R];
#pragma GCC unroll 8
  for (int l = 0; l < 2 * R; ++l) {
    const int64_t row = i + l / 2;
    const T* at = tile + row * stride + l % 2 * lanes;
    c[l] = cost<metric, T>(load<T>(at), norm_x[row], norm_y[l % 2]);
  }
#pragma GCC unroll 8
  for (int l = 0; l < 2 * R; ++l) p[l] = (u[i + l / 2] - c[l] * scale) + v[l % 2];
  exp2_many<T, 2 * R>(p);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) f(i + r, c[2 * r], c[2 * r + 1], p[2 * r], p[2 * r + 1]);
}

// f(i, C, C, P, P) for each row of a tile, which holds products on entry; both halves of a panel.
template <Metric metric, typename T, typename F>
inline void over_tile(const Pair<T>& points, const T* u, const T* v, int64_t row, int64_t rows,
                      int64_t panel, const T* tile, int64_t stride, const F& f) {
  constexpr int64_t w = width<T>, lanes = Simd<T>::lanes;
  constexpr int together = VECTOR_BYTES == 64 ? 4 : 2;
  const T* norm_x = points.x.norms + row;
  const T* at_y = points.y.norms + panel * w;
  const T* at_v = v + panel * w;
  const Vec<T> norm_y[2] = {load<T>(at_y), load<T>(at_y + lanes)};
  const Vec<T> both[2] = {load<T>(at_v), load<T>(at_v + lanes)};
  const T scale = points.scale;
  int64_t i = 0;
  for (; i + together <= rows; i += together) {
    entries<metric, T, together>(u + row, norm_x, norm_y, both, scale, tile, stride, i, f);
  }
  for (; i < rows; ++i) {
    entries<metric, T, 1>(u + row, norm_x, norm_y, both, scale, tile, stride, i, f);
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
