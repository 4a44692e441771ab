// Arithmetic that the Sinkhorn kernels of one instruction set share.
//
// Included once per instruction set (common/each_capability.h): no include guard, no #include.

// a * b + c and c - a * b, rounded once where the instruction set can.
template <typename T>
inline Vec<T> multiply_add(Vec<T> a, Vec<T> b, Vec<T> c) {
#if defined(WITH_AVX512)
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
  } else {
    return Vec<T>(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c)));
  }
#elif defined(WITH_AVX2)
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
  } else {
    return Vec<T>(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c)));
  }
#else
  return a * b + c;
#endif
}

// log2 of an entry of the plan, K_ij + u_i + v_j with K = -C s: the one expression for it, so that
// the plan that a result shows is the plan that the iteration saw, bit for bit. The first sum
// cancels: rounded once, it costs little.
template <typename T>
inline Vec<T> log_plan(Vec<T> cost, Vec<T> minus_s, Vec<T> u, Vec<T> v) {
  return multiply_add<T>(cost, minus_s, u) + v;
}

template <typename T>
inline Vec<T> absolute(Vec<T> x) {
  return x < T{0} ? -x : x;
}

template <typename T>
inline T sum_of(Vec<T> x) {
  T total = x[0];
  for (int64_t l = 1; l < Simd<T>::lanes; ++l) total += x[l];
  return total;
}

template <typename T>
inline T largest_of(Vec<T> x) {
  T most = x[0];
  for (int64_t l = 1; l < Simd<T>::lanes; ++l) most = x[l] > most ? x[l] : most;
  return most;
}

// The sum of each of L vectors, in one vector.
template <typename T>
inline Vec<T> sums_of_each(const Vec<T>* x) {
#if defined(WITH_AVX512)
  Vec<T> sums{};
  for (int r = 0; r < Simd<T>::lanes; ++r) {
    if constexpr (sizeof(T) == 4) {
      sums[r] = _mm512_reduce_add_ps(__m512(x[r]));
    } else {
      sums[r] = _mm512_reduce_add_pd(__m512d(x[r]));
    }
  }
  return sums;
#elif defined(WITH_AVX2)
  if constexpr (sizeof(T) == 4) {
    const auto pair = [&](int r) { return _mm256_hadd_ps(__m256(x[r]), __m256(x[r + 1])); };
    const __m256 first = _mm256_hadd_ps(pair(0), pair(2)), last = _mm256_hadd_ps(pair(4), pair(6));
    return Vec<T>(_mm256_permute2f128_ps(first, last, 0x20)) +
           Vec<T>(_mm256_permute2f128_ps(first, last, 0x31));
  } else {
    const __m256d first = _mm256_hadd_pd(__m256d(x[0]), __m256d(x[1]));
    const __m256d last = _mm256_hadd_pd(__m256d(x[2]), __m256d(x[3]));
    return Vec<T>(_mm256_permute2f128_pd(first, last, 0x20)) +
           Vec<T>(_mm256_permute2f128_pd(first, last, 0x31));
  }
#else
  Vec<T> sums{};
  for (int r = 0; r < Simd<T>::lanes; ++r) sums[r] = sum_of<T>(x[r]);
  return sums;
#endif
}

template <typename T>
constexpr T infinite = std::numeric_limits<T>::infinity();

// The relaxed scaling of relaxation.h, for vectors.
template <typename T>
inline Vec<T> relaxed_factors(Vec<T> rho, Vec<T> omega) {
  const Vec<T> x = rho - T{1}, one = broadcast(T{1}), two = broadcast(T{2});
  const Vec<T> factor = (two + (one + omega) * x) / (two + (one - omega) * x);
  return (rho > T(0.5)) & (rho < T(2)) ? factor : rho;
}

// Steps of one side. mass: a; sum: what the row of E q sums to; before: p; log_before: log2 p;
// u, log_mass: of the fold. All return the new p.
template <typename T>
inline Vec<T> plain_step(Vec<T> mass, Vec<T> sum) {
  return mass / (mass == T{0} ? broadcast(T{1}) : sum);
}

template <typename T>
inline Vec<T> relaxed_step(Vec<T> mass, Vec<T> sum, Vec<T> before, Vec<T> omega) {
  const Vec<T> held = mass == T{0} ? broadcast(T{1}) : sum * before;
  return mass == T{0} ? mass : before * relaxed_factors<T>(mass / held, omega);
}

// log2 of the new p where the side has a finite rho.
template <typename T>
inline Vec<T> damped_step(Vec<T> mass, Vec<T> log_mass, Vec<T> sum, Vec<T> u, Vec<T> damping) {
  const Vec<T> zero = broadcast(T{0});
  const Vec<T> safe_u = mass == T{0} ? zero : u, safe_log = mass == T{0} ? zero : log_mass;
  const Vec<T> log_sum = log2_of<T>(mass == T{0} ? broadcast(T{1}) : sum);
  const Vec<T> step = safe_log - damping * (log_sum - safe_u) - safe_u;
  return mass == T{0} ? broadcast(-infinite<T>) : step;
}

// How a step is taken: a / t; over-relaxed (relaxation.h); damped, where a side has a finite rho.
enum class Rule { plain, relaxed, damped };
