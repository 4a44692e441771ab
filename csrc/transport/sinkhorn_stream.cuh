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
// Nothing waits for another block, the host waits for nothing: a call makes 2 (max_iter + 1)
// launches however soon it converges (3 where m > 1024 and sizes are given: rows then have two
// kernels), some 2 us each once there is nothing to do. E is rebuilt every iteration, with the last potentials in place of a largest entry: its
// row and column sums are near the masses. A sum that leaves the safe range all the same
// (underflow) is done again with a largest entry, for its row block, or its block of columns,
// alone.
//
// Rows longer than a block's registers (m > 1024) are read twice, the second time from L2.
// Scratch: m floats for 8 rows of the cost.
#pragma once

#include "transport/sinkhorn_problem.cuh"

namespace fedkernels {

enum class Pass { first, iterate, measure };

constexpr int kStreamThreads = 256;
constexpr int kStreamRows = 8;     // a block
constexpr int kStreamColumns = 4;  // a thread, at once
constexpr int kStreamChunk = kStreamThreads * kStreamColumns;

// Over-relaxation (relaxation.h). The error of a pair is known when the next rows have been read,
// too late for their own step: what it decides holds from the step after.
struct StreamPace {
  Relaxation<float> relaxation;
  float used[3];  // omega of the last iteration, of this and of the next, by their number
};

struct StreamScratch {
  int64_t first;  // the problem that slot 0 belongs to
  int64_t count;  // slots
  int64_t stripes;       // row blocks of a padded problem
  int64_t column_blocks;
  float* part;      // (count, stripes, m)
  float* error;     // (count, stripes)
  double* linear;   // (count, stripes)
  float* u;         // (2, count, n): of odd and even iterations
  StreamPace* pace;  // (count)

  __device__ __forceinline__ float* u_of(int iteration, int64_t slot, int n) const {
    return u + (static_cast<int64_t>(iteration % 2) * count + slot) * n;
  }
};

__device__ __forceinline__ bool streamed(const SinkhornProblem& p, int larger_than) {
  return p.state == kLive && (p.n > p.m ? p.n : p.m) > larger_than;
}

// A sum of entries that were left out by underflow, or that overflowed.
__device__ __forceinline__ bool unsafe(float sum) { return !(sum > 0x1p-90f && sum < 0x1p90f); }

}  // namespace fedkernels
