// The row launches of streamed Sinkhorn (sinkhorn_stream.cuh).
#pragma once

#include "common/scatter.cuh"
#include "transport/sinkhorn_stream.cuh"

namespace fedkernels {

struct StreamRow {
  float sums[kStreamThreads / warp_size][kStreamRows];
  float u[kStreamRows], p[kStreamRows], error[kStreamRows];
  int redo;
};

// One block's rows. `wide`: m > 1024.
template <Pass pass, bool wide>
struct RowBlock {
  const SinkhornCall& call;
  const SinkhornProblem& p;
  StreamRow& shared;
  int64_t k;
  const float* cost;  // of the first row
  int first_row, rows;
  float E[kStreamRows][kStreamColumns];
  float v[kStreamColumns];

  __device__ __forceinline__ int column(int chunk, int c) const {
    return chunk + static_cast<int>(threadIdx.x) + kStreamThreads * c;
  }

  __device__ __forceinline__ float cell(int r, int j) const {
    return r < rows && j < p.m ? cost[static_cast<int64_t>(r) * call.m + j] : 0.0f;
  }

  __device__ __forceinline__ void load_v(int chunk) {
#pragma unroll
    for (int c = 0; c < kStreamColumns; ++c) {
      const int j = column(chunk, c);
      v[c] = -INFINITY;
      if (j < p.m) {
        if constexpr (pass == Pass::first) {
          const float b = call.mass_b(p, k, j);
          if (b > 0.0f) v[c] = call.start(p, k, j, log2f(b));
        } else {
          v[c] = call.v[k * call.m + j];
        }
      }
    }
  }

  // The reduction of x[r] over the block: thread r < 8 returns that of row r.
  template <typename Op>
  __device__ __forceinline__ float over_block(float (&x)[kStreamRows], Op op) {
    const float own = warp_scatter<kStreamRows, warp_size>(x, op);
    __syncthreads();  // earlier sums may still be read
    shared.sums[warp_index()][lane_index() / (warp_size / kStreamRows)] = own;
    __syncthreads();
    const int r = static_cast<int>(threadIdx.x);
    if (r >= kStreamRows) return 0.0f;
    float total = shared.sums[0][r];
    for (int w = 1; w < kStreamThreads / warp_size; ++w) total = op(total, shared.sums[w][r]);
    return total;
  }

  // E of a chunk from the potentials in shared.u and v.
  __device__ __forceinline__ void rebuild(int chunk) {
    load_v(chunk);
#pragma unroll
    for (int r = 0; r < kStreamRows; ++r) {
      const float u = shared.u[r];
#pragma unroll
      for (int c = 0; c < kStreamColumns; ++c) {
        E[r][c] = exp2f(log2_plan(cell(r, column(chunk, c)), p.scale, u, v[c]));
      }
    }
  }

  // t_r of thread r.
  __device__ __forceinline__ float row_sums() {
    float x[kStreamRows] = {};
    for (int chunk = 0; chunk < (wide ? p.m : 1); chunk += kStreamChunk) {
      rebuild(chunk);
#pragma unroll
      for (int r = 0; r < kStreamRows; ++r) {
#pragma unroll
        for (int c = 0; c < kStreamColumns; ++c) x[r] += E[r][c];
      }
    }
    return over_block(x, Sum());
  }

  // lse2_j(K_rj + v_j) of thread r, with a largest entry. Notes a cost that is not finite.
  __device__ __forceinline__ float log_sums(bool& wrong) {
    float x[kStreamRows], top[kStreamRows];
#pragma unroll
    for (int r = 0; r < kStreamRows; ++r) x[r] = -INFINITY;
    for (int chunk = 0; chunk < (wide ? p.m : 1); chunk += kStreamChunk) {
      load_v(chunk);
#pragma unroll
      for (int r = 0; r < kStreamRows; ++r) {
#pragma unroll
        for (int c = 0; c < kStreamColumns; ++c) {
          const float entry = cell(r, column(chunk, c));
          wrong |= !finite(entry);
          x[r] = Maximum()(x[r], fmaf(-entry, p.scale, v[c]));
        }
      }
    }
    const float largest = over_block(x, Maximum());
    if (threadIdx.x < kStreamRows) shared.p[threadIdx.x] = largest;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kStreamRows; ++r) top[r] = shared.p[r], x[r] = 0.0f;
    for (int chunk = 0; chunk < (wide ? p.m : 1); chunk += kStreamChunk) {
      if (wide) load_v(chunk);
#pragma unroll
      for (int r = 0; r < kStreamRows; ++r) {
#pragma unroll
        for (int c = 0; c < kStreamColumns; ++c) {
          x[r] += exp2f(fmaf(-cell(r, column(chunk, c)), p.scale, v[c]) - top[r]);
        }
      }
    }
    return largest + log2f(over_block(x, Sum()));
  }

  // What the rows add to each column: E weighted by shared.p, or, `fresh`, E of the new potentials.
  __device__ __forceinline__ void column_parts(float* part, bool fresh) {
    for (int chunk = 0; chunk < (wide ? p.m : 1); chunk += kStreamChunk) {
      if (wide || fresh) rebuild(chunk);
#pragma unroll
      for (int c = 0; c < kStreamColumns; ++c) {
        float sum = 0.0f;
#pragma unroll
        for (int r = 0; r < kStreamRows; ++r) {
          sum = wide || fresh ? sum + E[r][c] : fmaf(E[r][c], shared.p[r], sum);
        }
        if (column(chunk, c) < p.m) part[column(chunk, c)] = sum;
      }
    }
  }

