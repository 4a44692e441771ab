// cp.async: the bytes arrive when the thread waits for their group, no sooner. Until then the
// target holds 0xff: a reader who does not wait, or who still needs what was there, sees it.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "block.h"

namespace cuda_host {

struct Copy {
  void* to;
  const void* from;  // null: zeros
  std::size_t bytes;
};

// Per thread: the groups that are closed, oldest first, and the open one at the back.
inline std::vector<std::vector<std::vector<Copy>>> copies;

inline void forget_copies(int threads) {
  if (static_cast<int>(copies.size()) < threads) copies.resize(threads);
  for (auto& groups : copies) groups.assign(1, {});
}

template <int bytes>
void cp_async(void* shared, const void* global, bool valid = true, Where at = Where::current()) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  const auto address = reinterpret_cast<std::uintptr_t>(shared) |
                       reinterpret_cast<std::uintptr_t>(global);
  if (address % bytes != 0) {
    throw Error("cp.async of " + std::to_string(bytes) + " bytes at " + line_of(at) + ", thread " +
                std::to_string(block.index()) + ": an address is not aligned to them");
  }
  std::memset(shared, 0xff, bytes);
  copies[block.index()].back().push_back({shared, valid ? global : nullptr, bytes});
}

inline void cp_commit() { copies[block.index()].emplace_back(); }

template <int pending>
void cp_wait() {
  auto& groups = copies[block.index()];
  while (groups.size() > pending + 1) {
    for (const Copy& copy : groups.front()) {
      if (copy.from == nullptr) {
        std::memset(copy.to, 0, copy.bytes);
      } else {
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
    }
    groups.erase(groups.begin());
  }
}

}  // namespace cuda_host
