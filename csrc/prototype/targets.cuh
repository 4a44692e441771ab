// What the target of a cross-entropy says of a row, before any product: v_i = sum_j w_j t_ij,
// whether the row takes part, whether its label is one. And sums over rows, in double and a fixed
// order.
#pragma once

#include <limits>

#include "prototype/sweep.cuh"

namespace fedkernels {

constexpr int kSumBlocks = 128;
constexpr int64_t kNoRow = std::numeric_limits<int64_t>::max();

// A warp a row.
__global__ void __launch_bounds__(256)
    prototype_targets(Sweep call, int64_t ignore_index, float* value, uint8_t* kind) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (row >= call.points.N) return;
  const int K = call.points.K;
  bool some = false;  // something is not masked
  for (int first = 0; first < K && !some; first += warp_size) {
    const int column = first + lane_index();
    const bool mine = column < K && call.points.allowed(row, column) &&
                      (call.log_prior == nullptr || call.log_prior[column] != -INFINITY);
    some = __any_sync(full_warp, mine) != 0;
  }
  float sum = 0.0f;
  bool weighty = false;
  uint8_t what = kSilentRow;
  if (call.label != nullptr) {
    const int64_t label = call.label[row];
    if (label >= 0 && label < K) {
      sum = call.class_weight == nullptr ? 1.0f : call.class_weight[label];
      weighty = sum != 0.0f;
    }
    if (label == ignore_index) sum = 0.0f, weighty = false;
    if ((label < 0 || label >= K) && label != ignore_index) what = kBadRow;
  } else {
    for (int column = lane_index(); column < K; column += warp_size) {
      const float w = target_weight(call, row, column);
      sum += w;
      weighty |= w != 0.0f;
    }
    sum = warp_reduce(sum, Sum());
    weighty = __any_sync(full_warp, weighty) != 0;
  }
  if (lane_index() != 0) return;
  const bool active = some && weighty;
  value[row] = active ? sum : 0.0f;
  if (active) what = kActiveRow;
  kind[row] = what;
}

// Sums of a block's run of rows, and the first of its rows that is bad; kind may be null.
__global__ void __launch_bounds__(256) prototype_sum_rows(const float* rows, const uint8_t* kind,
                                                          int64_t N, double* sums, int64_t* bad) {
  const int64_t begin = N * blockIdx.x / gridDim.x, end = N * (blockIdx.x + 1) / gridDim.x;
  double sum = 0.0;
  int64_t first = kNoRow;
  for (int64_t i = begin + threadIdx.x; i < end; i += 256) {
    sum += rows[i];
    if (kind != nullptr && kind[i] == kBadRow && first == kNoRow) first = i;
  }
  sum = block_reduce<256>(sum, Sum());
  first = block_reduce<256>(first, Minimum());
  if (threadIdx.x != 0) return;
  sums[blockIdx.x] = sum;
  if (bad != nullptr) bad[blockIdx.x] = first;
}

// One warp: the sums of the blocks, and of `over` (or 1) what they are divided by. Each result may
// be null.
__global__ void __launch_bounds__(warp_size)
    prototype_sum_blocks(const double* sums, const int64_t* bad, const double* over, double* total,
                         float* loss, int64_t* first_bad) {
  double sum = 0.0;
  int64_t first = kNoRow;
  for (int i = lane_index(); i < kSumBlocks; i += warp_size) {
    sum += sums[i];
    if (bad != nullptr) first = Minimum()(first, bad[i]);
  }
  sum = warp_reduce(sum, Sum());
  first = warp_reduce(first, Minimum());
  if (lane_index() != 0) return;
  if (total != nullptr) *total = sum;
  if (loss != nullptr) *loss = static_cast<float>(over == nullptr ? sum : sum / *over);
  if (first_bad != nullptr) *first_bad = first == kNoRow ? -1 : first;
}

}  // namespace fedkernels
