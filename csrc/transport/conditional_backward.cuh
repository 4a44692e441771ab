// Backward of conditional transport for one side. With, for each pair,
//
//   e_i = exp(s_ij - lse_i),  h_i = g_cost_i (c_ij - cost_i) + g_lse_i,   e_j, h_j likewise,
//   dc  = mass_j e_i g_cost_i + mass_i e_j g_cost_j
//   ds  = (mass_j e_i h_i + mass_i e_j h_j) / t
//
// (and, for logits of minus the cost, dc -= ds), the gradient to a left point z_i, centre m, is
//
//   sum_j W_ij (z_j - m) + A_i m + B_i (z_i - m) + C_i z_i
//
//   W = -2 dc (squared cost) + ds (dot logits) + dcos / (|z_i| |z_j|)
//   A = sum_j (W + 2 dc),  B = 2 sum_j dc (squared cost),  C = -sum_j dcos cos / |z_i|^2
//
// and the gradient to its mass is sum_j e_j h_j: never a division by a mass. A point whose two
// incoming gradients are 0, or whose lse is -inf, takes no part. W is recomputed from the product,
// 64 by 64 at a time, and multiplied with the right points from shared memory; the rows that a
// block adds to are its own. Parts of the right side, where the left is short, are added in their
// order.
#pragma once

#include "transport/conditional_points.cuh"

namespace fedkernels {

constexpr int kSums = 4;  // A, B, C, mass

struct BackwardTiles {
  ProductTiles product;
  alignas(16) float weight[kTile][kPitch];  // [right][left]
  alignas(16) float points[kTile][kPitch];  // [right][64 of D]
};

// What a point brings to its pairs.
struct PairPoint {
  float norm, inverse, shift, mass, lse, cost, g_cost, g_lse;
  bool silent;

