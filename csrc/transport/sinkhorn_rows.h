// Sinkhorn for one problem above 32 x 32: E row by row, both half steps in one sweep over it.
//
//   t_i = sum_j E_ij q_j;  p_i = a_i / t_i;  s_j += E_ij p_i;      then q_j = b_j / s_j
//
// A vector's worth of rows at a time: their dot products read E from memory, their part of the
// column sums reads them again from the first caches. Rows and columns that pad E are 0 and have no
// mass. Folds and guard as in sinkhorn_lanes.h. Precision: T, sums over stripes and totals in
// double where they are scalars. Parallel axis: stripes of rows, whose number follows from (n, m)
// alone; their column sums are added in order, so that a problem's bits do not depend on the
// threads.
//
// Included once per instruction set (common/each_capability.h): no include guard.

template <typename T>
class RowSweep {
  static constexpr int64_t L = Simd<T>::lanes;
  using V = Vec<T>;

 public:
  RowSweep(Problem<T>& problem, const Settings& settings, bool threads)
      : p_(problem), settings_(settings), threads_(threads) {}

  void solve() {
    n_ = p_.n, m_ = p_.m, tall_ = round_up(n_, L), width_ = round_up(m_, L);
    stripes_ = n_ * m_ > striped_cells ? 8 : 1;
    allocate();
    if (!finite_cost()) return fail(p_, Status::non_finite);
    log_iteration();
    while (!done_) {
      mark();
      if (settings_.log) {
        log_window();
        continue;
      }
      rebuild();
      while (!done_ && iteration_ < window_end()) iterate();
      if (beyond_guard()) {
        restore();
        log_window();
      } else {
        fold();
      }
    }
    write();
  }

 private:
  void allocate() {
    memory_ =
        Scratch<T>((settings_.log ? 0 : tall_ * width_) + (5 + stripes_) * width_ + 6 * tall_);
    T* at = memory_.get();
    const auto next = [&](int64_t count) { return std::exchange(at, at + count); };
    for (T** array : {&b_, &log_b_, &v_, &q_, &lse_columns_}) *array = next(width_);
    for (T** array : {&a_, &log_a_, &u_, &row_, &row_next_, &lse_rows_}) *array = next(tall_);
    partial_ = next(stripes_ * width_);
    E_ = at;
    std::fill(memory_.get(), E_, T{0});
    if (!settings_.log) std::fill(E_ + n_ * width_, E_ + tall_ * width_, T{0});
    minus_s_ = -p_.scale;
    damping_a_ = static_cast<T>(Settings::damping(settings_.rho_a, p_.eps));
    damping_b_ = static_cast<T>(Settings::damping(settings_.rho_b, p_.eps));
    growth_ = settings_.rho_a == HUGE_VAL ? T{0} : static_cast<T>(p_.eps / settings_.rho_a);
    for (int64_t i = 0; i < n_; ++i) a_[i] = p_.mass_of_row(i);
    for (int64_t j = 0; j < m_; ++j) b_[j] = p_.mass_of_column(j);
    for (int64_t i = 0; i < tall_; i += L) store(log_a_ + i, log2_of<T>(load(a_ + i)));
    for (int64_t j = 0; j < width_; j += L) store(log_b_ + j, log2_of<T>(load(b_ + j)));
    for (int64_t j = 0; j < width_; ++j) {
      v_[j] = log_b_[j] + (p_.g0 && j < m_ ? p_.g0[j] * p_.scale : T{0});
    }
    std::fill(row_, row_ + tall_, T{1});
    std::fill(q_, q_ + width_, T{1});
  }

  bool finite_cost() {
    Stripes<int> bad{};
    over_stripes([&](int64_t stripe, int64_t first, int64_t last) {
      T sum = 0;
      for (int64_t i = first; i < last; ++i) {
        const T* cost = cost_row(i);
        V poison{};
        int64_t j = 0;
        for (; j + L <= m_; j += L) poison += load(cost + j) * T{0};
        for (; j < m_; ++j) sum += cost[j] * T{0};
        sum += sum_of<T>(poison);
      }
      bad[stripe] = sum != 0;  // NaN is not 0 either
    });
    return std::count(bad.begin(), bad.end(), 0) == static_cast<int64_t>(bad.size());
  }

