// Sinkhorn for problems of up to 32 x 32, one in each lane of the vectors.
//
//   E = exp2(K + u + v);  p = a / (E q);  q = b / (E^T p)      (K = -C log2(e) / eps)
//
// E stays in the first cache; a fold (u += log2 p, v += log2 q, E rebuilt from the cost) keeps p and q
// near 1. Parallel axis: problems. Precision: T, totals in double. Cost: 2 n m multiply-adds an
// iteration, and n m exp2 a fold.
//
// A lane never reads another lane: its sums run over its own rows and columns in ascending order, and
// what pads it to the group's size adds zeros. A finished lane keeps its p and q by a mask; lanes are
// refilled at folds once half of them are free.
//
// Included once per instruction set (common/each_capability.h): no include guard.

template <typename T>
class LaneGroup {
  static constexpr int64_t L = Simd<T>::lanes;
  using V = Vec<T>;
  using I = typename Simd<T>::ivec;

 public:
  LaneGroup(Problem<T>* problems, int64_t (*take)(void*), void* queue, const Settings& settings)
      : problems_(problems), take_(take), queue_(queue), settings_(settings) {}

  void run() {
    constexpr int64_t cells = lanes_limit * lanes_limit;
    constexpr int64_t count = (2 * cells + 12 * lanes_limit) * L;
    const Scratch<T> memory(count);
    std::fill_n(memory.get(), count, T{0});
    V* at = reinterpret_cast<V*>(memory.get());
    const auto next = [&](int64_t vectors) { return std::exchange(at, at + vectors); };
    cost_ = next(cells), E_ = next(cells);
    for (Side* side : {&row_, &column_}) {
      for (V** array : {&side->mass, &side->log_mass, &side->log_scaling, &side->scaling,
                        &side->next, &side->log_next}) {
        *array = next(lanes_limit);
      }
    }
    tolerance_ = broadcast(T(settings_.tol));
    while (refill()) {
      do {
        window();
      } while (!release());
    }
  }

 private:
  // Both sides hold, per row or column: a, log2 a, u, p, the new p, and log2 of it where rho is finite.
  struct Side {
    V *mass, *log_mass, *log_scaling, *scaling, *next, *log_next;
    V damping;
    int64_t size = 0;  // of the largest problem in the group
  };

  struct Lane {
    Problem<T>* problem = nullptr;  // null: free
    int64_t iteration = 0, fold = 0;  // iterations done, and done at the last fold
    bool done = false, converged = false;
    bool folded = true;  // p = q = 1: nothing has happened since the last fold
    bool plain = true;   // the last column step was not relaxed
    Relaxation<T> relaxation, relaxation_at_fold;
    bool plain_at_fold = true;
    T omega_at_fold = 1;
  };

  bool is_free(const Lane& lane) const { return lane.problem == nullptr; }

  template <typename F>
  I where(const F& holds) const {
    I mask{};
    for (int64_t l = 0; l < L; ++l) mask[l] = holds(lane_[l]) ? -1 : 0;
    return mask;
  }

  static bool any(I mask) {
    bool found = false;
    for (int64_t l = 0; l < L; ++l) found |= mask[l] != 0;
    return found;
  }

  // --- filling -----------------------------------------------------------------------------------

  // Gives the free lanes new problems. False: nothing is left.
  bool refill() {
    do {
      fill();
      row_.size = column_.size = 0;
      for (Lane& lane : lane_) {
        if (is_free(lane)) continue;
        row_.size = std::max(row_.size, lane.problem->n);
        column_.size = std::max(column_.size, lane.problem->m);
      }
      // All lanes are free again where every cost that was loaded is not finite.
    } while (row_.size == 0 && !exhausted_);
    return row_.size > 0;
  }

  void fill() {
    I fresh{};
    for (int64_t l = 0; l < L; ++l) {
      if (!is_free(lane_[l])) continue;
      while (!exhausted_ && !fresh[l]) {
        const int64_t k = take_(queue_);
        exhausted_ = k < 0;
        if (exhausted_ || !prepare(problems_[k], settings_)) continue;
        lane_[l] = Lane{&problems_[k]};
        fresh[l] = -1;
      }
    }
    if (any(fresh)) load(fresh);
  }

