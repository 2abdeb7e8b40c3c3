// Grid limits, index width and access width, for problems too large to hold in memory, how chains
// in tiles are launched, and when chains run in bands or with windows.

#include "launch_shape.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <stdexcept>
#include <vector>

#include "chain_cases.h"
#include "pass_plan.h"
#include "tile_arguments.h"

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

// A contiguous chain of M CDIL factors and its plan.
struct PlannedChain {
  ChainProblem chain;
  ChainPlan plan;

  PlannedChain(Direction direction, DType dtype, int64_t batch, int64_t length, int64_t channels,
               const testing::Protocol& protocol) {
    chain.factors = testing::factor_count(protocol);
    chain.weight_factor = protocol.links;
    chain.problem = contiguous(batch, length, channels, protocol.links);
    Operand& weight = chain.problem.weight;
    weight.row *= chain.factors;
    weight.batch[0] *= chain.factors;
    plan = plan_for_cuda({direction, dtype, chain.residual, length, channels, chain.factors,
                          protocol.offsets, /*cuts=*/{}});
  }

  TileShape shape(Direction direction, int bytes, size_t sweep) const {
    return tile_shape(direction, bytes, chain, plan.sweeps[sweep]);
  }
};

TEST(TileShapeTest, BlocksShareTheChannelsOfATileWhereTilesAreFew) {
  const auto protocol = testing::make_protocol("cdil", cdil(16384));
  // 32 tiles of 512 rows a batch item, 8 groups of 16 channels, 264 blocks at once.
  for (const auto& [batch, splits] : {std::pair{1, 8}, {2, 4}, {8, 1}, {9, 4}, {64, 1}}) {
    const PlannedChain planned(Direction::kForward, DType::kFloat32, batch, 16384, 128, protocol);
    ASSERT_EQ(planned.plan.sweeps.size(), 2);  // whatever the batch
    for (const size_t sweep : {0, 1}) {
      const TileShape shape = planned.shape(Direction::kForward, sizeof(float), sweep);
      EXPECT_EQ(shape.blocks, batch * 32 * splits) << batch;
      EXPECT_EQ(shape.threads, TileTraits::kThreads);
      EXPECT_TRUE(shape.vectors);
    }
  }
}

// Two factors a turn, in whatever order their columns are, while chains have enough rows.
TEST(TileShapeTest, TurnsOfCdil) {
  for (const bool permute : {false, true}) {
    for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
      const FactorOffsets offsets = cdil(4096);
      const auto protocol =
          testing::make_protocol("cdil", permute ? testing::permuted(offsets) : offsets);
      const PlannedChain planned(direction, DType::kFloat32, 1, 4096, 64, protocol);
      for (size_t s = 0; s < planned.plan.sweeps.size(); ++s) {
        const Sweep& sweep = planned.plan.sweeps[s];
        const TileShape shape = planned.shape(direction, sizeof(float), s);
        ASSERT_LE(shape.memory.total(), TileTraits::kSharedBytes);
        const auto arguments = make_tile_arguments<float>(planned.chain, sweep, shape);
        ASSERT_EQ(arguments.turns, (sweep.factors + 1) / 2);
        const int buffers = direction == Direction::kForward ? 1 : sweep.factors / 2 + 2;
        EXPECT_EQ(shape.memory.buffers, buffers);
        for (int t = 0; t < sweep.factors / 2; ++t) {
          const Turn& turn = arguments.turn[t];
          EXPECT_EQ(turn.factors, 2);
          EXPECT_EQ(turn.distance % (1 << 2 * t), 0);
          EXPECT_EQ(turn.segment, std::min(TileTraits::kSegment, arguments.rows / turn.distance));
        }
      }
    }
  }
}

