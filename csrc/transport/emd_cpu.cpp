// The op of exact optimal transport: reads masses and sizes, leaves out rows and columns without
// mass, solves every problem by the network simplex (emd_simplex.h), makes the duals feasible
// everywhere. Parallel over problems; a problem's bits depend on that problem alone. All in double.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "common/capability.h"
#include "common/scratch.h"
#include "transport/emd.h"

#define FEDKERNELS_KERNELS "transport/emd_simplex.h"
#include "common/each_capability.h"

namespace fedkernels {
namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

// fedkernels.transport.TransportStatus
enum Status : uint8_t { converged = 0, max_iter = 1, non_finite = 2, infeasible = 3, empty = 4 };

EmdSolve solve_here() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::avx512:
      return avx512::exported_emd();
    case Capability::avx2:
      return avx2::exported_emd();
    default:
      break;
  }
#endif
  return plain::exported_emd();
}

// One problem inside its padded block.
struct Problem {
  int64_t n, m;  // its own size
  int64_t row;   // stride of cost and plan
  const double* cost;
  const double* a;  // or null for uniform
  const double* b;
  double mismatch;  // relative difference of the totals that is scaled away
  int64_t max_pivot;
  double* value;
  double* f;
  double* g;
  double* plan;  // zeros
  uint8_t* status;
};

// What one thread needs for problems up to (n, m).
struct Room {
  Room(int64_t n, int64_t m)
      : cost(n * emd_stride(m)),
        a(n),
        b(m),
        potential(emd_stride(m) + n),
        nodes(emd_stride(m) + n),
        rows(n),
        columns(m) {}
  Scratch<double> cost, a, b, potential;
  Scratch<EmdNode> nodes;
  Scratch<int64_t> rows, columns;  // those with mass
};

void fill(const Problem& p, Status status, double value) {
  *p.status = status;
  *p.value = value;
  std::fill_n(p.f, p.n, value);
  std::fill_n(p.g, p.m, value);
  if (value == 0) return;
  for (int64_t i = 0; i < p.n; ++i) std::fill_n(p.plan + i * p.row, p.m, value);
}

struct Masses {
  bool finite = true, negative = false;
  double total = 0;
};

Masses look(const double* mass, int64_t count) {
  Masses found;
  for (int64_t i = 0; i < count; ++i) {
    found.finite &= std::isfinite(mass[i]);
    found.negative |= mass[i] < 0;
    found.total += mass[i];
  }
  found.finite &= std::isfinite(found.total);
  return found;
}

bool finite_cost(const Problem& p) {
  bool finite = true;
  for (int64_t i = 0; i < p.n; ++i) {
    double sum = 0;  // 0 c is 0 for every finite c and NaN for the others
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < p.m; ++j) sum += 0 * p.cost[i * p.row + j];
    finite &= sum == 0;
  }
  return finite;
}

// The masses that are not zero, side by side, scaled; their places; how many.
int64_t keep(const double* mass, int64_t count, double uniform, double factor, double* out,
             int64_t* places) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double value = mass != nullptr ? mass[i] * factor : uniform;
    if (value > 0) out[kept] = value, places[kept++] = i;
  }
  return kept;
}

// Fills the tableau with the rows and columns that have mass.
EmdTableau tableau_of(const Problem& p, const Room& room, int64_t n, int64_t m) {
  const int64_t stride = emd_stride(m);
  const int64_t* columns = room.columns.get();
  double size = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double* from = p.cost + room.rows.get()[i] * p.row;
    double* to = room.cost.get() + i * stride;
    if (m == p.m) {
      std::copy_n(from, m, to);
    } else {
      for (int64_t j = 0; j < m; ++j) to[j] = from[columns[j]];
    }
    double most = 0;
    for (int64_t j = 0; j < m; ++j) most = std::max(most, std::abs(to[j]));
    size = std::max(size, most);
    std::fill(to + m, to + stride, infinity);
  }
  // A potential is a sum along the tree, whose rounding grows with the depth: below it a reduced
  // cost says nothing.
  const double tolerance =
      std::numeric_limits<double>::epsilon() * size * (8 + static_cast<double>(n + m) / 16);
  return {n,
          m,
          stride,
          room.cost.get(),
          room.a.get(),
          room.b.get(),
          room.potential.get(),
          room.nodes.get(),
          tolerance,
          p.max_pivot};
}

