// Transport between clouds of points on the CPU: what the vector kernels (points_kernels.h), the
// solver of one problem (points_solve.h) and the ops (points_cpu.cpp) agree on.
//
//   C_ij = metric(x_i, y_j)     K_ij = -scale C_ij     P_ij = 2^(K_ij + u_i + v_j)
//
// No (n, m) matrix is held: tiles of C are computed from a tile of products x y^T and dropped. The
// same expression, in the same order, is behind every tile of every op, so that the plan that the
// iteration ended with is the plan that the gradients see, bit for bit; it is symmetric in x and y,
// so that a sweep over columns is a sweep over rows of the swapped pair.
#pragma once

#include <cstdint>

namespace fedkernels {

enum class Metric : int64_t { sqeuclidean = 0, euclidean = 1, cosine = 2 };

// One cloud, centred (cosine: of length 1), in panels of `width` points: (panels, D, width), zero
// past the last point. `norms`: squared lengths; for cosine 1 / length of the point that was given,
// 0 for a zero vector. Whole panels, zero past the last point.
template <typename T>
struct Cloud {
  int64_t count;
  const T* panels;
  const T* norms;
};

template <typename T>
struct Pair {
  Cloud<T> x, y;
  int64_t D;
  Metric metric;
  T scale;                  // log2(e) / eps
  const T* kept = nullptr;  // tiles of width x width (points_tile.h), where they were kept

  Pair swapped() const { return {y, x, D, metric, scale, nullptr}; }
};

// How a side moves: from u, where its sums are r, to
//   u + relax (log_mass - log2 r)                      balanced; relax is 1, or 1/2 where one
//                                                      potential serves both sides
//   u + log2(relaxed_factor(mass / r, omega))          balanced, omega != 1 (relaxation.h)
//   u + relax (log_mass - u - damping (log2 r - u))    damping = rho / (rho + eps)
template <typename T>
struct Side {
  const T* log_mass;  // whole panels, -inf past the last point
  T damping = 1, relax = 1, omega = 1;
};

// One full iteration over a stripe of rows. Arrays hold whole panels; u and v are -inf past the
// last point.
//   r_i = sum_j P_ij     next_i: how the side moves     column_sum_j = sum_i P_ij 2^(next_i - u_i)
template <typename T>
struct Sweep {
  Pair<T> points;
  const T* u;
  const T* v;
  Side<T> side;
  T* r;
  T* next;
  T* column_sum;  // of the stripe, or null: not asked for
};

// Weights of a plan's entries, as gradients take them: P_ij (w0 + w1 C_ij + alpha_i + beta_j).
template <typename T>
struct Weighted {
  Pair<T> points;
  const T* u;
  const T* v;
  T w0, w1;
  const T* alpha;  // whole panels, or null
  const T* beta;   // whole panels, or null
  const T* V;      // (whole panels of y, width d), rows that are multiplied by the weights
  int64_t d;       // a multiple of `width`
};

// The exported functions of one instruction set. `begin`, `end` are rows; `begin` is a multiple of
// block_rows. `scratch` holds scratch_size elements.
template <typename T>
struct PointsKernels {
  int64_t width;
  int64_t (*block_rows)(int64_t m);
  int64_t (*scratch_size)(int64_t m, int64_t d);
  // Squared lengths of a packed cloud, in the order of the products: |x - x|^2 is exactly 0.
  void (*norms)(const T* panels, int64_t count, int64_t D, T* out);
  // out: the tiles of the rows with all of y, as Pair::kept holds them.
  void (*keep_tiles)(const Pair<T>&, int64_t begin, int64_t end, T* out);
  // False if a sum or a step left the range in which nothing that counts is lost to underflow: the
  // iteration is then redone by log_sums. r is right either way, to its rounding.
  bool (*sweep)(const Sweep<T>&, int64_t begin, int64_t end, T* scratch);
  // out_i = log2 sum_j 2^(K_ij + v_j), around the largest term.
  void (*log_sums)(const Pair<T>&, const T* v, int64_t begin, int64_t end, T* out, T* scratch);
  // r_i = sum_j P_ij, cost_i = sum_j P_ij C_ij, column_sum_j = sum_i P_ij (of the stripe).
  void (*marginals)(const Pair<T>&, const T* u, const T* v, int64_t begin, int64_t end, double* r,
                    double* cost, T* column_sum, T* scratch);
  // out (n, ld) = factor P.
  void (*plan)(const Pair<T>&, const T* u, const T* v, T factor, int64_t begin, int64_t end, T* out,
               int64_t ld, T* scratch);
  // out (n, columns) = P V.
  void (*apply)(const Weighted<T>&, int64_t begin, int64_t end, T* out, int64_t columns,
                T* scratch);
  // out (n, D) = sum_j W_ij dC_ij / dx_i, V the points y.
  void (*gradient)(const Weighted<T>&, int64_t begin, int64_t end, T* out, T* scratch);
  // next of a whole side from its sums; false if one of them is out of range (see sweep).
  bool (*advance)(const Side<T>&, const T* u, const T* r, int64_t count, T* next);
  // The same from log_sum_i = log2 sum_j 2^(K_ij + v_j); u may be null where relax and omega are 1.
  void (*advance_log)(const Side<T>&, const T* u, const T* log_sum, int64_t count, T* next);
  void (*log2)(const T* in, int64_t count, T* out);  // whole vectors
  void (*exp2)(const T* in, int64_t count, T* out);
};

// The kernels of the instruction set that runs (points_kernels_cpu.cpp).
template <typename T>
const PointsKernels<T>& points_kernels_here();

}  // namespace fedkernels
