#include "fibres.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

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
  void* stack_pointer = nullptr;
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

// Keeps the registers that a call keeps on this stack and takes those of another.
extern "C" void mdprune_emulate_switch(void** save, void* to);
#if defined(__x86_64__)
constexpr std::size_t kSavedWords = 8;
constexpr std::size_t kReturnWord = 6;
__asm__(R"(
.text
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
#elif defined(__aarch64__)
constexpr std::size_t kSavedWords = 20;
constexpr std::size_t kReturnWord = 11;
__asm__(R"(
.text
.type mdprune_emulate_switch, %function
mdprune_emulate_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size mdprune_emulate_switch, . - mdprune_emulate_switch
)");
#else
#error "fibres are not written for this processor"
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
  mdprune_emulate_switch(&from.stack_pointer, to.stack_pointer);
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
  const auto end = reinterpret_cast<std::uintptr_t>(fibre.stack.get() + kStackBytes);
  auto** const frame = reinterpret_cast<void**>(end & ~std::uintptr_t{15}) - kSavedWords;
  std::memset(frame, 0, kSavedWords * sizeof(void*));
  frame[kReturnWord] = reinterpret_cast<void*>(&enter);
  fibre.stack_pointer = frame;
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
  const std::size_t count = std::size_t{grid.x} * grid.y * grid.z;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t at = reversed ? count - 1 - i : i;
    blockIdx = {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                static_cast<unsigned>(at / grid.x / grid.y)};
    std::memset(shared_memory, 0xff, shared);
    run_block(block);
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
