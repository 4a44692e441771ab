// One call of a prototype op on the CPU: its memory, the prototypes made ready, and how rows are
// spread over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/element.h"
#include "common/mean_of_finite.h"
#include "common/scratch.h"
#include "prototype/prototype.h"

namespace fedkernels {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

template <typename T>
const T* values(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* values(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <typename T>
const T* values(const Optional& tensor) {
  return tensor ? values<T>(*tensor) : nullptr;
}

inline Tensor empty(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes);
}

template <typename T>
class PrototypeCall {
 public:
  PrototypeCall(const Tensor& x, const Tensor& mu, int64_t metric, const Optional& log_prior,
                const Optional& mask, double temperature)
      : kernels(prototype_kernels_here<T>()) {
    f.N = x.size(0), f.D = x.size(1), f.K = mu.size(0);
    f.metric = static_cast<PrototypeMetric>(metric);
    f.element = element_of(x);
    f.x = x.const_data_ptr();
    f.mu = values<T>(mu);
    f.log_prior = values<T>(log_prior);
    f.mask = values<uint8_t>(mask);
    f.mask_row = mask && mask->size(0) > 1 ? f.K : 0;
    f.per_temperature = static_cast<T>(1 / temperature);
    f.padded = up_to(f.K, kernels.lanes);
    f.depth = up_to(f.D, kernels.columns);
    // Rows a multiple of 2 KiB apart would fall on few sets of the first cache.
    f.stride = f.depth + 64 / static_cast<int64_t>(sizeof(T));
    // A tile stays in the second cache; with very many prototypes, within 8 MiB.
    constexpr int64_t most_rows = 48, tile_bytes = int64_t{8} << 20;
    const int64_t fit = tile_bytes / (std::max<int64_t>(f.padded, 1) * int64_t{sizeof(T)});
    f.block = std::clamp(fit / kernels.tile_rows * kernels.tile_rows, kernels.tile_rows, most_rows);
    make_ready();
  }

  int64_t blocks() const { return (f.N + f.block - 1) / f.block; }

  // run(first block, last block, scratch): rows whose results are their own.
  template <typename Run>
  void over_blocks(const Run& run) const {
    torch::stable::parallel_for(0, blocks(), grain(), [&](int64_t begin, int64_t end) {
      const Scratch<T> scratch(kernels.scratch(f));
      run(begin, end, scratch.get());
    });
  }

  // run(first block, last block, a stripe's sums, scratch); returns the sums of all stripes.
  // `with_mu`: dmu is among them. Stripes depend on the shape alone.
  template <typename Run>
  PrototypeSums<T> over_stripes(bool with_mu, const Run& run) {
    constexpr int64_t rows_of_stripe = 512, sums_bytes = int64_t{32} << 20;
    const int64_t of_mu = with_mu ? f.K * f.stride : 0, size = of_mu + 2 * f.padded;
    const int64_t fit = sums_bytes / (std::max<int64_t>(size, 1) * int64_t{sizeof(T)});
    // Stripes are summed in double, a stripe's blocks are not: many, where they are small.
    const int64_t most = std::clamp<int64_t>(fit / 8, 32, 1024);
    const int64_t wanted = std::min((f.N + rows_of_stripe - 1) / rows_of_stripe, most);
    const int64_t stripes = std::clamp<int64_t>(std::min(wanted, std::max<int64_t>(fit, 2)), 1,
                                                std::max<int64_t>(blocks(), 1));
    sums_ = Scratch<T>(stripes * size);
    const auto of_stripe = [&](int64_t s) {
      T* at = sums_.get() + s * size;
      return PrototypeSums<T>{at, at + of_mu, at + of_mu + f.padded};
    };
    torch::stable::parallel_for(0, stripes, 1, [&](int64_t begin, int64_t end) {
      const Scratch<T> scratch(kernels.scratch(f));
      for (int64_t s = begin; s < end; ++s) {
        std::fill_n(sums_.get() + s * size, size, T{0});
        run(s * blocks() / stripes, (s + 1) * blocks() / stripes, of_stripe(s), scratch.get());
      }
    });
    // In double, in ascending order: as exact for 32 stripes as for one.
    if (stripes > 1) {
      torch::stable::parallel_for(0, size, 8192, [&](int64_t begin, int64_t end) {
        T* into = sums_.get();
        for (int64_t k = begin; k < end; ++k) {
          double sum = into[k];
          for (int64_t s = 1; s < stripes; ++s) sum += into[s * size + k];
          into[k] = static_cast<T>(sum);
        }
      });
    }
    return of_stripe(0);
  }

  void write_prototypes(const PrototypeSums<T>& sums, Tensor& dmu) const {
    T* out = values<T>(dmu);
    torch::stable::parallel_for(
        0, f.K, std::max<int64_t>(1, 65536 / std::max<int64_t>(f.D, 1)),
        [&](int64_t begin, int64_t end) { kernels.finish(f, sums, begin, end, out); });
  }

  const PrototypeKernels<T>& kernels;
  Prototypes<T> f{};

 private:
  static int64_t up_to(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
  }

  int64_t grain() const {
    const int64_t work = f.block * f.K * (f.D + 8);
    return std::max<int64_t>(1, (int64_t{1} << 18) / std::max<int64_t>(work, 1));
  }

  void make_ready() {
    const int64_t panels = (f.K + kernels.columns - 1) / kernels.columns;
    memory_ = Scratch<T>(f.depth + f.K * f.stride + panels * kernels.columns * f.D + 2 * f.padded);
    T* at = memory_.get();
    const auto take = [&](int64_t count) {
      T* p = at;
      at += count;
      return p;
    };
    T* centre = take(f.depth);
    f.ready = take(f.K * f.stride), f.panels = take(panels * kernels.columns * f.D);
    f.norms = take(f.padded), f.offsets = take(f.padded);
    if (f.metric == PrototypeMetric::sqeuclidean || f.metric == PrototypeMetric::euclidean) {
      mean_of_finite(f.mu, f.K, f.D, centre);
      round_to_rows(centre);
      f.centre = centre;
    }
    const int64_t work = kernels.columns * (f.D + 8);
    torch::stable::parallel_for(
        0, panels, std::max<int64_t>(1, 65536 / work),
        [&](int64_t begin, int64_t end) { kernels.prepare(f, begin, end); });
  }

  // The centre in the dtype of x: then x - centre rounds least.
  void round_to_rows(T* centre) const {
    if constexpr (sizeof(T) == 4) {
      with_element(f.element, [&](auto element) {
        using S = decltype(element);
        if constexpr (!std::is_same_v<S, double>) {
          for (int64_t k = 0; k < f.D; ++k) {
            S rounded;
            narrow(centre[k], &rounded);
            // 0 where a half type cannot hold the mean.
            centre[k] = std::isfinite(widen(rounded)) ? widen(rounded) : T{0};
          }
        }
      });
    }
  }

  Scratch<T> memory_, sums_;
};

// Bits of `need`.
constexpr int64_t need_x = 1, need_mu = 2, need_prior = 4;

inline Tensor wanted(const Tensor& like, int64_t need, int64_t bit, std::vector<int64_t> sizes) {
  return empty(like, need & bit ? sizes : std::vector<int64_t>{0});
}

// (dx, dmu, dlog_prior) of what `run` does for a stripe; `io` learns what is wanted. With nothing
// wanted the rows' own results are computed all the same.
template <typename T, typename Run>
std::tuple<Tensor, Tensor, Tensor> gradients_of(PrototypeCall<T>& call, const Tensor& x,
                                                const Tensor& mu, int64_t need,
                                                PrototypeRows<T>& io, const Run& run) {
  Tensor dx = wanted(x, need, need_x, {x.size(0), x.size(1)});
  Tensor dmu = wanted(mu, need, need_mu, {mu.size(0), mu.size(1)});
  Tensor dlog_prior = wanted(mu, need, need_prior, {mu.size(0)});
  io.dx = need & need_x ? dx.mutable_data_ptr() : nullptr;
  io.want_mu = need & need_mu, io.want_prior = need & need_prior;
  const PrototypeSums<T> sums = call.over_stripes(io.want_mu, run);
  if (io.want_mu) call.write_prototypes(sums, dmu);
  if (io.want_prior) std::copy_n(sums.logit, mu.size(0), values<T>(dlog_prior));
  return {dx, dmu, dlog_prior};
}

}  // namespace fedkernels
