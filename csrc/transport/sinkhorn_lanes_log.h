// Iterations of a group in the log domain: the first one, and what the guard sends back. Part of
// sinkhorn_lanes.h.
//
// Included once per instruction set (common/each_capability.h): no include guard.

// Iterations in the log domain up to each lane's next fold.
template <typename T>
void LaneGroup<T>::log_window(I lanes) {
  for (;;) {
    const I active = lanes & where([&](const Lane& lane) {
                       return running(lane) && lane.iteration < window_end(lane);
                     });
    if (!any(active)) break;
    log_iteration(active);
  }
  fold(lanes & where([&](const Lane& lane) { return !is_free(lane); }));
}

// One iteration whose scalings go straight into u and v; p = q = 1 in these lanes.
template <typename T>
void LaneGroup<T>::log_iteration(I lanes) {
  const I first = where([&](const Lane& lane) { return lane.iteration == 0; });
  V error{};
  for (int64_t i = 0; i < row_.size; ++i) {
    const V lse = row_lse(i);
    if (any(lanes & ~first)) {
      error += absolute<T>(exp2_of<T>(row_.log_scaling[i] + lse) - log_target(i));
    }
    row_.log_next[i] = lse;
  }
  const V omega = omega_;
  I later = lanes & ~first;
  if (any(later)) stop_test(error, later);
  const I moving = (lanes & first) | later;
  if (!any(moving)) return;
  log_steps(row_, moving, first, omega);
  for (int64_t j = 0; j < column_.size; ++j) column_.log_next[j] = column_lse(j);
  log_steps(column_, moving, first, omega_);
  for (int64_t l = 0; l < L; ++l) {
    if (moving[l]) advance(lane_[l], 1);
  }
}

template <typename T>
Vec<T> LaneGroup<T>::log_target(int64_t i) const {
  const V mass = row_.mass[i];
  if (settings_.balanced()) return mass;
  const V potential = mass == T{0} ? broadcast(T{0}) : row_.log_scaling[i] - row_.log_mass[i];
  return mass * exp2_of<T>(-growth_ * potential);
}

// u = log2 a - ka lse, or relaxed towards it.
template <typename T>
void LaneGroup<T>::log_steps(const Side& side, I moving, I first, V omega) {
  for (int64_t i = 0; i < side.size; ++i) {
    const V u = side.log_scaling[i];
    V step = side.log_mass[i] - side.damping * side.log_next[i];
    if (settings_.sor) {
      const V rho = exp2_of<T>(step - u);
      step = first | (omega == T{1}) ? step : u + log2_of<T>(relaxed_factors<T>(rho, omega));
    }
    step = side.mass[i] == T{0} ? broadcast(-infinite<T>) : step;
    side.log_scaling[i] = moving ? step : u;
  }
}

// log2 sum_j exp2(K_ij + v_j).
template <typename T>
Vec<T> LaneGroup<T>::row_lse(int64_t i) const {
  const V* cost = cost_ + i * width_;
  V most = broadcast(-infinite<T>), sum{};
  for (int64_t j = 0; j < column_.size; ++j) {
    most = larger<V>(most, multiply_add<T>(cost[j], scale_, column_.log_scaling[j]));
  }
  most = most == -infinite<T> ? broadcast(T{0}) : most;
  for (int64_t j = 0; j < column_.size; ++j) {
    sum += exp2_of<T>(multiply_add<T>(cost[j], scale_, column_.log_scaling[j]) - most);
  }
  return most + log2_of<T>(sum);
}

template <typename T>
Vec<T> LaneGroup<T>::column_lse(int64_t j) const {
  V most = broadcast(-infinite<T>), sum{};
  for (int64_t i = 0; i < row_.size; ++i) {
    most = larger<V>(most, multiply_add<T>(cost_[i * width_ + j], scale_, row_.log_scaling[i]));
  }
  most = most == -infinite<T> ? broadcast(T{0}) : most;
  for (int64_t i = 0; i < row_.size; ++i) {
    const V entry = multiply_add<T>(cost_[i * width_ + j], scale_, row_.log_scaling[i]);
    sum += exp2_of<T>(entry - most);
  }
  return most + log2_of<T>(sum);
}
