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

enum class Direction { kForward, kBackward };

// What a tile is made of, but for its rows.
struct TileKind {
  Direction direction;
  Residual residual;
  int links;
  int bytes;        // of an element
  int lanes;        // 16-byte accesses of a row
  int factors = 1;  // that backward goes through
};

// The shared memory of a block, in bytes, one part behind the other.
struct TileMemory {
  int64_t buffer;  // all rows once
  int64_t buffers;
  int64_t stage;       // weights, and again the weights that are on their way
  int64_t table;       // where every row lies in memory
  int64_t weight_row;  // of a row's weights in a stage
  int64_t stage_rows;

  int64_t total() const { return buffers * buffer + 2 * stage + table; }
};

// Forward holds the rows before and behind a factor, and V_0 where it is added; backward the rows
// before every factor, and gradients before and behind one. The weights of all rows are staged
// together where rows need those of others: forward for two factors of three links, which go
// through registers together, and backward.
inline TileMemory tile_memory(const TileKind& kind, int64_t rows) {
  const bool forward = kind.direction == Direction::kForward;
  const bool pairs = forward && kind.links == 3;
  TileMemory memory;
  memory.buffer = detail::round_up(rows, 8) * kind.lanes * Traits::kVectorBytes;
  memory.buffers = !forward ? kind.factors + 2 : kind.residual == Residual::kInitial ? 3 : 2;
  memory.weight_row =
      detail::round_up((pairs ? 2 : 1) * kind.links * kind.bytes, Traits::kVectorBytes);
  memory.stage_rows = rows;
  if (forward && !pairs) {
    constexpr int64_t kRows = TileTraits::kRowsPerStage * TileTraits::kThreads;
    memory.stage_rows = std::min(rows, kRows / kind.lanes);
  }
  memory.stage = memory.stage_rows * memory.weight_row;
  memory.table = detail::round_up(rows * static_cast<int64_t>(sizeof(int32_t)), 16);
  return memory;
}

namespace detail {

// The most rows that a block holds, a multiple of 8.
inline int64_t most_rows(const TileKind& kind) {
  int64_t rows = 0;
  while (tile_memory(kind, rows + 8).total() <= TileTraits::kSharedBytes) rows += 8;
  return rows;
}

// Costs in moves of a row between device memory and chip, rough figures for which a plan is not
// sensitive: on chip a link costs a multiply-add at half the peak rate, and a row's weights come
// through L2 once for every group of channels. A far link of a single product comes through L2.
inline TileOptions tile_options(const TileKind& kind) {
  const int row_bytes = kind.lanes * Traits::kVectorBytes;
  const double channels = row_bytes / kind.bytes;
  TileOptions options;
  options.rows = most_rows(kind);
  options.channels = static_cast<int64_t>(channels);
  options.factors =
      std::min(TileTraits::kMostFactors, std::max(1, TileTraits::kMostOffsets / kind.links));
  // 16 bytes are half a sector; the block that uses the other half runs at the same time.
  options.move_cost = kind.lanes == 1 ? 1.5 : kind.lanes == 2 ? 1.1 : 1.0;
  options.factor_cost = kind.links * (0.2 / kind.bytes + 0.5 / channels);
  options.product_cost = 2 + 0.4 * kind.links;
  if (kind.direction == Direction::kBackward) {
    options.factors = std::min(options.factors, kind.factors);
    // Two rows are read for one that is written. A factor runs three times, and its dots, a float
    // for every link and group of channels, are written and read once more.
    options.move_cost *= 1.5;
    options.factor_cost =
        3 * kind.links * (0.4 / kind.bytes + 0.5 / channels) + 8.0 * kind.links / row_bytes;
    options.product_cost = 5 + 0.8 * kind.links;
  }
  return options;
}

}  // namespace detail

// A chain of weights (B, N, M, K) and values (B, N, D) but for the batch, of which no plan depends.
struct ChainShape {
  Direction direction;
  DType dtype;
  Residual residual;
  int64_t length;
  int64_t channels;
  int factors;
  std::vector<int64_t> offsets;  // M K
  std::vector<int64_t> cuts;     // where sweeps end, ascending numbers of factors

  auto operator<=>(const ChainShape&) const = default;
};

namespace detail {

// Whether there are kernels that run the chain in tiles: none for float64, for which nobody waits,
// and backward none that sums what reaches V_0 past the factors.
inline bool can_run_in_tiles(const ChainShape& chain) {
  return chain.dtype != DType::kFloat64 && chain.length <= std::numeric_limits<int32_t>::max() &&
         (chain.direction == Direction::kForward || chain.residual != Residual::kInitial);
}

// Every kind of tile that a chain can have.
inline std::vector<TileKind> tile_kinds(const ChainShape& chain) {
  std::vector<TileKind> kinds;
  if (!can_run_in_tiles(chain)) return kinds;
  const int bytes = element_bytes(chain.dtype);
  const int links = static_cast<int>(chain.offsets.size()) / chain.factors;
  for (int lanes = TileTraits::kMostLanes; lanes >= 1; lanes /= 2) {
    const bool too_wide = lanes > 1 && chain.channels * bytes <= lanes / 2 * Traits::kVectorBytes;
    if (too_wide) continue;
    TileKind kind = {chain.direction, chain.residual, links, bytes, lanes};
    kinds.push_back(kind);
    if (chain.direction == Direction::kForward) continue;
    // The dots of all groups of channels take no more memory than two tensors like V.
    const int most = 2 * lanes * Traits::kVectorBytes / (links * static_cast<int>(sizeof(float)));
    while (++kind.factors <= std::min(most, TileTraits::kMostFactors)) kinds.push_back(kind);
  }
  return kinds;
}

}  // namespace detail

// Where a sweep writes: the chain's result, a tensor of the call's own, or a state that is kept.
enum class Target { kResult, kTemporary, kKept };

// Targets of the sweeps of a forward plan. The last one writes the result, those before a cut the
// next state that is kept. Any other writes what the next one writes too, if that works in place,
// as whole rings do, and else the result and the temporary in turns.
inline std::vector<Target> choose_targets(const ChainPlan& plan, std::span<const int64_t> cuts) {
  const std::vector<Sweep>& sweeps = plan.sweeps;
  std::vector<Target> targets(sweeps.size(), Target::kResult);
  for (size_t s = sweeps.size() - 1; s-- > 0;) {
    const Sweep& next = sweeps[s + 1];
    const bool in_place = next.tile == next.ring;
    if (std::find(cuts.begin(), cuts.end(), next.first) != cuts.end()) {
      targets[s] = Target::kKept;
    } else if (targets[s + 1] != Target::kKept && in_place) {
      targets[s] = targets[s + 1];
    } else {
      targets[s] = targets[s + 1] == Target::kResult ? Target::kTemporary : Target::kResult;
    }
  }
  return targets;
}

// The cheapest plan over all kinds of tiles; where there are none, single products.
inline ChainPlan plan_for_cuda(const ChainShape& chain) {
  ChainPlan best = plan_tiles(chain.length, chain.factors, chain.offsets, chain.cuts, {});
  best.cost = std::numeric_limits<double>::infinity();
  for (const TileKind& kind : detail::tile_kinds(chain)) {
    ChainPlan plan = plan_tiles(chain.length, chain.factors, chain.offsets, chain.cuts,
                                detail::tile_options(kind));
    if (plan.cost < best.cost) best = std::move(plan);
  }
  return best;
}

}  // namespace paramixer::cuda
