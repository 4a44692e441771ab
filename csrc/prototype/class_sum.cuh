// Sums of points over classes:  sum_k = sum_i w_i s_ik x_i,  total_k = sum_i w_i s_ik,  count_k,
// with labels (s_ik is 1 where row i's label is k) or shares s. Rows are cut into stripes by the
// shape alone; within a stripe rows are added in their order, stripes in theirs, all in double and
// without atomics. Rows of weight 0, and bad ones, take no part.
//
//   labels   a thread has one column of D, a block 32 classes: x is read once, sums stand in shared
//            memory where only their own thread comes by
//   shares   the product of a tile of shares with a tile of rows, on tensor cores where D is not
//   tiny
#pragma once

#include <algorithm>
#include <limits>

#include "prototype/tile.cuh"

namespace fedkernels {

constexpr int kClasses = 32;
constexpr int kColumns = 128;
constexpr int kBatch = 8;  // rows whose values are on their way at once
constexpr int64_t kNoBadRow = std::numeric_limits<int64_t>::max();

struct ClassSum {
  Stored x;
  const int64_t* label;
  const float *share, *weight;  // share (N, K) instead of labels; weight may be null
  int64_t N;
  int K, D, stripes;
  // Partial: (stripes, K, D), (stripes, K) twice, (stripes, 2).
  double *sum, *total, *count;
  int64_t* bad;
};

// Rows [begin, end) of a stripe, whole tiles of `rows`.
struct RowRange {
  int64_t begin, end;
  __device__ __forceinline__ RowRange(const ClassSum& call, int stripe, int rows) {
    const int64_t tiles = ceil_div(call.N, rows);
    begin = tiles * stripe / call.stripes * rows;
    end = min(tiles * (stripe + 1) / call.stripes * rows, call.N);
  }
};

// The rows of a batch whose label a block wants, in their order.
struct Wanted {
  int row[kColumns], label[kColumns];
  float weight[kColumns];
  int before[kColumns / warp_size + 1];
};

__global__ void __launch_bounds__(kColumns) class_sum_labels(ClassSum call) {
  FK_SHARED(double, sums, [kClasses][kColumns]);
  FK_SHARED(Wanted, wanted);
  const int column_blocks = max(static_cast<int>(ceil_div(call.D, kColumns)), 1);
  const int class_blocks = static_cast<int>(ceil_div(call.K, kClasses));
  const int first_column = static_cast<int>(blockIdx.x) % column_blocks * kColumns;
  const int first_class = static_cast<int>(blockIdx.x) / column_blocks % class_blocks * kClasses;
  const int stripe = static_cast<int>(blockIdx.x) / column_blocks / class_blocks;
  const int t = static_cast<int>(threadIdx.x), d = first_column + t;
  for (int c = 0; c < kClasses; ++c) sums[c][t] = 0.0;
  double total = 0.0, count = 0.0;  // of class first_class + t
  int64_t bad_label = kNoBadRow, bad_weight = kNoBadRow;

  const RowRange range(call, stripe, kColumns);
  for (int64_t first = range.begin; first < range.end; first += kColumns) {
    const int64_t i = first + t;
    int label = -1;
    float weight = 0.0f;
    if (i < range.end) {
      const int64_t given = call.label[i];
      weight = call.weight == nullptr ? 1.0f : call.weight[i];
      const bool known = given >= 0 && given < call.K;
      if (!known) bad_label = min(bad_label, i);
      if (!(weight >= 0.0f)) bad_weight = min(bad_weight, i);
      const int64_t mine = given - first_class;
      if (known && weight > 0.0f && mine >= 0 && mine < kClasses) label = static_cast<int>(mine);
    }
    const unsigned votes = __ballot_sync(full_warp, label >= 0);
    __syncthreads();  // the batch before has been used
    if (lane_index() == 0) wanted.before[warp_index() + 1] = __popc(votes);
    if (t == 0) wanted.before[0] = 0;
    __syncthreads();
    int at = __popc(votes & ((1u << lane_index()) - 1));
    for (int w = 0; w <= warp_index(); ++w) at += wanted.before[w];
    if (label >= 0) wanted.row[at] = t, wanted.label[at] = label, wanted.weight[at] = weight;
    __syncthreads();
    int rows = 0;
    for (int w = 0; w <= kColumns / warp_size; ++w) rows += wanted.before[w];
    if (d < call.D) {
      for (int start = 0; start < rows; start += kBatch) {
        float x[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          x[b] = start + b < rows ? call.x[(first + wanted.row[start + b]) * call.D + d] : 0.0f;
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          if (start + b >= rows) break;
          double& sum = sums[wanted.label[start + b]][t];
          sum += static_cast<double>(wanted.weight[start + b]) * x[b];
        }
      }
    }
    if (first_column == 0 && t < kClasses) {
      for (int at = 0; at < rows; ++at) {
        if (wanted.label[at] != t) continue;
        total += wanted.weight[at], count += 1.0;
      }
    }
  }

  const int64_t K = call.K;
  for (int c = 0; c < kClasses && first_class + c < K && d < call.D; ++c) {
    call.sum[((stripe * K) + first_class + c) * call.D + d] = sums[c][t];
  }
  if (first_column != 0) return;
  if (t < kClasses && first_class + t < K) {
    call.total[stripe * K + first_class + t] = total;
    call.count[stripe * K + first_class + t] = count;
  }
  if (first_class != 0) return;
  bad_label = block_reduce<kColumns>(bad_label, Minimum());
  bad_weight = block_reduce<kColumns>(bad_weight, Minimum());
  if (t == 0) call.bad[2 * stripe] = bad_label, call.bad[2 * stripe + 1] = bad_weight;
}

struct ShareTiles {
  Tiles tile;
  double column[2][kWarps][kTile];
  int live[kTile];
};

// A block has a stripe of rows and 64 classes.
__global__ void __launch_bounds__(kTileThreads, 2) class_sum_shares(ClassSum call) {
  FK_SHARED(ShareTiles, tiles);
  const int64_t K = call.K, D = call.D;
  const int class_tiles = static_cast<int>(ceil_div(K, kTile));
  const int first_class = static_cast<int>(blockIdx.x) % class_tiles * kTile;
  const int stripe = static_cast<int>(blockIdx.x) / class_tiles;
  const bool tensor = call.D > kTensorD;
  double sums[2][2] = {};  // total and count of this lane's two classes, over this warp's rows
  int64_t bad_weight = kNoBadRow;

  const RowRange range(call, stripe, kTile);
  for (int64_t first = range.begin; first < range.end; first += kTile) {
    __syncthreads();  // the tile before has been used
    for (int i = 0; i < kWarpRows; ++i) {
      const int r = warp_index() * kWarpRows + i;
      const int64_t row = first + r;
      const bool inside = row < range.end;
      const float weight = !inside ? 0.0f : call.weight == nullptr ? 1.0f : call.weight[row];
      if (inside && !(weight >= 0.0f)) bad_weight = min(bad_weight, row);
      const bool part = weight > 0.0f;
      if (lane_index() == 0) tiles.live[r] = part ? 1 : 0;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int c = lane_index() + 32 * h;
        float share = 0.0f;
        if (part && first_class + c < K) share = call.share[row * K + first_class + c];
        tiles.tile.pairs[r * kPairPitch + c] = part ? weight * share : 0.0f;
        if (!part) continue;
        sums[0][h] += static_cast<double>(weight) * share;
        sums[1][h] += share;
      }
    }
    const Thread me;
    for (int start = 0; start < call.D; start += kDepth) {
      Chunk rows(me);
      rows.load(call.x, nullptr, first, range.end, call.D, start);
      __syncthreads();
      rows.drop_rows(tiles.live);
      rows.store(tiles.tile.left, kSumPitch);
      __syncthreads();
      const bool fresh = first == range.begin;
      weigh<true>(me, tiles.tile.pairs, tiles.tile.left, tensor, [&](int i, int d, float value) {
        if (first_class + i >= K || start + d >= D) return;
        double& sum = call.sum[(stripe * K + first_class + i) * D + start + d];
        sum = fresh ? value : sum + value;
      });
    }
  }

#pragma unroll
  for (int s = 0; s < 2; ++s) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      tiles.column[s][warp_index()][lane_index() + 32 * h] = sums[s][h];
    }
  }
  bad_weight = block_reduce<kTileThreads>(bad_weight, Minimum());
  __syncthreads();
  const int which = static_cast<int>(threadIdx.x) / kTile;
  const int c = static_cast<int>(threadIdx.x) % kTile;
  if (which < 2 && first_class + c < K) {
    double sum = 0.0;
    for (int w = 0; w < kWarps; ++w) sum += tiles.column[which][w][c];
    (which == 0 ? call.total : call.count)[stripe * K + first_class + c] = sum;
  }
  if (threadIdx.x != 0 || first_class != 0) return;
  call.bad[2 * stripe] = kNoBadRow, call.bad[2 * stripe + 1] = bad_weight;
}

