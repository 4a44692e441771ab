// The device and the stream that an op runs on, through LibTorch's stable ABI. For .cu files.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

namespace fedkernels {

// Makes the tensor's device the current one for as long as it lives.
//
//   const OnDevice device(cost);
//   FK_LAUNCH(kernel, grid, block, 0, device.stream(), ...);
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // PyTorch's current stream on that device.
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace fedkernels
