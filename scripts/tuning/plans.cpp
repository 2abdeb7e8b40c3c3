// Prints as JSON what the CUDA key would launch, for the traits that this was compiled with:
// blocks, threads and shared memory of every family of kernels, and the plan of every chain that
// the arguments name. Torch-free and CUDA-free.
//
//   plans [B,N,D,PROTOCOL,K,DTYPE,RESIDUAL ..]      such as 8,16384,128,cdil,3,float32,none

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "band_plan.h"
#include "paramixer/links.h"
#include "pass_plan.h"
#include "tile_arguments.h"

namespace paramixer::cuda {
namespace {

constexpr int64_t kSharedLimit = 227 * 1024;  // of a block, compute capability 9.0 and 10.0
constexpr std::array kDTypes = {"float64", "float32", "bfloat16", "float16"};
constexpr std::array kResiduals = {"none", "previous", "initial"};
constexpr std::array kWays = {"product", "tiles", "bands"};

struct Case {
  int64_t batch;
  ChainShape chain;
};

template <size_t kCount>
int index_in(const std::array<const char*, kCount>& names, const std::string& name) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) throw std::invalid_argument("plans: unknown name " + name);
  return static_cast<int>(found - names.begin());
}

Case parse(const std::string& text) {
  std::vector<std::string> words;
  std::stringstream stream(text);
  for (std::string word; std::getline(stream, word, ',');) words.push_back(word);
  if (words.size() != 7) throw std::invalid_argument("plans: not seven words in " + text);
  const int64_t length = std::stoll(words[1]), links = std::stoll(words[4]);
  const FactorOffsets factors =
      words[3] == "chord" ? chord(length, std::nullopt, links) : cdil(length, std::nullopt, links);
  Case result{std::stoll(words[0]), {}};
  result.chain.dtype = static_cast<DType>(index_in(kDTypes, words[5]));
  result.chain.residual = static_cast<Residual>(index_in(kResiduals, words[6]));
  result.chain.length = length;
  result.chain.channels = std::stoll(words[2]);
  result.chain.factors = static_cast<int>(factors.size());
  for (const auto& factor : factors) {
    for (const int64_t offset : factor) {
      result.chain.offsets.push_back(reduce_offset(offset, length));
    }
  }
  return result;
}

// One launch: how its tiles lie on the rings, and its grid. A band's pass is a tile too.
void print_launch(const Case& c, const Sweep& sweep, bool last) {
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
    const TileShape shape =
        tile_shape(c.chain.direction, element_bytes(c.chain.dtype), chain, sweep);
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
    for (const Turn& turn : detail::make_turns(c.chain.direction, chain, sweep, bytes)) {
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

void print_plan(const char* name, const Case& c) {
  const ChainPlan plan = plan_for_cuda(c.chain);
  std::printf(R"("%s": [)", name);
  for (const Sweep& sweep : plan.sweeps) print_launch(c, sweep, &sweep == &plan.sweeps.back());
  std::printf("]");
}

// Where a training pass saves states (boundaries_to_save in csrc/ops/autograd.cpp).
std::vector<int64_t> boundaries(int64_t factors) {
  const int64_t pieces = std::min<int64_t>(factors, 3);
  std::vector<int64_t> result;
  for (int64_t i = 1; i < pieces; ++i) result.push_back(i * factors / pieces);
  return result;
}

void print_case(Case c) {
  std::printf(R"({"factors": %d, )", c.chain.factors);
  const int64_t bands = element_bytes(c.chain.dtype) == 2 ? kSharedLimit : 0;
  c.chain.direction = Direction::kForward;
  c.chain.band_bytes = bands;
  print_plan("forward", c);
  c.chain.cuts = boundaries(c.chain.factors);
  std::printf(", ");
  print_plan("saving", c);
  std::printf(", ");
  c.chain.direction = Direction::kBackward;
  c.chain.band_bytes = 0;
  print_plan("backward", c);
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
    print_case(parse(arguments[a]));
  }
  std::printf("}}\n");
}
