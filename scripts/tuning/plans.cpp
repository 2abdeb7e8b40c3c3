// Prints as JSON what the CUDA key would launch, for the traits that this was compiled with:
// blocks, threads and shared memory of every family of kernels, and the plan of every chain that
// the arguments name. Torch-free and CUDA-free.
//
//   plans [B,N,D,PROTOCOL,K,DTYPE,RESIDUAL ..]      such as 8,16384,128,cdil,3,float32,none

#include <array>
#include <cstdint>
#include <cstdio>
#include <string>
#include <type_traits>
#include <utility>

#include "band_plan.h"
#include "chain_case.h"
#include "pass_plan.h"
#include "tile_arguments.h"

namespace paramixer::cuda {
namespace {

constexpr std::array kWays = {"product", "tiles", "bands", "windows"};

// How a launch covers the rings, and its grid.
struct Grid {
  int64_t rows = 0;   // of a tile
  int64_t tiles = 0;  // of a ring
  int64_t blocks = 0;
  int threads = Traits::kThreads;
  int64_t shared = 0;
  int pairs = 0;      // of factors that go through registers together
  int64_t walks = 0;  // of whole warps through the segments of a tile, of all pairs
  int64_t short_walks = 0;
  int64_t splits = 1;  // of the channels among blocks
  int64_t near = 0;    // links that a window serves
};

// Weights (B, N, M, K) as a layer writes them.
ChainProblem sizes_and_strides(const Case& c) {
  ChainProblem chain = detail::sizes_of(c.chain);
  Problem& problem = chain.problem;
  problem.batch_dims = 1;
  problem.batch_sizes[0] = c.batch;
  chain.weight_factor = problem.links;
  problem.weight.column = 1;
  problem.weight.row = chain.factors * chain.weight_factor;
  problem.weight.batch[0] = problem.length * problem.weight.row;
  return chain;
}

Grid tile_grid(const Case& c, Direction direction, const Sweep& sweep) {
  const ChainProblem chain = sizes_and_strides(c);
  const TileShape shape = tile_shape(direction, element_bytes(c.chain.dtype), chain, sweep);
  Grid grid{.rows = sweep.tile + 2 * sweep.halo,
            .tiles = detail::ceil_div(sweep.ring, sweep.tile),
            .blocks = shape.blocks,
            .threads = shape.threads,
            .shared = shape.memory.total(),
            .splits = shape.splits};
  if (sweep.window > 0) {
    grid.rows = sweep.window;
    grid.near = static_cast<int64_t>(window_links(sweep, chain.problem.links).near.size());
  }
  for (const Turn& turn : shape.turns) {
    if (turn.factors == 1) continue;
    ++grid.pairs;
    const bool is_short =
        direction == Direction::kBackward && turn.segment <= TileTraits::kLeastSegmentBack;
    (is_short ? grid.short_walks : grid.walks) +=
        detail::round_up(int64_t{turn.segments} * kThreeQuads, Traits::kWarp);
  }
  return grid;
}

Grid band_grid(const Case& c, const Sweep& sweep) {
  BandPass pass;
  make_band_pass(sizes_and_strides(c), c.chain.offsets, sweep.first, sweep.factors, pass);
  const BandShape shape = band_shape(pass);
  return {.rows = shape.rows,
          .tiles = shape.tiles,
          .blocks = shape.blocks,
          .threads = shape.threads,
          .shared = static_cast<int64_t>(shape.shared_bytes)};
}

void print_launch(const Case& c, Direction direction, const Sweep& sweep, bool last) {
  const Way way = way_of(sweep);
  const Grid grid = way == Way::kProduct ? Grid{}
                    : way == Way::kBands ? band_grid(c, sweep)
                                         : tile_grid(c, direction, sweep);
  using Long = long long;
  std::printf(R"({"way": "%s", "first": %d, "factors": %d, "ring": %lld, "channels": %lld, )",
              kWays[static_cast<size_t>(way)], sweep.first, sweep.factors, Long{sweep.ring},
              Long{sweep.channels});
  std::printf(
      R"("rows": %lld, "tiles": %lld, "pairs": %d, "walks": %lld, "short": %lld, "splits": %lld, )",
      Long{grid.rows}, Long{grid.tiles}, grid.pairs, Long{grid.walks}, Long{grid.short_walks},
      Long{grid.splits});
  std::printf(R"("near": %lld, "blocks": %lld, "threads": %d, "shared": %lld}%s)", Long{grid.near},
              Long{grid.blocks}, grid.threads, Long{grid.shared}, last ? "" : ", ");
}

void print_plan(const char* name, const Case& c, Direction direction, bool training) {
  const ChainPlan plan = plan_case(c, direction, training);
  std::printf(R"("%s": [)", name);
  for (const Sweep& sweep : plan.sweeps) {
    print_launch(c, direction, sweep, &sweep == &plan.sweeps.back());
  }
  std::printf("]");
}

void print_case(const Case& c) {
  std::printf("{");
  print_plan("forward", c, Direction::kForward, false);
  std::printf(", ");
  print_plan("saving", c, Direction::kForward, true);
  std::printf(", ");
  print_plan("backward", c, Direction::kBackward, true);
  std::printf(R"(, "cuts": [)");  // where a training pass saves states
  const char* between = "";
  for (const int64_t cut : saved_boundaries(c.chain.factors)) {
    std::printf("%s%lld", std::exchange(between, ", "), static_cast<long long>(cut));
  }
  std::printf("]}");
}

void print_kernels() {
  const auto print = [](const char* family, int threads, int blocks, size_t shared, bool last) {
    std::printf(R"("%s": {"threads": %d, "blocks": %d, "shared": %zu}%s)", family, threads, blocks,
                shared, last ? "" : ", ");
  };
  print("single", Traits::kThreads, Traits::kBlocksPerSM, 0, false);
  print("tile", TileTraits::kThreads, TileTraits::kBlocksPerSM, TileTraits::kSharedBytes, false);
  const auto print_band = [&]<int kLinks>(std::integral_constant<int, kLinks>) {
    using Band = BandTraits<kLinks>;
    print(("band K=" + std::to_string(kLinks)).c_str(), Band::kThreads, Band::kBlocksPerSM,
          sizeof(BandShared<Band>), kLinks == kMaxBandLinks);
  };
  print_band(std::integral_constant<int, 3>{});
  print_band(std::integral_constant<int, 5>{});
  print_band(std::integral_constant<int, 7>{});
  print_band(std::integral_constant<int, 9>{});
}

}  // namespace
}  // namespace paramixer::cuda

int main(int count, char** arguments) {
  using namespace paramixer::cuda;
  std::printf("{\"segment\": %d, \"kernels\": {", TileTraits::kSegment);
  print_kernels();
  std::printf("},\n\"cases\": {");
  for (int a = 1; a < count; ++a) {
    std::printf("%s\n\"%s\": ", a > 1 ? "," : "", arguments[a]);
    print_case(parse_case(arguments[a]));
  }
  std::printf("}}\n");
}
