// One transport problem between two clouds of points, from its masses to its results.
//
//   iteration   one sweep over the plan for both half steps (points_kernels.h); where a sum leaves
//               its range (the first iteration, hard starts, masses near 0), two sweeps around the
//               largest terms. Which of the two depends on the problem alone.
//   stop        the row sums of a sweep are those of the pair before it: the error costs nothing.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "transport/points_pack.h"
#include "transport/relaxation.h"
#include "transport/sinkhorn_problem.h"

namespace fedkernels {

template <typename T>
class PointsSolver {
 public:
  // Bytes for the tiles of a problem, which are kept for all iterations where they fit: what the
  // second cache holds or, where a product is dearer than a read from further away, 16 MiB; no more
  // than 32 MiB for `problems` that are solved at once. A tile has the same bits kept or not.
  static int64_t room_for(int64_t D, int64_t problems) {
    return D < 16 ? int64_t{1} << 18 : std::min(int64_t{1} << 24, (int64_t{1} << 25) / problems);
  }
  // Memory of one problem beyond what its workers' sweeps need.
  static int64_t bytes(int64_t n, int64_t m, int64_t D, int64_t w, int64_t room) {
    const int64_t N = whole(n, w), M = whole(m, w), most = std::max(N, M);
    return Packed<T>::bytes(n, m, D, w) + (9 * (N + M) + (stripes + 1) * most) * sizeof(T) +
           3 * most * sizeof(double) + std::min<int64_t>(N * M * sizeof(T), room) + 32 * 64;
  }

  PointsSolver(const PointsKernels<T>& kernels, const Clouds<T>& clouds, Problem<T>& problem,
               const Settings& settings, int64_t room)
      : k_(kernels), clouds_(clouds), p_(problem), set_(settings), room_(room) {}

  // `scratch[worker]`: memory of that worker's sweeps.
  void solve(Arena& arena, T* const* scratch, int64_t workers) {
    scratch_ = scratch, workers_ = workers;
    if (!clouds_.finite()) return fail(p_, Status::non_finite);
    if (!prepare(p_, set_)) return;
    const Packed<T> packed(k_, clouds_, arena);
    if (!packed.finite()) return fail(p_, Status::non_finite);
    packed_ = &packed, pair_ = packed.pair();
    start(arena);
    iterate();
    finish();
    packed_ = nullptr;
  }

 private:
  static constexpr int64_t stripes = 32;  // at most (Packed::stripe_rows)
  static constexpr T infinity = std::numeric_limits<T>::infinity();

  // Arrays of whole panels, the start, and how both sides move.
  void start(Arena& arena) {
    const int64_t N = packed_->padded_n(), M = packed_->padded_m();
    for (T** side : {&u_, &u_next_, &r_, &log_a_}) *side = arena.take<T>(N);
    for (T** side : {&v_, &v_next_, &c_, &log_b_}) *side = arena.take<T>(M);
    partial_ = arena.take<T>(stripes * M);
    sums_ = arena.take<double>(std::max(N, M));
    row_sum_ = arena.take<double>(N), row_cost_ = arena.take<double>(N);
    for (int64_t i = 0; i < N; ++i) {
      const double mass = i < p_.n ? p_.mass_of_row(i) : 0;
      any_zero_a_ |= i < p_.n && mass == 0;
      log_a_[i] = static_cast<T>(std::log2(mass));
      u_[i] = u_next_[i] = -infinity, r_[i] = 0;
    }
    for (int64_t j = 0; j < M; ++j) {
      const double mass = j < p_.m ? p_.mass_of_column(j) : 0;
      any_zero_b_ |= j < p_.m && mass == 0;
      log_b_[j] = static_cast<T>(std::log2(mass));
      v_[j] = log_b_[j] + (p_.g0 && j < p_.m ? pair_.scale * p_.g0[j] : T{0});
      v_next_[j] = -infinity, c_[j] = 0;
    }
    if (N * M * static_cast<int64_t>(sizeof(T)) <= room_) {
      T* kept = arena.take<T>(N * M);
      packed_->over_stripes(p_.n, workers_, [&](int64_t begin, int64_t end, int64_t, int64_t) {
        k_.keep_tiles(pair_, begin, end, kept);
      });
      pair_.kept = kept;
    }
    side_a_ = {log_a_, static_cast<T>(Settings::damping(set_.rho_a, p_.eps))};
    side_b_ = {log_b_, static_cast<T>(Settings::damping(set_.rho_b, p_.eps))};
    if (!clouds_.symmetric) return;
    side_a_.relax = T(0.5);
    std::copy(v_, v_ + N, u_);
  }

