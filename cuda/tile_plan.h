// How the CUDA key takes a chain through tiles, and what a tile needs of shared memory. Torch-free
// and CUDA-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "core/chain_plan.h"
#include "core/numeric.h"
#include "core/problem.h"
#include "traits.h"

namespace paramixer::cuda {

// The ways to run a sweep: a single product, or tiles on chip.
enum class Way { kProduct, kTiles };

constexpr Way way_of(const Sweep& sweep) { return sweep.tile > 0 ? Way::kTiles : Way::kProduct; }

constexpr int element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

namespace detail {

constexpr int64_t round_up(int64_t number, int64_t multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

}  // namespace detail

// The shared memory of a block, in bytes, one part behind the other.
struct TileMemory {
  int64_t state;   // the rows before a factor, and again the rows behind it
  int64_t values;  // the rows of V_0, where they are added
  int64_t stage;   // weights, and again the weights that are on their way
  int64_t table;   // where every row lies in memory
  int64_t weight_row;   // of a row's weights in a stage
  int64_t stage_rows;

  int64_t total() const { return 2 * state + values + 2 * stage + table; }
};

// Of a tile of `rows` rows of `lanes` 16-byte accesses. Two factors of three links go through
// registers together, which needs the weights of all rows at hand.
inline TileMemory tile_memory(int64_t rows, int lanes, int links, int bytes, Residual residual) {
  const bool pairs = links == 3;
  TileMemory memory;
  memory.state = detail::round_up(rows, 8) * lanes * Traits::kVectorBytes;
  memory.values = residual == Residual::kInitial ? memory.state : 0;
  memory.weight_row = detail::round_up((pairs ? 2 : 1) * links * bytes, Traits::kVectorBytes);
  memory.stage_rows = rows;
  if (!pairs) {
    constexpr int64_t kRows = TileTraits::kRowsPerStage * TileTraits::kThreads;
    memory.stage_rows = std::min(rows, kRows / lanes);
  }
  memory.stage = memory.stage_rows * memory.weight_row;
  memory.table = detail::round_up(rows * static_cast<int64_t>(sizeof(int32_t)), 16);
  return memory;
}

namespace detail {

// The most rows that a block holds, a multiple of 8.
inline int64_t most_rows(int lanes, int links, int bytes, Residual residual) {
  int64_t rows = 0;
  while (tile_memory(rows + 8, lanes, links, bytes, residual).total() <= TileTraits::kSharedBytes) {
    rows += 8;
  }
  return rows;
}

// Costs in moves of a row between device memory and chip, rough figures for which a plan is not
// sensitive: on chip a link costs a multiply-add at half the peak rate, and a row's weights come
// through L2 once for every group of channels. A far link of a single product comes through L2.
inline TileOptions tile_options(int lanes, int links, int bytes, Residual residual) {
  const double channels = lanes * Traits::kVectorBytes / bytes;
  TileOptions options;
  options.rows = most_rows(lanes, links, bytes, residual);
  options.channels = static_cast<int64_t>(channels);
  options.factors =
      std::min(TileTraits::kMostFactors, std::max(1, TileTraits::kMostOffsets / links));
  // 16 bytes are half a sector; the block that uses the other half runs at the same time.
  options.move_cost = lanes == 1 ? 1.5 : lanes == 2 ? 1.1 : 1.0;
  options.factor_cost = links * (0.2 / bytes + 0.5 / channels);
  options.product_cost = 2 + 0.4 * links;
  return options;
}

}  // namespace detail

// The cheapest plan over the widths that a tile's rows can have. Sweeps end at `cuts`. Sums in
// float64, for which nobody waits, and rings beyond 32-bit row numbers take single products.
inline ChainPlan plan_for_cuda(DType dtype, Residual residual, int64_t length, int64_t channels,
                               int factors, std::span<const int64_t> offsets,
                               std::span<const int64_t> cuts) {
  const int links = static_cast<int>(offsets.size()) / factors;
  const int bytes = element_bytes(dtype);
  ChainPlan best = plan_tiles(length, factors, offsets, cuts, {});
  if (dtype == DType::kFloat64 || length > std::numeric_limits<int32_t>::max()) return best;
  best.cost = std::numeric_limits<double>::infinity();
  for (int lanes = TileTraits::kMostLanes; lanes >= 1; lanes /= 2) {
    const bool too_wide = lanes > 1 && channels * bytes <= lanes / 2 * Traits::kVectorBytes;
    if (too_wide) continue;
    ChainPlan plan = plan_tiles(length, factors, offsets, cuts,
                                detail::tile_options(lanes, links, bytes, residual));
    if (plan.cost < best.cost) best = std::move(plan);
  }
  return best;
}

}  // namespace paramixer::cuda
