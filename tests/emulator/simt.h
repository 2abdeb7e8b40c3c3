// A host emulator of one CUDA thread block at a time: include this file, then kernel files, and
// call simt::launch.
//
// Every CUDA thread is a fiber that runs until it meets a barrier or a shuffle. Blocks run one
// after another. What it finds and what it cannot see is said in README.md. Not safe for calls from
// several host threads at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <type_traits>

// The words of CUDA that need no counterpart on the host.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

// Shared memory has no plain __shared__ here, because the emulator could not poison it: a kernel
// declares it through these macros. README.md gives the two lines that define them for nvcc.
#define PARAMIXER_SHARED(type, name, count) \
  static const char name##_key = 0;         \
  type* const name =                        \
      static_cast<type*>(simt::detail::static_shared(&name##_key, sizeof(type) * (count)))
#define PARAMIXER_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(simt::detail::dynamic_shared())

namespace simt {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// In which order the threads of a block run between two barriers.
enum class Order { kForward, kReverse, kRandom };

struct Config {
  Dim3 grid = {};
  Dim3 block = {};
  std::size_t shared_bytes = 0;  // dynamic shared memory
  Order order = Order::kForward;
  unsigned seed = 1;  // of Order::kRandom
};

// What a kernel did that real hardware would answer with a hang or with garbage.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Runs `kernel` once per thread of the grid. Throws Error at a divergent barrier or shuffle.
void launch(const Config& config, const std::function<void()>& kernel);

namespace detail {

inline constexpr std::size_t kLaneBytes = 16;  // the largest value a shuffle moves

void barrier(const std::source_location& where);
// Leaves `size` bytes at `value` for the other lanes, waits for the whole warp, and brings those of
// lane `source`.
void shuffle(unsigned mask, void* value, std::size_t size, unsigned source,
             const std::source_location& where);
unsigned lane_index();
void* static_shared(const void* key, std::size_t bytes);
void* dynamic_shared();

template <typename T>
T shuffle_from(unsigned mask, T value, unsigned source, const std::source_location& where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kLaneBytes);
  shuffle(mask, &value, sizeof(T), source, where);
  return value;
}

}  // namespace detail
}  // namespace simt

extern simt::Dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads(const std::source_location where = std::source_location::current()) {
  simt::detail::barrier(where);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  const std::source_location where = std::source_location::current()) {
  const unsigned lane = simt::detail::lane_index();
  const unsigned source = lane ^ static_cast<unsigned>(lane_mask);
  // A lane of a later segment cannot be read.
  const bool inside = source / width <= lane / width;
  return simt::detail::shuffle_from(mask, value, inside ? source : lane, where);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   const std::source_location where = std::source_location::current()) {
  const unsigned lane = simt::detail::lane_index();
  const bool inside = lane % width + delta < static_cast<unsigned>(width);
  return simt::detail::shuffle_from(mask, value, inside ? lane + delta : lane, where);
}
