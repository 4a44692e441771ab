// Tensor cores and asynchronous copies: the only place where PTX is written. The host versions
// (tests/cuda_host) compute the same from the same fragments.
//
// A warp multiplies D (16, 8) += A (16, k) B (k, 8), k = 8 for TF32 and 16 for bf16. Fragments, as
// the PTX manual lays them out (section "Matrix fragments for mma.m16n8k8 / m16n8k16"): `tf32_a`
// and its sisters name the element that a lane holds in a register.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/cuda.h"

namespace fedkernels {

// Row and column of an element in its own matrix: A (16, k), B (k, 8), D (16, 8).
struct Place {
  int row;
  int column;
};

// TF32: A in 4 registers, B in 2, D in 4 floats.
FK_HOST_DEVICE Place tf32_a(int lane, int i) {
  return {lane / 4 + i % 2 * 8, lane % 4 + i / 2 * 4};
}
FK_HOST_DEVICE Place tf32_b(int lane, int i) { return {lane % 4 + i * 4, lane / 4}; }
FK_HOST_DEVICE Place mma_d(int lane, int i) { return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2}; }

// bf16: 8 values of A in 4 registers, 4 of B in 2 (value i is half i % 2 of register i / 2, the low
// half first), D as above.
FK_HOST_DEVICE Place bf16_a(int lane, int i) {
  return {lane / 4 + i / 2 % 2 * 8, lane % 4 * 2 + i % 2 + i / 4 * 8};
}
FK_HOST_DEVICE Place bf16_b(int lane, int i) {
  return {lane % 4 * 2 + i % 2 + i / 2 * 8, lane / 4};
}

#if defined(__CUDACC__)

// Rounds to the 10 mantissa bits of TF32, to nearest, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Starts a copy of `bytes` (4, 8 or 16; both addresses aligned to them) into shared memory; with
// `valid` false the source is not read and zeros are written. It is there for this thread after
// cp_wait, for the others after a barrier too.
template <int bytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid = true) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int read = valid ? bytes : 0;
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(read)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global),
                 "n"(bytes), "r"(read)
                 : "memory");
  }
}

// Closes a group of copies.
__device__ __forceinline__ void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the last `pending` groups of this thread have arrived.
template <int pending>
__device__ __forceinline__ void cp_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

#else

using cuda_host::cp_async;
using cuda_host::cp_commit;
using cuda_host::cp_wait;
using cuda_host::to_tf32;

// The rendezvous names the kernel's line: the default argument is evaluated at the call.
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     cuda_host::Where at = cuda_host::Where::current()) {
  cuda_host::mma<8, tf32_a, tf32_b, mma_d>(d, a, b, at);
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     cuda_host::Where at = cuda_host::Where::current()) {
  cuda_host::mma<16, bf16_a, bf16_b, mma_d>(d, a, b, at);
}

#endif

__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid = true) {
  cp_async<16>(shared, global, valid);
}

// x = big + small with both in TF32: 21 of 24 mantissa bits, |x - big - small| <= 2^-22 |x|.
__device__ __forceinline__ void split_tf32(float x, uint32_t& big, uint32_t& small) {
  big = to_tf32(x);
  float rounded;
  memcpy(&rounded, &big, sizeof(rounded));
  small = to_tf32(x - rounded);
}

// D += A B in 3xTF32: float32 to the last bits, where one TF32 product keeps 10. The small products
// come first; small times small is below the last bit. Tensor cores round sums towards zero: a sum
// that stays there over a long K drifts, so each call starts at 0 and is added to D outside.
__device__ __forceinline__ void mma_3xtf32(float (&d)[4], const uint32_t (&a_big)[4],
                                           const uint32_t (&a_small)[4],
                                           const uint32_t (&b_big)[2],
                                           const uint32_t (&b_small)[2]) {
  float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  mma_tf32(part, a_small, b_big);
  mma_tf32(part, a_big, b_small);
  mma_tf32(part, a_big, b_big);
#pragma unroll
  for (int i = 0; i < 4; ++i) d[i] += part[i];
}

}  // namespace fedkernels
