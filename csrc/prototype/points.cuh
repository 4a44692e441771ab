// Points and prototypes on CUDA: what the kernels of the family share, and what is prepared of the
// prototypes once a call.
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

#include "common/centre.cuh"
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

// near, norm and inverse; a warp a prototype.
__global__ void __launch_bounds__(256)
    prototype_prepare(Prototypes call, float* near, float* norm, float* inverse) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * 8 + warp_index();
  if (k >= call.K) return;
  const float square = warp_square({call.mu, kFloat32, false}, k, call.centre, call.D);
  const float scale = call.metric == kCosine ? inverse_norm(square) : 1.0f;
  for (int d = lane_index(); d < call.D; d += warp_size) {
    const float x = call.mu[k * call.D + d] - (call.centre == nullptr ? 0.0f : call.centre[d]);
    near[k * call.D + d] = x * scale;
  }
  if (lane_index() == 0) norm[k] = square, inverse[k] = scale;
}

// What a call prepares: `take(bytes)` hands out scratch, aligned to 256.
template <typename Take>
Prototypes prepare_prototypes(const void* x, int kind, const float* mu, const uint8_t* mask,
                              int64_t mask_stride, int64_t N, int64_t K, int64_t D, int metric,
                              const Take& take, cudaStream_t stream) {
  Prototypes call{};
  call.x = stored(x, kind, D), call.mu = call.near = mu;
  call.near_aligned = stored(mu, kFloat32, D).aligned;
  call.mask = mask, call.mask_stride = mask_stride;
  call.N = N, call.K = static_cast<int>(K), call.D = static_cast<int>(D), call.metric = metric;
  call.stripe_scratch = kStripeScratch;
  if (metric == kDot || K == 0) return call;
  const auto floats = [&](int64_t count) { return static_cast<float*>(take(count * 4)); };
  if (metric <= kEuclidean && D > 0) {
    uint8_t* finite = static_cast<uint8_t*>(take(K));
    float* centre = floats(D);
    launch_centre(mu, 1, K, D, kind, finite, centre, stream);
    call.centre = centre;
  }
  float *near = floats(K * D), *norm = floats(K), *inverse = floats(K);
  FK_LAUNCH(prototype_prepare, grid_of(ceil_div(K, 8)), 256, 0, stream, call, near, norm, inverse);
  call.near = near, call.near_aligned = D % 4 == 0;
  call.norm = norm, call.inverse = inverse;
  return call;
}

}  // namespace fedkernels
