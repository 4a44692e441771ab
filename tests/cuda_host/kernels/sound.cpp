// Entry points of sound.cuh.
#include "sound.cuh"

using namespace fedkernels;
using cuda_host::guarded;

FK_ENTRY(row_reductions)(const float* x, float* y, float* z, int64_t rows, int64_t columns) {
  return guarded([&] {
    FK_LAUNCH((reduce_rows<float, 128>), grid_of(rows), 128, 0, nullptr, x, y, z, columns);
  });
}

FK_ENTRY(row_reductions_double)(const double* x, double* y, double* z, int64_t rows,
                                int64_t columns) {
  return guarded([&] {
    FK_LAUNCH((reduce_rows<double, 32>), grid_of(rows), 32, 0, nullptr, x, y, z, columns);
  });
}

FK_ENTRY(exchanges)(int* out) {
  return guarded([&] { FK_LAUNCH(exchange, 1, 32, 0, nullptr, out); });
}

FK_ENTRY(counts)(unsigned long long* count, int* votes) {
  return guarded([&] { FK_LAUNCH(count_threads, dim3(3, 2, 2), 96, 0, nullptr, count, votes); });
}

FK_ENTRY(multiply_3xtf32)(const float* A, const float* B, float* C, int64_t K) {
  return guarded(
      [&] { FK_LAUNCH(product_3xtf32, 1, 32, 0, nullptr, A, B, C, static_cast<int>(K)); });
}

FK_ENTRY(multiply_bf16)(const uint16_t* A, const uint16_t* B, float* C, int64_t K) {
  return guarded([&] { FK_LAUNCH(product_bf16, 1, 32, 0, nullptr, A, B, C, static_cast<int>(K)); });
}

FK_ENTRY(copies)(const float* x, float* narrow, float* wide, int64_t valid) {
  return guarded([&] {
    FK_LAUNCH((copy_some<4>), 1, 32, 0, nullptr, x, narrow, static_cast<int>(valid));
    FK_LAUNCH((copy_some<8>), 1, 32, 0, nullptr, x, wide, static_cast<int>(valid));
  });
}

FK_ENTRY(exponentials)(const float* x, float* exact, float* approx) {
  return guarded([&] { FK_LAUNCH(powers, 1, 32, 0, nullptr, x, exact, approx); });
}

FK_ENTRY(squares)(const float* x, const float* y, float* out) {
  return guarded([&] { FK_LAUNCH(difference_of_squares, 1, 32, 0, nullptr, x, y, out); });
}

// Row and column of every value of a fragment, lane by lane: (32, values, 2).
FK_ENTRY(fragment)(int64_t which, int64_t values, int64_t* out) {
  return guarded([&] {
    Place (*const places[])(int, int) = {tf32_a, tf32_b, bf16_a, bf16_b, mma_d};
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < values; ++i) {
        const Place at = places[which](lane, i);
        *out++ = at.row;
        *out++ = at.column;
      }
    }
  });
}
