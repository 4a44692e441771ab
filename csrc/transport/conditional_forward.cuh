// Forward of conditional transport for one side: lse and expected cost of each left point. A block
// has 64 left points and a part of the right ones; each thread keeps a running (largest, total,
// weighted cost) of its own columns, so that nothing crosses lanes until the end. Parts are
// combined in their order by a second kernel.
#pragma once

#include "transport/conditional_points.cuh"

namespace fedkernels {

// sum of mass exp2(z - top), and of mass exp2(z - top) c.
struct Softmax {
  float top, total, weighted;

  // One more column. Rescaled where the largest grows and nowhere else: factors of rescaling would
  // each add their rounding.
  __device__ __forceinline__ void add(float z, float c) {
    if (z == -INFINITY) return;
    const bool grows = !(z <= top);  // NaN grows, and stays
    const float factor = exp2f(grows ? top - z : z - top);
    total = grows ? fmaf(total, factor, 1.0f) : total + factor;
    weighted = grows ? fmaf(weighted, factor, c) : fmaf(factor, c, weighted);
    if (grows) top = z;
  }

  __device__ __forceinline__ void merge(float other_top, float other_total,
                                        float other_weighted) {
    const float larger = Maximum()(top, other_top);
    if (larger == -INFINITY) return;
    const float mine = exp2f(top - larger), theirs = exp2f(other_top - larger);
    total = total * mine + other_total * theirs;
    weighted = weighted * mine + other_weighted * theirs;
    top = larger;
  }
};

// partial: (parts, 3, batch, left) floats.
__global__ void __launch_bounds__(kTileThreads)
    conditional_forward_side(ConditionalCall call, int parts, float* partial) {
  FK_SHARED(ProductTiles, tiles);
  const int64_t left_tiles = ceil_div(call.left.count, kTile);
  const int part = static_cast<int>(blockIdx.x % parts);
  const int64_t k = blockIdx.x / parts / left_tiles;
  const int first_left = static_cast<int>(blockIdx.x / parts % left_tiles) * kTile;
  const int row = first_left + static_cast<int>(threadIdx.x) / 16 * 4;
  const int column = static_cast<int>(threadIdx.x) % 16 * 4;
  const int64_t left_at = k * call.left.count, right_at = k * call.right.count;

  float norm[4], inverse[4], shift[4];
  Softmax state[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool inside = row + i < call.left.count;
    norm[i] = inside ? call.left.norm[left_at + row + i] : 0.0f;
    inverse[i] = inside ? call.left.inverse[left_at + row + i] : 0.0f;
    shift[i] = inside ? call.left.shift[left_at + row + i] : 0.0f;
    state[i] = {-INFINITY, 0.0f, 0.0f};
  }

  const TileRange range(call.right.count, part, parts);
  for (int tile = range.begin; tile < range.end; ++tile) {
    float dot[4][4];
    product_tile(call, tiles, k, first_left, tile * kTile, dot);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at = tile * kTile + column + j;
      if (at >= call.right.count) continue;
      const float norm_j = call.right.norm[right_at + at];
      const float inverse_j = call.right.inverse[right_at + at];
      const float shift_j = call.right.shift[right_at + at];
      const float log_mass = log2f(call.right.mass_of(k, at));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Pair pair = pair_of(call, dot[i][j], norm[i], inverse[i], shift[i], norm_j,
                                  inverse_j, shift_j);
        state[i].add(fmaf(pair.logit, call.scale, log_mass), pair.c);
      }
    }
  }

  const int64_t vector = call.batch * call.left.count;
  float* mine = partial + 3 * part * vector + left_at;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int step = 8; step > 0; step /= 2) {
      const float top = __shfl_xor_sync(full_warp, state[i].top, step);
      const float total = __shfl_xor_sync(full_warp, state[i].total, step);
      const float weighted = __shfl_xor_sync(full_warp, state[i].weighted, step);
      state[i].merge(top, total, weighted);
    }
    if (column == 0 && row + i < call.left.count) {
      mine[row + i] = state[i].top;
      mine[vector + row + i] = state[i].total;
      mine[2 * vector + row + i] = state[i].weighted;
    }
  }
}

// One thread a left point. A side without mass: lse -inf, cost 0.
__global__ void __launch_bounds__(256)
    conditional_forward_finish(const float* partial, int parts, int64_t points, float* cost,
                               float* lse) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= points) return;
  Softmax state{-INFINITY, 0.0f, 0.0f};
  for (int part = 0; part < parts; ++part) {
    const float* from = partial + 3 * part * points + i;
    state.merge(from[0], from[points], from[2 * points]);
  }
  const bool nothing = state.top == -INFINITY;
  cost[i] = nothing ? 0.0f : state.weighted / state.total;
  lse[i] = nothing ? -INFINITY
                   : static_cast<float>((state.top + log2(static_cast<double>(state.total))) *
                                        0.6931471805599453);
}

}  // namespace fedkernels
