#include "simt.h"

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

simt::Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt::detail {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kStackBytes = 64 * 1024;
constexpr std::size_t kSharedAlignment = 128;

// ---- contexts: two ways to leave one stack and continue on another

#if defined(__x86_64__)

// Saves what the calling convention asks a function to preserve, and the stack pointer with it.
extern "C" void simt_switch(void** save, void* resume);
asm(R"(
.text
.globl simt_switch
.type simt_switch, @function
simt_switch:
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
.size simt_switch, .-simt_switch
)");

class Context {
 public:
  void start(char* stack, void (*entry)()) {
    constexpr int kSavedRegisters = 6;
    // `ret` finds the entry here and leaves the stack as a call would: a multiple of 16, less 8.
    void** top = reinterpret_cast<void**>(stack + kStackBytes - 16);
    *top = reinterpret_cast<void*>(entry);
    stack_pointer_ = top - kSavedRegisters;
    std::fill(top - kSavedRegisters, top, nullptr);
  }
  void switch_to(Context& other) { simt_switch(&stack_pointer_, other.stack_pointer_); }

 private:
  void* stack_pointer_ = nullptr;
};

#else

class Context {
 public:
  void start(char* stack, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&context_, &other.context_); }

 private:
  ucontext_t context_;
};

#endif

// ---- one block

enum class State { kReady, kBarrier, kShuffle, kExited };

struct Thread {
  Context context;
  Dim3 index;
  State state;
  std::source_location where;  // of the barrier or shuffle it waits at
  unsigned shuffles;           // met so far
};

struct Warp {
  // Two sets of slots take turns, so that a fast lane's next value cannot overwrite one not yet
  // read.
  alignas(kLaneBytes) char slots[2][kWarp][kLaneBytes];
};

struct Block {
  const std::function<void()>* kernel = nullptr;
  Context scheduler;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned current = 0;
  std::string error;  // set by a thread that cannot go on
  std::vector<char> dynamic_memory;
  std::map<const void*, std::vector<char>> static_memory;
};

Block* block = nullptr;

char* align(std::vector<char>& memory) {
  void* start = memory.data();
  std::size_t space = memory.size();
  return static_cast<char*>(std::align(kSharedAlignment, 0, start, space));
}

// All bits set is a NaN in every floating-point type.
void poison(std::vector<char>& memory) { std::fill(memory.begin(), memory.end(), '\xff'); }

Thread& current_thread() { return block->threads[block->current]; }

void leave(State state) {
  Thread& thread = current_thread();
  thread.state = state;
  thread.context.switch_to(block->scheduler);
}

void fail(const std::string& message) {
  block->error = message;
  leave(State::kExited);
}

void enter() {
  (*block->kernel)();
  leave(State::kExited);
}

std::string describe(const std::source_location& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

bool same_place(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::strcmp(a.file_name(), b.file_name()) == 0;
}

// "barrier at f.cuh:7 (32 threads, first 0), exited (1 thread, first 31)"
std::string describe_threads() {
  std::map<std::string, std::pair<unsigned, unsigned>> groups;  // place to (count, first)
  for (unsigned t = 0; t < block->threads.size(); ++t) {
    const Thread& thread = block->threads[t];
    std::string place = "exited";
    if (thread.state == State::kBarrier) place = "barrier at " + describe(thread.where);
    if (thread.state == State::kShuffle) place = "shuffle at " + describe(thread.where);
    ++groups.try_emplace(place, 0u, t).first->second.first;
  }
  std::string text;
  for (const auto& [place, group] : groups) {
    text += (text.empty() ? "" : ", ") + place + " (" + std::to_string(group.first) +
            (group.first == 1 ? " thread" : " threads") + ", first " +
            std::to_string(group.second) + ")";
  }
  return text;
}

[[noreturn]] void throw_error(const std::string& what) {
  throw Error("block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
              std::to_string(blockIdx.z) + "): " + what);
}

// Lets the threads [begin, end) go on when all of them wait in `state` at one place.
bool release(unsigned begin, unsigned end, State state) {
  const Thread& first = block->threads[begin];
  for (unsigned t = begin; t < end; ++t) {
    const Thread& thread = block->threads[t];
    if (thread.state != state || !same_place(thread.where, first.where)) return false;
  }
  for (unsigned t = begin; t < end; ++t) block->threads[t].state = State::kReady;
  return true;
}

void run_block(std::vector<unsigned>& sequence, Order order, std::mt19937& random) {
  const unsigned count = static_cast<unsigned>(block->threads.size());
  unsigned exited = 0;
  while (exited < count) {
    if (order == Order::kRandom) std::shuffle(sequence.begin(), sequence.end(), random);
    bool progress = false;
    for (const unsigned t : sequence) {
      Thread& thread = block->threads[t];
      if (thread.state != State::kReady) continue;
      progress = true;
      block->current = t;
      threadIdx = thread.index;
      block->scheduler.switch_to(thread.context);
      if (!block->error.empty()) throw_error(block->error);
      if (thread.state == State::kExited) ++exited;
    }
    for (unsigned begin = 0; begin < count; begin += kWarp) {
      progress |= release(begin, begin + kWarp, State::kShuffle);
    }
    progress |= release(0, count, State::kBarrier);
    if (!progress)
      throw_error("divergent barrier or shuffle, the threads wait for ever: " + describe_threads());
  }
}

void start_threads(char* stacks) {
#if defined(__SANITIZE_ADDRESS__)
  // Threads of a failed launch never left their frames.
  __asan_unpoison_memory_region(stacks, block->threads.size() * kStackBytes);
#endif
  for (unsigned t = 0; t < block->threads.size(); ++t) {
    Thread& thread = block->threads[t];
    thread.index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
    thread.state = State::kReady;
    thread.shuffles = 0;
    thread.context.start(stacks + t * kStackBytes, enter);
  }
}

}  // namespace

