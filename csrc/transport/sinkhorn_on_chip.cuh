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

#include "common/scatter.cuh"
#include "transport/relaxation.h"
#include "transport/sinkhorn_problem.cuh"

namespace fedkernels {

// Scalings beyond 2^96 in one window would lose entries of E that matter.
constexpr float kGuard = 96.0f;

// L lanes a row, R rows a warp, C columns a lane, W warps; W = 1: warps work alone.
template <int L, int R, int C, int W>
struct OnChip {
  static_assert(L >= R && R >= 4 && (W == 1 || L == warp_size));
  static constexpr bool alone = W == 1;
  static constexpr int groups = warp_size / L;  // problems a warp
  static constexpr int warps = alone ? 2 : W;
  static constexpr int threads = warps * warp_size;
  // Blocks a multiprocessor at least: what bounds the registers of a thread.
  static constexpr int blocks = alone ? (R > 16 ? 8 : 12) : C > 2 ? 2 : 3;
  static constexpr int problems = alone ? warps * groups : 1;  // a block
  static constexpr int columns = L * C;
  static constexpr int share = L / R;  // lanes that own the same row

  struct Shared {
    alignas(16) float line[warps][R * groups];
    float part[alone ? 1 : W][columns];
    float total[columns];
    float error[W];
    float b[columns];
  };
  struct alignas(16) Four {
    float x[4];
  };

  const SinkhornCall& call;
  Shared& shared;
  int64_t k;
  const float* cost;  // of the lane's first column in the warp's first row
  int n, m, lane, warp, first_row, row;
  bool owner;  // of two lanes with the same row, the one that writes and counts it
  float scale, damping_a, damping_b, share_a;
  float a;         // of the lane's row
  float own_b[C];  // of its columns, where they are few
  float u, v[C], p, q[C];
  float E[R][C];

  __device__ __forceinline__ OnChip(const SinkhornCall& call, Shared& shared)
      : call(call), shared(shared) {}

  __device__ __forceinline__ int column(int c) const { return lane + L * c; }

  __device__ __forceinline__ float cell(int r, int c) const {
    // A row of a padded block has less than 2^27 entries: an offset within a stripe fits 32 bits.
    const bool inside = first_row + r < n && column(c) < m;
    return inside ? cost[static_cast<unsigned>(r) * static_cast<unsigned>(call.m) + L * c] : 0.0f;
  }

  __device__ __forceinline__ float b(int c) const {
    if constexpr (C > 2) return shared.b[column(c)];
    return own_b[c];
  }

  // ---- across the lanes and warps of the problem

  // Reduces x over the lanes; returns the result of the lane's own row.
  template <typename Op>
  __device__ __forceinline__ float scatter(float (&x)[R], Op op) const {
    return warp_scatter<R, L>(x, op);
  }

  // Puts a value of each row where each_row finds it.
  __device__ __forceinline__ void spread(float value) {
    float* line = shared.line[warp];
    __syncwarp();  // an earlier line may still be read
    if (owner) line[static_cast<int>(threadIdx.x) % warp_size / share] = value;
    __syncwarp();
  }

  template <typename F>
  __device__ __forceinline__ void each_row(F f) const {
    const float* line =
        shared.line[warp] + static_cast<int>(threadIdx.x) % warp_size / L * R;
#pragma unroll
    for (int r = 0; r < R; r += 4) {
      const Four four = *reinterpret_cast<const Four*>(line + r);
#pragma unroll
      for (int i = 0; i < 4; ++i) f(r + i, four.x[i]);
    }
  }

  // Combines columns over the warps, in their order. `at_barrier` runs while all have arrived.
  template <typename Op, typename F>
  __device__ __forceinline__ void combine(float (&x)[C], Op op, F at_barrier) {
    if constexpr (!alone) {
#pragma unroll
      for (int c = 0; c < C; ++c) shared.part[warp][column(c)] = x[c];
      __syncthreads();
      const int j = static_cast<int>(threadIdx.x);
      if (j < columns) {
        float total = shared.part[0][j];
#pragma unroll
        for (int w = 1; w < W; ++w) total = op(total, shared.part[w][j]);
        shared.total[j] = total;
      }
      at_barrier();
      __syncthreads();
#pragma unroll
      for (int c = 0; c < C; ++c) x[c] = shared.total[column(c)];
    }
  }

  template <typename Op>
  __device__ __forceinline__ void combine(float (&x)[C], Op op) {
    combine(x, op, [] {});
  }

  template <typename T, typename Op>
  __device__ __forceinline__ T reduce(T x, Op op) const {
    if constexpr (alone) {
      return warp_reduce<L>(x, op);
    } else {
      return block_reduce<threads>(x, op);
    }
  }

