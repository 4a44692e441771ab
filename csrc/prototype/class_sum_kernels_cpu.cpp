// The kernels of class_sum_kernels.h for each instruction set, and the choice among them.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/capability.h"
#include "common/element.h"
#include "prototype/class_sum.h"

#define FEDKERNELS_KERNELS "prototype/class_sum_kernels.h"
#include "common/each_capability.h"

namespace fedkernels {

template <typename T>
const ClassSumKernels<T>& class_sum_kernels_here() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::avx512:
      return avx512::class_sum::kernels<T>;
    case Capability::avx2:
      return avx2::class_sum::kernels<T>;
    default:
      break;
  }
#endif
  return plain::class_sum::kernels<T>;
}

template const ClassSumKernels<float>& class_sum_kernels_here<float>();
template const ClassSumKernels<double>& class_sum_kernels_here<double>();

}  // namespace fedkernels