TEST(CudaPlanTest, BandsWhereTheyCostLess) {
  constexpr int64_t kLeastLimit = 99 * 1024, kLimit = 227 * 1024;
  const auto chain_of = [](DType dtype, int64_t length, const FactorOffsets& offsets) {
    const auto protocol = testing::make_protocol("", offsets);
    return ChainShape{Direction::kForward, dtype,
                      Residual::kNone,     length,
                      /*channels=*/128,    testing::factor_count(protocol),
                      protocol.offsets,
                      /*cuts=*/{},         kLimit};
  };
  const auto ways_of = [](const ChainShape& chain) {
    std::set<Way> ways;
    for (const Sweep& sweep : plan_for_cuda(chain).sweeps) ways.insert(way_of(sweep));
    return ways;
  };
  using Ways = std::set<Way>;
  for (const int64_t length : {512, 4096, 16384, 16385, 131072}) {
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      EXPECT_EQ(ways_of(chain_of(dtype, length, cdil(length))), Ways{Way::kBands}) << length;
    }
    EXPECT_EQ(ways_of(chain_of(DType::kFloat32, length, cdil(length))), Ways{Way::kTiles});
    EXPECT_FALSE(ways_of(chain_of(DType::kBFloat16, length, chord(length))).contains(Way::kBands));
  }
  const ChainShape bands = chain_of(DType::kBFloat16, 16384, cdil(16384));
  const auto but = [&](auto change) {
    ChainShape other = bands;
    change(other);
    return ways_of(other);
  };
  EXPECT_EQ(but([](ChainShape& c) { c.residual = Residual::kPrevious; }), Ways{Way::kBands});
  EXPECT_EQ(but([](ChainShape& c) { c.band_bytes = kLeastLimit; }), Ways{Way::kBands});
  EXPECT_EQ(but([](ChainShape& c) { c.band_bytes = 0; }), Ways{Way::kTiles});
  EXPECT_EQ(but([](ChainShape& c) { c.channels = 8; }), Ways{Way::kTiles});
  EXPECT_EQ(but([](ChainShape& c) { c.direction = Direction::kBackward; }), Ways{Way::kTiles});
  EXPECT_FALSE(but([](ChainShape& c) { c.residual = Residual::kInitial; }).contains(Way::kBands));
  // One factor that is no band, between factors that are.
  ChainShape mixed = bands;
  mixed.offsets[5 * 3 + 1] += 1;
  mixed.cuts = {5, 6};
  const auto sweeps = plan_for_cuda(mixed).sweeps;
  ASSERT_EQ(sweeps.size(), 3);
  EXPECT_EQ(way_of(sweeps[0]), Way::kBands);
  EXPECT_NE(way_of(sweeps[1]), Way::kBands);
  EXPECT_EQ(way_of(sweeps[2]), Way::kBands);
  // Bands of nine links are too large for the smaller multiprocessors.
  ChainShape wide = chain_of(DType::kBFloat16, 16384, cdil(16384, std::nullopt, 9));
  EXPECT_EQ(ways_of(wide), Ways{Way::kBands});
  wide.band_bytes = kLeastLimit;
  EXPECT_EQ(ways_of(wide), Ways{Way::kTiles});
}

TEST(CudaPlanTest, WindowsWhereLinksLeadTooFarForTiles) {
  const auto ways_of = [](Direction direction, DType dtype, int64_t length, int64_t channels,
                          const FactorOffsets& offsets, Residual residual = Residual::kPrevious) {
    const auto protocol = testing::make_protocol("", offsets);
    std::set<Way> ways;
    for (const Sweep& sweep :
         plan_for_cuda({direction, dtype, residual, length, channels,
                        testing::factor_count(protocol), protocol.offsets, /*cuts=*/{}})
             .sweeps) {
      ways.insert(way_of(sweep));
    }
    return ways;
  };
  using Ways = std::set<Way>;
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      for (const int64_t length : {4096, 4097, 16384, 131072}) {
        for (const int64_t channels : {32, 128}) {
          EXPECT_EQ(ways_of(direction, dtype, length, channels, chord(length)),
                    Ways{Way::kWindows});
        }
      }
      EXPECT_EQ(ways_of(direction, dtype, 16384, 128, cdil(16384)), Ways{Way::kTiles});
    }
    EXPECT_EQ(ways_of(direction, DType::kFloat64, 16384, 128, chord(16384)), Ways{Way::kProduct});
  }
  const auto of_initial = [&](Direction direction) {
    return ways_of(direction, DType::kFloat32, 16384, 128, chord(16384), Residual::kInitial);
  };
  EXPECT_EQ(of_initial(Direction::kForward), Ways{Way::kWindows});
  EXPECT_EQ(of_initial(Direction::kBackward), Ways{Way::kWindows});
}