// Duals of every row and column, feasible by construction:
//   f_i = min_j (C_ij - g_j) over the columns with mass, g_j = min_i (C_ij - f_i) for those
//   without.
// On cells of the tree both hold with equality. The constant between f and g makes <a,f> = <b,g>.
void duals(const Problem& p, const Room& room, const EmdTableau& t, double uniform_a,
           double uniform_b) {
  const double* g = t.potential;
  const double* f = t.potential + t.stride;
  const int64_t* rows = room.rows.get();
  const int64_t* columns = room.columns.get();
  double of_a = 0, of_b = 0, mass_a = 0, mass_b = 0;
  for (int64_t i = 0; i < t.n; ++i) {
    const double a = p.a != nullptr ? p.a[rows[i]] : uniform_a;
    of_a += a * f[i], mass_a += a;
  }
  for (int64_t j = 0; j < t.m; ++j) {
    const double b = p.b != nullptr ? p.b[columns[j]] : uniform_b;
    of_b += b * g[j], mass_b += b;
  }
  const double shift = (of_b / mass_b - of_a / mass_a) / 2;
  const bool all = t.m == p.m;
  std::fill_n(p.g, p.m, 0.0);
  for (int64_t j = 0; j < t.m; ++j) p.g[columns[j]] = g[j] - shift;
  for (int64_t i = 0; i < p.n; ++i) {
    const double* cost = p.cost + i * p.row;
    double least = infinity;
    if (all) {
      for (int64_t j = 0; j < t.m; ++j) least = std::min(least, cost[j] - p.g[j]);
    } else {
      for (int64_t j = 0; j < t.m; ++j) {
        least = std::min(least, cost[columns[j]] - p.g[columns[j]]);
      }
    }
    p.f[i] = least;
  }
  for (int64_t j = 0, kept = 0; j < p.m; ++j) {
    if (kept < t.m && columns[kept] == j) {
      ++kept;
      continue;
    }
    double least = infinity;
    for (int64_t i = 0; i < p.n; ++i) least = std::min(least, p.cost[i * p.row + j] - p.f[i]);
    p.g[j] = least;
  }
}

