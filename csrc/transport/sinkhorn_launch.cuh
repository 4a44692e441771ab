// The launches of one call of Sinkhorn, in order, on one stream. The host knows the size of the
// padded block, not the sizes of the problems in it: every class that fits into the block is
// launched.
#pragma once

#include <algorithm>
#include <cstddef>

#include "transport/sinkhorn_finish.cuh"
#include "transport/sinkhorn_on_chip.cuh"
#include "transport/sinkhorn_stream_columns.cuh"
#include "transport/sinkhorn_stream_rows.cuh"

namespace fedkernels {

constexpr int kOnChip = 128;  // the largest class that stays on chip

// Problems that are streamed at once: their scratch, an eighth of the cost, stays below 256 MiB, or
// holds one problem.
inline int64_t stream_slots(int64_t batch, int64_t n, int64_t m) {
  if (std::max(n, m) <= kOnChip) return 0;
  const int64_t bytes = ceil_div(n, kStreamRows) * m * 4;
  return std::clamp<int64_t>((int64_t{256} << 20) / std::max<int64_t>(bytes, 1), 1,
                             std::max<int64_t>(batch, 1));
}

// Bytes of scratch for a call; 256 is the alignment of each part.
struct SinkhornScratch {
  int64_t slots, problems, part, error, linear, u, pace, bytes;

  SinkhornScratch(int64_t batch, int64_t n, int64_t m) : slots(stream_slots(batch, n, m)) {
    const int64_t stripes = ceil_div(n, kStreamRows);
    const auto take = [this](int64_t size) {
      const int64_t at = bytes;
      bytes += ceil_div(size, 256) * 256;
      return at;
    };
    bytes = 0;
    problems = take(batch * static_cast<int64_t>(sizeof(SinkhornProblem)));
    part = take(slots * stripes * m * 4);
    error = take(slots * stripes * 4);
    linear = take(slots * stripes * 8);
    u = take(2 * slots * n * 4);
    pace = take(slots * static_cast<int64_t>(sizeof(StreamPace)));
  }
};

template <int L, int R, int C, int W, bool relaxes>
void launch_class(const SinkhornCall& call, int larger_than, int up_to, cudaStream_t stream) {
  if (std::max(call.n, call.m) <= larger_than) return;
  // Without sizes every problem is as large as the block.
  if (call.sizes == nullptr && std::max(call.n, call.m) > up_to) return;
  using Class = OnChip<L, R, C, W, relaxes>;
  FK_LAUNCH((sinkhorn_on_chip<L, R, C, W, relaxes>), grid_of(ceil_div(call.batch, Class::problems)),
            Class::threads, 0, stream, call, larger_than, up_to);
}

template <bool relaxes>
void launch_on_chip(const SinkhornCall& call, cudaStream_t stream) {
  launch_class<4, 4, 1, 1, relaxes>(call, 0, 4, stream);
  launch_class<8, 8, 1, 1, relaxes>(call, 4, 8, stream);
  launch_class<16, 16, 1, 1, relaxes>(call, 8, 16, stream);
  launch_class<32, 32, 1, 1, relaxes>(call, 16, 32, stream);
  launch_class<32, 16, 2, 4, relaxes>(call, 32, 64, stream);
  launch_class<32, 16, 4, 8, relaxes>(call, 64, kOnChip, stream);
}

template <Pass pass>
void launch_pass(const SinkhornCall& call, const StreamScratch& scratch, int iteration,
                 cudaStream_t stream) {
  const dim3 rows = grid_of(scratch.count * scratch.stripes);
  if (call.sizes != nullptr || call.m <= kStreamChunk) {
    FK_LAUNCH((sinkhorn_stream_rows<pass, false>), rows, kStreamThreads, 0, stream, call, scratch,
              kOnChip, iteration);
  }
  if (call.m > kStreamChunk) {
    FK_LAUNCH((sinkhorn_stream_rows<pass, true>), rows, kStreamThreads, 0, stream, call, scratch,
              kOnChip, iteration);
  }
  FK_LAUNCH((sinkhorn_stream_columns<pass>), grid_of(scratch.count * scratch.column_blocks),
            kStreamThreads, 0, stream, call, scratch, kOnChip, iteration);
}

inline void launch_stream(const SinkhornCall& call, const SinkhornScratch& layout,
                          std::byte* memory, cudaStream_t stream) {
  for (int64_t first = 0; first < call.batch; first += layout.slots) {
    StreamScratch scratch{};
    scratch.first = first;
    scratch.count = std::min(layout.slots, call.batch - first);
    scratch.stripes = ceil_div(call.n, kStreamRows);
    scratch.column_blocks = ceil_div(call.m, warp_size);
    scratch.part = reinterpret_cast<float*>(memory + layout.part);
    scratch.error = reinterpret_cast<float*>(memory + layout.error);
    scratch.linear = reinterpret_cast<double*>(memory + layout.linear);
    scratch.u = reinterpret_cast<float*>(memory + layout.u);
    scratch.pace = reinterpret_cast<StreamPace*>(memory + layout.pace);
    launch_pass<Pass::first>(call, scratch, 1, stream);
    for (int k = 2; k <= call.max_iter; ++k) launch_pass<Pass::iterate>(call, scratch, k, stream);
    launch_pass<Pass::measure>(call, scratch, call.max_iter + 1, stream);
  }
}

// `lanes` a problem for the kernels that look at vectors alone.
template <int lanes>
void launch_prepare(const SinkhornCall& call, cudaStream_t stream) {
  FK_LAUNCH((sinkhorn_prepare<lanes>), grid_of(ceil_div(call.batch * lanes, 128)), 128, 0, stream,
            call);
}
template <int lanes>
void launch_finish(const SinkhornCall& call, cudaStream_t stream) {
  FK_LAUNCH((sinkhorn_finish<lanes>), grid_of(ceil_div(call.batch * lanes, 128)), 128, 0, stream,
            call);
}

// `memory`: SinkhornScratch(batch, n, m).bytes, aligned to 256.
inline void launch_sinkhorn(SinkhornCall call, std::byte* memory, cudaStream_t stream) {
  if (call.batch == 0) return;
  const SinkhornScratch layout(call.batch, call.n, call.m);
  call.problems = reinterpret_cast<SinkhornProblem*>(memory + layout.problems);
  const int extent = std::max(call.n, call.m);
  if (extent <= 4) {
    launch_prepare<4>(call, stream);
  } else {
    launch_prepare<32>(call, stream);
  }
  if (call.n > 0 && call.m > 0) {
    if (call.sor) {
      launch_on_chip<true>(call, stream);
    } else {
      launch_on_chip<false>(call, stream);
    }
    if (layout.slots > 0) launch_stream(call, layout, memory, stream);
  }
  if (extent <= 4) {
    launch_finish<4>(call, stream);
  } else {
    launch_finish<32>(call, stream);
  }
  if (extent > 0) {
    const int64_t entries = call.batch * (static_cast<int64_t>(call.n) + call.m);
    FK_LAUNCH(sinkhorn_potentials, grid_of(ceil_div(entries, 256)), 256, 0, stream, call);
  }
}

}  // namespace fedkernels
