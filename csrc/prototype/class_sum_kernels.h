// The kernels of class_sum.h for one instruction set.
//
// Included once per instruction set (common/each_capability.h): no include guard.

#include "common/simd_math.h"
#include "common/product.h"

namespace class_sum {

constexpr int64_t lanes = Simd<double>::lanes;
typedef float Half __attribute__((vector_size(VECTOR_BYTES / 2), aligned(4), may_alias));

inline Vec<double> widened(const double* p) { return load(p); }
inline Vec<double> widened(const float* p) {
  return __builtin_convertvector(*reinterpret_cast<const Half*>(p), Vec<double>);
}

// Half types are widened in pieces that stay in the first cache.
constexpr int64_t piece = 256;

template <typename S>
constexpr bool is_half = sizeof(S) == 2;

// Whole vectors of `V` doubles, then single values: sum (n,) += w * x.
template <bool WEIGHTED, typename T>
inline void add(const T* x, double w, int64_t n, double* sum) {
  int64_t d = 0;
  for (; d + lanes <= n; d += lanes) {
    const Vec<double> value = widened(x + d);
    store(sum + d, load(sum + d) + (WEIGHTED ? w * value : value));
  }
  for (; d < n; ++d) sum[d] += WEIGHTED ? w * static_cast<double>(x[d]) : static_cast<double>(x[d]);
}

template <bool WEIGHTED, typename T, typename S>
inline void add_row(const S* x, double w, int64_t D, double* sum) {
  if constexpr (is_half<S>) {
    alignas(64) T wide[piece];
    for (int64_t d = 0; d < D; d += piece) {
      const int64_t n = std::min(piece, D - d);
      widen_row(x + d, wide, n);
      add<WEIGHTED>(wide, w, n, sum + d);
    }
  } else {
    add<WEIGHTED>(x, w, D, sum);
  }
}

template <bool WEIGHTED, typename T, typename S>
void direct_as(const ClassSumRows<T>& rows, const int64_t* labels, int64_t begin, int64_t end,
               const ClassSums& to) {
  constexpr int64_t ahead = 1024 / sizeof(S);
  const S* x = static_cast<const S*>(rows.x);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t label = labels[i];
    if (static_cast<uint64_t>(label) >= static_cast<uint64_t>(rows.K)) continue;
    const S* row = x + i * rows.D;
    // The hardware's own reading ahead ends at each page.
    for (int64_t d = 0; d < rows.D; d += 64 / sizeof(S)) __builtin_prefetch(row + ahead + d);
    double w = 1;
    if constexpr (WEIGHTED) {
      w = static_cast<double>(rows.weight[i]);
      if (!(w > 0)) continue;
      to.total[label] += w;
    }
    ++to.count[label];
    add_row<WEIGHTED, T>(row, w, rows.D, to.sum + label * rows.D);
  }
}

// V vectors of columns of `count` rows stay in registers while the rows are added to sum; `next`
// are the rows to come.
template <bool WEIGHTED, int V, typename T, typename S>
inline void gather_block(const ClassSumRows<T>& rows, const S* x, const int64_t* order,
                         int64_t count, const int64_t* next, int64_t next_count, double* sum) {
  constexpr int64_t line = 64 / sizeof(S);
  for (int64_t r = 0; r < next_count; ++r) {
    for (int64_t b = 0; b < V * lanes; b += line) __builtin_prefetch(x + next[r] * rows.D + b);
  }
  Vec<double> total[V];
  for (int v = 0; v < V; ++v) total[v] = load(sum + v * lanes);
  for (int64_t r = 0; r < count; ++r) {
    const S* row = x + order[r] * rows.D;
    T wide[V * lanes];
    const T* from;
    if constexpr (is_half<S>) {
      widen_row(row, wide, V * lanes);
      from = wide;
    } else {
      from = row;
    }
    for (int v = 0; v < V; ++v) {
      const Vec<double> value = widened(from + v * lanes);
      if constexpr (WEIGHTED) {
        total[v] += static_cast<double>(rows.weight[order[r]]) * value;
      } else {
        total[v] += value;
      }
    }
  }
  for (int v = 0; v < V; ++v) store(sum + v * lanes, total[v]);
}

// A few rows at a time over all columns, so that a row is read in one go.
template <bool WEIGHTED, typename T, typename S>
void gather_as(const ClassSumRows<T>& rows, const int64_t* order, int64_t count, double* sum) {
  const S* x = static_cast<const S*>(rows.x);
  constexpr int V = 8;
  constexpr int64_t together = 8;
  const int64_t D = rows.D;
  std::fill(sum, sum + D, 0.0);
  for (int64_t r = 0; r < count; r += together) {
    const int64_t* here = order + r;
    const int64_t n = std::min(together, count - r);
    const int64_t* next = here + n;
    const int64_t more = std::min(together, count - r - n);
    int64_t d = 0;
    for (; d + V * lanes <= D; d += V * lanes) {
      gather_block<WEIGHTED, V>(rows, x + d, here, n, next, more, sum + d);
    }
    for (; d + lanes <= D; d += lanes) {
      gather_block<WEIGHTED, 1>(rows, x + d, here, n, next, more, sum + d);
    }
    for (int64_t i = 0; d < D && i < n; ++i) {
      const double w = WEIGHTED ? static_cast<double>(rows.weight[here[i]]) : 1.0;
      add_row<WEIGHTED, T>(x + here[i] * D + d, w, D - d, sum + d);
    }
  }
}

