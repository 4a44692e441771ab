// CPU ops of triple-matrix LoRA: prepares the factors, spreads rows over torch's threads, adds up
// what the stripes of rows left, and recovers dT and dB from dQ. Operands: factors.h; kernels: kernels.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/capability.h"
#include "common/element.h"
#include "common/scratch.h"
#include "triple_lora/factors.h"
#include "triple_lora/triple_lora.h"

namespace fedkernels {
namespace {

template <typename T>
torch::headeronly::ScalarType scalar_type() {
  return sizeof(T) == 8 ? torch::headeronly::ScalarType::Double
                        : torch::headeronly::ScalarType::Float;
}

Tensor empty(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes);
}

// Whether the large product runs in our own kernel or in the platform's. In float32 and float64 the
// two are level and the platform's has a kernel for every processor; half types it computes 4 to 50
// times slower than float32 unless the processor multiplies them (docs/kernels.md), and ours widens
// as it packs, sums in float and rounds once. Packing does not pay for a few rows, but float16 is
// summed in float and rounded once whatever it costs.
bool own_product(Element element, int64_t rows, int64_t weights) {
  if (weights <= 4096 || element == Element::f16) return true;
  if (rows < 16 || element == Element::f32 || element == Element::f64) return false;
#if defined(__x86_64__)
  static const bool multiplies_bf16 = __builtin_cpu_supports("avx512bf16");
  if (element == Element::bf16 && multiplies_bf16) return false;
#endif
  return true;
}

void matmul_into(const Tensor& a, const Tensor& b, Tensor& out) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  // Releases the reference that the result holds.
  torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor as_matrix(const Tensor& t, int64_t rows, int64_t columns) {
  return torch::stable::view(t, {rows, columns});
}

// Splits the panels of the output when there are fewer row blocks than threads. A block's thin
// product is then computed once per part, which costs r / part columns.
int64_t panel_parts(int64_t row_tasks, int64_t panels) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = row_tasks >= threads ? 1 : ceil_div(threads, row_tasks);
  return std::clamp<int64_t>(std::min(wanted, panels / 8), 1, std::max<int64_t>(panels, 1));
}

template <typename F>
void over_rows_and_panels(int64_t row_tasks, int64_t parts, int64_t panels, bool small,
                          const F& run) {
  torch::stable::parallel_for(
      0, row_tasks * parts, small ? row_tasks * parts : 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t part = task % parts;
          run(task / parts, part * panels / parts, (part + 1) * panels / parts);
        }
      });
}

template <typename T>
std::tuple<Tensor, Tensor> forward_as(const Tensor& x, const Optional& weight,
                                      const Optional& bias, const Optional& base, const Tensor& A,
                                      const Optional& middle, const Tensor& B,
                                      const Optional& in_index, const Optional& out_index,
                                      const Optional& seed, int64_t block, int64_t D_out,
                                      double scale, bool residual, double p) {
  const Kernels<T>& k = kernels_here<T>();
  const int64_t D_in = x.size(x.dim() - 1);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  shape.back() = D_out;
  Tensor y = empty(x, shape);
  Tensor h = torch::stable::new_empty(x, std::vector<int64_t>{rows, A.size(0)}, scalar_type<T>());
  if (rows == 0 || D_out == 0) {
    if (h.numel() > 0) torch::stable::zero_(h);
    return {y, h};
  }

  const Factors<T> factors(B, middle, scale, residual);
  const auto in_map = active_columns("in_index", in_index, block, D_in, A.size(1));
  const auto out_map = active_columns("out_index", out_index, block, D_out, B.size(0));
  std::vector<uint8_t> Q_active;
  const int64_t r = factors.r, rank = factors.rank;
  const Scratch<T> Q = spread<T>(r, D_out, out_map, out_index.has_value(), Q_active,
                                 [&](int64_t j, int64_t c) { return factors.Q.get()[j * rank + c]; });
  const Scratch<T> A_panels = packed<T>(transpose_of(A));
  const int64_t panels = ceil_div(D_out, k.columns);

  Forward<T> f{};
  f.D_in = D_in, f.D_out = D_out, f.r = r, f.rank = rank;
  f.block_rows = rows_of_block(rows, D_in);
  f.element = element_of(x);
  f.x = x.const_data_ptr();
  f.A = A_panels.get(), f.Q = Q.get(), f.Q_active = Q_active.data();
  f.in_map = in_index ? in_map.data() : nullptr;
  f.in_active = in_index ? static_cast<int64_t>(in_map.size()) : D_in;
  f.dropout = dropout_of(seed, p);
  f.y = y.mutable_data_ptr();
  f.h = static_cast<T*>(h.mutable_data_ptr());
  Scratch<T> W;
  if (weight && own_product(f.element, rows, weight->numel())) {
    W = packed<T>(transpose_of(*weight));
    f.panels = W.get();
  } else if (weight) {
    Tensor flat = as_matrix(y, rows, D_out);
    matmul_into(as_matrix(x, rows, D_in), torch::stable::transpose(*weight, 0, 1), flat);
    f.base = y.const_data_ptr();
  } else if (base) {
    f.base = base->const_data_ptr();
  }
  Scratch<T> wide_bias;
  if (bias) {
    wide_bias = Scratch<T>(panels * k.columns);
    std::fill_n(wide_bias.get(), panels * k.columns, T{0});
    const int64_t stride = bias->stride(0);
    with_element(element_of(*bias), [&](auto kind) {
      const auto* in = static_cast<const decltype(kind)*>(bias->const_data_ptr());
      for (int64_t d = 0; d < D_out; ++d) wide_bias.get()[d] = static_cast<T>(widen(in[d * stride]));
    });
    f.bias = wide_bias.get();
  }

  const int64_t blocks = ceil_div(rows, f.block_rows);
  const bool small = rows * (D_in + r) * D_out < 32768;
  over_rows_and_panels(blocks, panel_parts(blocks, panels), panels, small,
                       [&](int64_t task, int64_t first, int64_t last) {
                         k.forward(f, task * f.block_rows, std::min((task + 1) * f.block_rows, rows),
                                   first, last);
                       });
  return {y, h};
}

