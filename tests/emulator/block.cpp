#include "block.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <numeric>
#include <utility>

namespace simt {

using detail::AsyncCopies;
using detail::Collective;

constinit thread_local Block* block = nullptr;

namespace {

bool same_place(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

}  // namespace

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

std::uint64_t count_of(const Dim3& size) { return std::uint64_t{size.x} * size.y * size.z; }

Dim3 index_in(const Dim3& size, std::uint64_t i) {
  return {static_cast<unsigned>(i % size.x), static_cast<unsigned>(i / size.x % size.y),
          static_cast<unsigned>(i / size.x / size.y)};
}

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

// The device would complete them too, but who waits for nothing has forgotten something.
void Block::check_no_copy_is_pending(const AsyncCopies& copies) {
  for (const auto& group : copies.groups) {
    if (group.empty()) continue;
    detail::fail("exits while a cp_async is pending that nobody waits for", group.front().where);
  }
  if (copies.open.empty()) return;
  detail::fail("exits while a cp_async is pending that nobody commits to a group",
               copies.open.front().where);
}

void Block::run_kernel() {
  Thread& thread = block->current();
  try {
    (*block->kernel_)();
    check_no_copy_is_pending(thread.copies);
    thread.copies = {};
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

}  // namespace simt