void barrier(const std::source_location& where) {
  current_thread().where = where;
  leave(State::kBarrier);
}

unsigned lane_index() { return block->current % kWarp; }

void shuffle(unsigned mask, void* value, std::size_t size, unsigned source,
             const std::source_location& where) {
  if (mask != 0xffffffffu) fail("shuffle at " + describe(where) + " with a partial mask");
  Thread& thread = current_thread();
  auto& slots = block->warps[block->current / kWarp].slots[thread.shuffles++ % 2];
  std::memcpy(slots[lane_index()], value, size);
  thread.where = where;
  leave(State::kShuffle);
  std::memcpy(value, slots[source], size);
}

void* static_shared(const void* key, std::size_t bytes) {
  std::vector<char>& memory = block->static_memory[key];
  if (memory.empty()) {
    memory.resize(bytes + kSharedAlignment);
    poison(memory);
  }
  return align(memory);
}

void* dynamic_shared() { return align(block->dynamic_memory); }

}  // namespace simt::detail

namespace simt {

void launch(const Config& config, const std::function<void()>& kernel) {
  using detail::block;
  const unsigned count = config.block.x * config.block.y * config.block.z;
  if (count == 0 || count > detail::kMaxThreads || count % detail::kWarp != 0) {
    throw Error("a block must have whole warps and at most 1024 threads, got " +
                std::to_string(count));
  }
  if (config.grid.y > 65535 || config.grid.z > 65535) throw Error("grid y and z end at 65535");

  // Kept, because touching fresh memory costs more than a small kernel; what is never used is never
  // touched.
  static const std::unique_ptr<char[]> stacks(new char[detail::kMaxThreads * detail::kStackBytes]);
  detail::Block state;
  state.kernel = &kernel;
  state.threads.resize(count);
  state.warps.resize(count / detail::kWarp);
  state.dynamic_memory.resize(config.shared_bytes + detail::kSharedAlignment);

  std::vector<unsigned> sequence(count);
  std::iota(sequence.begin(), sequence.end(), 0u);
  if (config.order == Order::kReverse) std::reverse(sequence.begin(), sequence.end());
  std::mt19937 random(config.seed);

  struct Reset {
    ~Reset() { block = nullptr; }
  } reset;
  block = &state;
  gridDim = config.grid;
  blockDim = config.block;
  for (unsigned z = 0; z < gridDim.z; ++z) {
    for (unsigned y = 0; y < gridDim.y; ++y) {
      for (unsigned x = 0; x < gridDim.x; ++x) {
        blockIdx = {x, y, z};
        detail::poison(state.dynamic_memory);
        for (auto& [key, memory] : state.static_memory) detail::poison(memory);
        detail::start_threads(stacks.get());
        detail::run_block(sequence, config.order, random);
      }
    }
  }
}

}  // namespace simt
