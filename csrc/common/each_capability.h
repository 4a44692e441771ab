// Compiles the file named by FEDKERNELS_KERNELS once per instruction set, each in a namespace of
// its own: plain (what every x86-64 or other processor runs), avx2 and avx512. The file holds
// templates over vectors of VECTOR_BYTES; nothing in it may be reached from outside but through
// the function pointers that it exports, so that no AVX instruction runs unasked. Intrinsics stand
// behind WITH_AVX2 (defined for avx512 too) and WITH_AVX512: under the pragma g++ does not define
// __AVX2__ and its like.
//
// No include guard: one family, one inclusion.

#define VECTOR_BYTES 16
namespace fedkernels::plain {
#include FEDKERNELS_KERNELS
}
#undef VECTOR_BYTES

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define VECTOR_BYTES 32
#define WITH_AVX2
namespace fedkernels::avx2 {
#include FEDKERNELS_KERNELS
}
#undef VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define VECTOR_BYTES 64
#define WITH_AVX512
namespace fedkernels::avx512 {
#include FEDKERNELS_KERNELS
}
#undef VECTOR_BYTES
#undef WITH_AVX2
#undef WITH_AVX512
#pragma GCC pop_options
#endif
