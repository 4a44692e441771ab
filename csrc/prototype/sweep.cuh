// Softmax over prototypes, its gradient, cross-entropy with its gradients, and the gradient of
// distances: what they do with a row of a tile. Each may sweep twice over the prototypes: `survey`
// gathers what a row has to know of all of them, `settle` turns it into results and gradients.
//
//   logit_ij = -distance_ij / t + log_prior_j
//   dL/dlogit = p_ij (g_ij + g_lse_i - s_i), s_i = sum_j p_ij g_ij, g_ij = g_prob_ij + g_mass_j
//               or scale_i (v_i p_ij - w_j t_ij) of a cross-entropy
//
// With G = dL/ddistance the gradients of both sides are made of a weight and a share along the
// point itself:
//
//               weight V_ij          along P_ij
//   squared     -2 G                 2 G
//   euclidean   -G / distance        G / distance
//   cosine      -G / |x_i|           G cos_ij
//   dot         -G                   0
//
//   dx_i  = sum_j V_ij near_j + x'_i sum_j P_ij            (cosine: the last over |x_i|^2)
//   dmu_j = sum_i V_ij x'_i + near_j sum_i P_ij            (cosine: all over |mu_j|)
//
// V is NaN wherever a pair that counts is not finite, so that points enter these sums with what is
// not finite as 0: a weight of 0 never meets a NaN. (Given gradients of distances may be finite at
// a NaN: there rows without a gradient are left out instead.)
#pragma once

#include "prototype/pairs.cuh"

namespace fedkernels {

enum : int { kSoftmax, kSoftmaxGradient, kCrossEntropy, kDistanceGradient };
enum : uint8_t { kSilentRow, kActiveRow, kBadRow };  // of a cross-entropy

struct Sweep {
  Prototypes points;
  float per_temperature;
  const float* log_prior;
  // A block has a stripe of rows and a part of the prototypes (more than one: only to settle what
  // an earlier launch surveyed).
  int stripes, parts;
  bool surveys, settles;
  float* state;  // (2, N), where a second launch settles

  float *prob, *lse;                                 // results of kSoftmax; prob may be null
  const float *given_lse, *g_prob, *g_lse, *g_mass;  // kSoftmaxGradient; gradients may be null
  const int64_t* label;                              // kCrossEntropy: or `soft` (N, K)
  const float *soft, *class_weight, *row_weight;
  const float* value;            // v_i
  const uint8_t* kind;           // kSilentRow ...
  const double* total;           // of v where losses are averaged, else null
  float* loss;                   // (N,)
  const float *distance, *grad;  // kDistanceGradient

  // Gradients; null where not needed. Sums over rows are partial, (stripes, K, D) and (stripes, K).
  void* dx;
  float *dx_scratch, *dmu, *along, *column;
};

struct SweepTiles {
  Tiles tile;
  // Of a row: largest logit, sum of exp(logit - largest), sum of w t (logit - largest) and of w t;
  // or s_i, and whether anything comes in.
  float state[4][kTile];
  float along[kTile];  // sum_j P_ij
  int live[kTile];
  float column[2][kWarps][kTile];  // sums over each warp's rows: P, and dL/dlogit or p
};

// Logits of a row of the tile; -inf where masked or outside.
__device__ __forceinline__ void row_logits(const Sweep& call, const Tiles& tiles, int64_t first_row,
                                           int r, int first_column, float (&distance)[2],
                                           float (&logit)[2], bool (&allowed)[2]) {
  row_distances(call.points, tiles, first_row, r, first_column, distance);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int column = first_column + lane_index() + 32 * h;
    allowed[h] = column < call.points.K && call.points.allowed(first_row + r, column);
    float prior = 0.0f;
    if (allowed[h] && call.log_prior != nullptr) {
      prior = call.log_prior[column];
      allowed[h] = prior != -INFINITY;
    }
    logit[h] = allowed[h] ? fmaf(-distance[h], call.per_temperature, prior) : -INFINITY;
  }
}

// w_j t_ij.
__device__ __forceinline__ float target_weight(const Sweep& call, int64_t row, int column) {
  const float t = call.soft != nullptr ? call.soft[row * call.points.K + column]
                                       : (call.label[row] == column ? 1.0f : 0.0f);
  return call.class_weight == nullptr || t == 0.0f ? t : t * call.class_weight[column];
}

__device__ __forceinline__ float upstream(const Sweep& call, int64_t row, int column) {
  const float g = call.g_prob == nullptr ? 0.0f : call.g_prob[row * call.points.K + column];
  return call.g_mass == nullptr ? g : g + call.g_mass[column];
}

// c times x, where a c of 0 leaves nothing of an infinite x.
__device__ __forceinline__ float times(float c, float x) { return c == 0.0f ? 0.0f : c * x; }

