// A tile of 64 points by 64 prototypes: their products, and products of a tile of weights with
// either. 256 threads. Products in 3xTF32 on tensor cores, or fused multiply-add where D is too
// small for those; in both a row's bits depend on that row alone.
//
// What a tile has been multiplied into lies in `pairs`, where warp w works on rows 8 w .. 8 w + 7
// and a lane on columns `lane` and `lane + 32`: so all that follows is written once.
#pragma once

#include "common/mma.h"
#include "prototype/points.cuh"

namespace fedkernels {

constexpr int kTile = 64;
constexpr int kTileThreads = 256;
constexpr int kWarps = kTileThreads / warp_size;
constexpr int kWarpRows = kTile / kWarps;
constexpr int kDepth = 32;  // of D at a time
constexpr int kPairPitch = kTile + 4;
constexpr int kDotPitch = kDepth + 4;  // both fragments of x . mu without bank conflicts
constexpr int kSumPitch = kDepth + 8;  // the second operand of weights . points likewise
constexpr int kTensorD = 16;           // up to here without tensor cores

struct Tiles {
  alignas(16) float left[kTile * kSumPitch];
  alignas(16) float right[kTile * kSumPitch];
  alignas(16) float pairs[kTile * kPairPitch];
  float norm[kTile], inverse[kTile];  // of the rows
};

// A thread's place in the block, found anew in each phase of a kernel.
struct Thread {
  int index, lane, warp;

  __device__ __forceinline__ Thread()
      : index(opaque(static_cast<int>(threadIdx.x))),
        lane(index % warp_size),
        warp(index / warp_size) {}
};

// 64 of some points, 32 of D: what a thread holds before it goes to shared memory. Thread t has row
// t / 8 and the next but 31, and 4 of D from t % 8 * 4 on.
struct Chunk {
  Quad part[2];
  int first, place;

  __device__ __forceinline__ explicit Chunk(const Thread& me)
      : first(me.index / 8), place(me.index % 8 * 4) {}

  __device__ __forceinline__ void load(const Stored& points, const float* centre, int64_t first_row,
                                       int64_t count, int D, int start) {
    const int d = start + place;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t row = first_row + first + 32 * h;
      const int inside = row < count ? D - d : 0;
      part[h] = points.quad(row * D + d, inside);
      if (centre == nullptr) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (e < inside) part[h].x[e] -= centre[d + e];
      }
    }
  }

  // What is not finite becomes 0. For products with weights that are NaN themselves where such an
  // element counts, and 0 where it must not.
  __device__ __forceinline__ void drop_unfit() {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      float& x = part[e / 4].x[e % 4];
      if (!(fabsf(x) <= FLT_MAX)) x = 0.0f;
    }
  }

  // Rows of 0 where `live` is 0.
  __device__ __forceinline__ void drop_rows(const int* live) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (live[first + e / 4 * 32] == 0) part[e / 4].x[e % 4] = 0.0f;
    }
  }

  __device__ __forceinline__ void store(float* to, int pitch) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      *reinterpret_cast<Quad*>(&to[(first + 32 * h) * pitch + place]) = part[h];
    }
  }
};

// A thread's 16 sums of a 64 x 64 tile. Tensor cores: warp w has rows 16 (w % 4) and columns
// 32 (w / 4), four fragments; otherwise 4 rows and every 16th column.
__device__ __forceinline__ void store_mma(const Thread& me, float* pairs, const float (&sum)[16]) {
  const Place first = mma_d(me.lane, 0);
  float* at = pairs + (me.warp % 4 * 16 + first.row) * kPairPitch + me.warp / 4 * 32 + first.column;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    // The other elements of a fragment stand at fixed distances from its first.
    const Place from = mma_d(0, i % 4);
    at[from.row * kPairPitch + i / 4 * 8 + from.column] = sum[i];
  }
}

__device__ __forceinline__ void store_fma(const Thread& me, float* pairs, const float (&sum)[16]) {
  float* at = pairs + me.index / 16 * 4 * kPairPitch + me.index % 16;
#pragma unroll
  for (int i = 0; i < 16; ++i) at[i / 4 * kPairPitch + i % 4 * 16] = sum[i];
}

