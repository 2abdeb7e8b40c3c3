// A sweep of a chain in tiles: several factors, one read and one write of the rows.
//
//     V_m = S_m(W_m) V_{m-1} + R_m   for the factors of the sweep
//
// A block takes one tile: `rows` rows of one ring at 64 bytes of channels (fewer where long tiles
// pay more). It loads them, takes them through one turn after the other between two buffers in
// shared memory, while the weights of the next turn are on their way, and writes the rows that are
// its own. Links wrap around the tile: in a tile that is a whole ring that is the ring itself; in
// others the rows of the halo become wrong from the outside in and none that is written reads them.
//
// Two factors with links 0, d, -d and 0, 2 d, -2 d are one turn: a thread walks along rows d apart
// with three rows of the first factor's input and five of its output in registers. Other factors
// are a turn of their own, link by link, with any offsets.
//
// Bytes per element of the result, s being the size of T: device memory reads s (1 + 2 halo / tile)
// of V and M' K s / D of W for M' factors, and writes s. Shared memory, per factor: a pair reads
// (kSegment + 6) / kSegment s and writes s for two factors, others read K s and write s; a lane of
// 16 bytes also reads its row's weights. Bound: memory while M' is small; beyond about 6 factors of
// three links the multiply-adds at half their peak rate (float32), from the beginning for 16 bits.
#pragma once

#include "tile.cuh"

