// The packed product: C (M, N) += A (M, K) B (K, N), for tall A and prepared B, one thread.
//
//   B is stored in panels of `columns<T>` columns, each panel (K, columns) and contiguous.
//   A is read in place with two strides, so that A^T costs nothing.
//   A tile of `tile_rows` x `columns` sums stays in registers over k; k runs in ascending order,
//   whatever the tile, so that a row's bits depend on that row alone.
//
// Included once per instruction set (common/each_capability.h), after common/simd_math.h: no
// include guard, no #include.

template <typename T>
constexpr int64_t columns = 2 * Simd<T>::lanes;

// 6 x 2 sums, 2 columns of B and one value of A fit the 16 registers of AVX2; AVX-512 has 32.
constexpr int64_t tile_rows = VECTOR_BYTES == 64 ? 12 : 6;

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// W vectors of columns: 2, or 1 where the last panel is no wider.
template <typename T, int M, int W = 2>
inline void tile(int64_t K, const T* a, int64_t a_row, int64_t a_k, const T* b, int64_t b_k, T* c,
                 int64_t c_row, bool zero) {
  using vec = typename Simd<T>::vec;
  constexpr int64_t lanes = Simd<T>::lanes;
  vec sum[M][W];
  for (int i = 0; i < M; ++i) {
    for (int w = 0; w < W; ++w) sum[i][w] = vec{};
  }
  for (int64_t k = 0; k < K; ++k) {
    vec from_b[W];
    for (int w = 0; w < W; ++w) from_b[w] = *reinterpret_cast<const vec*>(b + w * lanes);
    for (int i = 0; i < M; ++i) {
      const T value = a[i * a_row];
      for (int w = 0; w < W; ++w) sum[i][w] += value * from_b[w];
    }
    a += a_k;
    b += b_k;
  }
  // Sums of a run start at 0 and are added to what is there: errors grow with the length of a run
  // plus the number of runs, not with their product.
  for (int i = 0; i < M; ++i) {
    for (int w = 0; w < W; ++w) {
      vec* to = reinterpret_cast<vec*>(c + i * c_row + w * lanes);
      *to = zero ? sum[i][w] : *to + sum[i][w];
    }
  }
}

template <typename T, int M, int W = 2>
inline void last_tile(int64_t rows, int64_t K, const T* a, int64_t a_row, int64_t a_k, const T* b,
                      int64_t b_k, T* c, int64_t c_row, bool zero) {
  if constexpr (M > 0) {
    if (rows == M) {
      tile<T, M, W>(K, a, a_row, a_k, b, b_k, c, c_row, zero);
    } else {
      last_tile<T, M - 1, W>(rows, K, a, a_row, a_k, b, b_k, c, c_row, zero);
    }
  }
}

// C (rows, columns) (+)= A (rows, K) times one panel of B.
template <typename T>
inline void multiply_panel(int64_t rows, int64_t K, const T* a, int64_t a_row, int64_t a_k,
                           const T* b, int64_t b_k, T* c, int64_t c_row, bool zero) {
  int64_t i = 0;
  for (; i + tile_rows <= rows; i += tile_rows) {
    tile<T, tile_rows>(K, a + i * a_row, a_row, a_k, b, b_k, c + i * c_row, c_row, zero);
  }
  last_tile<T, tile_rows - 1>(rows - i, K, a + i * a_row, a_row, a_k, b, b_k, c + i * c_row, c_row,
                              zero);
}

// The same for the first vector of columns of a panel alone: twice the rows keep as many sums.
template <typename T>
inline void multiply_half_panel(int64_t rows, int64_t K, const T* a, int64_t a_row, int64_t a_k,
                                const T* b, int64_t b_k, T* c, int64_t c_row, bool zero) {
  int64_t i = 0;
  for (; i + 2 * tile_rows <= rows; i += 2 * tile_rows) {
    tile<T, 2 * tile_rows, 1>(K, a + i * a_row, a_row, a_k, b, b_k, c + i * c_row, c_row, zero);
  }
  for (; i + tile_rows <= rows; i += tile_rows) {
    tile<T, tile_rows, 1>(K, a + i * a_row, a_row, a_k, b, b_k, c + i * c_row, c_row, zero);
  }
  last_tile<T, tile_rows - 1, 1>(rows - i, K, a + i * a_row, a_row, a_k, b, b_k, c + i * c_row,
                                 c_row, zero);
}

