// The kernels of points_kernels.h for each instruction set, and the choice among them.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "common/capability.h"
#include "common/element.h"
#include "transport/points.h"

#define FEDKERNELS_KERNELS "transport/points_kernels.h"
#include "common/each_capability.h"

namespace fedkernels {

template <typename T>
const PointsKernels<T>& points_kernels_here() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::avx512:
      return avx512::points_kernels<T>;
    case Capability::avx2:
      return avx2::points_kernels<T>;
    default:
      break;
  }
#endif
  return plain::points_kernels<T>;
}

template const PointsKernels<float>& points_kernels_here<float>();
template const PointsKernels<double>& points_kernels_here<double>();

}  // namespace fedkernels
