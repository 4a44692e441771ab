// The Sinkhorn ops on CUDA, float32: allocates, and hands pointers and strides to the launches.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <optional>
#include <tuple>
#include <vector>

#include "common/cuda_stream.h"
#include "transport/sinkhorn_launch.cuh"
#include "transport/sinkhorn_plan.cuh"

namespace fedkernels {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

Tensor empty(const Tensor& like, std::vector<int64_t> sizes, ScalarType type = ScalarType::Float) {
  return torch::stable::new_empty(like, sizes, type);
}

template <typename T>
const T* data(const Optional& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

// Elements from one problem to the next; 0 where a leading 1 is shared by all.
int64_t stride_of(const Optional& t) {
  if (!t.has_value() || t->size(0) == 1) return 0;
  return t->numel() / t->size(0);
}

template <typename T>
T* writable(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

using Solution = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                            Tensor, Tensor>;

Solution forward(const Tensor& cost, const Optional& a, const Optional& b, const Tensor& eps,
                 const Optional& sizes, const Optional& g0, int64_t batch, double rho_a,
                 double rho_b, int64_t max_iter, double tol, bool log, bool sor) {
  const OnDevice device(cost);
  const int64_t n = cost.size(1), m = cost.size(2);
  Tensor value = empty(cost, {batch}), linear = empty(cost, {batch}), error = empty(cost, {batch});
  Tensor f = empty(cost, {batch, n}), u = empty(cost, {batch, n}), r = empty(cost, {batch, n});
  Tensor g = empty(cost, {batch, m}), v = empty(cost, {batch, m}), c = empty(cost, {batch, m});
  Tensor n_iter = empty(cost, {batch}, ScalarType::Int);
  Tensor status = empty(cost, {batch}, ScalarType::Byte);
  Tensor scratch = empty(cost, {SinkhornScratch(batch, n, m).bytes}, ScalarType::Byte);

  SinkhornCall call{};
  call.cost = data<float>(cost), call.cost_stride = stride_of(cost);
  call.a = data<float>(a), call.a_stride = stride_of(a);
  call.b = data<float>(b), call.b_stride = stride_of(b);
  call.eps = data<double>(eps), call.eps_stride = stride_of(eps);
  call.sizes = data<int64_t>(sizes);
  call.g0 = data<float>(g0), call.g0_stride = stride_of(g0);
  call.batch = batch, call.n = static_cast<int>(n), call.m = static_cast<int>(m);
  call.rho_a = rho_a, call.rho_b = rho_b;
  call.max_iter = static_cast<int>(max_iter), call.tol = static_cast<float>(tol);
  call.log = log, call.sor = sor;
  call.value = writable<float>(value), call.linear = writable<float>(linear);
  call.f = writable<float>(f), call.g = writable<float>(g);
  call.u = writable<float>(u), call.v = writable<float>(v);
  call.r = writable<float>(r), call.c = writable<float>(c);
  call.n_iter = writable<int32_t>(n_iter), call.error = writable<float>(error);
  call.status = writable<uint8_t>(status);
  launch_sinkhorn(call, writable<std::byte>(scratch), device.stream());
  return {value, linear, f, g, u, v, r, c, n_iter, error, status};
}

PlanCall plan_call(const Tensor& cost, const Tensor& eps, const Optional& sizes, const Tensor& u,
                   const Tensor& v) {
  PlanCall call{};
  call.cost = data<float>(cost), call.cost_stride = stride_of(cost);
  call.eps = data<double>(eps), call.eps_stride = stride_of(eps);
  call.sizes = data<int64_t>(sizes);
  call.u = data<float>(u), call.v = data<float>(v);
  call.batch = u.size(0);
  call.n = static_cast<int>(u.size(1)), call.m = static_cast<int>(v.size(1));
  return call;
}

Tensor plan(const Tensor& cost, const Tensor& eps, const Optional& sizes, const Tensor& u,
            const Tensor& v, const Optional& scale) {
  const OnDevice device(cost);
  Tensor result = empty(u, {u.size(0), u.size(1), v.size(1)});
  launch_plan(plan_call(cost, eps, sizes, u, v), data<float>(scale), writable<float>(result),
              device.stream());
  return result;
}

Tensor apply(const Tensor& cost, const Tensor& eps, const Optional& sizes, const Tensor& u,
             const Tensor& v, const Tensor& V, bool transpose) {
  const OnDevice device(cost);
  Tensor result = empty(u, {u.size(0), transpose ? v.size(1) : u.size(1), V.size(2)});
  launch_plan_product(plan_call(cost, eps, sizes, u, v), data<float>(V), writable<float>(result),
                      static_cast<int>(V.size(2)), transpose, device.stream());
  return result;
}

}  // namespace
}  // namespace fedkernels

STABLE_TORCH_LIBRARY_IMPL(fedkernels, CUDA, m) {
  m.impl("sinkhorn_forward", TORCH_BOX(&fedkernels::forward));
  m.impl("sinkhorn_plan", TORCH_BOX(&fedkernels::plan));
  m.impl("sinkhorn_apply", TORCH_BOX(&fedkernels::apply));
}
