// Passes of composed bands on the host: every size, layout and kind of tile against the factors one
// at a time in float64, in three orders of threads.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "simt.h"
// The kernels need the words of CUDA that simt.h defines.
#include "band_cases.h"
#include "band_kernels.cuh"
#include "chain_cases.h"
#include "kernel_cases.h"
#include "paramixer/links.h"
#include "pass_plan.h"

namespace paramixer::testing {
namespace {

using cuda::BandPass;
using cuda::BandShape;

constexpr int64_t kSharedLimit = 227 * 1024;  // compute capability 9.0 and 10.0

template <typename T>
void emulate(const BandPass& pass, simt::Order order = simt::Order::kForward) {
  const BandShape shape = cuda::band_shape(pass);
  ASSERT_GT(shape.rows, 0);
  const auto arguments = cuda::make_band_arguments<T>(pass, shape);
  const auto function = cuda::find_band_kernel<T>(pass);
  simt::launch({.name = "band",
                .grid = {static_cast<unsigned>(shape.blocks)},
                .block = {static_cast<unsigned>(shape.threads)},
                .shared_bytes = shape.shared_bytes,
                .order = order},
               [&] { function(arguments); });
}

template <typename T>
std::vector<unsigned char> emulate(BandInstance<T>& instance,
                                   simt::Order order = simt::Order::kForward) {
  instance.poison_outputs();
  emulate<T>(instance.pass(), order);
  return instance.output_bytes();
}

template <typename T>
class BandTest : public ::testing::Test {};
TYPED_TEST_SUITE(BandTest, BandDTypes);

TYPED_TEST(BandTest, AgreesWithFloat64) {
  // The dtypes share all but a few instructions, and orders matter where threads meet: each second
  // case in one dtype, each fourth in three orders.
  const auto cases = band_cases();
  for (size_t i = std::is_same_v<TypeParam, Float16>; i < cases.size();
       i += simt::kReportsRaces ? 28 : 2) {
    SCOPED_TRACE(describe(cases[i]));
    BandInstance<TypeParam> instance(cases[i]);
    const auto bytes = emulate(instance);
    ASSERT_NO_FATAL_FAILURE(instance.check());
    if (simt::kReportsRaces || i % 4 >= 2) continue;
    EXPECT_TRUE(bytes == emulate(instance, simt::Order::kReverse));
    EXPECT_TRUE(bytes == emulate(instance, simt::Order::kRandom));
  }
}

// On random data, at most 1.05 times the error of single factors that round after each. A
// coefficient's rounding error is common to all channels, so many rows make the sample.
TYPED_TEST(BandTest, ErrsNoMoreThanSingleFactors) {
  if (simt::kReportsRaces) GTEST_SKIP() << "too long for ThreadSanitizer";
  for (const int links : {3, 5, 7, 9}) {
    for (const int factors : {1, 2, 3, 4}) {
      const BandCase c{1024, 8, links, factors, 2, factors % 2 == 1, links == 5};
      SCOPED_TRACE(describe(c));
      BandInstance<TypeParam> instance(c);
      emulate(instance);
      EXPECT_LE(instance.error_ratio(), 1.05);
    }
  }
}

// One infinite element: all rows that link to it see it, and nothing else does but rows of its tile
// in its channel.
TYPED_TEST(BandTest, NonFiniteValuesStayInTileAndChannel) {
  if (simt::kReportsRaces) GTEST_SKIP() << "too long for ThreadSanitizer";
  const int64_t length = 1100, channels = 66, row = 300, channel = 5;
  BandInstance<TypeParam> instance({length, channels, 3, 4});
  const BandPass pass = instance.pass();
  const BandShape shape = cuda::band_shape(pass);
  const int64_t tile_rows = shape.rows - 2 * shape.margin;
  ASSERT_GE(shape.tiles, 3);
  const auto clean_bytes = emulate(instance);
  std::vector<double> clean;
  for (int64_t e = 0; e < length * channels; ++e) {
    clean.push_back(instance.output(0, e / channels, e % channels));
  }
  instance.set_value(0, row, channel, std::numeric_limits<double>::infinity());
  emulate(instance);
  for (int64_t i = 0; i < length; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      const double actual = instance.output(0, i, c);
      if (c == channel && std::abs(i - row) <= shape.margin) {
        EXPECT_FALSE(std::isfinite(actual)) << i;
      } else if (c != channel || std::abs(i / tile_rows - row / tile_rows) > 0) {
        EXPECT_EQ(actual, clean[i * channels + c]) << i << ", " << c;
      }
    }
  }
}

// A chain of CDIL factors (N, M, K) as passes, each from one tensor into another.
template <typename T>
class BandChain {
 public:
  BandChain(int64_t length, int factors, Residual residual)
      : length_(length), factors_(factors), residual_(residual) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (int64_t e = 0; e < length * factors * kLinks; ++e) {
      weight_.push_back(narrow<T>(normal(random) / std::sqrt(float{kLinks})));
    }
    for (int64_t e = 0; e < length * kChannels; ++e) value_.push_back(narrow<T>(normal(random)));
    for (const auto& factor : cdil(length, factors, kLinks)) {
      offsets_.insert(offsets_.end(), factor.begin(), factor.end());
    }
  }

