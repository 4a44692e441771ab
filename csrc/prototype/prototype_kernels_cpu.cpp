// The kernels of prototype_kernels.h for each instruction set, and the choice among them.
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
#include <vector>

#include "common/capability.h"
#include "common/element.h"
#include "common/scratch.h"
#include "prototype/prototype.h"

#define FEDKERNELS_KERNELS "prototype/prototype_kernels.h"
#include "common/each_capability.h"

namespace fedkernels {

template <typename T>
const PrototypeKernels<T>& prototype_kernels_here() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::avx512:
      return avx512::prototype::kernels<T>;
    case Capability::avx2:
      return avx2::prototype::kernels<T>;
    default:
      break;
  }
#endif
  return plain::prototype::kernels<T>;
}

template const PrototypeKernels<float>& prototype_kernels_here<float>();
template const PrototypeKernels<double>& prototype_kernels_here<double>();

}  // namespace fedkernels
