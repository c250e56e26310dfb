#include "fibres.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define MDPRUNE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MDPRUNE_ASAN 1
#endif
#endif
#if MDPRUNE_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace mdprune::cuda::emulate {
namespace {

constexpr std::size_t kStackBytes = std::size_t{256} << 10;

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Fibre {
  State state = State::kDone;
  uint3 index{};
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context{};
#endif
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;         // AddressSanitizer's
  const void* stack_begin = nullptr;  // and what it has to know of the stack
  std::size_t stack_bytes = 0;
};

// The lanes that have come to an instruction of the whole warp.
struct Warp {
  void* values[32] = {};
  unsigned arrived = 0;
  const char* what = nullptr;
};

std::mutex one_launch;
Fibre host;
std::vector<Fibre> fibres;
std::vector<Warp> warps;
unsigned threads = 0;  // of a block
unsigned current = 0;
unsigned ready = 0;  // fibres in that state
unsigned waiting = 0;
std::size_t blocks = 0;
const std::function<void()>* body = nullptr;
unsigned char* shared_memory = nullptr;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulated kernel: %s (block %u %u %u, thread %u)\n", what, blockIdx.x,
               blockIdx.y, blockIdx.z, current);
  std::abort();
}

#if defined(__x86_64__)
extern "C" void mdprune_emulate_switch(void** save, void* to);
__asm__(R"(
.text
.local mdprune_emulate_switch
.type mdprune_emulate_switch, @function
mdprune_emulate_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size mdprune_emulate_switch, . - mdprune_emulate_switch
)");
#endif

void arrive([[maybe_unused]] Fibre& fibre) {
#if MDPRUNE_ASAN
  const void** begin = host.stack_begin == nullptr ? &host.stack_begin : nullptr;
  __sanitizer_finish_switch_fiber(fibre.fake_stack, begin,
                                  begin != nullptr ? &host.stack_bytes : nullptr);
#endif
}

void switch_to(Fibre& from, Fibre& to) {
#if MDPRUNE_ASAN
  const bool leaves = &from != &host && from.state == State::kDone;
  __sanitizer_start_switch_fiber(leaves ? nullptr : &from.fake_stack, to.stack_begin,
                                 to.stack_bytes);
#endif
  threadIdx = to.index;
#if defined(__x86_64__)
  mdprune_emulate_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
  arrive(from);
}

// The next thread that can run: of this warp, else of the first one in the order of warps.
unsigned find_ready(bool any_warp) {
  const unsigned first = current / 32 * 32;
  const unsigned lanes = threads - first < 32 ? threads - first : 32;
  for (unsigned i = 1; i <= lanes && !any_warp; ++i) {
    const unsigned lane = first + (current - first + i) % lanes;
    if (fibres[lane].state == State::kReady) return lane;
  }
  for (unsigned i = 0; i < threads; ++i) {
    const unsigned thread = reversed ? (threads - 1 - i) / 32 * 32 + i % 32 : i;
    if (thread < threads && fibres[thread].state == State::kReady) return thread;
  }
  fail("no thread is ready");
}

// Gives way to another thread, or to the launch if all are done.
void yield() {
  Fibre& self = fibres[current];
  const bool all_wait = ready == 0;
  if (all_wait) {
    for (unsigned i = 0; i < threads; ++i) {
      if (fibres[i].state == State::kInWarp) fail(warps[i / 32].what);
    }
    ready = waiting;
    waiting = 0;
    for (unsigned i = 0; i < threads; ++i) {
      if (fibres[i].state == State::kAtBarrier) fibres[i].state = State::kReady;
    }
    if (ready == 0) {
      switch_to(self, host);
      return;
    }
  }
  const unsigned next = find_ready(all_wait);
  if (next == current) return;
  current = next;
  switch_to(self, fibres[next]);
}

[[noreturn]] void enter() {
  arrive(fibres[current]);
  (*body)();
  fibres[current].state = State::kDone;
  --ready;
  yield();
  std::abort();  // a thread that is done does not come back
}

void make_fibre(Fibre& fibre) {
  if (fibre.stack == nullptr) {
    fibre.stack.reset(new char[kStackBytes]);
    fibre.stack_begin = fibre.stack.get();
    fibre.stack_bytes = kStackBytes;
  }
  fibre.state = State::kReady;
  fibre.fake_stack = nullptr;
#if defined(__x86_64__)
  const auto top = reinterpret_cast<std::uintptr_t>(fibre.stack.get() + kStackBytes) & ~15UL;
  // Six registers, the address that the switch returns to, and the one that `enter` never does.
  auto** frame = reinterpret_cast<void**>(top) - 8;
  std::memset(frame, 0, 8 * sizeof(void*));
  frame[6] = reinterpret_cast<void*>(&enter);
  fibre.stack_pointer = frame;
#else
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.stack.get();
  fibre.context.uc_stack.ss_size = kStackBytes;
  makecontext(&fibre.context, reinterpret_cast<void (*)()>(&enter), 0);
#endif
}

void run_block(dim3 block) {
  warps.assign((threads + 31) / 32, Warp{});
  for (unsigned i = 0; i < threads; ++i) {
    fibres[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    make_fibre(fibres[i]);
  }
  ++blocks;
  ready = threads;
  waiting = 0;
  current = reversed ? (threads - 1) / 32 * 32 : 0;
  switch_to(host, fibres[current]);
}

}  // namespace

void run(dim3 grid, dim3 block, std::size_t shared, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(one_launch);
  threads = block.x * block.y * block.z;
  if (fibres.size() < threads) fibres.resize(threads);
  const std::unique_ptr<unsigned char[]> memory(new unsigned char[shared + 1]);
  shared_memory = memory.get();
  body = &kernel;
  host.stack_begin = nullptr;
  blockDim = block;
  gridDim = grid;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        std::memset(shared_memory, 0xff, shared);
        run_block(block);
      }
    }
  }
}

unsigned char* dynamic_shared() { return shared_memory; }

unsigned thread_number() { return current; }

std::size_t block_number() { return blocks; }

void block_barrier() {
  fibres[current].state = State::kAtBarrier;
  --ready;
  ++waiting;
  yield();
}

void meet_warp(unsigned mask, const char* what, void* value, Meet meet) {
  Warp& warp = warps[current / 32];
  const unsigned first = current / 32 * 32;
  if (warp.arrived != 0 && std::strcmp(warp.what, what) != 0)
    fail("lanes meet at two instructions");
  if ((mask >> (current - first) & 1U) == 0) fail("a lane is not in its own mask");
  unsigned live = 0;
  for (unsigned lane = 0; lane < 32 && first + lane < threads; ++lane) {
    if (fibres[first + lane].state != State::kDone) live |= 1U << lane;
  }
  warp.what = what;
  warp.values[current - first] = value;
  warp.arrived |= 1U << (current - first);
  if (warp.arrived != (mask & live)) {
    fibres[current].state = State::kInWarp;
    --ready;
    yield();
    return;
  }
  meet(warp.values);
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((warp.arrived >> lane & 1U) == 0) continue;
    Fibre& fibre = fibres[first + lane];
    if (fibre.state == State::kInWarp) {
      fibre.state = State::kReady;
      ++ready;
    }
    warp.values[lane] = nullptr;
  }
  warp.arrived = 0;
}

}  // namespace mdprune::cuda::emulate
