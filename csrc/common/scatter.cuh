// Many reductions over a warp at once, each result in another lane.
#pragma once

#include "common/cuda.h"

namespace fedkernels {

// Reduces x[0 .. count) over aligned groups of `lanes` lanes (powers of two, count <= lanes) and
// returns the result of x[lane / (lanes / count)], lane counted in its group: count - 1 shuffles
// and one for each halving that is left, where single reductions take log2(lanes) each. x is used
// up. The tree of sums is fixed; lanes that return the same result hold the same bits.
template <int count, int lanes, typename T, int size, typename Op>
__device__ __forceinline__ T warp_scatter(T (&x)[size], Op op) {
  static_assert(count >= 1 && count <= size && count <= lanes && lanes <= warp_size);
  if constexpr (lanes == 1) {
    return x[0];
  } else {
    constexpr int step = lanes / 2;
    if constexpr (count > 1) {
      const bool upper = (threadIdx.x & step) != 0;
#pragma unroll
      for (int i = 0; i < count / 2; ++i) {
        const T give = upper ? x[i] : x[i + count / 2];
        const T keep = upper ? x[i + count / 2] : x[i];
        x[i] = op(keep, __shfl_xor_sync(full_warp, give, step));
      }
      return warp_scatter<count / 2, step>(x, op);
    } else {
      x[0] = op(x[0], __shfl_xor_sync(full_warp, x[0], step));
      return warp_scatter<1, step>(x, op);
    }
  }
}

}  // namespace fedkernels
