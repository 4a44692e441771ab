// What .cu and .cuh files use beyond plain CUDA C++, so that the same source compiles under nvcc
// and, for tests without a GPU, under a C++ compiler with tests/cuda_host on the include path.
//
//   FK_SHARED(float, tile, [2][64]);      static shared memory, aligned to 16 bytes
//   FK_SHARED(float, total);              the same, one value
//   FK_DYNAMIC_SHARED(float, rows);       `float* rows`: what the launch asked for, aligned to 16
//   FK_LAUNCH((kernel<T, 256>), grid, block, shared_bytes, stream, arguments...);
//
// FK_LAUNCH asks for dynamic shared memory beyond 48 KiB where it is needed, and throws with the
// kernel's name if CUDA refuses the launch. It never waits for the GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/host_device.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#define FK_SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__
#define FK_DYNAMIC_SHARED(type, name)                                     \
  extern __shared__ __align__(16) unsigned char fk_dynamic_shared_[];     \
  type* name = reinterpret_cast<type*>(fk_dynamic_shared_)
#define FK_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::fedkernels::launch(#kernel, kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

namespace fedkernels {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            std::size_t shared_bytes, cudaStream_t stream, Arguments... arguments) {
  // Static and dynamic shared memory together may take 48 KiB unasked; no kernel of ours has more
  // than 32 KiB of the first kind.
  if (shared_bytes > 16 * 1024) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               name);
  }
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  check_cuda(cudaGetLastError(), name);
}

namespace detail {
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}
}  // namespace detail

// Bytes of shared memory that a block may have on the current device, static and dynamic together:
// 166,912 on an A100, 232,448 from the H100 on.
inline int shared_memory_limit() {
  return detail::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

// For grids that stride over their work. No result may depend on it.
inline int multiprocessor_count() {
  return detail::device_attribute(cudaDevAttrMultiProcessorCount);
}

// 2^x in one instruction: within 2^-22 of it, results below 2^-126 become 0. exp2f costs three more
// instructions and keeps those.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The value, of which the compiler knows nothing: what follows from it is computed where it is
// needed, not once ahead of every loop, where it takes registers all along.
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

}  // namespace fedkernels
#else
#include "cuda_host.h"

namespace fedkernels {
inline int opaque(int x) { return x; }
}  // namespace fedkernels
#endif

namespace fedkernels {

constexpr int warp_size = 32;
constexpr unsigned full_warp = 0xffffffffu;

// A grid of these many blocks; throws where CUDA would refuse it. A grid with no block is refused
// too: the caller returns before it launches nothing.
inline dim3 grid_of(int64_t x, int64_t y = 1, int64_t z = 1) {
  if (x < 1 || x > 0x7fffffff || y < 1 || y > 65535 || z < 1 || z > 65535) {
    throw std::runtime_error("no grid of (" + std::to_string(x) + ", " + std::to_string(y) + ", " +
                             std::to_string(z) + ") blocks: 1 to 2147483647, 65535, 65535");
  }
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

FK_HOST_DEVICE int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % warp_size; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / warp_size; }

struct Sum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

// NaN, once there, stays: the maximum of a row with a NaN is NaN (fmax would drop it).
struct Maximum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};

struct Minimum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b || a != a ? a : b;
  }
};

// The reduction of `value` over aligned groups of `width` lanes; every lane gets the same bits,
// since the operations commute. All lanes of the warp take part.
template <int width = warp_size, typename T, typename Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
  static_assert(width > 0 && width <= warp_size && (width & (width - 1)) == 0);
#pragma unroll
  for (int step = width / 2; step > 0; step /= 2) {
    value = op(value, __shfl_xor_sync(full_warp, value, step));
  }
  return value;
}

// The reduction of `value` over a block of `threads` threads in x, whole warps; every thread gets
// the same bits, whatever the order in which warps arrive. Two barriers.
template <int threads, typename T, typename Op>
__device__ __forceinline__ T block_reduce(T value, Op op) {
  static_assert(threads % warp_size == 0 && threads <= 1024);
  value = warp_reduce(value, op);
  if constexpr (threads > warp_size) {
    FK_SHARED(T, partial, [threads / warp_size]);
    __syncthreads();  // the values of an earlier call may still be in use
    if (lane_index() == 0) partial[warp_index()] = value;
    __syncthreads();
    value = partial[0];
#pragma unroll
    for (int warp = 1; warp < threads / warp_size; ++warp) value = op(value, partial[warp]);
  }
  return value;
}

}  // namespace fedkernels
