// The kernel of all sweeps: a block has a stripe of tiles of rows, one after another. Sums over
// rows are the block's own until a second kernel adds the stripes in their order. The last tile of
// the survey is the first to be settled: its products are still there.
#pragma once

#include "prototype/sweep.cuh"

namespace fedkernels {

// An entry of dx with what the point itself adds.
__device__ __forceinline__ void own_share(const Sweep& call, const SweepTiles& tiles, int64_t at,
                                          int start, int i, int d, float value) {
  const Prototypes& points = call.points;
  const float along = tiles.along[i], inverse = tiles.tile.inverse[i];
  at += i * points.D + d;
  if (along != 0.0f) {
    const float z = points.centre == nullptr ? 0.0f : points.centre[start + d];
    value = fmaf(along * inverse * inverse, points.x[at] - z, value);
  }
  store_as(call.dx, points.x.kind, at, value);
}

// dx of the tile's rows and dmu of its prototypes, from V in `pairs`. newest, last: the first and
// the last tile of these rows; fresh: nothing of dmu is there yet.
template <int mode>
__device__ __forceinline__ void add_gradients(const Sweep& call, SweepTiles& tiles,
                                              int64_t first_row, int first_column, int stripe,
                                              bool newest, bool last, bool fresh) {
  const Prototypes& points = call.points;
  const bool tensor = points.D > kTensorD;
  const Thread me;
  for (int start = 0; start < points.D; start += kDepth) {
    Chunk left(me), right(me);
    if (call.dmu != nullptr)
      left.load(points.x, points.centre, first_row, points.N, points.D, start);
    if (call.dx != nullptr)
      right.load(points.right(), nullptr, first_column, points.K, points.D, start);
    __syncthreads();
    if (call.dmu != nullptr) {
      if (mode == kDistanceGradient) {
        left.drop_rows(tiles.live);
      } else {
        left.drop_unfit();
      }
      left.store(tiles.tile.left, kSumPitch);
    }
    if (call.dx != nullptr) {
      if (mode != kDistanceGradient) right.drop_unfit();
      right.store(tiles.tile.right, kSumPitch);
    }
    __syncthreads();
    // Offsets within a tile are 32 bits wide.
    const int D = points.D, columns = D - start;
    if (call.dx != nullptr) {
      const int64_t at = first_row * D + start;
      const int rows = static_cast<int>(min(points.N - first_row, static_cast<int64_t>(kTile)));
      float* running = static_cast<float*>(call.dx) + at;
      if (call.dx_scratch != nullptr) {
        running = call.dx_scratch + static_cast<int64_t>(blockIdx.x) * kTile * D + start;
      }
      weigh<false>(me, tiles.tile.pairs, tiles.tile.right, tensor, [&](int i, int d, float value) {
        if (i >= rows || d >= columns) return;
        if (!newest) value += running[i * D + d];
        if (last) {
          own_share(call, tiles, at, start, i, d, value);
        } else {
          running[i * D + d] = value;
        }
      });
    }
    if (call.dmu != nullptr) {
      float* sums = call.dmu + (static_cast<int64_t>(stripe) * points.K + first_column) * D + start;
      const int rows = min(points.K - first_column, kTile);
      weigh<true>(me, tiles.tile.pairs, tiles.tile.left, tensor, [&](int i, int d, float value) {
        if (i >= rows || d >= columns) return;
        sums[i * D + d] = fresh ? value : sums[i * D + d] + value;
      });
    }
  }
}

// Products and logits of a tile, and what they are for: the survey, or else V into `pairs`, P and
// the pull summed over the rows of each warp.
template <int mode>
__device__ __forceinline__ void work_on_rows(const Sweep& call, SweepTiles& tiles,
                                             int64_t first_row, int first_column, bool surveys) {
  const Prototypes& points = call.points;
  const Thread me;
  float along_sum[2] = {}, pull_sum[2] = {};
  for (int i = 0; i < kWarpRows; ++i) {
    const int r = me.warp * kWarpRows + i;
    const int64_t row = first_row + r;
    const int column = first_column + me.lane;
    const bool inside[2] = {row < points.N && column < points.K,
                            row < points.N && column + 32 < points.K};
    const int64_t pair = row * points.K + column;
    float distance[2] = {}, pull[2] = {}, g[2] = {};
    bool part = row < points.N;
    if constexpr (mode == kDistanceGradient) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (!inside[h]) continue;
        g[h] = call.grad[pair + 32 * h];
        if (points.metric != kSquared) distance[h] = call.distance[pair + 32 * h];
      }
      part = __any_sync(full_warp, g[0] != 0.0f || g[1] != 0.0f) != 0;
      if (me.lane == 0) tiles.live[r] = part ? 1 : 0;
    } else if (part) {
      float logit[2];
      bool allowed[2] = {};
      if (mode == kSoftmax && !surveys && call.prob != nullptr) {
        logit[0] = inside[0] ? call.prob[pair] : -INFINITY;
        logit[1] = inside[1] ? call.prob[pair + 32] : -INFINITY;
      } else {
        row_logits(call, tiles.tile, first_row, r, first_column, distance, logit, allowed);
      }
      if (surveys) {
        survey<mode>(call, tiles, row, r, first_column, logit);
        continue;
      }
      part = settle<mode>(call, tiles, row, r, first_column, logit, allowed, pull);
      g[0] = -pull[0] * call.per_temperature, g[1] = -pull[1] * call.per_temperature;
    }
    if (surveys) continue;
    if constexpr (mode == kSoftmax) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (!inside[h]) continue;
        pull_sum[h] += pull[h];
        if (call.prob != nullptr) call.prob[pair + 32 * h] = pull[h];
      }
    } else {
      float along[2] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float weight = 0.0f;
        if (part && inside[h]) {
          weights_of(points.metric, g[h], distance[h], tiles.tile.inverse[r], weight, along[h]);
          along_sum[h] += along[h], pull_sum[h] += pull[h];
        }
        tiles.tile.pairs[r * kPairPitch + me.lane + 32 * h] = weight;
      }
      const float sum = warp_reduce(along[0] + along[1], Sum());
      if (me.lane == 0) tiles.along[r] += sum;
    }
  }
  if (surveys) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    tiles.column[0][me.warp][me.lane + 32 * h] = along_sum[h];
    tiles.column[1][me.warp][me.lane + 32 * h] = pull_sum[h];
  }
}

