// CPU ops of batched Sinkhorn: sorts the problems by size, spreads them over torch's threads, and
// shows the plan that a result stands for. Kernels: sinkhorn_lanes.h (up to 32 x 32, a problem in
// each lane), sinkhorn_rows.h (larger).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "common/element.h"
#include "common/scratch.h"
#include "transport/sinkhorn_problem.h"
#include "transport/transport.h"

namespace fedkernels {
namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using torch::headeronly::ScalarType;

template <typename T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data_of(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Problem k's part of a tensor whose first dimension may be 1: shared by all.
template <typename T>
const T* part_of(const Tensor& tensor, int64_t k) {
  if (tensor.size(0) == 0) return nullptr;
  const int64_t step = tensor.size(0) == 1 ? 0 : tensor.numel() / tensor.size(0);
  return data_of<T>(tensor) + k * step;
}

template <typename T>
const T* part_of(const Optional& tensor, int64_t k) {
  return tensor ? part_of<T>(*tensor, k) : nullptr;
}

struct Size {
  int64_t n, m;
};

// The size of problem k; what lies beyond the block is cut off (api.py refuses it where it can
// look).
Size size_of(const Optional& sizes, int64_t k, int64_t n, int64_t m) {
  if (!sizes) return {n, m};
  const int64_t* own = data_of<int64_t>(*sizes) + 2 * k;
  return {std::clamp<int64_t>(own[0], 0, n), std::clamp<int64_t>(own[1], 0, m)};
}

// Hands out problems one after the other, to all threads.
struct Queue {
  std::vector<int64_t> order;
  std::atomic<int64_t> next{0};

  static int64_t take(void* queue) {
    Queue& self = *static_cast<Queue*>(queue);
    const int64_t k = self.next.fetch_add(1, std::memory_order_relaxed);
    return k < static_cast<int64_t>(self.order.size()) ? self.order[k] : -1;
  }
};

template <typename T>
void solve(std::vector<Problem<T>>& problems, const Settings& settings) {
  const SinkhornKernels<T>& kernels = sinkhorn_kernels_here<T>();
  const int64_t threads = torch::stable::get_num_threads();
  Queue small, large;
  std::vector<int64_t> striped;
  int64_t height = 0, width = 0;
  for (int64_t k = 0; k < static_cast<int64_t>(problems.size()); ++k) {
    const Problem<T>& problem = problems[k];
    if (std::max(problem.n, problem.m) <= lanes_limit) {
      small.order.push_back(k);
      height = std::max(height, problem.n);
      width = std::max(width, problem.m);
    } else if (problem.n * problem.m > striped_cells) {
      striped.push_back(k);
    } else {
      large.order.push_back(k);
    }
  }
  // Neighbours of like size waste least; which problems are neighbours changes no bit.
  const auto by_size = [&](int64_t k, int64_t l) {
    const Problem<T>&p = problems[k], &q = problems[l];
    return p.n != q.n ? p.n > q.n : p.m > q.m;
  };
  std::stable_sort(small.order.begin(), small.order.end(), by_size);
  std::stable_sort(large.order.begin(), large.order.end(), by_size);
  // Enough of the largest to keep all threads busy: a thread each. Otherwise they share one.
  if (static_cast<int64_t>(striped.size()) >= 2 * threads) {
    large.order.insert(large.order.begin(), striped.begin(), striped.end());
    striped.clear();
  }
  for (const int64_t k : striped) kernels.solve_rows(problems[k], settings, true);
  const int64_t groups =
      (static_cast<int64_t>(small.order.size()) + kernels.lanes - 1) / kernels.lanes;
  const int64_t workers = std::min<int64_t>(threads, groups + large.order.size());
  if (workers == 0) return;
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t k = Queue::take(&large); k >= 0; k = Queue::take(&large)) {
        kernels.solve_rows(problems[k], settings, false);
      }
      kernels.solve_lanes(problems.data(), height, width, &Queue::take, &small, settings);
    }
  });
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                           Tensor, Tensor>;

