// One sweep in tiles as a launch: grid, block and shared memory, and the one parameter of its
// kernel. The launch and the host emulator both ask here. Torch-free and CUDA-free.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "arguments.h"
#include "core/chain_plan.h"
#include "core/problem.h"
#include "launch_shape.h"
#include "tile_plan.h"
#include "window_plan.h"

namespace paramixer::cuda {

// One walk over the rows of a tile, with one factor or with two that go through registers together.
struct Turn {
  int8_t first;      // factor, counted within the sweep
  int8_t factors;    // 2: links 0, distance, -distance and then 0, 2 distance, -2 distance
  int8_t column[6];  // where the weights of those links are
  int8_t segment;    // rows that a thread takes, at most kSegment
  int16_t segments;  // of all rows
  int32_t distance;
};

struct TileShape {
  int64_t tiles = 0;  // of all rings and batch items, each once for every split
  int64_t blocks = 0;
  int threads = 0;
  int64_t splits = 1;  // of the groups of channels of a tile among blocks
  TileMemory memory = {};
  std::vector<Turn> turns;
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
  int64_t channels;  // D
  int64_t splits;    // of the groups of channels of a tile among blocks
  int32_t groups;
  int32_t groups_of_split;
  int64_t batch_sizes[kMaxBatchDims];
  int32_t batch_dims;
  int32_t links;
  int32_t rows;  // of a tile with its halos
  int32_t tile;
  int32_t halo;
  int32_t quads;  // of a row, 2^quad_bits
  int32_t quad_bits;
  int32_t piece_bits;  // of its 16-byte pieces
  int32_t row_bytes;
  int32_t stage_bits;  // 2^stage_bits threads stage the weights of a row
  int32_t initial_buffer;
  bool regular;  // the rows of a ring are in their order: step divides N
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
  float* dots;         // (splits, B, N, factors, K)
  int64_t dots_split;  // B N factors K
  Turn turn[TileTraits::kMostFactors];
  int32_t offset[TileTraits::kMostOffsets];  // K a factor, in [0, rows): a tile wraps around
};

namespace detail {

inline int64_t tile_rows(const Sweep& sweep) {
  return sweep.window > 0 ? sweep.window : sweep.tile + 2 * sweep.halo;
}

// Offsets of a factor along a tile. What leaves the tile wraps around it: in a whole ring that is
// the ring's own way, in others only rows of the halo do, and those reach no row that is written.
inline std::vector<int64_t> along_tile(const Sweep& sweep, int factor, int links) {
  const int64_t rows = tile_rows(sweep);
  std::vector<int64_t> along(sweep.offsets + factor * links, sweep.offsets + (factor + 1) * links);
  for (int64_t& offset : along) {
    offset = reduce_offset(paramixer::detail::shorter_way(offset, sweep.ring), rows);
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

// The turns of a sweep: pairs where two factors form one whose chains are long enough, and where
// every thread has at most one segment.
inline std::vector<Turn> make_turns(Direction direction, const Sweep& sweep, int links) {
  const int least =
      direction == Direction::kForward ? TileTraits::kLeastSegment : TileTraits::kLeastSegmentBack;
  const int64_t rows = tile_rows(sweep);
  constexpr int64_t kMost = TileTraits::kThreads / kThreeQuads;
  std::vector<Turn> turns;
  for (int factor = 0; factor < sweep.factors;) {
    Turn turn{};
    turn.first = static_cast<int8_t>(factor);
    turn.factors = 1;
    const int64_t distance =
        paramixer::detail::shortest_link(along_tile(sweep, factor, links), rows);
    const auto columns = pair_columns(sweep, factor, links, distance);
    const int64_t segment = std::min<int64_t>(rows / distance, TileTraits::kSegment);
    const int64_t segments = ceil_div(rows, std::max<int64_t>(segment, 1) * distance) * distance;
    if (!columns.empty() && segment >= least && segments <= kMost) {
      turn.factors = 2;
      for (int k = 0; k < 6; ++k) turn.column[k] = static_cast<int8_t>(columns[k]);
      turn.distance = static_cast<int32_t>(distance);
      turn.segment = static_cast<int8_t>(segment);
      turn.segments = static_cast<int16_t>(segments);
    }
    factor += turn.factors;
    turns.push_back(turn);
  }
  return turns;
}

// As many threads as have a segment or rows of their own.
inline int tile_threads(const Sweep& sweep, int links, std::span<const Turn> turns) {
  int64_t items = tile_rows(sweep);
  if (links == 3) items = ceil_div(items, TileTraits::kSegment);
  for (const Turn& turn : turns) items = std::max<int64_t>(items, turn.segments);
  const int64_t threads = round_up(items * (sweep.channels / kQuad), Traits::kWarp);
  return static_cast<int>(std::min<int64_t>(threads, TileTraits::kThreads));
}

// Buffers of rows and gradients backward: rows before every turn, the gradient behind the last one,
// and, where that has two factors, the one before it.
inline int backward_buffers(std::span<const Turn> turns) {
  return static_cast<int>(turns.size()) + turns.back().factors;
}

// The most rows of a tile for a sweep: with as many pairs as its tile then has, and, but for whole
// rings, such that segments fill warps.
inline int64_t most_rows(const TileKind& kind, const Sweep& sweep) {
  constexpr int64_t kWarpRows = TileTraits::kSegment * Traits::kWarp / kThreeQuads;
  const bool three = kind.links == 3;
  for (int states = three ? sweep.factors / 2 + 2 : sweep.factors + 1;; ++states) {
    int64_t rows = most_rows(kind, sweep.factors, states);
    if (three && rows > kWarpRows && rows < sweep.ring) rows -= rows % kWarpRows;
    Sweep tiled = sweep;
    paramixer::detail::set_tile(tiled, rows);
    if (kind.direction == Direction::kForward || tiled.tile == 0 ||
        backward_buffers(make_turns(kind.direction, tiled, kind.links)) <= states) {
      return rows;
    }
  }
}

}  // namespace detail

// `bytes` is the size of one element.
inline TileShape tile_shape(Direction direction, int bytes, const ChainProblem& chain,
                            const Sweep& sweep, const LaunchLimits& limits = {}) {
  const Problem& problem = chain.problem;
  TileShape shape;
  if (sweep.window > 0) {
    shape.memory = window_memory(sweep, window_links(sweep, problem.links));
    shape.threads = TileTraits::kThreads;
  } else {
    shape.turns = detail::make_turns(direction, sweep, problem.links);
    shape.memory = tile_memory(
        {direction, chain.residual, problem.links, bytes, static_cast<int>(sweep.channels / kQuad)},
        sweep.factors, detail::backward_buffers(shape.turns), detail::tile_rows(sweep));
    shape.threads = detail::tile_threads(sweep, problem.links, shape.turns);
  }
  shape.splits = tile_splits(direction, problem, sweep);
  shape.tiles = batch_count(problem) * sweep.classes * detail::ceil_div(sweep.ring, sweep.tile) *
                shape.splits;
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
// is contiguous, (tile_splits, B, N, factors, K) in float32.
template <typename T>
TileArguments<T> make_tile_arguments(const ChainProblem& chain, const Sweep& sweep,
                                     const TileShape& shape) {
  const Problem& problem = chain.problem;
  const auto bits = [](int64_t power) { return std::countr_zero(static_cast<uint64_t>(power)); };
  TileArguments<T> arguments{};
  arguments.tiles = shape.tiles;
  arguments.length = problem.length;
  arguments.step = sweep.step;
  arguments.classes = sweep.classes;
  arguments.ring = sweep.ring;
  arguments.tiles_of_ring = detail::ceil_div(sweep.ring, sweep.tile);
  arguments.channels = problem.channels;
  arguments.groups = static_cast<int32_t>(detail::ceil_div(problem.channels, sweep.channels));
  arguments.splits = shape.splits;
  arguments.groups_of_split =
      static_cast<int32_t>(detail::ceil_div(arguments.groups, arguments.splits));
  std::copy_n(problem.batch_sizes, problem.batch_dims, arguments.batch_sizes);
  arguments.batch_dims = problem.batch_dims;
  arguments.links = problem.links;
  arguments.rows = static_cast<int32_t>(detail::tile_rows(sweep));
  arguments.tile = static_cast<int32_t>(sweep.tile);
  arguments.halo = static_cast<int32_t>(sweep.halo);
  arguments.quads = static_cast<int32_t>(sweep.channels / kQuad);
  arguments.quad_bits = bits(arguments.quads);
  arguments.row_bytes = static_cast<int32_t>(sweep.channels * sizeof(T));
  arguments.piece_bits = bits(arguments.row_bytes / Traits::kVectorBytes);
  arguments.stage_bits =
      std::min<int>(5, std::bit_width(static_cast<unsigned>(3 * sweep.factors - 1)));
  arguments.initial_buffer = shape.memory.buffers - 1;
  arguments.regular = problem.length % std::max<int64_t>(sweep.step, 1) == 0;
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
  arguments.dots_split = batch_count(problem) * problem.length * sweep.factors * problem.links;
  arguments.turns = static_cast<int32_t>(shape.turns.size());
  std::copy(shape.turns.begin(), shape.turns.end(), arguments.turn);
  for (int factor = 0; factor < sweep.factors; ++factor) {
    const auto along = detail::along_tile(sweep, factor, problem.links);
    std::copy(along.begin(), along.end(), arguments.offset + factor * problem.links);
  }
  return arguments;
}

}  // namespace paramixer::cuda
