// Sinkhorn for problems of up to 32 x 32, one in each lane of the vectors.
//
//   E = exp2(K + u + v);  p = a / (E q);  q = b / (E^T p)      (K = -C log2(e) / eps)
//
// E stays in the first cache; a fold (u += log2 p, v += log2 q, E rebuilt from the cost) keeps p
// and q near 1. Parallel axis: problems. Precision: T, totals in double. Cost: 2 n m multiply-adds
// an iteration, and n m exp2 a fold.
//
// A lane never reads another lane: its sums run over its own rows and columns in ascending order,
// and what pads it to the group's size adds zeros. A finished lane keeps its p and q by a mask;
// lanes are refilled at folds once half of them are free.
//
// Included once per instruction set (common/each_capability.h): no include guard.

template <typename T>
class LaneGroup {
  static constexpr int64_t L = Simd<T>::lanes;
  using V = Vec<T>;
  using I = typename Simd<T>::ivec;

 public:
  LaneGroup(Problem<T>* problems, int64_t height, int64_t width, int64_t (*take)(void*),
            void* queue, const Settings& settings)
      : problems_(problems),
        height_(height),
        width_(round_up(width, L)),
        take_(take),
        queue_(queue),
        settings_(settings) {}

  void run() {
    const int64_t cells = height_ * width_;
    const int64_t count = (2 * cells + 12 * lanes_limit) * L;
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
  // Both sides hold, per row or column: a, log2 a, u, p, the new p, and log2 of it where rho is
  // finite.
  struct Side {
    V *mass, *log_mass, *log_scaling, *scaling, *next, *log_next;
    V damping;
    int64_t size = 0;  // of the largest problem in the group
  };

  struct Lane {
    Problem<T>* problem = nullptr;    // null: free
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

  // Gives the free lanes new problems. False: nothing is left.
  bool refill() {
    do {
      take();
      row_.size = column_.size = 0;
      for (const Lane& lane : lane_) {
        if (is_free(lane)) continue;
        row_.size = std::max(row_.size, lane.problem->n);
        column_.size = std::max(column_.size, lane.problem->m);
      }
      // All lanes are free again where every cost that was loaded is not finite.
    } while (row_.size == 0 && !exhausted_);
    return row_.size > 0;
  }

  void take() {
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
    if (any(fresh)) fill(fresh);
  }

  // In sinkhorn_lanes_io.h.
  void fill(I fresh);
  const V* turn_in(I fresh, int64_t i, int64_t j);
  void load_masses(I fresh);
  void write(I lanes);
  V potential(const Side& side, int64_t i, I lanes) const;
  void turn_out(const Side& side, I lanes, T* Problem<T>::* f, T* Problem<T>::* u,
                T* Problem<T>::* r, int64_t Problem<T>::* size);

  // In sinkhorn_lanes_log.h.
  void log_window(I lanes);
  void log_iteration(I lanes);
  V log_target(int64_t i) const;
  void log_steps(const Side& side, I moving, I first, V omega);
  V row_lse(int64_t i) const;
  V column_lse(int64_t j) const;

  // Runs to the nearest fold of any lane, and folds the lanes that are there.
  void window() {
    const I starting =
        where([&](const Lane& lane) { return running(lane) && lane.iteration == 0; });
    if (any(starting)) {
      log_iteration(starting);
      fold(starting);
    }
    if (settings_.log) return log_window(running_lanes());
    int64_t steps = settings_.max_iter;
    for (const Lane& lane : lane_) {
      if (running(lane)) steps = std::min(steps, window_end(lane) - lane.iteration);
    }
    running_ = running_lanes();
    frozen_ = false;
    eventful_ = false;
    bool going = true;
    while (going && step_ < steps) {
      last_step_ = step_ + 1 == steps;
      going = iterate();
    }
    for (Lane& lane : lane_) {
      if (running(lane)) advance(lane, step_);
    }
    step_ = 0;
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
    const V error = damped          ? rows<Rule::damped>()
                    : settings_.sor ? rows<Rule::relaxed>()
                                    : rows<Rule::plain>();
    if (!stop_test(error, running_)) return false;
    commit(row_);
    if (damped) {
      columns<Rule::damped>();
    } else if (settings_.sor) {
      columns<Rule::relaxed>();
    } else {
      columns<Rule::plain>();
    }
    commit(column_);
    ++step_;
    return true;
  }

  // The new p of all rows, and the error of the pair (p, q) that it starts from.
  template <Rule rule>
  V rows() {
    V error{};
    const Side side = row_;
    over_sums(E_, side.size, width_, 1, column_.scaling, column_.size, [&](int64_t i, V sum) {
      error += absolute<T>(side.scaling[i] * sum - target<rule>(side, i));
      step<rule>(side, i, sum);
    });
    return error;
  }

  template <Rule rule>
  void columns() {
    const Side side = column_;
    over_sums(E_, side.size, 1, width_, row_.scaling, row_.size,
              [&](int64_t j, V sum) { step<rule>(side, j, sum); });
  }

  // The mass that row i should have: a, or a e^(-f / rho).
  template <Rule rule>
  V target(const Side& side, int64_t i) const {
    const V mass = side.mass[i];
    if constexpr (rule != Rule::damped) return mass;
    const V log_scaling = side.log_scaling[i] + log2_of<T>(side.scaling[i]);
    const V potential = mass == T{0} ? broadcast(T{0}) : log_scaling - side.log_mass[i];
    return mass * exp2_of<T>(-growth_ * potential);
  }

  template <Rule rule>
  void step(const Side& side, int64_t i, V sum) const {
    if constexpr (rule == Rule::plain) {
      side.next[i] = plain_step<T>(side.mass[i], sum);
    } else if constexpr (rule == Rule::relaxed) {
      side.next[i] = relaxed_step<T>(side.mass[i], sum, side.scaling[i], omega_);
    } else {
      side.next[i] = exp2_of<T>(
          damped_step<T>(side.mass[i], side.log_mass[i], sum, side.log_scaling[i], side.damping));
    }
  }

  // use(i, sum_k E[i * apart + k * along] * scaling[k]) for i < count. Eight at a time: a load of
  // the scaling serves all of them, and eight sums in flight hide the latency of a multiply-add.
  template <typename F>
  static void over_sums(const V* E, int64_t count, int64_t apart, int64_t along, const V* scaling,
                        int64_t length, const F& use) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) sums<8>(E + i * apart, i, apart, along, scaling, length, use);
    for (; i + 4 <= count; i += 4) sums<4>(E + i * apart, i, apart, along, scaling, length, use);
    for (; i < count; ++i) sums<1>(E + i * apart, i, apart, along, scaling, length, use);
  }

