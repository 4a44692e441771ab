// The Sinkhorn kernels of one instruction set.
//
// Included once per instruction set (common/each_capability.h): no include guard.

// Each needs those before it.
#include "common/simd_math.h"
#include "common/product.h"
#include "transport/sinkhorn_math.h"
#include "transport/sinkhorn_lanes.h"
#include "transport/sinkhorn_rows.h"

template <typename T>
constexpr SinkhornKernels<T> sinkhorn_kernels = {Simd<T>::lanes, solve_lanes<T>, solve_rows<T>,
                                                 plan_row<T>};
