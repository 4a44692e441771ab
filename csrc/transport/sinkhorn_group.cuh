// What Sinkhorn on chip is made of: one problem's part in a lane, and the exchanges between the
// lanes and warps of a problem. The iterations: sinkhorn_on_chip.cuh.
#pragma once

#include "common/scatter.cuh"
#include "transport/sinkhorn_problem.cuh"

namespace fedkernels {

// L lanes a row, R rows a warp, C columns a lane, W warps; W = 1: warps work alone.
template <int L, int R, int C, int W>
struct OnChipGroup {
  static_assert(L >= R && R >= 4 && (W == 1 || L == warp_size));
  static constexpr bool alone = W == 1;
  static constexpr int groups = warp_size / L;  // problems a warp
  static constexpr int warps = alone ? 2 : W;
  static constexpr int threads = warps * warp_size;
  static constexpr int problems = alone ? warps * groups : 1;  // a block
  static constexpr int columns = L * C;
  static constexpr int share = L / R;  // lanes that own the same row

  struct KeptPace {  // in shared memory, where nothing may be initialised
    float omega, one_ago, two_ago, marked, used;
  };
  struct Shared {
    alignas(16) float line[warps][R * groups];
    float part[alone ? 1 : W][columns];
    float total[columns];
    float error[W];
    float b[columns];
    KeptPace pace[alone ? warps * groups : 1];  // of each problem, at the last fold
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

  __device__ __forceinline__ OnChipGroup(const SinkhornCall& call, Shared& shared)
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

  // All lanes of the problem have written.
  __device__ __forceinline__ void meet() const {
    if constexpr (alone) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

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
};

}  // namespace fedkernels
