// Prints as JSON what the CUDA key would launch, for the traits that this was compiled with:
// blocks, threads and shared memory of every family of kernels, and the plan of every chain that
// the arguments name. Torch-free and CUDA-free.
//
//   plans [B,N,D,PROTOCOL,K,DTYPE,RESIDUAL ..]      such as 8,16384,128,cdil,3,float32,none

#include <array>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <string>
#include <type_traits>

#include "band_plan.h"
#include "chain_case.h"
#include "pass_plan.h"
#include "tile_arguments.h"

namespace paramixer::cuda {
namespace {

constexpr std::array kWays = {"product", "tiles", "bands"};

// One launch: how its tiles lie on the rings, and its grid. A band's pass is a tile too.
void print_launch(const Case& c, Direction direction, const Sweep& sweep, bool last) {
  const Way way = way_of(sweep);
  ChainProblem chain = detail::sizes_of(c.chain);
  chain.problem.batch_dims = 1;
  chain.problem.batch_sizes[0] = c.batch;
  // Weights (B, N, M, K) as a layer writes them; how they are copied depends on it.
  chain.weight_factor = chain.problem.links;
  chain.problem.weight.column = 1;
  chain.problem.weight.row = chain.factors * chain.weight_factor;
  chain.problem.weight.batch[0] = chain.problem.length * chain.problem.weight.row;
  int64_t rows = 0, tiles = 0, blocks = 0, shared = 0;
  int threads = Traits::kThreads;
  if (way == Way::kTiles) {
    const TileShape shape = tile_shape(direction, element_bytes(c.chain.dtype), chain, sweep);
    rows = sweep.tile + 2 * sweep.halo;
    tiles = detail::ceil_div(sweep.ring, sweep.tile);
    blocks = shape.blocks;
    shared = shape.memory.total();
    threads = shape.threads;
  } else if (way == Way::kBands) {
    BandPass pass;
    make_band_pass(chain, c.chain.offsets, sweep.first, sweep.factors, pass);
    const BandShape shape = band_shape(pass);
    rows = shape.rows;
    tiles = shape.tiles;
    blocks = shape.blocks;
    shared = static_cast<int64_t>(shape.shared_bytes);
    threads = shape.threads;
  }
  // Pairs that go through registers together, and threads that copy the weights of one row.
  int pairs = 0, copies = 0;
  if (way == Way::kTiles) {
    const int bytes = element_bytes(c.chain.dtype);
    for (const Turn& turn : detail::make_turns(direction, chain, sweep, bytes)) {
      const int elements = turn.factors * chain.problem.links;
      const int pieces = turn.weight_bytes > 0 ? elements * bytes / turn.weight_bytes : elements;
      pairs += turn.factors == 2;
      copies += static_cast<int>(std::bit_ceil(static_cast<unsigned>(pieces)));
    }
  }
  std::printf(
      R"({"way": "%s", "first": %d, "factors": %d, "pairs": %d, "copies": %d, "ring": %lld, "classes": %lld, )"
      R"("step": %lld, "tiles": %lld, "rows": %lld, "channels": %lld, "blocks": %lld, )"
      R"("threads": %d, "shared": %lld})",
      kWays[static_cast<size_t>(way)], sweep.first, sweep.factors, pairs, copies,
      (long long)sweep.ring, (long long)sweep.classes, (long long)sweep.step, (long long)tiles,
      (long long)rows, (long long)sweep.channels, (long long)blocks, threads, (long long)shared);
  if (!last) std::printf(", ");
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
  std::printf("}");
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
