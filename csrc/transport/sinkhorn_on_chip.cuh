// Sinkhorn for n, m <= 128, one launch a class: E = exp2(K + u + v) lives in registers, an
// iteration is n m fused multiply-adds each way and no exponential.
//
//   t_i = sum_j E_ij q_j,  p_i = a_i / t_i,     s_j = sum_i E_ij p_i,  q_j = b_j / s_j
//
// Lanes are columns, registers are rows: every read of the cost is coalesced, column sums stay in a
// lane, row sums are scattered over the lanes by R - 1 shuffles and leave one row in each. A
// problem has a part of a warp (n, m <= 4, 8, 16), a warp (<= 32), or a block whose warps own
// stripes of rows and add up their columns through shared memory in the order of the warps (<= 64,
// <= 128).
//
// After iterations 2, 4, 8, 16 and every 16th u and v take p and q in and E is rebuilt from the
// cost (multiplying p and q into E would keep what had underflowed at zero). A window whose
// scalings left the safe range is done again from its fold in the log domain, as the first
// iteration always is.
//
// Groups that share a warp run in step; one that is done is frozen, not skipped, and its bits are
// those it would have alone. Precision: float32, scalings rounded once an iteration.
#pragma once

#include "transport/sinkhorn_group.cuh"

namespace fedkernels {

// Scalings beyond 2^96 in one window would lose entries of E that matter.
constexpr float kGuard = 96.0f;

// `relaxes`: with over-relaxation (relaxation.h), in both domains.
template <int L, int R, int C, int W, bool relaxes>
struct OnChip : OnChipGroup<L, R, C, W> {
  using Group = OnChipGroup<L, R, C, W>;
  using typename Group::KeptPace;
  using typename Group::Shared;
  using Group::E, Group::a, Group::alone, Group::any, Group::b, Group::call, Group::cell,
      Group::column, Group::combine, Group::damping_a, Group::damping_b, Group::each_row, Group::k,
      Group::lane, Group::load, Group::m, Group::meet, Group::n, Group::owner, Group::p, Group::q,
      Group::reduce, Group::row, Group::scale, Group::scatter, Group::share_a, Group::shared,
      Group::spread, Group::u, Group::v, Group::warp;

  // Blocks a multiprocessor at least: what bounds the registers of a thread.
  static constexpr int blocks =
      Group::alone ? (Group::columns > 16 ? 8 : relaxes ? 10 : 12) : Group::columns > 64 ? 2 : 3;

  struct Pace {
    Relaxation<float> relaxation;
    float used = 1.0f;  // omega of the last iteration
  };
  Pace pace;

  __device__ __forceinline__ OnChip(const SinkhornCall& call, Shared& shared)
      : Group(call, shared) {}

  // What the error of the pair after iteration it - 1 decides: whether the problem stops there, and
  // the pace of iteration `it`.
  __device__ __forceinline__ bool passes(int it, float error, bool moving) {
    const bool within = call.tol > 0.0f && error <= call.tol;
    if constexpr (relaxes) {
      if (!moving) return false;
      pace.relaxation.observe(it - 1, error);
      const bool plain = pace.used == 1.0f;
      pace.used = within || it >= call.max_iter ? 1.0f : pace.relaxation.omega;
      return within && plain;
    }
    return within && moving;
  }

  __device__ __forceinline__ KeptPace& kept_pace() const {
    return shared.pace[alone ? static_cast<int>(threadIdx.x) / L : 0];
  }
  __device__ __forceinline__ void keep_pace() {
    meet();
    if (lane == 0 && (alone || warp == 0)) {
      const Relaxation<float>& r = pace.relaxation;
      kept_pace() = {r.omega, r.one_ago, r.two_ago, r.marked, pace.used};
    }
    meet();
  }
  __device__ __forceinline__ void restore_pace() {
    const KeptPace& kept = kept_pace();
    pace = {{kept.omega, kept.one_ago, kept.two_ago, kept.marked}, kept.used};
  }

  // log2 of the relaxed step from `from`, of which `to` is the plain one.
  __device__ __forceinline__ float relaxed_step(float mass, float from, float to) const {
    if (!relaxes || pace.used == 1.0f || !(mass > 0.0f)) return to;
    const float rho = exp2f(to - from);
    return rho > 0.5f && rho < 2.0f ? from + log2f(relaxed_factor(rho, pace.used)) : to;
  }

  // ---- the log domain; E is scratch

  // lse2_j(K_ij + v_j) of the lane's row.
  __device__ __forceinline__ float log_rows() {
    float x[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < C; ++c) E[r][c] = fmaf(-cell(r, c), scale, v[c]);
      x[r] = E[r][0];
#pragma unroll
      for (int c = 1; c < C; ++c) x[r] = Maximum()(x[r], E[r][c]);
    }
    const float largest = scatter(x, Maximum());
    spread(largest);
    each_row([&](int r, float top) {
      x[r] = exp2f(E[r][0] - top);
#pragma unroll
      for (int c = 1; c < C; ++c) x[r] += exp2f(E[r][c] - top);
    });
    return largest + log2f(scatter(x, Sum()));
  }