  ChainProblem chain() {
    ChainProblem chain;
    chain.problem.length = length_;
    chain.problem.channels = kChannels;
    chain.problem.links = kLinks;
    chain.problem.weight = {.data = weight_.data(), .row = factors_ * kLinks, .column = 1};
    chain.problem.value = {.data = value_.data(), .row = kChannels, .column = 1};
    chain.weight_factor = kLinks;
    chain.factors = factors_;
    chain.residual = residual_;
    return chain;
  }
  const std::vector<int64_t>& offsets() const { return offsets_; }

  // A plan that has nothing but bands, where there are any.
  ChainPlan plan() {
    const auto bands = [this](int first, int end) {
      return cuda::plan_band(kDType<T>, chain(), offsets_, first, end - first, kSharedLimit);
    };
    return plan_tiles(length_, factors_, offsets_, {},
                      {.factors = cuda::kMaxPassFactors, .product_cost = 1e6}, bands);
  }

  // Runs the passes; a closed one in place.
  void run(const ChainPlan& plan) {
    Storage<T> other(value_.size());
    result_ = value_;
    for (const Sweep& sweep : plan.sweeps) {
      BandPass pass;
      ASSERT_TRUE(cuda::make_band_pass(chain(), offsets_, sweep.first, sweep.factors, pass));
      pass.problem.value = pass.problem.result = chain().problem.value;
      pass.problem.value.data = pass.problem.result.data = result_.data();
      const bool closed = cuda::band_shape(pass).margin == 0;
      if (!closed) pass.problem.result.data = other.data();
      emulate<T>(pass);
      if (!closed) std::swap(result_, other);
    }
  }

  // The 2-norm error over that of single factors.
  double error_ratio() const {
    const auto exact = reference([](double x) { return x; });
    const auto single = reference([](double x) { return double(widen(narrow<T>(float(x)))); });
    double own = 0, others = 0;
    for (size_t e = 0; e < exact.size(); ++e) {
      own += std::pow(widen(result_[e]) - exact[e], 2);
      others += std::pow(single[e] - exact[e], 2);
    }
    return std::sqrt(own / others);
  }

 private:
  static constexpr int kLinks = 3;
  static constexpr int64_t kChannels = 8;

  template <typename Round>
  std::vector<double> reference(Round round) const {
    std::vector<double> from;
    for (const T x : value_) from.push_back(widen(x));
    for (int m = 0; m < factors_; ++m) {
      auto to = residual_ == Residual::kPrevious ? from : std::vector<double>(from.size());
      for (int64_t i = 0; i < length_; ++i) {
        for (int k = 0; k < kLinks; ++k) {
          const double w = widen(weight_[(i * factors_ + m) * kLinks + k]);
          const int64_t other = reduce_offset(i + offsets_[m * kLinks + k], length_);
          for (int64_t c = 0; c < kChannels; ++c) {
            to[i * kChannels + c] += w * from[other * kChannels + c];
          }
        }
      }
      for (double& x : to) x = round(x);
      from = std::move(to);
    }
    return from;
  }