TEST(WindowTest, LinksStayInTheWindowOrLeadOutOfIt) {
  for (const int64_t length : {5, 64, 1000, 4096, 4097, 65536, 1 << 30}) {
    for (const FactorOffsets& offsets : {chord(length), cdil(length), cdil(length, std::nullopt, 9),
                                         testing::random_offsets(3, 7, 0, length - 1)}) {
      for (const int bytes : {2, 4}) {
        for (const int64_t shared : {4 * 1024, 99 * 1024}) {
          std::vector<int64_t> reduced;
          for (const int64_t offset : offsets.back()) {
            reduced.push_back(reduce_offset(offset, length));
          }
          const auto plan =
              plan_window(Direction::kForward, bytes, length, /*channels=*/20, reduced, shared);
          ASSERT_TRUE(plan.has_value());
          const Sweep& sweep = plan->sweeps[0];
          const WindowLinks links = window_links(sweep, static_cast<int>(reduced.size()));
          EXPECT_EQ(links.near.size() + links.far.size(), reduced.size());
          ASSERT_LE(window_memory(sweep, links).total(), shared);
          ASSERT_GE(sweep.halo, 0);
          ASSERT_GE(sweep.window, sweep.tile + sweep.halo);
          ASSERT_EQ(sweep.ring * sweep.classes, length);
          for (const int k : links.near) {
            // From any row of the tile to a row of the window, which lies that far along the ring.
            const int64_t along = paramixer::detail::shorter_way(sweep.offsets[k], sweep.ring);
            EXPECT_GE(sweep.halo + along, 0);
            EXPECT_LE(sweep.halo + sweep.tile + along, sweep.window);
            EXPECT_EQ(reduce_offset(along * sweep.step, length), reduced[k]);
          }
        }
      }
    }
  }
}

// One row of the window for every row of the tile, and one of memory for a far link, take less time
// than one of L2 for every link.
TEST(WindowTest, ALongTileHasAWindowOfItsNearestLinks) {
  const std::vector<int64_t> offsets = chord(16384)[0];
  const auto plan = plan_window(Direction::kForward, sizeof(float), 16384, 128, offsets);
  ASSERT_TRUE(plan.has_value());
  const Sweep& sweep = plan->sweeps[0];
  EXPECT_EQ(window_links(sweep, 15).near.size(), 11);  // 0 to 512
  EXPECT_EQ(sweep.halo, 0);
  EXPECT_EQ(sweep.window - sweep.tile, 512);
  EXPECT_EQ(sweep.tile, 497);  // 33 equal tiles
}

TEST(CudaPlanTest, SwitchOfBands) {
  EXPECT_TRUE(parse_band_switch(nullptr));
  EXPECT_TRUE(parse_band_switch("on"));
  EXPECT_FALSE(parse_band_switch("off"));
  EXPECT_THROW(parse_band_switch("0"), std::runtime_error);
}

// Gradients between factors are wanted, so that no sweep takes two of them.
TEST(CudaPlanTest, GradientsWithTheInitialValueTakeOneFactorASweep) {
  for (const FactorOffsets& offsets : {cdil(1024), cdil(1024, std::nullopt, 9), chord(1024)}) {
    const auto protocol = testing::make_protocol("", offsets);
    const ChainPlan plan =
        plan_for_cuda({Direction::kBackward, DType::kFloat32, Residual::kInitial, 1024, 64,
                       testing::factor_count(protocol), protocol.offsets, /*cuts=*/{}});
    ASSERT_EQ(plan.sweeps.size(), offsets.size());
    for (const Sweep& sweep : plan.sweeps) EXPECT_NE(way_of(sweep), Way::kProduct);
  }
}

// A state that is kept is written by nobody else, and no sweep with a halo writes what it reads.
TEST(CudaPlanTest, TargetsOfSweeps) {
  using enum Target;
  const auto plan_of = [](std::initializer_list<bool> whole_rings, int64_t tile = 32) {
    ChainPlan plan;
    for (const bool whole : whole_rings) {
      Sweep sweep;
      sweep.first = static_cast<int>(plan.sweeps.size());
      sweep.ring = 64;
      sweep.tile = whole ? 64 : tile;
      sweep.halo = whole ? 0 : 8;
      plan.sweeps.push_back(sweep);
    }
    return plan;
  };
  using Targets = std::vector<Target>;
  EXPECT_EQ(choose_targets(plan_of({true}), {}), Targets{kResult});
  EXPECT_EQ(choose_targets(plan_of({false, true}), {}), (Targets{kResult, kResult}));
  EXPECT_EQ(choose_targets(plan_of({false, false, true}), {}),
            (Targets{kTemporary, kResult, kResult}));
  EXPECT_EQ(choose_targets(plan_of({true, false, false}), {}),
            (Targets{kResult, kTemporary, kResult}));
  EXPECT_EQ(choose_targets(plan_of({true, false}, /*tile=*/64), {}),
            (Targets{kTemporary, kResult}));
  const std::vector<int64_t> cuts = {2};
  EXPECT_EQ(choose_targets(plan_of({true, true, true, true}), cuts),
            (Targets{kResult, kKept, kResult, kResult}));
  ChainPlan windows = plan_of({true, true});
  for (Sweep& sweep : windows.sweeps) sweep.window = 64;
  EXPECT_EQ(choose_targets(windows, {}), (Targets{kTemporary, kResult}));
}

}  // namespace
}  // namespace paramixer::cuda
