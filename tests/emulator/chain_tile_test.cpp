// Chains in tiles on the host, against float64: every protocol, small tiles and windows with all
// their borders, every layout, and the plans that the CUDA key makes, with bands too.

#include <gtest/gtest.h>

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "simt.h"
// The kernels need the words of CUDA that simt.h defines.
#include "band_kernels.cuh"
#include "chain_instance.h"
#include "chain_tile_backward.cuh"
#include "kernels.cuh"
#include "pass_plan.h"
#include "window.cuh"

namespace paramixer::testing {
namespace {

using cuda::LaunchLimits;
constexpr cuda::Direction kForward = cuda::Direction::kForward;
using Bytes = std::vector<unsigned char>;

simt::Config config_of(const char* name, const cuda::TileShape& shape, simt::Order order) {
  EXPECT_LE(shape.memory.total(), cuda::TileTraits::kSharedBytes);
  return {.name = name,
          .grid = {static_cast<unsigned>(shape.blocks)},
          .block = {static_cast<unsigned>(shape.threads)},
          .shared_bytes = static_cast<size_t>(shape.memory.total()),
          .order = order};
}

template <typename T>
void emulate_tiles(cuda::Direction direction, const ChainProblem& chain, const Sweep& sweep,
                   simt::Order order, const LaunchLimits& limits) {
  const cuda::TileShape shape = cuda::tile_shape(direction, sizeof(T), chain, sweep, limits);
  const auto arguments = cuda::make_tile_arguments<T>(chain, sweep, shape);
  const char* name = direction == kForward ? "chain_tile" : "chain_tile_backward";
  simt::launch(config_of(name, shape, order),
               [&] { cuda::find_tile_kernel<T>(direction)(arguments); });
}

template <typename T>
void emulate_window(cuda::Direction direction, const ChainProblem& chain, const Sweep& sweep,
                    simt::Order order, const LaunchLimits& limits) {
  cuda::for_each_window_launch<T>(
      direction, chain, sweep, limits,
      [&](auto function, const auto& arguments, const cuda::TileShape& shape) {
        const bool dots = function == &cuda::dot_window_kernel<T>;
        simt::launch(config_of(dots ? "dot_window" : "mix_window", shape, order),
                     [&] { function(arguments); });
        return 0;
      });
}

template <typename T>
void emulate_product(ChainInstance<T>& instance, const ChainProblem& chain, const Sweep& sweep,
                     simt::Order order) {
  Problem problem = chain.problem;
  problem.weight.data = static_cast<T*>(problem.weight.data) + sweep.first * chain.weight_factor;
  const auto& offsets = instance.chain_case().protocol.offsets;
  for (int k = 0; k < problem.links; ++k) {
    problem.offsets[k] = reduce_offset(offsets[sweep.first * problem.links + k], problem.length);
  }
  const cuda::LaunchShape shape = cuda::launch_shape(Kernel::kMix, sizeof(T), problem);
  cuda::with_kernel<T>(Kernel::kMix, problem, shape, [&](auto function, auto arguments) {
    simt::launch({.name = "mix",
                  .grid = {static_cast<unsigned>(shape.blocks)},
                  .block = {static_cast<unsigned>(shape.threads)},
                  .order = order},
                 [&] { function(arguments); });
  });
  instance.add_residual(chain);
}

template <typename T>
void emulate_bands(ChainInstance<T>& instance, const ChainProblem& chain, const Sweep& sweep,
                   simt::Order order) {
  if constexpr (sizeof(T) == 2) {
    cuda::BandPass pass;
    ASSERT_TRUE(cuda::make_band_pass(chain, instance.chain_case().protocol.offsets, sweep.first,
                                     sweep.factors, pass));
    const cuda::BandShape shape = cuda::band_shape(pass);
    const auto arguments = cuda::make_band_arguments<T>(pass, shape);
    simt::launch({.name = "band",
                  .grid = {static_cast<unsigned>(shape.blocks)},
                  .block = {static_cast<unsigned>(shape.threads)},
                  .shared_bytes = shape.shared_bytes,
                  .order = order},
                 [&] { cuda::find_band_kernel<T>(pass)(arguments); });
  } else {
    FAIL() << "bands of another dtype than those of 16 bits";
  }
}

// The whole chain, as the CUDA key runs it.
template <typename T>
Bytes emulate(ChainInstance<T>& instance, const ChainPlan& plan, const std::vector<int64_t>& cuts,
              simt::Order order, const LaunchLimits& limits = {}) {
  instance.poison();
  const auto targets = cuda::choose_targets(plan, cuts);
  Operand state = instance.value();
  for (size_t s = 0; s < targets.size(); ++s) {
    const Sweep& sweep = plan.sweeps[s];
    const Operand target = targets[s] == cuda::Target::kResult ? instance.result()
                           : targets[s] == cuda::Target::kTemporary
                               ? instance.temporary()
                               : instance.kept(sweep.first + sweep.factors);
    const ChainProblem chain = instance.problem(state, target);
    switch (cuda::way_of(sweep)) {
      case cuda::Way::kProduct:
        emulate_product(instance, chain, sweep, order);
        break;
      case cuda::Way::kTiles:
        emulate_tiles<T>(kForward, chain, sweep, order, limits);
        break;
      case cuda::Way::kBands:
        emulate_bands<T>(instance, chain, sweep, order);
        break;
      case cuda::Way::kWindows:
        emulate_window<T>(kForward, chain, sweep, order, limits);
        break;
    }
    state = target;
  }
  return instance.bytes();
}

// One sweep backward.
template <typename T>
Bytes emulate_backward(ChainInstance<T>& instance, const Sweep& sweep, simt::Order order,
                       const LaunchLimits& limits = {}) {
  const ChainProblem chain = instance.backward_problem(sweep);
  instance.poison();
  const bool window = cuda::way_of(sweep) == cuda::Way::kWindows;
  (window ? emulate_window<T> : emulate_tiles<T>)(cuda::Direction::kBackward, chain, sweep, order,
                                                  limits);
  return instance.bytes();
}

std::vector<int64_t> lengths() {
  if (simt::kReportsRaces) return {64};
  return {1, 2, 3, 8, 17, 64, 100};
}

template <typename T>
class ChainTileTest : public ::testing::Test {
 protected:
  static void run(const ChainCase& c, const ChainPlan& plan, const std::vector<int64_t>& cuts = {},
                  bool every_order = true) {
    SCOPED_TRACE(describe(c));
    ChainInstance<T> instance(c);
    const Bytes bytes = emulate(instance, plan, cuts, simt::Order::kForward);
    ASSERT_NO_FATAL_FAILURE(instance.check());
    if (!every_order || simt::kReportsRaces) return;
    EXPECT_TRUE(bytes == emulate(instance, plan, cuts, simt::Order::kReverse));
    EXPECT_TRUE(bytes == emulate(instance, plan, cuts, simt::Order::kRandom, {.max_blocks = 2}));
    EXPECT_TRUE(bytes == emulate(instance, plan, cuts, simt::Order::kForward, {.vector_bytes = 1}))
        << "scalar accesses";
  }

