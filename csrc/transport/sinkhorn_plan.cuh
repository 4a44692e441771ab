// The plan exp2(K + u + v) from the potentials, by the expression that solved it: written out, or
// multiplied with V without being written. float32, any size; the padding is 0 and is not read.
#pragma once

#include "transport/sinkhorn_problem.cuh"

namespace fedkernels {

struct PlanCall {
  const float* cost;  // (B|1, n, m)
  const double* eps;  // (B|1)
  const int64_t* sizes;  // (B, 2) or null
  const float* u;        // (B, n)
  const float* v;        // (B, m)
  int64_t cost_stride, eps_stride, batch;
  int n, m;
};

struct PlanProblem {
  const float* cost;
  const float* u;
  const float* v;
  float scale;
  int n, m;

  __device__ __forceinline__ PlanProblem(const PlanCall& call, int64_t k)
      : cost(call.cost + k * call.cost_stride),
        u(call.u + k * call.n),
        v(call.v + k * call.m),
        scale(static_cast<float>(1.4426950408889634 / call.eps[k * call.eps_stride])),
        n(call.n),
        m(call.m) {
    if (call.sizes == nullptr) return;
    n = static_cast<int>(min(call.sizes[2 * k], static_cast<int64_t>(n)));
    m = static_cast<int>(min(call.sizes[2 * k + 1], static_cast<int64_t>(m)));
  }
};

// factor_k P (B, n, m), factor (B) or null. One thread an entry.
__global__ void __launch_bounds__(256)
    sinkhorn_plan_entries(PlanCall call, const float* factor, float* plan) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t cells = static_cast<int64_t>(call.n) * call.m;
  if (at >= call.batch * cells) return;
  const int64_t k = at / cells, within = at - k * cells;
  const int i = static_cast<int>(within / call.m), j = static_cast<int>(within % call.m);
  const PlanProblem p(call, k);
  const float times = factor == nullptr ? 1.0f : factor[k];
  float entry = 0.0f;
  if (i < p.n && j < p.m && times != 0.0f) {
    entry = times * exp2f(log2_plan(p.cost[within], p.scale, p.u[i], p.v[j]));
  }
  plan[at] = entry;
}

// P V (B, n, d), or, transposed, P^T V (B, m, d). A block has 32 rows of the result and 32 of its
// columns; the sum over the other side runs in tiles of 32, in ascending order.
template <bool transposed>
__global__ void __launch_bounds__(256)
    sinkhorn_plan_product(PlanCall call, const float* V, float* result, int d) {
  FK_SHARED(float, plan, [32][33]);
  FK_SHARED(float, tile, [32][32]);
  const int rows = transposed ? call.m : call.n, inner = transposed ? call.n : call.m;
  const int64_t row_blocks = ceil_div(rows, 32), column_blocks = ceil_div(d, 32);
  const int64_t k = blockIdx.x / (row_blocks * column_blocks);
  const int64_t rest = blockIdx.x % (row_blocks * column_blocks);
  const int first = static_cast<int>(rest / column_blocks) * 32;
  const int column = static_cast<int>(rest % column_blocks) * 32 + lane_index();
  const PlanProblem p(call, k);
  const int valid = transposed ? p.m : p.n, length = transposed ? p.n : p.m;
  const int x = lane_index(), y = warp_index();  // y: 8 warps, four rows each

  float sum[4] = {};
  for (int start = 0; start < length; start += 32) {
    __syncthreads();
    for (int s = y; s < 32; s += 8) {
      // Consecutive lanes read consecutive entries of a row of the cost, either way.
      const int i = transposed ? start + s : first + s, j = transposed ? first + x : start + x;
      float entry = 0.0f;
      if (i < p.n && j < p.m) {
        const float cost = p.cost[static_cast<int64_t>(i) * call.m + j];
        entry = exp2f(log2_plan(cost, p.scale, p.u[i], p.v[j]));
      }
      plan[transposed ? x : s][transposed ? s : x] = entry;
      const int row = start + s;
      tile[s][x] = row < length && column < d
                       ? V[(k * inner + row) * static_cast<int64_t>(d) + column]
                       : 0.0f;
    }
    __syncthreads();
    for (int s = 0; s < 32; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] = fmaf(plan[y + 8 * i][s], tile[s][x], sum[i]);
    }
  }
  if (column >= d) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = first + y + 8 * i;
    if (row < rows) {
      result[(k * rows + row) * static_cast<int64_t>(d) + column] = row < valid ? sum[i] : 0.0f;
    }
  }
}

inline void launch_plan(const PlanCall& call, const float* factor, float* plan,
                        cudaStream_t stream) {
  const int64_t entries = call.batch * call.n * static_cast<int64_t>(call.m);
  if (entries == 0) return;
  FK_LAUNCH(sinkhorn_plan_entries, grid_of(ceil_div(entries, 256)), 256, 0, stream, call, factor,
            plan);
}

inline void launch_plan_product(const PlanCall& call, const float* V, float* result, int d,
                                bool transposed, cudaStream_t stream) {
  const int64_t rows = transposed ? call.m : call.n;
  if (call.batch * rows * d == 0) return;
  const dim3 grid = grid_of(call.batch * ceil_div(rows, 32) * ceil_div(d, 32));
  if (transposed) {
    FK_LAUNCH((sinkhorn_plan_product<true>), grid, 256, 0, stream, call, V, result, d);
  } else {
    FK_LAUNCH((sinkhorn_plan_product<false>), grid, 256, 0, stream, call, V, result, d);
  }
}

}  // namespace fedkernels