  template <typename S>
  using Stripes = std::array<S, 8>;

  template <typename F>
  void over_stripes(const F& f) {
    const int64_t blocks = tall_ / L;
    const auto one = [&](int64_t stripe) {
      f(stripe, stripe * blocks / stripes_ * L, std::min(n_, (stripe + 1) * blocks / stripes_ * L));
    };
    if (threads_ && stripes_ > 1) {
      torch::stable::parallel_for(0, stripes_, 1, [&](int64_t begin, int64_t end) {
        for (int64_t stripe = begin; stripe < end; ++stripe) one(stripe);
      });
    } else {
      for (int64_t stripe = 0; stripe < stripes_; ++stripe) one(stripe);
    }
  }

  const T* cost_row(int64_t i) const { return p_.cost + i * p_.block_m; }
  int64_t window_end() const { return std::min(next_fold(fold_), settings_.max_iter); }

  void iterate() {
    Stripes<double> errors{};
    const bool damped = !settings_.balanced();
    over_stripes([&](int64_t stripe, int64_t first, int64_t last) {
      errors[stripe] = damped          ? sweep<Rule::damped>(stripe, first, last)
                       : settings_.sor ? sweep<Rule::relaxed>(stripe, first, last)
                                       : sweep<Rule::plain>(stripe, first, last);
    });
    if (!go_on(total(errors))) return;
    std::swap(row_, row_next_);
    for (int64_t j = 0; j < width_; j += L) {
      V sum = load(partial_ + j);
      for (int64_t stripe = 1; stripe < stripes_; ++stripe)
        sum += load(partial_ + stripe * width_ + j);
      store(q_ + j, column_step(j, sum, damped));
    }
    ++iteration_;
    done_ = iteration_ == settings_.max_iter;
  }

  // The new p of rows [first, last), the stripe's part of the column sums, and of the error.
  template <Rule rule>
  double sweep(int64_t stripe, int64_t first, int64_t last) {
    const int64_t width = width_;
    T* partial = partial_ + stripe * width;
    std::fill(partial, partial + width, T{0});
    V error{};
    V sums = first < last ? multiply(E_ + first * width, width) : V{};
    for (int64_t i = first; i < last; i += L) {
      const T* E = E_ + i * width;
      error += absolute<T>(load(row_ + i) * sums - target<rule>(i));
      store(row_next_ + i, row_step<rule>(i, sums));
      // The next rows' products stand between this division and its use, and hide its latency.
      if (i + L < last) sums = multiply(E + L * width, width);
      add(E, width, row_next_ + i, partial);
    }
    return sum_of<T>(error);
  }

  // L rows of E times q.
  V multiply(const T* E, int64_t width) const {
    const T* q = q_;
    V sums[L] = {};
    for (int64_t j = 0; j < width; j += L) {
      const V factor = load(q + j);
      for (int64_t r = 0; r < L; ++r) sums[r] += load(E + r * width + j) * factor;
    }
    return sums_of_each<T>(sums);
  }

  // partial += E^T p for L rows of E, in two chains.
  static void add(const T* E, int64_t width, const T* p, T* partial) {
    V factor[L];
    for (int64_t r = 0; r < L; ++r) factor[r] = broadcast(p[r]);
    for (int64_t j = 0; j < width; j += L) {
      V sum = load(partial + j), other{};
      for (int64_t r = 0; r < L / 2; ++r) {
        sum += load(E + r * width + j) * factor[r];
        other += load(E + (r + L / 2) * width + j) * factor[r + L / 2];
      }
      store(partial + j, sum + other);
    }
  }

  template <Rule rule>
  V target(int64_t i) const {
    const V mass = load(a_ + i);
    if constexpr (rule != Rule::damped) return mass;
    const V log_scaling = load(u_ + i) + log2_of<T>(load(row_ + i));
    const V potential = mass == T{0} ? broadcast(T{0}) : log_scaling - load(log_a_ + i);
    return mass * exp2_of<T>(-growth_ * potential);
  }

