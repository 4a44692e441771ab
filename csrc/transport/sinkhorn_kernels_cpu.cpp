// The kernels of sinkhorn_kernels.h for each instruction set, and the choice among them.
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "common/capability.h"
#include "common/element.h"
#include "common/scratch.h"
#include "transport/relaxation.h"
#include "transport/sinkhorn_problem.h"
#include "transport/transport.h"

#define FEDKERNELS_KERNELS "transport/sinkhorn_kernels.h"
#include "common/each_capability.h"

namespace fedkernels {

template <typename T>
const SinkhornKernels<T>& sinkhorn_kernels_here() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::avx512:
      return avx512::sinkhorn_kernels<T>;
    case Capability::avx2:
      return avx2::sinkhorn_kernels<T>;
    default:
      break;
  }
#endif
  return plain::sinkhorn_kernels<T>;
}

template const SinkhornKernels<float>& sinkhorn_kernels_here<float>();
template const SinkhornKernels<double>& sinkhorn_kernels_here<double>();

}  // namespace fedkernels
