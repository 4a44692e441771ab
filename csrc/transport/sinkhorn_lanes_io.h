// What goes into the lanes of a group and what comes out: costs, masses, potentials, turned so that
// a vector holds one entry of each problem. Part of sinkhorn_lanes.h.
//
// Included once per instruction set (common/each_capability.h): no include guard.

// Cost and masses of the lanes in `fresh`, turned so that a vector holds one entry of each problem.
// What lies beyond a problem's own size has cost 0 and mass 0.
template <typename T>
void LaneGroup<T>::fill(I fresh) {
  V sum{};
  for (int64_t i = 0; i < height_; ++i) {
    for (int64_t j = 0; j < width_; j += L) {
      const V* turned = turn_in(fresh, i, j);
      V* to = cost_ + i * width_ + j;
      for (int64_t k = 0; k < L; ++k) {
        to[k] = fresh ? turned[k] : to[k];
        sum += to[k] * T{0};
      }
    }
  }
  load_masses(fresh);
  for (int64_t l = 0; l < L; ++l) {
    if (!fresh[l]) continue;
    Problem<T>& problem = *lane_[l].problem;
    if (sum[l] != sum[l]) {
      fail(problem, Status::non_finite);
      lane_[l].problem = nullptr;
      continue;
    }
    scale_[l] = -problem.scale;
    omega_[l] = 1;
    row_.damping[l] = static_cast<T>(Settings::damping(settings_.rho_a, problem.eps));
    column_.damping[l] = static_cast<T>(Settings::damping(settings_.rho_b, problem.eps));
    growth_[l] = settings_.rho_a == HUGE_VAL ? T{0} : static_cast<T>(problem.eps / settings_.rho_a);
  }
}

// L entries of row i from column j of each fresh lane's cost, a lane in each position.
template <typename T>
const Vec<T>* LaneGroup<T>::turn_in(I fresh, int64_t i, int64_t j) {
  alignas(64) T rows[L * L] = {};
  for (int64_t l = 0; l < L; ++l) {
    if (!fresh[l]) continue;
    const Problem<T>& problem = *lane_[l].problem;
    const int64_t count = i < problem.n ? std::clamp<int64_t>(problem.m - j, 0, L) : 0;
    const T* from = problem.cost + i * problem.block_m + j;
    if (count == L) {
      store(rows + l * L, load(from));
    } else {
      std::copy_n(from, count, rows + l * L);
    }
  }
  turn<T, L, L>(rows, reinterpret_cast<T*>(turned_));
  return turned_;
}

template <typename T>
void LaneGroup<T>::load_masses(I fresh) {
  for (int64_t l = 0; l < L; ++l) {
    if (!fresh[l]) continue;
    const Problem<T>& problem = *lane_[l].problem;
    for (int64_t i = 0; i < lanes_limit; ++i) {
      row_.mass[i][l] = i < problem.n ? problem.mass_of_row(i) : T{0};
      column_.mass[i][l] = i < problem.m ? problem.mass_of_column(i) : T{0};
      const T start = problem.g0 && i < problem.m ? problem.g0[i] * problem.scale : T{0};
      column_.next[i][l] = start;
    }
  }
  for (int64_t i = 0; i < lanes_limit; ++i) {
    for (Side* side : {&row_, &column_}) {
      const V log_mass = log2_of<T>(side->mass[i]);
      side->log_mass[i] = fresh ? log_mass : side->log_mass[i];
      side->scaling[i] = fresh ? broadcast(T{1}) : side->scaling[i];
    }
    column_.log_scaling[i] = fresh ? column_.log_mass[i] + column_.next[i] : column_.log_scaling[i];
    row_.log_scaling[i] = fresh ? row_.log_mass[i] : row_.log_scaling[i];
  }
}

// Row sums, column sums and <P, C> of the plan as `plan_row` shows it, then all arrays.
template <typename T>
void LaneGroup<T>::write(I lanes) {
  double linear[L] = {}, total[L] = {};
  std::fill_n(column_.next, column_.size, V{});
  for (int64_t i = 0; i < row_.size; ++i) {
    V sum{}, moved{};
    for (int64_t j = 0; j < column_.size; ++j) {
      const V entry = exp2_of<T>(log_entry(i, j));
      sum += entry;
      moved += entry * cost_[i * width_ + j];
      column_.next[j] += entry;
    }
    row_.next[i] = sum;
    for (int64_t l = 0; l < L; ++l) {
      total[l] += sum[l];
      linear[l] += moved[l];
    }
  }
  for (int64_t i = 0; i < row_.size; ++i) row_.log_next[i] = potential(row_, i, lanes);
  for (int64_t j = 0; j < column_.size; ++j) column_.log_next[j] = potential(column_, j, lanes);
  turn_out(row_, lanes, &Problem<T>::f, &Problem<T>::u, &Problem<T>::r, &Problem<T>::n);
  turn_out(column_, lanes, &Problem<T>::g, &Problem<T>::v, &Problem<T>::c, &Problem<T>::m);
  for (int64_t l = 0; l < L; ++l) {
    if (!lanes[l]) continue;
    const Lane& lane = lane_[l];
    conclude(*lane.problem, settings_, lane.iteration, lane.converged, total[l], linear[l]);
  }
}

// f of row i; where it has no mass, the value that would move none of the others.
template <typename T>
Vec<T> LaneGroup<T>::potential(const Side& side, int64_t i, I lanes) const {
  const I none = lanes & (side.mass[i] == T{0});
  V value = (side.log_mass[i] - side.log_scaling[i]) / scale_;
  if (any(none)) {
    const V lse = &side == &row_ ? row_lse(i) : column_lse(i);
    value = none ? side.damping * lse / scale_ : value;
  }
  return value;
}

template <typename T>
void LaneGroup<T>::turn_out(const Side& side, I lanes, T* Problem<T>::* f, T* Problem<T>::* u,
                            T* Problem<T>::* r, int64_t Problem<T>::* size) {
  alignas(64) T rows[L * L];
  const auto put = [&](const V* array, T* Problem<T>::* to) {
    for (int64_t i = 0; i < side.size; i += L) {
      turn<T, L, L>(reinterpret_cast<const T*>(array + i), rows);
      for (int64_t l = 0; l < L; ++l) {
        if (!lanes[l]) continue;
        const Problem<T>& problem = *lane_[l].problem;
        const int64_t count = std::clamp<int64_t>(problem.*size - i, 0, L);
        if (count == L) {
          store(problem.*to + i, load(rows + l * L));
        } else {
          std::copy_n(rows + l * L, count, problem.*to + i);
        }
      }
    }
  };
  put(side.log_next, f);
  put(side.log_scaling, u);
  put(side.next, r);
}
