// The mean of the finite points of each of several sets: what points are centred by before their
// squared distances are expanded.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "common/cuda.h"
#include "common/storage.cuh"

namespace fedkernels {

// Whether all of a point is finite; a warp a point.
template <typename T>
__global__ void __launch_bounds__(256)
    finite_points(const T* points, int64_t count, int D, uint8_t* result) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 8 + warp_index();
  if (i >= count) return;
  int wrong = 0;
  for (int d = lane_index(); d < D; d += warp_size) {
    wrong |= fabsf(points[i * D + d]) <= FLT_MAX ? 0 : 1;
  }
  wrong = warp_reduce(wrong, Maximum());
  if (lane_index() == 0) result[i] = wrong == 0 ? 1 : 0;
}

// Sums in double, the mean rounded to a storage type, 0 where that cannot hold it; a block has 32
// of the D columns of a set.
template <typename T>
__global__ void __launch_bounds__(256) centre_of_points(const T* points, const uint8_t* finite,
                                                        int count, int D, int kind, T* centre) {
  FK_SHARED(double, sums, [8][32]);
  FK_SHARED(int, counts, [8]);
  const int64_t blocks = ceil_div(D, 32), k = blockIdx.x / blocks;
  const int d = static_cast<int>(blockIdx.x % blocks) * 32 + lane_index();
  double sum = 0.0;
  int used = 0;
  for (int i = warp_index(); i < count; i += 8) {
    if (finite[k * count + i] == 0) continue;
    ++used;
    if (d < D) sum += points[(k * count + i) * D + d];
  }
  sums[warp_index()][lane_index()] = sum;
  if (lane_index() == 0) counts[warp_index()] = used;
  __syncthreads();
  if (warp_index() != 0 || d >= D) return;
  for (int w = 1; w < 8; ++w) sum += sums[w][lane_index()], used += counts[w];
  const float mean = rounded_as(kind, static_cast<float>(sum / (used > 0 ? used : 1)));
  centre[k * D + d] = fabsf(mean) <= FLT_MAX ? mean : 0.0f;
}

// `finite`: batch * count bytes of scratch; centre (batch, D).
inline void launch_centre(const float* points, int64_t batch, int64_t count, int64_t D, int kind,
                          uint8_t* finite, float* centre, cudaStream_t stream) {
  if (batch == 0 || D == 0) return;
  if (count > 0) {
    FK_LAUNCH(finite_points<float>, grid_of(ceil_div(batch * count, 8)), 256, 0, stream, points,
              batch * count, static_cast<int>(D), finite);
  }
  FK_LAUNCH(centre_of_points<float>, grid_of(batch * ceil_div(D, 32)), 256, 0, stream, points,
            finite, static_cast<int>(count), static_cast<int>(D), kind, centre);
}

}  // namespace fedkernels