// Rows of one block of a product with soft labels; fewer where a block of them would leave the
// cache.
inline int64_t soft_block(int64_t K) { return K <= 512 ? 256 : 64; }

template <typename T>
int64_t soft_scratch(int64_t K, int64_t D) {
  const int64_t wide = columns<T>, block = soft_block(K);
  return block * wide + K * wide + block * K + round_up(block * sizeof(int64_t) / sizeof(T), wide);
}

template <typename T, typename S>
void soft_as(const ClassSumRows<T>& rows, const T* shares, int64_t begin, int64_t end,
             int64_t first, int64_t last, const ClassSums& to, T* scratch) {
  constexpr int64_t wide = columns<T>;
  const S* x = static_cast<const S*>(rows.x);
  const int64_t D = rows.D, K = rows.K, block = soft_block(K);
  T* panel = scratch;
  T* product = panel + block * wide;
  T* kept_shares = product + K * wide;
  int64_t* kept = reinterpret_cast<int64_t*>(kept_shares + block * K);
  for (int64_t at = begin; at < end; at += block) {
    const int64_t given = std::min(block, end - at);
    // Rows that take part; all of them: the shares are read where they lie.
    int64_t n = 0;
    for (int64_t i = at; i < at + given; ++i) {
      if (!rows.weight || rows.weight[i] > 0) kept[n++] = i;
    }
    const T* left = shares + at * K;
    if (n < given) {
      for (int64_t r = 0; r < n; ++r) {
        std::memcpy(kept_shares + r * K, shares + kept[r] * K, sizeof(T) * K);
      }
      left = kept_shares;
    }
    if (first == 0) {
      for (int64_t r = 0; r < n; ++r) {
        const double w = rows.weight ? static_cast<double>(rows.weight[kept[r]]) : 1.0;
        const T* share = left + r * K;
        for (int64_t k = 0; k < K; ++k) {
          to.shares[k] += static_cast<double>(share[k]);
          to.total[k] += w * static_cast<double>(share[k]);
        }
      }
    }
    for (int64_t d = first; d < last; d += wide) {
      const int64_t width = std::min(wide, D - d);
      const T* right = panel;
      int64_t right_row = wide;
      bool copy = true;
      if constexpr (std::is_same_v<S, T>) {
        if (width == wide && !rows.weight) right = x + at * D + d, right_row = D, copy = false;
      }
      for (int64_t r = 0; copy && r < n; ++r) {
        T* row = panel + r * wide;
        widen_row(x + kept[r] * D + d, row, width);
        if (rows.weight) {
          const T w = rows.weight[kept[r]];
          for (int64_t c = 0; c < width; ++c) row[c] *= w;
        }
        std::fill(row + width, row + wide, T{0});
      }
      multiply_panel<T>(K, n, left, 1, K, right, right_row, product, wide, true);
      for (int64_t k = 0; k < K; ++k) {
        double* sum = to.sum + k * D + d;
        for (int64_t c = 0; c < width; ++c) sum[c] += static_cast<double>(product[k * wide + c]);
      }
    }
  }
}

// f(S) for the storage type: double goes with T = double alone.
template <typename T, typename F>
inline void with_storage(Element element, const F& f) {
  if constexpr (sizeof(T) == 8) {
    f(double{});
  } else if (element == Element::bf16) {
    f(Bf16{});
  } else if (element == Element::f16) {
    f(F16{});
  } else {
    f(float{});
  }
}

template <typename T>
void direct(const ClassSumRows<T>& rows, const int64_t* labels, int64_t begin, int64_t end,
            const ClassSums& to) {
  with_storage<T>(rows.element, [&](auto kind) {
    using S = decltype(kind);
    (rows.weight ? direct_as<true, T, S> : direct_as<false, T, S>)(rows, labels, begin, end, to);
  });
}

template <typename T>
void gather(const ClassSumRows<T>& rows, const int64_t* order, int64_t count, double* sum) {
  with_storage<T>(rows.element, [&](auto kind) {
    using S = decltype(kind);
    (rows.weight ? gather_as<true, T, S> : gather_as<false, T, S>)(rows, order, count, sum);
  });
}

template <typename T>
void soft(const ClassSumRows<T>& rows, const T* shares, int64_t begin, int64_t end, int64_t first,
          int64_t last, const ClassSums& to, T* scratch) {
  with_storage<T>(rows.element, [&](auto kind) {
    soft_as<T, decltype(kind)>(rows, shares, begin, end, first, last, to, scratch);
  });
}

template <typename T>
constexpr ClassSumKernels<T> kernels{direct<T>, gather<T>, soft<T>, soft_scratch<T>, columns<T>};

}  // namespace class_sum
