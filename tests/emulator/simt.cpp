#include "simt.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <span>
#include <thread>
#include <utility>

#include "fiber.h"
#include "shared_memory.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

constinit thread_local simt::Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {
namespace {

using detail::AsyncCopies;
using detail::Collective;

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxGridYZ = 65535;
constexpr int kBarriers = 16;
// Fewer do not pay for starting an OS thread.
constexpr std::uint64_t kBlocksPerWorker = 8;
#if defined(SIMT_THREAD_SANITIZER)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

std::string describe(const Dim3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

std::string describe(const std::source_location& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

std::string hexadecimal(unsigned mask) {
  char text[11];
  std::snprintf(text, sizeof(text), "0x%08x", mask);
  return text;
}

bool same_place(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::uint64_t count_of(const Dim3& size) { return std::uint64_t{size.x} * size.y * size.z; }

Dim3 index_in(const Dim3& size, std::uint64_t i) {
  return {static_cast<unsigned>(i % size.x), static_cast<unsigned>(i / size.x % size.y),
          static_cast<unsigned>(i / size.x / size.y)};
}

// ---- one block

enum class State { kReady, kAtBarrier, kInCollective, kExited };

struct Thread {
  Fiber fiber;
  unsigned number = 0;  // in the block
  Dim3 index;
  State state = State::kReady;
  std::source_location where;  // of what it waits for
  int barrier = 0;             // while kAtBarrier; 0 is __syncthreads'
  unsigned barrier_threads = 0;
  const Collective* collective = nullptr;  // while kInCollective
  AsyncCopies copies;
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
  void meet(const Collective& collective);

 private:
  static void run_kernel();
  void start_threads();
  void release_threads();
  void set_order(std::span<unsigned> sequence);
  bool run_warp(unsigned first);
  void run_thread(Thread& thread);
  bool all_lanes_wait(const Collective& collective) const;
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

// The block that this OS thread runs.
thread_local Block* block = nullptr;

void Block::begin(const Config& config, const std::function<void()>& kernel) {
  config_ = &config;
  kernel_ = &kernel;
  const std::size_t count = count_of(config.block);
  while (all_threads_.size() < count) all_threads_.push_back(std::make_unique<Thread>());
  threads_ = std::span(all_threads_).first(count);
  for (unsigned t = 0; t < count; ++t) {
    threads_[t]->number = t;
    threads_[t]->index = index_in(config.block, t);
  }
  warp_order_.resize(count / kWarp);
  for (unsigned w = 0; w < warp_order_.size(); ++w) warp_order_[w] = w * kWarp;
  set_order(warp_order_);
  std::iota(lane_order_.begin(), lane_order_.end(), 0u);
  set_order(lane_order_);
  shared_.reset(config.shared_bytes);
  Fiber::host_releases(&start_);
}

void Block::end() {
  // After an error they have not ended.
  if (exited_ < threads_.size()) release_threads();
  Fiber::host_acquires(this);
}

void Block::set_order(std::span<unsigned> sequence) {
  if (config_->order == Order::kReverse) std::reverse(sequence.begin(), sequence.end());
}

void Block::run(std::uint64_t number) {
  blockIdx = index_in(config_->grid, number);
  random_.seed(static_cast<unsigned>(config_->seed + 7919 * number));
  shared_.poison();
  start_threads();
  while (exited_ < threads_.size()) {
    if (config_->order == Order::kRandom) {
      std::shuffle(warp_order_.begin(), warp_order_.end(), random_);
    }
    bool progress = false;
    for (const unsigned first : warp_order_) progress |= run_warp(first);
    progress |= release_barriers();
    if (!progress) {
      throw Error(
          describe_block() +
          ": divergent barrier or collective, the threads wait for ever: " + describe_waiting());
    }
  }
  release_threads();
}

void Block::start_threads() {
  exited_ = 0;
  for (const auto& thread : threads_) {
    thread->state = State::kReady;
    thread->fiber.start(&run_kernel);
    if (kThreadSanitizer) {
      thread->fiber.acquire(&start_);
      thread->fiber.acquire(this);
      current_ = thread.get();
      thread->fiber.set_name(describe_thread());
    }
  }
}

// What the threads did comes before what follows an acquire of this block: its next threads, on the
// same stacks and the same shared memory, and the end of the launch.
void Block::release_threads() {
  current_ = nullptr;
  if (!kThreadSanitizer) return;
  for (const auto& thread : threads_) thread->fiber.release(this);
}

void Block::run_kernel() {
  Thread& thread = block->current();
  try {
    (*block->kernel_)();
    const AsyncCopies& copies = thread.copies;
    if (!copies.groups.empty() || !copies.open.empty()) {
      const bool committed = copies.open.empty();
      const auto& pending = committed ? copies.groups.front() : copies.open;
      detail::fail(std::string("exits while a cp_async is pending that nobody ") +
                       (committed ? "waits for" : "commits to a group"),
                   pending.empty() ? thread.where : pending.front().where);
    }
  } catch (const Error&) {
    thread.error = std::current_exception();
  } catch (const std::exception& error) {
    thread.error = std::make_exception_ptr(Error(here() + ": " + error.what()));
  } catch (...) {
    thread.error = std::current_exception();
  }
  thread.state = State::kExited;
}

void Block::run_thread(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
  thread.fiber.resume();
  if (thread.error) std::rethrow_exception(std::exchange(thread.error, nullptr));
  if (const char* name = shared_.damaged()) {
    throw Error(describe_thread() + ": out of bounds: wrote beside the shared array " + name);
  }
  if (thread.state == State::kExited) ++exited_;
}

// Runs a warp as far as it comes without the others (in random order, not always as far), so that
// warps drift apart as they may on the device.
bool Block::run_warp(unsigned first) {
  bool progress = false, pass = true;
  while (pass) {
    pass = false;
    if (config_->order == Order::kRandom) {
      std::shuffle(lane_order_.begin(), lane_order_.end(), random_);
    }
    for (const unsigned lane : lane_order_) {
      Thread& thread = *threads_[first + lane];
      if (thread.state != State::kReady) continue;
      run_thread(thread);
      pass = progress = true;
    }
    if (config_->order == Order::kRandom && random_() % 2) break;
  }
  return progress;
}

// Everything that the threads of the group have done happens before everything they will do. A
// thread's address stands for the meetings it leads: whoever leads has taken part in the earlier
// ones, so no order is claimed that is not there.
void Block::synchronise(const Group& group) {
  if (kThreadSanitizer) {
    void* const meeting = group.front();
    for (Thread* thread : group) thread->fiber.release(meeting);
    for (Thread* thread : group) thread->fiber.acquire(meeting);
  }
  for (Thread* thread : group) thread->state = State::kReady;
}

void Block::wait_at_barrier(int id, unsigned threads, const std::source_location& where) {
  Thread& thread = current();
  thread.state = State::kAtBarrier;
  thread.where = where;
  thread.barrier = id;
  thread.barrier_threads = threads;
  thread.fiber.pause();
}

// The lane that comes last exchanges the operands, as one of the group and on its own stack, so
// that sanitizers see one of the group do it.
void Block::meet(const Collective& collective) {
  Thread& thread = current();
  thread.state = State::kInCollective;
  thread.where = collective.where;
  thread.collective = &collective;
  if (!all_lanes_wait(collective)) {
    thread.fiber.pause();
    return;
  }

  Group group;
  std::array<void*, kWarp> operands{};
  const unsigned first = thread.number / kWarp * kWarp;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(collective.mask >> lane & 1)) continue;
    group.push_back(threads_[first + lane].get());
    operands[lane] = group.back()->collective->operand;
  }
  synchronise(group);
  collective.exchange(operands.data());
  synchronise(group);
}

// All lanes of the mask have come to this place with this mask.
bool Block::all_lanes_wait(const Collective& collective) const {
  const unsigned first = current_->number / kWarp * kWarp;
  // The next lane is the one least likely to be there.
  for (unsigned i = 1; i < kWarp; ++i) {
    const unsigned lane = (current_->number + i) % kWarp;
    if (!(collective.mask >> lane & 1)) continue;
    const Thread& other = *threads_[first + lane];
    if (other.state != State::kInCollective || other.collective->mask != collective.mask ||
        !same_place(other.where, collective.where)) {
      return false;
    }
  }
  return true;
}

bool Block::release_barriers() {
  std::array<Group, kBarriers> groups;
  bool one_place = true;
  for (const auto& thread : threads_) {
    if (thread->state != State::kAtBarrier) continue;
    Group& group = groups[static_cast<unsigned>(thread->barrier)];
    group.push_back(thread.get());
    if (thread->barrier == 0) one_place &= same_place(thread->where, group.front()->where);
  }
  bool released = false;
  if (groups[0].size() == threads_.size() && one_place) {
    synchronise(groups[0]);
    released = true;
  }
  for (int id = 1; id < kBarriers; ++id) released |= release_named_barrier(id, groups[id]);
  return released;
}

bool Block::release_named_barrier(int id, const Group& group) {
  if (group.empty()) return false;
  const unsigned expected = group.front()->barrier_threads;
  const bool agree = std::all_of(group.begin(), group.end(), [&](const Thread* thread) {
    return thread->barrier_threads == expected;
  });
  if (!agree || group.size() > expected) {
    throw Error(
        describe_block() + ": barrier " + std::to_string(id) +
        " is met with different numbers of threads, or by more than that: " + describe_waiting());
  }
  if (group.size() < expected) return false;
  for (std::size_t i = 0; i < group.size(); i += kWarp) {
    if (group[i]->number % kWarp != 0 ||
        group[i + kWarp - 1]->number != group[i]->number + kWarp - 1) {
      throw Error(describe_block() + ": barrier " + std::to_string(id) +
                  " is met by a part of a warp: " + describe_waiting());
    }
  }
  synchronise(group);
  return true;
}

std::string Block::describe_block() const {
  return std::string("kernel ") + config_->name + ", block " + describe(blockIdx);
}

std::string Block::describe_thread() const {
  return describe_block() + ", thread " + describe(current_->index);
}

// "__syncthreads at f.cuh:7 (32 threads, first thread (0, 0, 0)), exited (1 thread, ..)"
std::string Block::describe_waiting() const {
  std::map<std::string, std::pair<unsigned, Dim3>> places;  // to (count, first)
  for (const auto& thread : threads_) {
    std::string place = "exited";
    if (thread->state == State::kAtBarrier) {
      place = thread->barrier == 0 ? std::string("__syncthreads")
                                   : "bar_sync " + std::to_string(thread->barrier) + " of " +
                                         std::to_string(thread->barrier_threads) + " threads";
      place += " at " + describe(thread->where);
    }
    if (thread->state == State::kInCollective) {
      place = std::string(thread->collective->name) + " of lanes " +
              hexadecimal(thread->collective->mask) + " at " + describe(thread->where);
    }
    ++places.try_emplace(place, 0u, thread->index).first->second.first;
  }
  std::string text;
  for (const auto& [place, group] : places) {
    text += (text.empty() ? "" : ", ") + place + " (" + std::to_string(group.first) +
            (group.first == 1 ? " thread" : " threads") + ", first thread " +
            describe(group.second) + ")";
  }
  return text;
}

// ---- a launch

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
