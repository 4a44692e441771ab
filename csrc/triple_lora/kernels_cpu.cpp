// The kernels of kernels.h for each instruction set, and the choice among them.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>

#include "common/capability.h"
#include "common/element.h"
#include "common/scratch.h"
#include "triple_lora/triple_lora.h"

#define FEDKERNELS_KERNELS "triple_lora/kernels.h"
#include "common/each_capability.h"

namespace fedkernels {

template <typename T>
const Kernels<T>& kernels_here() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::avx512:
      return avx512::kernels<T>;
    case Capability::avx2:
      return avx2::kernels<T>;
    default:
      break;
  }
#endif
  return plain::kernels<T>;
}

template const Kernels<float>& kernels_here<float>();
template const Kernels<double>& kernels_here<double>();

}  // namespace fedkernels
