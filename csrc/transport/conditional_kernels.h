// The kernels of conditional transport for one instruction set.
//
// Included once per instruction set (common/each_capability.h): no include guard.

#include "common/simd_math.h"
#include "common/product.h"

// A namespace of its own: what one instruction set compiles twice must be the same everywhere.
namespace conditional {
#include "transport/conditional_pairs.h"
#include "transport/conditional_forward.h"
#include "transport/conditional_backward.h"

template <typename T>
constexpr ConditionalKernels<T> kernels{
    columns<T>,  scratch_size<T>,    prepare<T>,          forward<T>,
    backward<T>, forward_columns<T>, backward_columns<T>,
};
}  // namespace conditional