namespace paramixer::cuda {

// Buffers of a tile: the rows before and behind a turn in turns, and V_0.
inline constexpr int kInitialBuffer = 2;

// What the residual adds to a row: nothing, the row before the factor, or V_0.
template <Residual kResidual, typename T>
PARAMIXER_INLINE Sums<T> residual_of(const Tile<T>& tile, const Sums<T>& own, int row, int lane) {
  if constexpr (kResidual == Residual::kPrevious) return own;
  if constexpr (kResidual == Residual::kInitial) return tile.load(kInitialBuffer, row, lane);
  return Sums<T>{};
}

// The weights of both factors of a pair for one row.
template <typename T>
struct PairWeights {
  Accumulate<T> first[3];
  Accumulate<T> second[3];
};

template <typename T>
PARAMIXER_INLINE PairWeights<T> load_pair_weights(const T* weights) {
  T element[8];  // the last two are padding
  PARAMIXER_UNROLL
  for (int e = 0; e < 8; e += kLaneChannels<T>) {
    const auto lane = load_pack<kLaneChannels<T>>(weights + e);
    PARAMIXER_UNROLL
    for (int c = 0; c < kLaneChannels<T>; ++c) element[e + c] = lane.element[c];
  }
  PairWeights<T> pair;
  PARAMIXER_UNROLL
  for (int k = 0; k < 3; ++k) {
    pair.first[k] = widen(element[k]);
    pair.second[k] = widen(element[3 + k]);
  }
  return pair;
}

// Rows start, start + d, .. of one lane through both factors of a pair; `count` of them are wanted.
// At step i row i - 1 of the segment comes from the tile, the first factor makes row i - 2 and the
// second row i - 4, each from rows in registers. Unrolled, all indices are constants.
template <Residual kResidual, typename T>
PARAMIXER_INLINE void walk_pair(const Tile<T>& tile, int rows, int distance, int start, int count,
                                int lane, int from, int stage) {
  constexpr int kSteps = TileTraits::kSegment + 4;
  Sums<T> input[3], middle[5];
  Accumulate<T> second[3][3];
  int place[4];  // where row i - 1 of the segment lies in the tile, and the three before it
  const int back = wrap(start + rows - distance, rows);
  place[3] = wrap(back + rows - distance, rows);
  input[0] = tile.load(from, wrap(place[3] + rows - distance, rows), lane);
  input[1] = tile.load(from, place[3], lane);
  PARAMIXER_UNROLL
  for (int i = 0; i < kSteps; ++i) {
    if (i >= count + 4) break;
    const int row = place[(i + 3) % 4];
    place[i % 4] = wrap(row + distance, rows);
    input[(i + 2) % 3] = tile.load(from, place[i % 4], lane);
    const PairWeights<T> weights = load_pair_weights(tile.weights(stage, row));
    PARAMIXER_UNROLL
    for (int k = 0; k < 3; ++k) second[i % 3][k] = weights.second[k];
    const Sums<T>& own = input[(i + 1) % 3];
    Sums<T> sums = residual_of<kResidual>(tile, own, row, lane);
    multiply_add<T>(weights.first[0], own, sums);
    multiply_add<T>(weights.first[1], input[(i + 2) % 3], sums);
    multiply_add<T>(weights.first[2], input[i % 3], sums);
    middle[i % 5] = sums;
    if (i >= 4) {
      const int target = place[(i + 1) % 4];
      const Sums<T>& center = middle[(i - 2) % 5];
      sums = residual_of<kResidual>(tile, center, target, lane);
      multiply_add<T>(second[(i - 2) % 3][0], center, sums);
      multiply_add<T>(second[(i - 2) % 3][1], middle[i % 5], sums);
      multiply_add<T>(second[(i - 2) % 3][2], middle[(i - 4) % 5], sums);
      tile.at(1 - from, target, lane) = narrow_lane<T>(sums);
    }
  }
}

// Both factors of a pair over all rows, whose weights are staged.
template <Residual kResidual, typename T>
__device__ __forceinline__ void apply_pair(const TileArguments<T>& arguments, const Tile<T>& tile,
                                           const Turn& turn, int from, int stage) {
  const int rows = arguments.rows;
  const int distance = turn.distance, reach = turn.segment * distance;
  // Segments of `segment` rows, `distance` apart, interleave; the last ones are shorter.
  const int blocks = (rows + reach - 1) / reach;
  const int items = (blocks * distance) << arguments.lane_bits;
  for (int i = threadIdx.x; i < items; i += blockDim.x) {
    const int lane = i & (arguments.lanes - 1);
    const int segment = i >> arguments.lane_bits;
    const int block = segment / distance;
    const int start = block * reach + segment - block * distance;
    const int left = (rows - start + distance - 1) / distance;
    if (left <= 0) continue;
    walk_pair<kResidual>(tile, rows, distance, start, left < turn.segment ? left : turn.segment,
                         lane, from, stage);
  }
}

// One factor of any links over the rows from `begin` on whose weights are staged.
template <Residual kResidual, typename T>
__device__ __forceinline__ void apply_links(const TileArguments<T>& arguments, const Tile<T>& tile,
                                            const Turn& turn, int begin, int from, int to,
                                            int stage) {
  constexpr int kGroup = kLaneChannels<T>;  // of links, whose weights are one access
  const int32_t* offsets = arguments.offset + turn.first * arguments.links;
  const int left = arguments.rows - begin;
  const int rows = left < arguments.stage_rows ? left : arguments.stage_rows;
  for (int i = threadIdx.x; i < rows << arguments.lane_bits; i += blockDim.x) {
    const int stage_row = i >> arguments.lane_bits, lane = i & (arguments.lanes - 1);
    const int row = begin + stage_row;
    const T* weights = tile.weights(stage, stage_row);
    Sums<T> sums = residual_of<kResidual>(tile, tile.load(from, row, lane), row, lane);
    for (int first = 0; first < arguments.links; first += kGroup) {
      const Lane<T> group = load_pack<kGroup>(weights + first);
      PARAMIXER_UNROLL
      for (int l = 0; l < kGroup; ++l) {
        if (first + l >= arguments.links) break;
        const int other = wrap(row + offsets[first + l], arguments.rows);
        multiply_add<T>(widen(group.element[l]), tile.load(from, other, lane), sums);
      }
    }
    tile.at(to, row, lane) = narrow_lane<T>(sums);
  }
}

template <Residual kResidual, typename T>
__device__ __forceinline__ void apply_turn(const TileArguments<T>& arguments, const Tile<T>& tile,
                                           const Turn& turn, int begin, int from, int stage) {
  if (turn.factors == 2) {
    apply_pair<kResidual>(arguments, tile, turn, from, stage);
  } else {
    apply_links<kResidual>(arguments, tile, turn, begin, from, 1 - from, stage);
  }
}

// The whole sweep for one tile, on chip.
template <Residual kResidual, typename T>
__device__ __forceinline__ void sweep_tile(const TileArguments<T>& arguments, const Tile<T>& tile,
                                           const TilePlace& place) {
  tile.find_rows(place);
  __syncthreads();
  tile.begin_load(arguments.value, place.value, place, 0);
  if (kResidual == Residual::kInitial) {
    tile.begin_load(arguments.grad, place.grad, place, kInitialBuffer);
  }
  tile.begin_stage(place, arguments.turn[0], 0, 0);
  ptx::cp_async_commit_group();
  int from = 0, stage = 0;
  for (int t = 0; t < arguments.turns; ++t) {
    for (int begin = 0; begin < arguments.rows; begin += arguments.stage_rows) {
      const bool same = begin + arguments.stage_rows < arguments.rows;
      const int next = same ? t : t + 1;
      if (next < arguments.turns) {
        tile.begin_stage(place, arguments.turn[next], same ? begin + arguments.stage_rows : 0,
                         1 - stage);
      }
      ptx::cp_async_commit_group();
      ptx::cp_async_wait_group<1>();
      __syncthreads();
      apply_turn<kResidual>(arguments, tile, arguments.turn[t], begin, from, stage);
      __syncthreads();
      stage = 1 - stage;
    }
    from = 1 - from;
  }
  tile.store(arguments.result, place.result, place, from);
}

template <typename T>
__global__ void __launch_bounds__(TileTraits::kThreads, TileTraits::kBlocksPerSM)
    chain_tile_kernel(const __grid_constant__ TileArguments<T> arguments) {
  PARAMIXER_DYNAMIC_SHARED(unsigned char, shared);
  const Tile<T> tile(arguments, shared);
  for (int64_t t = blockIdx.x; t < arguments.tiles; t += gridDim.x) {
    const TilePlace place = place_tile(arguments, t);
    switch (arguments.residual) {
      case Residual::kNone:
        sweep_tile<Residual::kNone>(arguments, tile, place);
        break;
      case Residual::kPrevious:
        sweep_tile<Residual::kPrevious>(arguments, tile, place);
        break;
      case Residual::kInitial:
        sweep_tile<Residual::kInitial>(arguments, tile, place);
        break;
    }
    __syncthreads();  // the next tile writes where this one was read
  }
}

}  // namespace paramixer::cuda