void solve_one(const Problem& p, const Room& room, EmdSolve solve) {
  Masses of_a = p.a != nullptr ? look(p.a, p.n) : Masses{};
  Masses of_b = p.b != nullptr ? look(p.b, p.m) : Masses{};
  if (!of_a.finite || !of_b.finite || !finite_cost(p)) return fill(p, non_finite, nan);
  if (of_a.negative || of_b.negative) return fill(p, infeasible, nan);
  // None is uniform, with the other side's total where that is given; nothing holds no mass.
  if (p.a == nullptr) of_a.total = p.n == 0 ? 0 : p.b != nullptr ? of_b.total : 1;
  if (p.b == nullptr) of_b.total = p.m == 0 ? 0 : p.a != nullptr ? of_a.total : 1;
  const double larger = std::max(of_a.total, of_b.total);
  if (p.n == 0 || p.m == 0) {
    const bool nothing = larger == 0 || (p.n == 0 && p.m == 0);
    return nothing ? fill(p, empty, 0) : fill(p, infeasible, nan);
  }
  if (larger == 0) return fill(p, converged, 0);
  if (!(std::abs(of_a.total - of_b.total) <= p.mismatch * larger)) return fill(p, infeasible, nan);

  const double uniform_a = of_a.total / static_cast<double>(p.n);
  const double uniform_b = of_b.total / static_cast<double>(p.m);
  const double factor = of_a.total == of_b.total ? 1 : of_a.total / of_b.total;
  const int64_t n = keep(p.a, p.n, uniform_a, 1, room.a.get(), room.rows.get());
  const int64_t m = keep(p.b, p.m, uniform_b * factor, factor, room.b.get(), room.columns.get());
  if (n == 0 || m == 0) return fill(p, converged, 0);  // the scaling underflowed: no mass is left
  const EmdTableau t = tableau_of(p, room, n, m);
  *p.status = solve(t) ? converged : max_iter;

  const auto cell = [&](int64_t v, int64_t& i, int64_t& j) {
    const int64_t parent = t.nodes[v].parent;
    i = room.rows.get()[(v < t.stride ? parent : v) - t.stride];
    j = room.columns.get()[v < t.stride ? v : parent];
  };
  double value = 0;
  for (int64_t v = 0; v < t.stride + t.n; ++v) {
    if (t.nodes[v].parent < 0) continue;  // the root, and the padding
    int64_t i, j;
    cell(v, i, j);
    p.plan[i * p.row + j] = t.nodes[v].flow;
    value += t.nodes[v].flow * p.cost[i * p.row + j];
  }
  duals(p, room, t, uniform_a, uniform_b);
  *p.value = value;
  if (!std::isfinite(value)) fill(p, non_finite, nan);  // finite costs whose sum is not
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> emd(const Tensor& cost, const Optional& a,
                                                       const Optional& b, const Optional& sizes,
                                                       int64_t batch, double mismatch,
                                                       int64_t max_pivot) {
  const int64_t n = cost.size(1), m = cost.size(2);
  const auto zeros = [&](std::vector<int64_t> shape) {
    return torch::stable::new_zeros(cost, shape);
  };
  Tensor value = zeros({batch}), f = zeros({batch, n}), g = zeros({batch, m});
  Tensor plan = zeros({batch, n, m});
  Tensor status = torch::stable::new_zeros(cost, std::vector<int64_t>{batch},
                                           torch::headeronly::ScalarType::Byte);
  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> result{value, f, g, plan, status};
  if (batch == 0) return result;

  // The row of a tensor that is shared by all (leading 1) or not.
  const auto rows_of = [&](const Optional& t, int64_t width) {
    const double* data = t ? static_cast<const double*>(t->const_data_ptr()) : nullptr;
    const int64_t step = t && t->size(0) > 1 ? width : 0;
    return [=](int64_t k) { return data == nullptr ? nullptr : data + k * step; };
  };
  const auto cost_of = rows_of(cost, n * m), a_of = rows_of(a, n), b_of = rows_of(b, m);
  const int64_t* size = sizes ? static_cast<const int64_t*>(sizes->const_data_ptr()) : nullptr;
  double* values = static_cast<double*>(value.mutable_data_ptr());
  double* fs = static_cast<double*>(f.mutable_data_ptr());
  double* gs = static_cast<double*>(g.mutable_data_ptr());
  double* plans = static_cast<double*>(plan.mutable_data_ptr());
  uint8_t* states = static_cast<uint8_t*>(status.mutable_data_ptr());

  // Problems differ in their number of pivots, so that threads draw them one group after the other.
  const int64_t group = std::max<int64_t>(1, 1024 / std::max<int64_t>(n * m, 1));
  const int64_t groups = (batch + group - 1) / group;
  const int64_t workers = std::min<int64_t>(groups, torch::stable::get_num_threads());
  std::vector<Room> rooms;  // here, where running out of memory can be told
  for (int64_t w = 0; w < workers; ++w) rooms.emplace_back(n, m);
  const EmdSolve solve = solve_here();
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t) {
    const Room& room = rooms[begin];
    for (int64_t at = next++; at < groups; at = next++) {
      for (int64_t k = at * group; k < std::min(batch, (at + 1) * group); ++k) {
        const int64_t rows = size != nullptr ? std::clamp<int64_t>(size[2 * k], 0, n) : n;
        const int64_t columns = size != nullptr ? std::clamp<int64_t>(size[2 * k + 1], 0, m) : m;
        solve_one({rows, columns, m, cost_of(k), a_of(k), b_of(k), mismatch, max_pivot, values + k,
                   fs + k * n, gs + k * m, plans + k * n * m, states + k},
                  room, solve);
      }
    }
  });
  return result;
}

}  // namespace
}  // namespace fedkernels

STABLE_TORCH_LIBRARY_IMPL(fedkernels, CPU, m) { m.impl("emd", TORCH_BOX(&fedkernels::emd)); }