  template <int R, typename F>
  static void sums(const V* E, int64_t i, int64_t apart, int64_t along, const V* scaling,
                   int64_t length, const F& use) {
    V sum[R] = {};
    for (int64_t k = 0; k < length; ++k, E += along) {
      const V factor = scaling[k];
      for (int r = 0; r < R; ++r) sum[r] += E[r * apart] * factor;
    }
    for (int r = 0; r < R; ++r) use(i + r, sum[r]);
  }

  // Takes out of `active` the lanes that are done, with the pair that they have. False: none is
  // left.
  bool stop_test(V error, I& active) {
    if (settings_.sor) {
      observe(error, active);
    } else if (settings_.tol > 0) {
      const I below = active & (error <= tolerance_);
      if (any(below)) {
        for (int64_t l = 0; l < L; ++l) {
          if (below[l]) stop(lane_[l]);
        }
        active &= ~below;
      }
    } else {
      return true;
    }
    return any(active);
  }

  // relaxation.h, lane by lane only where something can change: at the first iteration of a window
  // (omega changes at folds alone), below the tolerance, after that, and before the last iteration.
  void observe(V error, I& active) {
    const I below = settings_.tol > 0 ? active & (error <= tolerance_) : I{};
    if (step_ == 0 || eventful_ || any(below) || last_step_) {
      eventful_ = false;
      for (int64_t l = 0; l < L; ++l) {
        if (active[l]) observe(lane_[l], l, error[l], below[l] != 0, active);
      }
      return;
    }
    two_ago_ = active ? one_ago_ : two_ago_;
    one_ago_ = active ? error : one_ago_;
  }

