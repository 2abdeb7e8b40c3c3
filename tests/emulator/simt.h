// A host emulator of CUDA thread blocks: include this file, then kernel files, and call
// simt::launch.
//
// Every CUDA thread is a fiber that runs until it meets a barrier or a warp collective; OS threads
// share the blocks. What it finds and what it cannot see is said in README.md.
//
//   simt.h   the launch, the words of CUDA, barriers and shared memory
//   warp.h   shuffles, votes and reductions
//   ptx.h    the emulator's half of cuda/primitives.cuh: ldmatrix, mma, cp.async, named barriers
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

// The words of CUDA that need no counterpart on the host.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

// Shared memory: cuda/primitives.cuh has these for nvcc. There is no plain __shared__, which the
// emulator could neither poison nor guard. Both are aligned to 16 bytes and, here, to no more.
#define PARAMIXER_SHARED(type, name, count)                          \
  static const char name##_key = 0;                                  \
  type* const name = static_cast<type*>(simt::detail::static_shared( \
      &name##_key, #name, sizeof(type) * (count), std::source_location::current()))
#define PARAMIXER_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(simt::detail::dynamic_shared())

namespace simt {

inline constexpr unsigned kWarp = 32;

// Whether what includes this is built with ThreadSanitizer: it finds a race in any order of threads
// and in any variant of a kernel, but takes a thousand times as long.
#if defined(__SANITIZE_THREAD__)
constexpr bool kReportsRaces = true;
#else
constexpr bool kReportsRaces = false;
#endif

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// In which order blocks run, and the threads of a block between two meetings.
enum class Order { kForward, kReverse, kRandom };

struct Config {
  const char* name = "(unnamed)";  // of the kernel, for messages
  Dim3 grid = {};
  Dim3 block = {};
  std::size_t shared_bytes = 0;  // dynamic shared memory
  Order order = Order::kForward;
  unsigned seed = 1;     // of Order::kRandom
  unsigned workers = 0;  // OS threads that share the blocks; 0: one per processor
};

// What a kernel did that real hardware would answer with a hang or with garbage. The message names
// kernel, block, thread and line.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Runs `kernel` once per thread of the grid. Throws the Error of the first block that has one. Safe
// to call from several OS threads at once, but not from a kernel.
void launch(const Config& config, const std::function<void()>& kernel);

// "kernel mix, block (0, 0, 0), thread (5, 0, 0)": who runs now. Empty outside of a kernel.
std::string here();

namespace detail {

// One copy to shared memory that has been asked for and not yet waited for.
struct AsyncCopy {
  void* shared;
  const void* global;
  std::size_t bytes;
  std::size_t source_bytes;  // the rest becomes zeros
  std::source_location where;
};

// The copies of one thread, oldest first.
struct AsyncCopies {
  std::vector<std::vector<AsyncCopy>> groups;  // committed
  std::vector<AsyncCopy> open;                 // not committed yet
};

// What a lane brings to a collective of its warp.
struct Collective {
  const char* name;
  unsigned mask;  // the lanes that take part
  std::source_location where;
  void* operand;
  // Runs once, when all lanes have come: operands by lane, null where a lane takes no part.
  void (*exchange)(void* const* operands);
};

[[noreturn]] void fail(const std::string& rule, const std::source_location& where);
unsigned lane_index();

// Waits for all threads of the block at this very place.
void wait_for_block(const std::source_location& where);
// Waits until `threads` threads of the block have come to barrier `id`, wherever they are.
void wait_for_threads(int id, int threads, const std::source_location& where);
// Waits for the lanes of `collective.mask` and returns after the exchange.
void meet(const Collective& collective);

void* static_shared(const void* key, const char* name, std::size_t bytes,
                    const std::source_location& where);
void* dynamic_shared();
// Fails unless `bytes` bytes at `address` lie in one array of shared memory, aligned to
// `alignment`.
void check_shared(const void* address, std::size_t bytes, std::size_t alignment,
                  const std::source_location& where);
// For AddressSanitizer: nothing may touch this memory, or everything may again.
void forbid_access(void* address, std::size_t bytes);
void allow_access(void* address, std::size_t bytes);
AsyncCopies& async_copies();

}  // namespace detail
}  // namespace simt

extern constinit thread_local simt::Dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads(const std::source_location where = std::source_location::current()) {
  simt::detail::wait_for_block(where);
}

// Atomics make the order of a sum depend on the order of threads.
#define SIMT_REFUSED(function)                                                                 \
  template <typename... Operands>                                                              \
  void function(Operands...) {                                                                 \
    static_assert(sizeof...(Operands) > 64, #function                                          \
                  ": atomics are refused, because "                                            \
                  "results must not depend on the order of threads; reduce in a fixed order"); \
  }
SIMT_REFUSED(atomicAdd)
SIMT_REFUSED(atomicSub)
SIMT_REFUSED(atomicMin)
SIMT_REFUSED(atomicMax)
SIMT_REFUSED(atomicExch)
SIMT_REFUSED(atomicCAS)
SIMT_REFUSED(atomicInc)
SIMT_REFUSED(atomicDec)
SIMT_REFUSED(atomicAnd)
SIMT_REFUSED(atomicOr)
SIMT_REFUSED(atomicXor)
#undef SIMT_REFUSED

#include "ptx.h"
#include "warp.h"
