// What the transport kernels of the CPU share: one problem and where its results go.
#pragma once

#include <cmath>
#include <cstdint>

namespace fedkernels {

// fedkernels.transport.TransportStatus.
enum class Status : uint8_t {
  converged = 0,
  max_iter = 1,
  non_finite = 2,
  infeasible = 3,
  empty = 4
};

// One problem inside a batch of padded blocks: minimise <P, C> + eps KL(P | a x b).
template <typename T>
struct Problem {
  int64_t n, m;              // its own size
  int64_t block_n, block_m;  // of the padded block; cost rows lie block_m apart
  const T* cost;             // (block_n, block_m)
  const T *a, *b;            // (n), (m), or null: uniform
  const T* g0;               // (m) or null: 0
  double eps;

  // Filled by `prepare`: totals of both sides as the kernel uses them (equal when balanced), the
  // factor that brings b there, log2(e) / eps rounded once.
  double mass_a, mass_b, factor_b;
  T scale;
  bool good;  // false: the status is known, nothing is iterated

  T *value, *linear, *f, *g, *u, *v, *r, *c;
  int32_t* n_iter;
  T* error;
  uint8_t* status;

  T mass_of_row(int64_t i) const { return a ? a[i] : static_cast<T>(mass_a / n); }
  T mass_of_column(int64_t j) const { return static_cast<T>(b ? b[j] * factor_b : mass_b / m); }
};

// Settings of a call.
struct Settings {
  double rho_a, rho_b;  // infinity: balanced on that side
  int64_t max_iter;
  double tol;
  bool log;  // every iteration in the log domain
  bool sor;

  bool balanced() const { return rho_a == HUGE_VAL && rho_b == HUGE_VAL; }
  // ka = rho / (rho + eps): how far a step of that side goes.
  static double damping(double rho, double eps) {
    return rho == HUGE_VAL ? 1.0 : rho / (rho + eps);
  }
};

// Problems up to this size on both sides are solved side by side, one in each lane of the vectors.
constexpr int64_t lanes_limit = 32;
// Problems with more entries are cut into stripes of rows, which threads can share.
constexpr int64_t striped_cells = int64_t{1} << 18;

// Entry points of one instruction set.
template <typename T>
struct SinkhornKernels {
  int64_t lanes;
  // Solves problems of up to (height, width), pulled in order from `take` (-1: none left).
  void (*solve_lanes)(Problem<T>* problems, int64_t height, int64_t width, int64_t (*take)(void*),
                      void* queue, const Settings&);
  // Solves one larger problem; stripes of rows are shared out when `threads` is set.
  void (*solve_rows)(Problem<T>& problem, const Settings&, bool threads);
  // out[j] = scale * exp2(-C[j] s + u + v[j]).
  void (*plan_row)(const T* cost, T s, T u, const T* v, T scale, int64_t m, T* out);
};

template <typename T>
const SinkhornKernels<T>& sinkhorn_kernels_here();

}  // namespace fedkernels
