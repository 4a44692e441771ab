// Prototypes on the CPU: what the ops (prototype_cpu.cpp, cross_entropy_cpu.cpp) and the kernels
// share.
//
//   distance  d_ij = |x_i - mu_j|^2, its root, 1 - cos(x_i, mu_j) or -x_i . mu_j
//   logit     z_ij = -d_ij / temperature + log_prior_j, -inf where masked
//
// The prototypes are made ready once a call: centred (squares) or normalised (cosine), and packed
// in panels of the packed product. Rows of x come in blocks; a block is widened and made ready the
// same way, multiplied with all panels into a tile of dots that stays in cache, and the tile
// becomes distances, nearest prototypes, a softmax, or the gradients W = dL/ddot:
//
//   dx = W mu + own_i x,    dmu = W^T x + own_j mu
//
// where `own` gathers what depends on a point's own norm. One product forward, three with the
// gradients. Blocks form stripes that depend on the shape alone; a stripe's sums over rows are its
// own, and stripes are added up in ascending order: the same bits for every number of threads.
//
// A squared distance from norms and a dot is right to the rounding of |x|^2 + |mu|^2. Where it is
// small against that ("close"), it is taken from the differences instead.
#pragma once

#include <cstdint>

#include "common/element.h"

namespace fedkernels {

enum class PrototypeMetric { sqeuclidean, euclidean, cosine, dot };

template <typename T>
struct Prototypes {
  int64_t N, K, D;
  PrototypeMetric metric;
  Element element;  // of x
  const void* x;
  const T* mu;
  const T* centre;      // (D,), or null: of squares alone
  const uint8_t* mask;  // null: all may be used
  int64_t mask_row;     // from a row of the mask to the next, 0 where all rows share one
  const T* log_prior;   // or null
  T per_temperature;

  int64_t padded;  // K, rounded up to whole vectors
  int64_t depth;   // D, rounded up to whole panels
  int64_t stride;  // of rows that are made ready
  int64_t block;   // rows of a block

  // Made ready, by `prepare`.
  T* ready;    // (K, stride): centred or normalised
  T* panels;   // of ready^T, (D, columns) each
  T* norms;    // (padded,): |mu|^2 of what is ready; cosine: 1/|mu|, 0 for a zero vector
  T* offsets;  // (padded,): log2 of the prior, -inf where masked for all rows and in the padding
};

// What a call reads and writes beyond the prototypes; null where there is none.
template <typename T>
struct PrototypeRows {
  T *distance, *prob, *lse, *loss;
  int64_t* index;
  int64_t k;  // nearest prototypes of a row

  // Cross-entropy.
  const int64_t* label;
  const T *soft, *class_weight, *row_weight, *value;  // value_i = sum_j w_j t_ij
  const uint8_t* part;                                // 0: the row takes no part
  T share;  // of a row in the loss: 1, or 1 / sum of values

  // Gradients that come in (of distance or prob, lse and mass) and go out.
  const T *given, *g_prob, *g_lse, *g_mass;
  bool want_mu, want_prior;
  void* dx;
};

// A stripe's sums over rows: dmu (K, stride), then two arrays of `padded`.
template <typename T>
struct PrototypeSums {
  T *mu, *own, *logit;
};

template <typename T>
struct PrototypeKernels {
  int64_t lanes, columns, tile_rows;
  int64_t (*scratch)(const Prototypes<T>&);  // of one thread, in elements
  void (*prepare)(const Prototypes<T>&, int64_t first_panel, int64_t last_panel);
  // Blocks begin .. end of rows.
  void (*distance)(const Prototypes<T>&, const PrototypeRows<T>&, int64_t begin, int64_t end,
                   T* scratch);
  void (*assign)(const Prototypes<T>&, const PrototypeRows<T>&, int64_t begin, int64_t end,
                 T* scratch);
  void (*softmax)(const Prototypes<T>&, const PrototypeRows<T>&, int64_t begin, int64_t end,
                  const PrototypeSums<T>&, T* scratch);
  void (*cross_entropy)(const Prototypes<T>&, const PrototypeRows<T>&, int64_t begin, int64_t end,
                        const PrototypeSums<T>&, T* scratch);
  void (*distance_backward)(const Prototypes<T>&, const PrototypeRows<T>&, int64_t begin,
                            int64_t end, const PrototypeSums<T>&, T* scratch);
  void (*softmax_backward)(const Prototypes<T>&, const PrototypeRows<T>&, int64_t begin,
                           int64_t end, const PrototypeSums<T>&, T* scratch);
  // Gradients of prototypes begin .. end from the sums of all rows.
  void (*finish)(const Prototypes<T>&, const PrototypeSums<T>&, int64_t begin, int64_t end, T* dmu);
};

template <typename T>
const PrototypeKernels<T>& prototype_kernels_here();

}  // namespace fedkernels
