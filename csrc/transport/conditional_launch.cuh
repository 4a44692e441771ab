// The launches of conditional transport, in order, on one stream.
//
// Each side is one sweep over the products. How a sweep is cut into parts follows from the shape of
// one problem alone; problems of a batch that need more scratch than the bound go in several
// rounds.
#pragma once

#include <algorithm>
#include <cstddef>

#include "common/centre.cuh"
#include "transport/conditional_backward.cuh"
#include "transport/conditional_forward.cuh"

namespace fedkernels {

constexpr int64_t kConditionalScratch = int64_t{32} << 20;
constexpr int64_t kConditionalBlocks = 264;  // two for each multiprocessor of an H100

// Parts of the right side: enough blocks for a GPU where the left side alone has too few.
inline int conditional_parts(int64_t left, int64_t right, int64_t bytes_a_part) {
  const int64_t wanted = kConditionalBlocks / std::max<int64_t>(ceil_div(left, kTile), 1);
  const int64_t fit = kConditionalScratch / std::max<int64_t>(bytes_a_part, 1);
  return static_cast<int>(
      std::max<int64_t>(std::min({wanted, fit, ceil_div(right, kTile)}), 1));
}

// Where things lie in the scratch of a call; for `slots` problems at once.
struct ConditionalScratch {
  int row_parts, column_parts;
  int64_t slots, finite, centre, row_norms, column_norms, partial, sums, bytes;

  ConditionalScratch(int64_t batch, int64_t N, int64_t M, int64_t D, int cost, bool backward) {
    const int64_t width = backward ? D + kSums : 3;  // floats a left point and part
    row_parts = conditional_parts(N, M, N * width * 4);
    column_parts = conditional_parts(M, N, M * width * 4);
    const int64_t most = std::max(N * row_parts, M * column_parts);
    slots = std::clamp<int64_t>(kConditionalScratch / std::max<int64_t>(most * width * 4, 1), 1,
                                std::max<int64_t>(batch, 1));
    bytes = 0;
    const auto take = [this](int64_t size) {
      const int64_t at = bytes;
      bytes += ceil_div(size, 256) * 256;
      return at;
    };
    const bool squared = cost == kSquaredCost;
    finite = take(squared ? slots * M : 0);
    centre = take(squared ? slots * D * 4 : 0);
    row_norms = take(slots * N * 3 * 4);
    column_norms = take(slots * M * 3 * 4);
    // One part of a gradient is written where the gradient goes.
    const bool apart = row_parts > 1 || column_parts > 1;
    partial = take(backward ? (apart ? slots * most * D * 4 : 0) : slots * most * 3 * 4);
    sums = take(backward ? slots * most * kSums * 4 : 0);
  }
};

// Operands of a call, on one side; null where there are none.
struct ConditionalOperands {
  const float *points, *mass;
  const float *lse, *cost, *g_cost, *g_lse;
  int64_t count;

