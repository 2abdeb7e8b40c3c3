// Grid limits, index width and access width, for problems too large to hold in memory.

#include "launch_shape.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace paramixer::cuda {
namespace {

// Contiguous (B, N, D) with aligned addresses that nobody reads.
Problem contiguous(int64_t batch, int64_t length, int64_t channels, int links) {
  Problem problem;
  problem.length = length;
  problem.channels = channels;
  problem.links = links;
  problem.batch_dims = 1;
  problem.batch_sizes[0] = batch;
  const auto operand = [&](int64_t columns) {
    Operand operand{.data = reinterpret_cast<void*>(uintptr_t{4096}), .row = columns, .column = 1};
    operand.batch[0] = length * columns;
    return operand;
  };
  problem.weight = problem.dots = operand(links);
  problem.value = problem.grad = problem.result = operand(channels);
  return problem;
}

TEST(LaunchShapeTest, OneThreadPerAccessWhenTheGridIsSmallEnough) {
  const LaunchShape shape = launch_shape(Kernel::kMix, sizeof(float), contiguous(8, 1024, 128, 3));
  EXPECT_EQ(shape.width, 4);
  EXPECT_EQ(shape.vectors, 32);
  EXPECT_EQ(shape.threads, Traits::kThreads);
  EXPECT_EQ(shape.blocks, 8 * 1024 * 32 / Traits::kThreads);
  EXPECT_FALSE(shape.wide_index);
}

TEST(LaunchShapeTest, GridEndsWhereBlocksStartToLoop) {
  for (const Kernel kernel :
       {Kernel::kMix, Kernel::kMixTranspose, Kernel::kLinkDot, Kernel::kMixBackward}) {
    const LaunchShape shape =
        launch_shape(kernel, sizeof(BFloat16), contiguous(1, int64_t{1} << 36, 128, 3));
    EXPECT_EQ(shape.blocks, Traits::kMaxBlocks);
    EXPECT_TRUE(shape.wide_index);
  }
}

TEST(LaunchShapeTest, IndicesAreWideOnlyWhereSomethingDoesNotFit) {
  const auto wide = [](const Problem& problem, Kernel kernel) {
    return launch_shape(kernel, sizeof(float), problem).wide_index;
  };
  const int64_t fits = Traits::kMaxIndex32 / 64;
  EXPECT_FALSE(wide(contiguous(1, fits, 64, 3), Kernel::kMix));
  EXPECT_TRUE(wide(contiguous(1, fits + 1, 64, 3), Kernel::kMix));
  // link_dot does not touch the result.
  Problem strided = contiguous(2, 16, 64, 3);
  strided.result.batch[0] = int64_t{1} << 32;
  EXPECT_TRUE(wide(strided, Kernel::kMix));
  EXPECT_FALSE(wide(strided, Kernel::kLinkDot));
  EXPECT_TRUE(wide(strided, Kernel::kMixBackward));
  // Expanded operands are small, but the items are counted in 32 bits too.
  Problem expanded = contiguous(1, int64_t{1} << 31, 1, 1);
  for (Operand* operand : {&expanded.grad, &expanded.value, &expanded.dots}) operand->row = 0;
  EXPECT_TRUE(wide(expanded, Kernel::kLinkDot));
  // row + offset reaches 2 N.
  EXPECT_TRUE(wide(contiguous(1, Traits::kMaxIndex32 / 2 + 1, 1, 1), Kernel::kMix));
}

TEST(LaunchShapeTest, VectorsNeedAlignmentEverywhere) {
  const Problem aligned = contiguous(2, 16, 64, 3);
  const auto width = [](const Problem& problem, Kernel kernel = Kernel::kMix) {
    return launch_shape(kernel, sizeof(float), problem).width;
  };
  EXPECT_EQ(width(aligned), 4);
  EXPECT_EQ(width(contiguous(2, 16, 66, 3)), 1);
  Problem problem = aligned;
  problem.value.data = reinterpret_cast<void*>(uintptr_t{4100});
  EXPECT_EQ(width(problem), 1);
  problem = aligned;
  problem.result.row = 66;
  EXPECT_EQ(width(problem), 1);
  problem = aligned;
  problem.value.batch[0] += 2;
  EXPECT_EQ(width(problem), 1);
  problem = aligned;
  problem.value.column = 2;
  EXPECT_EQ(width(problem), 1);
  // What is not used does not matter: operands the kernel does not touch, strides of a single row
  // or batch item.
  problem = aligned;
  problem.grad.column = 2;
  EXPECT_EQ(width(problem), 4);
  EXPECT_EQ(width(problem, Kernel::kLinkDot), 1);
  problem = contiguous(1, 1, 64, 3);
  problem.value.row = problem.value.batch[0] = 3;
  EXPECT_EQ(width(problem), 4);
}

TEST(LaunchShapeTest, WordsOfARotationDivideItsTracks) {
  const auto word_bytes = [](const Problem& problem, int bytes) {
    return bytes * rotation_shape(bytes, {problem}).width;
  };
  EXPECT_EQ(word_bytes(contiguous(2, 16, 3 * 28, 3), sizeof(float)), 16);
  EXPECT_EQ(word_bytes(contiguous(2, 16, 3 * 10, 3), sizeof(float)), 8);
  EXPECT_EQ(word_bytes(contiguous(2, 16, 3 * 7, 3), sizeof(float)), 4);
  EXPECT_EQ(word_bytes(contiguous(2, 16, 3 * 28, 3), sizeof(BFloat16)), 8);
  EXPECT_EQ(word_bytes(contiguous(2, 16, 3 * 7, 3), sizeof(BFloat16)), 2);
  EXPECT_EQ(word_bytes(contiguous(2, 16, 3 * 7, 3), sizeof(double)), 8);
  Problem problem = contiguous(2, 16, 3 * 28, 3);
  problem.value.data = reinterpret_cast<void*>(uintptr_t{4104});
  EXPECT_EQ(word_bytes(problem, sizeof(float)), 8);
  problem.result.row += 1;
  EXPECT_EQ(word_bytes(problem, sizeof(float)), 4);
}

TEST(LaunchShapeTest, IndicesOfARotationHoldItsShifts) {
  Rotation rotation{contiguous(2, 16, 12, 3)};
  EXPECT_FALSE(rotation_shape(sizeof(float), rotation).wide_index);
  rotation.problem.offsets[1] = -Traits::kMaxIndex32 - 1;
  EXPECT_TRUE(rotation_shape(sizeof(float), rotation).wide_index);
}

TEST(LaunchShapeTest, ShortRowsShareABlock) {
  const auto lanes = [](int64_t channels, int bytes) {
    return launch_shape(Kernel::kLinkDot, bytes, contiguous(1, 64, channels, 3)).lanes;
  };
  EXPECT_EQ(lanes(0, sizeof(float)), 1);
  EXPECT_EQ(lanes(1, sizeof(float)), 1);
  EXPECT_EQ(lanes(3, sizeof(float)), 4);
  EXPECT_EQ(lanes(16, sizeof(float)), 4);
  EXPECT_EQ(lanes(128, sizeof(float)), 8);
  EXPECT_EQ(lanes(129, sizeof(float)), 32);
  EXPECT_EQ(lanes(129, sizeof(double)), 16);
  EXPECT_EQ(lanes(129, sizeof(BFloat16)), 32);
}

}  // namespace
}  // namespace paramixer::cuda
