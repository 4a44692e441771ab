// What the Sinkhorn kernels of one call share: the operands, and one record a problem that the
// first kernel fills (sizes, units, totals, what is wrong) and the iterations complete. float32.
//
//   prepare       totals in double, units, statuses                      (here)
//   on_chip       one launch a class of size, n, m <= 128                (sinkhorn_on_chip.cuh)
//   stream        larger problems, two launches an iteration             (sinkhorn_stream.cuh)
//   finish        value, error, status; then f, g and the padding        (sinkhorn_finish.cuh)
//
// Every launch looks at every problem and leaves those of other classes, so that nothing has to be
// known on the host: no copy, no waiting. A class follows the problem's own (n, m), and every sum
// has an order of its own class: a problem's bits depend on that problem alone.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "common/cuda.h"
#include "transport/relaxation.h"

namespace fedkernels {

enum SinkhornStatus : int { kLive = -1, kConverged, kMaxIter, kNonFinite, kInfeasible, kEmpty };

struct SinkhornProblem {
  double total_a, total_b;  // of balanced problems both are sum a
  double ratio;             // what b is multiplied by: total_a / total_b where balanced
  double eps;
  double linear;               // <P, C>, left by the iterations
  float scale;                 // log2(e) / eps, rounded once
  float uniform_a, uniform_b;  // masses of a side that is not given
  float damping_a, damping_b;  // rho / (rho + eps), 1 where balanced
  float share_a;               // eps / rho_a, 0 where balanced: log2 of the row target is
                               // log2 a - share_a (u - log2 a)
  int n, m;
  int state;    // kLive: to be iterated; otherwise the status
  int refused;  // a cost that is not finite was met
  int n_iter;   // 0 while a problem runs
  int passed;   // the stop test was met
};

struct SinkhornCall {
  const float* cost;  // (B|1, n, m); a stride of 0 shares it
  const float* a;     // (B|1, n) or null
  const float* b;     // (B|1, m) or null
  const double* eps;  // (B|1)
  const int64_t* sizes;  // (B, 2) or null
  const float* g0;       // (B|1, m) or null
  int64_t cost_stride, a_stride, b_stride, eps_stride, g0_stride;
  int64_t batch;
  int n, m;  // of the padded block
  double rho_a, rho_b;
  int max_iter;
  float tol;
  bool log, sor;
  float *value, *linear, *f, *g, *u, *v, *r, *c, *error;
  int32_t* n_iter;
  uint8_t* status;
  SinkhornProblem* problems;  // (B)

  __device__ __forceinline__ const float* cost_of(int64_t k) const {
    return cost + k * cost_stride;
  }

  __device__ __forceinline__ float mass_a(const SinkhornProblem& p, int64_t k, int i) const {
    return a == nullptr ? p.uniform_a : a[k * a_stride + i];
  }

  // Scaled onto the total of a, in double.
  __device__ __forceinline__ float mass_b(const SinkhornProblem& p, int64_t k, int j) const {
    if (b == nullptr) return p.uniform_b;
    return static_cast<float>(static_cast<double>(b[k * b_stride + j]) * p.ratio);
  }

