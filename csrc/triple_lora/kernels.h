// Row blocks of triple-matrix LoRA: a block of x (or g) is read once and serves the large product
// and every thin one while it is in cache. Parallel axis: rows, and panels of columns where rows
// are few. Sums in float (double for double); one rounding at the store.
//
// Included once per instruction set (common/each_capability.h): no include guard.

#include "common/simd_math.h"
#include "common/product.h"
#include "common/philox.h"

template <typename T>
void pack(Element element, const void* in, int64_t k_stride, int64_t n_stride, int64_t K, int64_t N,
          int64_t first, int64_t last, T* out) {
  with_element(element, [&](auto kind) {
    using S = decltype(kind);
    for (int64_t p = first; p < last; ++p) {
      pack_panel<T, S>(static_cast<const S*>(in), k_stride, n_stride, K, N, p * columns<T>,
                       out + p * K * columns<T>);
    }
  });
}

// A block of rows as the products read it: in place, or widened, gathered and masked.
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;
};

// Rows of a block that is widened lie this far apart: at a multiple of 2 KiB they would fall on the
// same few sets of the first two caches and push each other out.
template <typename T>
constexpr int64_t uneven(int64_t dim) {
  return dim + 64 / static_cast<int64_t>(sizeof(T));
}

template <typename T, typename S>
Rows<T> plain_rows(const S* in, int64_t dim, int64_t begin, int64_t rows, T* scratch) {
  if constexpr (std::is_same_v<T, S>) {
    return {in + begin * dim, dim};
  } else {
    const int64_t stride = uneven<T>(dim);
    for (int64_t i = 0; i < rows; ++i) {
      widen_row(in + (begin + i) * dim, scratch + i * stride, dim);
    }
    return {scratch, stride};
  }
}

// `plain` without the columns that are not active, times the dropout factor.
template <typename T>
Rows<T> adapter_rows(Rows<T> plain, int64_t dim, const int64_t* map, int64_t active,
                     const Dropout& dropout, const uint8_t* keep, int64_t rows, T* scratch) {
  if (map == nullptr && !dropout.on) return plain;
  const T factor = static_cast<T>(dropout.factor);
  for (int64_t i = 0; i < rows; ++i) {
    const T* in = plain.data + i * plain.stride;
    const uint8_t* mask = keep + i * dim;
    T* out = scratch + i * active;
    if (map == nullptr) {
      for (int64_t d = 0; d < dim; ++d) out[d] = mask[d] ? in[d] * factor : T{0};
    } else if (dropout.on) {
      for (int64_t j = 0; j < active; ++j) out[j] = mask[map[j]] ? in[map[j]] * factor : T{0};
    } else {
      for (int64_t j = 0; j < active; ++j) out[j] = in[map[j]];
    }
  }
  return {scratch, active};
}

inline void block_mask(const Dropout& dropout, int64_t dim, int64_t begin, int64_t rows,
                       uint8_t* keep) {
  for (int64_t i = 0; i < rows; ++i) {
    dropout_row(dropout.seed, begin + i, dropout.threshold, dim, keep + i * dim);
  }
}

// out (rows, rank) = a (rows, K) times panels (K, rank). A run of k is read once for all panels.
template <typename T>
void thin_product(Rows<T> a, int64_t rows, int64_t K, int64_t rank, const T* panels, T* out) {
  constexpr int64_t run = 256;
  for (int64_t k = 0; k < K; k += run) {
    const int64_t n = K - k < run ? K - k : run;
    for (int64_t j = 0; j < rank; j += columns<T>) {
      multiply_panel<T>(rows, n, a.data + k, a.stride, 1, panels + j * K + k * columns<T>,
                        columns<T>, out + j, rank, k == 0);
    }
  }
  if (K == 0) std::memset(out, 0, sizeof(T) * rows * rank);
}

// sum (rows, columns) = a (rows, K) times one panel, k in runs that stay in cache.
template <typename T>
void wide_product(Rows<T> a, int64_t rows, int64_t K, const T* panel, T* sum) {
  constexpr int64_t width = columns<T>;
  for (int64_t k = 0; k < K; k += block_k) {
    const int64_t run = K - k < block_k ? K - k : block_k;
    multiply_panel<T>(rows, run, a.data + k, a.stride, 1, panel + k * width, width, sum, width,
                      k == 0);
  }
}

