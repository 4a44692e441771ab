// Sinkhorn for one problem above 32 x 32: E row by row, both half steps in one sweep over it.
//
//   t_i = sum_j E_ij q_j;  p_i = a_i / t_i;  s_j += E_ij p_i;      then q_j = b_j / s_j
//
// Four rows at a time: their dot products read E from memory, their part of the column sums reads them
// again from the first cache. Folds and guard as in sinkhorn_lanes.h. Precision: T, sums over stripes
// and totals in double where they are scalars. Parallel axis: stripes of rows, whose number follows
// from (n, m) alone; their column sums are added in order, so that a problem's bits do not depend on
// the threads.
//
// Included once per instruction set (common/each_capability.h): no include guard.

template <typename T>
class RowSweep {
  static constexpr int64_t L = Simd<T>::lanes;
  static constexpr int64_t run = 2 * L;  // columns at a time
  static constexpr int R = 4;            // rows at a time
  using V = Vec<T>;

 public:
  RowSweep(Problem<T>& problem, const Settings& settings, bool threads)
      : p_(problem), settings_(settings), threads_(threads) {}

  void solve() {
    n_ = p_.n, m_ = p_.m, width_ = round_up(m_, run);
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
  // --- setting up ----------------------------------------------------------------------------------

  void allocate() {
    const int64_t tall = round_up(n_, L);
    memory_ = Scratch<T>((settings_.log ? 0 : n_ * width_) + (5 + stripes_) * width_ + 6 * tall);
    T* at = memory_.get();
    const auto next = [&](int64_t count) { return std::exchange(at, at + count); };
    for (T** array : {&b_, &log_b_, &v_, &q_, &lse_columns_}) *array = next(width_);
    for (T** array : {&a_, &log_a_, &u_, &row_, &row_next_, &lse_rows_}) *array = next(tall);
    partial_ = next(stripes_ * width_);
    E_ = at;
    std::fill(memory_.get(), E_, T{0});
    minus_s_ = -p_.scale;
    damping_a_ = static_cast<T>(Settings::damping(settings_.rho_a, p_.eps));
    damping_b_ = static_cast<T>(Settings::damping(settings_.rho_b, p_.eps));
    growth_ = settings_.rho_a == HUGE_VAL ? T{0} : static_cast<T>(p_.eps / settings_.rho_a);
    for (int64_t i = 0; i < n_; ++i) a_[i] = p_.mass_of_row(i);
    for (int64_t j = 0; j < m_; ++j) b_[j] = p_.mass_of_column(j);
    for (int64_t i = 0; i < tall; i += L) store(log_a_ + i, log2_of<T>(load(a_ + i)));
    for (int64_t j = 0; j < width_; j += L) store(log_b_ + j, log2_of<T>(load(b_ + j)));
    for (int64_t j = 0; j < width_; ++j) {
      v_[j] = log_b_[j] + (p_.g0 && j < m_ ? p_.g0[j] * p_.scale : T{0});
    }
    std::fill(row_, row_ + tall, T{1});
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
    const auto one = [&](int64_t stripe) {
      f(stripe, stripe * n_ / stripes_, (stripe + 1) * n_ / stripes_);
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

  // --- absorbed iterations ---------------------------------------------------------------------------

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
      for (int64_t stripe = 1; stripe < stripes_; ++stripe) sum += load(partial_ + stripe * width_ + j);
      store(q_ + j, column_step(j, sum, damped));
    }
    ++iteration_;
    done_ = iteration_ == settings_.max_iter;
  }

  // The new p of rows [first, last), the stripe's part of the column sums, and of the error.
  template <Rule rule>
  double sweep(int64_t stripe, int64_t first, int64_t last) {
    T* partial = partial_ + stripe * width_;
    std::fill(partial, partial + width_, T{0});
    double error = 0;
    int64_t i = first;
    for (; i + R <= last; i += R) error += rows<R, rule>(i, partial);
    for (; i < last; ++i) error += rows<1, rule>(i, partial);
    return error;
  }

  template <int N, Rule rule>
  double rows(int64_t i, T* partial) {
    const T* E = E_ + i * width_;
    V sums[N][2] = {};
    for (int64_t j = 0; j < width_; j += run) {
      const V q0 = load(q_ + j), q1 = load(q_ + j + L);
      for (int r = 0; r < N; ++r) {
        sums[r][0] += load(E + r * width_ + j) * q0;
        sums[r][1] += load(E + r * width_ + j + L) * q1;
      }
    }
    T totals[N];
    V pairs[N];
    for (int r = 0; r < N; ++r) pairs[r] = sums[r][0] + sums[r][1];
    sum_each<N>(pairs, totals);
    double error = 0;
    for (int r = 0; r < N; ++r) {
      error += std::fabs(row_[i + r] * totals[r] - target<rule>(i + r));
      row_next_[i + r] = row_step<rule>(i + r, totals[r]);
    }
    V p[N];
    for (int r = 0; r < N; ++r) p[r] = broadcast(row_next_[i + r]);
    for (int64_t j = 0; j < width_; j += L) {
      V sum = load(partial + j);
      for (int r = 0; r < N; ++r) sum += load(E + r * width_ + j) * p[r];
      store(partial + j, sum);
    }
    return error;
  }

  // Four horizontal sums at once: one by one they would cost as much as the products of a short row.
  template <int N>
  static void sum_each(const V* x, T* totals) {
#if defined(WITH_AVX2) && !defined(WITH_AVX512)
    if constexpr (N == 4 && sizeof(T) == 4) {
      const __m256 pairs = _mm256_hadd_ps(__m256(x[0]), __m256(x[1]));
      const __m256 others = _mm256_hadd_ps(__m256(x[2]), __m256(x[3]));
      const __m256 fours = _mm256_hadd_ps(pairs, others);
      _mm_storeu_ps(totals,
                    _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1)));
      return;
    }
#endif
    for (int r = 0; r < N; ++r) totals[r] = sum_of<T>(x[r]);
  }

  template <Rule rule>
  T target(int64_t i) const {
    if constexpr (rule != Rule::damped) return a_[i];
    if (a_[i] == 0) return 0;
    const T potential = u_[i] + log2_of(row_[i]) - log_a_[i];
    return a_[i] * exp2_of(-growth_ * potential);
  }

  template <Rule rule>
  T row_step(int64_t i, T sum) const {
    if (a_[i] == 0) return 0;
    if constexpr (rule == Rule::plain) return a_[i] / sum;
    if constexpr (rule == Rule::relaxed) {
      return row_[i] * fedkernels::relaxed_factor(a_[i] / (sum * row_[i]), omega_);
    }
    return exp2_of(log_a_[i] - damping_a_ * (log2_of(sum) - u_[i]) - u_[i]);
  }

  V column_step(int64_t j, V sum, bool damped) const {
    const V mass = load(b_ + j);
    if (damped) {
      return exp2_of<T>(damped_step<T>(mass, load(log_b_ + j), sum, load(v_ + j),
                                       broadcast(damping_b_)));
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

  // --- folds -----------------------------------------------------------------------------------------

  void rebuild() {
    over_stripes([&](int64_t, int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        T* E = E_ + i * width_;
        const V u = broadcast(u_[i]), s = broadcast(minus_s_);
        over_row(i, [&](int64_t j, V cost) {
          store(E + j, exp2_of<T>(log_plan<T>(cost, s, u, load(v_ + j))));
        });
        std::fill(E + round_up(m_, L), E + width_, T{0});
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
    for (int64_t i = 0; i < n_; i += L) {
      store(u_ + i, load(u_ + i) + log2_of<T>(load(row_ + i)));
    }
    for (int64_t j = 0; j < width_; j += L) store(v_ + j, load(v_ + j) + log2_of<T>(load(q_ + j)));
    reset();
  }

  void reset() {
    std::fill(row_, row_ + n_, T{1});
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

  // --- the log domain --------------------------------------------------------------------------------

  void log_window() {
    while (!done_ && iteration_ < window_end()) log_iteration();
  }

  void log_iteration() {
    const V s = broadcast(minus_s_);
    over_stripes([&](int64_t, int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) lse_rows_[i] = row_lse(i, s);
    });
    const T omega = omega_;
    if (iteration_ > 0) {
      double error = 0;
      for (int64_t i = 0; i < n_; ++i) {
        error += std::fabs(exp2_of(u_[i] + lse_rows_[i]) - log_target(i));
      }
      if (!go_on(error)) return;
    }
    for (int64_t i = 0; i < n_; ++i) u_[i] = log_step(log_a_[i], u_[i], lse_rows_[i], damping_a_, omega);
    column_lse();
    for (int64_t j = 0; j < m_; ++j) {
      v_[j] = log_step(log_b_[j], v_[j], lse_columns_[j], damping_b_, omega_);
    }
    ++iteration_;
    done_ = iteration_ == settings_.max_iter;
  }

  T log_target(int64_t i) const {
    if (settings_.balanced() || a_[i] == 0) return a_[i];
    return a_[i] * exp2_of(-growth_ * (u_[i] - log_a_[i]));
  }

  T log_step(T log_mass, T before, T lse, T damping, T omega) const {
    if (log_mass == -infinite<T>) return log_mass;
    const T step = log_mass - damping * lse;
    if (!settings_.sor || iteration_ == 0 || omega == T{1}) return step;
    return before + log2_of(fedkernels::relaxed_factor(exp2_of(step - before), omega));
  }

  // log2 sum_j exp2(K_ij + v_j).
  T row_lse(int64_t i, V s) const {
    V most = broadcast(-infinite<T>), sum{};
    over_row(i, [&](int64_t j, V cost) {
      most = larger<V>(most, multiply_add<T>(cost, s, load(v_ + j)));
    });
    const T top = largest_of<T>(most);
    const V base = broadcast(top == -infinite<T> ? T{0} : top);
    over_row(i, [&](int64_t j, V cost) {
      sum += exp2_of<T>(multiply_add<T>(cost, s, load(v_ + j)) - base);
    });
    return base[0] + log2_of(sum_of<T>(sum));
  }

  // lse_columns_[j] = log2 sum_i exp2(K_ij + u_i): the largest entries first, then the sums.
  void column_lse() {
    const V s = broadcast(minus_s_), none = broadcast(-infinite<T>);
    const auto reduce = [&](V start, const auto& combine) {
      over_stripes([&](int64_t stripe, int64_t first, int64_t last) {
        T* partial = partial_ + stripe * width_;
        for (int64_t j = 0; j < width_; j += L) store(partial + j, start);
        for (int64_t i = first; i < last; ++i) {
          const V u = broadcast(u_[i]);
          over_row(i, [&](int64_t j, V cost) {
            store(partial + j, combine(j, load(partial + j), multiply_add<T>(cost, s, u)));
          });
        }
      });
    };
    reduce(none, [](int64_t, V most, V entry) { return larger<V>(most, entry); });
    for (int64_t j = 0; j < width_; j += L) {
      V most = load(partial_ + j);
      for (int64_t k = 1; k < stripes_; ++k) most = larger<V>(most, load(partial_ + k * width_ + j));
      store(lse_columns_ + j, most == -infinite<T> ? broadcast(T{0}) : most);
    }
    reduce(broadcast(T{0}), [&](int64_t j, V sum, V entry) {
      return sum + exp2_of<T>(entry - load(lse_columns_ + j));
    });
    for (int64_t j = 0; j < width_; j += L) {
      V sum = load(partial_ + j);
      for (int64_t k = 1; k < stripes_; ++k) sum += load(partial_ + k * width_ + j);
      store(lse_columns_ + j, load(lse_columns_ + j) + log2_of<T>(sum));
    }
  }

  // --- results ---------------------------------------------------------------------------------------

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
  int64_t n_, m_, width_, stripes_;
  Scratch<T> memory_;
  T *E_, *partial_;
  T *a_, *log_a_, *u_, *row_, *row_next_, *lse_rows_;       // row_: p
  T *b_, *log_b_, *v_, *q_, *lse_columns_;
  T minus_s_, damping_a_, damping_b_, growth_;              // growth_: eps / rho_a
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
