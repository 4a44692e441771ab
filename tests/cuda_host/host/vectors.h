// CUDA's vector types: what one load or store of 8 or 16 bytes moves. UBSan sees a misaligned one.
#pragma once

#define CUDA_HOST_VECTORS(type, name)                                        \
  struct alignas(2 * sizeof(type)) name##2 {                                 \
    type x, y;                                                               \
  };                                                                         \
  struct alignas(sizeof(type) == 8 ? 16 : 4 * sizeof(type)) name##4 {        \
    type x, y, z, w;                                                         \
  };                                                                         \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }           \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

CUDA_HOST_VECTORS(float, float)
CUDA_HOST_VECTORS(double, double)
CUDA_HOST_VECTORS(int, int)
CUDA_HOST_VECTORS(unsigned, uint)
CUDA_HOST_VECTORS(short, short)
CUDA_HOST_VECTORS(unsigned short, ushort)
#undef CUDA_HOST_VECTORS
