// Kernels with one fault each, and the same without it where the fault is a missing line: what
// test_harness.py expects to be caught.
#pragma once

#include "common/cuda.h"
#include "common/mma.h"

namespace fedkernels {

__global__ void some_skip_the_barrier(float* y) {
  if (threadIdx.x < 48) __syncthreads();
  y[threadIdx.x] = 1;
}

__global__ void a_barrier_in_each_branch(float* y) {
  if (threadIdx.x < 48) {
    y[0] = 1;
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void returned_lanes_in_the_mask(float* y, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= n) return;
  y[i] = __shfl_xor_sync(full_warp, y[i], 1);
}

__global__ void lane_outside_its_mask(float* y) {
  y[threadIdx.x] = __shfl_sync(0xffffu, y[threadIdx.x], 0);
}

__global__ void mask_beyond_the_block(float* y) {
  y[threadIdx.x] = __shfl_xor_sync(full_warp, y[threadIdx.x], 1);
}

__global__ void half_at_a_shuffle_half_at_the_barrier(float* y) {
  if (threadIdx.x < 16) {
    y[threadIdx.x] = __shfl_xor_sync(full_warp, y[threadIdx.x], 1);
  } else {
    __syncthreads();
  }
}

// y[i] = (i + 63) % 64, if the barrier is there.
__global__ void rotate_block(float* y, bool barrier) {
  FK_SHARED(float, s, [64]);
  const int i = static_cast<int>(threadIdx.x);
  s[i] = static_cast<float>(i);
  if (barrier) __syncthreads();
  y[i] = s[(i + 63) % 64];
}

// y[i] = i ^ 1, if __syncwarp is there.
__global__ void swap_in_warp(float* y, bool barrier) {
  FK_SHARED(float, s, [32]);
  const int i = static_cast<int>(threadIdx.x);
  s[i] = static_cast<float>(i);
  if (barrier) __syncwarp();
  y[i] = s[i ^ 1];
}

// Block 0 writes shared memory, block 1 only reads it. A template: its static is another one.
template <typename T>
__global__ void stale_static(T* y) {
  FK_SHARED(T, s, [32]);
  if (blockIdx.x == 0) s[threadIdx.x] = 7;
  __syncthreads();
  y[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];
}

__global__ void stale_dynamic(float* y) {
  FK_DYNAMIC_SHARED(float, s);
  if (blockIdx.x == 0) s[threadIdx.x] = 7;
  __syncthreads();
  y[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];
}

// y[i] = x[i], 4 values a thread, if the thread waits for its copy.
__global__ void copy(const float* x, float* y, int offset, bool wait) {
  FK_SHARED(float, s, [132]);
  const int i = static_cast<int>(threadIdx.x) * 4;
  cp_async<16>(s + i, x + i + offset);
  cp_commit();
  if (wait) cp_wait<0>();
  for (int j = 0; j < 4; ++j) y[i + j] = s[i + j];
}

__global__ void past_static_shared(float* y, int past) {
  FK_SHARED(float, s, [32]);
  s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x + past];
}

__global__ void past_dynamic_shared(float* y, int past) {
  FK_DYNAMIC_SHARED(float, s);
  s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x + past];
}

__global__ void past_global(const float* x, float* y, int past) {
  y[threadIdx.x] = x[threadIdx.x + past];
}

__global__ void index_overflows(float* y, int rows) {
  const int i = static_cast<int>(blockIdx.x) * rows;
  if (i == 0) y[threadIdx.x] = 1;
}

__global__ void much_static_shared(float* y) {
  FK_SHARED(float, s, [12289]);
  s[threadIdx.x] = 0;
  y[threadIdx.x] = s[threadIdx.x];
}

__global__ void nothing(float*) {}

}  // namespace fedkernels