  PairSide side(int64_t first, int64_t D, std::byte* norms, int64_t slots) const {
    const auto at = [&](const float* vector) {
      return vector == nullptr ? nullptr : vector + first * count;
    };
    float* floats = reinterpret_cast<float*>(norms);
    const int64_t length = slots * count;
    return {points + first * count * D,
            at(mass),
            static_cast<int>(count),
            floats,
            floats + length,
            floats + 2 * length,
            at(lse),
            at(cost),
            at(g_cost),
            at(g_lse)};
  }
};

struct ConditionalMode {
  int cost, logits;
  double temperature;
};

// Norms and centre of problems first .. first + count; the call with x on the left.
inline ConditionalCall conditional_prepare(const ConditionalOperands& x,
                                           const ConditionalOperands& y, int64_t D,
                                           const ConditionalMode& mode, int64_t first,
                                           int64_t count, const ConditionalScratch& layout,
                                           std::byte* memory, cudaStream_t stream) {
  ConditionalCall call{};
  call.left = x.side(first, D, memory + layout.row_norms, layout.slots);
  call.right = y.side(first, D, memory + layout.column_norms, layout.slots);
  call.batch = count;
  call.D = static_cast<int>(D);
  call.cost = mode.cost, call.logits = mode.logits;
  call.scale = static_cast<float>(1.4426950408889634 / mode.temperature);
  call.per_temperature = static_cast<float>(1.0 / mode.temperature);
  if (mode.cost == kSquaredCost && D > 0) {
    float* centre = reinterpret_cast<float*>(memory + layout.centre);
    launch_centre(call.right.points, count, y.count, D, kFloat32,
                  reinterpret_cast<uint8_t*>(memory + layout.finite), centre, stream);
    call.centre = centre;
  }
  for (const PairSide& side : {call.left, call.right}) {
    if (side.count == 0) continue;
    FK_LAUNCH(conditional_norms, grid_of(ceil_div(count * side.count, 8)), 256, 0, stream, side,
              call.centre, count, call.D);
  }
  return call;
}

inline ConditionalCall turned(ConditionalCall call) {
  std::swap(call.left, call.right);
  return call;
}

inline void launch_forward_side(const ConditionalCall& call, int parts, float* partial, float* cost,
                                float* lse, cudaStream_t stream) {
  if (call.left.count == 0) return;
  const int64_t points = call.batch * call.left.count;
  const dim3 grid = grid_of(call.batch * ceil_div(call.left.count, kTile) * parts);
  FK_LAUNCH(conditional_forward_side, grid, kTileThreads, 0, stream, call, parts, partial);
  FK_LAUNCH(conditional_forward_finish, grid_of(ceil_div(points, 256)), 256, 0, stream, partial,
            parts, points, cost, lse);
}

// `memory`: ConditionalScratch(...).bytes, aligned to 256.
inline void launch_conditional_forward(const ConditionalOperands& x, const ConditionalOperands& y,
                                       int64_t batch, int64_t D, const ConditionalMode& mode,
                                       float* row_cost, float* col_cost, float* row_lse,
                                       float* col_lse, std::byte* memory, cudaStream_t stream) {
  const ConditionalScratch layout(batch, x.count, y.count, D, mode.cost, false);
  float* partial = reinterpret_cast<float*>(memory + layout.partial);
  for (int64_t first = 0; first < batch; first += layout.slots) {
    const int64_t count = std::min(layout.slots, batch - first);
    const ConditionalCall call =
        conditional_prepare(x, y, D, mode, first, count, layout, memory, stream);
    const int64_t row = first * x.count, column = first * y.count;
    launch_forward_side(call, layout.row_parts, partial, row_cost + row, row_lse + row, stream);
    launch_forward_side(turned(call), layout.column_parts, partial, col_cost + column,
                        col_lse + column, stream);
  }
}

// gradient, d_mass: null where not needed.
inline void launch_backward_side(const ConditionalCall& call, int parts, float* partial,
                                 float* sums, float* gradient, float* d_mass, cudaStream_t stream) {
  if (call.left.count == 0 || (gradient == nullptr && d_mass == nullptr)) return;
  const int64_t points = call.batch * call.left.count;
  float* to = gradient == nullptr || parts == 1 ? gradient : partial;
  FK_LAUNCH(conditional_backward_side,
            grid_of(call.batch * ceil_div(call.left.count, kTile) * parts), kTileThreads, 0, stream,
            call, parts, to, sums);
  FK_LAUNCH(conditional_backward_sums, grid_of(ceil_div(points, 256)), 256, 0, stream, sums, parts,
            points, d_mass);
  if (gradient == nullptr || call.D == 0) return;
  FK_LAUNCH(conditional_backward_finish, grid_of(ceil_div(points * call.D, 256)), 256, 0, stream,
            call, to, sums, parts, gradient);
}

inline void launch_conditional_backward(const ConditionalOperands& x, const ConditionalOperands& y,
                                        int64_t batch, int64_t D, const ConditionalMode& mode,
                                        float* dx, float* dy, float* dp, float* dq,
                                        std::byte* memory, cudaStream_t stream) {
  const ConditionalScratch layout(batch, x.count, y.count, D, mode.cost, true);
  float* partial = reinterpret_cast<float*>(memory + layout.partial);
  float* sums = reinterpret_cast<float*>(memory + layout.sums);
  const auto from = [](float* array, int64_t offset) {
    return array == nullptr ? nullptr : array + offset;
  };
  for (int64_t first = 0; first < batch; first += layout.slots) {
    const int64_t count = std::min(layout.slots, batch - first);
    const ConditionalCall call =
        conditional_prepare(x, y, D, mode, first, count, layout, memory, stream);
    const int64_t row = first * x.count, column = first * y.count;
    launch_backward_side(call, layout.row_parts, partial, sums, from(dx, row * D), from(dp, row),
                         stream);
    launch_backward_side(turned(call), layout.column_parts, partial, sums, from(dy, column * D),
                         from(dq, column), stream);
  }
}

}  // namespace fedkernels
