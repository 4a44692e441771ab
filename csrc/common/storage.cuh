// Storage types of points in kernels: read as float32, written with one rounding. The type is an
// argument, not a template parameter: a uniform branch at each load, and one kernel instead of
// three.
#pragma once

#include <cstdint>

#include "common/cuda.h"

namespace fedkernels {

enum : int { kFloat32, kBfloat16, kFloat16 };

struct alignas(16) Quad {
  float x[4];
};

struct alignas(8) HalfQuad {
  uint16_t x[4];
};

__device__ __forceinline__ float widen_bf16(uint16_t bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

__device__ __forceinline__ float widen_f16(uint16_t bits) {
  const unsigned magnitude = static_cast<unsigned>(bits & 0x7fff) << 13;
  // 2^112 moves the exponent, and makes subnormal numbers of float16 normal.
  const float moved = __uint_as_float(magnitude) * 0x1p112f;
  const unsigned value =
      magnitude >= 0x7c00u << 13 ? magnitude | 0x7f800000u : __float_as_uint(moved);
  return __uint_as_float(value | static_cast<unsigned>(bits & 0x8000) << 16);
}

// To nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ uint16_t narrow_bf16(float x) {
  const unsigned bits = __float_as_uint(x);
  const unsigned rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return static_cast<uint16_t>((x != x ? 0x7fc00000u : rounded) >> 16);
}

__device__ __forceinline__ uint16_t narrow_f16(float x) {
  const unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000;
  unsigned size = bits & 0x7fffffff;
  if (size > 0x7f800000u) {
    size = 0x7e00;
  } else if (size >= 0x47800000u) {  // 2^16: infinity
    size = 0x7c00;
  } else if (size < 0x38800000u) {  // 2^-14: one addition rounds to multiples of 2^-24
    size = __float_as_uint(__uint_as_float(size) + 0.5f) - __float_as_uint(0.5f);
  } else {
    size = (size - 0x38000000u + 0xfff + ((size >> 13) & 1)) >> 13;
  }
  return static_cast<uint16_t>(sign | size);
}

struct Stored {
  const void* data;
  int kind;
  bool aligned;  // four elements from a multiple of four on may be read at once

  __device__ __forceinline__ float operator[](int64_t i) const {
    if (kind == kFloat32) return static_cast<const float*>(data)[i];
    const uint16_t bits = static_cast<const uint16_t*>(data)[i];
    return kind == kBfloat16 ? widen_bf16(bits) : widen_f16(bits);
  }

  // Elements i .. i + 3, those from `count` on as 0; i is a multiple of 4 where `aligned`.
  __device__ __forceinline__ Quad quad(int64_t i, int count) const {
    Quad result{};
    if (aligned && count >= 4) {
      if (kind == kFloat32) {
        result = *reinterpret_cast<const Quad*>(static_cast<const float*>(data) + i);
      } else {
        const HalfQuad halves =
            *reinterpret_cast<const HalfQuad*>(static_cast<const uint16_t*>(data) + i);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          result.x[e] = kind == kBfloat16 ? widen_bf16(halves.x[e]) : widen_f16(halves.x[e]);
        }
      }
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (e < count) result.x[e] = (*this)[i + e];
      }
    }
    return result;
  }
};

__device__ __forceinline__ void store_as(void* data, int kind, int64_t i, float value) {
  if (kind == kFloat32) {
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<uint16_t*>(data)[i] = kind == kBfloat16 ? narrow_bf16(value) : narrow_f16(value);
  }
}

// What a value becomes that is stored and read again.
__device__ __forceinline__ float rounded_as(int kind, float value) {
  return kind == kFloat32    ? value
         : kind == kBfloat16 ? widen_bf16(narrow_bf16(value))
                             : widen_f16(narrow_f16(value));
}

// Points (count, D): `aligned` if every row starts where four elements may be read at once.
inline Stored stored(const void* data, int kind, int64_t D) {
  const std::uintptr_t unit = kind == kFloat32 ? 16 : 8;
  return {data, kind, D % 4 == 0 && reinterpret_cast<std::uintptr_t>(data) % unit == 0};
}

}  // namespace fedkernels
