// Shared memory of a block, filled with 0xff (NaN, -1) when the block starts: what another block
// left there is garbage on a GPU.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "where.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)0)
#endif

namespace cuda_host {

constexpr std::size_t static_limit = 48 * 1024;  // CUDA's, for every architecture

// Static and dynamic shared memory together, of the smallest architecture that is built (sm_80). A
// test of a launcher that asks the device sets more (at most 232,448, from sm_90 on).
inline int shared_limit = 166912;

// A run of bytes that starts at a multiple of 16 and, so that nobody relies on more, of no more;
// under ASan both neighbours are out of bounds.
class Region {
 public:
  explicit Region(std::size_t bytes) : bytes_(bytes) {
    memory_ = static_cast<char*>(std::aligned_alloc(32, total()));
    ASAN_POISON_MEMORY_REGION(memory_, total());
    ASAN_UNPOISON_MEMORY_REGION(data(), bytes);
  }
  Region(Region&& other) noexcept : bytes_(other.bytes_), memory_(other.memory_) {
    other.memory_ = nullptr;
  }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  ~Region() {
    if (memory_ == nullptr) return;
    ASAN_UNPOISON_MEMORY_REGION(memory_, total());
    std::free(memory_);
  }

  char* data() const { return memory_ + 16; }
  std::size_t bytes() const { return bytes_; }
  void fill() const { std::memset(data(), 0xff, bytes_); }

 private:
  std::size_t total() const { return (bytes_ + 48 + 31) / 32 * 32; }

  std::size_t bytes_;
  char* memory_;
};

// The shared memory of the block that runs: the launch's dynamic part, and static variables in the
// order in which the first thread comes across them.
class Shared {
 public:
  void start_launch(std::size_t dynamic_bytes) {
    statics_.clear();
    dynamic_.clear();
    dynamic_.emplace_back(dynamic_bytes);
    check();
  }

  void start_block() {
    for (const auto& s : statics_) s.region.fill();
    dynamic_[0].fill();
  }

  char* dynamic() const { return dynamic_[0].data(); }

  // The variable that `key` stands for: one address per declaration and template instance.
  char* variable(const void* key, std::size_t bytes) {
    for (const auto& s : statics_) {
      if (s.key == key) return s.region.data();
    }
    statics_.push_back({key, Region(bytes)});
    statics_.back().region.fill();
    check();
    return statics_.back().region.data();
  }

 private:
  struct Static {
    const void* key;
    Region region;
  };

  void check() const {
    std::size_t statics = 0;
    for (const auto& s : statics_) statics += s.region.bytes();
    const std::size_t all = statics + dynamic_[0].bytes();
    if (statics > static_limit) {
      throw Error(std::to_string(statics) + " bytes of static shared memory, more than 48 KiB");
    }
    if (all > static_cast<std::size_t>(shared_limit)) {
      throw Error(std::to_string(all) + " bytes of shared memory, more than " +
                  std::to_string(shared_limit));
    }
  }

  std::vector<Static> statics_;
  std::vector<Region> dynamic_;
};

inline Shared shared;

}  // namespace cuda_host

// Not `__shared__`: g++ gives a static variable of a template no section to find it in, so it would
// keep the last block's value.
#define FK_SHARED(type, name, ...)                                               \
  static char name##_key_;                                                       \
  typedef type name##_type_ __VA_ARGS__;                                         \
  auto& name = *reinterpret_cast<name##_type_*>(                                 \
      ::cuda_host::shared.variable(&name##_key_, sizeof(name##_type_)))
#define FK_DYNAMIC_SHARED(type, name) \
  type* name = reinterpret_cast<type*>(::cuda_host::shared.dynamic())
