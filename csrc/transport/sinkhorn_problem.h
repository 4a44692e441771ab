// What is done once per problem, in double: totals and validity before, value and error after.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "transport/transport.h"

namespace fedkernels {

// Sets the results of the problem's own part, u and v to `log_fill`, and the padding to 0.
template <typename T>
void settle(Problem<T>& problem, Status status, T value, T fill, T log_fill) {
  *problem.value = value;
  *problem.linear = *problem.error = fill;
  *problem.n_iter = 0;
  *problem.status = static_cast<uint8_t>(status);
  for (T* rows : {problem.f, problem.u, problem.r}) {
    std::fill(rows, rows + problem.n, rows == problem.u ? log_fill : fill);
    std::fill(rows + problem.n, rows + problem.block_n, T{0});
  }
  for (T* columns : {problem.g, problem.v, problem.c}) {
    std::fill(columns, columns + problem.m, columns == problem.v ? log_fill : fill);
    std::fill(columns + problem.m, columns + problem.block_m, T{0});
  }
}

template <typename T>
void fail(Problem<T>& problem, Status status) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  settle(problem, status, nan, nan, nan);
}

// No plan: potentials of mass 0, and the value that is left.
template <typename T>
void settle_without_plan(Problem<T>& problem, Status status, double value) {
  settle(problem, status, static_cast<T>(value), T{0}, -std::numeric_limits<T>::infinity());
}

struct Total {
  double sum;
  bool finite, negative;
};

template <typename T>
Total total_of(const T* mass, int64_t n) {
  Total total{0.0, true, false};
  for (int64_t i = 0; i < n; ++i) {
    total.sum += mass[i];
    total.finite &= std::isfinite(mass[i]);
    total.negative |= mass[i] < 0;
  }
  return total;
}

// The kernels look at the cost as they load it; where the masses decide, it is looked at here.
template <typename T>
bool finite_cost(const Problem<T>& problem) {
  if (problem.cost == nullptr) return true;
  for (int64_t i = 0; i < problem.n; ++i) {
    const T* row = problem.cost + i * problem.block_m;
    if (!std::all_of(row, row + problem.m, [](T c) { return std::isfinite(c); })) return false;
  }
  return true;
}

template <typename T>
void refuse(Problem<T>& problem) {
  fail(problem, finite_cost(problem) ? Status::infeasible : Status::non_finite);
}

// Totals, scale and validity. False: the results are settled, nothing is left to do.
template <typename T>
bool prepare(Problem<T>& problem, const Settings& settings) {
  const int64_t n = problem.n, m = problem.m;
  Total a{1.0, true, false}, b = a;
  if (problem.a) a = total_of(problem.a, n);
  if (problem.b) b = total_of(problem.b, m);
  if (!problem.a && problem.b) a.sum = b.sum;
  if (!problem.b && problem.a) b.sum = a.sum;
  const bool start = !problem.g0 || total_of(problem.g0, m).finite;
  problem.scale = static_cast<T>(1.4426950408889634074 / problem.eps);
  const bool eps = std::isfinite(problem.eps) && problem.eps > 0 && std::isfinite(problem.scale);
  const bool finite = a.finite && b.finite && start && eps;
  if (!finite) return fail(problem, Status::non_finite), false;
  if (a.negative || b.negative) return refuse(problem), false;
  if (n == 0 || m == 0) {
    if (n == 0) a.sum = 0;
    if (m == 0) b.sum = 0;
    if (a.sum != 0 || b.sum != 0) return refuse(problem), false;
    return settle_without_plan(problem, Status::empty, 0.0), false;
  }
  problem.mass_a = a.sum;
  problem.mass_b = b.sum;
  problem.factor_b = 1.0;
  if (settings.balanced()) {
    const double allowed = sizeof(T) == 8 ? 1e-6 : 1e-4;
    if (std::fabs(a.sum - b.sum) > allowed * std::max(a.sum, b.sum)) {
      return refuse(problem), false;
    }
    if (a.sum != b.sum) problem.factor_b = a.sum / b.sum;
    problem.mass_b = a.sum;
  }
  if (a.sum == 0 || b.sum == 0) {
    // What stays is the penalty of the mass that is there, unless it is constrained.
    double left = 0;
    for (const auto& [rho, sum] : {std::pair{settings.rho_a, a.sum}, {settings.rho_b, b.sum}}) {
      if (sum == 0) continue;
      if (rho == HUGE_VAL) return refuse(problem), false;
      left += rho * sum;
    }
    if (!finite_cost(problem)) return refuse(problem), false;
    return settle_without_plan(problem, Status::converged, left), false;
  }
  return true;
}

// -rho (e^(-f / rho) - 1), or f where rho is infinite: what a unit of mass adds to the dual value.
inline double dual_term(double f, double rho) {
  return rho == HUGE_VAL ? f : -rho * std::expm1(-f / rho);
}

// Value, error and status from f, g and r, which the kernel has written, and from the plan's sums.
template <typename T>
void conclude(Problem<T>& problem, const Settings& settings, int64_t n_iter, bool converged,
              double plan_sum, double linear) {
  double value = 0, error = 0;
  for (int64_t i = 0; i < problem.n; ++i) {
    const double mass = problem.mass_of_row(i), f = problem.f[i];
    if (mass == 0) continue;  // its row of the plan is 0
    value += mass * dual_term(f, settings.rho_a);
    const double wanted = settings.rho_a == HUGE_VAL ? mass : mass * std::exp(-f / settings.rho_a);
    error += std::fabs(problem.r[i] - wanted);
  }
  for (int64_t j = 0; j < problem.m; ++j) {
    const double mass = problem.mass_of_column(j);
    if (mass != 0) value += mass * dual_term(problem.g[j], settings.rho_b);
  }
  value -= problem.eps * (plan_sum - problem.mass_a * problem.mass_b);
  const T results[] = {static_cast<T>(value), static_cast<T>(linear), static_cast<T>(error)};
  for (const T result : results) {
    // Beyond the range of T, too.
    if (!std::isfinite(result)) return fail(problem, Status::non_finite);
  }
  *problem.value = results[0];
  *problem.linear = results[1];
  *problem.error = results[2];
  *problem.n_iter = static_cast<int32_t>(n_iter);
  // A problem that stopped is believed as far as rounding reaches: what the returned plan misses by
  // more (eps below the rounding of the cost) has not converged.
  const double rounding = 0.1 * std::sqrt(std::numeric_limits<T>::epsilon()) * problem.mass_a;
  converged = settings.tol > 0 && error <= settings.tol + (converged ? rounding : 0.0);
  *problem.status = static_cast<uint8_t>(converged ? Status::converged : Status::max_iter);
  for (T* rows : {problem.f, problem.u, problem.r}) {
    std::fill(rows + problem.n, rows + problem.block_n, T{0});
  }
  for (T* columns : {problem.g, problem.v, problem.c}) {
    std::fill(columns + problem.m, columns + problem.block_m, T{0});
  }
}

}  // namespace fedkernels
