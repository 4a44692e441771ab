// Operations of a warp: shuffles, votes, __syncwarp. All lanes of the mask meet at one line; the
// scheduler then does the exchange once, for all of them.
#pragma once

#include <cstring>
#include <type_traits>

#include "block.h"

namespace cuda_host {

constexpr unsigned every_lane = 0xffffffffu;

// Every lane of the mask receives what its source gave; one outside the mask has given nothing.
inline void complete_shuffle(Thread* warp, unsigned mask) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const int source = warp[lane].source;
    if (mask >> source & 1) {
      std::memcpy(warp[lane].received, warp[source].given, 8);
    } else {
      std::memset(warp[lane].received, 0xff, 8);
    }
  }
}

template <typename T>
T shuffle(unsigned mask, T value, int source, const char* what, const Where& at) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4 && sizeof(T) <= 8);
  Thread& thread = block.current();
  std::memcpy(thread.given, &value, sizeof(T));
  thread.source = source;
  block.wait_in_warp(mask, complete_shuffle, what, at);
  std::memcpy(&value, thread.received, sizeof(T));
  return value;
}

// `to` if it lies in the same group of `width` lanes, else the lane itself.
inline int within(int to, int width) {
  const int lane = block.lane();
  return to >= 0 && to / width == lane / width ? to : lane;
}

inline void complete_vote(Thread* warp, unsigned mask) {
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1 && warp[lane].source != 0) ballot |= 1u << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) std::memcpy(warp[lane].received, &ballot, sizeof(ballot));
  }
}

inline unsigned vote(unsigned mask, int value, const char* what, const Where& at) {
  Thread& thread = block.current();
  thread.source = value != 0;
  block.wait_in_warp(mask, complete_vote, what, at);
  unsigned ballot;
  std::memcpy(&ballot, thread.received, sizeof(ballot));
  return ballot;
}

inline void complete_nothing(Thread*, unsigned) {}

}  // namespace cuda_host

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
              cuda_host::Where at = cuda_host::Where::current()) {
  const int source = cuda_host::block.lane() / width * width + (lane & (width - 1));
  return cuda_host::shuffle(mask, value, source, "__shfl_sync", at);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int step, int width = 32,
                  cuda_host::Where at = cuda_host::Where::current()) {
  // An upper group may read a lower one; the reverse gives the lane's own value.
  const int to = cuda_host::block.lane() ^ step;
  const int source = to / width > cuda_host::block.lane() / width ? cuda_host::block.lane() : to;
  return cuda_host::shuffle(mask, value, source, "__shfl_xor_sync", at);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned step, int width = 32,
                 cuda_host::Where at = cuda_host::Where::current()) {
  const int to = cuda_host::block.lane() - static_cast<int>(step);
  return cuda_host::shuffle(mask, value, cuda_host::within(to, width), "__shfl_up_sync", at);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned step, int width = 32,
                   cuda_host::Where at = cuda_host::Where::current()) {
  const int to = cuda_host::block.lane() + static_cast<int>(step);
  return cuda_host::shuffle(mask, value, cuda_host::within(to, width), "__shfl_down_sync", at);
}

inline unsigned __ballot_sync(unsigned mask, int value,
                              cuda_host::Where at = cuda_host::Where::current()) {
  return cuda_host::vote(mask, value, "__ballot_sync", at);
}
inline int __any_sync(unsigned mask, int value,
                      cuda_host::Where at = cuda_host::Where::current()) {
  return cuda_host::vote(mask, value, "__any_sync", at) != 0;
}
inline int __all_sync(unsigned mask, int value,
                      cuda_host::Where at = cuda_host::Where::current()) {
  return cuda_host::vote(mask, value, "__all_sync", at) == mask;
}

inline void __syncwarp(unsigned mask = cuda_host::every_lane,
                       cuda_host::Where at = cuda_host::Where::current()) {
  cuda_host::block.wait_in_warp(mask, cuda_host::complete_nothing, "__syncwarp", at);
}
