// CPU ops of prototypes: distance, the nearest, softmax. Mathematics and order of work:
// prototype.h; memory and threads: prototype_call.h.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "prototype/prototype_call.h"

namespace fedkernels {
namespace {

template <typename T>
Tensor distance_as(const Tensor& x, const Tensor& mu, int64_t metric) {
  Tensor result = empty(mu, {x.size(0), mu.size(0)});
  const PrototypeCall<T> call(x, mu, metric, std::nullopt, std::nullopt, 1);
  PrototypeRows<T> io{};
  io.distance = values<T>(result);
  call.over_blocks([&](int64_t begin, int64_t end, T* scratch) {
    call.kernels.distance(call.f, io, begin, end, scratch);
  });
  return result;
}

Tensor prototype_distance(const Tensor& x, const Tensor& mu, int64_t metric) {
  const auto run = element_of(x) == Element::f64 ? distance_as<double> : distance_as<float>;
  return run(x, mu, metric);
}

template <typename T>
std::tuple<Tensor, Tensor> distance_backward_as(const Tensor& x, const Tensor& mu,
                                                const Tensor& distance, const Tensor& grad,
                                                int64_t metric, int64_t need) {
  PrototypeCall<T> call(x, mu, metric, std::nullopt, std::nullopt, 1);
  PrototypeRows<T> io{};
  io.distance = const_cast<T*>(values<T>(distance));
  io.given = values<T>(grad);
  const auto [dx, dmu, _] =
      gradients_of(call, x, mu, need & (need_x | need_mu), io,
                   [&](int64_t begin, int64_t end, const PrototypeSums<T>& own, T* scratch) {
                     call.kernels.distance_backward(call.f, io, begin, end, own, scratch);
                   });
  return {dx, dmu};
}

std::tuple<Tensor, Tensor> prototype_distance_backward(const Tensor& x, const Tensor& mu,
                                                       const Tensor& distance, const Tensor& grad,
                                                       int64_t metric, int64_t need) {
  const auto run =
      element_of(x) == Element::f64 ? distance_backward_as<double> : distance_backward_as<float>;
  return run(x, mu, distance, grad, metric, need);
}

template <typename T>
std::tuple<Tensor, Tensor> assign_as(const Tensor& x, const Tensor& mu, const Optional& mask,
                                     int64_t metric, int64_t k) {
  Tensor distance = empty(mu, {x.size(0), k});
  Tensor index = torch::stable::new_empty(mu, std::vector<int64_t>{x.size(0), k},
                                          torch::headeronly::ScalarType::Long);
  const PrototypeCall<T> call(x, mu, metric, std::nullopt, mask, 1);
  PrototypeRows<T> io{};
  io.distance = values<T>(distance);
  io.index = values<int64_t>(index);
  io.k = k;
  call.over_blocks([&](int64_t begin, int64_t end, T* scratch) {
    call.kernels.assign(call.f, io, begin, end, scratch);
  });
  return {distance, index};
}

std::tuple<Tensor, Tensor> prototype_assign(const Tensor& x, const Tensor& mu, const Optional& mask,
                                            int64_t metric, int64_t k) {
  const auto run = element_of(x) == Element::f64 ? assign_as<double> : assign_as<float>;
  return run(x, mu, mask, metric, k);
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> softmax_as(const Tensor& x, const Tensor& mu,
                                              const Optional& log_prior, const Optional& mask,
                                              int64_t metric, double temperature, bool want_prob) {
  const int64_t N = x.size(0), K = mu.size(0);
  Tensor prob = empty(mu, want_prob ? std::vector<int64_t>{N, K} : std::vector<int64_t>{0});
  Tensor lse = empty(mu, {N}), mass = empty(mu, {K});
  PrototypeCall<T> call(x, mu, metric, log_prior, mask, temperature);
  PrototypeRows<T> io{};
  io.prob = want_prob ? values<T>(prob) : nullptr;
  io.lse = values<T>(lse);
  const PrototypeSums<T> sums = call.over_stripes(
      false, [&](int64_t begin, int64_t end, const PrototypeSums<T>& own, T* scratch) {
        call.kernels.softmax(call.f, io, begin, end, own, scratch);
      });
  std::copy_n(sums.logit, K, values<T>(mass));
  return {prob, lse, mass};
}

std::tuple<Tensor, Tensor, Tensor> prototype_softmax(const Tensor& x, const Tensor& mu,
                                                     const Optional& log_prior,
                                                     const Optional& mask, int64_t metric,
                                                     double temperature, bool want_prob) {
  const auto run = element_of(x) == Element::f64 ? softmax_as<double> : softmax_as<float>;
  return run(x, mu, log_prior, mask, metric, temperature, want_prob);
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> softmax_backward_as(const Tensor& x, const Tensor& mu,
                                                       const Optional& log_prior,
                                                       const Optional& mask, const Optional& g_prob,
                                                       const Optional& g_lse,
                                                       const Optional& g_mass, int64_t metric,
                                                       double temperature, int64_t need) {
  PrototypeCall<T> call(x, mu, metric, log_prior, mask, temperature);
  PrototypeRows<T> io{};
  io.g_prob = values<T>(g_prob), io.g_lse = values<T>(g_lse), io.g_mass = values<T>(g_mass);
  return gradients_of(call, x, mu, need, io,
                      [&](int64_t begin, int64_t end, const PrototypeSums<T>& own, T* scratch) {
                        call.kernels.softmax_backward(call.f, io, begin, end, own, scratch);
                      });
}

// lse is for kernels that do not have all of a row's logits at once.
std::tuple<Tensor, Tensor, Tensor> prototype_softmax_backward(
    const Tensor& x, const Tensor& mu, const Optional& log_prior, const Optional& mask,
    const Tensor&, const Optional& g_prob, const Optional& g_lse, const Optional& g_mass,
    int64_t metric, double temperature, int64_t need) {
  const auto run =
      element_of(x) == Element::f64 ? softmax_backward_as<double> : softmax_backward_as<float>;
  return run(x, mu, log_prior, mask, g_prob, g_lse, g_mass, metric, temperature, need);
}

}  // namespace
}  // namespace fedkernels

STABLE_TORCH_LIBRARY_IMPL(fedkernels, CPU, m) {
  m.impl("prototype_distance", TORCH_BOX(&fedkernels::prototype_distance));
  m.impl("prototype_distance_backward", TORCH_BOX(&fedkernels::prototype_distance_backward));
  m.impl("prototype_assign", TORCH_BOX(&fedkernels::prototype_assign));
  m.impl("prototype_softmax", TORCH_BOX(&fedkernels::prototype_softmax));
  m.impl("prototype_softmax_backward", TORCH_BOX(&fedkernels::prototype_softmax_backward));
}
