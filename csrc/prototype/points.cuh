// Points and prototypes on CUDA: what the kernels of the family share.
//
//   squared distances   x' = x - c, near = mu - c with c the mean of the finite prototypes
//   cosine              near = mu / |mu|
//   dot                 near = mu
//
// x has any storage type, everything else is float32.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "common/cuda.h"
#include "common/storage.cuh"

namespace fedkernels {

enum : int { kSquared, kEuclidean, kCosine, kDot };

// Bytes that sums over rows, kept apart for each stripe of them, may take.
constexpr int64_t kStripeScratch = int64_t{64} << 20;

struct Prototypes {
  Stored x;                // (N, D)
  const float *mu, *near;  // (K, D) as given, centred or normalised
  bool near_aligned;
  const float* centre;          // (D,) or null
  const float *norm, *inverse;  // (K,): |near|^2 of squared distances, 1 / |mu| of cosines
  const uint8_t* mask;          // or null
  int64_t mask_stride;          // 0 or K
  int64_t N;
  int K, D, metric;
  int64_t stripe_scratch;

  __device__ __forceinline__ Stored right() const { return {near, kFloat32, near_aligned}; }
  __device__ __forceinline__ bool squares() const { return metric <= kEuclidean; }
  __device__ __forceinline__ bool allowed(int64_t row, int column) const {
    return mask == nullptr || mask[row * mask_stride + column] != 0;
  }
};

// |x - centre|^2 of a point, by a warp: in one order, so that equal vectors have equal norms.
__device__ __forceinline__ float warp_square(const Stored& points, int64_t at, const float* centre,
                                             int D) {
  float sum = 0.0f;
  for (int d = lane_index(); d < D; d += warp_size) {
    const float x = points[at * D + d] - (centre == nullptr ? 0.0f : centre[d]);
    sum = __fmaf_rn(x, x, sum);
  }
  return warp_reduce(sum, Sum());
}

// 1 / |x|; a vector whose square is no normal number counts as 0.
__device__ __forceinline__ float inverse_norm(float square) {
  return square < FLT_MIN ? 0.0f : 1.0f / sqrtf(square);
}

}  // namespace fedkernels
