// Clouds of points as the kernels read them (points.h), and how rows are shared out among threads.
//
// Rows are cut into stripes by their number alone; workers take stripes in any order, and what
// stripes leave is added up in the order of the stripes: the same bits for every number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <new>

#include "common/scratch.h"
#include "transport/points.h"

namespace fedkernels {

inline int64_t whole(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Memory of one worker, handed out in pieces; a problem takes what it needs and gives it all back.
class Arena {
 public:
  explicit Arena(int64_t bytes) : memory_(bytes), left_(bytes), next_(memory_.get()) {}
  template <typename T>
  T* take(int64_t count) {
    const int64_t bytes = whole(count * static_cast<int64_t>(sizeof(T)), 64);
    if (bytes > left_) throw std::bad_alloc();
    char* piece = next_;
    next_ += bytes, left_ -= bytes;
    return reinterpret_cast<T*>(piece);
  }
  void clear() { left_ += next_ - memory_.get(), next_ = memory_.get(); }

 private:
  Scratch<char> memory_;
  int64_t left_;
  char* next_;
};

// Tasks shared out among workers: f(task, worker). With one worker everything runs here.
template <typename F>
void share_out(int64_t tasks, int64_t workers, const F& f) {
  if (workers <= 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) f(task, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(workers, tasks), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t task = next++; task < tasks; task = next++) f(task, worker);
    }
  });
}

// The points of one problem as given: (n, D) and (m, D), contiguous.
template <typename T>
struct Clouds {
  const T* x;
  const T* y;
  int64_t n, m, D;
  Metric metric;
  bool symmetric;  // y is x
  double eps;

  bool finite() const {
    const auto good = [](T value) { return std::isfinite(value); };
    return std::all_of(x, x + n * D, good) && (symmetric || std::all_of(y, y + m * D, good));
  }
};

// Clouds packed for the kernels, and the stripes of a problem.
template <typename T>
class Packed {
 public:
  static int64_t bytes(int64_t n, int64_t m, int64_t D, int64_t w) {
    return ((whole(n, w) + whole(m, w)) * (D + 1)) * sizeof(T) + 256 + 2 * D * sizeof(double);
  }

  Packed(const PointsKernels<T>& kernels, const Clouds<T>& given, Arena& arena)
      : kernels_(kernels), given_(given) {
    const int64_t w = kernels.width;
    centre_ = arena.take<double>(2 * given.D);
    find_centre();
    pair_ = {cloud(given.x, given.n, arena),
             {},
             given.D,
             given.metric,
             static_cast<T>(log2e / given.eps)};
    finite_ &= std::isfinite(pair_.scale) && pair_.scale > 0;
    pair_.y = given.symmetric ? pair_.x : cloud(given.y, given.m, arena);
    padded_n_ = whole(given.n, w), padded_m_ = whole(given.m, w);
  }

  static constexpr double log2e = 1.44269504088896340736;

  const Pair<T>& pair() const { return pair_; }
  int64_t padded_n() const { return padded_n_; }
  int64_t padded_m() const { return padded_m_; }
  // Whether the scale and what distances are made of lie in the range of T.
  bool finite() const { return finite_; }

  // Rows of a stripe: a function of the number of rows alone.
  int64_t stripe_rows(int64_t rows) const {
    return whole(std::max<int64_t>(64, (rows + 31) / 32), kernels_.width);
  }
  // Calls f(begin, end, stripe, worker) for each stripe of `rows` rows.
  template <typename F>
  void over_stripes(int64_t rows, int64_t workers, const F& f) const {
    const int64_t height = stripe_rows(rows);
    share_out((rows + height - 1) / height, workers, [&](int64_t stripe, int64_t worker) {
      f(stripe * height, std::min(rows, (stripe + 1) * height), stripe, worker);
    });
  }

  // The points, centred, row-major with `d` columns, whole panels of rows: what weights multiply.
  void rows(const Cloud<T>& cloud, int64_t d, T* out) const {
    const int64_t w = kernels_.width, D = given_.D;
    for (int64_t i = 0; i < whole(cloud.count, w); ++i) {
      const T* from = cloud.panels + i / w * w * D + i % w;
      for (int64_t k = 0; k < D; ++k) out[i * d + k] = from[k * w];
      for (int64_t k = D; k < d; ++k) out[i * d + k] = 0;
    }
  }

 private:
  // Distances do not move with the origin; near the points, their expansion loses least. The mean
  // of all points, so that x and y can change places.
  void find_centre() {
    const int64_t D = given_.D;
    double* sum_y = centre_ + D;
    std::fill(centre_, centre_ + 2 * D, 0.0);
    if (given_.metric == Metric::cosine) return;
    const auto add = [&](const T* rows, int64_t count, double* sum) {
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t k = 0; k < D; ++k) sum[k] += rows[i * D + k];
      }
    };
    add(given_.x, given_.n, centre_);
    add(given_.symmetric ? given_.x : given_.y, given_.m, sum_y);
    // Rounded to T: points far out lie on a coarse grid, and so do their differences, exactly.
    const double count = static_cast<double>(given_.n + given_.m);
    for (int64_t k = 0; k < D; ++k) {
      centre_[k] = static_cast<T>((centre_[k] + sum_y[k]) / count);
    }
  }

  Cloud<T> cloud(const T* rows, int64_t count, Arena& arena) {
    const int64_t w = kernels_.width, D = given_.D, padded = whole(count, w);
    T* panels = arena.take<T>(padded * D);
    T* norms = arena.take<T>(padded);
    std::fill(norms, norms + padded, T{0});
    const bool cosine = given_.metric == Metric::cosine;
    for (int64_t i = 0; i < padded; ++i) {
      T* to = panels + i / w * w * D + i % w;
      const T* from = rows + i * D;
      if (i >= count) {
        for (int64_t k = 0; k < D; ++k) to[k * w] = 0;
        continue;
      }
      double factor = 1;
      if (cosine) {
        double square = 0;
        for (int64_t k = 0; k < D; ++k) square += static_cast<double>(from[k]) * from[k];
        factor = square > 0 ? 1 / std::sqrt(square) : 0;
        norms[i] = static_cast<T>(factor);
        finite_ &= std::isfinite(square);
      }
      for (int64_t k = 0; k < D; ++k) {
        to[k * w] = static_cast<T>(cosine ? from[k] * factor : from[k] - centre_[k]);
      }
    }
    if (!cosine) {
      kernels_.norms(panels, count, D, norms);
      // Four times a squared length is the most that an expansion meets.
      for (int64_t i = 0; i < count; ++i) finite_ &= std::isfinite(T{4} * norms[i]);
    }
    return {count, panels, norms};
  }

  const PointsKernels<T>& kernels_;
  Clouds<T> given_;
  double* centre_;
  Pair<T> pair_;
  int64_t padded_n_, padded_m_;
  bool finite_ = true;
};

}  // namespace fedkernels
