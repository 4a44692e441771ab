// Entry points of faults.cuh.
#include "faults.cuh"

using namespace fedkernels;
using cuda_host::guarded;

FK_ENTRY(fault)(int64_t which, float* y) {
  return guarded([&] {
    switch (which) {
      case 0:
        FK_LAUNCH(some_skip_the_barrier, 1, 64, 0, nullptr, y);
        break;
      case 1:
        FK_LAUNCH(a_barrier_in_each_branch, 1, 64, 0, nullptr, y);
        break;
      case 2:
        FK_LAUNCH(returned_lanes_in_the_mask, 1, 32, 0, nullptr, y, 20);
        break;
      case 3:
        FK_LAUNCH(lane_outside_its_mask, 1, 32, 0, nullptr, y);
        break;
      case 4:
        FK_LAUNCH(mask_beyond_the_block, 1, 20, 0, nullptr, y);
        break;
      case 5:
        FK_LAUNCH(half_at_a_shuffle_half_at_the_barrier, 1, 32, 0, nullptr, y);
        break;
    }
  });
}

FK_ENTRY(rotate)(float* y, int64_t barrier) {
  return guarded([&] { FK_LAUNCH(rotate_block, 1, 64, 0, nullptr, y, barrier != 0); });
}

FK_ENTRY(swap)(float* y, int64_t barrier) {
  return guarded([&] { FK_LAUNCH(swap_in_warp, 1, 32, 0, nullptr, y, barrier != 0); });
}

FK_ENTRY(stale)(float* y, double* z, float* dynamic) {
  return guarded([&] {
    FK_LAUNCH((stale_static<float>), 2, 32, 0, nullptr, y);
    FK_LAUNCH((stale_static<double>), 2, 32, 0, nullptr, z);
    FK_LAUNCH(stale_dynamic, 2, 32, 32 * 4, nullptr, dynamic);
  });
}

FK_ENTRY(copy_tile)(const float* x, float* y, int64_t offset, int64_t wait) {
  return guarded(
      [&] { FK_LAUNCH(copy, 1, 32, 0, nullptr, x, y, static_cast<int>(offset), wait != 0); });
}

FK_ENTRY(past_static)(float* y, int64_t past) {
  return guarded(
      [&] { FK_LAUNCH(past_static_shared, 1, 32, 0, nullptr, y, static_cast<int>(past)); });
}

FK_ENTRY(past_dynamic)(float* y, int64_t past) {
  return guarded(
      [&] { FK_LAUNCH(past_dynamic_shared, 1, 32, 128, nullptr, y, static_cast<int>(past)); });
}

FK_ENTRY(past_input)(const float* x, float* y, int64_t past) {
  return guarded([&] { FK_LAUNCH(past_global, 1, 32, 0, nullptr, x, y, static_cast<int>(past)); });
}

FK_ENTRY(overflow)(float* y, int64_t rows) {
  return guarded([&] { FK_LAUNCH(index_overflows, 3, 32, 0, nullptr, y, static_cast<int>(rows)); });
}

FK_ENTRY(launch_nothing)(int64_t gx, int64_t gy, int64_t gz, int64_t bx, int64_t bz, int64_t bytes,
                         float* y) {
  return guarded([&] {
    const auto u = [](int64_t v) { return static_cast<unsigned>(v); };
    FK_LAUNCH(nothing, dim3(u(gx), u(gy), u(gz)), dim3(u(bx), 1, u(bz)),
              static_cast<std::size_t>(bytes), nullptr, y);
  });
}

FK_ENTRY(make_grid)(int64_t x, int64_t y, int64_t z) {
  return guarded([&] { grid_of(x, y, z); });
}

FK_ENTRY(static_too_large)(float* y) {
  return guarded([&] { FK_LAUNCH(much_static_shared, 1, 32, 0, nullptr, y); });
}
