// Which instruction set runs. Vector code is compiled once per set (common/each_capability.h) and
// chosen here, once per process; FEDKERNELS_CPU_CAPABILITY=plain|avx2|avx512 forces one.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fedkernels {

enum class Capability { plain, avx2, avx512 };

inline const char* name_of(Capability capability) {
  constexpr const char* names[] = {"plain", "avx2", "avx512"};
  return names[static_cast<int>(capability)];
}

// The best set that this processor has and that was compiled.
inline Capability best_capability() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c")) {
    return Capability::plain;
  }
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return wide ? Capability::avx512 : Capability::avx2;
#else
  return Capability::plain;
#endif
}

// The set that runs; throws std::invalid_argument if the forced one is unknown or missing here.
inline Capability capability() {
  static const Capability chosen = [] {
    const char* forced = std::getenv("FEDKERNELS_CPU_CAPABILITY");
    const Capability best = best_capability();
    if (forced == nullptr || *forced == '\0') return best;
    for (const Capability c : {Capability::plain, Capability::avx2, Capability::avx512}) {
      if (std::string(forced) != name_of(c)) continue;
      if (c <= best) return c;
      throw std::invalid_argument("FEDKERNELS_CPU_CAPABILITY=" + std::string(forced) +
                                  ": this processor has only " + name_of(best));
    }
    throw std::invalid_argument("FEDKERNELS_CPU_CAPABILITY must be plain, avx2 or avx512, got " +
                                std::string(forced));
  }();
  return chosen;
}

}  // namespace fedkernels
