// Row blocks of triple-matrix LoRA: a block of x (or g) is read once and serves the large product
// and every thin one while it is in cache. Parallel axis: rows, and panels of columns where rows
// are few. Sums in float (double for double); one rounding at the store.
//
// Included once per instruction set (common/each_capability.h): no include guard.

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

template <typename T, typename S>
Rows<T> plain_rows(const S* in, int64_t dim, int64_t begin, int64_t rows, T* scratch) {
  if constexpr (std::is_same_v<T, S>) {
    return {in + begin * dim, dim};
  } else {
    for (int64_t i = 0; i < rows; ++i) widen_row(in + (begin + i) * dim, scratch + i * dim, dim);
    return {scratch, dim};
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

// out (rows, rank) = a (rows, K) times panels (K, rank).
template <typename T>
void thin_product(Rows<T> a, int64_t rows, int64_t K, int64_t rank, const T* panels, T* out) {
  for (int64_t j = 0; j < rank; j += columns<T>) {
    multiply_panel<T>(rows, K, a.data, a.stride, 1, panels + j * K, columns<T>, out + j, rank, true);
  }
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

// sum (columns (rows of a)^T, rank) += a^T b over the rows of a block.
template <typename T>
void add_outer(Rows<T> a, int64_t rows, int64_t dim, int64_t rank, const T* b, T* sum) {
  multiply<T>(dim, rows, rank, a.data, 1, a.stride, b, sum, false);
}

template <typename T, typename S>
void forward_rows(const Forward<T>& f, int64_t begin, int64_t end, int64_t first, int64_t last) {
  constexpr int64_t width = columns<T>;
  const S* x = static_cast<const S*>(f.x);
  const S* base = static_cast<const S*>(f.base);
  S* y = static_cast<S*>(f.y);
  constexpr bool in_place = std::is_same_v<T, S>;
  const bool dropped = f.dropout.on, gathered = f.in_map != nullptr;
  Scratch<T> wide(in_place ? 0 : block_rows * f.D_in);
  Scratch<T> narrow_x(dropped || gathered ? block_rows * f.in_active : 0);
  Scratch<uint8_t> keep(dropped ? block_rows * f.D_in : 0);
  Scratch<T> h(block_rows * f.rank);
  T sum[block_rows * width];
  for (int64_t n = begin; n < end; n += block_rows) {
    const int64_t rows = end - n < block_rows ? end - n : block_rows;
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
    for (int64_t p = first; p < last; ++p) {
      const int64_t column = p * width;
      const int64_t given = f.D_out - column < width ? f.D_out - column : width;
      const bool delta = f.Q_active[p];
      if (f.panels != nullptr) {
        wide_product<T>(plain, rows, f.D_in, f.panels + p * f.D_in * width, sum);
      } else if (delta) {
        std::memset(sum, 0, sizeof(T) * rows * width);
      } else if (f.base == nullptr && f.bias == nullptr) {
        continue;  // y holds the product, or is zero already
      } else {
        std::memset(sum, 0, sizeof(T) * rows * width);
      }
      if (delta) {
        multiply_panel<T>(rows, f.r, h.get(), f.rank, 1, f.Q + p * f.r * width, width, sum, width,
                          false);
      }
      const S* added = f.panels != nullptr ? nullptr : base != nullptr ? base : y;
      for (int64_t i = 0; i < rows; ++i) {
        T* row = sum + i * width;
        const int64_t at = (n + i) * f.D_out + column;
        if (f.bias != nullptr) {
          for (int64_t c = 0; c < width; ++c) row[c] += f.bias[column + c];
        }
        if (added != nullptr) {
          T held[width];
          widen_row(added + at, held, given);
          for (int64_t c = 0; c < given; ++c) row[c] += held[c];
        }
        if (in_place && given == width) {
          std::memcpy(y + at, row, sizeof(T) * width);
        } else {
          narrow_row(row, y + at, given);
        }
      }
    }
  }
}

template <typename T, typename S>
void backward_rows(const Backward<T>& f, const Sums<T>& sums, int64_t begin, int64_t end,
                   int64_t first, int64_t last) {
  constexpr int64_t width = columns<T>;
  constexpr bool in_place = std::is_same_v<T, S>;
  const S* g = static_cast<const S*>(f.g);
  const S* x = static_cast<const S*>(f.x);
  S* dx = static_cast<S*>(f.dx);
  const bool dropped = f.dropout.on;
  const bool wants_A = sums.dA != nullptr;
  Scratch<T> wide_g(in_place ? 0 : block_rows * f.D_out);
  Scratch<T> wide_x(in_place || !wants_A ? 0 : block_rows * f.D_in);
  Scratch<T> narrow_g(f.out_map != nullptr ? block_rows * f.out_active : 0);
  Scratch<T> narrow_x(wants_A && (dropped || f.in_map) ? block_rows * f.in_active : 0);
  Scratch<uint8_t> keep(dropped ? block_rows * f.D_in : 0);
  Scratch<T> dh(block_rows * f.rank), h(sums.dQ != nullptr ? block_rows * f.rank : 0);
  const Dropout none;
  T sum[block_rows * width], delta[block_rows * width];
  for (int64_t n = begin; n < end; n += block_rows) {
    const int64_t rows = end - n < block_rows ? end - n : block_rows;
    const Rows<T> plain = plain_rows<T, S>(g, f.D_out, n, rows, wide_g.get());
    const Rows<T> active = adapter_rows<T>(plain, f.D_out, f.out_map, f.out_active, none, nullptr,
                                           rows, narrow_g.get());
    if (dropped && (wants_A || dx)) block_mask(f.dropout, f.D_in, n, rows, keep.get());
    thin_product<T>(active, rows, f.out_active, f.rank, f.Q, dh.get());
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
      for (int64_t i = 0; i < rows; ++i) {
        const T* row = plain.data + i * plain.stride;
        for (int64_t d = 0; d < f.D_out; ++d) sums.dbias[d] += row[d];
      }
    }
    if (dx == nullptr) continue;
    for (int64_t p = first; p < last; ++p) {
      const int64_t column = p * width;
      const int64_t given = f.D_in - column < width ? f.D_in - column : width;
      const bool adapter = f.A_active[p];
      if (f.panels != nullptr) {
        wide_product<T>(plain, rows, f.D_out, f.panels + p * f.D_out * width, sum);
      } else if (adapter || !f.accumulate) {
        std::memset(sum, 0, sizeof(T) * rows * width);
      } else {
        continue;
      }
      if (adapter) {
        // Under dropout the adapter's part is masked by itself: it needs sums of its own.
        multiply_panel<T>(rows, f.r, dh.get(), f.rank, 1, f.A + p * f.r * width, width,
                          dropped ? delta : sum, width, dropped);
      }
      for (int64_t i = 0; i < rows; ++i) {
        T* row = sum + i * width;
        const int64_t at = (n + i) * f.D_in + column;
        if (adapter && dropped) {
          const uint8_t* mask = keep.get() + i * f.D_in + column;
          const T factor = static_cast<T>(f.dropout.factor);
          for (int64_t c = 0; c < given; ++c) {
            row[c] += mask[c] ? delta[i * width + c] * factor : T{0};
          }
        }
        if (f.accumulate) {
          T held[width];
          widen_row(dx + at, held, given);
          for (int64_t c = 0; c < given; ++c) row[c] += held[c];
        }
        if (in_place && given == width) {
          std::memcpy(dx + at, row, sizeof(T) * width);
        } else {
          narrow_row(row, dx + at, given);
        }
      }
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
