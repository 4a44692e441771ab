// The ops of distances and of softmax over prototypes on CUDA: allocates, and hands pointers to the
// launches. x is float32, bfloat16 or float16, everything else float32.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "prototype/launch.cuh"
#include "prototype/operands.cuh"

namespace fedkernels {
namespace {

Prototypes prepared(const Tensor& x, const Tensor& mu, const Optional& mask, int64_t metric,
                    const Scratch& scratch, cudaStream_t stream) {
  const int64_t stride = mask.has_value() && mask->size(0) > 1 ? mu.size(0) : 0;
  return prepare_prototypes(x.const_data_ptr(), kind_of(x), data(mu), data<uint8_t>(mask), stride,
                            x.size(0), mu.size(0), x.size(1), static_cast<int>(metric), scratch,
                            stream);
}

// Gradients in the order of the bits of `need`; one that is not needed has no elements.
struct Made {
  Tensor dx, dmu, log_prior;

  Made(const Tensor& x, const Tensor& mu, int64_t need)
      : dx(empty(x, sizes(need & 1, {x.size(0), x.size(1)}), x.scalar_type())),
        dmu(empty(mu, sizes(need & 2, {mu.size(0), mu.size(1)}))),
        log_prior(empty(mu, sizes(need & 4, {mu.size(0)}))) {}

  Gradients places() { return {to<void>(dx), to(dmu), to(log_prior)}; }

 private:
  static std::vector<int64_t> sizes(int64_t needed, std::vector<int64_t> whole) {
    return needed != 0 ? whole : std::vector<int64_t>{0};
  }
};

SoftmaxMode mode_of(const Optional& log_prior, double temperature) {
  return {data(log_prior), static_cast<float>(temperature)};
}

Tensor distance(const Tensor& x, const Tensor& mu, int64_t metric) {
  const OnDevice device(x);
  const Scratch scratch(x);
  Tensor result = empty(x, {x.size(0), mu.size(0)});
  launch_prototype_distance(prepared(x, mu, std::nullopt, metric, scratch, device.stream()),
                            to(result), device.stream());
  return result;
}

std::tuple<Tensor, Tensor> distance_backward(const Tensor& x, const Tensor& mu,
                                             const Tensor& distance, const Tensor& grad,
                                             int64_t metric, int64_t need) {
  const OnDevice device(x);
  const Scratch scratch(x);
  Made made(x, mu, need);
  launch_prototype_distance_gradient(
      prepared(x, mu, std::nullopt, metric, scratch, device.stream()), data(distance), data(grad),
      made.places(), scratch, device.stream());
  return {made.dx, made.dmu};
}

std::tuple<Tensor, Tensor> assign(const Tensor& x, const Tensor& mu, const Optional& mask,
                                  int64_t metric, int64_t k) {
  const OnDevice device(x);
  const Scratch scratch(x);
  Tensor nearest = empty(x, {x.size(0), k});
  Tensor index = empty(x, {x.size(0), k}, ScalarType::Long);
  launch_prototype_assign(prepared(x, mu, mask, metric, scratch, device.stream()),
                          static_cast<int>(k), to(nearest), to<int64_t>(index), device.stream());
  return {nearest, index};
}

std::tuple<Tensor, Tensor, Tensor> softmax(const Tensor& x, const Tensor& mu,
                                           const Optional& log_prior, const Optional& mask,
                                           int64_t metric, double temperature, bool want_prob) {
  const OnDevice device(x);
  const Scratch scratch(x);
  const int64_t N = x.size(0), K = mu.size(0);
  Tensor prob = empty(x, want_prob ? std::vector<int64_t>{N, K} : std::vector<int64_t>{0});
  Tensor lse = empty(x, {N}), mass = empty(x, {K});
  launch_prototype_softmax(prepared(x, mu, mask, metric, scratch, device.stream()),
                           mode_of(log_prior, temperature), to(prob), to(lse), to(mass), scratch,
                           device.stream());
  return {prob, lse, mass};
}

std::tuple<Tensor, Tensor, Tensor> softmax_backward(const Tensor& x, const Tensor& mu,
                                                    const Optional& log_prior, const Optional& mask,
                                                    const Tensor& lse, const Optional& g_prob,
                                                    const Optional& g_lse, const Optional& g_mass,
                                                    int64_t metric, double temperature,
                                                    int64_t need) {
  const OnDevice device(x);
  const Scratch scratch(x);
  Made made(x, mu, need);
  launch_prototype_softmax_gradient(prepared(x, mu, mask, metric, scratch, device.stream()),
                                    mode_of(log_prior, temperature),
                                    {data(lse), data(g_prob), data(g_lse), data(g_mass)},
                                    made.places(), scratch, device.stream());
  return {made.dx, made.dmu, made.log_prior};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cross_entropy(
    const Tensor& x, const Tensor& mu, const Tensor& target, const Optional& log_prior,
    const Optional& mask, const Optional& class_weight, const Optional& row_weight, int64_t metric,
    double temperature, int64_t ignore_index, int64_t reduction, int64_t need) {
  const OnDevice device(x);
  const Scratch scratch(x);
  Made made(x, mu, need);
  const bool hard = target.dim() == 1;
  const Targets targets{hard ? data<int64_t>(target) : nullptr,
                        hard ? nullptr : data(target),
                        data(class_weight),
                        data(row_weight),
                        ignore_index,
                        static_cast<int>(reduction)};
  Tensor loss = empty(
      x, reduction == kNoReduction ? std::vector<int64_t>{x.size(0)} : std::vector<int64_t>{});
  Tensor bad = empty(x, {}, ScalarType::Long);
  launch_prototype_cross_entropy(prepared(x, mu, mask, metric, scratch, device.stream()),
                                 mode_of(log_prior, temperature), targets, to(loss),
                                 to<int64_t>(bad), made.places(), scratch, device.stream());
  return {loss, made.dx, made.dmu, made.log_prior, bad};
}

}  // namespace
}  // namespace fedkernels

STABLE_TORCH_LIBRARY_IMPL(fedkernels, CUDA, m) {
  m.impl("prototype_distance", TORCH_BOX(&fedkernels::distance));
  m.impl("prototype_distance_backward", TORCH_BOX(&fedkernels::distance_backward));
  m.impl("prototype_assign", TORCH_BOX(&fedkernels::assign));
  m.impl("prototype_softmax", TORCH_BOX(&fedkernels::softmax));
  m.impl("prototype_softmax_backward", TORCH_BOX(&fedkernels::softmax_backward));
  m.impl("prototype_cross_entropy", TORCH_BOX(&fedkernels::cross_entropy));
}
