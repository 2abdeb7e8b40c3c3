// The emulator itself: what it must compute, and the mistakes it must find.

#include "simt.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

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
  output[t] = tile[t] + tile[(t + 1) % kThreads];
}

template <typename Kernel>
std::vector<float> run(Order order, unsigned blocks, Kernel kernel) {
  std::vector<float> output(blocks * kThreads, NAN);
  launch({.grid = {blocks},
          .block = {kThreads},
          .shared_bytes = kThreads * sizeof(float),
          .order = order},
         [&] { kernel(output.data()); });
  return output;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::string message_of(const std::function<void()>& kernel) {
  try {
    launch({.block = {kThreads}}, kernel);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
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
  const auto right = run(Order::kForward, 1, add_neighbour_kernel<true>);
  EXPECT_TRUE(same_bits(right, run(Order::kReverse, 1, add_neighbour_kernel<true>)));
  EXPECT_TRUE(same_bits(right, run(Order::kRandom, 1, add_neighbour_kernel<true>)));
  const auto wrong = run(Order::kForward, 1, add_neighbour_kernel<false>);
  EXPECT_FALSE(same_bits(wrong, run(Order::kReverse, 1, add_neighbour_kernel<false>)));
  EXPECT_FALSE(same_bits(wrong, run(Order::kRandom, 1, add_neighbour_kernel<false>)));
}

TEST(SimtTest, ADivergentBarrierIsNamed) {
  const std::string exited = message_of([] {
    if (threadIdx.x == 5) return;
    __syncthreads();
  });
  EXPECT_NE(exited.find("divergent barrier"), std::string::npos) << exited;
  EXPECT_NE(exited.find("(63 threads, first 0)"), std::string::npos) << exited;
  EXPECT_NE(exited.find("exited (1 thread, first 5)"), std::string::npos) << exited;

  const std::string apart = message_of([] {
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  });
  EXPECT_NE(apart.find("divergent barrier"), std::string::npos) << apart;
}

TEST(SimtTest, ADivergentShuffleIsNamed) {
  const std::string message = message_of([] {
    if (threadIdx.x % 32 != 31) __shfl_xor_sync(0xffffffffu, 1.0f, 1);
  });
  EXPECT_NE(message.find("shuffle at simt_test.cpp"), std::string::npos) << message;
  EXPECT_NE(message_of([] { __shfl_xor_sync(0xffffu, 1.0f, 1); }).find("partial mask"),
            std::string::npos);
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
