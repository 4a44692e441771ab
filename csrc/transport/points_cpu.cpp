// CPU ops of transport between clouds of points: takes the batch apart, spreads problems or the
// rows of one problem over torch's threads. Solver: points_solve.h; kernels: points_kernels.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "common/element.h"
#include "common/scratch.h"
#include "transport/points.h"
#include "transport/points_pack.h"
#include "transport/points_solve.h"

namespace fedkernels {
namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using torch::headeronly::ScalarType;

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
T* out(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Row k of a tensor (B|1, count, ...): a leading 1 is shared by all problems.
template <typename T>
const T* of_problem(const Tensor& t, int64_t k) {
  return data<T>(t) + (t.size(0) > 1 ? k * (t.numel() / t.size(0)) : 0);
}

template <typename T>
const T* of_problem(const Optional& t, int64_t k) {
  return t ? of_problem<T>(*t, k) : nullptr;
}

// A batch of problems in padded blocks: points, eps, and the size of each.
template <typename T>
struct Batch {
  const Tensor &x, &y, &eps;
  const Optional& sizes;
  Metric metric;
  bool symmetric;
  int64_t count, n, m, D;

  Batch(const Tensor& x, const Tensor& y, const Tensor& eps, const Optional& sizes, int64_t metric,
        bool symmetric, int64_t count)
      : x(x),
        y(y),
        eps(eps),
        sizes(sizes),
        metric(static_cast<Metric>(metric)),
        symmetric(symmetric),
        count(count),
        n(x.size(1)),
        m(symmetric ? n : y.size(1)),
        D(x.size(2)) {}

  Clouds<T> problem(int64_t k) const {
    Clouds<T> c{of_problem<T>(x, k),
                symmetric ? of_problem<T>(x, k) : of_problem<T>(y, k),
                n,
                m,
                D,
                metric,
                symmetric,
                *of_problem<double>(eps, k)};
    if (sizes) {
      const int64_t* size = data<int64_t>(*sizes) + 2 * k;
      c.n = std::clamp<int64_t>(size[0], 0, n);
      c.m = symmetric ? c.n : std::clamp<int64_t>(size[1], 0, m);
    }
    return c;
  }

  // Many or small problems are spread over the threads; else the rows of one after the other.
  bool apart() const {
    const double work = static_cast<double>(n) * static_cast<double>(m) * (D + 16.0);
    return count >= 4 * int64_t{torch::stable::get_num_threads()} || work < 1e6;
  }
  // How many problems are worked on at once.
  int64_t at_once() const {
    return apart() ? std::clamp<int64_t>(count, 1, torch::stable::get_num_threads()) : 1;
  }

  // Calls f(k, arena, scratch of each worker, workers) for every problem; the bits are the same
  // however they are spread.
  template <typename F>
  void over_problems(const PointsKernels<T>& kernels, int64_t bytes, int64_t width,
                     const F& f) const {
    const bool spread = apart();
    const int64_t workers = spread ? at_once() : torch::stable::get_num_threads();
    const int64_t size = whole(kernels.scratch_size(std::max(n, m), width), 64);
    const Scratch<T> memory(workers * size);
    std::vector<T*> scratch(workers);
    for (int64_t w = 0; w < workers; ++w) scratch[w] = memory.get() + w * size;
    if (spread) {
      std::vector<Arena> arenas;
      for (int64_t w = 0; w < workers; ++w) arenas.emplace_back(bytes);
      share_out(count, workers, [&](int64_t k, int64_t worker) {
        arenas[worker].clear();
        f(k, arenas[worker], scratch.data() + worker, int64_t{1});
      });
    } else {
      Arena arena(bytes);
      for (int64_t k = 0; k < count; ++k) {
        arena.clear();
        f(k, arena, scratch.data(), workers);
      }
    }
  }
};

// A finished plan of one problem, packed: u and v in whole panels.
template <typename T>
struct Finished {
  Packed<T> packed;
  T *u, *v;

  static int64_t bytes(int64_t n, int64_t m, int64_t D, int64_t w) {
    return Packed<T>::bytes(n, m, D, w) + (whole(n, w) + whole(m, w)) * sizeof(T) + 2 * 64;
  }
  Finished(const PointsKernels<T>& kernels, const Clouds<T>& clouds, const T* u_in, const T* v_in,
           Arena& arena)
      : packed(kernels, clouds, arena),
        u(padded(u_in, clouds.n, packed.padded_n(), arena)),
        v(padded(v_in, clouds.m, packed.padded_m(), arena)) {}

  static T* padded(const T* in, int64_t count, int64_t size, Arena& arena,
                   T fill = -std::numeric_limits<T>::infinity()) {
    T* to = arena.take<T>(size);
    std::copy(in, in + count, to);
    std::fill(to + count, to + size, fill);
    return to;
  }
};

template <typename T>
void zero_rows(T* block, int64_t from, int64_t to, int64_t columns) {
  std::memset(block + from * columns, 0, sizeof(T) * (to - from) * columns);
}

using Solution = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                            Tensor, Tensor>;

template <typename T>
Solution forward_as(const Batch<T>& batch, const Optional& a, const Optional& b, const Optional& g0,
                    const Settings& settings) {
  const PointsKernels<T>& kernels = points_kernels_here<T>();
  const int64_t B = batch.count, n = batch.n, m = batch.m;
  const auto empty = [&](std::vector<int64_t> shape) {
    return torch::stable::new_empty(batch.x, shape);
  };
  Tensor value = empty({B}), linear = empty({B}), error = empty({B});
  Tensor f = empty({B, n}), u = empty({B, n}), r = empty({B, n});
  Tensor g = empty({B, m}), v = empty({B, m}), c = empty({B, m});
  const std::vector<int64_t> shape{B};
  Tensor n_iter = torch::stable::new_empty(batch.x, shape, ScalarType::Int);
  Tensor status = torch::stable::new_empty(batch.x, shape, ScalarType::Byte);

  const int64_t room = PointsSolver<T>::room_for(batch.D, batch.at_once());
  const int64_t bytes = PointsSolver<T>::bytes(n, m, batch.D, kernels.width, room);
  batch.over_problems(
      kernels, bytes, 0, [&](int64_t k, Arena& arena, T* const* scratch, int64_t workers) {
        const Clouds<T> clouds = batch.problem(k);
        Problem<T> problem{};
        problem.n = clouds.n, problem.m = clouds.m, problem.block_n = n, problem.block_m = m;
        problem.a = of_problem<T>(a, k), problem.g0 = of_problem<T>(g0, k),
        problem.eps = clouds.eps;
        problem.b = batch.symmetric ? problem.a : of_problem<T>(b, k);
        problem.value = out<T>(value) + k, problem.linear = out<T>(linear) + k;
        problem.f = out<T>(f) + k * n, problem.u = out<T>(u) + k * n, problem.r = out<T>(r) + k * n;
        problem.g = out<T>(g) + k * m, problem.v = out<T>(v) + k * m, problem.c = out<T>(c) + k * m;
        problem.n_iter = out<int32_t>(n_iter) + k, problem.error = out<T>(error) + k;
        problem.status = out<uint8_t>(status) + k;
        PointsSolver<T>(kernels, clouds, problem, settings, room).solve(arena, scratch, workers);
      });
  return {value, linear, f, g, u, v, r, c, n_iter, error, status};
}

Solution points_forward(const Tensor& x, const Tensor& y, const Optional& a, const Optional& b,
                        const Tensor& eps, const Optional& sizes, const Optional& g0, int64_t batch,
                        int64_t metric, double rho_a, double rho_b, int64_t max_iter, double tol,
                        bool sor, bool symmetric) {
  const Settings settings{rho_a, rho_b, max_iter, tol, true, sor};
  if (element_of(x) == Element::f64) {
    return forward_as<double>({x, y, eps, sizes, metric, symmetric, batch}, a, b, g0, settings);
  }
  return forward_as<float>({x, y, eps, sizes, metric, symmetric, batch}, a, b, g0, settings);
}

template <typename T>
Tensor plan_as(const Batch<T>& batch, const Tensor& u, const Tensor& v, const Optional& scale) {
  const PointsKernels<T>& kernels = points_kernels_here<T>();
  const int64_t n = batch.n, m = batch.m;
  Tensor plan = torch::stable::new_empty(u, std::vector<int64_t>{batch.count, n, m});
  const int64_t bytes = Finished<T>::bytes(n, m, batch.D, kernels.width);
  batch.over_problems(
      kernels, bytes, 0, [&](int64_t k, Arena& arena, T* const* scratch, int64_t workers) {
        const Clouds<T> clouds = batch.problem(k);
        T* to = out<T>(plan) + k * n * m;
        const T factor = scale ? data<T>(*scale)[k] : T{1};
        if (factor == 0) return zero_rows(to, 0, n, m);
        const Finished<T> p(kernels, clouds, data<T>(u) + k * n, data<T>(v) + k * m, arena);
        p.packed.over_stripes(
            clouds.n, workers, [&](int64_t begin, int64_t end, int64_t, int64_t worker) {
              kernels.plan(p.packed.pair(), p.u, p.v, factor, begin, end, to, m, scratch[worker]);
              for (int64_t i = begin; clouds.m < m && i < end; ++i)
                zero_rows(to + i * m, clouds.m, m, 1);
            });
        zero_rows(to, clouds.n, n, m);
      });
  return plan;
}

Tensor points_plan(const Tensor& x, const Tensor& y, const Tensor& eps, const Optional& sizes,
                   int64_t metric, const Tensor& u, const Tensor& v, const Optional& scale) {
  if (element_of(x) == Element::f64) {
    return plan_as<double>({x, y, eps, sizes, metric, false, u.size(0)}, u, v, scale);
  }
  return plan_as<float>({x, y, eps, sizes, metric, false, u.size(0)}, u, v, scale);
}

template <typename T>
Tensor apply_as(const Batch<T>& batch, const Tensor& u, const Tensor& v, const Tensor& V,
                bool transpose) {
  const PointsKernels<T>& kernels = points_kernels_here<T>();
  const int64_t n = batch.n, m = batch.m, w = kernels.width, d = V.size(2), wide = whole(d, w);
  const int64_t rows = transpose ? m : n, inner = transpose ? n : m;
  Tensor result = torch::stable::new_empty(u, std::vector<int64_t>{batch.count, rows, d});
  if (d == 0) return result;
  const int64_t bytes =
      Finished<T>::bytes(n, m, batch.D, w) + whole(inner, w) * wide * sizeof(T) + 64;
  batch.over_problems(
      kernels, bytes, wide, [&](int64_t k, Arena& arena, T* const* scratch, int64_t workers) {
        const Clouds<T> clouds = batch.problem(k);
        const Finished<T> p(kernels, clouds, data<T>(u) + k * n, data<T>(v) + k * m, arena);
        const Pair<T> pair = transpose ? p.packed.pair().swapped() : p.packed.pair();
        const int64_t count = pair.y.count;
        T* held = arena.take<T>(whole(count, w) * wide);
        std::memset(held, 0, sizeof(T) * whole(count, w) * wide);
        const T* from = data<T>(V) + k * inner * d;
        for (int64_t j = 0; j < count; ++j) std::copy_n(from + j * d, d, held + j * wide);
        T* to = out<T>(result) + k * rows * d;
        const Weighted<T> g{
            pair, transpose ? p.v : p.u, transpose ? p.u : p.v, 0, 0, nullptr, nullptr, held, wide};
        p.packed.over_stripes(pair.x.count, workers,
                              [&](int64_t begin, int64_t end, int64_t, int64_t worker) {
                                if (count > 0)
                                  kernels.apply(g, begin, end, to, d, scratch[worker]);
                                else
                                  zero_rows(to, begin, end, d);
                              });
        zero_rows(to, pair.x.count, rows, d);
      });
  return result;
}

Tensor points_apply(const Tensor& x, const Tensor& y, const Tensor& eps, const Optional& sizes,
                    int64_t metric, const Tensor& u, const Tensor& v, const Tensor& V,
                    bool transpose) {
  if (element_of(x) == Element::f64) {
    return apply_as<double>({x, y, eps, sizes, metric, false, u.size(0)}, u, v, V, transpose);
  }
  return apply_as<float>({x, y, eps, sizes, metric, false, u.size(0)}, u, v, V, transpose);
}

template <typename T>
std::tuple<Tensor, Tensor> backward_as(const Batch<T>& batch, const Tensor& u, const Tensor& v,
                                       const Tensor& w0, const Tensor& w1, const Optional& alpha,
                                       const Optional& beta) {
  const PointsKernels<T>& kernels = points_kernels_here<T>();
  const int64_t B = batch.count, n = batch.n, m = batch.m, D = batch.D, w = kernels.width;
  const int64_t wide = whole(D, w);
  Tensor dx = torch::stable::new_empty(u, std::vector<int64_t>{B, n, D});
  Tensor dy = torch::stable::new_empty(u, std::vector<int64_t>{B, m, D});
  const int64_t padded = whole(n, w) + whole(m, w);
  const int64_t bytes = Finished<T>::bytes(n, m, D, w) + padded * (wide + 1) * sizeof(T) + 4 * 64;
  batch.over_problems(
      kernels, bytes, wide, [&](int64_t k, Arena& arena, T* const* scratch, int64_t workers) {
        const Clouds<T> clouds = batch.problem(k);
        T* to_x = out<T>(dx) + k * n * D;
        T* to_y = out<T>(dy) + k * m * D;
        const T* alpha_k = alpha ? data<T>(*alpha) + k * n : nullptr;
        const T* beta_k = beta ? data<T>(*beta) + k * m : nullptr;
        const auto any = [](const T* row, int64_t count) {
          return row && std::any_of(row, row + count, [](T value) { return value != 0; });
        };
        const T weight0 = data<T>(w0)[k], weight1 = data<T>(w1)[k];
        const bool asked =
            weight0 != 0 || weight1 != 0 || any(alpha_k, clouds.n) || any(beta_k, clouds.m);
        if (!asked || clouds.n == 0 || clouds.m == 0) {
          zero_rows(to_x, 0, n, D);
          return zero_rows(to_y, 0, m, D);
        }
        const Finished<T> p(kernels, clouds, data<T>(u) + k * n, data<T>(v) + k * m, arena);
        const Packed<T>& packed = p.packed;
        const auto side = [&](const T* row, int64_t count, int64_t size) {
          return row ? Finished<T>::padded(row, count, size, arena, T{0}) : nullptr;
        };
        const T* alpha_p = side(alpha_k, clouds.n, packed.padded_n());
        const T* beta_p = side(beta_k, clouds.m, packed.padded_m());
        // The gradients of rows, then of columns, the pair swapped: one sweep for both would need
        // the (m, D) sums of every stripe.
        const auto half = [&](const Pair<T>& pair, const T* from, const T* towards, const T* of_x,
                              const T* of_y, T* to) {
          T* rows = arena.take<T>(whole(pair.y.count, w) * wide);
          packed.rows(pair.y, wide, rows);
          const Weighted<T> g{pair, from, towards, weight0, weight1, of_x, of_y, rows, wide};
          packed.over_stripes(pair.x.count, workers,
                              [&](int64_t begin, int64_t end, int64_t, int64_t worker) {
                                kernels.gradient(g, begin, end, to, scratch[worker]);
                              });
        };
        half(packed.pair(), p.u, p.v, alpha_p, beta_p, to_x);
        half(packed.pair().swapped(), p.v, p.u, beta_p, alpha_p, to_y);
        zero_rows(to_x, clouds.n, n, D);
        zero_rows(to_y, clouds.m, m, D);
      });
  return {dx, dy};
}

std::tuple<Tensor, Tensor> points_backward(const Tensor& x, const Tensor& y, const Tensor& eps,
                                           const Optional& sizes, int64_t metric, const Tensor& u,
                                           const Tensor& v, const Tensor& w0, const Tensor& w1,
                                           const Optional& alpha, const Optional& beta) {
  if (element_of(x) == Element::f64) {
    return backward_as<double>({x, y, eps, sizes, metric, false, u.size(0)}, u, v, w0, w1, alpha,
                               beta);
  }
  return backward_as<float>({x, y, eps, sizes, metric, false, u.size(0)}, u, v, w0, w1, alpha,
                            beta);
}

}  // namespace
}  // namespace fedkernels

STABLE_TORCH_LIBRARY_IMPL(fedkernels, CPU, m) {
  m.impl("sinkhorn_points_forward", TORCH_BOX(&fedkernels::points_forward));
  m.impl("sinkhorn_points_plan", TORCH_BOX(&fedkernels::points_plan));
  m.impl("sinkhorn_points_apply", TORCH_BOX(&fedkernels::points_apply));
  m.impl("sinkhorn_points_backward", TORCH_BOX(&fedkernels::points_backward));
}
