// Sinkhorn for a problem with more than 128 rows or columns, spread over many blocks. One iteration
// is two launches and one read of the cost:
//
//   rows       8 rows a block: E = exp2(K + u + v) with the potentials as they are, so that its row
//              sums t_i are the row sums of the plan; the new u_i; then, with it, what these rows
//              add to each column
//   columns    adds up those parts in the order of the blocks, and moves v; tests the rows of the
//              pair before, whose errors the row blocks left, and if they are within tol moves
//              nothing and marks the problem, after which all launches return at once
//
// Nothing waits for another block, the host waits for nothing: a call always makes 2 (max_iter + 1)
// launches. E is rebuilt every iteration, with the last potentials in place of a largest entry: its
// row and column sums are near the masses. A sum that leaves the safe range all the same
// (underflow) is done again with a largest entry, for its row block, or its block of columns,
// alone.
//
// Rows longer than a block's registers (m > 1024) are read twice, the second time from L2.
// Scratch: m floats for 8 rows of the cost.
#pragma once

#include "common/scatter.cuh"
#include "transport/sinkhorn_problem.cuh"

namespace fedkernels {

enum class Pass { first, iterate, measure };

constexpr int kStreamThreads = 256;
constexpr int kStreamRows = 8;     // a block
constexpr int kStreamColumns = 4;  // a thread, at once
constexpr int kStreamChunk = kStreamThreads * kStreamColumns;

struct StreamScratch {
  int64_t first;  // the problem that slot 0 belongs to
  int64_t count;  // slots
  int64_t stripes;       // row blocks of a padded problem
  int64_t column_blocks;
  float* part;      // (count, stripes, m)
  float* error;     // (count, stripes)
  double* linear;   // (count, stripes)
  float* u;         // (2, count, n): of odd and even iterations

  __device__ __forceinline__ float* u_of(int iteration, int64_t slot, int n) const {
    return u + (static_cast<int64_t>(iteration % 2) * count + slot) * n;
  }
};

__device__ __forceinline__ bool streamed(const SinkhornProblem& p, int larger_than) {
  return p.state == kLive && (p.n > p.m ? p.n : p.m) > larger_than;
}

// A sum of entries that were left out by underflow, or that overflowed.
__device__ __forceinline__ bool unsafe(float sum) { return !(sum > 0x1p-90f && sum < 0x1p90f); }

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
  __device__ __forceinline__ void iterate(float* old_u, float* new_u, float* part, float* error) {
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
      const float factor = scaling(a, t, u, p.damping_a);
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
    block.iterate(scratch.u_of(iteration - 1, slot, call.n), scratch.u_of(iteration, slot, call.n),
                  part, scratch.error + at);
  }
}

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
  if (pass != Pass::first && call.tol > 0.0f) {
    float error = 0.0f;
    for (int i = static_cast<int>(threadIdx.x); i < stripes; i += kStreamThreads) {
      error += scratch.error[at + i];
    }
    within = block_reduce<kStreamThreads>(error, Sum()) <= call.tol;
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
    factor = scaling(b, total, v, p.damping_b);
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
