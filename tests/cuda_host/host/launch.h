// Launches: refused as CUDA refuses them, else block after block. Kernels that wait for another
// block never finish here, as they may not on a GPU.
#pragma once

#include <string>

#include "block.h"
#include "copy.h"
#include "shared.h"

using cudaStream_t = void*;

namespace cuda_host {

inline void check_launch(dim3 grid, dim3 block) {
  const auto text = [](const char* name, dim3 d) {
    return std::string(name) + " (" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " +
           std::to_string(d.z) + ")";
  };
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535) {
    throw Error(text("grid", grid) + ": 1 to 2147483647, 65535, 65535");
  }
  const auto threads = std::uint64_t{block.x} * block.y * block.z;
  if (threads < 1 || threads > 1024 || block.z > 64) {
    throw Error(text("block", block) + ": 1 to 1024 threads, at most 64 in z");
  }
}

inline void launch(dim3 grid, dim3 size, std::size_t shared_bytes, Body body) {
  check_launch(grid, size);
  shared.start_launch(shared_bytes);
  gridDim = grid;
  blockDim = size;
  block.seed(order_seed);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        shared.start_block();
        forget_copies(static_cast<int>(size.x * size.y * size.z));
        try {
          block.run(size, body);
        } catch (const Error& error) {
          throw Error("block (" + std::to_string(x) + ", " + std::to_string(y) + ", " +
                      std::to_string(z) + "): " + error.what());
        }
      }
    }
  }
}

// What an entry point of a test program does: the message of an error, or null.
template <typename F>
const char* guarded(const F& body) {
  static std::string message;
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace cuda_host

namespace fedkernels {

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            std::size_t shared_bytes, cudaStream_t, Arguments... arguments) {
  try {
    const auto body = [&] { kernel(arguments...); };
    cuda_host::launch(grid, block, shared_bytes,
                      {[](const void* f) { (*static_cast<decltype(&body)>(f))(); }, &body});
  } catch (const cuda_host::Error& error) {
    throw cuda_host::Error(std::string(name) + ": " + error.what());
  }
}

inline int shared_memory_limit() { return cuda_host::shared_limit; }
inline int multiprocessor_count() { return 3; }  // few, so that a grid that strides does stride

}  // namespace fedkernels

#define FK_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::fedkernels::launch(#kernel, kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

// A function that Python calls: FK_ENTRY(name)(const float* x, int64_t n) { return guarded(...); }
#define FK_ENTRY(name) \
  extern "C" __attribute__((visibility("default"), used)) const char* name

// The settings of a run, for Python.
extern "C" __attribute__((visibility("default"), used)) inline void cuda_host_settings(
    int order, unsigned seed, int shared_limit) {
  cuda_host::order = static_cast<cuda_host::Order>(order);
  cuda_host::order_seed = seed;
  cuda_host::shared_limit = shared_limit;
}
