// Conditional transport: points made ready, and logit and cost of a pair from its dot.
//
// Included once per instruction set (common/each_capability.h): no include guard, no #include.

template <typename T>
using Side = ConditionalSide<T>;
template <typename T>
using Points = ConditionalPoints<T>;

// Sums of a dot run over this many terms, then start anew; norms are summed in the same order, so
// that x . x is |x|^2 bit for bit.
constexpr int64_t dot_run = 128;

// Beyond any exponent and far from overflow: exp2(-far) is 0 and far - far is 0.
template <typename T>
constexpr T far = sizeof(T) == 8 ? T(1e300) : T(1e30);

#ifdef WITH_AVX2
// a b + c and a b - c with one rounding: contraction of a b - (a b) would find 0.
template <typename T>
inline Vec<T> fused(Vec<T> a, Vec<T> b, Vec<T> c) {
#ifdef WITH_AVX512
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
  } else {
    return Vec<T>(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c)));
  }
#else
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
  } else {
    return Vec<T>(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c)));
  }
#endif
}
#endif

// The cosine and the product of both inverse norms. cos is dot / sqrt(|x|^2 |y|^2) with one
// rounding (nearly always), so 1 for equal points.
template <typename T>
struct Cosine {
  Vec<T> cos, inverse;
};

template <typename T>
inline Cosine<T> cosine(Vec<T> dot, const Side<T>& row, int64_t i, const Side<T>& column,
                        int64_t j) {
  const Vec<T> mine = broadcast(row[high][i]), other = load(column[high] + j);
#ifdef WITH_AVX2
  // 1/|x| and 1/|y| are pairs of twice the precision, and so is their product.
  const Vec<T> product = mine * other;
  Vec<T> rest = fused<T>(mine, other, -product);
  rest = fused<T>(mine, load(column[low] + j), rest);
  rest = fused<T>(broadcast(row[low][i]), other, rest);
  return {fused<T>(dot, product, dot * rest), product};
#else
  using Wide = double;
  const Vec<T> norms = load(column[norm] + j);
  Vec<T> cos;
  for (int l = 0; l < Simd<T>::lanes; ++l) {
    const bool zero = mine[l] == 0 || other[l] == 0;
    const Wide squares = static_cast<Wide>(row[norm][i]) * static_cast<Wide>(norms[l]);
    cos[l] = zero ? T{0} : static_cast<T>(static_cast<Wide>(dot[l]) / std::sqrt(squares));
  }
  return {cos, mine * other};
#endif
}

// What a tile keeps of a dot, the logit (times t, less the row's own shift), and the cost.
template <typename T, int MODE>
struct Pair {
  static constexpr bool cosine_cost = MODE < 3;
  static constexpr int logits = MODE % 3;
  static constexpr bool keeps_cosine = cosine_cost && logits > 0;
  static constexpr bool row_shift = MODE == 3;

  const Side<T>& row;
  const Side<T>& column;

  Vec<T> distance(Vec<T> dot, int64_t i, int64_t j) const {
    const Vec<T> d = (load(column[norm] + j) + row[norm][i]) - T{2} * dot;
    return d < T{0} ? Vec<T>{} : d;  // a NaN stays
  }

  Vec<T> kept(Vec<T> dot, int64_t i, int64_t j) const {
    if constexpr (keeps_cosine) return cosine<T>(dot, row, i, column, j).cos;
    if constexpr (MODE == 5) return distance(dot, i, j);
    return dot;
  }

  Vec<T> logit(Vec<T> kept, int64_t i, int64_t j) const {
    if constexpr (MODE == 2) return kept - T{1};
    if constexpr (MODE == 3) return kept + load(column[shift] + j);
    if constexpr (MODE == 4) {
      return ((kept + row[shift][i]) + load(column[shift] + j)) *
             (load(column[high] + j) * row[high][i]);
    }
    if constexpr (MODE == 5) return -kept;
    return kept;
  }

  Vec<T> cost(Vec<T> kept, int64_t i, int64_t j) const {
    if constexpr (MODE == 0) return T{1} - cosine<T>(kept, row, i, column, j).cos;
    if constexpr (keeps_cosine) return T{1} - kept;
    if constexpr (MODE == 5) return kept;
    return distance(kept, i, j);
  }
};

