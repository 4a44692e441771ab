// The kernels of sound.cuh under nvcc, and one of them as an op: what the rehearsal of setup.py's
// CUDA branch builds beside the kernels of the package. Not part of the package.
#include "sound.cuh"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "common/cuda_stream.h"

namespace fedkernels {
namespace {

using torch::stable::Tensor;

// The other kernels, so that nvcc compiles them for each architecture.
[[maybe_unused]] void launch_all(const float* x, float* y, cudaStream_t stream) {
  FK_LAUNCH((reduce_rows<double, 32>), 1, 32, 0, stream, nullptr, nullptr, nullptr, int64_t{8});
  FK_LAUNCH(exchange, 1, 32, 0, stream, nullptr);
  FK_LAUNCH(count_threads, dim3(3, 2, 2), 96, 0, stream, nullptr, nullptr);
  FK_LAUNCH(product_3xtf32, 1, 32, 0, stream, x, x, y, 64);
  FK_LAUNCH(product_bf16, 1, 32, 0, stream, nullptr, nullptr, y, 64);
  FK_LAUNCH((copy_some<4>), 1, 32, 0, stream, x, y, 20);
  FK_LAUNCH((copy_some<8>), 1, 32, 0, stream, x, y, 20);
  FK_LAUNCH(powers, 1, 32, 0, stream, x, y, y);
  FK_LAUNCH(difference_of_squares, 1, 32, 0, stream, x, x, y);
}

Tensor row_sum(const Tensor& x) {
  const OnDevice device(x);
  Tensor y = torch::stable::new_empty(x, {x.size(0)});
  Tensor z = torch::stable::new_empty(x, {x.size(0)});
  FK_LAUNCH((reduce_rows<float, 128>), grid_of(x.size(0)), 128, 0, device.stream(),
            static_cast<const float*>(x.data_ptr()), static_cast<float*>(y.data_ptr()),
            static_cast<float*>(z.data_ptr()), x.size(1));
  return y;
}

STABLE_TORCH_LIBRARY(fedkernels_rehearsal, m) { m.def("row_sum(Tensor x) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(fedkernels_rehearsal, CUDA, m) { m.impl("row_sum", TORCH_BOX(&row_sum)); }

}  // namespace
}  // namespace fedkernels