  int64_t length_;
  int factors_;
  Residual residual_;
  Storage<T> weight_, value_, result_;
  std::vector<int64_t> offsets_;
};

TYPED_TEST(BandTest, PassesOfAPlanMakeTheChain) {
  if (simt::kReportsRaces) GTEST_SKIP() << "too long for ThreadSanitizer";
  const auto run = [](int64_t length, int factors, Residual residual, size_t passes) {
    SCOPED_TRACE(length);
    BandChain<TypeParam> chain(length, factors, residual);
    const ChainPlan plan = chain.plan();
    ASSERT_EQ(plan.sweeps.size(), passes);
    ASSERT_NO_FATAL_FAILURE(chain.run(plan));
    EXPECT_LE(chain.error_ratio(), 1.05);
  };
  run(512, 9, Residual::kPrevious, 1);
  run(2048, 11, Residual::kNone, 2);
  run(1000, 10, Residual::kPrevious, 3);  // halo tiles, classes in another order than the ring's
}

TEST(BandPlanTest, TakesFewPasses) {
  const auto plan_of = [](int64_t length, int factors, int links) {
    const cuda::ChainShape shape = {cuda::Direction::kForward,
                                    DType::kBFloat16,
                                    Residual::kPrevious,
                                    length,
                                    /*channels=*/128,
                                    factors,
                                    make_protocol("cdil", cdil(length, factors, links)).offsets,
                                    /*cuts=*/{},
                                    kSharedLimit};
    std::vector<int> sizes;
    for (const Sweep& sweep : cuda::plan_for_cuda(shape).sweeps) {
      EXPECT_EQ(cuda::way_of(sweep), cuda::Way::kBands);
      sizes.push_back(sweep.factors);
    }
    return sizes;
  };
  EXPECT_EQ(plan_of(512, 9, 3), (std::vector<int>{9}));
  EXPECT_EQ(plan_of(16384, 14, 3), (std::vector<int>{5, 9}));
  EXPECT_EQ(plan_of(131072, 17, 3), (std::vector<int>{3, 5, 9}));
  EXPECT_EQ(plan_of(16384, 14, 9), (std::vector<int>{2, 4, 8}));
  EXPECT_EQ(plan_of(16385, 15, 3), (std::vector<int>{3, 6, 6}));  // no class ends: halo tiles only
}

TEST(BandPlanTest, RefusesWhatIsNoBand) {
  BandChain<BFloat16> cdil_chain(512, 9, Residual::kPrevious);
  const auto& offsets = cdil_chain.offsets();
  ChainProblem chain = cdil_chain.chain();
  BandPass pass;
  ASSERT_TRUE(cuda::make_band_pass(chain, offsets, 0, 9, pass));
  constexpr size_t kLeastLimit = 99 * 1024;  // compute capability 8.6, 8.9 and 12.0
  EXPECT_TRUE(cuda::band_serves(DType::kBFloat16, pass, kLeastLimit));
  EXPECT_TRUE(cuda::band_serves(DType::kFloat16, pass, kLeastLimit));
  EXPECT_FALSE(cuda::band_serves(DType::kFloat32, pass, kLeastLimit));
  EXPECT_FALSE(cuda::band_serves(DType::kBFloat16, pass, 64 * 1024));
  auto other = offsets;
  other[4] += 1;  // not twice the factor before
  EXPECT_FALSE(cuda::make_band_pass(chain, other, 0, 2, pass));
  EXPECT_TRUE(cuda::make_band_pass(chain, other, 2, 7, pass));
  chain.residual = Residual::kInitial;
  EXPECT_FALSE(cuda::make_band_pass(chain, offsets, 0, 9, pass));
  chain.residual = Residual::kNone;
  chain.problem.links = 4;
  EXPECT_FALSE(cuda::make_band_pass(chain, std::vector<int64_t>{0, 1, -1, 2}, 0, 1, pass));
}

}  // namespace
}  // namespace paramixer::testing