// a^2 + sum as the tiles of the product add it: contracted there, so fused here (left to itself g++
// vectorises along k, and then it multiplies and adds apart).
template <typename T>
inline T squared_onto(T a, T sum) {
#ifdef WITH_AVX2
  if constexpr (sizeof(T) == 4) return __builtin_fmaf(a, a, sum);
  return __builtin_fma(a, a, sum);
#else
  return a * a + sum;
#endif
}

// Squared norms of rows, eight chains at a time.
template <typename T>
void square_norms(const T* in, int64_t stride, int64_t rows, int64_t D, T* out) {
  constexpr int64_t chains = 8;
  for (int64_t i = 0; i < rows; i += chains) {
    const int64_t n = std::min(chains, rows - i);
    const T* at[chains];
    for (int64_t r = 0; r < chains; ++r) at[r] = in + (i + std::min(r, n - 1)) * stride;
    T total[chains] = {};
    for (int64_t k0 = 0; k0 < D; k0 += dot_run) {
      const int64_t end = std::min(k0 + dot_run, D);
      T sum[chains] = {};
      for (int64_t k = k0; k < end; ++k) {
        for (int64_t r = 0; r < chains; ++r) sum[r] = squared_onto(at[r][k], sum[r]);
      }
      for (int64_t r = 0; r < chains; ++r) total[r] += sum[r];
    }
    for (int64_t r = 0; r < n; ++r) out[i + r] = total[r];
  }
}

// 1/sqrt(square) as a sum of two numbers; 0 for what counts as a zero vector.
template <typename T>
inline void inverse_norm(T square, T* high_part, T* low_part) {
  if (square < std::numeric_limits<T>::min()) {
    *high_part = *low_part = 0;
    return;
  }
  if constexpr (sizeof(T) == 4) {
    const double inverse = 1 / std::sqrt(static_cast<double>(square));
    *high_part = static_cast<T>(inverse);
    *low_part = static_cast<T>(inverse - static_cast<double>(*high_part));
  } else {
    const T inverse = 1 / std::sqrt(square);
    // One step of Newton's iteration on the exact residual 1 - square * inverse^2.
    const T product = square * inverse;
    const T rest = std::fma(square, inverse, -product);
    const T residual = std::fma(-product, inverse, T{1}) - rest * inverse;
    *high_part = inverse;
    *low_part = inverse * residual / 2;
  }
}

