// Every kernel, dtype, size, layout and variant on the host, against float64.

#include <gtest/gtest.h>

#include <vector>

#include "simt.h"
// The kernels need the words of CUDA that simt.h defines.
#include "kernel_cases.h"
#include "kernels.cuh"
#include "rotate_tracks.cuh"
#include "rotation_cases.h"

namespace paramixer::testing {
namespace {

using cuda::LaunchLimits;
using cuda::LaunchShape;
using Bytes = std::vector<unsigned char>;

std::vector<Case> emulated(const std::vector<Case>& all) {
  if (!simt::kReportsRaces) return all;
  std::vector<Case> some;
  for (size_t i = 0; i < all.size(); i += 19) some.push_back(all[i]);
  return some;
}

simt::Config config_of(const char* name, const LaunchShape& shape, simt::Order order) {
  return {.name = name,
          .grid = {static_cast<unsigned>(shape.blocks)},
          .block = {static_cast<unsigned>(shape.threads)},
          .order = order};
}

template <typename T>
Bytes emulate(Instance<T>& instance, Kernel kernel, const LaunchShape& shape, simt::Order order) {
  instance.poison_outputs();
  const simt::Config config = config_of(name_of(kernel), shape, order);
  cuda::with_kernel<T>(kernel, instance.problem(), shape, [&](auto function, auto arguments) {
    simt::launch(config, [&] { function(arguments); });
  });
  return instance.output_bytes();
}

template <typename T>
void emulate(Instance<T>& instance, const Rotation& rotation, const LaunchShape& shape,
             simt::Order order) {
  instance.poison_outputs();
  const simt::Config config = config_of("rotate_tracks", shape, order);
  cuda::with_rotation(rotation, sizeof(T), shape, [&](auto function, auto arguments) {
    simt::launch(config, [&] { function(arguments); });
  });
  ASSERT_NO_FATAL_FAILURE(instance.check(rotation));
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
    if (simt::kReportsRaces) return;
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
  for (const Case& c : emulated(cases())) {
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

// Words of every size that the case allows, down to one element, with either index.
TYPED_TEST(KernelTest, RotationsAreTheirDefinition) {
  for (const Case& c : emulated(rotation_cases())) {
    SCOPED_TRACE(describe(c));
    Instance<TypeParam> instance(c);
    const std::vector<int64_t> lengths = ring_lengths(instance.problem());
    for (const auto* rings : {static_cast<const std::vector<int64_t>*>(nullptr), &lengths}) {
      const Rotation rotation = make_rotation(instance, rings);
      for (int bytes = cuda::Traits::kVectorBytes; bytes >= int{sizeof(TypeParam)}; bytes /= 2) {
        const LaunchShape shape =
            cuda::rotation_shape(sizeof(TypeParam), rotation, {.vector_bytes = bytes});
        const LaunchShape looping =
            cuda::rotation_shape(sizeof(TypeParam), rotation,
                                 {.max_blocks = 2, .max_index32 = 0, .vector_bytes = bytes});
        ASSERT_TRUE(looping.wide_index && !shape.wide_index);
        ASSERT_NO_FATAL_FAILURE(emulate(instance, rotation, shape, simt::Order::kForward));
        ASSERT_NO_FATAL_FAILURE(emulate(instance, rotation, looping, simt::Order::kRandom));
      }
    }
  }
}

TYPED_TEST(KernelTest, RotationsClampLengths) {
  Instance<TypeParam> instance({17, 12, 3, Layout::kSliced});
  const std::vector<int64_t> wrong = {-1, 18, int64_t{1} << 40}, right = {0, 17, 17};
  Rotation rotation = make_rotation(instance, &wrong);
  instance.poison_outputs();
  const LaunchShape shape = cuda::rotation_shape(sizeof(TypeParam), rotation);
  const simt::Config config = config_of("rotate_tracks", shape, simt::Order::kForward);
  cuda::with_rotation(rotation, sizeof(TypeParam), shape, [&](auto function, auto arguments) {
    simt::launch(config, [&] { function(arguments); });
  });
  rotation.lengths = right.data();
  instance.check(rotation);
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
