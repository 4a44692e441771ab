// The kernels of conditional_kernels.h for each instruction set, and the choice among them.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "common/capability.h"
#include "common/element.h"
#include "common/scratch.h"
#include "transport/conditional.h"

#define FEDKERNELS_KERNELS "transport/conditional_kernels.h"
#include "common/each_capability.h"

namespace fedkernels {

template <typename T>
const ConditionalKernels<T>& conditional_kernels_here() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::avx512:
      return avx512::conditional::kernels<T>;
    case Capability::avx2:
      return avx2::conditional::kernels<T>;
    default:
      break;
  }
#endif
  return plain::conditional::kernels<T>;
}

template const ConditionalKernels<float>& conditional_kernels_here<float>();
template const ConditionalKernels<double>& conditional_kernels_here<double>();

}  // namespace fedkernels
