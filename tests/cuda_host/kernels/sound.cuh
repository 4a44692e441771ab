// Kernels that are right: reductions, shuffles, votes, products on tensor cores, atomics. They also
// compile under nvcc, for every architecture (test_nvcc.py).
#pragma once

#include "common/cuda.h"
#include "common/mma.h"

namespace fedkernels {

// y (rows) = the row sums of x (rows, columns), z their maxima.
template <typename T, int threads>
__global__ void __launch_bounds__(threads)
    reduce_rows(const T* __restrict__ x, T* __restrict__ y, T* __restrict__ z, int64_t columns) {
  const T* row = x + static_cast<int64_t>(blockIdx.x) * columns;
  T sum = 0, top = row[0];
  for (int64_t j = threadIdx.x; j < columns; j += threads) {
    sum += row[j];
    top = Maximum()(top, row[j]);
  }
  sum = block_reduce<threads>(sum, Sum());
  top = block_reduce<threads>(top, Maximum());
  if (threadIdx.x == 0) {
    y[blockIdx.x] = sum;
    z[blockIdx.x] = top;
  }
}

// out (12, 32): what each lane gets from its shuffle and its vote.
__global__ void exchange(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const auto put = [&](int row, int value) { out[row * 32 + lane] = value; };
  put(0, __shfl_sync(full_warp, lane, 5));
  put(1, __shfl_sync(full_warp, lane, 5, 8));
  put(2, __shfl_xor_sync(full_warp, lane, 3));
  put(3, __shfl_up_sync(full_warp, lane, 2u));
  put(4, __shfl_up_sync(full_warp, lane, 2u, 8));
  put(5, __shfl_down_sync(full_warp, lane, 3u));
  put(6, __shfl_down_sync(full_warp, lane, 3u, 16));
  put(7, static_cast<int>(__ballot_sync(full_warp, lane % 3 == 0)));
  put(8, __any_sync(full_warp, lane == 31));
  put(9, __all_sync(full_warp, lane < 31));
  // Half a warp on its own, more often than the other half.
  int value = lane;
  if (lane < 16) {
    for (int step = 8; step > 0; step /= 2) value += __shfl_xor_sync(0xffffu, value, step);
  }
  __syncwarp();
  put(10, __shfl_xor_sync(full_warp, value, 16));
  put(11, warp_reduce<8>(lane, Sum()));
}

// count[0] += 1 by every thread; votes (3) of the block.
__global__ void count_threads(unsigned long long* count, int* votes) {
  atomicAdd(count, 1ull);
  const int even = threadIdx.x % 2 == 0;
  const int several = __syncthreads_count(even);
  const int some = __syncthreads_or(even);
  const int all = __syncthreads_and(even);
  if (threadIdx.x == 0) {
    votes[0] = several;
    votes[1] = some;
    votes[2] = all;
  }
}

// One warp: C (16, 8) = A (16, K) B (8, K)^T in 3xTF32, the next tile copied while one is used.
__global__ void product_3xtf32(const float* A, const float* B, float* C, int K) {
  FK_SHARED(float, a, [2][16 * 8]);
  FK_SHARED(float, b, [2][8 * 8]);
  const int lane = lane_index();
  const auto fetch = [&](int stage, int k) {
    const int row = lane / 2, column = lane % 2 * 4;
    cp_async<16>(&a[stage][row * 8 + column], &A[row * K + k + column]);
    if (lane < 16) cp_async<16>(&b[stage][row * 8 + column], &B[row * K + k + column]);
    cp_commit();
  };
  float d[4] = {0, 0, 0, 0};
  fetch(0, 0);
  for (int k = 0, stage = 0; k < K; k += 8, stage ^= 1) {
    if (k + 8 < K) {
      fetch(stage ^ 1, k + 8);
      cp_wait<1>();
    } else {
      cp_wait<0>();
    }
    __syncwarp();
    uint32_t a_big[4], a_small[4], b_big[2], b_small[2];
    for (int i = 0; i < 4; ++i) {
      const Place at = tf32_a(lane, i);
      split_tf32(a[stage][at.row * 8 + at.column], a_big[i], a_small[i]);
    }
    for (int i = 0; i < 2; ++i) {
      const Place at = tf32_b(lane, i);
      split_tf32(b[stage][at.column * 8 + at.row], b_big[i], b_small[i]);
    }
    mma_3xtf32(d, a_big, a_small, b_big, b_small);
    __syncwarp();
  }
  for (int i = 0; i < 4; ++i) {
    const Place at = mma_d(lane, i);
    C[at.row * 8 + at.column] = d[i];
  }
}

// The same of bf16 values, given as bits; four values of A (two of B) a load.
__global__ void product_bf16(const uint16_t* A, const uint16_t* B, float* C, int K) {
  const int lane = lane_index();
  float d[4] = {0, 0, 0, 0};
  for (int k = 0; k < K; k += 16) {
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; ++i) {
      const Place at = bf16_a(lane, 2 * i);
      memcpy(&a[i], &A[at.row * K + k + at.column], 4);
    }
    for (int i = 0; i < 2; ++i) {
      const Place at = bf16_b(lane, 2 * i);
      memcpy(&b[i], &B[at.column * K + k + at.row], 4);
    }
    mma_bf16(d, a, b);
  }
  for (int i = 0; i < 4; ++i) {
    const Place at = mma_d(lane, i);
    C[at.row * 8 + at.column] = d[i];
  }
}

// One warp copies 32 runs of 4 or 8 bytes; those from `valid` on are zeros.
template <int bytes>
__global__ void copy_some(const float* x, float* y, int valid) {
  constexpr int values = bytes / 4;
  FK_SHARED(float, s, [32 * values]);
  const int i = static_cast<int>(threadIdx.x);
  cp_async<bytes>(s + i * values, x + i * values, i < valid);
  cp_commit();
  cp_wait<0>();
  __syncwarp();
  for (int j = 0; j < values; ++j) y[i + 32 * j] = s[i + 32 * j];
}

// out = 2^x by the exact function and by the instruction.
__global__ void powers(const float* x, float* exact, float* approx) {
  exact[threadIdx.x] = exp2f(x[threadIdx.x]);
  approx[threadIdx.x] = exp2_approx(x[threadIdx.x]);
}

// Zero for x = y, unless the compiler fuses one of the products.
__global__ void difference_of_squares(const float* x, const float* y, float* out) {
  const int i = static_cast<int>(threadIdx.x);
  out[i] = x[i] * x[i] - y[i] * y[i];
}

}  // namespace fedkernels