// sum (dim, rank) += a^T b over the rows of a block, a (rows, dim), b (rows, rank). Pieces of a are
// copied together first: read in place, a column of it would touch a line of the cache for each row.
template <typename T>
void add_outer(Rows<T> a, int64_t rows, int64_t dim, int64_t rank, const T* b, T* sum) {
  constexpr int64_t width = 96, depth = 64;
  T piece[depth * width];
  for (int64_t n = 0; n < rows; n += depth) {
    const int64_t deep = rows - n < depth ? rows - n : depth;
    for (int64_t d = 0; d < dim; d += width) {
      const int64_t wide = dim - d < width ? dim - d : width;
      for (int64_t i = 0; i < deep; ++i) {
        std::memcpy(piece + i * width, a.data + (n + i) * a.stride + d, sizeof(T) * wide);
      }
      multiply<T>(wide, deep, rank, piece, 1, width, b + n * rank, sum + d * rank, false);
    }
  }
}

// What is added to the sums of a tile before they are rounded and stored.
template <typename T, typename S>
struct Finish {
  int64_t dim;             // columns of out
  const T* bias;           // (dim padded), or null
  const S* added;          // (N, dim), may be out itself, or null
  S* out;                  // (N, dim)
};

template <typename T, typename S>
inline void finish_row(const Finish<T, S>& f, int64_t n, int64_t column, int64_t given, T* row) {
  constexpr int64_t width = columns<T>;
  const int64_t at = n * f.dim + column;
  if (f.bias != nullptr) {
    for (int64_t c = 0; c < width; ++c) row[c] += f.bias[column + c];
  }
  if (f.added != nullptr) {
    T held[width];
    widen_row(f.added + at, held, given);
    for (int64_t c = 0; c < given; ++c) row[c] += held[c];
  }
  if (std::is_same_v<T, S> && given == width) {
    std::memcpy(f.out + at, row, sizeof(T) * width);
  } else {
    narrow_row(row, f.out + at, given);
  }
}

// The part of an output that comes through the rank: thin (rows, rank) times panels (r, dim).
template <typename T>
struct Thin {
  int64_t r, rank;
  const T* rows;
  const T* panels;
  const uint8_t* active;   // for each panel, whether it holds anything
  const uint8_t* keep;     // (rows, dim) dropout mask, or null
  T factor;
};

template <typename T>
inline void masked_add(const Thin<T>& t, int64_t dim, int64_t i, int64_t column, int64_t given,
                       const T* delta, T* row) {
  const uint8_t* mask = t.keep + i * dim + column;
  for (int64_t c = 0; c < given; ++c) row[c] += mask[c] ? delta[c] * t.factor : T{0};
}

// out = (a [wide panels] + thin) and what `finish` adds, panel by panel: the rows stay in cache.
template <typename T, typename S>
void joined_product(Rows<T> a, int64_t n, int64_t rows, int64_t K, const T* wide,
                    const Thin<T>& thin, const Finish<T, S>& finish, int64_t first, int64_t last) {
  constexpr int64_t width = columns<T>;
  T sum[most_rows * width], delta[most_rows * width];
  for (int64_t p = first; p < last; ++p) {
    const int64_t column = p * width;
    const int64_t given = finish.dim - column < width ? finish.dim - column : width;
    wide_product<T>(a, rows, K, wide + p * K * width, sum);
    const bool masked = thin.keep != nullptr && thin.active[p];
    if (thin.active[p]) {
      // Under dropout the adapter's part is masked by itself: it needs sums of its own.
      multiply_panel<T>(rows, thin.r, thin.rows, thin.rank, 1, thin.panels + p * thin.r * width,
                        width, masked ? delta : sum, width, masked);
    }
    for (int64_t i = 0; i < rows; ++i) {
      if (masked) {
        masked_add(thin, finish.dim, i, column, given, delta + i * width, sum + i * width);
      }
      finish_row(finish, n + i, column, given, sum + i * width);
    }
  }
}

