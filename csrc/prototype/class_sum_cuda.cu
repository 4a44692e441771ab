// class_sum on CUDA: allocates, and hands pointers to the launches.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "prototype/class_sum.cuh"
#include "prototype/operands.cuh"

namespace fedkernels {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> class_sum(const Tensor& x, const Tensor& labels,
                                                     const Optional& weight, int64_t n_classes) {
  const OnDevice device(x);
  const Scratch scratch(x);
  const bool hard = labels.dim() == 1;
  ClassSum call{};
  call.x = stored(x.const_data_ptr(), kind_of(x), x.size(1));
  call.label = hard ? data<int64_t>(labels) : nullptr;
  call.share = hard ? nullptr : data(labels);
  call.weight = data(weight);
  call.N = x.size(0), call.K = static_cast<int>(n_classes), call.D = static_cast<int>(x.size(1));
  Tensor sum = empty(x, {n_classes, x.size(1)}), total = empty(x, {n_classes});
  Tensor count = empty(x, {n_classes}, hard ? ScalarType::Long : ScalarType::Float);
  Tensor bad = empty(x, {2}, ScalarType::Long);
  launch_class_sum(call, to(sum), to(total), hard ? to<int64_t>(count) : nullptr,
                   hard ? nullptr : to(count), to<int64_t>(bad), scratch, device.stream());
  return {sum, total, count, bad};
}

}  // namespace
}  // namespace fedkernels

STABLE_TORCH_LIBRARY_IMPL(fedkernels, CUDA, m) {
  m.impl("class_sum", TORCH_BOX(&fedkernels::class_sum));
}
