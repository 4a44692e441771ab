// The column launches of streamed Sinkhorn (sinkhorn_stream.cuh).
#pragma once

#include "transport/sinkhorn_stream.cuh"

namespace fedkernels {

// lse2_i(K_ij + u_i) of a lane's column: rows are dealt to the warps, which are then combined in
// order.
__device__ __forceinline__ float log_column(const float* cost, int64_t step, const float* u, int n,
                                            float scale, bool inside, float (*tops)[warp_size],
                                            float (*sums)[warp_size]) {
  constexpr int warps = kStreamThreads / warp_size;
  float top = -INFINITY, sum = 0.0f;
  if (inside) {
    for (int i = warp_index(); i < n; i += warps) {
      top = Maximum()(top, fmaf(-cost[i * step], scale, u[i]));
    }
    for (int i = warp_index(); i < n && top > -INFINITY; i += warps) {
      sum += exp2f(fmaf(-cost[i * step], scale, u[i]) - top);
    }
  }
  __syncthreads();
  tops[warp_index()][lane_index()] = top;
  sums[warp_index()][lane_index()] = sum;
  __syncthreads();
  top = tops[0][lane_index()], sum = 0.0f;
  for (int w = 1; w < warps; ++w) top = Maximum()(top, tops[w][lane_index()]);
  for (int w = 0; w < warps; ++w) sum += sums[w][lane_index()] * exp2f(tops[w][lane_index()] - top);
  return top + log2f(sum);
}

// 32 columns a block.
template <Pass pass>
__global__ void __launch_bounds__(kStreamThreads)
    sinkhorn_stream_columns(SinkhornCall call, StreamScratch scratch, int larger_than,
                            int iteration) {
  constexpr int warps = kStreamThreads / warp_size;
  FK_SHARED(float, tops, [warps][warp_size]);
  FK_SHARED(float, sums, [warps][warp_size]);
  FK_SHARED(SinkhornProblem, p);
  const int64_t slot = blockIdx.x / scratch.column_blocks;
  const int64_t first = blockIdx.x % scratch.column_blocks * warp_size;
  const int64_t k = scratch.first + slot;
  // Read once a block: another block of this launch may mark the problem in the meantime, and both
  // answers must not be seen by one block. (Such a block would move nothing either way.)
  if (threadIdx.x == 0) p = call.problems[k];
  __syncthreads();
  if (!streamed(p, larger_than) || p.refused != 0 || first >= p.m) return;
  if (pass == Pass::iterate && p.n_iter != 0) return;

  const int stripes = static_cast<int>(ceil_div(p.n, kStreamRows));
  const int64_t at = slot * scratch.stripes;
  bool within = false;
  float omega = 1.0f;
  if (pass != Pass::first && (call.sor || call.tol > 0.0f)) {
    float error = 0.0f;
    for (int i = static_cast<int>(threadIdx.x); i < stripes; i += kStreamThreads) {
      error += scratch.error[at + i];
    }
    error = block_reduce<kStreamThreads>(error, Sum());
    within = call.tol > 0.0f && error <= call.tol;
    if (call.sor && pass == Pass::iterate) {
      StreamPace& pace = scratch.pace[slot];
      omega = pace.used[iteration % 3];
      const bool plain = pace.used[(iteration - 1) % 3] == 1.0f;
      if (first == 0 && threadIdx.x == 0) {
        pace.relaxation.observe(iteration - 1, error);
        const bool plain_next = within || iteration + 1 >= call.max_iter;
        pace.used[(iteration + 1) % 3] = plain_next ? 1.0f : pace.relaxation.omega;
      }
      within = within && plain;
    }
  }
  if (pass == Pass::iterate && within) {
    if (first == 0 && threadIdx.x == 0) {
      call.problems[k].n_iter = iteration - 1;
      call.problems[k].passed = 1;
    }
    return;
  }

  const int j = static_cast<int>(first) + lane_index();
  const bool inside = j < p.m;
  float total = 0.0f;
  if (inside) {
    for (int i = warp_index(); i < stripes; i += warps) {
      total += scratch.part[(at + i) * call.m + j];
    }
  }
  sums[warp_index()][lane_index()] = total;
  __syncthreads();
  total = sums[0][lane_index()];
  for (int w = 1; w < warps; ++w) total += sums[w][lane_index()];

  if (pass == Pass::first && call.sor && first == 0 && threadIdx.x == 0) {
    scratch.pace[slot] = {{}, {1.0f, 1.0f, 1.0f}};
  }
  const bool writes = inside && warp_index() == 0;
  if constexpr (pass == Pass::measure) {
    if (writes) call.c[k * call.m + j] = total;
    if (first != 0 || warp_index() != 0) return;
    double linear = 0.0;
    for (int i = lane_index(); i < stripes; i += warp_size) linear += scratch.linear[at + i];
    linear = warp_reduce(linear, Sum());
    if (lane_index() == 0) {
      SinkhornProblem& problem = call.problems[k];
      problem.linear = linear;
      if (p.n_iter == 0) {
        problem.n_iter = call.max_iter;
        problem.passed = within ? 1 : 0;
      }
    }
    return;
  }

  const float b = inside ? call.mass_b(p, k, j) : 0.0f;
  float v = -INFINITY, factor = 0.0f;
  if (b > 0.0f) {
    v = pass == Pass::first ? call.start(p, k, j, log2f(b)) : call.v[k * call.m + j];
    factor = omega == 1.0f ? scaling(b, total, v, p.damping_b) : relaxed(b, total, omega);
  }
  float next = b > 0.0f ? v + log2f(factor) : -INFINITY;
  const bool redo = b > 0.0f && (unsafe(total) || unsafe(factor));
  __syncthreads();  // v is read by all warps before the first writes it
  if (block_reduce<kStreamThreads>(redo ? 1 : 0, Maximum()) != 0) {
    const float lse = log_column(call.cost_of(k) + j, call.m, scratch.u_of(iteration, slot, call.n),
                                 p.n, p.scale, inside, tops, sums);
    if (redo) next = log2f(b) - p.damping_b * lse;
  }
  if (writes) call.v[k * call.m + j] = next;
}

}  // namespace fedkernels
