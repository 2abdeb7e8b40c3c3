// One sweep in tiles as a launch: grid, block and shared memory, and the one parameter of its
// kernel. The launch and the host emulator both ask here. Torch-free and CUDA-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "arguments.h"
#include "core/chain_plan.h"
#include "core/problem.h"
#include "launch_shape.h"
#include "tile_plan.h"

namespace paramixer::cuda {

// One walk over the rows of a tile, with one factor or with two that go through registers together.
struct Turn {
  int8_t first;         // factor, counted within the sweep
  int8_t factors;       // 2: links 0, distance, -distance and then 0, 2 distance, -2 distance
  int8_t column[6];     // where the weights of those links are
  int8_t weight_bytes;  // of one asynchronous copy of weights; 0: one element at a time
  int8_t segment;       // rows that a thread takes, at most kSegment
  int32_t distance;
};

struct TileShape {
  int64_t tiles = 0;  // of all rings, batch items and groups of channels
  int64_t blocks = 0;
  int threads = 0;
  int lanes = 0;
  TileMemory memory = {};
  bool vectors = false;  // rows are read and written 16 bytes at a time
};

template <typename T>
struct TileArguments {
  int64_t tiles;
  int64_t length;   // N
  int64_t step;     // the rows of a ring lie so far apart, modulo N
  int64_t classes;  // rings
  int64_t ring;     // rows of a ring
  int64_t tiles_of_ring;
  int64_t groups;    // of channels
  int64_t channels;  // D
  int64_t batch_sizes[kMaxBatchDims];
  int32_t batch_dims;
  int32_t links;
  int32_t rows;  // of a tile with its halos
  int32_t tile;
  int32_t halo;
  int32_t lanes;  // 16-byte accesses of a row, 2^lane_bits
  int32_t lane_bits;
  int32_t stage_rows;
  int32_t weight_row;  // elements of a stage per row
  int32_t turns;
  int32_t factors;
  Residual residual;
  bool vectors;
  TileMemory memory;
  View<const T, int64_t> weight;  // of the sweep's first factor
  int64_t weight_factor;
  View<const T, int64_t> value;
  View<const T, int64_t> grad;  // backward; forward V_0, where it is added
  View<T, int64_t> result;
  float* dots;         // (groups, B, N, factors, K)
  int64_t dots_group;  // B N factors K
  Turn turn[TileTraits::kMostFactors];
  int32_t offset[TileTraits::kMostOffsets];  // K a factor, in [0, rows): a tile wraps around
};

namespace detail {

inline int64_t tile_rows(const Sweep& sweep) { return sweep.tile + 2 * sweep.halo; }

// Offsets of a factor along a tile. What leaves the tile wraps around it: in a whole ring that is
// the ring's own way, in others only rows of the halo do, and those reach no row that is written.
inline std::vector<int64_t> along_tile(const Sweep& sweep, int factor, int links) {
  const int64_t rows = tile_rows(sweep);
  std::vector<int64_t> along(sweep.offsets + factor * links, sweep.offsets + (factor + 1) * links);
  for (int64_t& offset : along) {
    if (2 * offset > sweep.ring) offset -= sweep.ring;
    offset = reduce_offset(offset, rows);
  }
  return along;
}

// The columns of a factor and the next one as links 0, d, -d and 0, 2 d, -2 d of a tile; empty
// where they are no such pair.
inline std::vector<int> pair_columns(const Sweep& sweep, int factor, int links, int64_t distance) {
  if (links != 3 || factor + 1 >= sweep.factors) return {};
  return paramixer::detail::find_pair_columns(along_tile(sweep, factor, links),
                                              along_tile(sweep, factor + 1, links), distance,
                                              tile_rows(sweep));
}

// The most bytes that one asynchronous copy can take of the weights of a turn: all of a row's lie
// together, in the kernel's order, and every row starts at a multiple.
inline int weight_bytes(const ChainProblem& chain, int bytes, int first, const Turn& turn) {
  const Problem& problem = chain.problem;
  const int64_t links = problem.links;
  bool together = problem.weight.column == 1;
  for (int k = 0; turn.factors == 2 && k < 6; ++k) together = together && turn.column[k] == k % 3;
  if (turn.factors == 2) together = together && chain.weight_factor == links;
  if (!together) return 0;
  const auto start = reinterpret_cast<uintptr_t>(problem.weight.data) +
                     static_cast<uintptr_t>((first + turn.first) * chain.weight_factor * bytes);
  uintptr_t all = start | (problem.weight.row * bytes) | (turn.factors * links * bytes);
  for (int d = 0; d < problem.batch_dims; ++d) all |= problem.weight.batch[d] * bytes;
  for (const int size : {16, 8, 4}) {
    if (all % size == 0) return size;
  }
  return 0;
}

// The turns of a sweep: forward, pairs where two factors form one.
inline std::vector<Turn> make_turns(Direction direction, const ChainProblem& chain,
                                    const Sweep& sweep, int bytes) {
  const int links = chain.problem.links;
  const int64_t rows = tile_rows(sweep);
  std::vector<Turn> turns;
  for (int factor = 0; factor < sweep.factors;) {
    Turn turn{};
    turn.first = static_cast<int8_t>(factor);
    turn.factors = 1;
    const auto along = along_tile(sweep, factor, links);
    const int64_t distance = paramixer::detail::shortest_link(along, rows);
    const auto columns = pair_columns(sweep, factor, links, distance);
    if (direction == Direction::kForward && !columns.empty() && rows > 1) {
      turn.factors = 2;
      for (int k = 0; k < 6; ++k) turn.column[k] = static_cast<int8_t>(columns[k]);
      turn.distance = static_cast<int32_t>(distance);
      turn.segment =
          static_cast<int8_t>(std::clamp<int64_t>(rows / distance, 1, TileTraits::kSegment));
    }
    turn.weight_bytes = static_cast<int8_t>(weight_bytes(chain, bytes, sweep.first, turn));
    factor += turn.factors;
    turns.push_back(turn);
  }
  return turns;
}

}  // namespace detail

// `bytes` is the size of one element.
inline TileShape tile_shape(Direction direction, int bytes, const ChainProblem& chain,
                            const Sweep& sweep, const LaunchLimits& limits = {}) {
  const Problem& problem = chain.problem;
  const int64_t rows = detail::tile_rows(sweep);
  TileShape shape;
  shape.lanes = static_cast<int>(sweep.channels * bytes / Traits::kVectorBytes);
  shape.memory = tile_memory(
      {direction, chain.residual, problem.links, bytes, shape.lanes, sweep.factors}, rows);
  // Short rings keep as many threads busy as they have work for.
  const bool pairs = direction == Direction::kForward && problem.links == 3;
  const int64_t work = detail::ceil_div(rows, pairs ? TileTraits::kSegment / 2 : 1);
  shape.threads = static_cast<int>(
      std::min<int64_t>(detail::round_up(work * shape.lanes, Traits::kWarp), TileTraits::kThreads));
  shape.tiles = batch_count(problem) * sweep.classes * detail::ceil_div(sweep.ring, sweep.tile) *
                detail::ceil_div(problem.channels, sweep.channels);
  shape.blocks = std::min(shape.tiles, limits.max_blocks);
  const int width = limits.vector_bytes / bytes;
  shape.vectors = limits.vector_bytes == Traits::kVectorBytes && problem.channels % width == 0;
  for (const Operand* operand : {&problem.value, &problem.result, &problem.grad}) {
    if (operand->data == nullptr) continue;
    shape.vectors = shape.vectors && detail::rows_are_aligned(problem, *operand, width, bytes);
  }
  return shape;
}

// Forward, where the residual is the chain's value, problem.grad holds it. Backward, problem.dots
// is contiguous, (groups, B, N, factors, K) in float32.
template <typename T>
TileArguments<T> make_tile_arguments(Direction direction, const ChainProblem& chain,
                                     const Sweep& sweep, const TileShape& shape) {
  const Problem& problem = chain.problem;
  TileArguments<T> arguments{};
  arguments.tiles = shape.tiles;
  arguments.length = problem.length;
  arguments.step = sweep.step;
  arguments.classes = sweep.classes;
  arguments.ring = sweep.ring;
  arguments.tiles_of_ring = detail::ceil_div(sweep.ring, sweep.tile);
  arguments.groups = detail::ceil_div(problem.channels, sweep.channels);
  arguments.channels = problem.channels;
  std::copy_n(problem.batch_sizes, problem.batch_dims, arguments.batch_sizes);
  arguments.batch_dims = problem.batch_dims;
  arguments.links = problem.links;
  arguments.rows = static_cast<int32_t>(detail::tile_rows(sweep));
  arguments.tile = static_cast<int32_t>(sweep.tile);
  arguments.halo = static_cast<int32_t>(sweep.halo);
  arguments.lanes = shape.lanes;
  while (1 << arguments.lane_bits < shape.lanes) ++arguments.lane_bits;
  arguments.stage_rows = static_cast<int32_t>(shape.memory.stage_rows);
  arguments.weight_row = static_cast<int32_t>(shape.memory.weight_row / sizeof(T));
  arguments.residual = chain.residual;
  arguments.vectors = shape.vectors;
  arguments.memory = shape.memory;
  arguments.weight = make_view<const T, int64_t>(problem.weight);
  arguments.weight.data += sweep.first * chain.weight_factor;
  arguments.weight_factor = chain.weight_factor;
  arguments.value = make_view<const T, int64_t>(problem.value);
  arguments.grad = make_view<const T, int64_t>(problem.grad);
  arguments.result = make_view<T, int64_t>(problem.result);
  arguments.factors = sweep.factors;
  arguments.dots = static_cast<float*>(problem.dots.data);
  arguments.dots_group = batch_count(problem) * problem.length * sweep.factors * problem.links;
  const auto turns = detail::make_turns(direction, chain, sweep, sizeof(T));
  arguments.turns = static_cast<int32_t>(turns.size());
  std::copy(turns.begin(), turns.end(), arguments.turn);
  for (int factor = 0; factor < sweep.factors; ++factor) {
    const auto along = detail::along_tile(sweep, factor, problem.links);
    std::copy(along.begin(), along.end(), arguments.offset + factor * problem.links);
  }
  return arguments;
}

}  // namespace paramixer::cuda
