// The CPU kernels of every instruction set this processor has, against the definition in float64
// and against each other.

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <thread>

#include "cpu/kernels.h"
#include "kernel_cases.h"

namespace paramixer {
namespace {

using testing::Case;
using testing::Instance;

std::vector<const cpu::InstructionSet*> supported_sets() {
  std::vector<const cpu::InstructionSet*> sets;
  for (const auto* set : cpu::instruction_sets()) {
    if (set->supported()) sets.push_back(set);
  }
  return sets;
}

// The CPU kernels read channels that lie side by side; the operators copy what does not.
bool has_unit_channels(const Problem& problem) {
  if (problem.channels == 1) return true;
  for (const Operand* operand : {&problem.value, &problem.grad, &problem.result}) {
    if (operand->column != 1) return false;
  }
  return true;
}

// Calls body(instance, problem, all its rows, what to say of it) for every case the kernels take as
// it is, until one fails.
template <typename T, typename Body>
void for_each_case(const Body& body) {
  for (const Case& c : testing::cases()) {
    Instance<T> instance(c);
    const Problem problem = instance.problem();
    if (!has_unit_channels(problem)) continue;
    body(instance, problem, batch_count(problem) * problem.length, describe(c));
    if (::testing::Test::HasFatalFailure()) return;
  }
}

template <typename T>
class CpuKernels : public ::testing::Test {};
TYPED_TEST_SUITE(CpuKernels, testing::DTypes);

TYPED_TEST(CpuKernels, AgreeWithTheDefinition) {
  for_each_case<TypeParam>([](auto& instance, const Problem& problem, int64_t rows, const auto&) {
    for (const auto* set : supported_sets()) {
      for (const Kernel kernel : testing::kKernels) {
        SCOPED_TRACE(std::string(set->name) + " " + testing::name_of(kernel));
        instance.poison_outputs();
        set->kernel(testing::kDType<TypeParam>, kernel)(problem, {0, rows});
        instance.check(kernel);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  });
}

// A row has the same bits in whatever range it is computed: that makes any number of threads agree.
TYPED_TEST(CpuKernels, GiveTheSameBitsForAnyRanges) {
  for_each_case<TypeParam>(
      [](auto& instance, const Problem& problem, int64_t rows, const std::string& description) {
        for (const auto* set : supported_sets()) {
          for (const Kernel kernel : testing::kKernels) {
            const auto run = set->kernel(testing::kDType<TypeParam>, kernel);
            instance.poison_outputs();
            run(problem, {0, rows});
            const auto whole = instance.output_bytes();
            instance.poison_outputs();
            const int64_t cut = rows / 3;
            std::thread last([&] { run(problem, {2 * cut, rows}); });
            std::thread first([&] { run(problem, {0, cut}); });
            run(problem, {cut, 2 * cut});
            first.join();
            last.join();
            ASSERT_EQ(instance.output_bytes(), whole)
                << set->name << " " << testing::name_of(kernel) << ", " << description;
          }
        }
      });
}

// AVX2 and AVX-512 sum in the same order with the same fused multiply-adds.
TYPED_TEST(CpuKernels, OfAvx2AndAvx512HaveTheSameBits) {
  std::vector<const cpu::InstructionSet*> fused;
  for (const auto* set : supported_sets()) {
    if (std::strcmp(set->name, "baseline") != 0) fused.push_back(set);
  }
  if (fused.size() < 2) GTEST_SKIP() << "this processor has no two of them";
  for_each_case<TypeParam>(
      [&](auto& instance, const Problem& problem, int64_t rows, const std::string& description) {
        for (const Kernel kernel : testing::kKernels) {
          instance.poison_outputs();
          fused[0]->kernel(testing::kDType<TypeParam>, kernel)(problem, {0, rows});
          const auto expected = instance.output_bytes();
          instance.poison_outputs();
          fused[1]->kernel(testing::kDType<TypeParam>, kernel)(problem, {0, rows});
          ASSERT_EQ(instance.output_bytes(), expected)
              << testing::name_of(kernel) << ", " << description;
        }
      });
}

// Results large enough to be written past the caches, with links far enough for rows in chains, cut
// where no chain ends.
TEST(CpuKernelsLarge, StreamedResultsAndFarLinksAreTheSame) {
  for (const int64_t reach : {1, 1100}) {
    Instance<float> instance({33000, 80, 3, testing::Layout::kContiguous, reach});
    const Problem problem = instance.problem();
    for (const auto* set : supported_sets()) {
      for (const Kernel kernel : testing::kKernels) {
        SCOPED_TRACE(std::string(set->name) + " " + testing::name_of(kernel));
        const auto run = set->kernel(DType::kFloat32, kernel);
        instance.poison_outputs();
        run(problem, {0, 12345});
        run(problem, {12345, problem.length});
        instance.check(kernel);
      }
    }
  }
}

TEST(Float16, ConversionsAgreeWithEachOther) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Float16 half{static_cast<uint16_t>(bits)};
    const float wide = widen(half);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(widen(narrow<Float16>(wide))));
    } else {
      EXPECT_EQ(narrow<Float16>(wide).bits, bits);
    }
  }
}

TEST(BFloat16, RoundsToNearestEven) {
  const auto rounded = [](uint32_t bits) {
    return narrow<BFloat16>(detail::bit_cast<float>(bits)).bits;
  };
  EXPECT_EQ(rounded(0x3f808000u), 0x3f80);  // a tie, down to even
  EXPECT_EQ(rounded(0x3f818000u), 0x3f82);  // a tie, up to even
  EXPECT_EQ(rounded(0x3f808001u), 0x3f81);
  EXPECT_EQ(rounded(0x7f7fffffu), 0x7f80);           // overflow
  EXPECT_EQ(rounded(0x7f800001u) & 0x7fc0, 0x7fc0);  // NaN
}

}  // namespace
}  // namespace paramixer