  // Sums of the rows and the next u; with `columns`, what stripes add to the columns. False: out of
  // range.
  bool sweep(bool columns) {
    const int64_t M = packed_->padded_m();
    std::atomic<bool> good{true};
    packed_->over_stripes(p_.n, workers_,
                          [&](int64_t begin, int64_t end, int64_t stripe, int64_t worker) {
                            T* to = columns ? partial_ + stripe * M : nullptr;
                            if (columns) std::fill(to, to + M, T{0});
                            const Sweep<T> s{pair_, u_, v_, side_a_, r_, u_next_, to};
                            if (!k_.sweep(s, begin, end, scratch_[worker])) good = false;
                          });
    return good;
  }

  // out_i = log2 sum_j 2^(K_ij + v_j) for the rows of `pair`.
  void log_sums(const Pair<T>& pair, const T* v, T* out) {
    packed_->over_stripes(pair.x.count, workers_,
                          [&](int64_t begin, int64_t end, int64_t, int64_t worker) {
                            k_.log_sums(pair, v, begin, end, out, scratch_[worker]);
                          });
  }

  // u_next, and the row sums of the pair (u, v) unless this is the first iteration.
  void rows(bool first) {
    swept_ = false;
    if (careful_ > 0) {
      --careful_;
    } else {
      if (sweep(!clouds_.symmetric)) {
        swept_ = true;
        return;
      }
      beware();
    }
    log_sums(pair_, v_, r_);
    k_.advance_log(side_a_, u_, r_, packed_->padded_n(), u_next_);
    if (first) return;
    for (int64_t i = 0; i < p_.n; ++i) r_[i] += u_[i];
    k_.exp2(r_, packed_->padded_n(), r_);
  }

  // v_next from the new u, which is in u_ by now.
  void columns() {
    const int64_t M = packed_->padded_m();
    if (swept_) {
      add_stripes();
      for (int64_t j = 0; j < M; ++j) c_[j] = static_cast<T>(sums_[j]);
      if (k_.advance(side_b_, v_, c_, p_.m, v_next_)) return;
      beware();
    }
    log_sums(pair_.swapped(), u_, c_);
    k_.advance_log(side_b_, v_, c_, M, v_next_);
  }

  // One sweep in vain: the next few iterations go without, then it is tried again.
  void beware() {
    careful_ = patience_;
    patience_ = std::min<int64_t>(2 * patience_, 32);
  }

  void add_stripes() {
    const int64_t M = packed_->padded_m(), height = packed_->stripe_rows(p_.n);
    std::fill(sums_, sums_ + M, 0.0);
    for (int64_t s = 0; s * height < p_.n; ++s) {
      const T* part = partial_ + s * M;
      for (int64_t j = 0; j < M; ++j) sums_[j] += part[j];
    }
  }

  // sum_i |r_i - target_i| of the pair (u, v) that r belongs to.
  T error() const {
    double sum = 0;
    for (int64_t i = 0; i < p_.n; ++i) {
      double target = p_.mass_of_row(i);
      if (target == 0) continue;
      if (set_.rho_a != HUGE_VAL) target *= std::exp(-potential(u_[i], log_a_[i]) / set_.rho_a);
      sum += std::fabs(r_[i] - target);
    }
    return static_cast<T>(sum);
  }