  template <Rule rule>
  V row_step(int64_t i, V sum) const {
    const V mass = load(a_ + i);
    if constexpr (rule == Rule::plain) return plain_step<T>(mass, sum);
    if constexpr (rule == Rule::relaxed) {
      return relaxed_step<T>(mass, sum, load(row_ + i), broadcast(omega_));
    }
    return exp2_of<T>(
        damped_step<T>(mass, load(log_a_ + i), sum, load(u_ + i), broadcast(damping_a_)));
  }

  V column_step(int64_t j, V sum, bool damped) const {
    const V mass = load(b_ + j);
    if (damped) {
      return exp2_of<T>(
          damped_step<T>(mass, load(log_b_ + j), sum, load(v_ + j), broadcast(damping_b_)));
    }
    if (settings_.sor) return relaxed_step<T>(mass, sum, load(q_ + j), broadcast(omega_));
    return plain_step<T>(mass, sum);
  }

  static double total(const Stripes<double>& parts) {
    double sum = 0;
    for (const double part : parts) sum += part;
    return sum;
  }

  // The stop test of the pair that the sweep started from; false: it stays as it is.
  bool go_on(double error) {
    const bool below = settings_.tol > 0 && error <= settings_.tol;
    if (below && (plain_ || !settings_.sor)) {
      done_ = converged_ = true;
      return false;
    }
    if (settings_.sor) {
      relaxation_.observe(iteration_, static_cast<T>(error));
      omega_ = below || iteration_ + 1 == settings_.max_iter ? T{1} : relaxation_.omega;
      plain_ = omega_ == T{1};
    }
    return true;
  }