  __device__ __forceinline__ void load(const PairSide& side, int64_t k, int i) {
    silent = true;
    norm = inverse = shift = mass = lse = cost = g_cost = g_lse = 0.0f;
    if (i >= side.count) return;
    const int64_t at = k * side.count + i;
    norm = side.norm[at], inverse = side.inverse[at], shift = side.shift[at];
    mass = side.mass_of(k, i);
    lse = side.lse[at], cost = side.cost[at];
    g_cost = side.g_cost[at], g_lse = side.g_lse[at];
    silent = (g_cost == 0.0f && g_lse == 0.0f) || lse == -INFINITY;
    lse *= 1.44269504f;
  }
};

// gradient: (parts, batch, left, D), or null where the points need none; sums: (parts, 4, batch,
// left).
__global__ void __launch_bounds__(kTileThreads)
    conditional_backward_side(ConditionalCall call, int parts, float* gradient, float* sums) {
  FK_SHARED(BackwardTiles, tiles);
  const int64_t left_tiles = ceil_div(call.left.count, kTile);
  const int part = static_cast<int>(blockIdx.x % parts);
  const int64_t k = blockIdx.x / parts / left_tiles;
  const int first_left = static_cast<int>(blockIdx.x / parts % left_tiles) * kTile;
  const int row = static_cast<int>(threadIdx.x) / 16 * 4;
  const int column = static_cast<int>(threadIdx.x) % 16 * 4;
  const int64_t left_at = k * call.left.count;
  const float* centre = call.centre == nullptr ? nullptr : call.centre + k * call.D;
  float* mine = gradient;
  if (gradient != nullptr) {
    mine += ((part * call.batch + k) * call.left.count + first_left) * static_cast<int64_t>(call.D);
  }

  float sum[kSums][4] = {};
  const TileRange range(call.right.count, part, parts);
  for (int tile = range.begin; tile < range.end; ++tile) {
    float dot[4][4];
    product_tile(call, tiles.product, k, first_left, tile * kTile, dot);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      PairPoint a;
      a.load(call.left, k, first_left + row + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = tile * kTile + column + j;
        PairPoint b;
        b.load(call.right, k, at);
        float weight = 0.0f;
        if (at < call.right.count && first_left + row + i < call.left.count) {
          const Pair pair = pair_of(call, dot[i][j], a.norm, a.inverse, a.shift, b.norm, b.inverse,
                                    b.shift);
          const float e_a = a.silent ? 0.0f : exp2f(fmaf(pair.logit, call.scale, -a.lse));
          const float e_b = b.silent ? 0.0f : exp2f(fmaf(pair.logit, call.scale, -b.lse));
          const float h_a = a.silent ? 0.0f : fmaf(a.g_cost, pair.c - a.cost, a.g_lse);
          const float h_b = b.silent ? 0.0f : fmaf(b.g_cost, pair.c - b.cost, b.g_lse);
          const float to_a = b.mass * e_a, to_b = a.mass * e_b;
          float dc = to_a * a.g_cost + to_b * b.g_cost;
          const float ds = (to_a * h_a + to_b * h_b) * call.per_temperature;
          if (call.logits == kCostLogits) dc -= ds;
          float dcos = call.logits == kCosineLogits ? ds : 0.0f;
          if (call.cost == kCosineCost) dcos -= dc;
          float plain = dcos * a.inverse * b.inverse;
          if (call.logits == kDotLogits) plain += ds;
          sum[0][i] += plain;
          sum[2][i] -= dcos * pair.cos * a.inverse * a.inverse;
          sum[3][i] += e_b * h_b;
          weight = plain;
          if (call.cost == kSquaredCost) {
            sum[1][i] += 2.0f * dc;
            weight -= 2.0f * dc;
          }
        }
        tiles.weight[column + j][row + i] = weight;
      }
    }
    if (gradient == nullptr) continue;

    const bool starts = tile == range.begin;
    for (int d = 0; d < call.D; d += kTile) {
      __syncthreads();
      for (int at = static_cast<int>(threadIdx.x); at < kTile * kTile; at += kTileThreads) {
        const int r = at / kTile, c = at % kTile, point = tile * kTile + r;
        float x = 0.0f;
        if (point < call.right.count && d + c < call.D) {
          x = call.right.points[(k * call.right.count + point) * call.D + d + c];
          if (centre != nullptr) x -= centre[d + c];
        }
        tiles.points[r][c] = x;
      }
      __syncthreads();
      float out[4][4] = {};
#pragma unroll 8
      for (int r = 0; r < kTile; ++r) {
        const Quad w = *reinterpret_cast<const Quad*>(&tiles.weight[r][row]);
        const Quad x = *reinterpret_cast<const Quad*>(&tiles.points[r][column]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) out[i][j] = fmaf(w.x[i], x.x[j], out[i][j]);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (first_left + row + i >= call.left.count) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (d + column + j >= call.D) continue;
          float& entry = mine[static_cast<int64_t>(row + i) * call.D + d + column + j];
          entry = starts ? out[i][j] : entry + out[i][j];
        }
      }
    }
  }

  const int64_t vector = call.batch * call.left.count;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
      const float total = warp_reduce<16>(sum[s][i], Sum());
      if (column == 0 && first_left + row + i < call.left.count) {
        sums[(part * kSums + s) * vector + left_at + first_left + row + i] = total;
      }
    }
  }
}

// Adds up the sums of the parts, into those of the first; d_mass or null.
__global__ void __launch_bounds__(256)
    conditional_backward_sums(float* sums, int parts, int64_t points, float* d_mass) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= points) return;
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    float total = sums[s * points + i];
    for (int part = 1; part < parts; ++part) total += sums[(part * kSums + s) * points + i];
    sums[s * points + i] = total;
    if (s == 3 && d_mass != nullptr) d_mass[i] = total;
  }
}

// One thread an entry of the gradient; `gradient` may be `result` where there is one part.
__global__ void __launch_bounds__(256)
    conditional_backward_finish(ConditionalCall call, const float* gradient, const float* sums,
                                int parts, float* result) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t points = call.batch * call.left.count, entries = points * call.D;
  if (at >= entries) return;
  const int64_t i = at / call.D;
  float total = call.right.count == 0 ? 0.0f : gradient[at];
  for (int part = 1; part < parts; ++part) total += gradient[part * entries + at];
  const float x = call.left.points[at];
  float near = x;
  if (call.centre != nullptr) {
    const float z = call.centre[i / call.left.count * call.D + at % call.D];
    near = x - z;
    total = fmaf(sums[i], z, total);
  }
  if (call.cost == kSquaredCost) total = fmaf(sums[points + i], near, total);
  if (call.cost == kCosineCost || call.logits == kCosineLogits) {
    total = fmaf(sums[2 * points + i], x, total);
  }
  result[at] = total;
}

}  // namespace fedkernels
