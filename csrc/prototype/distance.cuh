// The distances of all pairs (N, K): a block a tile of 64 x 64.
#pragma once

#include "prototype/pairs.cuh"

namespace fedkernels {

__global__ void __launch_bounds__(kTileThreads)
    prototype_distance_tile(Prototypes call, float* distance) {
  FK_SHARED(Tiles, tiles);
  const int64_t column_tiles = ceil_div(call.K, kTile);
  const int64_t first_row = blockIdx.x / column_tiles * kTile;
  const int first_column = static_cast<int>(blockIdx.x % column_tiles) * kTile;
  row_norms(call, tiles, first_row);
  dot_tile(call, tiles, first_row, first_column);
  for (int i = 0; i < kWarpRows; ++i) {
    const int r = warp_index() * kWarpRows + i;
    const int64_t row = first_row + r;
    if (row >= call.N) break;
    float value[2];
    row_distances(call, tiles, first_row, r, first_column, value);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int column = first_column + lane_index() + 32 * h;
      if (column < call.K) distance[row * call.K + column] = value[h];
    }
  }
}

inline void launch_prototype_distance(const Prototypes& call, float* distance,
                                      cudaStream_t stream) {
  if (call.N == 0 || call.K == 0) return;
  FK_LAUNCH(prototype_distance_tile, grid_of(ceil_div(call.N, kTile) * ceil_div(call.K, kTile)),
            kTileThreads, 0, stream, call, distance);
}

}  // namespace fedkernels
