// From products to distances, with close pairs repaired by direct differences. All of it for a warp
// on a row of a tile: a lane has the columns `lane` and `lane + 32`.
#pragma once

#include "prototype/tile.cuh"

namespace fedkernels {

constexpr float kEps = FLT_EPSILON;

// |x - mu|^2 from the points as given (squared distances) or |x / |x| - near|^2 / 2 (cosine), by a
// warp; every lane gets it. Equal points: exactly 0.
__device__ __forceinline__ float direct(const Prototypes& call, int64_t row, int64_t column,
                                        float inverse) {
  const float* other = call.squares() ? call.mu : call.near;
  const float scale = call.squares() ? 1.0f : inverse;
  float sum = 0.0f;
  for (int d = lane_index(); d < call.D; d += warp_size) {
    // No contraction: x scale is rounded as near is.
    const float difference =
        __fsub_rn(__fmul_rn(call.x[row * call.D + d], scale), other[column * call.D + d]);
    sum = fmaf(difference, difference, sum);
  }
  sum = warp_reduce(sum, Sum());
  return call.squares() ? sum : 0.5f * sum;
}

// What a product says of a pair, before anything is repaired. size: |x'|^2 + |near|^2 where
// distances are squared.
struct Expansion {
  float value, size;

  __device__ __forceinline__ Expansion(const Prototypes& call, float dot, float norm, float inverse,
                                       float other_norm) {
    size = 0.0f;
    if (call.squares()) {
      size = norm + other_norm;
      value = size - 2.0f * dot;
    } else {
      value = call.metric == kCosine ? 1.0f - dot * inverse : -dot;
    }
  }
};

// Whether a pair is so close that its expansion has lost it. An expansion that overflowed counts;
// one with a NaN does not: its differences are NaN too.
__device__ __forceinline__ bool is_close(const Prototypes& call, const Expansion& pair,
                                         float inverse, float other_inverse) {
  if (call.metric == kDot) return false;
  if (call.metric == kCosine) {
    return pair.value < 64.0f * kEps && inverse > 0.0f && other_inverse > 0.0f;
  }
  const float share = call.metric == kEuclidean ? 0x1p-8f : 64.0f * kEps;
  return pair.size == pair.size && !(pair.value >= share * pair.size);
}

// Norms of the rows of a tile, each warp its own rows.
__device__ __forceinline__ void row_norms(const Prototypes& call, Tiles& tiles, int64_t first_row) {
  for (int i = 0; i < kWarpRows; ++i) {
    const int r = warp_index() * kWarpRows + i;
    const bool needed = first_row + r < call.N && call.metric != kDot;
    const float square = needed ? warp_square(call.x, first_row + r, call.centre, call.D) : 0.0f;
    if (lane_index() != 0) continue;
    tiles.norm[r] = square;
    tiles.inverse[r] = call.metric == kCosine ? inverse_norm(square) : 1.0f;
  }
  __syncwarp();
}

// The distances of row first_row + r, r one of the warp's own rows, to this lane's two columns;
// those outside are 0. The row is inside.
__device__ __forceinline__ void row_distances(const Prototypes& call, const Tiles& tiles,
                                              int64_t first_row, int r, int first_column,
                                              float (&distance)[2]) {
  const float norm = tiles.norm[r], inverse = tiles.inverse[r];
  unsigned close[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int c = lane_index() + 32 * h, column = first_column + c;
    const bool inside = column < call.K, prepared = inside && call.metric != kDot;
    const Expansion pair(call, tiles.pairs[r * kPairPitch + c], norm, inverse,
                         prepared ? call.norm[column] : 0.0f);
    distance[h] = inside ? pair.value : 0.0f;
    close[h] = __ballot_sync(
        full_warp, inside && is_close(call, pair, inverse, prepared ? call.inverse[column] : 0.0f));
  }
  while ((close[0] | close[1]) != 0) {
    const bool first = close[0] != 0;
    const int source = __ffs(static_cast<int>(first ? close[0] : close[1])) - 1;
    const float exact =
        direct(call, first_row + r, first_column + source + (first ? 0 : 32), inverse);
    if (first) {
      close[0] &= close[0] - 1;
      if (lane_index() == source) distance[0] = exact;
    } else {
      close[1] &= close[1] - 1;
      if (lane_index() == source) distance[1] = exact;
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (call.metric != kDot) distance[h] = Maximum()(distance[h], 0.0f);
    if (call.metric == kEuclidean) distance[h] = sqrtf(distance[h]);
  }
}

}  // namespace fedkernels
