// The ops of conditional transport on CUDA, float32: allocates, and hands pointers to the launches.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <optional>
#include <tuple>
#include <vector>

#include "common/cuda_stream.h"
#include "transport/conditional_launch.cuh"

namespace fedkernels {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

const float* data(const Optional& t) {
  return t.has_value() ? static_cast<const float*>(t->const_data_ptr()) : nullptr;
}

Tensor empty(const Tensor& like, std::vector<int64_t> sizes, ScalarType type = ScalarType::Float) {
  return torch::stable::new_empty(like, sizes, type);
}

ConditionalOperands operands(const Tensor& points, const Optional& mass) {
  ConditionalOperands side{};
  side.points = data(points), side.mass = data(mass), side.count = points.size(1);
  return side;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& y,
                                                   const Optional& p, const Optional& q,
                                                   int64_t cost, int64_t logits,
                                                   double temperature) {
  const OnDevice device(x);
  const int64_t B = x.size(0), N = x.size(1), M = y.size(1), D = x.size(2);
  const ConditionalMode mode{static_cast<int>(cost), static_cast<int>(logits), temperature};
  Tensor row_cost = empty(x, {B, N}), row_lse = empty(x, {B, N});
  Tensor col_cost = empty(x, {B, M}), col_lse = empty(x, {B, M});
  const ConditionalScratch layout(B, N, M, D, mode.cost, false);
  Tensor scratch = empty(x, {layout.bytes}, ScalarType::Byte);
  const auto to = [](Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); };
  launch_conditional_forward(operands(x, p), operands(y, q), B, D, mode, to(row_cost),
                             to(col_cost), to(row_lse), to(col_lse),
                             static_cast<std::byte*>(scratch.mutable_data_ptr()), device.stream());
  return {row_cost, col_cost, row_lse, col_lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& x, const Tensor& y, const Optional& p, const Optional& q, const Tensor& row_cost,
    const Tensor& col_cost, const Tensor& row_lse, const Tensor& col_lse, const Tensor& g_row_cost,
    const Tensor& g_col_cost, const Tensor& g_row_lse, const Tensor& g_col_lse, int64_t cost,
    int64_t logits, double temperature, int64_t need) {
  const OnDevice device(x);
  const int64_t B = x.size(0), N = x.size(1), M = y.size(1), D = x.size(2);
  const ConditionalMode mode{static_cast<int>(cost), static_cast<int>(logits), temperature};
  ConditionalOperands rows = operands(x, p), columns = operands(y, q);
  rows.lse = data(row_lse), rows.cost = data(row_cost);
  rows.g_cost = data(g_row_cost), rows.g_lse = data(g_row_lse);
  columns.lse = data(col_lse), columns.cost = data(col_cost);
  columns.g_cost = data(g_col_cost), columns.g_lse = data(g_col_lse);

  // In the order of the bits of `need`; one that is not needed has no elements.
  const auto wanted = [&](int bit, std::vector<int64_t> sizes) {
    return empty(x, (need >> bit & 1) != 0 ? sizes : std::vector<int64_t>{0});
  };
  Tensor dx = wanted(0, {B, N, D}), dy = wanted(1, {B, M, D});
  Tensor dp = wanted(2, {B, N}), dq = wanted(3, {B, M});
  const auto to = [&](Tensor& t, int bit) {
    return (need >> bit & 1) != 0 ? static_cast<float*>(t.mutable_data_ptr()) : nullptr;
  };
  const ConditionalScratch layout(B, N, M, D, mode.cost, true);
  Tensor scratch = empty(x, {layout.bytes}, ScalarType::Byte);
  launch_conditional_backward(rows, columns, B, D, mode, to(dx, 0), to(dy, 1), to(dp, 2), to(dq, 3),
                              static_cast<std::byte*>(scratch.mutable_data_ptr()), device.stream());
  return {dx, dy, dp, dq};
}

}  // namespace
}  // namespace fedkernels

STABLE_TORCH_LIBRARY_IMPL(fedkernels, CUDA, m) {
  m.impl("conditional_transport_forward", TORCH_BOX(&fedkernels::forward));
  m.impl("conditional_transport_backward", TORCH_BOX(&fedkernels::backward));
}
