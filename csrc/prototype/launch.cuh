// The launches of the family, in order, on one stream. `take(bytes)` hands out scratch, aligned to
// 256 and kept until the stream has used it.
//
// How rows are cut into stripes follows from the shape alone, so that sums over rows have the same
// bits everywhere. A stripe's share of dmu is as large as dmu: where stripes would be too few for
// that, a first launch makes dx from many stripes and a second one dmu, each block for a part of
// the prototypes.
#pragma once

#include <algorithm>

#include "prototype/assign.cuh"
#include "prototype/distance.cuh"
#include "prototype/prepare.cuh"
#include "prototype/sweep_kernel.cuh"
#include "prototype/targets.cuh"

namespace fedkernels {

constexpr int64_t kStripes = 264;  // two blocks for each multiprocessor of an H100

struct Stripes {
  int64_t rows, sums, parts;  // stripes where sums over rows are not needed, where they are

  // D: floats of a prototype that are summed over rows, but for two.
  Stripes(const Prototypes& points, int64_t D) {
    const int64_t K = points.K;
    rows = std::min(ceil_div(points.N, kTile), kStripes);
    const int64_t fit = points.stripe_scratch / std::max<int64_t>(K * (D + 2) * 4, 1);
    sums = std::min(rows, std::max<int64_t>(fit, 1));
    parts = std::clamp<int64_t>(kStripes / std::max<int64_t>(sums, 1), 1,
                                std::max<int64_t>(ceil_div(K, kTile), 1));
  }

