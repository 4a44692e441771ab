// Sums over the rows of each class: what the op and its kernels share.
//
//   sum_k = sum_i w_i s_ik x_i (K, D),  total_k = sum_i w_i s_ik,  count_k = sum_i s_ik
//
// for x (N, D) in its storage type S, weights w (N,) or null (1), and labels that are hard (s_ik =
// 1 where label i is k) or soft (N, K). A row of weight 0, of a weight that is negative or NaN, or
// of a label out of range takes no part.
//
// Hard labels are bound by one read of x, so sums run in double at no cost. Two plans, chosen by
// the shape alone:
//   direct  stripes of rows, each adds into (K, D) sums of its own; stripes are added in order.
//   sorted  where those sums would not stay in cache: rows in the order of their classes (a stable
//           counting sort), runs of at most `class_sum_run` rows of one class are summed in
//           registers, the runs of a class are added in order.
// Soft labels are a product S^T x: in T over blocks of rows, blocks in double, stripes in order.
//
// Stripes, blocks and runs depend on the shape (and the labels), never on threads: same bits.
#pragma once

#include <cstdint>

#include "common/element.h"

namespace fedkernels {

constexpr int64_t class_sum_run = 1024;

// Widened to T for every storage type S.
template <typename T>
struct ClassSumRows {
  Element element;
  const void* x;
  const T* weight;  // null: 1
  int64_t D, K;
};

// Sums of one stripe; count is for hard labels, shares for soft ones.
struct ClassSums {
  double* sum;    // (K, D)
  double* total;  // (K,)
  int64_t* count;
  double* shares;
};

template <typename T>
struct ClassSumKernels {
  // Hard labels: rows begin .. end added to `to`.
  void (*direct)(const ClassSumRows<T>& rows, const int64_t* labels, int64_t begin, int64_t end,
                 const ClassSums& to);
  // Rows order[0 .. count) of one class: their sum into sum (D,), in order.
  void (*gather)(const ClassSumRows<T>& rows, const int64_t* order, int64_t count, double* sum);
  // Soft labels (N, K): columns first .. last of x, rows begin .. end added to `to`.
  void (*soft)(const ClassSumRows<T>& rows, const T* shares, int64_t begin, int64_t end,
               int64_t first, int64_t last, const ClassSums& to, T* scratch);
  int64_t (*soft_scratch)(int64_t K, int64_t D);
  int64_t columns;  // `first` and `last` of soft are multiples of this, or D
};

template <typename T>
const ClassSumKernels<T>& class_sum_kernels_here();

}  // namespace fedkernels
