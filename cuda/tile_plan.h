// Tiles in which kernels take a chain through several factors: what they need of shared memory, and
// what they cost. Torch-free and CUDA-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "core/chain_plan.h"
#include "core/numeric.h"
#include "core/problem.h"
#include "launch_shape.h"
#include "traits.h"

namespace paramixer::cuda {

constexpr int element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

enum class Direction { kForward, kBackward };

// Channels of one access on chip, and accesses of a row in tiles of three links.
inline constexpr int kQuad = 4;
inline constexpr int kThreeQuads = 4;

// What a tile is made of, but for its rows and factors.
struct TileKind {
  Direction direction;
  Residual residual;
  int links;
  int bytes;  // of an element
  int quads;  // of a row
};

// What a block works on, and where its batch item begins in each operand.
struct TilePlace {
  int32_t group, groups_end;  // of channels
  int64_t split;              // of the groups among blocks
  int64_t ring_row;           // row of the batch item where the ring begins
  int64_t begin;              // of the tile on its ring; its halo lies before that
  int64_t weight, value, grad, result;
  int64_t batch_row;  // the first row of the batch item among those of all
};

// The shared memory of a block, in bytes, one part behind the other.
struct TileMemory {
  int32_t buffer;  // all rows once
  int32_t buffers;
  int32_t weights;    // of all factors of three links, in float32
  int32_t dots;       // of all factors, in float32
  int32_t dots_row;   // floats of a row and factor
  int32_t even_rows;  // for which there are weights and dots
  int32_t table;      // where every row lies in memory
  int32_t place;      // of the tile

  PARAMIXER_INLINE int weights_begin() const { return buffers * buffer; }
  PARAMIXER_INLINE int dots_begin() const { return weights_begin() + weights; }
  PARAMIXER_INLINE int table_begin() const { return dots_begin() + dots; }
  PARAMIXER_INLINE int place_begin() const { return table_begin() + table; }
  PARAMIXER_INLINE int64_t total() const { return place_begin() + place; }
};

namespace detail {

// Parts begin where accesses of 16 bytes may.
inline int32_t shared_part(int64_t bytes) {
  return static_cast<int32_t>(round_up(bytes, Traits::kVectorBytes));
}

}  // namespace detail

// Forward holds the rows once (three links) or before and behind a factor, and V_0 where it is
// added; backward rows before every turn and gradients, in `states` buffers.
inline TileMemory tile_memory(const TileKind& kind, int factors, int states, int64_t rows) {
  const bool three = kind.links == 3;
  TileMemory memory{};
  memory.buffer = detail::shared_part(rows * kind.quads * kQuad * kind.bytes);
  memory.even_rows = static_cast<int32_t>(detail::round_up(rows, 2));
  if (three) memory.weights = detail::shared_part(memory.even_rows * 12 * factors);
  if (kind.direction == Direction::kForward) {
    memory.buffers = (three ? 1 : 2) + (kind.residual == Residual::kInitial);
  } else {
    memory.buffers = states;
    memory.dots_row = three ? 4 : kind.links;
    memory.dots = detail::shared_part(int64_t{4} * memory.even_rows * memory.dots_row * factors);
  }
  memory.table = detail::shared_part(rows * static_cast<int64_t>(sizeof(int32_t)));
  memory.place = detail::shared_part(sizeof(TilePlace));
  return memory;
}

// How many blocks share the groups of channels of a tile: as many as end soonest, if as many blocks
// run at once as a large GPU has places for, and a block's beginning takes half as long as a group.
// Backward each has dots of its own, in all no more than two tensors like V take, unless one does.
inline int64_t tile_splits(Direction direction, const Problem& problem, const Sweep& sweep) {
  const int64_t groups = detail::ceil_div(problem.channels, sweep.channels);
  const int64_t tiles =
      batch_count(problem) * sweep.classes * detail::ceil_div(sweep.ring, sweep.tile);
  int64_t most = groups;
  if (direction == Direction::kBackward) {
    most = std::clamp<int64_t>(problem.channels / (sweep.factors * problem.links), 1, groups);
  }
  int64_t best = 1, least = std::numeric_limits<int64_t>::max();
  // Once for every number of groups that a block can have, of which there are about 2 sqrt(groups).
  for (int64_t wanted = 1, of_block = 0; of_block != 1 && wanted <= most;
       wanted = detail::ceil_div(groups, std::max<int64_t>(of_block - 1, 1))) {
    of_block = detail::ceil_div(groups, wanted);
    const int64_t splits = detail::ceil_div(groups, of_block);
    const int64_t rounds = detail::ceil_div(tiles * splits, TileTraits::kBlocksAtOnce);
    const int64_t half_groups = rounds * (2 * of_block + 1);
    if (half_groups < least) best = splits, least = half_groups;
  }
  return best;
}

namespace detail {

// The most rows that a block holds, a multiple of 8.
inline int64_t most_rows(const TileKind& kind, int factors, int states) {
  int64_t most = std::numeric_limits<int32_t>::max();
  if (kind.links == 3) {  // a thread holds kSegment rows
    most = TileTraits::kSegment * TileTraits::kThreads / kThreeQuads;
  }
  int64_t rows = 0;
  while (rows + 8 <= most &&
         tile_memory(kind, factors, states, rows + 8).total() <= TileTraits::kSharedBytes) {
    rows += 8;
  }
  return rows;
}

// Costs in moves of a row between device memory and chip, rough figures for which a plan is not
// sensitive: instructions an element (scripts/benchmarks/NOTES.md), of which 7.7 go into the move
// of a byte. The rows of a single product come through L2, once for every link.
inline TileOptions tile_options(const TileKind& kind) {
  const bool three = kind.links == 3, forward = kind.direction == Direction::kForward;
  const int row_bytes = kind.quads * kQuad * kind.bytes;
  TileOptions options;
  options.channels = kind.quads * kQuad;
  options.factors =
      std::min(TileTraits::kMostFactors, std::max(1, TileTraits::kMostOffsets / kind.links));
  // What every gradient adds to that of V_0 is the caller's, who sees those between sweeps.
  if (!forward && kind.residual == Residual::kInitial) options.factors = 1;
  // 16 bytes are half a sector; the other half is read right after it, or by another block.
  options.move_cost = row_bytes == 16 ? 1.5 : row_bytes == 32 ? 1.1 : 1.0;
  options.product_cost = 1.4 + 0.6 * kind.links;
  const double link = 0.45 / kind.bytes + 0.5 / static_cast<double>(options.channels);
  options.factor_cost = three ? 0.95 / kind.bytes : kind.links * link;
  if (!forward) {
    // Two rows are read for one that is written. A factor of any links takes five times as many
    // instructions: it runs three times, and adds dots over lanes.
    options.move_cost *= 1.5;
    options.factor_cost = three ? 3.2 / kind.bytes : 5 * kind.links * link;
    options.product_cost = 3.8 + 1.8 * kind.links;
  }
  return options;
}

}  // namespace detail
}  // namespace paramixer::cuda
