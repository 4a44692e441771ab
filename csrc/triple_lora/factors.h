// The operands of one call in the type of the sums: factors folded and padded, matrices in panels.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/element.h"
#include "common/scratch.h"
#include "triple_lora/triple_lora.h"

namespace fedkernels {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// B (K, N) of a product, as a view of a tensor: element type and the two strides.
struct View {
  const Tensor* tensor;
  int64_t k_stride, n_stride, K, N;
};

inline View rows_of(const Tensor& t) { return {&t, t.stride(0), t.stride(1), t.size(0), t.size(1)}; }
inline View transpose_of(const Tensor& t) { return {&t, t.stride(1), t.stride(0), t.size(1), t.size(0)}; }

// The whole of `view` in panels; as many rows of zeros below as `K` asks for.
template <typename T>
Scratch<T> packed(const View& view) {
  const Kernels<T>& k = kernels_here<T>();
  const int64_t panels = ceil_div(view.N, k.columns);
  Scratch<T> out(panels * view.K * k.columns);
  const Element element = element_of(*view.tensor);
  const void* data = view.tensor->const_data_ptr();
  torch::stable::parallel_for(0, panels, std::max<int64_t>(1, 32768 / (view.K * k.columns + 1)),
                              [&](int64_t first, int64_t last) {
                                k.pack(element, data, view.k_stride, view.n_stride, view.K, view.N,
                                       first, last, out.get());
                              });
  return out;
}

// A plain row-major copy (rows, width) of a 2-D tensor, zeros to the right of its columns.
template <typename T>
Scratch<T> padded(const Tensor& t, int64_t width) {
  const int64_t rows = t.size(0), given = t.size(1);
  Scratch<T> out(rows * width);
  const int64_t r = t.stride(0), c = t.stride(1);
  with_element(element_of(t), [&](auto kind) {
    const auto* in = static_cast<const decltype(kind)*>(t.const_data_ptr());
    for (int64_t i = 0; i < rows; ++i) {
      T* row = out.get() + i * width;
      for (int64_t j = 0; j < given; ++j) row[j] = static_cast<T>(widen(in[i * r + j * c]));
      std::fill(row + given, row + width, T{0});
    }
  });
  return out;
}

// Active columns of a block-sparse factor that stores `given` of them; empty for a dense one.
// check.py looks at the index in eager mode; compiled code and functorch reach this check alone.
inline std::vector<int64_t> active_columns(const char* name, const Optional& index, int64_t block,
                                    int64_t dim, int64_t given) {
  std::vector<int64_t> map;
  if (!index) return map;
  map.reserve(std::max<int64_t>(given, 1));  // a null pointer would say: dense
  const int64_t stride = index->stride(0), blocks = dim / block + (dim % block != 0);
  const int64_t* data = static_cast<const int64_t*>(index->const_data_ptr());
  for (int64_t i = 0, last = -1; i < index->numel(); ++i) {
    const int64_t number = data[i * stride], first = number * block;
    if (number <= last || number >= blocks) {
      throw std::invalid_argument(std::string(name) + " must be sorted, unique and within [0, " +
                                  std::to_string(blocks) + "), got " + std::to_string(number));
    }
    for (int64_t d = first; d < std::min(first + block, dim); ++d) map.push_back(d);
    last = number;
  }
  if (static_cast<int64_t>(map.size()) != given) {
    throw std::invalid_argument(std::string(name) + " covers " + std::to_string(map.size()) +
                                " positions, but the factor stores " + std::to_string(given));
  }
  return map;
}

// F (r, dim) in panels over dim, from a source whose row j holds column map[j] of F.
// `active` says which panels hold anything.
template <typename T, typename At>
Scratch<T> spread(int64_t r, int64_t dim, const std::vector<int64_t>& map, bool sparse,
                  std::vector<uint8_t>& active, const At& at) {
  const int64_t width = kernels_here<T>().columns, panels = ceil_div(dim, width);
  Scratch<T> out(panels * r * width);
  active.assign(panels, sparse ? 0 : 1);
  if (sparse || dim % width != 0) std::fill_n(out.get(), panels * r * width, T{0});
  const int64_t count = sparse ? static_cast<int64_t>(map.size()) : dim;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t d = sparse ? map[j] : j, p = d / width;
    active[p] = 1;
    T* column = out.get() + p * r * width + d % width;
    for (int64_t k = 0; k < r; ++k) column[k * width] = at(j, k);
  }
  return out;
}

// The factors of one call in the type of the sums. Q = s B M and M = T + I (or T, or I) live in
// rows of `rank` elements, r rounded up to whole panels.
template <typename T>
struct Factors {
  int64_t r, rank, rows;  // rows of B
  Scratch<T> B;           // (rows, rank)
  Scratch<T> M;           // (r, rank); none for T = None
  Scratch<T> Q;           // (rows, rank)

  Factors(const Tensor& B_, const Optional& T_, double scale, bool residual)
      : r(B_.size(1)), rows(B_.size(0)) {
    const Kernels<T>& k = kernels_here<T>();
    rank = ceil_div(r, k.columns) * k.columns;
    B = padded<T>(B_, rank);
    Q = Scratch<T>(rows * rank);
    if (!T_) {
      for (int64_t i = 0; i < rows * rank; ++i) Q.get()[i] = static_cast<T>(scale) * B.get()[i];
      return;
    }
    M = padded<T>(*T_, rank);
    if (residual) {
      for (int64_t i = 0; i < r; ++i) M.get()[i * rank + i] += T{1};
    }
    torch::stable::parallel_for(0, rows, grain(rank * r), [&](int64_t begin, int64_t end) {
      T* out = Q.get() + begin * rank;
      k.multiply(end - begin, r, rank, B.get() + begin * rank, rank, 1, M.get(), out, true);
      for (int64_t i = 0; i < (end - begin) * rank; ++i) out[i] *= static_cast<T>(scale);
    });
  }

  static int64_t grain(int64_t work) { return std::max<int64_t>(96, 65536 / std::max<int64_t>(work, 1)); }
};

inline Dropout dropout_of(const Optional& seed, double p) {
  Dropout dropout;
  if (!seed) return dropout;
  dropout.threshold = static_cast<uint32_t>(std::lround(65536 * p));
  dropout.on = dropout.threshold > 0;
  dropout.seed = static_cast<uint64_t>(*static_cast<const int64_t*>(seed->const_data_ptr()));
  dropout.factor = dropout.threshold >= 65536 ? 0.0 : 65536.0 / (65536.0 - dropout.threshold);
  return dropout;
}

}  // namespace fedkernels
