// Mathematical functions of device code, by the host's library. With CUDA_HOST_COARSE every
// function that CUDA does not round correctly is off by the largest error that its programming
// guide states, up or down as the argument's bits fall: a kernel that is within budget then is not
// so by luck.
#pragma once

#include <math.h>

#include <algorithm>  // min, max
#include <bit>
#include <cmath>
#include <cstdint>

#include "intrinsics.h"

using std::max;
using std::min;

namespace cuda_host {

// `exact`, or under CUDA_HOST_COARSE what is `ulps` away from it.
inline float off_by(int ulps, float exact, float argument) {
#if defined(CUDA_HOST_COARSE)
  if (!std::isfinite(exact) || exact == 0.0f || ulps == 0) return exact;
  const bool up = std::bit_cast<std::uint32_t>(argument) * 0x9e3779b9u >> 31;
  for (int i = 0; i < ulps; ++i) exact = std::nextafterf(exact, up ? INFINITY : -INFINITY);
#else
  (void)ulps;
  (void)argument;
#endif
  return exact;
}

}  // namespace cuda_host

// Programming guide, "Mathematical Functions": errors in units of the last place.
inline float __log2f(float x) {
  const float exact = std::log2(x);
#if defined(CUDA_HOST_COARSE)
  // Between 0.5 and 2 the error is absolute: 2^-22.
  if (x >= 0.5f && x <= 2.0f) return exact + cuda_host::off_by(1, 0x1p-22f, x);
#endif
  return cuda_host::off_by(2, exact, x);
}
inline float __expf(float x) {
  return cuda_host::off_by(2 + static_cast<int>(std::fabs(1.173f * x)), std::exp(x), x);
}
inline float __logf(float x) { return 0.693147182f * __log2f(x); }
inline float __fdividef(float a, float b) { return cuda_host::off_by(2, a / b, b); }

namespace fedkernels {
inline float exp2_approx(float x) {
  const float y = cuda_host::off_by(2, std::exp2(x), x);
  return y < 0x1p-126f ? 0.0f : y;
}
}  // namespace fedkernels

#if defined(CUDA_HOST_COARSE)
namespace cuda_host {
// Functions, so that an argument is evaluated once: it may hold a shuffle.
inline float coarse_exp2(float x) { return off_by(2, std::exp2(x), x); }
inline float coarse_log2(float x) { return off_by(1, std::log2(x), x); }
inline float coarse_exp(float x) { return off_by(2, std::exp(x), x); }
inline float coarse_log(float x) { return off_by(1, std::log(x), x); }
}  // namespace cuda_host
// The library's names, which a kernel calls as CUDA's.
#define exp2f(x) ::cuda_host::coarse_exp2(x)
#define log2f(x) ::cuda_host::coarse_log2(x)
#define expf(x) ::cuda_host::coarse_exp(x)
#define logf(x) ::cuda_host::coarse_log(x)
#endif

// Rounded correctly, whatever the compiler's flags: no contraction crosses them.
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) {
  volatile float sum = a + b;
  return sum;
}
inline float __fsub_rn(float a, float b) { return __fadd_rn(a, -b); }
inline float __fmul_rn(float a, float b) {
  volatile float product = a * b;
  return product;
}
inline double __dmul_rn(double a, double b) {
  volatile double product = a * b;
  return product;
}
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float rsqrtf(float x) { return cuda_host::off_by(2, 1.0f / std::sqrt(x), x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
