// One block: its threads, what each waits for, and the scheduler that lets them go on.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <source_location>
#include <span>
#include <string>
#include <vector>

#include "fiber.h"
#include "shared_memory.h"
#include "simt.h"

namespace simt {

#if defined(SIMT_THREAD_SANITIZER)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif
inline constexpr int kBarriers = 16;

enum class State { kReady, kAtBarrier, kInCollective, kExited };

struct Thread {
  Fiber fiber;
  unsigned number = 0;  // in the block
  Dim3 index;
  State state = State::kReady;
  std::source_location where;  // of what it waits for
  int barrier = 0;             // while kAtBarrier; 0 is __syncthreads'
  unsigned barrier_threads = 0;
  const detail::Collective* collective = nullptr;  // while kInCollective
  detail::AsyncCopies copies;
  std::exception_ptr error;
};

using Group = std::vector<Thread*>;

// Runs blocks of one launch, one after another, on one OS thread. Kept from launch to launch,
// because touching the fresh memory of stacks costs more than a small kernel.
class Block {
 public:
  // Before the first block of a launch, and after the last.
  void begin(const Config& config, const std::function<void()>& kernel);
  void end();
  // Throws what a thread has thrown, or an Error of the whole block.
  void run(std::uint64_t number);

  std::string describe_block() const;
  std::string describe_thread() const;
  bool is_running() const { return current_ != nullptr; }
  Thread& current() { return *current_; }
  SharedMemory& shared() { return shared_; }
  // Both for the current thread, which goes on when the others have come.
  void wait_at_barrier(int id, unsigned threads, const std::source_location& where);
  void meet(const detail::Collective& collective);

 private:
  static void run_kernel();
  static void check_no_copy_is_pending(const detail::AsyncCopies& copies);
  void start_threads();
  void release_threads();
  void set_order(std::span<unsigned> sequence);
  bool run_warp(unsigned first);
  void run_thread(Thread& thread);
  bool all_lanes_wait(const detail::Collective& collective) const;
  bool release_barriers();
  bool release_named_barrier(int id, const Group& group);
  static void synchronise(const Group& group);
  std::string describe_waiting() const;

  const Config* config_ = nullptr;
  const std::function<void()>* kernel_ = nullptr;
  std::vector<std::unique_ptr<Thread>> all_threads_;  // as many as any launch has needed
  std::span<std::unique_ptr<Thread>> threads_;        // of this launch
  Thread* current_ = nullptr;
  SharedMemory shared_;
  std::minstd_rand random_;
  std::vector<unsigned> warp_order_;  // first threads
  std::array<unsigned, kWarp> lane_order_{};
  unsigned exited_ = 0;
  char start_ = 0;  // its address stands for the start of the launch
};

// The block that this OS thread runs; null where it runs none.
extern constinit thread_local Block* block;

std::string describe(const Dim3& index);
std::string describe(const std::source_location& where);
std::string hexadecimal(unsigned mask);
std::uint64_t count_of(const Dim3& size);
Dim3 index_in(const Dim3& size, std::uint64_t i);

}  // namespace simt
