// mma.sync on fragments: products exact, their sum rounded once per instruction; with
// CUDA_HOST_COARSE towards zero, as tensor cores do.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "warp.h"

namespace cuda_host {

// To the 10 mantissa bits of TF32, to nearest, ties away from zero.
inline std::uint32_t to_tf32(float x) {
  if (x != x) return 0x7fffffffu;
  return (std::bit_cast<std::uint32_t>(x) + 0x1000u) & ~0x1fffu;
}

inline float towards_zero(double sum) {
  const float nearest = static_cast<float>(sum);
  if (!(std::fabs(nearest) > std::fabs(sum)) || std::isinf(sum)) return nearest;
  return std::nextafter(nearest, 0.0f);
}

// What the instruction reads of a register: TF32 drops the low 13 bits.
template <int k>
float operand(const unsigned char* registers, int i) {
  if constexpr (k == 8) {
    std::uint32_t bits;
    std::memcpy(&bits, registers + 4 * i, 4);
    return std::bit_cast<float>(bits & ~0x1fffu);
  } else {
    std::uint16_t bits;
    std::memcpy(&bits, registers + 2 * i, 2);
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
}

// D (16, 8) += A (16, k) B (k, 8); `place_*` say which element lane and value stand for.
template <int k, auto place_a, auto place_b, auto place_d>
void complete_mma(Thread* warp, unsigned) {
  float a[16][k], b[k][8];
  for (int lane = 0; lane < 32; ++lane) {
    const unsigned char* given = warp[lane].given;
    for (int i = 0; i < k / 2; ++i) {
      const auto at = place_a(lane, i);
      a[at.row][at.column] = operand<k>(given, i);
    }
    for (int i = 0; i < k / 4; ++i) {
      const auto at = place_b(lane, i);
      b[at.row][at.column] = operand<k>(given + 16, i);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float d[4];
    std::memcpy(d, warp[lane].received, sizeof(d));
    for (int i = 0; i < 4; ++i) {
      const auto at = place_d(lane, i);
      double sum = d[i];
      for (int j = 0; j < k; ++j) sum += static_cast<double>(a[at.row][j]) * b[j][at.column];
#if defined(CUDA_HOST_COARSE)
      d[i] = towards_zero(sum);
#else
      d[i] = static_cast<float>(sum);
#endif
    }
    std::memcpy(warp[lane].received, d, sizeof(d));
  }
}

template <int k, auto place_a, auto place_b, auto place_d>
void mma(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const Where& at) {
  Thread& thread = block.current();
  std::memcpy(thread.given, a, sizeof(a));
  std::memcpy(thread.given + 16, b, sizeof(b));
  std::memcpy(thread.received, d, sizeof(d));
  block.wait_in_warp(every_lane, complete_mma<k, place_a, place_b, place_d>, "mma.sync", at);
  std::memcpy(d, thread.received, sizeof(d));
}

}  // namespace cuda_host
