#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SIMT_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
#endif

namespace simt {
namespace {

constexpr std::size_t kStackBytes = 256 * 1024;  // only touched pages take memory
// Stacks that all began at the same offset of a page would compete for a few sets of the cache.
constexpr unsigned kLine = 64;
constexpr unsigned kFirstLines = 61;

// The fiber that this OS thread resumed last.
thread_local Fiber* running = nullptr;

std::size_t page_bytes() {
  static const std::size_t bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

// ---- what the sanitizers must know, and nothing where there are none

#if defined(__SANITIZE_ADDRESS__)
void leave_stack(void** fake_stack, const void* target, std::size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, target, bytes);
}
void enter_stack(void* fake_stack, const void** left, std::size_t* bytes) {
  __sanitizer_finish_switch_fiber(fake_stack, left, bytes);
}
void forget_frames(char* stack) { __asan_unpoison_memory_region(stack, kStackBytes); }
#else
void leave_stack(void**, const void*, std::size_t) {}
void enter_stack(void*, const void**, std::size_t*) {}
void forget_frames(char*) {}
#endif

#if defined(SIMT_THREAD_SANITIZER)
void* create_identity() { return __tsan_create_fiber(0); }
void destroy_identity(void* identity) { __tsan_destroy_fiber(identity); }
void* current_identity() { return __tsan_get_current_fiber(); }
void take_identity(void* identity) {
  __tsan_switch_to_fiber(identity, __tsan_switch_to_fiber_no_sync);
}
void release_address(void* address) { __tsan_release(address); }
void acquire_address(void* address) { __tsan_acquire(address); }
void name_identity(void* identity, const char* name) { __tsan_set_fiber_name(identity, name); }
#else
void* create_identity() { return nullptr; }
void destroy_identity(void*) {}
void* current_identity() { return nullptr; }
void take_identity(void*) {}
void release_address(void*) {}
void acquire_address(void*) {}
void name_identity(void*, const char*) {}
#endif

}  // namespace

// ---- two ways to leave one stack and continue on another

#if defined(__x86_64__)

// Saves what the calling convention asks a function to preserve, and the stack pointer with it.
// Rounding modes are not among it: kernels do not change them.
extern "C" void simt_switch_stacks(void** save, void* resume);
asm(R"(
.text
.globl simt_switch_stacks
.type simt_switch_stacks, @function
simt_switch_stacks:
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
.size simt_switch_stacks, .-simt_switch_stacks
)");

void Fiber::start(void (*entry)()) {
  forget_frames(stack_);
  entry_ = entry;
  constexpr int kSavedRegisters = 6;
  // `ret` finds the function here and leaves the stack as a call would: a multiple of 16, less 8.
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes - 16 - first_line_ * kLine);
  *top = reinterpret_cast<void*>(&begin);
  std::fill(top - kSavedRegisters, top, nullptr);
  own_context_ = top - kSavedRegisters;
}

void Fiber::switch_stacks(bool into_fiber) {
  if (into_fiber) {
    simt_switch_stacks(&resumer_context_, own_context_);
  } else {
    simt_switch_stacks(&own_context_, resumer_context_);
  }
}

#else

void Fiber::start(void (*entry)()) {
  forget_frames(stack_);
  entry_ = entry;
  getcontext(&own_context_);
  own_context_.uc_stack.ss_sp = stack_;
  own_context_.uc_stack.ss_size = kStackBytes - first_line_ * kLine;
  own_context_.uc_link = nullptr;
  makecontext(&own_context_, &begin, 0);
}

void Fiber::switch_stacks(bool into_fiber) {
  if (into_fiber) {
    swapcontext(&resumer_context_, &own_context_);
  } else {
    swapcontext(&own_context_, &resumer_context_);
  }
}

#endif

// ---- fibers

Fiber::Fiber() : identity_(create_identity()) {
  static std::atomic<unsigned> count = 0;
  first_line_ = count++ % kFirstLines;
  void* memory = mmap(nullptr, page_bytes() + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page_bytes(), PROT_NONE);
  stack_ = static_cast<char*>(memory) + page_bytes();
}

Fiber::~Fiber() {
  forget_frames(stack_);
  munmap(stack_ - page_bytes(), page_bytes() + kStackBytes);
  destroy_identity(identity_);
}

void Fiber::begin() {
  Fiber* self = running;
  enter_stack(nullptr, &self->resumer_stack_, &self->resumer_stack_bytes_);
  self->entry_();
  take_identity(self->resumer_identity_);
  leave_stack(nullptr, self->resumer_stack_, self->resumer_stack_bytes_);
  self->switch_stacks(false);
}

void Fiber::resume() {
  running = this;
  void* fake_stack = nullptr;
  resumer_identity_ = current_identity();
  leave_stack(&fake_stack, stack_, kStackBytes);
  take_identity(identity_);
  switch_stacks(true);
  enter_stack(fake_stack, nullptr, nullptr);
}

void Fiber::pause() {
  void* fake_stack = nullptr;
  take_identity(resumer_identity_);
  leave_stack(&fake_stack, resumer_stack_, resumer_stack_bytes_);
  switch_stacks(false);
  enter_stack(fake_stack, &resumer_stack_, &resumer_stack_bytes_);
}

Fiber::Disguise::Disguise(const Fiber& fiber) : own_identity_(current_identity()) {
  take_identity(fiber.identity_);
}

Fiber::Disguise::~Disguise() { take_identity(own_identity_); }

void Fiber::release(void* address) {
  const Disguise disguise(*this);
  release_address(address);
}

void Fiber::acquire(void* address) {
  const Disguise disguise(*this);
  acquire_address(address);
}

void Fiber::host_releases(void* address) { release_address(address); }

void Fiber::host_acquires(void* address) { acquire_address(address); }

void Fiber::set_name(const std::string& name) {
  constexpr std::size_t kLongest = 63;
  name_identity(identity_, name.c_str() + (name.size() > kLongest ? name.size() - kLongest : 0));
}

}  // namespace simt
