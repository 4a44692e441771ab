// One stack per thread of a block, and the switch between them: six pushes on x86-64, ucontext
// elsewhere and under ASan, which has to be told about each switch.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_ADDRESS__) || !defined(__x86_64__)
#define CUDA_HOST_UCONTEXT
#include <ucontext.h>
#endif

namespace cuda_host {

// Stacks with an inaccessible page below each: a kernel that overruns its stack dies there. Pages
// are touched by the fibers only, so unused ones cost nothing.
class Stacks {
 public:
  static constexpr std::size_t bytes = 256 * 1024;

  char* stack(std::size_t i) {
    while (stacks_.size() <= i) stacks_.push_back(make());
    return stacks_[i];
  }

 private:
  static char* make() {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
      throw std::runtime_error("no memory for the stack of a fiber");
    }
    return static_cast<char*>(memory) + page;
  }

  std::vector<char*> stacks_;  // kept until the process ends
};

#if defined(CUDA_HOST_UCONTEXT)

class Fiber {
 public:
  void start(char* stack, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = Stacks::bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }

  // From the scheduler into the fiber, until the fiber calls `leave`.
  void enter() {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, context_.uc_stack.ss_sp, context_.uc_stack.ss_size);
#endif
    swapcontext(&outside_, &context_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  void leave(bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_, outside_stack_, outside_bytes_);
#endif
    (void)for_good;
    swapcontext(&context_, &outside_);
    arrived();
  }

  // The first thing that an entered fiber does.
  void arrived() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_, &outside_stack_, &outside_bytes_);
#endif
  }

 private:
  ucontext_t context_;
  void* fake_ = nullptr;
  static inline ucontext_t outside_;
  static inline const void* outside_stack_ = nullptr;
  static inline std::size_t outside_bytes_ = 0;
};

#else

// Keeps the registers that a call may not change, stores the stack in *from and goes on on `to`.
[[gnu::naked, gnu::noinline]] inline void switch_stack(void** /*from*/, void* /*to*/) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}

class Fiber {
 public:
  void start(char* stack, void (*entry)()) {
    // The stack top is what a call leaves: 16-byte aligned before the return address, here 0.
    void** top = reinterpret_cast<void**>(
        reinterpret_cast<std::uintptr_t>(stack + Stacks::bytes) & ~std::uintptr_t{15});
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_ = top;
  }

  // From the scheduler into the fiber, until the fiber calls `leave`.
  void enter() { switch_stack(&outside_, stack_); }
  void leave(bool /*for_good*/) { switch_stack(&stack_, outside_); }
  void arrived() {}

 private:
  void* stack_ = nullptr;
  static inline void* outside_ = nullptr;
};

#endif

}  // namespace cuda_host
