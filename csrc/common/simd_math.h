// exp2 and log2 of vectors, sums over lanes, and the vector type that all kernels of an instruction
// set share.
//
//   exp2   relative error 1e-7 (float; the polynomial alone 2e-9), 2e-16 (double);
//          exact at whole numbers; -inf gives 0, NaN stays NaN; results below the smallest normal
//          number are 0, above 2^127.5 (2^1023.5) inf.
//   log2   relative error 3e-7, 5e-16, also near 1; 0 gives -inf, below 0 and NaN give NaN,
//   subnormal
//          numbers are read exactly.
//
// No -ffast-math anywhere near: the rounding by `magic` would be folded away.
//
// Included once per instruction set (common/each_capability.h): no include guard, no #include.

template <typename T>
struct Simd {
  typedef T vec __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
  using Int = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef Int ivec __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
  static constexpr int64_t lanes = VECTOR_BYTES / sizeof(T);
};

template <typename T>
using Vec = typename Simd<T>::vec;

template <typename T>
inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}

template <typename T>
inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<Vec<T>*>(p) = v;
}

template <typename T>
inline Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

// The larger of both; `a` where one of them is NaN, so that a NaN in `a` stays.
template <typename V>
inline V larger(V a, V b) {
  return a < b ? b : a;
}

template <typename V>
inline V smaller(V a, V b) {
  return b < a ? b : a;
}

// Over all lanes, in a fixed tree. (Functions, not lambdas, wherever vectors pass: g++ compiles a
// lambda under the pragma for the plain instruction set.)
template <typename V>
inline V plus(V a, V b) {
  return a + b;
}

template <typename T, Vec<T> F(Vec<T>, Vec<T>), int64_t step, size_t... lane>
inline Vec<T> fold(Vec<T> v, std::index_sequence<lane...> all) {
  using I = typename Simd<T>::ivec;
  // A constant index: known at run time alone, it would be put together lane by lane.
  v = F(v, Vec<T>(__builtin_shuffle(v, I{static_cast<typename Simd<T>::Int>(lane ^ step)...})));
  if constexpr (step > 1) return fold<T, F, step / 2>(v, all);
  return v;
}

template <typename T, Vec<T> F(Vec<T>, Vec<T>)>
inline T across(Vec<T> v) {
  return fold<T, F, Simd<T>::lanes / 2>(v, std::make_index_sequence<Simd<T>::lanes>{})[0];
}

template <typename T>
inline T sum_across(Vec<T> v) {
  return across<T, plus<Vec<T>>>(v);
}

template <typename T>
inline T largest_across(Vec<T> v) {
  return across<T, larger<Vec<T>>>(v);
}

template <typename T>
inline T smallest_across(Vec<T> v) {
  return across<T, smaller<Vec<T>>>(v);
}

template <typename T>
inline Vec<T> square_root(Vec<T> x) {
#if defined(WITH_AVX512)
  if constexpr (sizeof(T) == 4)
    return Vec<T>(_mm512_maskz_sqrt_ps(0xFFFF, __m512(x)));
  else
    return Vec<T>(_mm512_maskz_sqrt_pd(0xFF, __m512d(x)));
#elif defined(WITH_AVX2)
  if constexpr (sizeof(T) == 4)
    return Vec<T>(_mm256_sqrt_ps(__m256(x)));
  else
    return Vec<T>(_mm256_sqrt_pd(__m256d(x)));
#else
  for (int i = 0; i < Simd<T>::lanes; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

// The larger and the smaller of a constant and x: one instruction each. A NaN in x stays.
template <typename T>
inline Vec<T> at_least(Vec<T> low, Vec<T> x) {
#if defined(WITH_AVX512)
  if constexpr (sizeof(T) == 4)
    return Vec<T>(_mm512_maskz_max_ps(0xFFFF, __m512(low), __m512(x)));
  else
    return Vec<T>(_mm512_maskz_max_pd(0xFF, __m512d(low), __m512d(x)));
#elif defined(WITH_AVX2)
  if constexpr (sizeof(T) == 4)
    return Vec<T>(_mm256_max_ps(__m256(low), __m256(x)));
  else
    return Vec<T>(_mm256_max_pd(__m256d(low), __m256d(x)));
#else
  return low > x ? low : x;
#endif
}

template <typename T>
inline Vec<T> at_most(Vec<T> high, Vec<T> x) {
#if defined(WITH_AVX512)
  if constexpr (sizeof(T) == 4)
    return Vec<T>(_mm512_maskz_min_ps(0xFFFF, __m512(high), __m512(x)));
  else
    return Vec<T>(_mm512_maskz_min_pd(0xFF, __m512d(high), __m512d(x)));
#elif defined(WITH_AVX2)
  if constexpr (sizeof(T) == 4)
    return Vec<T>(_mm256_min_ps(__m256(high), __m256(x)));
  else
    return Vec<T>(_mm256_min_pd(__m256d(high), __m256d(x)));
#else
  return high < x ? high : x;
#endif
}

// Whether a lane of a mask is set.
template <typename I>
inline bool any(I mask) {
#if defined(WITH_AVX512)
  return _mm512_test_epi32_mask(__m512i(mask), __m512i(mask)) != 0;
#elif defined(WITH_AVX2)
  return !_mm256_testz_si256(__m256i(mask), __m256i(mask));
#else
  bool found = false;
  for (size_t l = 0; l < sizeof(I) / sizeof(mask[0]); ++l) found |= mask[l] != 0;
  return found;
#endif
}

// A bit for each lane of a mask, the first lane's lowest.
template <typename T>
inline uint32_t bits_of(typename Simd<T>::ivec mask) {
#if defined(WITH_AVX512)
  if constexpr (sizeof(T) == 4) return _mm512_movepi32_mask(__m512i(mask));
  return _mm512_movepi64_mask(__m512i(mask));
#elif defined(WITH_AVX2)
  if constexpr (sizeof(T) == 4) return _mm256_movemask_ps(__m256(mask));
  return _mm256_movemask_pd(__m256d(mask));
#else
  uint32_t bits = 0;
  for (int l = 0; l < Simd<T>::lanes; ++l) bits |= (mask[l] != 0) << l;
  return bits;
#endif
}

// x between two bounds; a NaN stays.
template <typename T>
inline Vec<T> between(Vec<T> x, Vec<T> low, Vec<T> high) {
#if defined(WITH_AVX2) && !defined(WITH_AVX512)
  // These instructions return their second operand where one of them is NaN.
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm256_min_ps(__m256(high), _mm256_max_ps(__m256(low), __m256(x))));
  } else {
    return Vec<T>(_mm256_min_pd(__m256d(high), _mm256_max_pd(__m256d(low), __m256d(x))));
  }
#endif
  x = x < low ? low : x;
  return x > high ? high : x;
}

