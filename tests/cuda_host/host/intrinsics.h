// Keywords, casts of bits, integer intrinsics, cached loads and integer atomics.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#define __global__
#define __grid_constant__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T, typename V>
void __stcs(T* p, V value) {
  *p = value;
}

// One thread runs at a time: nothing to order.
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace cuda_host {

// Sums of floats by atomics depend on the order of arrival: the package has none.
template <typename T>
using Atomic = std::enable_if_t<std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), T>;
template <typename T>
using Same = std::type_identity_t<T>;

template <typename T, typename F>
T atomic(T* p, const F& f) {
  const T old = *p;
  *p = f(old);
  return old;
}

}  // namespace cuda_host

template <typename T>
cuda_host::Atomic<T> atomicAdd(T* p, cuda_host::Same<T> value) {
  // Wraps around, as on the GPU.
  using U = std::make_unsigned_t<T>;
  return cuda_host::atomic(
      p, [&](T old) { return static_cast<T>(static_cast<U>(old) + static_cast<U>(value)); });
}
template <typename T>
cuda_host::Atomic<T> atomicMax(T* p, cuda_host::Same<T> value) {
  return cuda_host::atomic(p, [&](T old) { return old > value ? old : value; });
}
template <typename T>
cuda_host::Atomic<T> atomicMin(T* p, cuda_host::Same<T> value) {
  return cuda_host::atomic(p, [&](T old) { return old < value ? old : value; });
}
template <typename T>
cuda_host::Atomic<T> atomicOr(T* p, cuda_host::Same<T> value) {
  return cuda_host::atomic(p, [&](T old) { return static_cast<T>(old | value); });
}
template <typename T>
cuda_host::Atomic<T> atomicAnd(T* p, cuda_host::Same<T> value) {
  return cuda_host::atomic(p, [&](T old) { return static_cast<T>(old & value); });
}
template <typename T>
cuda_host::Atomic<T> atomicExch(T* p, cuda_host::Same<T> value) {
  return cuda_host::atomic(p, [&](T) { return value; });
}
template <typename T>
cuda_host::Atomic<T> atomicCAS(T* p, cuda_host::Same<T> expected, cuda_host::Same<T> value) {
  return cuda_host::atomic(p, [&](T old) { return old == expected ? value : old; });
}
