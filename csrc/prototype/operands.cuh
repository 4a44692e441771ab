// Tensors as the launches take them, for the .cu files of the family.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "common/cuda_stream.h"
#include "common/storage.cuh"

namespace fedkernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

inline int kind_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::BFloat16:
      return kBfloat16;
    case ScalarType::Half:
      return kFloat16;
    default:
      return kFloat32;  // candidates let no other type through
  }
}

template <typename T = float>
const T* data(const Optional& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

template <typename T = float>
T* to(Tensor& t) {
  return t.numel() == 0 ? nullptr : static_cast<T*>(t.mutable_data_ptr());
}

inline Tensor empty(const Tensor& like, std::vector<int64_t> sizes,
                    ScalarType type = ScalarType::Float) {
  return torch::stable::new_empty(like, sizes, type);
}

// Scratch on the device of a tensor; the allocator keeps it for the stream.
class Scratch {
 public:
  explicit Scratch(const Tensor& like) : like_(like) {}

  void* operator()(int64_t bytes) const {
    pieces_.push_back(empty(like_, {bytes}, ScalarType::Byte));
    return pieces_.back().mutable_data_ptr();
  }

 private:
  const Tensor& like_;
  mutable std::vector<Tensor> pieces_;
};

}  // namespace fedkernels
