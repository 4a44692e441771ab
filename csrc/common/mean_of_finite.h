// The centre of points for distances: the mean of the finite ones, in double, one rounding. Of one
// side's points alone: a centre that the other side enters would let one NaN point of it make every
// distance NaN.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fedkernels {

template <typename T>
void mean_of_finite(const T* points, int64_t count, int64_t D, T* centre) {
  std::vector<uint8_t> finite(count);
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, 65536 / std::max<int64_t>(D, 1)),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) {
                                  T rest = 0;  // value - value is NaN for what is not finite
                                  for (int64_t k = 0; k < D; ++k) {
                                    const T value = points[i * D + k];
                                    rest += value - value;
                                  }
                                  finite[i] = rest == 0;
                                }
                              });
  int64_t used = 0;
  for (const uint8_t f : finite) used += f;
  torch::stable::parallel_for(0, D, std::max<int64_t>(16, 262144 / std::max<int64_t>(count, 1)),
                              [&](int64_t begin, int64_t end) {
                                std::vector<double> sum(end - begin);
                                for (int64_t i = 0; i < count; ++i) {
                                  if (!finite[i]) continue;
                                  const T* point = points + i * D + begin;
                                  for (int64_t k = 0; k < end - begin; ++k) sum[k] += point[k];
                                }
                                for (int64_t k = begin; k < end; ++k) {
                                  centre[k] =
                                      static_cast<T>(sum[k - begin] / std::max<int64_t>(used, 1));
                                }
                              });
}

}  // namespace fedkernels
