// Passes of composed bands on the host: every size, layout and kind of tile against the factors one
// at a time in float64, in three orders of threads.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "simt.h"
// The kernels need the words of CUDA that simt.h defines.
#include "band_cases.h"
#include "band_kernels.cuh"

namespace paramixer::testing {
namespace {

using cuda::BandPass;
using cuda::BandShape;

// ThreadSanitizer finds a race in any order of threads, but takes a thousand times as long.
#if defined(__SANITIZE_THREAD__)
constexpr bool kOnlyRaces = true;
#else
constexpr bool kOnlyRaces = false;
#endif

template <typename T>
std::vector<unsigned char> emulate(BandInstance<T>& instance,
                                   simt::Order order = simt::Order::kForward) {
  instance.poison_outputs();
  const BandPass pass = instance.pass();
  const BandShape shape = cuda::band_shape(pass);
  const auto arguments = cuda::make_band_arguments<T>(pass, shape);
  const auto function = cuda::find_band_kernel<T>(pass);
  simt::launch({.name = "band",
                .grid = {static_cast<unsigned>(shape.blocks)},
                .block = {static_cast<unsigned>(shape.threads)},
                .shared_bytes = shape.shared_bytes,
                .order = order},
               [&] { function(arguments); });
  return instance.output_bytes();
}

template <typename T>
class BandTest : public ::testing::Test {};
TYPED_TEST_SUITE(BandTest, BandDTypes);

TYPED_TEST(BandTest, AgreesWithFloat64) {
  const auto cases = band_cases();
  for (size_t i = 0; i < cases.size(); i += kOnlyRaces ? 29 : 1) {
    SCOPED_TRACE(describe(cases[i]));
    BandInstance<TypeParam> instance(cases[i]);
    const auto bytes = emulate(instance);
    ASSERT_NO_FATAL_FAILURE(instance.check());
    if (kOnlyRaces) continue;
    EXPECT_TRUE(bytes == emulate(instance, simt::Order::kReverse));
    EXPECT_TRUE(bytes == emulate(instance, simt::Order::kRandom));
  }
}

}  // namespace
}  // namespace paramixer::testing
