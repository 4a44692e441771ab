// CPU ops of the middle selection: index of the largest scores, gather, scatter. One call serves
// all matrices of a model; threads share them out. Kernel: select.h.
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/capability.h"
#include "common/element.h"
#include "common/scratch.h"

#define FEDKERNELS_KERNELS "triple_lora/select.h"
#include "common/each_capability.h"

namespace fedkernels {
namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

auto select_here() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::avx512:
      return avx512::select;
    case Capability::avx2:
      return avx2::select;
    default:
      break;
  }
#endif
  return plain::select;
}

// Entries of `previous` that stay keep their slot; newcomers fill the freed slots in order.
void keep_slots(const int64_t* previous, int64_t n, int64_t k, std::vector<uint8_t>& chosen,
                int64_t* index) {
  std::fill(chosen.begin(), chosen.end(), 0);
  for (int64_t i = 0; i < k; ++i) chosen[index[i]] = 1;
  std::vector<int64_t> freed;
  for (int64_t i = 0; i < k; ++i) {
    uint8_t& stays = chosen[previous[i]];
    index[i] = previous[i];
    if (!stays) freed.push_back(i);
    stays = 0;
  }
  int64_t next = 0;
  for (const int64_t slot : freed) {
    while (!chosen[next]) ++next;
    index[slot] = next++;
  }
}

// Whether all k entries lie in a matrix of n. check.py looks in eager mode; compiled code and
// functorch reach this check alone. No throw from a thread of the pool: the caller throws.
bool within(const int64_t* index, int64_t k, int64_t n) {
  bool good = true;
  for (int64_t i = 0; i < k; ++i) good &= static_cast<uint64_t>(index[i]) < static_cast<uint64_t>(n);
  return good;
}

void refuse(const char* name, int64_t n) {
  throw std::invalid_argument(std::string(name) + " must lie in [0, " + std::to_string(n) + ")");
}

Tensor select_index(const Tensor& scores, int64_t rank, const Optional& previous) {
  std::vector<int64_t> shape(scores.sizes().begin(), scores.sizes().end());
  const int64_t size = shape.back(), n = size * size, k = rank * rank;
  shape.resize(shape.size() - 2);
  shape.push_back(k);
  Tensor index = torch::stable::new_empty(scores, shape, torch::headeronly::ScalarType::Long);
  const int64_t matrices = n > 0 ? scores.numel() / n : 0;
  if (matrices == 0) return index;
  const Tensor held = previous ? torch::stable::contiguous(*previous) : index;
  const int64_t* before = static_cast<const int64_t*>(held.const_data_ptr());
  int64_t* out = static_cast<int64_t*>(index.mutable_data_ptr());
  const auto select = select_here();
  const Element element = element_of(scores);
  const void* data = scores.const_data_ptr();
  const int64_t grain = std::max<int64_t>(1, 16384 / n);
  std::atomic<bool> good{true};
  torch::stable::parallel_for(0, matrices, grain, [&](int64_t begin, int64_t end) {
    select(element, data, n, k, begin, end, out);
    if (!previous) return;
    std::vector<uint8_t> chosen(n);
    for (int64_t m = begin; m < end; ++m) {
      if (within(before + m * k, k, n)) {
        keep_slots(before + m * k, n, k, chosen, out + m * k);
      } else {
        good = false;
      }
    }
  });
  if (!good) refuse("previous", n);
  return index;
}

Tensor gather_middle(const Tensor& middle, const Tensor& index_, int64_t rank) {
  const Tensor index = torch::stable::contiguous(index_);
  std::vector<int64_t> shape(index.sizes().begin(), index.sizes().end());
  const int64_t k = shape.back(), size = middle.size(middle.dim() - 1), n = size * size;
  shape.back() = rank;
  shape.push_back(rank);
  Tensor T = torch::stable::new_empty(middle, shape);
  const int64_t matrices = k > 0 ? index.numel() / k : 0;
  const int64_t* at = static_cast<const int64_t*>(index.const_data_ptr());
  std::atomic<bool> good{true};
  with_element(element_of(middle), [&](auto kind) {
    using S = decltype(kind);
    const S* in = static_cast<const S*>(middle.const_data_ptr());
    S* out = static_cast<S*>(T.mutable_data_ptr());
    torch::stable::parallel_for(
        0, matrices, std::max<int64_t>(1, 32768 / std::max<int64_t>(k, 1)),
        [&](int64_t begin, int64_t end) {
          for (int64_t m = begin; m < end; ++m) {
            if (!within(at + m * k, k, n)) {
              good = false;
              continue;
            }
            for (int64_t i = 0; i < k; ++i) out[m * k + i] = in[m * n + at[m * k + i]];
          }
        });
  });
  if (!good) refuse("index", n);
  return T;
}

// dmiddle[index] += grad and, given the middle, dscores[index] += grad * middle[index].
std::tuple<Tensor, Tensor> scatter_middle(const Tensor& grad, const Optional& middle,
                                          const Tensor& index_, int64_t size) {
  const Tensor index = torch::stable::contiguous(index_);
  std::vector<int64_t> shape(index.sizes().begin(), index.sizes().end());
  const int64_t k = shape.back(), n = size * size;
  shape.back() = size;
  shape.push_back(size);
  Tensor dmiddle = torch::stable::new_zeros(grad, shape);
  Tensor dscores = middle ? torch::stable::new_zeros(grad, shape)
                          : torch::stable::new_empty(grad, std::vector<int64_t>{0});
  const int64_t matrices = k > 0 ? index.numel() / k : 0;
  const int64_t* at = static_cast<const int64_t*>(index.const_data_ptr());
  std::atomic<bool> good{true};
  with_element(element_of(grad), [&](auto kind) {
    using S = decltype(kind);
    using T = std::conditional_t<std::is_same_v<S, double>, double, float>;
    const S* in = static_cast<const S*>(grad.const_data_ptr());
    const S* values = middle ? static_cast<const S*>(middle->const_data_ptr()) : nullptr;
    S* to_middle = static_cast<S*>(dmiddle.mutable_data_ptr());
    S* to_scores = middle ? static_cast<S*>(dscores.mutable_data_ptr()) : nullptr;
    const auto add = [](S* to, T value) { narrow(static_cast<T>(widen(*to) + value), to); };
    torch::stable::parallel_for(
        0, matrices, std::max<int64_t>(1, 32768 / std::max<int64_t>(k, 1)),
        [&](int64_t begin, int64_t end) {
          for (int64_t m = begin; m < end; ++m) {
            if (!within(at + m * k, k, n)) {
              good = false;
              continue;
            }
            for (int64_t i = 0; i < k; ++i) {
              const int64_t entry = m * n + at[m * k + i];
              const T value = widen(in[m * k + i]);
              add(to_middle + entry, value);
              if (to_scores) add(to_scores + entry, value * widen(values[entry]));
            }
          }
        });
  });
  if (!good) refuse("index", n);
  return {dmiddle, dscores};
}

}  // namespace
}  // namespace fedkernels

STABLE_TORCH_LIBRARY_IMPL(fedkernels, CPU, m) {
  m.impl("select_index", TORCH_BOX(&fedkernels::select_index));
  m.impl("gather_middle", TORCH_BOX(&fedkernels::gather_middle));
  m.impl("scatter_middle", TORCH_BOX(&fedkernels::scatter_middle));
}