// out = thin and what `finish` adds, a few rows at a time: out streams through once.
template <typename T, typename S>
void thin_only(int64_t n, int64_t rows, const Thin<T>& thin, const Finish<T, S>& finish,
               int64_t first, int64_t last) {
  constexpr int64_t width = columns<T>;
  const bool in_place = finish.added == finish.out && finish.bias == nullptr;
  T sum[tile_rows * width], delta[tile_rows * width];
  for (int64_t i = 0; i < rows; i += tile_rows) {
    const int64_t m = rows - i < tile_rows ? rows - i : tile_rows;
    const T* from = thin.rows + i * thin.rank;
    for (int64_t p = first; p < last; ++p) {
      const int64_t column = p * width;
      const int64_t given = finish.dim - column < width ? finish.dim - column : width;
      const T* panel = thin.panels + p * thin.r * width;
      if (in_place && !thin.active[p]) continue;
      if constexpr (std::is_same_v<T, S>) {
        if (in_place && given == width && thin.keep == nullptr) {
          T* out = finish.out + (n + i) * finish.dim + column;
          multiply_panel<T>(m, thin.r, from, thin.rank, 1, panel, width, out, finish.dim, false);
          continue;
        }
      }
      T* target = thin.keep != nullptr ? delta : sum;
      std::memset(sum, 0, sizeof(T) * m * width);
      if (thin.active[p]) {
        multiply_panel<T>(m, thin.r, from, thin.rank, 1, panel, width, target, width, true);
      }
      for (int64_t k = 0; k < m; ++k) {
        if (thin.keep != nullptr && thin.active[p]) {
          masked_add(thin, finish.dim, i + k, column, given, delta + k * width, sum + k * width);
        }
        finish_row(finish, n + i + k, column, given, sum + k * width);
      }
    }
  }
}

template <typename T, typename S>
void forward_rows(const Forward<T>& f, int64_t begin, int64_t end, int64_t first, int64_t last) {
  const S* x = static_cast<const S*>(f.x);
  S* y = static_cast<S*>(f.y);
  const bool dropped = f.dropout.on, gathered = f.in_map != nullptr;
  constexpr bool in_place = std::is_same_v<T, S>;
  Scratch<T> wide(in_place ? 0 : f.block_rows * uneven<T>(f.D_in));
  Scratch<T> narrow_x(dropped || gathered ? f.block_rows * f.in_active : 0);
  Scratch<uint8_t> keep(dropped ? f.block_rows * f.D_in : 0);
  Scratch<T> h(f.block_rows * f.rank);
  const Thin<T> thin{f.r, f.rank, h.get(), f.Q, f.Q_active, nullptr, T{1}};
  const Finish<T, S> finish{f.D_out, f.bias, static_cast<const S*>(f.base), y};
  for (int64_t n = begin; n < end; n += f.block_rows) {
    const int64_t rows = end - n < f.block_rows ? end - n : f.block_rows;
    const Rows<T> plain = plain_rows<T, S>(x, f.D_in, n, rows, wide.get());
    if (dropped) block_mask(f.dropout, f.D_in, n, rows, keep.get());
    const Rows<T> adapted = adapter_rows<T>(plain, f.D_in, f.in_map, f.in_active, f.dropout,
                                            keep.get(), rows, narrow_x.get());
    thin_product<T>(adapted, rows, f.in_active, f.rank, f.A, h.get());
    if (first == 0) {
      for (int64_t i = 0; i < rows; ++i) {
        std::memcpy(f.h + (n + i) * f.r, h.get() + i * f.rank, sizeof(T) * f.r);
      }
    }
    if (f.panels != nullptr) {
      joined_product<T, S>(plain, n, rows, f.D_in, f.panels, thin, finish, first, last);
    } else {
      thin_only<T, S>(n, rows, thin, finish, first, last);
    }
  }
}

// sum (dim) += the rows of a, in short runs as the products do it.
template <typename T>
void add_rows(Rows<T> a, int64_t rows, int64_t dim, T* sum) {
  constexpr int64_t width = 64, depth = 16;
  for (int64_t n = 0; n < rows; n += depth) {
    const int64_t end = rows - n < depth ? rows : n + depth;
    for (int64_t d = 0; d < dim; d += width) {
      const int64_t wide = dim - d < width ? dim - d : width;
      T run[width] = {};
      for (int64_t i = n; i < end; ++i) {
        const T* row = a.data + i * a.stride + d;
        for (int64_t c = 0; c < wide; ++c) run[c] += row[c];
      }
      for (int64_t c = 0; c < wide; ++c) sum[d + c] += run[c];
    }
  }
}