  static void run_backward(const ChainCase& c, const ChainPlan& plan, bool every_order = true) {
    SCOPED_TRACE(describe(c));
    ChainInstance<T> instance(c);
    for (const Sweep& sweep : plan.sweeps) {
      if (sweep.tile == 0) continue;
      SCOPED_TRACE("from factor " + std::to_string(sweep.first));
      const Bytes bytes = emulate_backward(instance, sweep, simt::Order::kForward);
      ASSERT_NO_FATAL_FAILURE(instance.check_backward(sweep));
      if (!every_order || simt::kReportsRaces) continue;
      EXPECT_TRUE(bytes == emulate_backward(instance, sweep, simt::Order::kReverse));
      EXPECT_TRUE(bytes ==
                  emulate_backward(instance, sweep, simt::Order::kRandom, {.max_blocks = 2}));
      EXPECT_TRUE(bytes ==
                  emulate_backward(instance, sweep, simt::Order::kForward, {.vector_bytes = 1}))
          << "scalar accesses";
    }
  }

  // With tiles of so few rows that small rings have many, and rows of so many 16-byte pieces but
  // where three links want another number.
  static ChainPlan small_tiles(const ChainCase& c, int64_t rows, int pieces,
                               int factors = cuda::TileTraits::kMostFactors,
                               const std::vector<int64_t>& cuts = {}) {
    const int64_t channels = c.protocol.links == 3 ? cuda::kThreeQuads * cuda::kQuad
                                                   : pieces * cuda::Traits::kVectorBytes /
                                                         static_cast<int64_t>(sizeof(T));
    return plan_tiles(
        c.length, factor_count(c.protocol), c.protocol.offsets, cuts,
        {.rows = rows, .channels = channels, .factors = factors, .product_cost = 1e6});
  }

