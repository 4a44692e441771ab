// The threads of a block and their scheduler. Each thread runs until it waits at a barrier or at an
// operation of its warp, or returns; what no hardware would finish is an Error that says which
// threads wait where.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "fiber.h"
#include "where.h"

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace cuda_host {

// A missing barrier shows in some order, seldom in all: tests run kernels in each.
enum class Order { ascending, descending, shuffled };
inline Order order = Order::ascending;
inline unsigned order_seed = 1;

enum class State : std::uint8_t { ready, at_barrier, at_warp, exited };

struct Thread {
  Fiber fiber;
  State state;
  uint3 index;
  // Where and for what it waits.
  const char* what;
  Where at;
  unsigned mask;                            // the lanes that an operation of the warp waits for
  void (*complete)(Thread*, unsigned);      // what happens when all of them are there
  alignas(16) unsigned char given[32];      // what the operation takes from this lane, and gives
  alignas(16) unsigned char received[16];
  int source;                               // the lane that a shuffle reads
};

// xorshift32, and the shuffle that it drives.
class Random {
 public:
  void seed(unsigned value) { state_ = value == 0 ? 1 : value; }

  void shuffle(int* values, int count) {
    for (int i = count - 1; i > 0; --i) {
      state_ ^= state_ << 13;
      state_ ^= state_ >> 17;
      state_ ^= state_ << 5;
      std::swap(values[i], values[state_ % static_cast<unsigned>(i + 1)]);
    }
  }

 private:
  unsigned state_ = 1;
};

// What a thread runs: a function without captures, and what it needs.
struct Body {
  void (*run)(const void*);
  const void* with;
};

class Block {
 public:
  // Runs `body` once per thread.
  void run(dim3 size, Body body) {
    count_ = static_cast<int>(size.x * size.y * size.z);
    body_ = body;
    failure_ = nullptr;
    if (static_cast<int>(threads_.size()) < count_) threads_.resize(count_);
    for (int i = 0; i < count_; ++i) {
      Thread& thread = threads_[i];
      thread.state = State::ready;
      const unsigned u = static_cast<unsigned>(i);
      thread.index = {u % size.x, u / size.x % size.y, u / (size.x * size.y)};
      thread.fiber.start(stacks_.stack(i), &Block::entry);
    }
    std::vector<int> warps((count_ + 31) / 32);
    for (std::size_t w = 0; w < warps.size(); ++w) warps[w] = static_cast<int>(w);
    if (order == Order::descending) std::reverse(warps.begin(), warps.end());
    for (;;) {
      if (order == Order::shuffled) random_.shuffle(warps.data(), static_cast<int>(warps.size()));
      bool moved = false;
      for (const int warp : warps) {
        bool again = step(warp);
        moved |= again;
        // In the shuffled order warps overtake each other at every operation, else at barriers.
        while (again && order != Order::shuffled) again = step(warp);
      }
      if (moved || pass_barrier()) continue;
      if (waiting() == 0) return;
      throw Error("threads wait for ever: " + describe());
    }
  }

  // Called on the fiber of the current thread: waits, and comes back when the scheduler says so.
  Thread& current() { return *current_; }
  int lane() const { return static_cast<int>(current_ - threads_.data()) % 32; }

  void wait_at_barrier(const char* what, int value, const Where& at) {
    current_->source = value;
    wait(State::at_barrier, what, at);
  }

  void wait_in_warp(unsigned mask, void (*complete)(Thread*, unsigned), const char* what,
                    const Where& at) {
    current_->mask = mask;
    current_->complete = complete;
    wait(State::at_warp, what, at);
  }

  // Of the last barrier: how many threads gave a value that is not 0.
  int barrier_count() const { return barrier_count_; }
  int size() const { return count_; }
  int index() const { return static_cast<int>(current_ - threads_.data()); }

  void seed(unsigned value) { random_.seed(value); }

 private:
  static void entry();

  void wait(State state, const char* what, const Where& at) {
    current_->state = state;
    current_->what = what;
    current_->at = at;
    current_->fiber.leave(false);
  }

  // Runs the ready threads of a warp until each waits, then completes what is complete. False if
  // there was nothing to do.
  bool step(int warp) {
    const int first = warp * 32, lanes = std::min(32, count_ - first);
    int at[32];
    for (int i = 0; i < lanes; ++i) at[i] = order == Order::descending ? lanes - 1 - i : i;
    if (order == Order::shuffled) random_.shuffle(at, lanes);
    bool moved = false;
    for (int i = 0; i < lanes; ++i) {
      Thread& thread = threads_[first + at[i]];
      if (thread.state != State::ready) continue;
      current_ = &thread;
      threadIdx = thread.index;
      thread.fiber.enter();
      if (failure_) std::rethrow_exception(failure_);
      moved = true;
    }
    return complete(first, lanes) || moved;
  }

  bool complete(int first, int lanes) {
    bool freed = false;
    Thread* warp = &threads_[first];
    for (int lane = 0; lane < lanes; ++lane) {
      const Thread& thread = warp[lane];
      if (thread.state != State::at_warp) continue;
      const unsigned mask = thread.mask;
      const auto fail = [&](const std::string& problem) {
        throw Error(std::string(thread.what) + " at " + line_of(thread.at) + ", thread " +
                    std::to_string(first + lane) + ": the mask " + problem);
      };
      if (!(mask >> lane & 1)) fail("does not name the lane itself");
      bool all_there = true;
      for (int other = 0; other < 32; ++other) {
        if (!(mask >> other & 1)) continue;
        const std::string name = "lane " + std::to_string(other);
        if (other >= lanes) fail("names " + name + ", which the block does not have");
        const Thread& peer = warp[other];
        if (peer.state == State::exited) fail("names " + name + ", which has returned");
        all_there &= peer.state == State::at_warp && peer.mask == mask &&
                     peer.complete == thread.complete && same_line(peer.at, thread.at);
      }
      if (!all_there) continue;
      thread.complete(warp, mask);
      for (int other = 0; other < 32; ++other) {
        if (mask >> other & 1) warp[other].state = State::ready;
      }
      freed = true;
    }
    return freed;
  }

  // Every thread of the block at one and the same barrier.
  bool pass_barrier() {
    if (waiting() == 0) return false;
    int nonzero = 0;
    for (int i = 0; i < count_; ++i) {
      const Thread& thread = threads_[i];
      if (thread.state != State::at_barrier || !same_line(thread.at, threads_[0].at)) return false;
      nonzero += thread.source != 0;
    }
    barrier_count_ = nonzero;
    for (int i = 0; i < count_; ++i) threads_[i].state = State::ready;
    return true;
  }

  int waiting() const {
    int count = 0;
    for (int i = 0; i < count_; ++i) count += threads_[i].state != State::exited;
    return count;
  }

  // "threads 0-47 at __syncthreads (k.cu:28), threads 48-63 have returned"
  std::string describe() const {
    const auto text = [](const Thread& thread) {
      if (thread.state == State::exited) return std::string(" returned");
      return std::string(" at ") + thread.what + " (" + line_of(thread.at) + ")";
    };
    std::string all;
    int groups = 0;
    for (int i = 0; i < count_;) {
      int end = i + 1;
      while (end < count_ && text(threads_[end]) == text(threads_[i])) ++end;
      if (++groups > 8) return all + ", ...";
      if (i > 0) all += ", ";
      all += end - i == 1 ? "thread " + std::to_string(i)
                          : "threads " + std::to_string(i) + "-" + std::to_string(end - 1);
      all += text(threads_[i]);
      i = end;
    }
    return all;
  }

  std::vector<Thread> threads_;
  Stacks stacks_;
  int count_ = 0;
  int barrier_count_ = 0;
  Thread* current_ = nullptr;
  Body body_{};
  std::exception_ptr failure_;
  Random random_;
};

inline Block block;

// No exception may leave a fiber: it is kept, and thrown again by the scheduler.
inline void Block::entry() {
  Thread& thread = block.current();
  thread.fiber.arrived();
  try {
    block.body_.run(block.body_.with);
  } catch (...) {
    block.failure_ = std::current_exception();
  }
  thread.state = State::exited;
  thread.fiber.leave(true);
  std::abort();  // nobody enters a thread that has returned
}

}  // namespace cuda_host

// A barrier is one place: two calls in two branches are divergence, whatever the hardware makes of
// it, and so is a thread that returned before it.
inline void __syncthreads(cuda_host::Where at = cuda_host::Where::current()) {
  cuda_host::block.wait_at_barrier("__syncthreads", 0, at);
}
inline int __syncthreads_count(int value, cuda_host::Where at = cuda_host::Where::current()) {
  cuda_host::block.wait_at_barrier("__syncthreads_count", value, at);
  return cuda_host::block.barrier_count();
}
inline int __syncthreads_or(int value, cuda_host::Where at = cuda_host::Where::current()) {
  cuda_host::block.wait_at_barrier("__syncthreads_or", value, at);
  return cuda_host::block.barrier_count() > 0;
}
inline int __syncthreads_and(int value, cuda_host::Where at = cuda_host::Where::current()) {
  cuda_host::block.wait_at_barrier("__syncthreads_and", value, at);
  return cuda_host::block.barrier_count() == cuda_host::block.size();
}
