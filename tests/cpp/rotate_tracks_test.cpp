// The CPU kernel of rotate_tracks against the definition, bit by bit.

#include "cpu/rotate_tracks.h"

#include <gtest/gtest.h>

#include "rotation_cases.h"

namespace paramixer {
namespace {

using testing::Case;
using testing::Instance;

template <typename T>
class RotateTracks : public ::testing::Test {};
TYPED_TEST_SUITE(RotateTracks, testing::DTypes);

TYPED_TEST(RotateTracks, IsItsDefinitionForAnyRanges) {
  for (const Case& c : testing::rotation_cases()) {
    SCOPED_TRACE(describe(c));
    Instance<TypeParam> instance(c);
    const Problem problem = instance.problem();
    if (c.channels > 1 && (problem.value.column != 1 || problem.result.column != 1)) continue;
    const std::vector<int64_t> lengths = testing::ring_lengths(problem);
    const int64_t rows = batch_count(problem) * problem.length;
    for (const auto* rings : {static_cast<const std::vector<int64_t>*>(nullptr), &lengths}) {
      const Rotation rotation = make_rotation(instance, rings);
      for (const int64_t range : {rows, int64_t{5}}) {
        instance.poison_outputs();
        for (int64_t first = 0; first < rows; first += range) {
          cpu::rotate_tracks(rotation, sizeof(TypeParam), {first, std::min(first + range, rows)});
        }
        ASSERT_NO_FATAL_FAILURE(instance.check(rotation));
      }
    }
  }
}

}  // namespace
}  // namespace paramixer