  // lse2_i(K_ij + u_i) of the lane's columns.
  __device__ __forceinline__ void log_columns(float own_u, float (&result)[C]) {
    spread(own_u);
    float sum[C];
#pragma unroll
    for (int c = 0; c < C; ++c) result[c] = -INFINITY, sum[c] = 0.0f;
    each_row([&](int r, float x) {
#pragma unroll
      for (int c = 0; c < C; ++c) {
        E[r][c] = fmaf(-cell(r, c), scale, x);
        result[c] = Maximum()(result[c], E[r][c]);
      }
    });
    combine(result, Maximum());
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < C; ++c) sum[c] += exp2f(E[r][c] - result[c]);
    }
    combine(sum, Sum());
#pragma unroll
    for (int c = 0; c < C; ++c) result[c] += log2f(sum[c]);
  }

  // Iterations from + 1 to `to`; of the problems with `wanted`. Returns the iteration that passed
  // the stop test, or 0.
  __device__ __forceinline__ int log_window(int from, int to, bool test_after, bool wanted) {
    int stopped = 0;
    const int end = to + (test_after && call.tol > 0.0f ? 1 : 0);
    for (int it = from + 1; it <= end; ++it) {
      const float lse = log_rows();
      if (it > 1 && (relaxes || call.tol > 0.0f)) {
        const float target = row_target(a, u, share_a);
        const float mine = owner && a > 0.0f ? fabsf(exp2f(u + lse) - target) : 0.0f;
        if (passes(it, reduce(mine, Sum()), wanted && stopped == 0)) stopped = it - 1;
      }
      const bool moves = wanted && stopped == 0 && it <= to;
      if (!any(moves)) break;
      const float next_u = relaxed_step(a, u, log2f(a) - damping_a * lse);
      float next_v[C];
      log_columns(next_u, next_v);
      if (moves) {
        u = next_u;
#pragma unroll
        for (int c = 0; c < C; ++c) {
          v[c] = relaxed_step(b(c), v[c], log2f(b(c)) - damping_b * next_v[c]);
        }
      }
    }
    return stopped;
  }

  // ---- the linear domain

  __device__ __forceinline__ void rebuild() {
    spread(u);
    each_row([&](int r, float x) {
#pragma unroll
      for (int c = 0; c < C; ++c) E[r][c] = exp2f(log2_plan(cell(r, c), scale, x, v[c]));
    });
  }

  // t_i of the lane's row.
  __device__ __forceinline__ float row_sums() const {
    float x[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      x[r] = E[r][0] * q[0];
#pragma unroll
      for (int c = 1; c < C; ++c) x[r] = fmaf(E[r][c], q[c], x[r]);
    }
    return scatter(x, Sum());
  }

  // s_j of the lane's columns over the rows of this warp. Several sums, for the latency of one.
  __device__ __forceinline__ void column_sums(float own, float (&sum)[C]) {
    constexpr int parts = C >= 4 ? 1 : 4 / C;
    float x[parts][C] = {};
    spread(own);
    each_row([&](int r, float weight) {
#pragma unroll
      for (int c = 0; c < C; ++c) x[r % parts][c] = fmaf(E[r][c], weight, x[r % parts][c]);
    });
#pragma unroll
    for (int c = 0; c < C; ++c) {
      sum[c] = x[0][c];
#pragma unroll
      for (int i = 1; i < parts; ++i) sum[c] += x[i][c];
    }
  }

  // As log_window, from E, p = q = 1. u and v stay; `bad` says that they must not take p and q in.
  __device__ __forceinline__ int linear_window(int from, int to, bool test_after, bool wanted,
                                               bool& bad) {
    p = 1.0f;
#pragma unroll
    for (int c = 0; c < C; ++c) q[c] = 1.0f;
    rebuild();
    int stopped = 0;
    bool lost = false;
    const int end = to + (test_after && call.tol > 0.0f ? 1 : 0);
    for (int it = from + 1; it <= end; ++it) {
      const float t = row_sums();
      float error = 0.0f;
      if (relaxes || call.tol > 0.0f) {
        const float full_u = share_a == 0.0f ? u : u + log2f(p);
        const float target = row_target(a, full_u, share_a);
        error = warp_reduce<L>(owner && a > 0.0f ? fabsf(p * t - target) : 0.0f, Sum());
      }
      bool moves = wanted && stopped == 0;
      if constexpr (alone || relaxes) {
        // The pace of this iteration depends on the error: an exchange of its own.
        if constexpr (!alone) error = reduce(lane == 0 ? error : 0.0f, Sum());
        if (passes(it, error, moves)) stopped = it - 1;
      }
      const bool plain = !relaxes || pace.used == 1.0f;
      const float next_p = plain ? scaling(a, t, u, damping_a) : p * relaxed(a, p * t, pace.used);
      float sum[C];
      column_sums(next_p, sum);
      if constexpr (!alone) {
        if (!relaxes && lane == 0) shared.error[warp] = error;
        combine(sum, Sum(), [&] {
          if constexpr (relaxes) return;
          error = shared.error[0];
#pragma unroll
          for (int w = 1; w < W; ++w) error += shared.error[w];
        });
        if (!relaxes && passes(it, error, moves)) stopped = it - 1;
      }
      moves = moves && stopped == 0 && it <= to;
      if (!any(moves)) break;
      if (moves) {
        p = next_p;
        lost |= a > 0.0f && !(p > 0.0f && finite(p));
#pragma unroll
        for (int c = 0; c < C; ++c) {
          q[c] = plain ? scaling(b(c), sum[c], v[c], damping_b)
                       : q[c] * relaxed(b(c), q[c] * sum[c], pace.used);
          lost |= b(c) > 0.0f && !(q[c] > 0.0f && finite(q[c]));
        }
      }
    }
    float largest_q = q[0];
#pragma unroll
    for (int c = 1; c < C; ++c) largest_q = Maximum()(largest_q, q[c]);
    const float reach = log2f(reduce(p, Maximum())) + log2f(reduce(largest_q, Maximum()));
    bad = reduce(lost || !(reach <= kGuard) ? 1 : 0, Maximum()) != 0;
    return stopped;
  }

  __device__ __forceinline__ void fold() {
    u += log2f(p);
#pragma unroll
    for (int c = 0; c < C; ++c) v[c] += log2f(q[c]);
  }
  __device__ __forceinline__ void run(int larger_than, int up_to) {
    const bool mine = load(larger_than, up_to);
    if (!any(mine)) return;
    log_window(0, 1, false, mine);
    bool live = mine, passed = false;
    int n_iter = 0;
    for (int done = 1; any(live);) {
      const int fold_at = static_cast<int>(next_fold(done));
      const int to = fold_at < call.max_iter ? fold_at : call.max_iter;
      const bool last = to == call.max_iter;
      bool bad = true;
      int stopped = 0;
      if constexpr (relaxes) keep_pace();
      if (!call.log) {
        stopped = linear_window(done, to, last, live, bad);
        if (live && !bad) fold();
      }
      if (any(live && bad)) {
        if (relaxes && bad) restore_pace();
        const int again = log_window(done, to, last, live && bad);
        if (bad) stopped = again;
      }
      done = to;
      if (live && (stopped != 0 || last)) {
        passed = stopped != 0;
        n_iter = passed ? stopped : call.max_iter;
        live = false;
      }
    }
    measure(mine, n_iter, passed);
  }

  // The plan that is returned: its marginals and <P, C>.
  __device__ __forceinline__ void measure(bool mine, int n_iter, bool passed) {
    rebuild();
#pragma unroll
    for (int c = 0; c < C; ++c) q[c] = 1.0f;
    const float marginal = row_sums();
    float sum[C];
    column_sums(1.0f, sum);
    float part = 0.0f;  // of at most 64 entries; the lanes are added in double
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < C; ++c) part = fmaf(E[r][c], cell(r, c), part);
    }
    combine(sum, Sum());
    const double linear = reduce(static_cast<double>(part), Sum());
    if (!mine) return;
    if (owner && row < n) {
      call.u[k * call.n + row] = u;
      call.r[k * call.n + row] = marginal;
    }
    if (alone || warp == 0) {
#pragma unroll
      for (int c = 0; c < C; ++c) {
        if (column(c) < m) {
          call.v[k * call.m + column(c)] = v[c];
          call.c[k * call.m + column(c)] = sum[c];
        }
      }
      if (lane == 0) {
        SinkhornProblem& result = call.problems[k];
        result.linear = linear;
        result.n_iter = n_iter;
        result.passed = passed ? 1 : 0;
      }
    }
  }
};

// Problems with max(n, m) in (larger_than, up_to]; the others are left.
template <int L, int R, int C, int W, bool relaxes>
__global__ void __launch_bounds__((OnChip<L, R, C, W, relaxes>::threads),
                                  (OnChip<L, R, C, W, relaxes>::blocks))
    sinkhorn_on_chip(SinkhornCall call, int larger_than, int up_to) {
  using Class = OnChip<L, R, C, W, relaxes>;
  FK_SHARED(typename Class::Shared, shared);
  Class(call, shared).run(larger_than, up_to);
}

}  // namespace fedkernels
