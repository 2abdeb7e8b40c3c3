// Samples over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace paramixer::generators {

// Calls worker(i) once for every i in [0, count). `make_worker` is called once in each thread and
// returns what that thread works with, scratch included. Samples are handed out one at a time, as
// they take very different times. The first exception ends the work and is thrown here.
template <typename MakeWorker>
void for_each_sample(int64_t count, int threads, const MakeWorker& make_worker) {
  std::atomic<int64_t> next = 0;
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    try {
      auto worker = make_worker();
      for (int64_t i; (i = next++) < count;) worker(i);
    } catch (...) {
      next = count;
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    const int64_t useful = std::min<int64_t>(threads, count);
    for (int64_t t = 1; t < useful; ++t) others.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace paramixer::generators
