// A sweep of a chain in tiles: several factors, one read and one write of the rows.
//
//     V_m = S_m(W_m) V_{m-1} + R_m   for the factors of the sweep
//
// A block takes one tile: `rows` rows of one ring, group of channels after group of channels. It
// loads a group, takes it through one turn after the other in shared memory, and writes the rows
// that are its own. Links wrap around the tile: in a tile that is a whole ring that is the ring
// itself; in others the rows of the halo become wrong from the outside in and none that is written
// reads them.
//
// Factors of three links (K = 3): weights of all factors are staged once for all groups, and rows
// stay in one buffer: a thread makes up to kSegment rows of a quad of channels in registers and
// writes them when all have read. Two factors with links 0, d, -d and 0, 2 d, -2 d are one turn: a
// thread walks along rows d apart with three rows of the first factor's input and five of its
// output in registers. A factor that has no such partner is a turn of its own. Of any other number
// of links every factor is a turn, between two buffers, with weights from device memory.
//
// Bytes per element of the result, s being the size of T: device memory reads s (1 + 2 halo / tile)
// of V and M' K s / D of W for M' factors, and writes s. Shared memory, per factor: a pair reads
// (kSegment + 6) / kSegment s and writes s for two factors and reads 24 bytes of weights for a
// quad; others read K s and write s. Bound: memory while M' is small; beyond about 6 factors of
// three links the instructions, of which multiply-adds are two thirds.
#pragma once

#include "tile.cuh"

namespace paramixer::cuda {

// What the residual adds to a row: nothing, the row before the factor, or V_0.
template <Residual kResidual, typename T>
PARAMIXER_INLINE Quad residual_of(const Column<T>& initial, const Quad& own, int row) {
  if constexpr (kResidual == Residual::kPrevious) return own;
  if constexpr (kResidual == Residual::kInitial) return initial.load(row);
  return Quad{};
}

// ---- Three links

// The rows that a thread makes while others still read what these replace().
template <typename T>
struct Held {
  QuadWord<T> word[TileTraits::kSegment];
};

// The rows start, start + distance, .. below `end`, at most kSegment, of one quad.
struct Segment {
  int start, end, distance, quad;
};

// Segments of `segment` rows, `distance` apart, interleave; the last ones are shorter, and threads
// that have none get one without rows.
__device__ __forceinline__ Segment find_segment(const Turn& turn, int rows) {
  const int index = threadIdx.x / kThreeQuads, reach = turn.segment * turn.distance;
  const int block = index / turn.distance;
  const int start = block * reach + index - block * turn.distance;
  const int quad = threadIdx.x % kThreeQuads;
  if (start >= rows) return {0, 0, turn.distance, quad};
  return {start, start + reach < rows ? start + reach : rows, turn.distance, quad};
}

// By a shuffle the compiler knows that all lanes agree. Whole warps come here.
__device__ __forceinline__ bool warp_has_segments(const Turn& turn) {
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / Traits::kWarp, 0);
  return warp * (Traits::kWarp / kThreeQuads) < turn.segments;
}

// The weights of both factors of a pair for one row.
struct PairWeights {
  float first[3], second[3];
};

PARAMIXER_INLINE PairWeights load_pair_weights(const float* weights, int row) {
  struct Words {
    Vector8 word[3];
  } words;
  PARAMIXER_UNROLL
  for (int w = 0; w < 3; ++w)
    words.word[w] = reinterpret_cast<const Vector8*>(weights)[3 * row + w];
  return paramixer::detail::bit_cast<PairWeights>(words);
}

// A segment through both factors of a pair. At step i row i - 1 of the segment comes from the tile,
// the first factor makes row i - 2 and the second row i - 4, each from rows in registers. Unrolled,
// all indices are constants.
template <Residual kResidual, typename T>
__device__ __forceinline__ void walk_pair(const Column<T>& from, const Column<T>& initial,
                                          const float* weights, int rows, const Segment& segment,
                                          Held<T>& held) {
  Quad input[3], middle[5];
  float second[3][3];
  int place[3];  // where row i - 2 of the segment lies in the tile, and the two before it
  const auto before = [&](int row) { return wrap_row(row + rows - segment.distance, rows); };
  int row = before(before(segment.start));
  input[0] = from.load(before(row));
  input[1] = from.load(row);
  PARAMIXER_UNROLL
  for (int i = 0; i < TileTraits::kSegment + 4; ++i) {
    place[i % 3] = row;
    const PairWeights loaded = load_pair_weights(weights, row);
    const Quad& own = input[(i + 1) % 3];
    Quad sums = residual_of<kResidual>(initial, own, row);
    row = wrap_row(row + segment.distance, rows);
    input[(i + 2) % 3] = from.load(row);
    multiply_add(loaded.first[0], own, sums);
    multiply_add(loaded.first[1], input[(i + 2) % 3], sums);
    multiply_add(loaded.first[2], input[i % 3], sums);
    middle[i % 5] = sums;
    PARAMIXER_UNROLL
    for (int k = 0; k < 3; ++k) second[i % 3][k] = loaded.second[k];
    if (i >= 4) {
      const Quad& center = middle[(i - 2) % 5];
      sums = residual_of<kResidual>(initial, center, place[(i - 2) % 3]);
      multiply_add(second[(i - 2) % 3][0], center, sums);
      multiply_add(second[(i - 2) % 3][1], middle[i % 5], sums);
      multiply_add(second[(i - 2) % 3][2], middle[(i - 4) % 5], sums);
      held.word[i - 4] = narrow_quad<T>(sums);
    }
  }
}