  // Thread r < 8 holds row r; the others go along.
  __device__ __forceinline__ void iterate(float* old_u, float* new_u, float* part, float* error,
                                          float omega) {
    const int r = static_cast<int>(threadIdx.x), row = first_row + r;
    const bool mine = r < rows;
    const float a = mine ? call.mass_a(p, k, row) : 0.0f;
    float u = -INFINITY, next = -INFINITY;
    // The first pass knows no potentials, and looks at every entry of the cost.
    bool redo = pass == Pass::first;
    if constexpr (pass != Pass::first) {
      if (mine) u = old_u[row];
      if (r < kStreamRows) shared.u[r] = u;
      __syncthreads();
      const float t = row_sums();
      const float factor = omega == 1.0f ? scaling(a, t, u, p.damping_a) : relaxed(a, t, omega);
      if (r < kStreamRows) {
        shared.error[r] = a > 0.0f ? fabsf(t - row_target(a, u, p.share_a)) : 0.0f;
        shared.p[r] = factor;
      }
      redo = a > 0.0f && (unsafe(t) || unsafe(factor));
      if (a > 0.0f) next = u + log2f(factor);
    }
    if (r == 0) shared.redo = 0;
    __syncthreads();
    if (redo) shared.redo = 1;
    if constexpr (pass != Pass::first) {
      if (r == 0) {
        float sum = 0.0f;
        for (int i = 0; i < kStreamRows; ++i) sum += shared.error[i];
        *error = sum;
      }
    }
    __syncthreads();
    const bool again = shared.redo != 0;
    if (again) {
      bool wrong = false;
      const float lse = log_sums(wrong);
      if (redo && a > 0.0f) next = log2f(a) - p.damping_a * lse;
      if (pass == Pass::first && wrong) call.problems[k].refused = 1;
    }
    if (mine) new_u[row] = next;
    if (wide || again) {
      __syncthreads();
      if (r < kStreamRows) shared.u[r] = next;
      __syncthreads();
    }
    column_parts(part, again);
  }

  // Of the plan that is returned: marginals, <P, C>, and the error that the stop test would see.
  __device__ __forceinline__ void measure(float* u, float* part, float* error, double* linear) {
    const int r = static_cast<int>(threadIdx.x), row = first_row + r;
    const bool mine = r < rows;
    if (r < kStreamRows) shared.u[r] = mine ? u[row] : -INFINITY;
    __syncthreads();
    const float t = row_sums();
    if (r < kStreamRows) {
      const float a = mine ? call.mass_a(p, k, row) : 0.0f;
      shared.error[r] = a > 0.0f ? fabsf(t - row_target(a, shared.u[r], p.share_a)) : 0.0f;
    }
    if (mine) {
      call.u[k * call.n + row] = u[row];
      call.r[k * call.n + row] = t;
    }
    double sum = 0.0;
    for (int chunk = 0; chunk < (wide ? p.m : 1); chunk += kStreamChunk) {
      if (wide) rebuild(chunk);
      float chunk_sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kStreamRows; ++i) {
#pragma unroll
        for (int c = 0; c < kStreamColumns; ++c) {
          chunk_sum = fmaf(E[i][c], cell(i, column(chunk, c)), chunk_sum);
        }
      }
      sum += chunk_sum;
    }
    sum = block_reduce<kStreamThreads>(sum, Sum());
    if (r == 0) {
      *linear = sum;
      float total = 0.0f;
      for (int i = 0; i < kStreamRows; ++i) total += shared.error[i];
      *error = total;
    }
    if (r < kStreamRows) shared.p[r] = 1.0f;
    __syncthreads();
    column_parts(part, false);
  }
};

// Iteration k of the problems of this class; a block for each slot and stripe.
template <Pass pass, bool wide>
__global__ void __launch_bounds__(kStreamThreads)
    sinkhorn_stream_rows(SinkhornCall call, StreamScratch scratch, int larger_than, int iteration) {
  FK_SHARED(StreamRow, shared);
  const int64_t slot = blockIdx.x / scratch.stripes, stripe = blockIdx.x % scratch.stripes;
  const int64_t k = scratch.first + slot;
  // A copy: the first pass may mark the problem while other blocks look at it.
  const SinkhornProblem p = call.problems[k];
  const int64_t first_row = stripe * kStreamRows;
  if (!streamed(p, larger_than) || (p.m > kStreamChunk) != wide || first_row >= p.n) return;
  if (pass != Pass::first && p.refused != 0) return;
  if (pass == Pass::iterate && p.n_iter != 0) return;
  const int rows = static_cast<int>(p.n - first_row < kStreamRows ? p.n - first_row : kStreamRows);
  RowBlock<pass, wide> block{call, p, shared, k, call.cost_of(k) + first_row * call.m,
                             static_cast<int>(first_row), rows, {}, {}};
  const int64_t at = slot * scratch.stripes + stripe;
  float* part = scratch.part + at * call.m;
  if constexpr (pass == Pass::measure) {
    const int last = p.n_iter != 0 ? p.n_iter : call.max_iter;
    block.measure(scratch.u_of(last, slot, call.n), part, scratch.error + at, scratch.linear + at);
  } else {
    const bool relaxes = call.sor && pass == Pass::iterate;
    const float omega = relaxes ? scratch.pace[slot].used[iteration % 3] : 1.0f;
    block.iterate(scratch.u_of(iteration - 1, slot, call.n), scratch.u_of(iteration, slot, call.n),
                  part, scratch.error + at, omega);
  }
}

}  // namespace fedkernels
