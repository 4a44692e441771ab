// Conditional transport on the CPU: what the ops (conditional_cpu.cpp) and the kernels share.
//
//   s_ij = x_i . y_j / t, cos_ij / t or -c_ij / t;   c_ij = 1 - cos_ij or |x_i - y_j|^2
//   rows:    lse_i = log sum_j q_j exp(s_ij),  cost_i = sum_j q_j exp(s_ij - lse_i) c_ij
//   columns: the same with p, over i
//
// The pairs are symmetric in x and y, so the longer side gives the rows ("left"), cut into blocks
// of `block_rows`; the other side ("right") is prepared, a section of columns at a time, in panels
// of the packed product. One product per pair forward, three backward (the dot again, W Y, W^T X);
// both directions' softmax statistics come from the tile of dots while it is in the first cache.
// Blocks form stripes that depend on the shape alone; a stripe's column sums are its own, and
// stripes are added up in ascending order: the same bits for every number of threads.
#pragma once

#include <cstdint>

namespace fedkernels {

constexpr int64_t conditional_block_rows = 48;

// What is kept of each point of a side, in arrays of one length.
enum ConditionalField {
  norm,      // squared, centred under squared Euclid
  high,      // 1/|x| and what rounding took from it; both 0 for a zero vector
  low,       //
  shift,     // what turns a centred dot into the dot of the points
  mass,      // forward: over the largest; backward: as it is
  log_mass,  // log2 of it (forward)
  lse,       // log2 units; a silent point (no gradient comes in) has `far`
  cost,
  g_cost,
  g_lse,
  factor,  // of a row, where both directions share an exponential
  conditional_fields
};

template <typename T>
struct ConditionalSide {
  T* data;
  int64_t length;
  T* operator[](ConditionalField field) const { return data + field * length; }
};

// The points of one side of one problem, and what belongs to them; null where there is none.
template <typename T>
struct ConditionalPoints {
  const T* points;
  int64_t count;
  const T* mass;
  T largest_mass;  // at least the smallest normal number
  const T *lse, *cost, *g_cost, *g_lse;
};

template <typename T>
struct Conditional {
  int64_t D;
  int64_t depth;   // D, rounded up to the width of a panel
  int64_t stride;  // of rows in scratch
  int mode;        // 3 * cost + logits
  bool backward;
  T scale, per_temperature;  // log2(e) / t, 1 / t
  const T* centre;           // (depth,) under squared Euclid, or null
  ConditionalPoints<T> left, right;

  // The section of the right side in work: columns first .. first + width.
  int64_t first, width, padded;
  bool first_section, last_section;
  T* turned;  // panels of right^T, (depth rows, columns) each
  T* panels;  // backward: panels of right, (padded, columns) for each panel of the depth
  ConditionalSide<T> columns;

  // Forward: rows' running (shift, total, weighted cost) between sections, 3 arrays of left.count.
  T* row_state;
  T *row_cost, *row_lse;
  // Backward: what is wanted.
  T *d_left, *d_left_mass;
  bool want_right;
};

// A stripe's column sums. Forward: (shift, total, weighted cost), 3 arrays of `padded`.
// Backward: (padded, depth) of W^T left, then four arrays of `padded`.
constexpr int64_t conditional_forward_sums = 3, conditional_backward_sums = 4;

template <typename T>
struct ConditionalKernels {
  int64_t columns;
  // Scratch of one thread, in elements.
  int64_t (*scratch)(const Conditional<T>&);
  // Panels first .. last of the section's right side.
  void (*prepare)(const Conditional<T>&, int64_t first, int64_t last, T* scratch);
  // Blocks begin .. end of rows, into a stripe's sums.
  void (*forward)(const Conditional<T>&, int64_t begin, int64_t end, T* sums, T* scratch);
  void (*backward)(const Conditional<T>&, int64_t begin, int64_t end, T* sums, T* scratch);
  // Columns begin .. end (within the section) from the stripes' sums, `size` elements apart.
  void (*forward_columns)(const Conditional<T>&, const T* sums, int64_t stripes, int64_t size,
                          int64_t begin, int64_t end, T* cost, T* lse);
  void (*backward_columns)(const Conditional<T>&, T* sums, int64_t stripes, int64_t size,
                           int64_t begin, int64_t end, T* d_right, T* d_right_mass);
};

template <typename T>
const ConditionalKernels<T>& conditional_kernels_here();

}  // namespace fedkernels
