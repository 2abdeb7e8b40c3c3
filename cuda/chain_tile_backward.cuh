// The gradients of a sweep of a chain in tiles: several factors between one read of the rows before
// them and of the gradient behind them, and one write of the gradient before them.
//
//     dW_m[i,k] = sum_c G_m[i,c] V_{m-1}[(i + o_k) mod N, c]
//     G_{m-1}   = S_m(W_m)^T G_m + (G_m where the residual is the previous state)
//
// A block takes one tile: `rows` rows of one ring at 64 bytes of channels (fewer where long tiles
// pay more). It computes the rows before every factor again and keeps them in shared memory, then
// goes back from factor to factor with two buffers of gradients, while the next weights are on
// their way. Links wrap around the tile as they do forward; what a row of the tile's own needs,
// both ways, lies within the halo. The lanes of a row add their products in a butterfly of shuffles
// and write the sums of the block's channels in float32; the host adds the groups of channels, in
// their order, so that nothing depends on the order of blocks.
//
// Bytes per row and group of c channels, s being the size of T: device memory reads
// 2 c s (1 + 2 halo / tile) and twice M' K s of W for M' factors, writes c s and 4 M' K of dots,
// and the host's sum reads those again. Shared memory, per factor: K c s read and c s written three
// times over (states, dots, gradient). Bound: multiply-adds and shared memory, not the device's.
#pragma once

#include "chain_tile.cuh"

namespace paramixer::cuda {

// The dots of one factor for the tile's own rows; all threads of the block come here.
template <typename T>
__device__ __forceinline__ void write_dots(const TileArguments<T>& arguments, const Tile<T>& tile,
                                           const TilePlace& place, int factor, int grad,
                                           int state) {
  const int32_t* offsets = arguments.offset + factor * arguments.links;
  const int items = tile.own_rows(place) << arguments.lane_bits;
  // Shuffles need whole warps, so that all threads go round equally often.
  for (int base = 0; base < items; base += blockDim.x) {
    const int i = base + static_cast<int>(threadIdx.x);
    const int lane = i & (arguments.lanes - 1);
    const bool own = i < items;
    const int row = (own ? i >> arguments.lane_bits : 0) + arguments.halo;
    const int64_t channels =
        arguments.channels - (place.vector + lane) * static_cast<int64_t>(kLaneChannels<T>);
    const Sums<T> gradient = tile.load(grad, row, lane);
    const int64_t flat_row = place.batch_row + tile.row_of(row);
    float* target = arguments.dots + place.group * arguments.dots_group +
                    (flat_row * arguments.factors + factor) * arguments.links;
    for (int k = 0; k < arguments.links; ++k) {
      const Sums<T> other = tile.load(state, wrap(row + offsets[k], arguments.rows), lane);
      Accumulate<T> dot = 0;
      PARAMIXER_UNROLL
      for (int c = 0; c < kLaneChannels<T>; ++c) {
        // Beyond the last channel the state is 0 only while the weights are finite.
        if (c < channels) dot += gradient.channel[c] * other.channel[c];
      }
      for (int step = arguments.lanes / 2; step > 0; step /= 2) {
        dot += __shfl_xor_sync(0xffffffffu, dot, step);
      }
      if (own && lane == (k & (arguments.lanes - 1))) target[k] = dot;
    }
  }
}

// The gradient before one factor, from the one behind it.
template <Residual kResidual, typename T>
__device__ __forceinline__ void apply_transpose(const TileArguments<T>& arguments,
                                                const Tile<T>& tile, int factor, int from, int to,
                                                int stage) {
  const int32_t* offsets = arguments.offset + factor * arguments.links;
  for (int i = threadIdx.x; i < arguments.rows << arguments.lane_bits; i += blockDim.x) {
    const int row = i >> arguments.lane_bits, lane = i & (arguments.lanes - 1);
    Sums<T> sums = residual_of<kResidual>(tile, tile.load(from, row, lane), row, lane);
    for (int k = 0; k < arguments.links; ++k) {
      const int other = wrap(row + arguments.rows - offsets[k], arguments.rows);
      multiply_add<T>(widen(tile.weights(stage, other)[k]), tile.load(from, other, lane), sums);
    }
    tile.at(to, row, lane) = narrow_lane<T>(sums);
  }
}

// Buffer m holds the rows before factor m of the sweep; the two behind those hold gradients.
template <Residual kResidual, typename T>
__device__ __forceinline__ void sweep_tile_backward(const TileArguments<T>& arguments,
                                                    const Tile<T>& tile, const TilePlace& place) {
  const int last = arguments.factors - 1;
  int from = arguments.factors, to = from + 1, stage = 0;
  tile.find_rows(place);
  __syncthreads();
  tile.begin_load(arguments.value, place.value, place, 0);
  tile.begin_load(arguments.grad, place.grad, place, from);
  tile.begin_stage(place, arguments.turn[0], 0, 0);
  ptx::cp_async_commit_group();
  // To the last factor and back: 0, 1, .., last, .., 1, 0.
  for (int t = 0; t <= 2 * last; ++t) {
    const int factor = t <= last ? t : 2 * last - t;
    if (t < 2 * last) {
      tile.begin_stage(place, arguments.turn[t < last ? t + 1 : 2 * last - t - 1], 0, 1 - stage);
    }
    ptx::cp_async_commit_group();
    ptx::cp_async_wait_group<1>();
    __syncthreads();
    if (t < last) {
      apply_links<kResidual>(arguments, tile, arguments.turn[factor], 0, factor, factor + 1, stage);
    } else {
      write_dots(arguments, tile, place, factor, from, factor);
      apply_transpose<kResidual>(arguments, tile, factor, from, to, stage);
      from = to;
      to = 2 * arguments.factors + 1 - from;
    }
    __syncthreads();
    stage = 1 - stage;
  }
  tile.store(arguments.result, place.result, place, from);
}

template <typename T>
__global__ void __launch_bounds__(TileTraits::kThreads, TileTraits::kBlocksPerSM)
    chain_tile_backward_kernel(const __grid_constant__ TileArguments<T> arguments) {
  PARAMIXER_DYNAMIC_SHARED(unsigned char, shared);
  const Tile<T> tile(arguments, shared);
  for (int64_t t = blockIdx.x; t < arguments.tiles; t += gridDim.x) {
    const TilePlace place = place_tile(arguments, t);
    if (arguments.residual == Residual::kPrevious) {
      sweep_tile_backward<Residual::kPrevious>(arguments, tile, place);
    } else {
      sweep_tile_backward<Residual::kNone>(arguments, tile, place);
    }
    __syncthreads();  // the next tile writes where this one was read
  }
}

template <typename T>
using TileKernel = void (*)(const TileArguments<T>);

template <typename T>
TileKernel<T> find_tile_kernel(Direction direction) {
  return direction == Direction::kForward ? chain_tile_kernel<T> : chain_tile_backward_kernel<T>;
}

}  // namespace paramixer::cuda