// Stripes added in their order; one thread an entry of sum, total, count and bad. count_labels or
// count_shares.
__global__ void __launch_bounds__(256)
    class_sum_finish(ClassSum call, float* sum, float* total, int64_t* count_labels,
                     float* count_shares, int64_t* bad) {
  const int64_t entries = static_cast<int64_t>(call.K) * call.D;
  int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const auto add = [&](const double* partial, int64_t count) {
    double result = 0.0;
    for (int s = 0; s < call.stripes; ++s) result += partial[s * count + at];
    return result;
  };
  if (at < entries) {
    sum[at] = static_cast<float>(add(call.sum, entries));
    return;
  }
  at -= entries;
  if (at < call.K) {
    total[at] = static_cast<float>(add(call.total, call.K));
    const double count = add(call.count, call.K);
    if (count_labels != nullptr) count_labels[at] = static_cast<int64_t>(count);
    if (count_shares != nullptr) count_shares[at] = static_cast<float>(count);
    return;
  }
  at -= call.K;
  if (at >= 2) return;
  int64_t first = kNoBadRow;
  for (int s = 0; s < call.stripes; ++s) first = min(first, call.bad[2 * s + at]);
  bad[at] = first == kNoBadRow ? -1 : first;
}

// Many stripes fill a GPU, and each costs K D sums written and read again: a few rows of each class
// have to be worth that.
inline int64_t class_sum_stripes(int64_t N, int64_t K, int64_t D) {
  const int64_t fit = (int64_t{64} << 20) / std::max<int64_t>(K * (D + 2) * 8, 1);
  const int64_t worth = std::max<int64_t>(N / std::max<int64_t>(8 * K, kColumns), 1);
  return N == 0 ? 0 : std::max<int64_t>(std::min<int64_t>({264, fit, worth}), 1);
}