// C (rows, N) (+)= A (rows, K) B (K, N), N a multiple of `columns`, B and C plain row-major, B
// small enough for the first caches. Rows of C come in runs, so that a run of A serves all of N
// from there.
template <typename T>
inline void multiply(int64_t rows, int64_t K, int64_t N, const T* a, int64_t a_row, int64_t a_k,
                     const T* b, T* c, bool zero) {
  constexpr int64_t run = 16 * tile_rows;
  for (int64_t i = 0; i < rows; i += run) {
    const int64_t n = rows - i < run ? rows - i : run;
    for (int64_t j = 0; j < N; j += columns<T>) {
      multiply_panel<T>(n, K, a + i * a_row, a_row, a_k, b + j, N, c + i * N + j, N, zero);
    }
  }
}

template <typename T, typename S>
inline void widen_row(const S* in, T* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = widen(in[i]);
}

template <typename T>
inline void widen_row(const F16* in, T* out, int64_t n) {
  int64_t i = 0;
#ifdef WITH_AVX2
  if constexpr (sizeof(T) == 4) {
    for (; i + 8 <= n; i += 8) {
      const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
      _mm256_storeu_ps(out + i, _mm256_cvtph_ps(half));
    }
  }
#endif
  for (; i < n; ++i) out[i] = widen(in[i]);
}

template <typename T, typename S>
inline void narrow_row(const T* in, S* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) narrow(in[i], out + i);
}

template <typename T>
inline void narrow_row(const T* in, F16* out, int64_t n) {
  int64_t i = 0;
#ifdef WITH_AVX2
  if constexpr (sizeof(T) == 4) {
    for (; i + 8 <= n; i += 8) {
      const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), half);
    }
  }
#endif
  for (; i < n; ++i) narrow(in[i], out + i);
}

// out (K, N) = in (N, K)^T.
template <typename T, int64_t N, int64_t K>
inline void turn(const T* in, T* out) {
#if defined(WITH_AVX2)
  if constexpr (sizeof(T) == 4) {
    for (int64_t n = 0; n < N; n += 8) {
      for (int64_t k = 0; k < K; k += 8) {
        __m256 r[8], s[8];
        for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(in + (n + i) * K + k);
        for (int i = 0; i < 4; ++i) {
          s[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
          s[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for (int i = 0; i < 2; ++i) {
          r[4 * i] = _mm256_shuffle_ps(s[4 * i], s[4 * i + 2], 0x44);
          r[4 * i + 1] = _mm256_shuffle_ps(s[4 * i], s[4 * i + 2], 0xEE);
          r[4 * i + 2] = _mm256_shuffle_ps(s[4 * i + 1], s[4 * i + 3], 0x44);
          r[4 * i + 3] = _mm256_shuffle_ps(s[4 * i + 1], s[4 * i + 3], 0xEE);
        }
        for (int i = 0; i < 4; ++i) {
          _mm256_storeu_ps(out + (k + i) * N + n, _mm256_permute2f128_ps(r[i], r[4 + i], 0x20));
          _mm256_storeu_ps(out + (k + 4 + i) * N + n, _mm256_permute2f128_ps(r[i], r[4 + i], 0x31));
        }
      }
    }
    return;
  }
#endif
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t n = 0; n < N; ++n) out[k * N + n] = in[n * K + k];
  }
}

// One panel of B (K, N) with strides (k_stride, n_stride), from column `first`; columns past N are
// 0.
template <typename T, typename S>
inline void pack_panel(const S* in, int64_t k_stride, int64_t n_stride, int64_t K, int64_t N,
                       int64_t first, T* out) {
  constexpr int64_t width = columns<T>;
  const int64_t given = N - first < width ? N - first : width;
  in += first * n_stride;
  if (given < width) std::memset(out, 0, sizeof(T) * K * width);
  if (n_stride == 1) {
    for (int64_t k = 0; k < K; ++k) widen_row(in + k * k_stride, out + k * width, given);
    return;
  }
  // Transposed: rows of B^T are widened in short runs, which stay in the first cache, then turned.
  constexpr int64_t run = 32;
  T turned[width * run];
  for (int64_t k0 = 0; k0 < K; k0 += run) {
    const int64_t n = K - k0 < run ? K - k0 : run;
    for (int64_t c = 0; c < given; ++c) {
      const S* row = in + c * n_stride + k0 * k_stride;
      if (k_stride == 1) {
        widen_row(row, turned + c * run, n);
      } else {
        for (int64_t k = 0; k < n; ++k) turned[c * run + k] = widen(row[k * k_stride]);
      }
    }
    if (given == width && n == run) {
      turn<T, width, run>(turned, out + k0 * width);
    } else {
      for (int64_t k = 0; k < n; ++k) {
        for (int64_t c = 0; c < given; ++c) out[(k0 + k) * width + c] = turned[c * run + k];
      }
    }
  }
}
