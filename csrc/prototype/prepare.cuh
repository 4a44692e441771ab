// What is prepared of the prototypes, once a call: their centre, what is near it, norms.
#pragma once

#include "common/centre.cuh"
#include "prototype/points.cuh"

namespace fedkernels {

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