  // v before the first iteration.
  __device__ __forceinline__ float start(const SinkhornProblem& p, int64_t k, int j,
                                         float log_b) const {
    return g0 == nullptr ? log_b : log_b + p.scale * g0[k * g0_stride + j];
  }
};

// Finite and not NaN; a comparison, since isfinite is spelt differently on host and device.
__device__ __forceinline__ bool finite(float x) { return fabsf(x) <= FLT_MAX; }
__device__ __forceinline__ bool finite(double x) { return fabs(x) <= DBL_MAX; }

// log2 P_ij, everywhere by this expression: the plan that is returned is the plan that was solved.
__device__ __forceinline__ float log2_plan(float cost, float scale, float u, float v) {
  return fmaf(-cost, scale, u) + v;
}

// x / y to the last bit, or 0, inf or NaN where y or x / y leaves the normal range: a reciprocal
// and a correction in place of the division with its slow path.
__device__ __forceinline__ float divide(float x, float y) {
  const float inverse = __fdividef(1.0f, y);
  const float quotient = x * inverse;
  return fmaf(fmaf(-y, quotient, x), inverse, quotient);
}

// Factor by which a side is multiplied when its sums are t: log2 p = log2 a - damping (log2 t - u)
// - u.
__device__ __forceinline__ float scaling(float mass, float t, float u, float damping) {
  if (!(mass > 0.0f)) return 0.0f;
  if (damping == 1.0f) return divide(mass, t);
  return exp2f(log2f(mass) - damping * (log2f(t) - u) - u);
}

// The factor of a side's scaling when its marginal is t: about (mass / t)^omega.
__device__ __forceinline__ float relaxed(float mass, float t, float omega) {
  return mass > 0.0f ? relaxed_factor(divide(mass, t), omega) : 0.0f;
}

// The row sum that is asked for: a, or a exp(-f / rho_a).
__device__ __forceinline__ float row_target(float mass, float u, float share) {
  if (!(mass > 0.0f)) return 0.0f;
  if (share == 0.0f) return mass;
  const float log_mass = log2f(mass);
  return exp2f(log_mass - share * (u - log_mass));
}

// One problem by `lanes` lanes. Lanes beyond a problem add zeros, which changes no sum: the bits do
// not depend on `lanes`, which follows the padded block.
template <int lanes>
__global__ void __launch_bounds__(128) sinkhorn_prepare(SinkhornCall call) {
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t k = (static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x) / lanes;
  const bool inside = k < call.batch;
  SinkhornProblem p{};
  if (inside) {
    p.n = call.n, p.m = call.m;
    if (call.sizes != nullptr) {
      const int64_t rows = call.sizes[2 * k], columns = call.sizes[2 * k + 1];
      p.n = static_cast<int>(rows < 0 ? 0 : rows < call.n ? rows : call.n);
      p.m = static_cast<int>(columns < 0 ? 0 : columns < call.m ? columns : call.m);
    }
    p.eps = call.eps[k * call.eps_stride];
  }
  double sum_a = 0.0, sum_b = 0.0;
  int wrong = 0;  // 1: a negative mass, 2: a start that is not finite
  if (call.a != nullptr) {
    for (int i = lane; i < p.n; i += lanes) {
      const float x = call.a[k * call.a_stride + i];
      sum_a += x;
      wrong |= x < 0.0f ? 1 : 0;
    }
  }
  if (call.b != nullptr) {
    for (int j = lane; j < p.m; j += lanes) {
      const float x = call.b[k * call.b_stride + j];
      sum_b += x;
      wrong |= x < 0.0f ? 1 : 0;
    }
  }
  if (call.g0 != nullptr) {
    for (int j = lane; j < p.m; j += lanes) {
      wrong |= finite(call.g0[k * call.g0_stride + j]) ? 0 : 2;
    }
  }
  sum_a = warp_reduce<lanes>(sum_a, Sum());
  sum_b = warp_reduce<lanes>(sum_b, Sum());
  const int negative = warp_reduce<lanes>(wrong & 1, Maximum());
  const int bad_start = warp_reduce<lanes>(wrong & 2, Maximum());
  if (!inside || lane != 0) return;

  // A side that is not given takes the other's total, or 1; an empty side holds nothing.
  if (call.a == nullptr) sum_a = p.n == 0 ? 0.0 : call.b == nullptr ? 1.0 : sum_b;
  if (call.b == nullptr) sum_b = p.m == 0 ? 0.0 : call.a == nullptr ? 1.0 : sum_a;
  p.scale = static_cast<float>(1.4426950408889634 / p.eps);
  const bool usable = finite(p.eps) && p.eps > 0.0 && finite(p.scale) && p.scale > 0.0f &&
                      finite(sum_a) && finite(sum_b) && bad_start == 0;
  const bool free_a = finite(call.rho_a), free_b = finite(call.rho_b);
  const bool nothing = sum_a == 0.0 || sum_b == 0.0;
  const bool empty = p.n == 0 || p.m == 0;
  const double larger = sum_a > sum_b ? sum_a : sum_b;
  bool unequal;
  p.ratio = 1.0;
  p.total_a = sum_a, p.total_b = sum_b;
  if (!free_a && !free_b) {
    unequal = fabs(sum_a - sum_b) > 1e-4 * larger;
    if (!nothing) p.ratio = sum_a / sum_b;
    if (!nothing && !unequal) p.total_b = sum_a;
  } else {
    // With an empty plan, a balanced side must be empty too.
    unequal = nothing && ((!free_a && sum_a > 0.0) || (!free_b && sum_b > 0.0));
  }
  p.state = empty ? kEmpty : nothing ? kConverged : kLive;
  if (negative != 0 || unequal || (empty && larger > 0.0)) p.state = kInfeasible;
  if (!usable) p.state = kNonFinite;
  p.uniform_a = p.n == 0 ? 0.0f : static_cast<float>(sum_a / p.n);
  p.uniform_b = p.m == 0 ? 0.0f : static_cast<float>(sum_b / p.m * p.ratio);
  p.damping_a = free_a ? static_cast<float>(call.rho_a / (call.rho_a + p.eps)) : 1.0f;
  p.damping_b = free_b ? static_cast<float>(call.rho_b / (call.rho_b + p.eps)) : 1.0f;
  p.share_a = free_a ? static_cast<float>(p.eps / call.rho_a) : 0.0f;
  call.problems[k] = p;
}

}  // namespace fedkernels