// One row of one tile of the first sweep.
template <int mode>
__device__ __forceinline__ void survey(const Sweep& call, SweepTiles& tiles, int64_t row, int r,
                                       int first_column, const float (&logit)[2]) {
  if (mode == kCrossEntropy && call.kind[row] != kActiveRow) return;
  float w[2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int column = first_column + lane_index() + 32 * h;
    if (column >= call.points.K) continue;
    if (mode == kCrossEntropy) w[h] = target_weight(call, row, column);
    if (mode == kSoftmaxGradient) w[h] = upstream(call, row, column);
    if (mode == kSoftmax && call.prob != nullptr) {
      call.prob[row * call.points.K + column] = logit[h];
    }
  }
  float* state[4];
#pragma unroll
  for (int s = 0; s < 4; ++s) state[s] = &tiles.state[s][r];

  if (mode == kSoftmaxGradient) {
    const float lse = call.given_lse[row];
    float sum = 0.0f;
#pragma unroll
    for (int h = 0; h < 2; ++h) sum += times(w[h], lse == -INFINITY ? 0.0f : expf(logit[h] - lse));
    sum = warp_reduce(sum, Sum());
    const bool some = __any_sync(full_warp, w[0] != 0.0f || w[1] != 0.0f) != 0;
    if (lane_index() != 0) return;
    *state[0] += sum;
    if (some) *state[1] = 1.0f;
    return;
  }

  const float top = warp_reduce(Maximum()(logit[0], logit[1]), Maximum());
  float total = 0.0f, apart = 0.0f, weight = 0.0f;
  if (top != -INFINITY) total = warp_reduce(expf(logit[0] - top) + expf(logit[1] - top), Sum());
  if (mode == kCrossEntropy) {
    const float from = top == -INFINITY ? 0.0f : top;
    apart = warp_reduce(times(w[0], logit[0] - from) + times(w[1], logit[1] - from), Sum());
    weight = warp_reduce(w[0] + w[1], Sum());
  }
  if (lane_index() != 0) return;
  const float old = *state[0], larger = Maximum()(old, top);
  if (larger != -INFINITY) {
    const float mine = expf(old - larger), theirs = expf(top - larger);
    *state[1] = *state[1] * mine + total * theirs;
    if (mode == kCrossEntropy) {
      // Of a side without a logit what carries weight is infinitely far below.
      *state[2] =
          (*state[2] + times(*state[3], old - larger)) + (apart + times(weight, top - larger));
    }
  } else {
    *state[2] += apart;
  }
  *state[0] = larger;
  *state[3] += weight;
}

// What follows for a row once all tiles have been surveyed; for one lane.
template <int mode>
__device__ __forceinline__ void conclude(const Sweep& call, SweepTiles& tiles, int64_t row, int r) {
  const float top = tiles.state[0][r], total = tiles.state[1][r];
  if (mode == kSoftmax) {
    call.lse[row] =
        top == -INFINITY ? -INFINITY : static_cast<float>(top + log(static_cast<double>(total)));
  }
  if (mode == kCrossEntropy) {
    const uint8_t kind = call.kind[row];
    call.loss[row] = kind == kSilentRow ? 0.0f
                     : kind == kBadRow  ? NAN
                                        : times(tiles.state[3][r], logf(total)) - tiles.state[2][r];
  }
  if (call.state == nullptr) return;
  call.state[row] = top;
  call.state[call.points.N + row] = total;
}

// dL/dlogit (kSoftmax: p) of one row of one tile; false: the row has no part.
template <int mode>
__device__ __forceinline__ bool settle(const Sweep& call, const SweepTiles& tiles, int64_t row,
                                       int r, int first_column, const float (&logit)[2],
                                       const bool (&allowed)[2], float (&pull)[2]) {
  const float first = tiles.state[0][r], second = tiles.state[1][r];
  float lse = 0.0f, scale = 0.0f, g_lse = 0.0f;
  if (mode == kSoftmax && first == -INFINITY) return false;
  if (mode == kSoftmaxGradient) {
    lse = call.given_lse[row];
    g_lse = call.g_lse == nullptr ? 0.0f : call.g_lse[row];
    if (lse == -INFINITY || (g_lse == 0.0f && second == 0.0f)) return false;
  }
  if (mode == kCrossEntropy) {
    scale = call.total == nullptr ? 1.0f : static_cast<float>(1.0 / *call.total);
    if (call.row_weight != nullptr) scale *= call.row_weight[row];
    if (call.kind[row] != kActiveRow || scale == 0.0f || first == -INFINITY) return false;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int column = first_column + lane_index() + 32 * h;
    if (column >= call.points.K) continue;
    if (mode == kSoftmaxGradient) {
      const float p = expf(logit[h] - lse);
      pull[h] = (p == 0.0f ? 0.0f : p * upstream(call, row, column)) + p * (g_lse - first);
    } else {
      const float p = expf(logit[h] - first) / second;
      if (mode == kSoftmax) {
        pull[h] = p;
      } else if (allowed[h]) {
        pull[h] = scale * (call.value[row] * p - target_weight(call, row, column));
      }
    }
  }
  return true;
}

// V and P of a pair for G = dL/ddistance.
__device__ __forceinline__ void weights_of(int metric, float g, float distance, float inverse,
                                           float& weight, float& along) {
  if (metric == kSquared) {
    along = 2.0f * g, weight = -along;
  } else if (metric == kEuclidean) {
    along = distance == 0.0f ? 0.0f : g / distance, weight = -along;
  } else if (metric == kCosine) {
    along = times(g, 1.0f - distance), weight = times(-g, inverse);
  } else {
    along = 0.0f, weight = -g;
  }
}

}  // namespace fedkernels