template <typename T>
Results forward_as(const Tensor& cost, const Optional& a, const Optional& b, const Tensor& eps,
                   const Optional& sizes, const Optional& g0, int64_t batch,
                   const Settings& settings) {
  const int64_t n = cost.size(1), m = cost.size(2);
  const auto empty = [&](std::vector<int64_t> shape) {
    return torch::stable::new_empty(cost, shape);
  };
  Tensor value = empty({batch}), linear = empty({batch}), error = empty({batch});
  Tensor f = empty({batch, n}), u = empty({batch, n}), r = empty({batch, n});
  Tensor g = empty({batch, m}), v = empty({batch, m}), c = empty({batch, m});
  Tensor n_iter = torch::stable::new_empty(cost, std::vector<int64_t>{batch}, ScalarType::Int);
  Tensor status = torch::stable::new_empty(cost, std::vector<int64_t>{batch}, ScalarType::Byte);
  std::vector<Problem<T>> problems(batch);
  for (int64_t k = 0; k < batch; ++k) {
    Problem<T>& p = problems[k];
    const Size size = size_of(sizes, k, n, m);
    p.n = size.n, p.m = size.m, p.block_n = n, p.block_m = m;
    p.cost = part_of<T>(cost, k);
    p.a = part_of<T>(a, k), p.b = part_of<T>(b, k), p.g0 = part_of<T>(g0, k);
    p.eps = *part_of<double>(eps, k);
    p.value = mutable_data_of<T>(value) + k, p.linear = mutable_data_of<T>(linear) + k;
    p.error = mutable_data_of<T>(error) + k;
    p.f = mutable_data_of<T>(f) + k * n, p.u = mutable_data_of<T>(u) + k * n;
    p.r = mutable_data_of<T>(r) + k * n;
    p.g = mutable_data_of<T>(g) + k * m, p.v = mutable_data_of<T>(v) + k * m;
    p.c = mutable_data_of<T>(c) + k * m;
    p.n_iter = mutable_data_of<int32_t>(n_iter) + k;
    p.status = mutable_data_of<uint8_t>(status) + k;
  }
  solve(problems, settings);
  return {value, linear, f, g, u, v, r, c, n_iter, error, status};
}

Results sinkhorn_forward(const Tensor& cost, const Optional& a, const Optional& b,
                         const Tensor& eps, const Optional& sizes, const Optional& g0,
                         int64_t batch, double rho_a, double rho_b, int64_t max_iter, double tol,
                         bool log, bool sor) {
  const Settings settings{rho_a, rho_b, max_iter, tol, log, sor};
  if (element_of(cost) == Element::f64) {
    return forward_as<double>(cost, a, b, eps, sizes, g0, batch, settings);
  }
  return forward_as<float>(cost, a, b, eps, sizes, g0, batch, settings);
}

template <typename T>
struct Plan {
  const T *cost, *u, *v;
  T s;
  Size size;
};

template <typename T>
Plan<T> plan_of(const Tensor& cost, const Tensor& eps, const Optional& sizes, const Tensor& u,
                const Tensor& v, int64_t k) {
  const T s = static_cast<T>(1.4426950408889634074 / *part_of<double>(eps, k));
  return {part_of<T>(cost, k), part_of<T>(u, k), part_of<T>(v, k), s,
          size_of(sizes, k, cost.size(1), cost.size(2))};
}

// Rows of about this many entries are a task.
constexpr int64_t grain_entries = 1 << 14;

template <typename T>
Tensor plan_as(const Tensor& cost, const Tensor& eps, const Optional& sizes, const Tensor& u,
               const Tensor& v, const Optional& scale) {
  const int64_t batch = u.size(0), n = cost.size(1), m = cost.size(2);
  Tensor plan = torch::stable::new_empty(cost, std::vector<int64_t>{batch, n, m});
  T* out = mutable_data_of<T>(plan);
  const auto& kernels = sinkhorn_kernels_here<T>();
  const int64_t grain = std::max<int64_t>(1, grain_entries / std::max<int64_t>(m, 1));
  torch::stable::parallel_for(0, batch * n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t k = row / n, i = row % n;
      const Plan<T> p = plan_of<T>(cost, eps, sizes, u, v, k);
      const T factor = scale ? data_of<T>(*scale)[k] : T{1};
      const int64_t written = i < p.size.n && factor != 0 ? p.size.m : 0;
      kernels.plan_row(p.cost + i * m, p.s, p.u[i], p.v, factor, written, out + row * m);
      std::fill(out + row * m + written, out + (row + 1) * m, T{0});
    }
  });
  return plan;
}