std::tuple<Tensor, Tensor> triple_lora_forward(
    const Tensor& x, const Optional& weight, const Optional& bias, const Optional& base,
    const Tensor& A, const Optional& T, const Tensor& B, const Optional& in_index,
    const Optional& out_index, const Optional& seed, int64_t block, int64_t out_features,
    double scale, bool residual, double dropout_p) {
  const auto run = element_of(x) == Element::f64 ? forward_as<double> : forward_as<float>;
  return run(x, weight, bias, base, A, T, B, in_index, out_index, seed, block, out_features, scale,
             residual, dropout_p);
}

constexpr int64_t need_x = 1, need_A = 2, need_T = 4, need_B = 8, need_weight = 16, need_bias = 32;

// Copies a (rows, rank) sum, or its transpose, into a tensor of its own element type.
template <typename T>
void store(const T* sum, int64_t row_stride, int64_t column_stride, Tensor& out) {
  const int64_t rows = out.size(0), columns = out.size(1);
  with_element(element_of(out), [&](auto kind) {
    auto* to = static_cast<decltype(kind)*>(out.mutable_data_ptr());
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        const T value = sum[i * row_stride + j * column_stride];
        if constexpr (std::is_same_v<decltype(kind), double>) {
          to[i * columns + j] = value;
        } else {
          narrow(static_cast<float>(value), to + i * columns + j);
        }
      }
    }
  });
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward_as(
    const Tensor& grad, const Optional& x, const Optional& h, const Optional& weight,
    const Tensor& A, const Optional& middle, const Tensor& B, const Optional& in_index,
    const Optional& out_index, const Optional& seed, int64_t block, int64_t D_in, double scale,
    bool residual, double p, int64_t need) {
  const Kernels<T>& k = kernels_here<T>();
  const int64_t D_out = grad.size(grad.dim() - 1);
  std::vector<int64_t> shape(grad.sizes().begin(), grad.sizes().end());
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  shape.back() = D_in;
  const auto like = [&](const Tensor* t, int64_t bit) {
    return t != nullptr && (need & bit) ? torch::stable::new_empty(*t, t->sizes())
                                        : empty(grad, {0});
  };
  Tensor dx = empty(grad, (need & need_x) ? shape : std::vector<int64_t>{0});
  Tensor dA = like(&A, need_A), dB = like(&B, need_B);
  Tensor dT = like(middle ? &*middle : nullptr, need_T);
  Tensor dW = like(weight ? &*weight : nullptr, need_weight);
  Tensor dbias = empty(grad, {(need & need_bias) ? D_out : 0});
  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> result{dx, dA, dT, dB, dW, dbias};
  if (rows == 0 || D_out == 0) {
    for (Tensor* t : {&dx, &dA, &dT, &dB, &dW, &dbias}) {
      if (t->numel() > 0) torch::stable::zero_(*t);
    }
    return result;
  }

  const Factors<T> factors(B, middle, scale, residual);
  const int64_t r = factors.r, rank = factors.rank;
  const auto in_map = active_columns("in_index", in_index, block, D_in, A.size(1));
  const auto out_map = active_columns("out_index", out_index, block, D_out, B.size(0));
  const bool wants_Q = need & (need_T | need_B);

  Backward<T> f{};
  f.D_in = D_in, f.D_out = D_out, f.r = r, f.rank = rank;
  f.block_rows = rows_of_block(rows, D_out);
  f.element = element_of(grad);
  f.g = grad.const_data_ptr();
  if (need & need_A) f.x = x->const_data_ptr();
  if (wants_Q) f.h = static_cast<const T*>(h->const_data_ptr());
  f.in_map = in_index ? in_map.data() : nullptr;
  f.in_active = in_index ? static_cast<int64_t>(in_map.size()) : D_in;
  f.out_map = out_index ? out_map.data() : nullptr;
  f.out_active = out_index ? static_cast<int64_t>(out_map.size()) : D_out;
  f.dropout = dropout_of(seed, p);

  // Q (active D_out, r) in panels over r, for dh = g Q.
  Scratch<T> Q_panels(f.out_active * rank);
  for (int64_t j = 0; j < rank; j += k.columns) {
    for (int64_t d = 0; d < f.out_active; ++d) {
      std::memcpy(Q_panels.get() + j * f.out_active + d * k.columns,
                  factors.Q.get() + d * rank + j, sizeof(T) * k.columns);
    }
  }
  f.Q = Q_panels.get();

  const int64_t panels = ceil_div(D_in, k.columns);
  std::vector<uint8_t> A_active;
  Scratch<T> A_panels, A_wide, W;
  if (need & need_x) {
    if (in_index) {
      A_wide = padded<T>(A, A.size(1));
      A_panels = spread<T>(r, D_in, in_map, true, A_active, [&](int64_t j, int64_t c) {
        return A_wide.get()[c * A.size(1) + j];
      });
    } else {
      A_panels = packed<T>(rows_of(A));
      A_active.assign(panels, 1);
    }
    f.A = A_panels.get(), f.A_active = A_active.data();
    f.dx = dx.mutable_data_ptr();
    if (weight && own_product(f.element, rows, weight->numel())) {
      W = packed<T>(rows_of(*weight));
      f.panels = W.get();
    } else if (weight && D_in > 0) {
      Tensor flat = as_matrix(dx, rows, D_in);
      matmul_into(as_matrix(grad, rows, D_out), *weight, flat);
      f.accumulate = true;
    }
  }

  // The stripes depend on the shape alone, never on the threads: the sums keep their bits.
  const int64_t size_A = (need & need_A) ? f.in_active * rank : 0;
  const int64_t size_Q = wants_Q ? f.out_active * rank : 0;
  const int64_t size_bias = (need & need_bias) ? D_out : 0;
  const int64_t size = size_A + size_Q + size_bias;
  constexpr int64_t most = (int64_t{32} << 20) / sizeof(T);
  const int64_t blocks = ceil_div(rows, f.block_rows);
  // 256 rows pay for the sums that a stripe clears and adds.
  const int64_t wanted = std::min<int64_t>(64, ceil_div(rows, 256));
  const int64_t stripes =
      std::clamp<int64_t>(std::min(wanted, most / std::max<int64_t>(size, 1)), 1, blocks);
  Scratch<T> partial(stripes * size);
  const auto sums_of = [&](int64_t stripe, bool reduce) {
    T* at = partial.get() + stripe * size;
    Sums<T> sums{};
    if (!reduce) return sums;
    if (size_A) sums.dA = at;
    if (size_Q) sums.dQ = at + size_A;
    if (size_bias) sums.dbias = at + size_A + size_Q;
    return sums;
  };
  const bool small = rows * (D_in + r) * D_out < 32768;
  over_rows_and_panels(
      stripes, (need & need_x) ? panel_parts(stripes, panels) : 1, panels, small,
      [&](int64_t stripe, int64_t first, int64_t last) {
        const bool reduce = first == 0;
        if (reduce && size > 0) {
          std::memset(partial.get() + stripe * size, 0, sizeof(T) * size);
        }
        const int64_t begin = stripe * blocks / stripes * f.block_rows;
        const int64_t end = std::min((stripe + 1) * blocks / stripes * f.block_rows, rows);
        k.backward(f, sums_of(stripe, reduce), begin, end, first, last);
      });
  T* total = partial.get();
  if (stripes > 1 && size > 0) {
    torch::stable::parallel_for(0, size, 16384, [&](int64_t begin, int64_t end) {
      for (int64_t s = 1; s < stripes; ++s) {
        const T* add = total + s * size;
        for (int64_t i = begin; i < end; ++i) total[i] += add[i];
      }
    });
  }

  if (need & need_A) store(total, 1, rank, dA);
  if (wants_Q) {
    T* dQ = total + size_A;
    for (int64_t i = 0; i < size_Q; ++i) dQ[i] *= static_cast<T>(scale);
    if ((need & need_T) && middle) {
      // r^2 sums over all of D_out, often with much cancellation: in double, a run at a time.
      const Kernels<double>& wide = kernels_here<double>();
      const int64_t width = ceil_div(r, wide.columns) * wide.columns;
      constexpr int64_t run = 256;
      Scratch<double> left(run * width), right(run * width), sum(r * width);
      std::fill_n(sum.get(), r * width, 0.0);
      for (int64_t d = 0; d < factors.rows; d += run) {
        const int64_t n = std::min(run, factors.rows - d);
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t c = 0; c < width; ++c) {
            const int64_t at = (d + i) * rank + c;
            left.get()[i * width + c] = c < r ? factors.B.get()[at] : 0;
            right.get()[i * width + c] = c < r ? dQ[at] : 0;
          }
        }
        wide.multiply(r, n, width, left.get(), 1, width, right.get(), sum.get(), false);
      }
      store(sum.get(), width, 1, dT);
    }
    if (need & need_B) {
      if (middle) {
        // M^T (r, rank), zeros to the right.
        Scratch<T> turned(r * rank), sum(factors.rows * rank);
        std::fill_n(turned.get(), r * rank, T{0});
        for (int64_t i = 0; i < r; ++i) {
          for (int64_t j = 0; j < r; ++j) turned.get()[i * rank + j] = factors.M.get()[j * rank + i];
        }
        torch::stable::parallel_for(
            0, factors.rows, Factors<T>::grain(rank * r), [&](int64_t begin, int64_t end) {
              k.multiply(end - begin, r, rank, dQ + begin * rank, rank, 1, turned.get(),
                         sum.get() + begin * rank, true);
            });
        store(sum.get(), rank, 1, dB);
      } else {
        store(dQ, rank, 1, dB);
      }
    }
  }
  if (need & need_bias) {
    const T* sum = total + size_A + size_Q;
    with_element(f.element, [&](auto kind) {
      auto* to = static_cast<decltype(kind)*>(dbias.mutable_data_ptr());
      for (int64_t d = 0; d < D_out; ++d) {
        if constexpr (std::is_same_v<decltype(kind), double>) {
          to[d] = sum[d];
        } else {
          narrow(static_cast<float>(sum[d]), to + d);
        }
      }
    });
  }
  if ((need & need_weight) && D_in > 0) {
    matmul_into(torch::stable::transpose(as_matrix(grad, rows, D_out), 0, 1),
                as_matrix(*x, rows, D_in), dW);
  }
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> triple_lora_backward(
    const Tensor& grad, const Optional& x, const Optional& h, const Optional& weight,
    const Tensor& A, const Optional& T, const Tensor& B, const Optional& in_index,
    const Optional& out_index, const Optional& seed, int64_t block, int64_t in_features,
    double scale, bool residual, double dropout_p, int64_t need) {
  const auto run = element_of(grad) == Element::f64 ? backward_as<double> : backward_as<float>;
  return run(grad, x, h, weight, A, T, B, in_index, out_index, seed, block, in_features, scale,
             residual, dropout_p, need);
}

}  // namespace
}  // namespace fedkernels

STABLE_TORCH_LIBRARY_IMPL(fedkernels, CPU, m) {
  m.impl("triple_lora_forward", TORCH_BOX(&fedkernels::triple_lora_forward));
  m.impl("triple_lora_backward", TORCH_BOX(&fedkernels::triple_lora_backward));
}