  // Half of what a GPU could run at once: then one launch for everything is the better one.
  bool enough() const { return 2 * sums >= rows; }
};

// Optional arguments of a softmax.
struct SoftmaxMode {
  const float* log_prior;
  float temperature;
};

inline Sweep sweep_of(const Prototypes& points, const SoftmaxMode& mode) {
  Sweep call{};
  call.points = points;
  call.per_temperature = 1.0f / mode.temperature;
  call.log_prior = mode.log_prior;
  call.parts = 1;
  call.surveys = call.settles = true;
  return call;
}

template <int mode>
void launch_sweep(Sweep call, int64_t stripes, int64_t parts, cudaStream_t stream) {
  call.stripes = static_cast<int>(stripes), call.parts = static_cast<int>(parts);
  if (stripes == 0 || call.points.K == 0) return;
  FK_LAUNCH(prototype_sweep<mode>, grid_of(stripes * parts), kTileThreads, 0, stream, call);
}

inline void launch_columns(const float* partial, int64_t stripes, int64_t count, float* result,
                           cudaStream_t stream) {
  if (count == 0) return;
  FK_LAUNCH(prototype_add_columns, grid_of(ceil_div(count, 256)), 256, 0, stream, partial,
            static_cast<int>(stripes), count, result);
}

// Where gradients go; null where not needed.
struct Gradients {
  void* dx;
  float *dmu, *log_prior;
};

// The sweep with its gradients.
template <int mode, typename Take>
void launch_gradients(Sweep call, const Gradients& to, const Take& take, cudaStream_t stream) {
  const Prototypes& points = call.points;
  const int64_t N = points.N, K = points.K, D = points.D;
  const Stripes cut(points, D);
  const auto floats = [&](int64_t count) { return static_cast<float*>(take(count * 4)); };
  const bool sums = to.dmu != nullptr || to.log_prior != nullptr;
  const bool twice = to.dx != nullptr && sums && !cut.enough();
  Sweep rows = call, columns = call;
  rows.dx = to.dx;
  if (to.dx != nullptr && points.x.kind != kFloat32 && K > kTile) {
    rows.dx_scratch = floats((twice || !sums ? cut.rows : cut.sums) * kTile * D);
  }
  if (sums) {
    columns.dmu = to.dmu == nullptr ? nullptr : floats(cut.sums * K * D);
    columns.along = to.dmu == nullptr ? nullptr : floats(cut.sums * K);
    columns.column = to.log_prior == nullptr ? nullptr : floats(cut.sums * K);
  }
  if (!sums) {
    launch_sweep<mode>(rows, cut.rows, 1, stream);
  } else if (twice || (to.dx == nullptr && !cut.enough())) {
    rows.state = columns.state = call.surveys ? floats(2 * N) : nullptr;
    rows.settles = to.dx != nullptr;
    if (rows.settles || rows.surveys) launch_sweep<mode>(rows, cut.rows, 1, stream);
    columns.surveys = false;
    launch_sweep<mode>(columns, cut.sums, cut.parts, stream);
  } else {
    columns.dx = rows.dx, columns.dx_scratch = rows.dx_scratch;
    launch_sweep<mode>(columns, cut.sums, 1, stream);
  }
  if (to.log_prior != nullptr) {
    launch_columns(columns.column, cut.sums, K, to.log_prior, stream);
  }
  if (to.dmu == nullptr || K * D == 0) return;
  float* along = floats(K);
  launch_columns(columns.along, cut.sums, K, along, stream);
  FK_LAUNCH(prototype_add_dmu, grid_of(ceil_div(K * D, 256)), 256, 0, stream, points, columns.dmu,
            static_cast<int>(cut.sums), along, to.dmu);
}

template <typename Take>
void launch_prototype_distance_gradient(const Prototypes& points, const float* distance,
                                        const float* grad, const Gradients& to, const Take& take,
                                        cudaStream_t stream) {
  Sweep call = sweep_of(points, {nullptr, 1.0f});
  call.surveys = false;
  call.distance = distance, call.grad = grad;
  launch_gradients<kDistanceGradient>(call, to, take, stream);
}

// prob: null where not wanted.
template <typename Take>
void launch_prototype_softmax(const Prototypes& points, const SoftmaxMode& mode, float* prob,
                              float* lse, float* mass, const Take& take, cudaStream_t stream) {
  Sweep call = sweep_of(points, mode);
  call.prob = prob, call.lse = lse;
  const int64_t stripes = Stripes(points, 0).sums;
  call.column = static_cast<float*>(take(stripes * points.K * 4));
  launch_sweep<kSoftmax>(call, stripes, 1, stream);
  launch_columns(call.column, stripes, points.K, mass, stream);
}

struct SoftmaxUpstream {
  const float *lse, *g_prob, *g_lse, *g_mass;
};

template <typename Take>
void launch_prototype_softmax_gradient(const Prototypes& points, const SoftmaxMode& mode,
                                       const SoftmaxUpstream& upstream, const Gradients& to,
                                       const Take& take, cudaStream_t stream) {
  Sweep call = sweep_of(points, mode);
  call.given_lse = upstream.lse, call.g_prob = upstream.g_prob;
  call.g_lse = upstream.g_lse, call.g_mass = upstream.g_mass;
  call.surveys = upstream.g_prob != nullptr || upstream.g_mass != nullptr;
  launch_gradients<kSoftmaxGradient>(call, to, take, stream);
}

enum : int { kNoReduction, kSumReduction, kMeanReduction };

// label or soft is null.
struct Targets {
  const int64_t* label;
  const float *soft, *class_weight, *row_weight;
  int64_t ignore_index;
  int reduction;
};

// loss: (N,), or one value where it is reduced.
template <typename Take>
void launch_prototype_cross_entropy(const Prototypes& points, const SoftmaxMode& mode,
                                    const Targets& targets, float* loss, int64_t* bad,
                                    const Gradients& to, const Take& take, cudaStream_t stream) {
  const int64_t N = points.N;
  Sweep call = sweep_of(points, mode);
  call.label = targets.label, call.soft = targets.soft;
  call.class_weight = targets.class_weight, call.row_weight = targets.row_weight;
  float* value = static_cast<float*>(take(N * 4));
  uint8_t* kind = static_cast<uint8_t*>(take(N));
  double* sums = static_cast<double*>(take(kSumBlocks * 8));
  int64_t* firsts = static_cast<int64_t*>(take(kSumBlocks * 8));
  double* total = static_cast<double*>(take(8));
  const bool mean = targets.reduction == kMeanReduction;
  const bool reduced = targets.reduction != kNoReduction;
  if (N > 0) {
    FK_LAUNCH(prototype_targets, grid_of(ceil_div(N, kWarps)), 256, 0, stream, call,
              targets.ignore_index, value, kind);
  }
  FK_LAUNCH(prototype_sum_rows, grid_of(kSumBlocks), 256, 0, stream, value, kind, N, sums, firsts);
  FK_LAUNCH(prototype_sum_blocks, grid_of(1), warp_size, 0, stream, sums, firsts, nullptr, total,
            nullptr, bad);
  call.value = value, call.kind = kind, call.total = mean ? total : nullptr;
  call.loss = reduced ? static_cast<float*>(take(N * 4)) : loss;
  if (to.dx == nullptr && to.dmu == nullptr && to.log_prior == nullptr) {
    call.settles = false;
    launch_sweep<kCrossEntropy>(call, Stripes(points, points.D).rows, 1, stream);
  } else {
    launch_gradients<kCrossEntropy>(call, to, take, stream);
  }
  if (!reduced) return;
  FK_LAUNCH(prototype_sum_rows, grid_of(kSumBlocks), 256, 0, stream, call.loss, nullptr, N, sums,
            nullptr);
  FK_LAUNCH(prototype_sum_blocks, grid_of(1), warp_size, 0, stream, sums, nullptr, call.total,
            nullptr, loss, nullptr);
}

}  // namespace fedkernels