  void rebuild() {
    over_stripes([&](int64_t, int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        T* E = E_ + i * width_;
        const V u = broadcast(u_[i]), s = broadcast(minus_s_);
        over_row(i, [&](int64_t j, V cost) {
          store(E + j, exp2_of<T>(log_plan<T>(cost, s, u, load(v_ + j))));
        });
      }
    });
  }

  // f(j, cost) for each vector of row i; what pads the last one has cost 0.
  template <typename F>
  void over_row(int64_t i, const F& f) const {
    const T* cost = cost_row(i);
    int64_t j = 0;
    for (; j + L <= m_; j += L) f(j, load(cost + j));
    if (j == m_) return;
    T last[L] = {};
    std::copy(cost + j, cost + m_, last);
    f(j, load(last));
  }

  void fold() {
    for (int64_t i = 0; i < tall_; i += L) {
      store(u_ + i, load(u_ + i) + log2_of<T>(load(row_ + i)));
    }
    for (int64_t j = 0; j < width_; j += L) store(v_ + j, load(v_ + j) + log2_of<T>(load(q_ + j)));
    reset();
  }

  void reset() {
    std::fill(row_, row_ + tall_, T{1});
    std::fill(q_, q_ + width_, T{1});
  }

  void mark() {
    fold_ = iteration_;
    at_fold_ = {relaxation_, omega_, plain_};
  }

  void restore() {
    iteration_ = fold_;
    done_ = converged_ = false;
    relaxation_ = at_fold_.relaxation;
    omega_ = at_fold_.omega;
    plain_ = at_fold_.plain;
    reset();
  }

  bool beyond_guard() const {
    const auto [most_p, bad_p] = survey(row_, a_, n_);
    const auto [most_q, bad_q] = survey(q_, b_, m_);
    return bad_p || bad_q || log2_of(most_p) + log2_of(most_q) > T{96};
  }

  // The largest scaling, and whether one with mass is not positive and finite.
  static std::pair<T, bool> survey(const T* scaling, const T* mass, int64_t size) {
    T most = 0;
    bool bad = false;
    for (int64_t i = 0; i < size; ++i) {
      most = scaling[i] > most ? scaling[i] : most;
      bad |= (mass[i] > 0 && !(scaling[i] > 0)) || scaling[i] * 0 != 0;
    }
    return {most, bad};
  }

  // In sinkhorn_rows_log.h.
  void log_window();
  void log_iteration();
  T log_target(int64_t i) const;
  T log_step(T log_mass, T before, T lse, T damping, T omega) const;
  T row_lse(int64_t i, V s) const;
  void column_lse();

  void write() {
    Stripes<double> totals{}, costs{};
    const V s = broadcast(minus_s_);
    over_stripes([&](int64_t stripe, int64_t first, int64_t last) {
      T* partial = partial_ + stripe * width_;
      std::fill(partial, partial + width_, T{0});
      for (int64_t i = first; i < last; ++i) {
        const V u = broadcast(u_[i]);
        V sum{}, moved{};
        over_row(i, [&](int64_t j, V cost) {
          const V entry = exp2_of<T>(log_plan<T>(cost, s, u, load(v_ + j)));
          sum += entry;
          moved += entry * cost;
          store(partial + j, load(partial + j) + entry);
        });
        p_.r[i] = sum_of<T>(sum);
        totals[stripe] += p_.r[i];
        costs[stripe] += sum_of<T>(moved);
      }
    });
    for (int64_t k = 1; k < stripes_; ++k) {
      for (int64_t j = 0; j < width_; ++j) partial_[j] += partial_[k * width_ + j];
    }
    std::copy_n(partial_, m_, p_.c);
    std::copy_n(u_, n_, p_.u);
    std::copy_n(v_, m_, p_.v);
    for (int64_t i = 0; i < n_; ++i) p_.f[i] = (log_a_[i] - u_[i]) / minus_s_;
    for (int64_t j = 0; j < m_; ++j) p_.g[j] = (log_b_[j] - v_[j]) / minus_s_;
    without_mass();
    conclude(p_, settings_, iteration_, converged_, total(totals), total(costs));
  }

  // f and g where there is no mass: the value that would move none of the others.
  void without_mass() {
    const V s = broadcast(minus_s_);
    for (int64_t i = 0; i < n_; ++i) {
      if (a_[i] == 0) p_.f[i] = damping_a_ * row_lse(i, s) / minus_s_;
    }
    if (std::count(b_, b_ + m_, T{0}) == 0) return;
    column_lse();
    for (int64_t j = 0; j < m_; ++j) {
      if (b_[j] == 0) p_.g[j] = damping_b_ * lse_columns_[j] / minus_s_;
    }
  }

  struct AtFold {
    Relaxation<T> relaxation;
    T omega;
    bool plain;
  };

  Problem<T>& p_;
  Settings settings_;
  bool threads_;
  int64_t n_, m_, tall_, width_, stripes_;
  Scratch<T> memory_;
  T *E_, *partial_;
  T *a_, *log_a_, *u_, *row_, *row_next_, *lse_rows_;  // row_: p
  T *b_, *log_b_, *v_, *q_, *lse_columns_;
  T minus_s_, damping_a_, damping_b_, growth_;  // growth_: eps / rho_a
  int64_t iteration_ = 0, fold_ = 0;
  bool done_ = false, converged_ = false, plain_ = true;
  T omega_ = 1;
  Relaxation<T> relaxation_;
  AtFold at_fold_{{}, 1, true};
};

template <typename T>
void solve_rows(Problem<T>& problem, const Settings& settings, bool threads) {
  if (prepare(problem, settings)) RowSweep<T>(problem, settings, threads).solve();
}

template <typename T>
void plan_row(const T* cost, T s, T u, const T* v, T scale, int64_t m, T* out) {
  constexpr int64_t L = Simd<T>::lanes;
  const auto entries = [&](Vec<T> costs, Vec<T> vs) {
    return broadcast(scale) * exp2_of<T>(log_plan<T>(costs, broadcast(-s), broadcast(u), vs));
  };
  int64_t j = 0;
  for (; j + L <= m; j += L) store(out + j, entries(load(cost + j), load(v + j)));
  if (j == m) return;
  T costs[L] = {}, vs[L] = {}, last[L];
  std::copy(cost + j, cost + m, costs);
  std::copy(v + j, v + m, vs);
  store(last, entries(load(costs), load(vs)));
  std::copy_n(last, m - j, out + j);
}

#include "transport/sinkhorn_rows_log.h"
