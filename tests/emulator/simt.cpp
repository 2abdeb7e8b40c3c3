#include "simt.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "block.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

constinit thread_local simt::Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {
namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxGridYZ = 65535;
// Fewer do not pay for starting an OS thread.
constexpr std::uint64_t kBlocksPerWorker = 8;

// Blocks that no launch uses at the moment.
class BlockPool {
 public:
  std::unique_ptr<Block> take() {
    const std::lock_guard lock(mutex_);
    if (blocks_.empty()) return std::make_unique<Block>();
    auto block = std::move(blocks_.back());
    blocks_.pop_back();
    return block;
  }
  void give(std::unique_ptr<Block> block) {
    const std::lock_guard lock(mutex_);
    blocks_.push_back(std::move(block));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Block>> blocks_;
};

BlockPool pool;

class Launch {
 public:
  Launch(const Config& config, const std::function<void()>& kernel)
      : config_(config), kernel_(kernel), blocks_(count_of(config.grid)) {}

  void run();

 private:
  // Two teams of threads take turns under ThreadSanitizer. A team's stacks and shared memory order
  // its own blocks; two blocks that follow each other are as unordered as on the device.
  static constexpr unsigned kTeams = kThreadSanitizer ? 2 : 1;

  void work();
  void run_block(std::unique_ptr<Block>& team, std::uint64_t turn);

  const Config& config_;
  const std::function<void()>& kernel_;
  const std::uint64_t blocks_;
  std::atomic<std::uint64_t> next_{0};
  std::mutex mutex_;  // of what follows
  std::uint64_t failed_turn_ = ~std::uint64_t{0};
  std::exception_ptr error_;
};

void Launch::run() {
  const std::uint64_t workers = config_.workers
                                    ? config_.workers
                                    : std::min<std::uint64_t>(std::thread::hardware_concurrency(),
                                                              blocks_ / kBlocksPerWorker);
  {
    std::vector<std::jthread> others;
    for (std::uint64_t w = 1; w < workers; ++w) others.emplace_back([this] { work(); });
    work();
  }
  if (error_) std::rethrow_exception(error_);
}

void Launch::work() {
  gridDim = config_.grid;
  blockDim = config_.block;
  std::array<std::unique_ptr<Block>, kTeams> teams;
  unsigned team = 0;
  for (std::uint64_t turn; (turn = next_++) < blocks_; team = (team + 1) % kTeams) {
    run_block(teams[team], turn);
  }
  for (auto& block : teams) {
    if (!block) continue;
    block->end();
    pool.give(std::move(block));
  }
}

void Launch::run_block(std::unique_ptr<Block>& team, std::uint64_t turn) {
  if (!team) {
    team = pool.take();
    team->begin(config_, kernel_);
  }
  block = team.get();
  try {
    team->run(config_.order == Order::kReverse ? blocks_ - 1 - turn : turn);
  } catch (...) {
    const std::lock_guard lock(mutex_);
    next_ = blocks_;
    // Turns are taken in order, so the first that fails is always among those taken.
    if (turn < failed_turn_) {
      failed_turn_ = turn;
      error_ = std::current_exception();
    }
    team->end();
    team.reset();  // its threads are stuck where they are
  }
  block = nullptr;
}

void check(const Config& config) {
  const auto refuse = [&](const std::string& rule) {
    throw Error(std::string("kernel ") + config.name + ": " + rule);
  };
  const std::uint64_t threads = count_of(config.block);
  if (threads == 0 || threads > kMaxThreads || threads % kWarp != 0) {
    refuse("a block must have whole warps and at most 1024 threads, got " +
           std::to_string(threads));
  }
  if (config.grid.y > kMaxGridYZ || config.grid.z > kMaxGridYZ) {
    refuse("grid y and z end at 65535, got " + describe(config.grid));
  }
  if (config.shared_bytes > SharedMemory::kBytes) {
    refuse("a block has at most 227 KB of shared memory, got " +
           std::to_string(config.shared_bytes) + " bytes");
  }
  if (block) throw Error(here() + ": a kernel cannot launch kernels");
}

// ---- sanitizers: their reports know addresses and lines; this adds who ran

void print_who_ran() {
  if (const std::string who = here(); !who.empty()) std::fprintf(stderr, "simt: %s\n", who.c_str());
}

#if defined(__SANITIZE_ADDRESS__)
[[maybe_unused]] const bool kReportsSayWhoRan =
    (__sanitizer_set_death_callback(&print_who_ran), true);
#endif

}  // namespace
}  // namespace simt

// Called by UndefinedBehaviorSanitizer, which no macro announces.
extern "C" void __ubsan_on_report() { simt::print_who_ran(); }

namespace simt {

std::string here() {
  return block && block->is_running() ? block->describe_thread() : std::string();
}

void launch(const Config& config, const std::function<void()>& kernel) {
  check(config);
  Launch(config, kernel).run();
}

namespace detail {

void fail(const std::string& rule, const std::source_location& where) {
  throw Error(here() + ": " + rule + ", at " + describe(where));
}

unsigned lane_index() { return block->current().number % kWarp; }

void wait_for_block(const std::source_location& where) { block->wait_at_barrier(0, 0, where); }

void wait_for_threads(int id, int threads, const std::source_location& where) {
  if (id < 1 || id >= kBarriers) {
    fail("bar_sync has barriers 1 to 15, got " + std::to_string(id), where);
  }
  if (threads < 1 || threads % kWarp != 0 || static_cast<unsigned>(threads) > kMaxThreads) {
    fail("bar_sync takes whole warps, got " + std::to_string(threads) + " threads", where);
  }
  block->wait_at_barrier(id, static_cast<unsigned>(threads), where);
}

void meet(const Collective& collective) {
  if (!(collective.mask >> lane_index() & 1)) {
    fail(std::string(collective.name) + " with mask " + hexadecimal(collective.mask) +
             ", which leaves out the lane that calls it",
         collective.where);
  }
  block->meet(collective);
}

void* static_shared(const void* key, const char* name, std::size_t bytes,
                    const std::source_location& where) {
  void* const data = block->shared().find_or_add(key, name, bytes);
  if (!data) {
    fail(std::string("no room for the shared array ") + name + " of " + std::to_string(bytes) +
             " bytes: static arrays have 48 KB, all shared memory has 227 KB",
         where);
  }
  return data;
}

void* dynamic_shared() { return block->shared().dynamic(); }

void check_shared(const void* address, std::size_t bytes, std::size_t alignment,
                  const std::source_location& where) {
  if (reinterpret_cast<std::uintptr_t>(address) % alignment != 0) {
    fail("misaligned address: " + std::to_string(bytes) + " bytes of shared memory need " +
             std::to_string(alignment) + "-byte alignment",
         where);
  }
  if (!block->shared().contains(address, bytes)) {
    fail("out of bounds: " + std::to_string(bytes) + " bytes outside of every shared array", where);
  }
}

#if defined(__SANITIZE_ADDRESS__)
// AddressSanitizer marks groups of eight bytes; copies of four go unmarked.
void forbid_access(void* address, std::size_t bytes) {
  if (bytes >= 8) __asan_poison_memory_region(address, bytes);
}
void allow_access(void* address, std::size_t bytes) {
  if (bytes >= 8) __asan_unpoison_memory_region(address, bytes);
}
#else
void forbid_access(void*, std::size_t) {}
void allow_access(void*, std::size_t) {}
#endif

AsyncCopies& async_copies() { return block->current().copies; }

}  // namespace detail
}  // namespace simt