// Points begin .. begin + count into places 0 .. of `side` from `at`; the last one fills places up
// to `filled`. Rows of `stride` go to `rows` (centred, 0 in the padding of the depth), or are read
// where they are if `rows` is null.
template <typename T>
void make_ready(const Conditional<T>& f, const Points<T>& points, bool raw, int64_t begin,
                int64_t count, int64_t filled, T* rows, const Side<T>& side, int64_t at) {
  const T* in = points.points + begin * f.D;
  const T* read = in;
  int64_t stride = f.D;
  if (rows != nullptr) {
    for (int64_t i = 0; i < filled; ++i) {
      const T* from = in + std::min(i, count - 1) * f.D;
      T* to = rows + i * f.stride;
      if (f.centre != nullptr) {
        for (int64_t k = 0; k < f.D; ++k) to[k] = from[k] - f.centre[k];
      } else {
        std::memcpy(to, from, sizeof(T) * f.D);
      }
      std::fill(to + f.D, to + f.depth, T{0});
    }
    read = rows, stride = f.stride;
  }
  square_norms(read, stride, count, f.D, side[norm] + at);
  const bool cosines = f.mode < 3 || f.mode == 4;
  if (f.mode == 4) {
    square_norms(in, f.D, count, f.D, side[high] + at);
  } else if (cosines) {
    std::memcpy(side[high] + at, side[norm] + at, sizeof(T) * count);
  }
  for (int64_t i = 0; cosines && i < count; ++i) {
    inverse_norm(side[high][at + i], side[high] + at + i, side[low] + at + i);
  }
  if (f.mode == 3 || f.mode == 4) {
    for (int64_t i = 0; i < count; ++i) {
      const T* point = raw ? in + i * f.D : read + i * stride;
      double sum = 0;
      for (int64_t k = 0; k < f.D; ++k) sum += static_cast<double>(point[k]) * f.centre[k];
      side[shift][at + i] = static_cast<T>(sum);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t from = begin + i, to = at + i;
    if (!f.backward) {
      const T share = points.mass ? points.mass[from] / points.largest_mass : T{1};
      side[mass][to] = share < 0 ? std::numeric_limits<T>::quiet_NaN() : share;
      continue;
    }
    side[mass][to] = points.mass ? points.mass[from] : T{1} / static_cast<T>(points.count);
    const T g_cost_here = points.g_cost[from], g_lse_here = points.g_lse[from];
    const bool silent = (g_cost_here == 0 && g_lse_here == 0) ||
                        points.lse[from] == -std::numeric_limits<T>::infinity();
    side[lse][to] = silent ? far<T> : points.lse[from] * T(1.44269504088896340736);
    side[cost][to] = silent ? T{0} : points.cost[from];
    side[g_cost][to] = silent ? T{0} : g_cost_here;
    side[g_lse][to] = silent ? T{0} : g_lse_here;
  }
  // Whole vectors: the places past `filled` are read by no one.
  for (int64_t field = 0; field < conditional_fields; ++field) {
    T* values = side[static_cast<ConditionalField>(field)] + at;
    for (int64_t i = count; i < filled; ++i) values[i] = values[count - 1];
  }
  if (!f.backward) {
    if (points.mass == nullptr) {
      std::fill_n(side[log_mass] + at, filled, T{0});
    } else {
      for (int64_t i = 0; i < filled; i += Simd<T>::lanes) {
        store(side[log_mass] + at + i, log2_of<T>(load(side[mass] + at + i)));
      }
    }
  }
}

template <typename T>
void prepare(const Conditional<T>& f, int64_t first, int64_t last, T* scratch) {
  constexpr int64_t wide = columns<T>;
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t at = panel * wide, count = std::min(wide, f.width - at);
    make_ready(f, f.right, false, f.first + at, count, wide, scratch, f.columns, at);
    // What fills the last panel has no mass and no gradient; its logits are a real column's, so
    // that they move no maximum.
    for (int64_t j = at + count; j < at + wide; ++j) {
      f.columns[mass][j] = f.columns[g_cost][j] = f.columns[g_lse][j] = 0;
      f.columns[log_mass][j] = -far<T>;
    }
    pack_panel<T, T>(scratch, 1, f.stride, f.D, wide, 0, f.turned + at * f.D);
    if (!f.backward) continue;
    for (int64_t k = 0; k < f.depth; k += wide) {
      for (int64_t c = 0; c < wide; ++c) {
        std::memcpy(f.panels + k * f.padded + (at + c) * wide, scratch + c * f.stride + k,
                    sizeof(T) * wide);
      }
    }
  }
}

// One copy for all modes: the tiles of all heights are long to compile.
template <typename T>
__attribute__((noinline)) void product(int64_t rows, int64_t K, const T* a, int64_t a_row,
                                       int64_t a_k, const T* b, int64_t b_k, T* c, int64_t c_row,
                                       bool zero) {
  multiply_panel<T>(rows, K, a, a_row, a_k, b, b_k, c, c_row, zero);
}

// Dots of `rows` rows with the panels from column `at` on, into S with rows `S_stride` apart.
template <typename T>
inline void dots(const Conditional<T>& f, const T* rows, int64_t stride, int64_t count, int64_t at,
                 int64_t n, T* S, int64_t S_stride) {
  constexpr int64_t wide = columns<T>;
  for (int64_t j = 0; j < n; j += wide) {
    const T* panel = f.turned + (at + j) * f.D;
    int64_t k = 0;
    do {
      const int64_t length = std::min(dot_run, f.D - k);
      product<T>(count, length, rows + k, stride, 1, panel + k * wide, wide, S + j, S_stride,
                 k == 0);
      k += dot_run;
    } while (k < f.D);
  }
}
