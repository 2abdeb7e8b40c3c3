// Every kernel, dtype, size, layout and variant on the host, against float64.

#include <gtest/gtest.h>

#include <vector>

#include "simt.h"
// The kernels need the words of CUDA that simt.h defines.
#include "kernel_cases.h"
#include "kernels.cuh"

namespace paramixer::testing {
namespace {

using cuda::LaunchLimits;
using cuda::LaunchShape;
using Bytes = std::vector<unsigned char>;

// ThreadSanitizer finds a race in any order of threads and in any variant, but takes a thousand
// times as long.
#if defined(__SANITIZE_THREAD__)
constexpr bool kOnlyRaces = true;
#else
constexpr bool kOnlyRaces = false;
#endif

std::vector<Case> emulated_cases() {
  const std::vector<Case> all = cases();
  if (!kOnlyRaces) return all;
  std::vector<Case> some;
  for (size_t i = 0; i < all.size(); i += 19) some.push_back(all[i]);
  return some;
}

template <typename T>
Bytes emulate(Instance<T>& instance, Kernel kernel, const LaunchShape& shape, simt::Order order) {
  instance.poison_outputs();
  const simt::Config config{.name = name_of(kernel),
                            .grid = {static_cast<unsigned>(shape.blocks)},
                            .block = {static_cast<unsigned>(shape.threads)},
                            .order = order};
  cuda::with_kernel<T>(kernel, instance.problem(), shape, [&](auto function, auto arguments) {
    simt::launch(config, [&] { function(arguments); });
  });
  return instance.output_bytes();
}

template <typename T>
class KernelTest : public ::testing::Test {
 protected:
  static LaunchShape shape_of(const Instance<T>& instance, Kernel kernel,
                              const LaunchLimits& limits = {}) {
    return cuda::launch_shape(kernel, sizeof(T), instance.problem(), limits);
  }

  // What the launch would run, and the variants of larger and of unaligned tensors, with threads in
  // three orders.
  static void run(Instance<T>& instance, Kernel kernel) {
    SCOPED_TRACE(name_of(kernel));
    const LaunchShape shape = shape_of(instance, kernel);
    const Bytes outputs = emulate(instance, kernel, shape, simt::Order::kForward);
    ASSERT_NO_FATAL_FAILURE(instance.check(kernel));
    if (kOnlyRaces) return;
    EXPECT_TRUE(outputs == emulate(instance, kernel, shape, simt::Order::kReverse));

    const LaunchShape wide = shape_of(instance, kernel, {.max_index32 = 0});
    ASSERT_TRUE(wide.wide_index && !shape.wide_index);
    EXPECT_TRUE(outputs == emulate(instance, kernel, wide, simt::Order::kRandom))
        << "64-bit indices";

    const LaunchShape looping = shape_of(instance, kernel, {.max_blocks = 2});
    EXPECT_TRUE(outputs == emulate(instance, kernel, looping, simt::Order::kForward))
        << "two blocks";

    if (shape.width == 1) return;
    const LaunchShape scalar = shape_of(instance, kernel, {.vector_bytes = 1});
    ASSERT_EQ(scalar.width, 1);
    emulate(instance, kernel, scalar, simt::Order::kForward);
    ASSERT_NO_FATAL_FAILURE(instance.check(kernel)) << "scalar accesses";
  }
};

TYPED_TEST_SUITE(KernelTest, DTypes);

TYPED_TEST(KernelTest, AgreesWithFloat64) {
  for (const Case& c : emulated_cases()) {
    SCOPED_TRACE(describe(c));
    Instance<TypeParam> instance(c);
    for (const Kernel kernel : kKernels) ASSERT_NO_FATAL_FAILURE(this->run(instance, kernel));
  }
}

TYPED_TEST(KernelTest, CasesReachBothAccessWidths) {
  int vector = 0, scalar = 0;
  for (const Case& c : cases()) {
    const Instance<TypeParam> instance(c);
    for (const Kernel kernel : kKernels) {
      ++(this->shape_of(instance, kernel).width > 1 ? vector : scalar);
    }
  }
  EXPECT_GT(vector, 40);
  EXPECT_GT(scalar, 40);
}

TYPED_TEST(KernelTest, LinkDotOfNoChannelsIsZero) {
  Instance<TypeParam> instance({5, 0, 3, Layout::kShifted});
  const LaunchShape shape = this->shape_of(instance, Kernel::kLinkDot);
  ASSERT_GT(shape.blocks, 0);
  emulate(instance, Kernel::kLinkDot, shape, simt::Order::kForward);
  instance.check(Kernel::kLinkDot);
}

}  // namespace
}  // namespace paramixer::testing