template <typename T, typename S>
void backward_rows(const Backward<T>& f, const Sums<T>& sums, int64_t begin, int64_t end,
                   int64_t first, int64_t last) {
  const S* g = static_cast<const S*>(f.g);
  const S* x = static_cast<const S*>(f.x);
  S* dx = static_cast<S*>(f.dx);
  const bool dropped = f.dropout.on;
  const bool wants_A = sums.dA != nullptr;
  constexpr bool in_place = std::is_same_v<T, S>;
  Scratch<T> wide_g(in_place ? 0 : f.block_rows * uneven<T>(f.D_out));
  Scratch<T> wide_x(in_place || !wants_A ? 0 : f.block_rows * uneven<T>(f.D_in));
  Scratch<T> narrow_g(f.out_map != nullptr ? f.block_rows * f.out_active : 0);
  Scratch<T> narrow_x(wants_A && (dropped || f.in_map) ? f.block_rows * f.in_active : 0);
  Scratch<uint8_t> keep(dropped ? f.block_rows * f.D_in : 0);
  Scratch<T> dh(f.block_rows * f.rank), h(sums.dQ != nullptr ? f.block_rows * f.rank : 0);
  const Thin<T> thin{f.r,     f.rank,     dh.get(),
                     f.A,     f.A_active, dropped ? keep.get() : nullptr,
                     static_cast<T>(f.dropout.factor)};
  const Finish<T, S> finish{f.D_in, nullptr, f.accumulate ? dx : nullptr, dx};
  const Dropout none;
  for (int64_t n = begin; n < end; n += f.block_rows) {
    const int64_t rows = end - n < f.block_rows ? end - n : f.block_rows;
    const Rows<T> plain = plain_rows<T, S>(g, f.D_out, n, rows, wide_g.get());
    const Rows<T> active = adapter_rows<T>(plain, f.D_out, f.out_map, f.out_active, none, nullptr,
                                           rows, narrow_g.get());
    if (dropped && (wants_A || dx)) block_mask(f.dropout, f.D_in, n, rows, keep.get());
    if (wants_A || dx) thin_product<T>(active, rows, f.out_active, f.rank, f.Q, dh.get());
    if (wants_A) {
      const Rows<T> read = plain_rows<T, S>(x, f.D_in, n, rows, wide_x.get());
      const Rows<T> adapted = adapter_rows<T>(read, f.D_in, f.in_map, f.in_active, f.dropout,
                                              keep.get(), rows, narrow_x.get());
      add_outer<T>(adapted, rows, f.in_active, f.rank, dh.get(), sums.dA);
    }
    if (sums.dQ != nullptr) {
      std::memset(h.get(), 0, sizeof(T) * rows * f.rank);
      for (int64_t i = 0; i < rows; ++i) {
        std::memcpy(h.get() + i * f.rank, f.h + (n + i) * f.r, sizeof(T) * f.r);
      }
      add_outer<T>(active, rows, f.out_active, f.rank, h.get(), sums.dQ);
    }
    if (sums.dbias != nullptr) {
      add_rows<T>(plain, rows, f.D_out, sums.dbias);
    }
    if (dx == nullptr) continue;
    if (f.panels != nullptr) {
      joined_product<T, S>(plain, n, rows, f.D_out, f.panels, thin, finish, first, last);
    } else {
      thin_only<T, S>(n, rows, thin, finish, first, last);
    }
  }
}

// Double tensors are summed in double, all others in float; no other pair is compiled.
template <typename T, typename F>
void with_storage(Element element, const F& f) {
  if constexpr (std::is_same_v<T, double>) {
    f(double{});
  } else {
    switch (element) {
      case Element::bf16:
        return f(Bf16{});
      case Element::f16:
        return f(F16{});
      default:
        return f(float{});
    }
  }
}

template <typename T>
void forward(const Forward<T>& f, int64_t begin, int64_t end, int64_t first, int64_t last) {
  with_storage<T>(f.element, [&](auto kind) {
    forward_rows<T, decltype(kind)>(f, begin, end, first, last);
  });
}

template <typename T>
void backward(const Backward<T>& f, const Sums<T>& sums, int64_t begin, int64_t end, int64_t first,
              int64_t last) {
  with_storage<T>(f.element, [&](auto kind) {
    backward_rows<T, decltype(kind)>(f, sums, begin, end, first, last);
  });
}

template <typename T>
constexpr Kernels<T> kernels{columns<T>, pack<T>, forward<T>, backward<T>, multiply<T>};
