// Tiles in which kernels take a chain through several factors: what they need of shared memory, and
// what they cost. Torch-free and CUDA-free.
#pragma once

#include <algorithm>
#include <cstdint>

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
// sensitive: on chip a link of forward costs 3.5 instructions an element, of which 7.7 go into the
// move of a byte (scripts/benchmarks/NOTES.md), and a row's weights come through L2 once for every
// group of channels. A far link of a single product comes through L2.
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
  options.factor_cost = kind.links * (0.45 / kind.bytes + 0.5 / channels);
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
}  // namespace paramixer::cuda
