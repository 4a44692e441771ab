// The kernels of prototypes for one instruction set.
//
// Included once per instruction set (common/each_capability.h): no include guard.

#include "common/simd_math.h"
#include "common/product.h"

// A namespace of its own: what one instruction set compiles twice must be the same everywhere.
namespace prototype {
#include "prototype/prototype_ready.h"
#include "prototype/prototype_tile.h"
#include "prototype/prototype_assign.h"
#include "prototype/prototype_softmax.h"
#include "prototype/prototype_gradient.h"

// Calls f with the metric as a type.
template <typename F>
inline void with_metric(Metric metric, const F& f) {
  switch (metric) {
    case Metric::sqeuclidean:
      return f(std::integral_constant<Metric, Metric::sqeuclidean>{});
    case Metric::euclidean:
      return f(std::integral_constant<Metric, Metric::euclidean>{});
    case Metric::cosine:
      return f(std::integral_constant<Metric, Metric::cosine>{});
    default:
      return f(std::integral_constant<Metric, Metric::dot>{});
  }
}

template <typename T>
void distance(const Prototypes<T>& f, const PrototypeRows<T>& io, int64_t begin, int64_t end,
              T* scratch) {
  with_metric(f.metric, [&](auto m) { distance_as<T, m.value>(f, io, begin, end, scratch); });
}

template <typename T>
void assign(const Prototypes<T>& f, const PrototypeRows<T>& io, int64_t begin, int64_t end,
            T* scratch) {
  with_metric(f.metric, [&](auto m) { assign_as<T, m.value>(f, io, begin, end, scratch); });
}

template <typename T>
void softmax(const Prototypes<T>& f, const PrototypeRows<T>& io, int64_t begin, int64_t end,
             const PrototypeSums<T>& sums, T* scratch) {
  with_metric(f.metric, [&](auto m) { softmax_as<T, m.value>(f, io, begin, end, sums, scratch); });
}

template <typename T>
void cross_entropy(const Prototypes<T>& f, const PrototypeRows<T>& io, int64_t begin, int64_t end,
                   const PrototypeSums<T>& sums, T* scratch) {
  with_metric(f.metric,
              [&](auto m) { cross_entropy_as<T, m.value>(f, io, begin, end, sums, scratch); });
}

template <typename T>
void distance_backward(const Prototypes<T>& f, const PrototypeRows<T>& io, int64_t begin,
                       int64_t end, const PrototypeSums<T>& sums, T* scratch) {
  with_metric(f.metric,
              [&](auto m) { distance_backward_as<T, m.value>(f, io, begin, end, sums, scratch); });
}

template <typename T>
void softmax_backward(const Prototypes<T>& f, const PrototypeRows<T>& io, int64_t begin,
                      int64_t end, const PrototypeSums<T>& sums, T* scratch) {
  with_metric(f.metric,
              [&](auto m) { softmax_backward_as<T, m.value>(f, io, begin, end, sums, scratch); });
}

template <typename T>
constexpr PrototypeKernels<T> kernels{
    Simd<T>::lanes,   columns<T>,           tile_rows,           scratch_size<T>,
    prepare<T>,       distance<T>,          assign<T>,           softmax<T>,
    cross_entropy<T>, distance_backward<T>, softmax_backward<T>, finish_prototypes<T>,
};
}  // namespace prototype
