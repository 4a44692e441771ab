// Conditional transport on CUDA, float32: what the kernels share, and what is known of each point.
//
//   dot_ij = x_i . y_j,  cos_ij = dot_ij / (|x_i| |y_j|),  c_ij = 1 - cos_ij or |x_i - y_j|^2
//   s_ij = dot_ij / t, cos_ij / t or -c_ij / t
//   lse_i = log sum_j q_j exp(s_ij),  cost_i = sum_j q_j exp(s_ij - lse_i) c_ij
//
// and the same for y with p, over i. Pairs are symmetric in x and y, so one kernel serves both
// sides: `left` are the points whose results it computes, `right` those it sums over. Nothing of
// size N x M is kept. Products in float32 (fused multiply-add); squared distances from points that
// the mean of y centres, where |x - y|^2 = |x|^2 + |y|^2 - 2 x.y loses least.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "common/cuda.h"
#include "common/scatter.cuh"
#include "common/storage.cuh"

namespace fedkernels {

enum : int { kCosineCost, kSquaredCost };
enum : int { kDotLogits, kCosineLogits, kCostLogits };

// One side of B problems: (B, count, D) and vectors (B, count).
struct PairSide {
  const float* points;
  const float* mass;  // or null: 1 / count
  int count;
  // Left by conditional_norms: |x - centre|^2, 1 / |x| (0 for a zero vector), and what half of the
  // pair adds to a centred dot to make it x . y.
  float *norm, *inverse, *shift;
  // Of the backward.
  const float *lse, *cost, *g_cost, *g_lse;

  __device__ __forceinline__ float mass_of(int64_t k, int i) const {
    return mass == nullptr ? 1.0f / static_cast<float>(count) : mass[k * count + i];
  }
};

struct ConditionalCall {
  PairSide left, right;
  const float* centre;  // (B, D) where the cost is squared Euclidean, else null
  int64_t batch;        // of this call's slots
  int D;
  int cost, logits;
  float scale;            // log2(e) / t
  float per_temperature;  // 1 / t
};

struct Pair {
  float c, cos, logit;
};

// What follows from the product of two (centred) points.
__device__ __forceinline__ Pair pair_of(const ConditionalCall& call, float dot, float norm_i,
                                        float inverse_i, float shift_i, float norm_j,
                                        float inverse_j, float shift_j) {
  Pair pair;
  const float plain = call.centre == nullptr ? dot : dot + shift_i + shift_j;
  pair.cos = plain * inverse_i * inverse_j;
  // A maximum that keeps NaN.
  pair.c = call.cost == kCosineCost ? 1.0f - pair.cos
                                    : Maximum()(norm_i + norm_j - 2.0f * dot, 0.0f);
  pair.logit = call.logits == kDotLogits      ? plain
               : call.logits == kCosineLogits ? pair.cos
                                              : -pair.c;
  return pair;
}

// norm, inverse and shift of the points of a side; a warp a point.
__global__ void __launch_bounds__(256)
    conditional_norms(PairSide side, const float* centre, int64_t batch, int D) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 8 + warp_index();
  if (at >= batch * side.count) return;
  const float* point = side.points + at * D;
  const float* middle = centre == nullptr ? nullptr : centre + at / side.count * D;
  float sums[4] = {};  // |x|^2, |x - centre|^2, x . centre, |centre|^2
  for (int d = lane_index(); d < D; d += warp_size) {
    const float x = point[d], z = middle == nullptr ? 0.0f : middle[d], near = x - z;
    sums[0] = fmaf(x, x, sums[0]);
    sums[1] = fmaf(near, near, sums[1]);
    sums[2] = fmaf(x, z, sums[2]);
    sums[3] = fmaf(z, z, sums[3]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] = warp_reduce(sums[i], Sum());
  if (lane_index() != 0) return;
  side.norm[at] = sums[1];
  side.inverse[at] = sums[0] < FLT_MIN ? 0.0f : 1.0f / sqrtf(sums[0]);
  side.shift[at] = sums[2] - 0.5f * sums[3];
}

// ---- the tile of products: 64 left by 64 right points, 4 by 4 a thread

constexpr int kTile = 64;
constexpr int kDepth = 16;
constexpr int kTileThreads = 256;
constexpr int kPitch = kTile + 4;  // keeps 16-byte alignment and spreads the banks

struct ProductTiles {
  alignas(16) float left[kDepth][kPitch];
  alignas(16) float right[kDepth][kPitch];
};

// 64 points by 16 of their D, transposed; what lies outside is 0.
__device__ __forceinline__ void load_tile(float (*tile)[kPitch], const float* points,
                                          const float* centre, int first, int count, int D,
                                          int start) {
  const int r = static_cast<int>(threadIdx.x) / 4, part = static_cast<int>(threadIdx.x) % 4 * 4;
  const bool inside = first + r < count;
  const float* point = points + static_cast<int64_t>(first + r) * D;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int d = start + part + i;
    float x = 0.0f;
    if (inside && d < D) x = centre == nullptr ? point[d] : point[d] - centre[d];
    tile[part + i][r] = x;
  }
}

// dot[i][j] of points first_left + 4 (thread / 16) + i and first_right + 4 (thread % 16) + j.
__device__ __forceinline__ void product_tile(const ConditionalCall& call, ProductTiles& tiles,
                                             int64_t k, int first_left, int first_right,
                                             float (&dot)[4][4]) {
  const float* left = call.left.points + k * call.left.count * call.D;
  const float* right = call.right.points + k * call.right.count * call.D;
  const float* centre = call.centre == nullptr ? nullptr : call.centre + k * call.D;
  const int row = static_cast<int>(threadIdx.x) / 16 * 4;
  const int column = static_cast<int>(threadIdx.x) % 16 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) dot[i][j] = 0.0f;
  }
  for (int start = 0; start < call.D; start += kDepth) {
    __syncthreads();
    load_tile(tiles.left, left, centre, first_left, call.left.count, call.D, start);
    load_tile(tiles.right, right, centre, first_right, call.right.count, call.D, start);
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const Quad a = *reinterpret_cast<const Quad*>(&tiles.left[d][row]);
      const Quad b = *reinterpret_cast<const Quad*>(&tiles.right[d][column]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) dot[i][j] = fmaf(a.x[i], b.x[j], dot[i][j]);
      }
    }
  }
}

// Right tiles of a part: parts are runs of tiles, by the shape alone.
struct TileRange {
  int begin, end;
  __device__ __forceinline__ TileRange(int count, int part, int parts) {
    const int64_t tiles = ceil_div(count, kTile);
    begin = static_cast<int>(tiles * part / parts);
    end = static_cast<int>(tiles * (part + 1) / parts);
  }
};

}  // namespace fedkernels