  // Whether a flag that is the same in all lanes of a problem is set in any problem of this warp.
  __device__ __forceinline__ bool any(bool flag) const {
    if constexpr (alone && groups > 1) {
      return warp_reduce(flag ? 1 : 0, Maximum()) != 0;
    } else {
      return flag;
    }
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
      if (it > 1 && call.tol > 0.0f) {
        const float target = row_target(a, u, share_a);
        const float mine = owner && a > 0.0f ? fabsf(exp2f(u + lse) - target) : 0.0f;
        if (reduce(mine, Sum()) <= call.tol && stopped == 0) stopped = it - 1;
      }
      const bool moves = wanted && stopped == 0 && it <= to;
      if (!any(moves)) break;
      const float next_u = log2f(a) - damping_a * lse;
      float next_v[C];
      log_columns(next_u, next_v);
      if (moves) {
        u = next_u;
#pragma unroll
        for (int c = 0; c < C; ++c) v[c] = log2f(b(c)) - damping_b * next_v[c];
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
      if (call.tol > 0.0f) {
        const float full_u = share_a == 0.0f ? u : u + log2f(p);
        const float target = row_target(a, full_u, share_a);
        error = warp_reduce<L>(owner && a > 0.0f ? fabsf(p * t - target) : 0.0f, Sum());
      }
      const float next_p = scaling(a, t, u, damping_a);
      float sum[C];
      column_sums(next_p, sum);
      if constexpr (!alone) {
        if (lane == 0) shared.error[warp] = error;
        combine(sum, Sum(), [&] {
          error = shared.error[0];
#pragma unroll
          for (int w = 1; w < W; ++w) error += shared.error[w];
        });
      }
      if (call.tol > 0.0f && error <= call.tol && stopped == 0) stopped = it - 1;
      const bool moves = wanted && stopped == 0 && it <= to;
      if (!any(moves)) break;
      if (moves) {
        p = next_p;
        lost |= a > 0.0f && !(p > 0.0f && finite(p));
#pragma unroll
        for (int c = 0; c < C; ++c) {
          q[c] = scaling(b(c), sum[c], v[c], damping_b);
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

  // ---- the whole of it

  // Whether the lane's problem is of this class, and its operands.
  __device__ __forceinline__ bool load(int larger_than, int up_to) {
    const int thread = static_cast<int>(threadIdx.x);
    warp = thread / warp_size;
    lane = thread % L;
    first_row = alone ? 0 : warp * R;
    row = first_row + lane / share;
    owner = lane % share == 0;
    k = static_cast<int64_t>(blockIdx.x) * problems + (alone ? thread / L : 0);
    bool live = k < call.batch;
    const SinkhornProblem p = live ? call.problems[k] : SinkhornProblem{};
    scale = p.scale, damping_a = p.damping_a, damping_b = p.damping_b, share_a = p.share_a;
    const int extent = p.n > p.m ? p.n : p.m;
    live = live && p.state == kLive && extent > larger_than && extent <= up_to;
    n = live ? p.n : 0, m = live ? p.m : 0;
    cost = live ? call.cost_of(k) + static_cast<int64_t>(first_row) * call.m + lane : nullptr;
    a = row < n ? call.mass_a(p, k, row) : 0.0f;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      own_b[c] = column(c) < m ? call.mass_b(p, k, column(c)) : 0.0f;
      // Every warp writes the same values and reads its own.
      if constexpr (C > 2) shared.b[column(c)] = own_b[c];
      v[c] = own_b[c] > 0.0f ? call.start(p, k, column(c), log2f(own_b[c])) : -INFINITY;
    }
    u = -INFINITY;
    if (!any(live)) return false;
    bool wrong = false;
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < C; ++c) wrong |= !finite(cell(r, c));
    }
    if (reduce(wrong ? 1 : 0, Maximum()) != 0) {
      if (live && lane == 0 && (alone || warp == 0)) call.problems[k].refused = 1;
      live = false;
    }
    return live;
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
      if (!call.log) {
        stopped = linear_window(done, to, last, live, bad);
        if (live && !bad) fold();
      }
      if (any(live && bad)) {
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
template <int L, int R, int C, int W>
__global__ void __launch_bounds__((OnChip<L, R, C, W>::threads), (OnChip<L, R, C, W>::blocks))
    sinkhorn_on_chip(SinkhornCall call, int larger_than, int up_to) {
  using Class = OnChip<L, R, C, W>;
  FK_SHARED(typename Class::Shared, shared);
  Class(call, shared).run(larger_than, up_to);
}

}  // namespace fedkernels
