// A fiber: a function with a stack of its own, which runs until it pauses and goes on when it is
// resumed. Switching is one function call (README.md gives the time), and sanitizers are told.
#pragma once

#include <cstddef>
#include <string>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() calls `entry`. Where an earlier entry has not returned, its frames are lost.
  void start(void (*entry)());
  // Runs the fiber until it pauses or its entry returns. Always from the same OS thread, between
  // start() and the entry's return.
  void resume();
  // For the running fiber: goes back to whoever resumed it.
  void pause();

  // ThreadSanitizer takes every fiber for a thread and a switch for no synchronisation. These say
  // what does synchronise: everything before a release() happens before what follows an acquire()
  // of the same address. Callable from anywhere, also while the fiber is paused.
  void release(void* address);
  void acquire(void* address);
  // The same for the OS thread that calls them.
  static void host_releases(void* address);
  static void host_acquires(void* address);
  // Under this name the fiber appears in ThreadSanitizer's reports, which keep its last 63
  // characters.
  void set_name(const std::string& name);

  // While it lives, ThreadSanitizer takes what the caller does for the fiber's doing.
  class Disguise {
   public:
    explicit Disguise(const Fiber& fiber);
    ~Disguise();

   private:
    void* own_identity_ = nullptr;
  };

 private:
  static void begin();
  void switch_stacks(bool into_fiber);

  char* stack_;          // of kStackBytes, above a page that no one may touch
  unsigned first_line_;  // cache lines left free at its top
  void (*entry_)() = nullptr;
#if defined(__x86_64__)
  void* own_context_ = nullptr;  // a stack pointer; the registers are saved below it
  void* resumer_context_ = nullptr;
#else
  ucontext_t own_context_;
  ucontext_t resumer_context_;
#endif
  // For the sanitizers.
  const void* resumer_stack_ = nullptr;
  std::size_t resumer_stack_bytes_ = 0;
  void* identity_ = nullptr;
  void* resumer_identity_ = nullptr;
};

}  // namespace simt