// One factor of three links over all rows, from one buffer to another or to the same.
template <Residual kResidual, typename T>
__device__ __forceinline__ void apply_three(const TileArguments<T>& arguments, const Tile<T>& tile,
                                            const Turn& turn, int from_buffer, int to_buffer) {
  const int rows = arguments.rows, quad = threadIdx.x % kThreeQuads;
  const Column<T> from = tile.column(from_buffer, quad), to = tile.column(to_buffer, quad);
  const Column<T> initial = tile.column(arguments.initial_buffer, quad);
  const float* weights = tile.weights(turn);
  Held<T> held{};  // without values, its registers would be kept from turn to turn
  if (turn.factors == 2) {
    const Segment segment = find_segment(turn, rows);
    if (warp_has_segments(turn)) walk_pair<kResidual>(from, initial, weights, rows, segment, held);
    __syncthreads();
    PARAMIXER_UNROLL
    for (int i = 0; i < TileTraits::kSegment; ++i) {
      const int row = segment.start + i * segment.distance;
      if (row < segment.end) to.at(row) = held.word[i];
    }
    return;
  }
  const int32_t* offset = arguments.offset + turn.first * 3;
  const int first = threadIdx.x / kThreeQuads, apart = blockDim.x / kThreeQuads;
  PARAMIXER_UNROLL
  for (int i = 0; i < TileTraits::kSegment; ++i) {
    // A row too many is the last one again: a branch would cost more.
    const int row = first + i * apart < rows ? first + i * apart : rows - 1;
    Quad sums{};
    if constexpr (kResidual != Residual::kNone) {
      sums = residual_of<kResidual>(initial, from.load(row), row);
    }
    PARAMIXER_UNROLL
    for (int k = 0; k < 3; ++k) {
      multiply_add(weights[3 * row + k], from.load(wrap_row(row + offset[k], rows)), sums);
    }
    held.word[i] = narrow_quad<T>(sums);
  }
  __syncthreads();
  PARAMIXER_UNROLL
  for (int i = 0; i < TileTraits::kSegment; ++i) {
    const int row = first + i * apart;
    if (row < rows) to.at(row) = held.word[i];
  }
}

// ---- Any links

// One factor over all rows.
template <Residual kResidual, typename T>
__device__ __forceinline__ void apply_links(const TileArguments<T>& arguments, const Tile<T>& tile,
                                            const Turn& turn, int from_buffer, int to_buffer) {
  const int32_t* offset = arguments.offset + turn.first * arguments.links;
  const int quad = threadIdx.x & (arguments.quads - 1);
  const Column<T> from = tile.column(from_buffer, quad), to = tile.column(to_buffer, quad);
  const Column<T> initial = tile.column(arguments.initial_buffer, quad);
  for (int row = threadIdx.x >> arguments.quad_bits; row < arguments.rows;
       row += blockDim.x >> arguments.quad_bits) {
    const T* weight = tile.weights_of(turn.first) + tile.row_of(row) * arguments.weight.row;
    Quad sums = residual_of<kResidual>(initial, from.load(row), row);
    PARAMIXER_UNROLL_BY(4)
    for (int k = 0; k < arguments.links; ++k, weight += arguments.weight.column) {
      multiply_add(widen(*weight), from.load(wrap_row(row + offset[k], arguments.rows)), sums);
    }
    to.at(row) = narrow_quad<T>(sums);
  }
}

// The whole sweep for one tile, on chip.
template <Residual kResidual, typename T>
__device__ __forceinline__ void sweep_tile(const TileArguments<T>& arguments, const Tile<T>& tile) {
  const bool three = arguments.links == 3;
  const int first = tile.place().group, end = tile.place().groups_end;
  for (int group = first; group < end; ++group) {
    tile.begin_load(arguments.value, tile.place().value, group, 0);
    if (kResidual == Residual::kInitial) {
      tile.begin_load(arguments.grad, tile.place().grad, group, arguments.initial_buffer);
    }
    ptx::cp_async_commit_group();
    if (three && group == first) tile.stage_weights();
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    int from = 0;
    for (int t = 0; t < arguments.turns; ++t) {
      if (three) {
        apply_three<kResidual>(arguments, tile, arguments.turn[t], 0, 0);
      } else {
        apply_links<kResidual>(arguments, tile, arguments.turn[t], from, 1 - from);
        from = 1 - from;
      }
      __syncthreads();
    }
    tile.store(arguments.result, tile.place().result, group, from);
    __syncthreads();  // the next group is written where this one was read
  }
}

template <typename T>
__global__ void __launch_bounds__(TileTraits::kThreads, TileTraits::kBlocksPerSM)
    chain_tile_kernel(const __grid_constant__ TileArguments<T> arguments) {
  PARAMIXER_DYNAMIC_SHARED(unsigned char, shared);
  const Tile<T> tile(arguments, shared);
  for (int64_t t = blockIdx.x; t < arguments.tiles; t += gridDim.x) {
    tile.find(t);
    __syncthreads();
    switch (arguments.residual) {
      case Residual::kNone:
        sweep_tile<Residual::kNone>(arguments, tile);
        break;
      case Residual::kPrevious:
        sweep_tile<Residual::kPrevious>(arguments, tile);
        break;
      case Residual::kInitial:
        sweep_tile<Residual::kInitial>(arguments, tile);
        break;
    }
  }
}

}  // namespace paramixer::cuda