template <typename T>
struct MathConstants;

// Minimax fits of (2^f - 1) / f on [-1/2, 1/2].
template <>
struct MathConstants<float> {
  static constexpr int mantissa = 23, bias = 127, terms = 6;
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  static constexpr float exp2[terms] = {0.693147203f,   0.240226479f,   0.0555033247f,
                                        0.00961843737f, 0.00133988749f, 0.000153533606f};
  static constexpr int odd_terms = 5;
  static constexpr float smallest = 1.17549435e-38f, raise = 33554432.0f, raised = 25.0f;
};

template <>
struct MathConstants<double> {
  static constexpr int mantissa = 52, bias = 1023, terms = 12;
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double exp2[terms] = {
      0.6931471805599453,     0.24022650695910072,    0.055504108664821625,
      0.00961812910762848,    0.001333355814640647,   0.00015403530393370734,
      1.5252733841556773e-05, 1.3215486808705563e-06, 1.0178057087733941e-07,
      7.0548973041554995e-09, 4.4558179083360645e-10, 2.5729324177362305e-11};
  static constexpr int odd_terms = 12;
  static constexpr double smallest = 2.2250738585072014e-308, raise = 18014398509481984.0,
                          raised = 54.0;
};

// For arguments that are known to lie within [-126, 127] ([-1022, 1023]), or are NaN.
template <typename T>
inline Vec<T> exp2_inside(Vec<T> x) {
  using C = MathConstants<T>;
  using I = typename Simd<T>::ivec;
  const Vec<T> shifted = x + C::magic;
  const Vec<T> f = x - (shifted - C::magic);
  // Two terms at a time: half the chain, and the chain is what a loop over short vectors waits for.
  const Vec<T> square = f * f;
  Vec<T> sum = C::exp2[C::terms - 1] * f + C::exp2[C::terms - 2];
  for (int i = C::terms - 4; i >= 0; i -= 2) sum = sum * square + (C::exp2[i + 1] * f + C::exp2[i]);
  sum = sum * f + T{1};
  // The whole number stands in the low bits of `shifted`, and those of `magic` there are 0: shifted
  // into the exponent, it is the scale.
  const I scale = (reinterpret_cast<I>(shifted) + C::bias) << C::mantissa;
  return sum * reinterpret_cast<Vec<T>>(scale);
}

template <typename T>
[[gnu::always_inline]] inline Vec<T> exp2_of(Vec<T> x) {
  using C = MathConstants<T>;
  return exp2_inside<T>(between<T>(x, broadcast(T(-C::bias)), broadcast(T(C::bias + 1))));
}

template <typename T>
[[gnu::always_inline]] inline Vec<T> log2_of(Vec<T> x) {
  using C = MathConstants<T>;
  using I = typename Simd<T>::ivec;
  using Int = typename Simd<T>::Int;
  const I tiny = x < C::smallest;
  const Vec<T> y = tiny ? x * C::raise : x;
  // y = m 2^e with m in [sqrt(1/2), sqrt(2)).
  constexpr Int root = std::bit_cast<Int>(T(0.70710678118654752440));
  const I bits = reinterpret_cast<I>(y);
  const I e = (bits - root) >> C::mantissa;
  const Vec<T> m = reinterpret_cast<Vec<T>>(bits - (e << C::mantissa));
  const Vec<T> s = (m - T{1}) / (m + T{1});
  const Vec<T> square = s * s;
  Vec<T> sum = broadcast(T(1.0 / (2 * C::odd_terms - 1)));
  for (int i = C::odd_terms - 2; i >= 1; --i) sum = sum * square + T(1.0 / (2 * i + 1));
  constexpr T two_over_ln2 = T(2.88539008177792681472);
  const Vec<T> exponent = __builtin_convertvector(e, Vec<T>);
  Vec<T> result = (sum * square * s + s) * two_over_ln2 + (tiny ? exponent - C::raised : exponent);
  const Vec<T> infinity = broadcast(std::numeric_limits<T>::infinity());
  result = x == infinity ? infinity : result;
  result = x == T{0} ? -infinity : result;
  return x >= T{0} ? result : broadcast(std::numeric_limits<T>::quiet_NaN());
}

// One value, by the same arithmetic.
template <typename T>
inline T exp2_of(T x) {
  return exp2_of<T>(broadcast(x))[0];
}

template <typename T>
inline T log2_of(T x) {
  return log2_of<T>(broadcast(x))[0];
}