  // Every factor with a window of so many bytes of shared memory that small rings have several.
  static ChainPlan small_windows(const ChainCase& c, int64_t shared_bytes) {
    ChainPlan plan;
    const int links = c.protocol.links;
    std::vector<int64_t> offsets;
    for (const int64_t offset : c.protocol.offsets) {
      offsets.push_back(reduce_offset(offset, c.length));
    }
    for (int m = 0; m < factor_count(c.protocol); ++m) {
      auto window = cuda::plan_window(kForward, sizeof(T), c.length, c.channels,
                                      std::span<const int64_t>(offsets).subspan(m * links, links),
                                      shared_bytes);
      if (!window) {
        ADD_FAILURE() << "no window of " << shared_bytes << " bytes";
        continue;
      }
      window->sweeps[0].first = m;
      plan.sweeps.push_back(window->sweeps[0]);
      plan.offsets.push_back(std::move(window->offsets[0]));
    }
    return plan;
  }

  static ChainPlan own_plan(const ChainCase& c, cuda::Direction direction = kForward,
                            int64_t band_bytes = 0, const std::vector<int64_t>& cuts = {}) {
    return cuda::plan_for_cuda({direction, kDType<T>, c.residual, c.length, c.channels,
                                factor_count(c.protocol), c.protocol.offsets, cuts, band_bytes});
  }
};

TYPED_TEST_SUITE(ChainTileTest, TileDTypes);

// Whole rings and pieces with halos, every residual, groups of channels that end within a lane.
TYPED_TEST(ChainTileTest, SmallTiles) {
  int turn = 0, pieces = 0, whole = 0;
  for (const int64_t length : lengths()) {
    const int factors = static_cast<int>(default_factors(length)) + 1;
    for (const Protocol& protocol : protocols(length, factors)) {
      const ChainCase c = {length, std::vector<int64_t>{1, 8, 20, 33}[turn % 4], protocol,
                           Residual(turn % 3), ChainLayout(turn % kChainLayoutCount)};
      ++turn;
      const std::vector<int64_t> cuts = turn % 2 ? std::vector<int64_t>{} : std::vector<int64_t>{1};
      const ChainPlan plan = this->small_tiles(c, turn % 4 < 2 ? 40 : 64, 1 << turn % 3,
                                               cuda::TileTraits::kMostFactors, cuts);
      for (const Sweep& sweep : plan.sweeps) {
        if (sweep.tile > 0) ++(sweep.tile == sweep.ring ? whole : pieces);
      }
      ASSERT_NO_FATAL_FAILURE(this->run(c, plan, cuts));
    }
  }
  EXPECT_GT(whole, simt::kReportsRaces ? 1 : 60);
  EXPECT_GT(pieces, simt::kReportsRaces ? 1 : 10);
}

TYPED_TEST(ChainTileTest, SmallTilesBackward) {
  int turn = 0, pieces = 0;
  for (const int64_t length : lengths()) {
    const int factors = static_cast<int>(default_factors(length)) + 1;
    for (const Protocol& protocol : protocols(length, factors)) {
      const ChainCase c = {length, std::vector<int64_t>{1, 8, 20, 33}[turn % 4], protocol,
                           Residual(turn % 2), ChainLayout(turn % kChainLayoutCount)};
      ++turn;
      const ChainPlan plan = this->small_tiles(c, turn % 4 < 2 ? 40 : 64, 1 << turn % 3, 3);
      for (const Sweep& sweep : plan.sweeps) pieces += sweep.tile > 0 && sweep.tile < sweep.ring;
      ASSERT_NO_FATAL_FAILURE(this->run_backward(c, plan, turn % 2 == 0));
    }
  }
  EXPECT_GT(pieces, simt::kReportsRaces ? 1 : 10);
}

// Tiles and windows that end within the ring and beyond its seam, near and far links of any number.
TYPED_TEST(ChainTileTest, SmallWindows) {
  int turn = 0, pieces = 0, near = 0, far = 0;
  for (const int64_t length : lengths()) {
    for (const Protocol& protocol : protocols(length, /*factors=*/2)) {
      ++turn;
      if (simt::kReportsRaces && turn % 4 != 0) continue;
      const ChainCase c = {length, std::vector<int64_t>{1, 8, 33, 70}[turn % 4], protocol,
                           Residual(turn % 3), ChainLayout(turn % kChainLayoutCount)};
      const int64_t row = cuda::kWindowRowBytes + 16 * (protocol.links / 4 + 2);
      const int64_t rows = std::vector<int64_t>{30, 12, 7, 90}[turn / 2 % 4];
      const ChainPlan plan = this->small_windows(c, rows * row);
      for (const Sweep& sweep : plan.sweeps) {
        const cuda::WindowLinks links = cuda::window_links(sweep, protocol.links);
        pieces += sweep.tile < sweep.ring;
        near += links.near.size() >= 4;
        far += !links.far.empty();
      }
      ASSERT_NO_FATAL_FAILURE(this->run(c, plan, {}, turn % 3 == 0));
      ASSERT_NO_FATAL_FAILURE(this->run_backward(c, plan, turn % 3 == 1));
    }
  }
  EXPECT_GT(pieces, simt::kReportsRaces ? 1 : 40);
  EXPECT_GT(near, simt::kReportsRaces ? 1 : 20);
  EXPECT_GE(far, simt::kReportsRaces ? 0 : 4);
}

TYPED_TEST(ChainTileTest, EveryLayoutWithEveryResidual) {
  if (simt::kReportsRaces) GTEST_SKIP() << "too long for ThreadSanitizer";
  for (int layout = 0; layout < kChainLayoutCount; ++layout) {
    for (const Residual residual : {Residual::kNone, Residual::kPrevious, Residual::kInitial}) {
      for (const int links : {3, 5}) {
        const Protocol protocol = make_protocol("cdil", cdil(48, 6, links));
        const ChainCase c = {48, 32, protocol, residual, ChainLayout(layout)};
        ASSERT_NO_FATAL_FAILURE(this->run(c, this->small_tiles(c, 40, 2)));
        const int together = residual == Residual::kInitial ? 1 : 2;
        ASSERT_NO_FATAL_FAILURE(this->run_backward(c, this->small_tiles(c, 40, 2, together)));
      }
    }
  }
}

TYPED_TEST(ChainTileTest, PlansOfTheCudaKey) {
  if (simt::kReportsRaces) GTEST_SKIP() << "too long for ThreadSanitizer";
  struct Size {
    int64_t length, channels;
    Residual residual;
  };
  for (const auto& [length, channels, residual] :
       {Size{512, 24, Residual::kNone}, Size{1024, 16, Residual::kPrevious},
        Size{2000, 9, Residual::kInitial}, Size{4097, 8, Residual::kNone}}) {
    for (const FactorOffsets& offsets : {cdil(length), cdil(length, std::nullopt, 9)}) {
      const ChainCase c = {length, channels, make_protocol("cdil", offsets), residual,
                           ChainLayout::kContiguous};
      const ChainPlan plan = this->own_plan(c);
      ASSERT_LE(plan.sweeps.size(), 6);
      ASSERT_NO_FATAL_FAILURE(this->run(c, plan, {}, false));
      if (length > 1024) continue;  // the emulator's time
      const ChainPlan backward = this->own_plan(c, cuda::Direction::kBackward);
      EXPECT_GT(backward.sweeps[0].tile, 0);
      ASSERT_NO_FATAL_FAILURE(this->run_backward(c, backward, false));
    }
  }
}

// Bands next to tiles and to each other, in place where their tiles are closed.
TYPED_TEST(ChainTileTest, PlansWithBands) {
  if (simt::kReportsRaces) GTEST_SKIP() << "too long for ThreadSanitizer";
  if (sizeof(TypeParam) != 2) GTEST_SKIP() << "bands are of 16 bits";
  struct Size {
    int64_t length, channels;
    std::vector<int64_t> cuts;
    ChainLayout layout;
  };
  int bands = 0, others = 0;
  for (const auto& [length, channels, cuts, layout] :
       {Size{512, 24, {}, ChainLayout::kShifted}, Size{1024, 40, {}, ChainLayout::kSliced},
        Size{1024, 32, {4, 8}, ChainLayout::kFactorsOutside},
        Size{1000, 64, {}, ChainLayout::kTransposed}}) {
    for (const Residual residual : {Residual::kNone, Residual::kPrevious}) {
      const ChainCase c = {length, channels, make_protocol("cdil", cdil(length)), residual, layout};
      const ChainPlan plan = this->own_plan(c, kForward, 227 * 1024, cuts);
      for (const Sweep& sweep : plan.sweeps) ++(sweep.bands ? bands : others);
      ASSERT_NO_FATAL_FAILURE(this->run(c, plan, cuts, false));
    }
  }
  EXPECT_GE(bands, 6);
  EXPECT_GE(others, 2);
}

// Far links, a seam within a window, rings that tiles do not divide, and two rows a thread.
TYPED_TEST(ChainTileTest, ChordOnALongRingHasWindows) {
  if (simt::kReportsRaces) GTEST_SKIP() << "too long for ThreadSanitizer";
  const int64_t whole = sizeof(TypeParam) == 2 ? 64 : 40;  // groups of channels
  for (const auto& [length, channels] : {std::pair{int64_t{4096}, whole}, {4097, 9}}) {
    const ChainCase c = {length, channels, make_protocol("chord", chord(length, /*factors=*/2)),
                         Residual::kPrevious, ChainLayout::kContiguous};
    for (const auto direction : {kForward, cuda::Direction::kBackward}) {
      const ChainPlan plan = this->own_plan(c, direction);
      ASSERT_EQ(plan.sweeps.size(), 2);
      for (const Sweep& sweep : plan.sweeps) {
        if (channels == 9) continue;  // products may be cheaper
        ASSERT_EQ(cuda::way_of(sweep), cuda::Way::kWindows);
        const cuda::WindowLinks links = cuda::window_links(sweep, c.protocol.links);
        EXPECT_GE(links.near.size(), 9);
        EXPECT_GE(links.far.size(), 2);
      }
      if (direction == kForward) {
        ASSERT_NO_FATAL_FAILURE(this->run(c, plan, {}, false));
      } else {
        ASSERT_NO_FATAL_FAILURE(this->run_backward(c, plan, false));
      }
    }
    const ChainPlan small = this->small_windows(c, 20 * 1024);
    for (const Sweep& sweep : small.sweeps) {
      EXPECT_GT(sweep.tile, 64);
      EXPECT_GE(cuda::window_links(sweep, c.protocol.links).far.size(), 4);
    }
    ASSERT_NO_FATAL_FAILURE(this->run(c, small, {}, false));
    ASSERT_NO_FATAL_FAILURE(this->run_backward(c, small, false));
  }
}

TYPED_TEST(ChainTileTest, ChordOnAShortRingIsOneLaunch) {
  if (simt::kReportsRaces) GTEST_SKIP() << "too long for ThreadSanitizer";
  for (const int64_t length : {509, 1024, 2000}) {
    const ChainCase c = {length, 20, make_protocol("chord", chord(length)), Residual::kPrevious,
                         ChainLayout::kContiguous};
    const ChainPlan plan = this->own_plan(c);
    ASSERT_EQ(plan.sweeps.size(), 1);
    ASSERT_EQ(plan.sweeps[0].tile, length);
    ASSERT_NO_FATAL_FAILURE(this->run(c, plan, {}, false));
  }
}

}  // namespace
}  // namespace paramixer::testing