// call: x, label or share, weight, N, K, D. count_labels or count_shares is null.
template <typename Take>
void launch_class_sum(ClassSum call, float* sum, float* total, int64_t* count_labels,
                      float* count_shares, int64_t* bad, const Take& take, cudaStream_t stream) {
  const int64_t K = call.K, D = call.D, stripes = class_sum_stripes(call.N, K, D);
  const auto doubles = [&](int64_t count) { return static_cast<double*>(take(count * 8)); };
  call.stripes = static_cast<int>(stripes);
  call.sum = doubles(stripes * K * D), call.total = doubles(stripes * K);
  call.count = doubles(stripes * K), call.bad = static_cast<int64_t*>(take(stripes * 16));
  if (stripes > 0 && call.label != nullptr) {
    const int64_t columns = std::max<int64_t>(ceil_div(D, kColumns), 1);
    FK_LAUNCH(class_sum_labels, grid_of(stripes * columns * ceil_div(K, kClasses)), kColumns, 0,
              stream, call);
  } else if (stripes > 0) {
    FK_LAUNCH(class_sum_shares, grid_of(stripes * ceil_div(K, kTile)), kTileThreads, 0, stream,
              call);
  }
  FK_LAUNCH(class_sum_finish, grid_of(ceil_div(K * D + K + 2, 256)), 256, 0, stream, call, sum,
            total, count_labels, count_shares, bad);
}

}  // namespace fedkernels
