// The emulator itself: what it must compute, and the mistakes it must find.

#include "simt.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "fiber.h"
#include "primitive_cases.cuh"

namespace simt {
namespace {

constexpr Order kOrders[] = {Order::kForward, Order::kReverse, Order::kRandom};
constexpr unsigned kThreads = 64;

// Each thread passes its value to the next one through shared memory.
template <bool kBarrier>
void rotate_kernel(const float* input, float* output) {
  PARAMIXER_SHARED(float, tile, kThreads);
  const unsigned t = threadIdx.x;
  tile[t] = input[blockIdx.x * kThreads + t];
  if (kBarrier) __syncthreads();
  output[blockIdx.x * kThreads + t] = tile[(t + 1) % kThreads];
}

// Replaces every value by the sum of itself and its neighbour, in place.
template <bool kBarrier>
void add_neighbour_kernel(float* output) {
  PARAMIXER_DYNAMIC_SHARED(float, tile);
  const unsigned t = threadIdx.x;
  tile[t] = static_cast<float>(t);
  __syncthreads();
  const float sum = tile[t] + tile[(t + 1) % kThreads];
  if (kBarrier) __syncthreads();
  tile[t] = sum;
  __syncthreads();
  output[blockIdx.x * kThreads + t] = tile[t] + tile[(t + 1) % kThreads];
}

__attribute__((noinline, no_sanitize("address", "thread"))) void write_unseen(
    volatile float* address) {
  *address = 1;
}

template <typename Kernel>
std::vector<float> run(Order order, unsigned blocks, Kernel kernel) {
  std::vector<float> output(blocks * kThreads, NAN);
  launch({.name = "run",
          .grid = {blocks},
          .block = {kThreads},
          .shared_bytes = kThreads * sizeof(float),
          .order = order},
         [&] { kernel(output.data()); });
  return output;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// What the launch of `kernel` throws.
std::string message_of(const std::function<void()>& kernel, Config config = {}) {
  config.name = "planted";
  if (config.block.x == 1) config.block.x = kThreads;
  config.shared_bytes = kThreads * sizeof(float);
  try {
    launch(config, kernel);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// The thread that makes the mistakes.
bool guilty() { return blockIdx.x == 2 && threadIdx.x == 5; }

void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << "\"" << message << "\" lacks " << part;
  }
}

// One thread of block 2 makes a mistake that it is itself blamed for.
void expect_blamed(const std::function<void()>& kernel, const std::vector<std::string>& parts) {
  for (const Order order : kOrders) {
    const std::string message = message_of(kernel, {.grid = {4}, .order = order});
    expect_parts(message, {"kernel planted, block (2, 0, 0), thread (5, 0, 0): "});
    expect_parts(message, parts);
  }
}

// Threads of block 2 wait for each other for ever.
void expect_stuck(const std::function<void()>& kernel, const std::vector<std::string>& parts) {
  for (const Order order : kOrders) {
    const std::string message = message_of(kernel, {.grid = {4}, .order = order});
    expect_parts(message, {"kernel planted, block (2, 0, 0): "});
    expect_parts(message, parts);
  }
}

TEST(SimtTest, SharedMemoryAndBarriers) {
  std::vector<float> input(3 * kThreads);
  std::iota(input.begin(), input.end(), 0.0f);
  for (const Order order : kOrders) {
    const auto output = run(order, 3, [&](float* out) { rotate_kernel<true>(input.data(), out); });
    for (unsigned i = 0; i < output.size(); ++i) {
      ASSERT_EQ(output[i], static_cast<float>(i / kThreads * kThreads + (i + 1) % kThreads));
    }
  }
}

TEST(SimtTest, AMissingBarrierReadsPoisonInEveryBlock) {
  if (kReportsRaces) GTEST_SKIP() << "ThreadSanitizer would report it";
  const std::vector<float> input(3 * kThreads, 1.0f);
  for (const Order order : kOrders) {
    const auto output = run(order, 3, [&](float* out) { rotate_kernel<false>(input.data(), out); });
    for (unsigned block = 0; block < 3; ++block) {
      const auto begin = output.begin() + block * kThreads;
      EXPECT_TRUE(std::any_of(begin, begin + kThreads, [](float x) { return std::isnan(x); }));
    }
  }
}

TEST(SimtTest, AMissingBarrierShowsInTheOrderOfThreads) {
  if (kReportsRaces) GTEST_SKIP() << "ThreadSanitizer would report it";
  const auto right = run(Order::kForward, 1, add_neighbour_kernel<true>);
  EXPECT_TRUE(same_bits(right, run(Order::kReverse, 1, add_neighbour_kernel<true>)));
  EXPECT_TRUE(same_bits(right, run(Order::kRandom, 1, add_neighbour_kernel<true>)));
  const auto wrong = run(Order::kForward, 1, add_neighbour_kernel<false>);
  EXPECT_FALSE(same_bits(wrong, run(Order::kReverse, 1, add_neighbour_kernel<false>)));
  EXPECT_FALSE(same_bits(wrong, run(Order::kRandom, 1, add_neighbour_kernel<false>)));
}

// Warps drift apart as far as their barriers let them, even where shuffles keep lanes together.
TEST(SimtTest, AMissingBarrierBetweenShufflingWarpsShows) {
  if (kReportsRaces) GTEST_SKIP() << "ThreadSanitizer would report it";
  for (const Order order : {Order::kForward, Order::kReverse}) {
    const auto output = run(order, 1, [](float* out) {
      PARAMIXER_DYNAMIC_SHARED(float, tile);
      float sum = 1;
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
      tile[threadIdx.x] = sum;
      __syncwarp();
      out[threadIdx.x] = tile[(threadIdx.x + 32) % kThreads];
    });
    EXPECT_TRUE(std::any_of(output.begin(), output.end(), [](float x) { return std::isnan(x); }));
  }
}

// ---- mistakes that need no sanitizer

TEST(SimtTest, DivergentBarriersAreNamed) {
  expect_stuck(
      [] {
        if (guilty()) return;
        __syncthreads();
      },
      {"divergent barrier", "__syncthreads at simt_test.cpp:",
       "(63 threads, first thread (0, 0, 0))", "exited (1 thread, first thread (5, 0, 0))"});
  expect_stuck(
      [] {
        if (blockIdx.x == 2 && threadIdx.x < 32) {
          __syncthreads();
        } else {
          __syncthreads();
        }
      },
      {"divergent barrier", "(32 threads, first thread (0, 0, 0))",
       "(32 threads, first thread (32, 0, 0))"});
}

TEST(SimtTest, DivergentCollectivesAreNamed) {
  expect_stuck(
      [] {
        if (!guilty()) __shfl_xor_sync(~0u, 1.0f, 1);
      },
      {"__shfl_xor_sync of lanes 0xffffffff at simt_test.cpp:",
       "exited (33 threads, first thread (5, 0, 0))"});
  expect_stuck([] { __syncwarp(guilty() ? 0xffu : ~0u); }, {"__syncwarp of lanes 0x000000ff"});
}

TEST(SimtTest, CollectivesMustStayWithinTheirMask) {
  expect_blamed(
      [] {
        if (guilty()) __ballot_sync(0x0f, 1);
      },
      {"__ballot_sync with mask 0x0000000f, which leaves out the lane that calls it"});
  expect_blamed(
      [] {
        if (guilty()) __shfl_down_sync(0x20, 1.0f, 1);
      },
      {"__shfl_down_sync reads lane 6, which its mask leaves out"});
  expect_blamed(
      [] {
        if (guilty()) __shfl_sync(0x20, 1.0f, 0, 12);
      },
      {"power of two", "got 12"});
}

TEST(SimtTest, NamedBarriersTakeWholeWarpsAndOneNumber) {
  expect_blamed(
      [] {
        if (guilty()) ptx::bar_sync(16, 32);
      },
      {"barriers 1 to 15, got 16"});
  expect_blamed(
      [] {
        if (guilty()) ptx::bar_sync(1, 33);
      },
      {"whole warps, got 33"});
  expect_stuck([] { ptx::bar_sync(1, blockIdx.x == 2 ? 32 : 64); },
               {"barrier 1 is met with different numbers of threads, or by more"});
  expect_stuck(
      [] {
        if (blockIdx.x == 2 && threadIdx.x % 2 == 0) ptx::bar_sync(3, 32);
      },
      {"barrier 3 is met by a part of a warp"});
  expect_stuck(
      [] {
        if (blockIdx.x == 2 && threadIdx.x < 32) ptx::bar_sync(3, 64);
      },
      {"bar_sync 3 of 64 threads", "(32 threads, first thread (0, 0, 0))"});
}

TEST(SimtTest, WritesBesideSharedArraysAreBlamed) {
  for (const int index : {-1, static_cast<int>(kThreads)}) {
    expect_blamed(
        [index] {
          PARAMIXER_SHARED(float, tile, kThreads);
          tile[threadIdx.x] = 1;
          // AddressSanitizer would stop here; what is tested is the check that does without it.
          if (guilty()) write_unseen(tile + index);
        },
        {"out of bounds: wrote beside the shared array tile"});
  }
}

TEST(SimtTest, PrimitivesCheckTheirAddresses) {
  expect_blamed(
      [] {
        PARAMIXER_DYNAMIC_SHARED(float, tile);
        std::uint32_t fragment[1];
        if (guilty()) ptx::ldmatrix(fragment, tile + 1);
      },
      {"misaligned address: 16 bytes of shared memory need 16-byte alignment", "simt_test.cpp:"});
  expect_blamed(
      [] {
        PARAMIXER_DYNAMIC_SHARED(float, tile);
        std::uint32_t fragment[1];
        if (guilty()) ptx::ldmatrix_trans(fragment, tile + kThreads);
      },
      {"out of bounds: 16 bytes outside of every shared array"});
  alignas(16) static const float source[8] = {};
  expect_blamed(
      [] {
        PARAMIXER_DYNAMIC_SHARED(float, tile);
        if (guilty()) ptx::cp_async<16>(tile, source + 2);
      },
      {"misaligned address: cp_async reads 16 bytes"});
  expect_blamed(
      [] {
        PARAMIXER_DYNAMIC_SHARED(float, tile);
        if (guilty()) ptx::cp_async<8>(tile + kThreads, source);
      },
      {"out of bounds: 8 bytes"});
  expect_blamed(
      [] {
        PARAMIXER_DYNAMIC_SHARED(float, tile);
        if (guilty()) ptx::cp_async<8>(tile, source, 12);
      },
      {"cp_async of 8 bytes cannot read 12"});
}

TEST(SimtTest, AsynchronousCopiesLandAtTheirWaitAndMustBeWaitedFor) {
  alignas(16) static float source[4] = {1, 2, 3, 4};
  expect_blamed(
      [] {
        PARAMIXER_DYNAMIC_SHARED(float, tile);
        if (!guilty()) return;
        ptx::cp_async<4>(tile, source);
        ptx::cp_async_commit_group();
        ptx::cp_async_wait_group<1>();
      },
      {"exits while a cp_async is pending that nobody waits for, at simt_test.cpp:"});
  expect_blamed(
      [] {
        PARAMIXER_DYNAMIC_SHARED(float, tile);
        if (guilty()) ptx::cp_async<4>(tile, source);
        ptx::cp_async_wait_group<0>();
      },
      {"exits while a cp_async is pending that nobody commits to a group, at simt_test.cpp:"});
  // A loop may commit groups of nothing at its end, and the next block starts without them.
  EXPECT_EQ(message_of(
                [] {
                  PARAMIXER_DYNAMIC_SHARED(float, tile);
                  ptx::cp_async<4>(tile + threadIdx.x, source);
                  ptx::cp_async_commit_group();
                  ptx::cp_async_commit_group();
                  ptx::cp_async_wait_group<1>();
                  if (tile[threadIdx.x] != 1) throw std::logic_error("has not landed");
                },
                {.grid = {3}, .workers = 1}),
            "no error");
  float before = 0, after = 0;
  const std::string message = message_of([&] {
    PARAMIXER_DYNAMIC_SHARED(float, tile);
    if (threadIdx.x != 0) return;
    tile[0] = 7;
    ptx::cp_async<4>(tile, source);
    ptx::cp_async_commit_group();
    before = tile[0];
    ptx::cp_async_wait_group<0>();
    after = tile[0];
  });
  EXPECT_EQ(message, "no error");
  EXPECT_TRUE(std::isnan(before));
  EXPECT_EQ(after, 1);
}

TEST(SimtTest, SharedMemoryHasItsLimits) {
  EXPECT_THROW(launch({.block = {32}, .shared_bytes = 227 * 1024 + 1}, [] {}), Error);
  expect_parts(message_of([] {
                 PARAMIXER_SHARED(float, large, 12 * 1024 + 1);
                 large[0] = 0;
               }),
               {"no room for the shared array large"});
}

TEST(SimtTest, ExceptionsOfAKernelNameTheThread) {
  expect_blamed(
      [] {
        if (guilty()) throw std::out_of_range("no such row");
      },
      {"no such row"});
  expect_blamed(
      [] {
        if (guilty()) launch({.block = {32}}, [] {});
      },
      {"a kernel cannot launch kernels"});
}

// ---- several OS threads

TEST(SimtTest, WorkersShareTheBlocks) {
  constexpr unsigned kBlocks = 100;
  for (const unsigned workers : {1u, 3u, 200u}) {
    for (const Order order : kOrders) {
      std::vector<unsigned> sums(kBlocks);
      launch({.grid = {kBlocks}, .block = {kThreads}, .order = order, .workers = workers}, [&] {
        PARAMIXER_SHARED(unsigned, tile, kThreads);
        tile[threadIdx.x] = threadIdx.x * blockIdx.x;
        __syncthreads();
        if (threadIdx.x != 7) return;
        sums[blockIdx.x] = std::accumulate(tile, tile + kThreads, 0u);
      });
      for (unsigned b = 0; b < kBlocks; ++b) ASSERT_EQ(sums[b], b * (kThreads - 1) * kThreads / 2);
    }
  }
}

TEST(SimtTest, TheFirstFailingBlockIsReportedWhoeverRunsIt) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    const std::string message = message_of(
        [] {
          if (blockIdx.x >= 2) __syncwarp(0);
        },
        {.grid = {50}, .workers = 4});
    expect_parts(message, {"block (2, 0, 0), thread (0, 0, 0)"});
  }
}

TEST(SimtTest, LaunchesFromSeveralThreadsDoNotMeet) {
  std::vector<std::vector<float>> outputs(4);
  {
    std::vector<std::jthread> threads;
    for (auto& output : outputs) {
      threads.emplace_back([&output] {
        for (int repeat = 0; repeat < 20; ++repeat) {
          output = run(Order::kRandom, 3, add_neighbour_kernel<true>);
        }
      });
    }
  }
  for (const auto& output : outputs) EXPECT_TRUE(same_bits(output, outputs[0]));
}

// ---- what kernels may use

TEST(SimtTest, PrimitivesComputeWhatTheyShould) {
  for (const paramixer::testing::PrimitiveCase& c : paramixer::testing::primitive_cases()) {
    for (const Order order : kOrders) {
      paramixer::testing::Words output(c.expected.size(), 0xffffffffu);
      launch({.name = c.name,
              .block = {paramixer::testing::kPrimitiveThreads},
              .shared_bytes = paramixer::testing::kPrimitiveSharedBytes,
              .order = order},
             [&] { c.kernel(c.input.data(), output.data()); });
      EXPECT_EQ(output, c.expected) << c.name;
    }
  }
}

TEST(SimtTest, ShufflesFollowEachOther) {
  for (const Order order : kOrders) {
    const auto output = run(order, 1, [](float* out) {
      float sum = static_cast<float>(threadIdx.x);
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
      out[threadIdx.x] =
          sum + static_cast<float>(__shfl_down_sync(0xffffffffu, double(threadIdx.x), 1, 8));
    });
    for (unsigned t = 0; t < kThreads; ++t) {
      const unsigned warp = t / 32;
      const unsigned next = t % 8 == 7 ? t : t + 1;
      ASSERT_EQ(output[t], static_cast<float>(32 * 32 * warp + 31 * 16 + next));
    }
  }
}

// Not a test of anything; README.md quotes it.
TEST(SimtTest, PrintsTheTimeOfASwitch) {
  constexpr int kSwitches = 1000000;
  static Fiber fiber;
  fiber.start([] {
    for (;;) fiber.pause();
  });
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kSwitches / 2; ++i) fiber.resume();
  const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
  std::printf("a switch of fibers takes %.1f ns\n", time.count() / kSwitches);
}

TEST(SimtTest, LaunchLimitsAreChecked) {
  const auto nothing = [] {};
  EXPECT_THROW(launch({.block = {33}}, nothing), Error);
  EXPECT_THROW(launch({.block = {2048}}, nothing), Error);
  EXPECT_THROW(launch({.grid = {1, 65536}, .block = {32}}, nothing), Error);
}

TEST(SimtTest, ThreadsOfAllDimensionsAreRun) {
  std::vector<int> runs(2 * 3 * 64);
  launch({.grid = {1, 2, 3}, .block = {4, 8, 2}}, [&] {
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    ++runs[(blockIdx.y + gridDim.y * blockIdx.z) * 64 + thread];
  });
  for (const int count : runs) ASSERT_EQ(count, 1);
}

}  // namespace
}  // namespace simt