Tensor sinkhorn_plan(const Tensor& cost, const Tensor& eps, const Optional& sizes, const Tensor& u,
                     const Tensor& v, const Optional& scale) {
  return element_of(cost) == Element::f64 ? plan_as<double>(cost, eps, sizes, u, v, scale)
                                          : plan_as<float>(cost, eps, sizes, u, v, scale);
}

// P V, row by row of the plan; P^T V, columns shared out in blocks. Summed in double, in ascending
// order whatever the partition.
template <typename T>
Tensor apply_as(const Tensor& cost, const Tensor& eps, const Optional& sizes, const Tensor& u,
                const Tensor& v, const Tensor& V, bool transpose) {
  constexpr int64_t block = 64;
  const int64_t batch = u.size(0), n = cost.size(1), m = cost.size(2), d = V.size(2);
  const int64_t rows = transpose ? m : n, inner = transpose ? n : m;
  Tensor result = torch::stable::new_empty(cost, std::vector<int64_t>{batch, rows, d});
  T* out = mutable_data_of<T>(result);
  const auto& kernels = sinkhorn_kernels_here<T>();
  const int64_t blocks = (rows + block - 1) / block;
  const int64_t grain = std::max<int64_t>(1, grain_entries / std::max<int64_t>(block * inner, 1));
  torch::stable::parallel_for(0, batch * blocks, grain, [&](int64_t begin, int64_t end) {
    Scratch<T> entries(std::max(m, block));
    Scratch<double> sums(block * std::max<int64_t>(d, 1));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t k = task / blocks, first = task % blocks * block;
      const int64_t last = std::min(rows, first + block);
      const Plan<T> p = plan_of<T>(cost, eps, sizes, u, v, k);
      const T* values = data_of<T>(V) + k * inner * d;
      std::fill_n(sums.get(), block * d, 0.0);
      const auto add = [&](int64_t to, int64_t from, T weight) {
        for (int64_t c = 0; c < d; ++c)
          sums.get()[to * d + c] += double(weight) * values[from * d + c];
      };
      if (transpose) {
        const int64_t count = std::max<int64_t>(0, std::min(last, p.size.m) - first);
        for (int64_t i = 0; i < p.size.n; ++i) {
          kernels.plan_row(p.cost + i * m + first, p.s, p.u[i], p.v + first, T{1}, count,
                           entries.get());
          for (int64_t j = 0; j < count; ++j) add(j, i, entries.get()[j]);
        }
      } else {
        for (int64_t i = first; i < std::min(last, p.size.n); ++i) {
          kernels.plan_row(p.cost + i * m, p.s, p.u[i], p.v, T{1}, p.size.m, entries.get());
          for (int64_t j = 0; j < p.size.m; ++j) add(i - first, j, entries.get()[j]);
        }
      }
      T* to = out + (k * rows + first) * d;
      for (int64_t e = 0; e < (last - first) * d; ++e) to[e] = static_cast<T>(sums.get()[e]);
    }
  });
  return result;
}

Tensor sinkhorn_apply(const Tensor& cost, const Tensor& eps, const Optional& sizes, const Tensor& u,
                      const Tensor& v, const Tensor& V, bool transpose) {
  return element_of(cost) == Element::f64 ? apply_as<double>(cost, eps, sizes, u, v, V, transpose)
                                          : apply_as<float>(cost, eps, sizes, u, v, V, transpose);
}

}  // namespace
}  // namespace fedkernels

STABLE_TORCH_LIBRARY_IMPL(fedkernels, CPU, m) {
  m.impl("sinkhorn_forward", TORCH_BOX(&fedkernels::sinkhorn_forward));
  m.impl("sinkhorn_plan", TORCH_BOX(&fedkernels::sinkhorn_plan));
  m.impl("sinkhorn_apply", TORCH_BOX(&fedkernels::sinkhorn_apply));
}