  void observe(Lane& lane, int64_t l, T error, bool below, I& active) {
    if (below && lane.plain) {
      stop(lane);
      active[l] = 0;
      return;
    }
    const int64_t iteration = lane.iteration + step_;
    Relaxation<T>& rule = lane.relaxation;
    rule.one_ago = one_ago_[l], rule.two_ago = two_ago_[l];
    rule.observe(iteration, error);
    one_ago_[l] = rule.one_ago, two_ago_[l] = rule.two_ago;
    omega_[l] = below || iteration + 1 == settings_.max_iter ? T{1} : rule.omega;
    lane.plain = omega_[l] == T{1};
    eventful_ |= below;
  }

  void stop(Lane& lane) {
    advance(lane, step_);
    lane.done = lane.converged = true;
    frozen_ = true;
  }

  void advance(Lane& lane, int64_t steps) {
    lane.iteration += steps;
    lane.folded &= steps == 0;
    lane.done = lane.iteration == settings_.max_iter;
  }

  // The new scaling; lanes that stopped in this window keep theirs until its fold.
  void commit(Side& side) {
    if (!frozen_) return std::swap(side.scaling, side.next);
    for (int64_t i = 0; i < side.size; ++i) {
      side.scaling[i] = running_ ? side.next[i] : side.scaling[i];
    }
  }

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
    if (!any(running_lanes())) return;
    // Lanes that were not folded get the entries again that they have.
    for (int64_t i = 0; i < row_.size; ++i) {
      for (int64_t j = 0; j < column_.size; ++j) E_[i * width_ + j] = exp2_of<T>(log_entry(i, j));
    }
  }

  V log_entry(int64_t i, int64_t j) const {
    return log_plan<T>(cost_[i * width_ + j], scale_, row_.log_scaling[i], column_.log_scaling[j]);
  }

  void mark_fold(I lanes) {
    for (int64_t l = 0; l < L; ++l) {
      Lane& lane = lane_[l];
      if (!lanes[l]) continue;
      lane.fold = lane.iteration;
      lane.folded = true;
      lane.relaxation.one_ago = one_ago_[l], lane.relaxation.two_ago = two_ago_[l];
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
      one_ago_[l] = lane.relaxation.one_ago, two_ago_[l] = lane.relaxation.two_ago;
      lane.plain = lane.plain_at_fold;
      omega_[l] = lane.omega_at_fold;
    }
    for (Side* side : {&row_, &column_}) {
      for (int64_t i = 0; i < side->size; ++i) {
        side->scaling[i] = lanes ? broadcast(T{1}) : side->scaling[i];
      }
    }
  }

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

  Problem<T>* problems_;
  int64_t height_, width_;  // what the arrays hold: the largest problem of the call
  int64_t (*take_)(void*);
  void* queue_;
  Settings settings_;
  bool exhausted_ = false;
  I running_{};          // the lanes that iterate
  int64_t step_ = 0;     // iterations since the window began
  bool frozen_ = false;  // a lane has stopped since
  Lane lane_[L];
  Side row_, column_;
  V *cost_, *E_;
  V scale_{}, growth_{}, tolerance_{};  // scale_: -log2(e) / eps; growth_: eps / rho_a
  V omega_ = broadcast(T{1}), one_ago_{}, two_ago_{};  // of relaxation.h
  bool eventful_ = false;   // a lane below the tolerance goes on: look again
  bool last_step_ = false;  // a lane comes to max_iter with this iteration
  V turned_[L];
};

template <typename T>
void solve_lanes(Problem<T>* problems, int64_t height, int64_t width, int64_t (*take)(void*),
                 void* queue, const Settings& settings) {
  LaneGroup<T>(problems, height, width, take, queue, settings).run();
}

#include "transport/sinkhorn_lanes_io.h"
#include "transport/sinkhorn_lanes_log.h"