  // Cost and masses of the lanes in `fresh`, turned so that a vector holds one entry of each problem.
  // What lies beyond a problem's own size has cost 0 and mass 0.
  void load(I fresh) {
    V sum{};
    for (int64_t i = 0; i < lanes_limit; ++i) {
      for (int64_t j = 0; j < lanes_limit; j += L) {
        const V* turned = turn_in(fresh, i, j);
        V* to = cost_ + i * lanes_limit + j;
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
  const V* turn_in(I fresh, int64_t i, int64_t j) {
    alignas(64) T rows[L * L] = {};
    for (int64_t l = 0; l < L; ++l) {
      if (!fresh[l]) continue;
      const Problem<T>& problem = *lane_[l].problem;
      const int64_t count = i < problem.n ? std::clamp<int64_t>(problem.m - j, 0, L) : 0;
      std::copy_n(problem.cost + i * problem.block_m + j, count, rows + l * L);
    }
    turn<T, L, L>(rows, reinterpret_cast<T*>(turned_));
    return turned_;
  }

  void load_masses(I fresh) {
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
      column_.log_scaling[i] =
          fresh ? column_.log_mass[i] + column_.next[i] : column_.log_scaling[i];
      row_.log_scaling[i] = fresh ? row_.log_mass[i] : row_.log_scaling[i];
    }
  }

  // --- one window --------------------------------------------------------------------------------

  // Runs to the nearest fold of any lane, and folds the lanes that are there.
  void window() {
    const I starting = where([&](const Lane& lane) { return running(lane) && lane.iteration == 0; });
    if (any(starting)) {
      log_iteration(starting);
      fold(starting);
    }
    if (settings_.log) return log_window(running_lanes());
    int64_t steps = settings_.max_iter;
    for (const Lane& lane : lane_) {
      if (running(lane)) steps = std::min(steps, window_end(lane) - lane.iteration);
    }
    while (steps-- > 0 && iterate()) {
    }
    const I at_fold = where([&](const Lane& lane) {
      return !is_free(lane) && !lane.folded && (lane.done || lane.iteration == window_end(lane));
    });
    const I tripped = at_fold & beyond_guard();
    fold(at_fold & ~tripped);
    if (any(tripped)) {
      restore(tripped);
      log_window(tripped);
    }
  }

  bool running(const Lane& lane) const { return !is_free(lane) && !lane.done; }

  I running_lanes() const {
    return where([&](const Lane& lane) { return running(lane); });
  }

  int64_t window_end(const Lane& lane) const {
    return std::min(next_fold(lane.fold), settings_.max_iter);
  }

  // One absorbed iteration of all running lanes. False: none is running any more.
  bool iterate() {
    const bool damped = !settings_.balanced();
    const V error = damped ? rows<Rule::damped>() : settings_.sor ? rows<Rule::relaxed>()
                                                                 : rows<Rule::plain>();
    const I moving = stop_test(error, running_lanes());
    if (!any(moving)) return false;
    commit(row_, moving);
    if (damped) {
      columns<Rule::damped>();
    } else if (settings_.sor) {
      columns<Rule::relaxed>();
    } else {
      columns<Rule::plain>();
    }
    commit(column_, moving);
    advance(moving);
    return true;
  }

  // The new p of all rows, and the error of the pair (p, q) that it starts from.
  template <Rule rule>
  V rows() {
    V error{};
    for (int64_t i = 0; i < row_.size; i += 8) {
      V sums[8];
      row_sums(i, sums);
      const int64_t count = std::min<int64_t>(8, row_.size - i);
      for (int64_t k = 0; k < count; ++k) {
        error += absolute<T>(row_.scaling[i + k] * sums[k] - target<rule>(i + k));
        step<rule>(row_, i + k, sums[k]);
      }
    }
    return error;
  }

  template <Rule rule>
  void columns() {
    for (int64_t j = 0; j < column_.size; j += 8) {
      V sums[8];
      column_sums(j, sums);
      const int64_t count = std::min<int64_t>(8, column_.size - j);
      for (int64_t k = 0; k < count; ++k) step<rule>(column_, j + k, sums[k]);
    }
  }

  // The mass that row i should have: a, or a e^(-f / rho).
  template <Rule rule>
  V target(int64_t i) const {
    const V mass = row_.mass[i];
    if constexpr (rule != Rule::damped) return mass;
    const V log_scaling = row_.log_scaling[i] + log2_of<T>(row_.scaling[i]);
    const V potential = mass == T{0} ? broadcast(T{0}) : log_scaling - row_.log_mass[i];
    return mass * exp2_of<T>(-growth_ * potential);
  }

  template <Rule rule>
  void step(Side& side, int64_t i, V sum) {
    if constexpr (rule == Rule::plain) {
      side.next[i] = plain_step<T>(side.mass[i], sum);
    } else if constexpr (rule == Rule::relaxed) {
      side.next[i] = relaxed_step<T>(side.mass[i], sum, side.scaling[i], omega_);
    } else {
      side.next[i] = exp2_of<T>(damped_step<T>(side.mass[i], side.log_mass[i], sum,
                                               side.log_scaling[i], side.damping));
    }
  }

  // Eight rows (or as many as are left) at a time: a load of q serves all of them, and eight
  // independent sums hide the latency of a multiply-add.
  void row_sums(int64_t i, V* sums) const {
    const V *E = E_ + i * lanes_limit, *q = column_.scaling;
    const int64_t m = column_.size, count = row_.size - i;
    if (count >= 8) return sums_of<8>(E, lanes_limit, 1, q, m, sums);
    if (count >= 4) {
      sums_of<4>(E, lanes_limit, 1, q, m, sums);
      for (int64_t k = 4; k < count; ++k) sums_of<1>(E + k * lanes_limit, 0, 1, q, m, sums + k);
      return;
    }
    for (int64_t k = 0; k < count; ++k) sums_of<1>(E + k * lanes_limit, 0, 1, q, m, sums + k);
  }

  void column_sums(int64_t j, V* sums) const {
    const V *E = E_ + j, *p = row_.scaling;
    const int64_t n = row_.size, count = column_.size - j;
    if (count >= 8) return sums_of<8>(E, 1, lanes_limit, p, n, sums);
    if (count >= 4) {
      sums_of<4>(E, 1, lanes_limit, p, n, sums);
      for (int64_t k = 4; k < count; ++k) sums_of<1>(E + k, 0, lanes_limit, p, n, sums + k);
      return;
    }
    for (int64_t k = 0; k < count; ++k) sums_of<1>(E + k, 0, lanes_limit, p, n, sums + k);
  }

  template <int R>
  static void sums_of(const V* E, int64_t apart, int64_t along, const V* scaling, int64_t length,
                      V* sums) {
    V sum[R] = {};
    for (int64_t k = 0; k < length; ++k, E += along) {
      const V factor = scaling[k];
      for (int r = 0; r < R; ++r) sum[r] += E[r * apart] * factor;
    }
    for (int r = 0; r < R; ++r) sums[r] = sum[r];
  }

  // Which of `active` go on: the others are done, with the pair that they have.
  I stop_test(V error, I active) {
    if (settings_.tol > 0 && !settings_.sor) {
      const I below = active & (error <= tolerance_);
      if (any(below)) {
        for (int64_t l = 0; l < L; ++l) {
          if (below[l]) lane_[l].done = lane_[l].converged = true;
        }
      }
      return active & ~below;
    }
    if (!settings_.sor) return active;
    for (int64_t l = 0; l < L; ++l) {
      if (!active[l]) continue;
      Lane& lane = lane_[l];
      const bool below = settings_.tol > 0 && error[l] <= static_cast<T>(settings_.tol);
      if (below && lane.plain) {
        lane.done = lane.converged = true;
        active[l] = 0;
        continue;
      }
      lane.relaxation.observe(lane.iteration, error[l]);
      const bool plain = below || lane.iteration + 1 == settings_.max_iter;
      omega_[l] = plain ? T{1} : lane.relaxation.omega;
      lane.plain = omega_[l] == T{1};
    }
    return active;
  }

  // The new scaling of the lanes in `moving`; the others keep theirs.
  void commit(Side& side, I moving) {
    for (int64_t i = 0; i < side.size; ++i) {
      side.scaling[i] = moving ? side.next[i] : side.scaling[i];
    }
  }

  void advance(I moving) {
    for (int64_t l = 0; l < L; ++l) {
      Lane& lane = lane_[l];
      if (!moving[l]) continue;
      ++lane.iteration;
      lane.folded = false;
      lane.done = lane.iteration == settings_.max_iter;
    }
  }

  // --- folds and the log domain --------------------------------------------------------------------

  // Lanes whose scalings have moved so far that entries of E that were rounded to 0 may matter.
  I beyond_guard() const {
    V most_p = broadcast(T{0}), most_q = most_p, poison = most_p;
    for (int64_t i = 0; i < row_.size; ++i) {
      most_p = larger<V>(most_p, row_.scaling[i]);
      poison += row_.scaling[i] * T{0};
    }
    for (int64_t j = 0; j < column_.size; ++j) {
      most_q = larger<V>(most_q, column_.scaling[j]);
      poison += column_.scaling[j] * T{0};
    }
    const V spread = log2_of<T>(most_p) + log2_of<T>(most_q);
    return (spread > T{96}) | (poison != T{0}) | no_scaling(row_) | no_scaling(column_);
  }

  // A row with mass whose scaling is 0 (or NaN).
  static I no_scaling(const Side& side) {
    I found{};
    for (int64_t i = 0; i < side.size; ++i) {
      found |= (side.mass[i] > T{0}) & ~(side.scaling[i] > T{0});
    }
    return found;
  }

  void fold(I lanes) {
    if (!any(lanes)) return;
    for (Side* side : {&row_, &column_}) {
      for (int64_t i = 0; i < side->size; ++i) {
        const V folded = side->log_scaling[i] + log2_of<T>(side->scaling[i]);
        side->log_scaling[i] = lanes ? folded : side->log_scaling[i];
        side->scaling[i] = lanes ? broadcast(T{1}) : side->scaling[i];
      }
    }
    mark_fold(lanes);
    // Lanes that were not folded get the entries again that they have.
    for (int64_t i = 0; i < row_.size; ++i) {
      for (int64_t j = 0; j < column_.size; ++j) E_[i * lanes_limit + j] = exp2_of<T>(log_entry(i, j));
    }
  }

  V log_entry(int64_t i, int64_t j) const {
    return log_plan<T>(cost_[i * lanes_limit + j], scale_, row_.log_scaling[i],
                       column_.log_scaling[j]);
  }

  void mark_fold(I lanes) {
    for (int64_t l = 0; l < L; ++l) {
      Lane& lane = lane_[l];
      if (!lanes[l]) continue;
      lane.fold = lane.iteration;
      lane.folded = true;
      lane.relaxation_at_fold = lane.relaxation;
      lane.plain_at_fold = lane.plain;
      lane.omega_at_fold = omega_[l];
    }
  }

  void restore(I lanes) {
    for (int64_t l = 0; l < L; ++l) {
      Lane& lane = lane_[l];
      if (!lanes[l]) continue;
      lane.iteration = lane.fold;
      lane.done = lane.converged = false;
      lane.relaxation = lane.relaxation_at_fold;
      lane.plain = lane.plain_at_fold;
      omega_[l] = lane.omega_at_fold;
    }
    for (Side* side : {&row_, &column_}) {
      for (int64_t i = 0; i < side->size; ++i) {
        side->scaling[i] = lanes ? broadcast(T{1}) : side->scaling[i];
      }
    }
  }

  // Iterations in the log domain up to each lane's next fold.
  void log_window(I lanes) {
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
  void log_iteration(I lanes) {
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
    const I moving = (lanes & first) | stop_test(error, lanes & ~first);
    if (!any(moving)) return;
    log_steps(row_, moving, first, omega);
    for (int64_t j = 0; j < column_.size; ++j) column_.log_next[j] = column_lse(j);
    log_steps(column_, moving, first, omega_);
    advance(moving);
  }

  V log_target(int64_t i) const {
    const V mass = row_.mass[i];
    if (settings_.balanced()) return mass;
    const V potential =
        mass == T{0} ? broadcast(T{0}) : row_.log_scaling[i] - row_.log_mass[i];
    return mass * exp2_of<T>(-growth_ * potential);
  }

  // u = log2 a - ka lse, or relaxed towards it.
  void log_steps(Side& side, I moving, I first, V omega) {
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
  V row_lse(int64_t i) const {
    const V* cost = cost_ + i * lanes_limit;
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

  V column_lse(int64_t j) const {
    V most = broadcast(-infinite<T>), sum{};
    for (int64_t i = 0; i < row_.size; ++i) {
      most = larger<V>(most, multiply_add<T>(cost_[i * lanes_limit + j], scale_, row_.log_scaling[i]));
    }
    most = most == -infinite<T> ? broadcast(T{0}) : most;
    for (int64_t i = 0; i < row_.size; ++i) {
      const V entry = multiply_add<T>(cost_[i * lanes_limit + j], scale_, row_.log_scaling[i]);
      sum += exp2_of<T>(entry - most);
    }
    return most + log2_of<T>(sum);
  }

  // --- results -------------------------------------------------------------------------------------

  // Writes out finished lanes once half of the group is free or nothing runs. True: lanes are free.
  bool release() {
    int64_t busy = 0;
    for (const Lane& lane : lane_) busy += running(lane);
    if (busy > 0 && (exhausted_ || 2 * busy > L)) return false;
    write(where([&](const Lane& lane) { return !is_free(lane) && lane.done; }));
    for (Lane& lane : lane_) {
      if (lane.done) lane.problem = nullptr;
    }
    return true;
  }

  // Row sums, column sums and <P, C> of the plan as `plan_row` shows it, then all arrays.
  void write(I lanes) {
    double linear[L] = {}, total[L] = {};
    std::fill_n(column_.next, column_.size, V{});
    for (int64_t i = 0; i < row_.size; ++i) {
      V sum{}, moved{};
      for (int64_t j = 0; j < column_.size; ++j) {
        const V entry = exp2_of<T>(log_entry(i, j));
        sum += entry;
        moved += entry * cost_[i * lanes_limit + j];
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
  V potential(const Side& side, int64_t i, I lanes) const {
    const I none = lanes & (side.mass[i] == T{0});
    V value = (side.log_mass[i] - side.log_scaling[i]) / scale_;
    if (any(none)) {
      const V lse = &side == &row_ ? row_lse(i) : column_lse(i);
      value = none ? side.damping * lse / scale_ : value;
    }
    return value;
  }

  void turn_out(const Side& side, I lanes, T* Problem<T>::*f, T* Problem<T>::*u, T* Problem<T>::*r,
                int64_t Problem<T>::*size) {
    alignas(64) T rows[L * L];
    const auto put = [&](const V* array, T* Problem<T>::*to) {
      for (int64_t i = 0; i < side.size; i += L) {
        turn<T, L, L>(reinterpret_cast<const T*>(array + i), rows);
        for (int64_t l = 0; l < L; ++l) {
          if (!lanes[l]) continue;
          const Problem<T>& problem = *lane_[l].problem;
          const int64_t count = std::clamp<int64_t>(problem.*size - i, 0, L);
          std::copy_n(rows + l * L, count, problem.*to + i);
        }
      }
    };
    put(side.log_next, f);
    put(side.log_scaling, u);
    put(side.next, r);
  }

  Problem<T>* problems_;
  int64_t (*take_)(void*);
  void* queue_;
  Settings settings_;
  bool exhausted_ = false;
  Lane lane_[L];
  Side row_, column_;
  V *cost_, *E_;
  V scale_{}, growth_{}, tolerance_{};  // scale_: -log2(e) / eps; growth_: eps / rho_a
  V omega_ = broadcast(T{1});
  V turned_[L];
};

template <typename T>
void solve_lanes(Problem<T>* problems, int64_t (*take)(void*), void* queue,
                 const Settings& settings) {
  LaneGroup<T>(problems, take, queue, settings).run();
}
