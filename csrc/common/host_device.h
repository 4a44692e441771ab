// FK_HOST_DEVICE marks a function that CPU kernels and CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define FK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FK_HOST_DEVICE inline
#endif