// The column sums of a tile, added to the stripe's.
__device__ __forceinline__ void add_columns(const Sweep& call, const SweepTiles& tiles,
                                            int first_column, int stripe, bool fresh) {
  const int which = static_cast<int>(threadIdx.x) / kTile;
  const int column = first_column + static_cast<int>(threadIdx.x) % kTile;
  if (which > 1 || column >= call.points.K) return;
  float* to = which == 0 ? call.along : call.column;
  if (to == nullptr) return;
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) sum += tiles.column[which][w][column - first_column];
  float& total = to[static_cast<int64_t>(stripe) * call.points.K + column];
  total = fresh ? sum : total + sum;
}

template <int mode>
__global__ void __launch_bounds__(kTileThreads, 2)
    prototype_sweep(const __grid_constant__ Sweep call) {
  FK_SHARED(SweepTiles, tiles);
  const Prototypes& points = call.points;
  const int stripe = static_cast<int>(blockIdx.x) / call.parts;
  const int part = static_cast<int>(blockIdx.x) % call.parts;
  const int64_t row_tiles = ceil_div(points.N, kTile), column_tiles = ceil_div(points.K, kTile);
  const int64_t from = row_tiles * stripe / call.stripes;
  const int64_t to = row_tiles * (stripe + 1) / call.stripes;
  const int begin = static_cast<int>(column_tiles * part / call.parts);
  const int end = static_cast<int>(column_tiles * (part + 1) / call.parts);

  for (int64_t row_tile = from; row_tile < to; ++row_tile) {
    const int64_t first_row = row_tile * kTile;
    __syncthreads();  // the tile before has been used
    if (mode != kDistanceGradient || points.metric == kCosine) {
      row_norms(points, tiles.tile, first_row);
    } else if (lane_index() < kWarpRows) {
      tiles.tile.inverse[warp_index() * kWarpRows + lane_index()] = 1.0f;
    }
    if (lane_index() < kWarpRows) {
      const int r = warp_index() * kWarpRows + lane_index();
      const bool known = call.state != nullptr && !call.surveys && first_row + r < points.N;
      const float empty = mode == kSoftmaxGradient ? 0.0f : -INFINITY;
      tiles.state[0][r] = known ? call.state[first_row + r] : empty;
      tiles.state[1][r] = known ? call.state[points.N + first_row + r] : 0.0f;
      tiles.state[2][r] = tiles.state[3][r] = tiles.along[r] = 0.0f;
      tiles.live[r] = 0;
    }
    __syncwarp();

    // Tiles in ascending order while they are surveyed, then in descending order: one loop, so that
    // the code of a product is there once.
    const int surveyed = call.surveys ? static_cast<int>(column_tiles) : 0;
    const int steps = surveyed + (call.settles ? end - begin : 0);
    for (int step = 0; step < steps; ++step) {
      const bool surveys = step < surveyed;
      const int tile = surveys ? step : end - 1 - (step - surveyed);
      const int first_column = tile * kTile;
      const bool there = surveyed > 0 && step == surveyed;
      if (mode != kDistanceGradient && !there &&
          (surveys || mode != kSoftmax || call.prob == nullptr)) {
        dot_tile(points, tiles.tile, first_row, first_column);
      } else {
        __syncthreads();  // weights and sums of the tile before have been used
      }
      work_on_rows<mode>(call, tiles, first_row, first_column, surveys);
      if (surveys) {
        __syncwarp();
        const int64_t row = first_row + warp_index() * kWarpRows + lane_index();
        if (step == surveyed - 1 && lane_index() < kWarpRows && row < points.N) {
          conclude<mode>(call, tiles, row, static_cast<int>(row - first_row));
        }
        __syncwarp();
        continue;
      }
      __syncthreads();
      const bool fresh = row_tile == from;
      add_columns(call, tiles, first_column, stripe, fresh);
      if (mode != kSoftmax) {
        add_gradients<mode>(call, tiles, first_row, first_column, stripe, tile == end - 1,
                            tile == begin, fresh);
      }
    }
  }
}

// Stripes added in their order: result_i = sum over stripes of partial (stripes, count).
__global__ void __launch_bounds__(256)
    prototype_add_columns(const float* partial, int stripes, int64_t count, float* result) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= count) return;
  double sum = 0.0;
  for (int s = 0; s < stripes; ++s) sum += partial[s * count + i];
  result[i] = static_cast<float>(sum);
}

// dmu from its stripes and sum_i P_ij; one thread an entry.
__global__ void __launch_bounds__(256)
    prototype_add_dmu(Prototypes call, const float* partial, int stripes, const float* along,
                      float* dmu) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t count = static_cast<int64_t>(call.K) * call.D;
  if (at >= count) return;
  const int64_t k = at / call.D;
  double sum = 0.0;
  for (int s = 0; s < stripes; ++s) sum += partial[s * count + at];
  const float share = call.metric == kDot ? 0.0f : along[k];
  if (share != 0.0f) sum += static_cast<double>(share) * call.near[at];
  if (call.metric == kCosine) sum *= call.inverse[k];
  dmu[at] = static_cast<float>(sum);
}

}  // namespace fedkernels
