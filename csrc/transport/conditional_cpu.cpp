// CPU ops of conditional transport: chooses rows and columns, cuts them into stripes and sections,
// and spreads these over torch's threads. Mathematics and order of work: conditional.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "common/element.h"
#include "common/mean_of_finite.h"
#include "common/scratch.h"
#include "transport/conditional.h"

namespace fedkernels {
namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t up_to(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

Tensor empty(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes);
}

template <typename T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* data_of(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// How one problem is cut. Of the shape alone, so that bits do not depend on threads.
struct Cut {
  int64_t blocks, stripes, sections, width, padded, sums;
};

template <typename T>
Cut cut(int64_t rows, int64_t columns, int64_t depth, int64_t panel, bool backward) {
  constexpr int64_t most_columns = 8192, section_bytes = int64_t{1} << 20;
  constexpr int64_t sums_bytes = int64_t{16} << 20, rows_of_stripe = 512, most_stripes = 32;
  const int64_t bytes = static_cast<int64_t>(sizeof(T));
  Cut c{};
  c.blocks = ceil_div(rows, conditional_block_rows);
  const int64_t room = section_bytes / (std::max<int64_t>(depth, 1) * bytes) / panel * panel;
  c.sections = ceil_div(columns, std::clamp(room, panel, most_columns));
  c.width = up_to(ceil_div(columns, c.sections), panel);
  c.sections = ceil_div(columns, c.width);
  c.padded = up_to(c.width, panel);
  c.sums = c.padded * (backward ? depth + conditional_backward_sums : conditional_forward_sums);
  const int64_t wanted = std::min(ceil_div(rows, rows_of_stripe), most_stripes);
  c.stripes = std::clamp<int64_t>(std::min(wanted, sums_bytes / (c.sums * bytes)), 1, c.blocks);
  return c;
}

template <typename T>
T largest(const T* mass, int64_t count) {
  T most = std::numeric_limits<T>::min();
  for (int64_t i = 0; mass != nullptr && i < count; ++i) most = mass[i] > most ? mass[i] : most;
  return most;
}

// Memory of one problem, used again by the next problem of the same thread.
template <typename T>
class Work {
 public:
  Work(const Conditional<T>& shape, const Cut& c)
      : turned_(c.padded * shape.D),
        panels_(shape.backward ? c.padded * shape.depth : 0),
        columns_(c.padded * conditional_fields),
        sums_(c.stripes * c.sums),
        state_(!shape.backward && c.sections > 1 ? 3 * shape.left.count : 0),
        centre_(shape.depth) {}

  void lend(const Cut& c, Conditional<T>& f) const {
    f.turned = turned_.get(), f.panels = panels_.get(), f.row_state = state_.get();
    f.columns = {columns_.get(), c.padded};
  }
  T* sums() const { return sums_.get(); }
  T* centre() const { return centre_.get(); }

 private:
  Scratch<T> turned_, panels_, columns_, sums_, state_, centre_;
};

// One problem: sections of columns in turn; in each, panels, stripes of rows, then columns.
template <typename T, typename Finish>
void solve(Conditional<T> f, const Cut& c, const Work<T>& work, const T* y, int64_t y_count,
           const Finish& finish) {
  const ConditionalKernels<T>& k = conditional_kernels_here<T>();
  work.lend(c, f);
  f.centre = nullptr;
  if (f.mode >= 3) {
    mean_of_finite(y, y_count, f.D, work.centre());
    std::fill(work.centre() + f.D, work.centre() + f.depth, T{0});
    f.centre = work.centre();
  }
  f.left.largest_mass = largest(f.left.mass, f.left.count);
  f.right.largest_mass = largest(f.right.mass, f.right.count);
  const bool small = f.left.count * f.right.count * (f.D + 8) < 65536;
  const auto spread = [&](int64_t count, int64_t grain, const auto& run) {
    torch::stable::parallel_for(0, count, small ? count : grain, run);
  };
  T* sums = work.sums();
  for (int64_t section = 0; section < c.sections; ++section) {
    f.first = section * c.width;
    f.width = std::min(c.width, f.right.count - f.first);
    f.padded = up_to(f.width, k.columns);
    f.first_section = section == 0;
    f.last_section = section + 1 == c.sections;
    const int64_t scratch = k.scratch(f);
    spread(f.padded / k.columns, 8, [&](int64_t begin, int64_t end) {
      const Scratch<T> own(scratch);
      k.prepare(f, begin, end, own.get());
    });
    spread(c.stripes, 1, [&](int64_t begin, int64_t end) {
      const Scratch<T> own(scratch);
      for (int64_t s = begin; s < end; ++s) {
        const int64_t from = s * c.blocks / c.stripes, to = (s + 1) * c.blocks / c.stripes;
        (f.backward ? k.backward : k.forward)(f, from, to, sums + s * c.sums, own.get());
      }
    });
    spread(f.width, 32, [&](int64_t begin, int64_t end) { finish(k, f, sums, begin, end); });
  }
}

// All problems: side by side where there are enough of them, else one after the other.
template <typename T, typename Run>
void over_problems(int64_t B, const Conditional<T>& shape, const Cut& c, const Run& run) {
  const int64_t work = shape.left.count * shape.right.count * (shape.D + 8);
  const bool beside = B >= torch::stable::get_num_threads();
  const int64_t grain = beside ? std::max<int64_t>(1, 65536 / std::max<int64_t>(work, 1)) : B;
  torch::stable::parallel_for(0, B, grain, [&](int64_t begin, int64_t end) {
    const Work<T> memory(shape, c);
    for (int64_t b = begin; b < end; ++b) run(b, memory);
  });
}

template <typename T>
Conditional<T> shape_of(int64_t N, int64_t M, int64_t D, int64_t cost, int64_t logits,
                        double temperature, bool backward) {
  const int64_t panel = conditional_kernels_here<T>().columns;
  Conditional<T> f{};
  f.D = D;
  f.depth = up_to(D, panel);
  // Rows a multiple of 2 KiB apart would fall on few sets of the first cache.
  f.stride = f.depth + 64 / static_cast<int64_t>(sizeof(T));
  f.mode = static_cast<int>(3 * cost + logits);
  f.backward = backward;
  f.scale = static_cast<T>(1.44269504088896340736 / temperature);
  f.per_temperature = static_cast<T>(1 / temperature);
  f.left.count = std::max(N, M);
  f.right.count = std::min(N, M);
  return f;
}

template <typename T>
ConditionalPoints<T> points_of(const T* points, const T* mass, int64_t b, int64_t count,
                               int64_t D) {
  ConditionalPoints<T> side{};
  side.points = points + b * count * D;
  side.count = count;
  side.mass = mass ? mass + b * count : nullptr;
  return side;
}

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <typename T>
void fill(Tensor& tensor, T value) {
  std::fill_n(data_of<T>(tensor), tensor.numel(), value);
}

template <typename T>
Four forward_as(const Tensor& x, const Tensor& y, const Optional& p, const Optional& q,
                int64_t cost, int64_t logits, double temperature) {
  const int64_t B = x.size(0), N = x.size(1), M = y.size(1), D = x.size(2);
  Tensor row_cost = empty(x, {B, N}), col_cost = empty(x, {B, M});
  Tensor row_lse = empty(x, {B, N}), col_lse = empty(x, {B, M});
  if (B == 0 || N == 0 || M == 0) {
    for (Tensor* t : {&row_cost, &col_cost}) fill<T>(*t, 0);
    for (Tensor* t : {&row_lse, &col_lse}) fill<T>(*t, -std::numeric_limits<T>::infinity());
    return {row_cost, col_cost, row_lse, col_lse};
  }
  const Conditional<T> shape = shape_of<T>(N, M, D, cost, logits, temperature, false);
  const Cut c = cut<T>(shape.left.count, shape.right.count, shape.depth,
                       conditional_kernels_here<T>().columns, false);
  const T *px = data_of<T>(x), *py = data_of<T>(y);
  const T *pp = p ? data_of<T>(*p) : nullptr, *pq = q ? data_of<T>(*q) : nullptr;
  T *rc = data_of<T>(row_cost), *rl = data_of<T>(row_lse);
  T *cc = data_of<T>(col_cost), *cl = data_of<T>(col_lse);
  over_problems(B, shape, c, [&](int64_t b, const Work<T>& work) {
    Conditional<T> f = shape;
    f.left = points_of(px, pp, b, N, D), f.right = points_of(py, pq, b, M, D);
    T *left_cost = rc + b * N, *left_lse = rl + b * N;
    T *right_cost = cc + b * M, *right_lse = cl + b * M;
    if (N < M) {
      std::swap(f.left, f.right);
      std::swap(left_cost, right_cost), std::swap(left_lse, right_lse);
    }
    f.row_cost = left_cost, f.row_lse = left_lse;
    solve(f, c, work, py + b * M * D, M,
          [&](const ConditionalKernels<T>& k, const Conditional<T>& at, T* sums, int64_t begin,
              int64_t end) {
            k.forward_columns(at, sums, c.stripes, c.sums, begin, end, right_cost + at.first,
                              right_lse + at.first);
          });
  });
  return {row_cost, col_cost, row_lse, col_lse};
}

Four conditional_transport_forward(const Tensor& x, const Tensor& y, const Optional& p,
                                   const Optional& q, int64_t cost, int64_t logits,
                                   double temperature) {
  const auto run = element_of(x) == Element::f64 ? forward_as<double> : forward_as<float>;
  return run(x, y, p, q, cost, logits, temperature);
}

constexpr int64_t need_x = 1, need_y = 2, need_p = 4, need_q = 8;

template <typename T>
Four backward_as(const Tensor& x, const Tensor& y, const Optional& p, const Optional& q,
                 const std::array<const Tensor*, 8>& saved, int64_t cost, int64_t logits,
                 double temperature, int64_t need) {
  const int64_t B = x.size(0), N = x.size(1), M = y.size(1), D = x.size(2);
  const auto wanted = [&](int64_t bit, std::vector<int64_t> sizes) {
    return empty(x, (need & bit) ? sizes : std::vector<int64_t>{0});
  };
  Tensor dx = wanted(need_x, {B, N, D}), dy = wanted(need_y, {B, M, D});
  Tensor dp = wanted(need_p, {B, N}), dq = wanted(need_q, {B, M});
  if (B == 0 || N == 0 || M == 0) {
    for (Tensor* t : {&dx, &dy, &dp, &dq}) fill<T>(*t, 0);
    return {dx, dy, dp, dq};
  }
  Conditional<T> shape = shape_of<T>(N, M, D, cost, logits, temperature, true);
  const Cut c = cut<T>(shape.left.count, shape.right.count, shape.depth,
                       conditional_kernels_here<T>().columns, true);
  const T *px = data_of<T>(x), *py = data_of<T>(y);
  const T *pp = p ? data_of<T>(*p) : nullptr, *pq = q ? data_of<T>(*q) : nullptr;
  const auto out = [&](Tensor& t, int64_t bit) { return (need & bit) ? data_of<T>(t) : nullptr; };
  T *to_x = out(dx, need_x), *to_y = out(dy, need_y);
  T *to_p = out(dp, need_p), *to_q = out(dq, need_q);
  const auto of_row = [&](int which, int64_t b) { return data_of<T>(*saved[which]) + b * N; };
  const auto of_column = [&](int which, int64_t b) { return data_of<T>(*saved[which]) + b * M; };
  over_problems(B, shape, c, [&](int64_t b, const Work<T>& work) {
    Conditional<T> f = shape;
    f.left = points_of(px, pp, b, N, D), f.right = points_of(py, pq, b, M, D);
    f.left.cost = of_row(0, b), f.left.lse = of_row(2, b);
    f.left.g_cost = of_row(4, b), f.left.g_lse = of_row(6, b);
    f.right.cost = of_column(1, b), f.right.lse = of_column(3, b);
    f.right.g_cost = of_column(5, b), f.right.g_lse = of_column(7, b);
    f.d_left = to_x ? to_x + b * N * D : nullptr;
    f.d_left_mass = to_p ? to_p + b * N : nullptr;
    T* d_right = to_y ? to_y + b * M * D : nullptr;
    T* d_right_mass = to_q ? to_q + b * M : nullptr;
    if (N < M) {
      std::swap(f.left, f.right);
      std::swap(f.d_left, d_right), std::swap(f.d_left_mass, d_right_mass);
    }
    f.want_right = d_right != nullptr;
    solve(f, c, work, py + b * M * D, M,
          [&](const ConditionalKernels<T>& k, const Conditional<T>& at, T* sums, int64_t begin,
              int64_t end) {
            k.backward_columns(at, sums, c.stripes, c.sums, begin, end, d_right, d_right_mass);
          });
  });
  return {dx, dy, dp, dq};
}

Four conditional_transport_backward(const Tensor& x, const Tensor& y, const Optional& p,
                                    const Optional& q, const Tensor& row_cost,
                                    const Tensor& col_cost, const Tensor& row_lse,
                                    const Tensor& col_lse, const Tensor& g_row_cost,
                                    const Tensor& g_col_cost, const Tensor& g_row_lse,
                                    const Tensor& g_col_lse, int64_t cost, int64_t logits,
                                    double temperature, int64_t need) {
  const auto run = element_of(x) == Element::f64 ? backward_as<double> : backward_as<float>;
  return run(
      x, y, p, q,
      {&row_cost, &col_cost, &row_lse, &col_lse, &g_row_cost, &g_col_cost, &g_row_lse, &g_col_lse},
      cost, logits, temperature, need);
}

}  // namespace
}  // namespace fedkernels

STABLE_TORCH_LIBRARY_IMPL(fedkernels, CPU, m) {
  m.impl("conditional_transport_forward", TORCH_BOX(&fedkernels::conditional_transport_forward));
  m.impl("conditional_transport_backward", TORCH_BOX(&fedkernels::conditional_transport_backward));
}
