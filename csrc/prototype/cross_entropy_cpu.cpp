// CPU op of the cross-entropy over prototypes: what each row weighs, then losses and, where wanted,
// the gradients of the reduced loss in one pass over x (prototype_gradient.h).
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "prototype/prototype_call.h"

namespace fedkernels {
namespace {

enum Reduction { none, sum, mean };

// Fixed order, four chains: the same bits for every number of threads.
template <typename T>
double total_of(const T* values, int64_t count) {
  double sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int c = 0; c < 4; ++c) sums[c] += values[i + c];
  }
  for (; i < count; ++i) sums[0] += values[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// value_i = sum_j w_j t_ij, and whether the row takes part; value_i is 0 where it does not:
// ignored, nothing may be used, or the label is none. Returns the first row whose label is none, -1
// if all have one.
template <typename T>
int64_t values_of_rows(const PrototypeCall<T>& call, const Tensor& target, const T* class_weight,
                       int64_t ignore_index, T* value, uint8_t* part) {
  const Prototypes<T>& f = call.f;
  const bool soft = target.dim() == 2;
  const int64_t* label = soft ? nullptr : values<int64_t>(target);
  const T* share = soft ? values<T>(target) : nullptr;
  bool some = false, all = true;
  for (int64_t j = 0; j < f.K; ++j) {
    const bool usable = f.offsets[j] != -std::numeric_limits<T>::infinity();
    some |= usable, all &= usable;
  }
  const auto may_use_one = [&](int64_t i) {
    if (f.mask == nullptr || f.mask_row == 0) return some;
    for (int64_t j = 0; j < f.K; ++j) {
      if (f.mask[i * f.mask_row + j] &&
          (all || f.offsets[j] != -std::numeric_limits<T>::infinity())) {
        return true;
      }
    }
    return false;
  };
  constexpr int64_t chunk = 4096;
  std::vector<int64_t> bad((f.N + chunk - 1) / chunk, -1);
  torch::stable::parallel_for(0, bad.size(), soft ? 1 : 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * chunk; i < std::min(end * chunk, f.N); ++i) {
      const bool none = !soft && label[i] != ignore_index && (label[i] < 0 || label[i] >= f.K);
      if (none && bad[i / chunk] < 0) bad[i / chunk] = i;
      if (none || (!soft && label[i] == ignore_index) || !may_use_one(i)) {
        value[i] = 0, part[i] = 0;
        continue;
      }
      part[i] = 1;
      if (!soft) {
        value[i] = class_weight == nullptr ? T{1} : class_weight[label[i]];
      } else {
        double total = 0;
        for (int64_t j = 0; j < f.K; ++j) {
          const T t = share[i * f.K + j];
          total += class_weight == nullptr ? t : t * class_weight[j];
        }
        value[i] = static_cast<T>(total);
      }
    }
  });
  for (const int64_t i : bad) {
    if (i >= 0) return i;
  }
  return -1;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cross_entropy_as(
    const Tensor& x, const Tensor& mu, const Tensor& target, const Optional& log_prior,
    const Optional& mask, const Optional& class_weight, const Optional& row_weight, int64_t metric,
    double temperature, int64_t ignore_index, int64_t reduction, int64_t need) {
  PrototypeCall<T> call(x, mu, metric, log_prior, mask, temperature);
  const int64_t N = call.f.N;
  const Scratch<uint8_t> part(N);
  const Scratch<T> value(N), own_loss(reduction == none ? 0 : N);
  Tensor loss = empty(mu, reduction == none ? std::vector<int64_t>{N} : std::vector<int64_t>{});
  Tensor bad =
      torch::stable::new_empty(mu, std::vector<int64_t>{}, torch::headeronly::ScalarType::Long);
  *values<int64_t>(bad) =
      values_of_rows(call, target, values<T>(class_weight), ignore_index, value.get(), part.get());
  const double total = reduction == mean ? total_of(value.get(), N) : 1;

  PrototypeRows<T> io{};
  io.loss = reduction == none ? values<T>(loss) : own_loss.get();
  io.label = target.dim() == 2 ? nullptr : values<int64_t>(target);
  io.soft = target.dim() == 2 ? values<T>(target) : nullptr;
  io.class_weight = values<T>(class_weight);
  io.row_weight = values<T>(row_weight);
  io.value = value.get();
  io.part = part.get();
  io.share = static_cast<T>(1 / total);
  const auto [dx, dmu, dlog_prior] =
      gradients_of(call, x, mu, need, io,
                   [&](int64_t begin, int64_t end, const PrototypeSums<T>& own, T* scratch) {
                     call.kernels.cross_entropy(call.f, io, begin, end, own, scratch);
                   });
  const int64_t first_bad = *values<int64_t>(bad);
  for (int64_t i = first_bad; first_bad >= 0 && i < N; ++i) {
    const int64_t label = io.label[i];
    if (label != ignore_index && (label < 0 || label >= call.f.K)) {
      io.loss[i] = std::numeric_limits<T>::quiet_NaN();
    }
  }
  if (reduction != none) {
    *values<T>(loss) = static_cast<T>(total_of(io.loss, N) / total);
  }
  return {loss, dx, dmu, dlog_prior, bad};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> prototype_cross_entropy(
    const Tensor& x, const Tensor& mu, const Tensor& target, const Optional& log_prior,
    const Optional& mask, const Optional& class_weight, const Optional& row_weight, int64_t metric,
    double temperature, int64_t ignore_index, int64_t reduction, int64_t need) {
  const auto run =
      element_of(x) == Element::f64 ? cross_entropy_as<double> : cross_entropy_as<float>;
  return run(x, mu, target, log_prior, mask, class_weight, row_weight, metric, temperature,
             ignore_index, reduction, need);
}

}  // namespace
}  // namespace fedkernels

STABLE_TORCH_LIBRARY_IMPL(fedkernels, CPU, m) {
  m.impl("prototype_cross_entropy", TORCH_BOX(&fedkernels::prototype_cross_entropy));
}