  T potential(T u, T log_mass) const { return (u - log_mass) / pair_.scale; }

  void iterate() {
    Relaxation<T> relaxation;
    T used = 1;  // omega of the last column step
    careful_ = clouds_.symmetric ? 0 : 1;
    for (int64_t k = 1; k <= set_.max_iter; ++k) {
      side_a_.omega = used;
      rows(k == 1 && !clouds_.symmetric);
      if (k > 1) {
        const T e = error();
        const bool within = set_.tol > 0 && e <= set_.tol;
        passed_ = within && used == 1;
        // Not a number: products left the range of T.
        if (passed_ || std::isnan(e)) return;
        if (set_.sor && !clouds_.symmetric) {
          relaxation.observe(k - 1, e);
          used = within || k == set_.max_iter ? T{1} : relaxation.omega;
        }
      }
      std::swap(u_, u_next_);
      n_iter_ = k;
      if (clouds_.symmetric) {
        std::copy(u_, u_ + packed_->padded_n(), v_);
      } else {
        side_b_.omega = used;
        columns();
        std::swap(v_, v_next_);
      }
    }
  }

  // Marginals, cost and value of the plan of (u, v), and everything that is returned.
  void finish() {
    const int64_t n = p_.n, m = p_.m, M = packed_->padded_m();
    packed_->over_stripes(
        n, workers_, [&](int64_t begin, int64_t end, int64_t stripe, int64_t worker) {
          T* to = partial_ + stripe * M;
          std::fill(to, to + M, T{0});
          k_.marginals(pair_, u_, v_, begin, end, row_sum_, row_cost_, to, scratch_[worker]);
        });
    add_stripes();
    double mass = 0, linear = 0;
    for (int64_t i = 0; i < n; ++i) {
      mass += row_sum_[i], linear += row_cost_[i];
      p_.r[i] = static_cast<T>(row_sum_[i]);
    }
    for (int64_t j = 0; j < m; ++j) p_.c[j] = static_cast<T>(sums_[j]);
    if (clouds_.symmetric) std::copy(p_.r, p_.r + n, p_.c);
    if (any_zero_a_) log_sums(pair_, v_, u_next_);
    if (any_zero_b_) log_sums(pair_.swapped(), u_, v_next_);
    side(n, u_, log_a_, u_next_, side_a_.damping, p_.f, p_.u);
    side(m, v_, log_b_, v_next_, side_b_.damping, p_.g, p_.v);
    conclude(p_, set_, n_iter_, passed_, mass, linear);
  }

  // The potentials of a side; where there is no mass, the transform of the other side's.
  void side(int64_t count, const T* u, const T* log_mass, const T* log_sum, T damping, T* f,
            T* out) const {
    for (int64_t i = 0; i < count; ++i) {
      const bool none = log_mass[i] == -infinity;
      f[i] = none ? -damping * log_sum[i] / pair_.scale : potential(u[i], log_mass[i]);
      out[i] = u[i];
    }
  }

  const PointsKernels<T>& k_;
  const Clouds<T>& clouds_;
  Problem<T>& p_;
  const Settings& set_;
  int64_t room_;
  T* const* scratch_ = nullptr;
  int64_t workers_ = 1;
  const Packed<T>* packed_ = nullptr;
  Pair<T> pair_{};
  Side<T> side_a_{}, side_b_{};
  bool any_zero_a_ = false, any_zero_b_ = false;
  T *u_, *u_next_, *r_, *log_a_, *v_, *v_next_, *c_, *log_b_, *partial_;
  double *sums_, *row_sum_, *row_cost_;
  bool swept_ = false, passed_ = false;
  int64_t careful_ = 0, patience_ = 2, n_iter_ = 0;
};

}  // namespace fedkernels