__device__ __forceinline__ void dot_mma(const Thread& me, const Tiles& tiles, float (&sum)[16]) {
  const int row = me.warp % 4 * 16, column = me.warp / 4 * 32;
#pragma unroll
  for (int k = 0; k < kDepth; k += 8) {
    uint32_t a_big[4], a_small[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Place at = tf32_a(me.lane, i);
      split_tf32(tiles.left[(row + at.row) * kDotPitch + k + at.column], a_big[i], a_small[i]);
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      uint32_t b_big[2], b_small[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Place at = tf32_b(me.lane, i);
        split_tf32(tiles.right[(column + n * 8 + at.column) * kDotPitch + k + at.row], b_big[i],
                   b_small[i]);
      }
      float part[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) part[i] = sum[n * 4 + i];
      mma_3xtf32(part, a_big, a_small, b_big, b_small);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[n * 4 + i] = part[i];
    }
  }
}

__device__ __forceinline__ void dot_fma(const Thread& me, const Tiles& tiles, int depth,
                                        float (&sum)[16]) {
  const int row = me.index / 16 * 4, column = me.index % 16;
  for (int d = 0; d < depth; d += 4) {
    Quad a[4], b[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = *reinterpret_cast<const Quad*>(&tiles.left[(row + i) * kDotPitch + d]);
      b[i] = *reinterpret_cast<const Quad*>(&tiles.right[(column + i * 16) * kDotPitch + d]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        sum[i] = fmaf(a[i / 4].x[e], b[i % 4].x[e], sum[i]);
      }
    }
  }
}

// pairs[i][j] = x'_i . near_j of the points from first_row on and the prototypes from first_column
// on; what lies outside is 0. For all threads of the block.
__device__ __forceinline__ void dot_tile(const Prototypes& call, Tiles& tiles, int64_t first_row,
                                         int first_column) {
  const bool tensor = call.D > kTensorD;
  float sum[16] = {};
  const Thread me;
  Chunk left(me), right(me);
  const auto load = [&](int start) {
    left.load(call.x, call.centre, first_row, call.N, call.D, start);
    right.load(call.right(), nullptr, first_column, call.K, call.D, start);
  };
  if (call.D > 0) load(0);
  for (int start = 0; start < call.D; start += kDepth) {
    __syncthreads();
    left.store(tiles.left, kDotPitch);
    right.store(tiles.right, kDotPitch);
    __syncthreads();
    if (start + kDepth < call.D) load(start + kDepth);  // arrives while the products run
    if (tensor) {
      dot_mma(me, tiles, sum);
    } else {
      dot_fma(me, tiles, min(call.D - start, kDepth), sum);
    }
  }
  __syncthreads();  // the pairs of an earlier tile have been read
  if (tensor) {
    store_mma(me, tiles.pairs, sum);
  } else {
    store_fma(me, tiles.pairs, sum);
  }
  __syncthreads();
}

// put(i, d, sum_k W_ik points_kd), i of 64 and d of 32; W is `pairs`, or its transpose; `points`
// has pitch kSumPitch. Eight sums a thread.
template <bool transposed, typename Put>
__device__ __forceinline__ void weigh(const Thread& me, const float* pairs, const float* points,
                                      bool tensor, const Put& put) {
  const auto weight = [&](int i, int k) {
    return transposed ? pairs[k * kPairPitch + i] : pairs[i * kPairPitch + k];
  };
  float sum[8] = {};
  if (tensor) {
    const int row = me.warp % 4 * 16, column = me.warp / 4 * 16;
#pragma unroll 1
    for (int k = 0; k < kTile; k += 8) {
      uint32_t a_big[4], a_small[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Place at = tf32_a(me.lane, i);
        split_tf32(weight(row + at.row, k + at.column), a_big[i], a_small[i]);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        uint32_t b_big[2], b_small[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Place at = tf32_b(me.lane, i);
          split_tf32(points[(k + at.row) * kSumPitch + column + n * 8 + at.column], b_big[i],
                     b_small[i]);
        }
        float part[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) part[i] = sum[n * 4 + i];
        mma_3xtf32(part, a_big, a_small, b_big, b_small);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[n * 4 + i] = part[i];
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const Place at = mma_d(me.lane, i % 4);
      put(row + at.row, column + i / 4 * 8 + at.column, sum[i]);
    }
  } else {
    const int row = me.index / 8 * 2, column = me.index % 8 * 4;
#pragma unroll 4
    for (int k = 0; k < kTile; ++k) {
      const Quad b = *reinterpret_cast<const Quad*>(&points[k * kSumPitch + column]);
      const float w[2] = {weight(row, k), weight(row + 1, k)};
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] = fmaf(w[i / 4], b.x[i % 4], sum[i]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) put(row + i / 4, column + i % 4, sum[i]);
  }
}

}  // namespace fedkernels
