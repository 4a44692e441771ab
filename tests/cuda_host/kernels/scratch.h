// Scratch of a call: each piece an allocation of its own, so that AddressSanitizer sees its end,
// and NaN before anything is written.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

class Scratch {
 public:
  void* take(std::int64_t bytes) {
    const std::size_t size = static_cast<std::size_t>(bytes);
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, size) != 0) throw std::bad_alloc();
    std::memset(memory, 0xff, size);
    pieces_.emplace_back(memory, &std::free);
    return memory;
  }

 private:
  std::vector<std::unique_ptr<void, void (*)(void*)>> pieces_;
};
