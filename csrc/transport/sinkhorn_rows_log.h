// Iterations of one larger problem in the log domain: the first one, and what the guard sends back.
// Part of sinkhorn_rows.h.
//
// Included once per instruction set (common/each_capability.h): no include guard.

template <typename T>
void RowSweep<T>::log_window() {
  while (!done_ && iteration_ < window_end()) log_iteration();
}

template <typename T>
void RowSweep<T>::log_iteration() {
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
  for (int64_t i = 0; i < n_; ++i)
    u_[i] = log_step(log_a_[i], u_[i], lse_rows_[i], damping_a_, omega);
  column_lse();
  for (int64_t j = 0; j < m_; ++j) {
    v_[j] = log_step(log_b_[j], v_[j], lse_columns_[j], damping_b_, omega_);
  }
  ++iteration_;
  done_ = iteration_ == settings_.max_iter;
}

template <typename T>
T RowSweep<T>::log_target(int64_t i) const {
  if (settings_.balanced() || a_[i] == 0) return a_[i];
  return a_[i] * exp2_of(-growth_ * (u_[i] - log_a_[i]));
}

template <typename T>
T RowSweep<T>::log_step(T log_mass, T before, T lse, T damping, T omega) const {
  if (log_mass == -infinite<T>) return log_mass;
  const T step = log_mass - damping * lse;
  if (!settings_.sor || iteration_ == 0 || omega == T{1}) return step;
  return before + log2_of(fedkernels::relaxed_factor(exp2_of(step - before), omega));
}

// log2 sum_j exp2(K_ij + v_j).
template <typename T>
T RowSweep<T>::row_lse(int64_t i, V s) const {
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
template <typename T>
void RowSweep<T>::column_lse() {
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
