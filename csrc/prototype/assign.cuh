// The k nearest prototypes of each row, k up to 32: a block has 64 rows and runs over the
// prototypes. A row's list stands in the lanes of a warp, best first, and between tiles in the
// result itself. Of a tile the candidates are taken in the order of what they can at best be, until
// no one can enter the list: for squared distances the expansion less 8 eps (|x'|^2 + |near|^2),
// which the distance itself, by direct differences, then replaces before it is ranked.
#pragma once

#include "prototype/pairs.cuh"

namespace fedkernels {

enum : int { kSeenNumber = 1, kSeenNan = 2 };

struct NearestList {
  float value;  // of this lane's place
  int index;    // -1: empty

  // Every lane calls it with the same pair; ties keep the lowest index first.
  __device__ __forceinline__ void insert(float new_value, int new_index, int k) {
    const int lane = lane_index();
    const bool before =
        lane < k && index >= 0 && (value < new_value || (value == new_value && index < new_index));
    const int place = __popc(__ballot_sync(full_warp, before));
    const float left_value = __shfl_up_sync(full_warp, value, 1u);
    const int left_index = __shfl_up_sync(full_warp, index, 1u);
    if (lane < k && lane >= place) {
      value = lane == place ? new_value : left_value;
      index = lane == place ? new_index : left_index;
    }
  }
};

// The least that a pair's distance (not its root) can be, INFINITY if it is no candidate; `seen`
// gets what is known of the distance already.
__device__ __forceinline__ float least_possible(const Prototypes& call, const Expansion& pair,
                                                float inverse, float other_inverse, int& seen) {
  if (call.squares()) {
    if (pair.size != pair.size) {
      seen |= kSeenNan;
      return INFINITY;
    }
    if (!(pair.size <= FLT_MAX)) return -INFINITY;  // it overflowed: its differences tell
    seen |= kSeenNumber;
    return pair.value - 8.0f * kEps * pair.size;
  }
  if (pair.value != pair.value) {
    seen |= kSeenNan;
    return INFINITY;
  }
  seen |= kSeenNumber;
  return is_close(call, pair, inverse, other_inverse) ? 0.0f : pair.value;
}

// Takes the candidates of a row of the tile into its list; returns what was seen of the distances.
__device__ __forceinline__ int take_candidates(const Prototypes& call, const Tiles& tiles,
                                               int64_t row, int r, int first_column, int k,
                                               NearestList& list) {
  const float norm = tiles.norm[r], inverse = tiles.inverse[r];
  float least[2], value[2];
  int seen = 0;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int c = lane_index() + 32 * h, column = first_column + c;
    const bool inside = column < call.K && call.allowed(row, column);
    const bool prepared = inside && call.metric != kDot;
    const Expansion pair(call, tiles.pairs[r * kPairPitch + c], norm, inverse,
                         prepared ? call.norm[column] : 0.0f);
    value[h] = pair.value;
    least[h] =
        !inside ? INFINITY
                : least_possible(call, pair, inverse, prepared ? call.inverse[column] : 0.0f, seen);
  }
  for (;;) {
    const float next = warp_reduce(fminf(least[0], least[1]), Minimum());
    const float worst = __shfl_sync(full_warp, list.value, k - 1);
    if (!(next < INFINITY) || next > worst) break;
    const unsigned first = __ballot_sync(full_warp, least[0] == next);
    const unsigned second = __ballot_sync(full_warp, least[1] == next);
    const int source = __ffs(static_cast<int>(first != 0 ? first : second)) - 1;
    const int column = first_column + source + (first != 0 ? 0 : 32);
    float found = __shfl_sync(full_warp, first != 0 ? value[0] : value[1], source);
    const bool near = call.metric == kCosine && next == 0.0f && found < 64.0f * kEps;
    if (call.squares() || near) found = direct(call, row, column, inverse);
    if (lane_index() == source) {
      if (first != 0) {
        least[0] = INFINITY;
      } else {
        least[1] = INFINITY;
      }
    }
    seen |= found == found ? kSeenNumber : kSeenNan;
    if (found < INFINITY) list.insert(found, column, k);
  }
  return (__any_sync(full_warp, (seen & kSeenNumber) != 0) ? kSeenNumber : 0) |
         (__any_sync(full_warp, (seen & kSeenNan) != 0) ? kSeenNan : 0);
}

__global__ void __launch_bounds__(kTileThreads)
    prototype_assign_rows(Prototypes call, int k, float* distance, int64_t* index) {
  FK_SHARED(Tiles, tiles);
  FK_SHARED(int, seen, [kTile]);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTile;
  row_norms(call, tiles, first_row);
  for (int first_column = 0; first_column < call.K; first_column += kTile) {
    dot_tile(call, tiles, first_row, first_column);
    const bool last = first_column + kTile >= call.K;
    for (int i = 0; i < kWarpRows; ++i) {
      const int r = warp_index() * kWarpRows + i;
      const int64_t row = first_row + r;
      if (row >= call.N) break;
      NearestList list{INFINITY, -1};
      int known = 0;
      if (first_column > 0) {
        known = seen[r];
        if (lane_index() < k) {
          list.value = distance[row * k + lane_index()];
          list.index = static_cast<int>(index[row * k + lane_index()]);
        }
        __syncwarp();  // all have read what one will write
      }
      known |= take_candidates(call, tiles, row, r, first_column, k, list);
      if (lane_index() == 0) seen[r] = known;
      if (lane_index() >= k) continue;
      if (last) {
        if (call.metric == kEuclidean) list.value = sqrtf(list.value);
        if (known == kSeenNan) list.value = NAN;
      }
      distance[row * k + lane_index()] = list.value;
      index[row * k + lane_index()] = list.index;
    }
    __syncwarp();
  }
}

inline void launch_prototype_assign(const Prototypes& call, int k, float* distance, int64_t* index,
                                    cudaStream_t stream) {
  if (call.N == 0) return;
  FK_LAUNCH(prototype_assign_rows, grid_of(ceil_div(call.N, kTile)), kTileThreads, 0, stream, call,
            k, distance, index);
}

}  // namespace fedkernels
