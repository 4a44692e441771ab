// After the iterations: value, error and status of each problem (sums in double), then f, g and
// what the padding and the problems without a solution hold.
#pragma once

#include "transport/sinkhorn_problem.cuh"

namespace fedkernels {

// <a, f>, or -rho <a, expm1(-f / rho)>: one term of it.
__device__ __forceinline__ double side_term(double mass, double f, double rho) {
  return mass * (finite(rho) ? -rho * expm1(-f / rho) : f);
}

// One problem by `lanes` lanes, as in sinkhorn_prepare. The order of the double sums does not
// depend on `lanes`.
template <int lanes>
__global__ void __launch_bounds__(128) sinkhorn_finish(SinkhornCall call) {
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t k = (static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x) / lanes;
  const bool inside = k < call.batch;
  SinkhornProblem p{};
  p.state = kEmpty;
  if (inside) p = call.problems[k];
  const bool solved = p.state == kLive && p.refused == 0;
  double value = 0.0, sum = 0.0, error = 0.0;
  if (solved) {
    for (int i = lane; i < p.n; i += lanes) {
      const float a = call.mass_a(p, k, i), r = call.r[k * call.n + i];
      float target = 0.0f;
      if (a > 0.0f) {
        const float f = (call.u[k * call.n + i] - log2f(a)) / p.scale;
        value += side_term(a, f, call.rho_a);
        target = finite(call.rho_a) ? a * expf(-f / static_cast<float>(call.rho_a)) : a;
      }
      sum += r;
      error += fabsf(r - target);
    }
    for (int j = lane; j < p.m; j += lanes) {
      const float b = call.mass_b(p, k, j);
      if (b > 0.0f) {
        value += side_term(b, (call.v[k * call.m + j] - log2f(b)) / p.scale, call.rho_b);
      }
    }
  }
  value = warp_reduce<lanes>(value, Sum());
  sum = warp_reduce<lanes>(sum, Sum());
  error = warp_reduce<lanes>(error, Sum());
  if (!inside || lane != 0) return;

  int status = p.refused != 0 ? static_cast<int>(kNonFinite) : p.state;
  double linear = 0.0;
  if (solved) {
    value -= p.eps * (sum - p.total_a * p.total_b);
    linear = p.linear;
    status = p.passed != 0 ? kConverged : kMaxIter;
    // Finite inputs whose products leave the range of float32 end here too.
    if (!finite(static_cast<float>(value)) || !finite(static_cast<float>(linear)) ||
        !finite(static_cast<float>(error))) {
      status = kNonFinite;
    }
  } else {
    // Without a plan each penalty is rho times the mass that stays.
    value = finite(call.rho_a) ? call.rho_a * p.total_a : 0.0;
    if (finite(call.rho_b)) value += call.rho_b * p.total_b;
  }
  const bool bad = status == kNonFinite || status == kInfeasible;
  call.value[k] = bad ? NAN : static_cast<float>(value);
  call.linear[k] = bad ? NAN : static_cast<float>(linear);
  call.error[k] = bad ? NAN : static_cast<float>(error);
  call.n_iter[k] = bad || !solved ? 0 : p.n_iter;
  call.status[k] = static_cast<uint8_t>(status);
}

// -damping lse2_j(K_j + v_j): what the potential of a zero mass is. A walk along a row (step 1) or
// a column (step = the row length).
__device__ __forceinline__ float transform(const float* cost, int64_t step, const float* v,
                                           int count, float scale, float damping) {
  float largest = -INFINITY, sum = 0.0f;
  for (int j = 0; j < count; ++j) {
    largest = Maximum()(largest, fmaf(-cost[j * step], scale, v[j]));
  }
  for (int j = 0; j < count; ++j) sum += exp2f(fmaf(-cost[j * step], scale, v[j]) - largest);
  return -damping * (largest + log2f(sum));
}

// One thread for each entry of f, u, r and of g, v, c.
__global__ void __launch_bounds__(256) sinkhorn_potentials(SinkhornCall call) {
  const int64_t both = static_cast<int64_t>(call.n) + call.m;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t k = index / both;
  if (k >= call.batch) return;
  int i = static_cast<int>(index % both);
  const bool row = i < call.n;
  if (!row) i -= call.n;
  const SinkhornProblem& p = call.problems[k];
  const int extent = row ? call.n : call.m, valid = row ? p.n : p.m;
  const int64_t at = k * extent + i;
  float* potential = row ? call.f : call.g;
  float* log_scaling = row ? call.u : call.v;
  float* marginal = row ? call.r : call.c;
  const int status = call.status[k];
  if (i >= valid) {
    potential[at] = log_scaling[at] = marginal[at] = 0.0f;
  } else if (status == kNonFinite || status == kInfeasible) {
    potential[at] = log_scaling[at] = marginal[at] = NAN;
  } else if (p.state != kLive) {
    potential[at] = marginal[at] = 0.0f;
    log_scaling[at] = -INFINITY;
  } else {
    const float mass = row ? call.mass_a(p, k, i) : call.mass_b(p, k, i);
    float units;
    if (mass > 0.0f) {
      units = log_scaling[at] - log2f(mass);
    } else if (row) {
      units = transform(call.cost_of(k) + static_cast<int64_t>(i) * call.m, 1, call.v + k * call.m,
                        p.m, p.scale, p.damping_a);
    } else {
      units = transform(call.cost_of(k) + i, call.m, call.u + k * call.n, p.n, p.scale,
                        p.damping_b);
    }
    potential[at] = units / p.scale;
  }
}

}  // namespace fedkernels
