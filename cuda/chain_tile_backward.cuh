// The gradients of a sweep of a chain in tiles: several factors between one read of the rows before
// them and of the gradient behind them, and one write of the gradient before them.
//
//     dW_m[i,k] = sum_c G_m[i,c] V_{m-1}[(i + o_k) mod N, c]
//     G_{m-1}   = S_m(W_m)^T G_m + (G_m where the residual is the previous state)
//
// A block takes one tile as the forward kernel does, group of channels after group of channels. It
// computes the rows before every turn again and keeps them in shared memory, then goes back from
// turn to turn, whose gradients replace them. Links wrap around the tile as they do forward; what a
// row of the tile's own needs, both ways, lies within the halo. The lanes of a row add their
// products in a butterfly of shuffles; the sums over the groups of channels grow in shared memory,
// and the host adds those of blocks that share the groups of a row: each in a fixed order, so that
// nothing depends on the order of blocks.
//
// Of two factors that are one turn (K = 3), neither the state nor the gradient between them touches
// shared memory: a thread walks along rows with four rows of V_{m-1}, five of V_m, five of G_{m+1}
// and three of G_m in registers, and makes six dots and a row of G_{m-1} a step.
//
// Bytes per row and c channels, s being the size of T: device memory reads 2 c s (1 + 2 halo /
// tile) and M' K s of W for M' factors, writes c s and, for a block, 4 M' K of dots, which the
// host's sum reads again. Shared memory, a pair: (2 kSegment + 12) / kSegment c s read and c s
// written, besides forward's; one factor: (2 K + 1) c s read and c s written. Bound: instructions.
#pragma once

#include "chain_tile.cuh"

namespace paramixer::cuda {

// ---- Three links

// Adds the dots of a row over its lanes: lanes 0 and 1 end with all of the first three in `sum`,
// lanes 2 and 3 with all of the last three.
__device__ __forceinline__ void add_pair_of_dots(const float (&first)[3], const float (&second)[3],
                                                 int quad, float (&sum)[3]) {
  const bool upper = quad & 2;
  PARAMIXER_UNROLL
  for (int k = 0; k < 3; ++k) {
    const float kept = upper ? second[k] : first[k];
    sum[k] = kept + __shfl_xor_sync(0xffffffffu, upper ? first[k] : second[k], 2);
    sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], 1);
  }
}

// Adds three dots to those of the groups of channels before, which lie in one vector.
__device__ __forceinline__ void add_to_dots(float* target, const float (&sum)[3]) {
  auto& word = *reinterpret_cast<Vector16*>(target);
  auto dots = paramixer::detail::bit_cast<Pack<float, 4>>(word);
  PARAMIXER_UNROLL
  for (int k = 0; k < 3; ++k) dots.element[k] += sum[k];
  word = paramixer::detail::bit_cast<Vector16>(dots);
}

// What both gradients of a turn are made from and where they go, for one quad.
template <typename T>
struct Gradients {
  Column<T> state, from, to;
  const float* weights;
  float* dots;
  int valid;  // channels
};

// A segment back through both factors of a pair. With a = i - 3, step i brings rows a of the
// segment from the tile and makes row a - 1 of the state between the factors, row a - 2 of the
// gradient there, and row a - 3 of all that is wanted. Before a row exists its step is left out;
// unrolled, all indices are constants. Segments of at most kLeastSegmentBack rows are short. Whole
// warps come here.
template <Residual kResidual, typename T>
__device__ __forceinline__ void walk_pair_back(const Gradients<T>& gradients, int rows,
                                               const Segment& segment, bool is_short) {
  constexpr int kRows = TileTraits::kSegment;
  Quad state[4], middle[5], behind[5], between[3];  // row r is element r modulo their number
  // By row and link, of as many rows as lie between a weight's first and last use.
  float first[5][3], second[5][3], dots_before[3];
  const Column<T>&state_rows = gradients.state, &grad_rows = gradients.from;
  const auto before = [&](int row) { return wrap_row(row + rows - segment.distance, rows); };
  int row = before(before(before(segment.start)));
  PARAMIXER_UNROLL
  for (int i = 0; i < kRows + 6; ++i) {
    if (i == TileTraits::kLeastSegmentBack + 6 && is_short) break;
    // Rows a, a - 1, .. as numbers that are not negative.
    constexpr int kShift = 60;
    const int a = i - 3, n = a + kShift;
    const PairWeights loaded = load_pair_weights(gradients.weights, row);
    PARAMIXER_UNROLL
    for (int k = 0; k < 3; ++k) {
      first[n % 5][k] = loaded.first[k];
      second[n % 5][k] = loaded.second[k];
    }
    state[n % 4] = state_rows.load(row);
    behind[n % 5] = grad_rows.load(row);
    row = wrap_row(row + segment.distance, rows);
    if (a >= -1) {  // state between the factors, row a - 1
      const Quad& own = state[(n - 1) % 4];
      Quad sums = kResidual == Residual::kPrevious ? own : Quad{};
      multiply_add(first[(n - 1) % 5][0], own, sums);
      multiply_add(first[(n - 1) % 5][1], state[n % 4], sums);
      multiply_add(first[(n - 1) % 5][2], state[(n - 2) % 4], sums);
      middle[(n - 1) % 5] = sums;
    }
    if (a >= 1) {  // gradient between the factors, row a - 2
      const Quad& own = behind[(n - 2) % 5];
      Quad sums = kResidual == Residual::kPrevious ? own : Quad{};
      multiply_add(second[(n - 2) % 5][0], own, sums);
      multiply_add(second[(n - 4) % 5][1], behind[(n - 4) % 5], sums);
      multiply_add(second[n % 5][2], behind[n % 5], sums);
      between[(n - 2) % 3] = sums;
    }
    if (a >= 3) {  // row a - 3 of the results
      const int made = segment.start + (a - 3) * segment.distance;
      const bool wanted = made < segment.end;
      const Quad& own = between[(n - 3) % 3];
      Quad sums = kResidual == Residual::kPrevious ? own : Quad{};
      multiply_add(first[(n - 3) % 5][0], own, sums);
      multiply_add(first[(n - 4) % 5][1], between[(n - 4) % 3], sums);
      multiply_add(first[(n - 2) % 5][2], between[(n - 2) % 3], sums);
      if (wanted) gradients.to.at(made) = narrow_quad<T>(sums);
      const Quad& grad = behind[(n - 3) % 5];
      const float dots[3] = {dot(grad, middle[(n - 3) % 5], gradients.valid),
                             dot(grad, middle[(n - 1) % 5], gradients.valid),
                             dot(grad, middle[(n - 5) % 5], gradients.valid)};
      float sum[3];
      add_pair_of_dots(dots_before, dots, segment.quad, sum);
      if (wanted && segment.quad % 2 == 0) {
        add_to_dots(gradients.dots + 8 * made + 2 * segment.quad, sum);
      }
    }
    if (a >= 2) {  // dots of row a - 2 with the first factor's input, for the next step
      const Quad& grad = between[(n - 2) % 3];
      dots_before[0] = dot(grad, state[(n - 2) % 4], gradients.valid);
      dots_before[1] = dot(grad, state[(n - 1) % 4], gradients.valid);
      dots_before[2] = dot(grad, state[(n - 3) % 4], gradients.valid);
    }
  }
}

// The dots of one factor of three links over all rows. All threads of the block come here.
template <typename T>
__device__ __forceinline__ void dots_of_three(const Gradients<T>& gradients, int rows,
                                              const int32_t* offset) {
  const int apart = blockDim.x / kThreeQuads;
  // Shuffles need whole warps, so that all threads go round equally often.
  for (int base = 0; base < rows; base += apart) {
    int row = base + threadIdx.x / kThreeQuads;
    const bool wanted = row < rows;
    if (!wanted) row = 0;
    const Quad own = gradients.from.load(row);
    float sum[3];
    PARAMIXER_UNROLL
    for (int k = 0; k < 3; ++k) {
      sum[k] = dot(own, gradients.state.load(wrap_row(row + offset[k], rows)), gradients.valid);
      sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], 2);
      sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], 1);
    }
    if (wanted && threadIdx.x % kThreeQuads == 0) add_to_dots(gradients.dots + 4 * row, sum);
  }
}

// The gradient before one factor of three links, from the one behind it.
template <Residual kResidual, typename T>
__device__ __forceinline__ void transpose_of_three(const Gradients<T>& gradients, int rows,
                                                   const int32_t* offset) {
  for (int row = threadIdx.x / kThreeQuads; row < rows; row += blockDim.x / kThreeQuads) {
    Quad sums = kResidual == Residual::kPrevious ? gradients.from.load(row) : Quad{};
    PARAMIXER_UNROLL
    for (int k = 0; k < 3; ++k) {
      const int source = wrap_row(row + rows - offset[k], rows);
      multiply_add(gradients.weights[3 * source + k], gradients.from.load(source), sums);
    }
    gradients.to.at(row) = narrow_quad<T>(sums);
  }
}

// A turn back: the gradient before it, and its dots.
template <Residual kResidual, typename T>
__device__ __forceinline__ void back_three(const TileArguments<T>& arguments, const Tile<T>& tile,
                                           int group, const Turn& turn, int state, int from,
                                           int to) {
  const int quad = threadIdx.x % kThreeQuads;
  const Gradients<T> gradients = {tile.column(state, quad), tile.column(from, quad),
                                  tile.column(to, quad),    tile.weights(turn),
                                  tile.dots(turn),          tile.valid_channels(group, quad)};
  if (turn.factors == 2) {
    if (!warp_has_segments(turn)) return;
    walk_pair_back<kResidual>(gradients, arguments.rows, find_segment(turn, arguments.rows),
                              turn.segment <= TileTraits::kLeastSegmentBack);
  } else {
    const int32_t* offset = arguments.offset + turn.first * 3;
    dots_of_three(gradients, arguments.rows, offset);
    __syncthreads();  // the gradient may replace the state
    transpose_of_three<kResidual>(gradients, arguments.rows, offset);
  }
}

// ---- Any links

// The dots of one factor for the tile's own rows; all threads of the block come here.
template <typename T>
__device__ __forceinline__ void add_dots(const TileArguments<T>& arguments, const Tile<T>& tile,
                                         int group, const Turn& turn, int state, int grad) {
  const int32_t* offset = arguments.offset + turn.first * arguments.links;
  const int quad = threadIdx.x & (arguments.quads - 1);
  const int valid = tile.valid_channels(group, quad);
  const Column<T> states = tile.column(state, quad), grads = tile.column(grad, quad);
  const int own = tile.own_rows();
  // Shuffles need whole warps, so that all threads go round equally often.
  for (int base = 0; base < own; base += blockDim.x >> arguments.quad_bits) {
    const int own_row = base + (static_cast<int>(threadIdx.x) >> arguments.quad_bits);
    const bool wanted = own_row < own;
    const int row = (wanted ? own_row : 0) + arguments.halo;
    const Quad gradient = grads.load(row);
    float* sums = tile.dots(turn) + row * arguments.links;
    for (int k = 0; k < arguments.links; ++k) {
      float sum = dot(gradient, states.load(wrap_row(row + offset[k], arguments.rows)), valid);
      for (int step = arguments.quads / 2; step > 0; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
      }
      if (wanted && quad == (k & (arguments.quads - 1))) sums[k] += sum;
    }
  }
}

// The gradient before one factor, from the one behind it.
template <Residual kResidual, typename T>
__device__ __forceinline__ void apply_transpose(const TileArguments<T>& arguments,
                                                const Tile<T>& tile, const Turn& turn,
                                                int from_buffer, int to_buffer) {
  const int32_t* offset = arguments.offset + turn.first * arguments.links;
  const int quad = threadIdx.x & (arguments.quads - 1);
  const Column<T> from = tile.column(from_buffer, quad), to = tile.column(to_buffer, quad);
  for (int row = threadIdx.x >> arguments.quad_bits; row < arguments.rows;
       row += blockDim.x >> arguments.quad_bits) {
    Quad sums = kResidual == Residual::kPrevious ? from.load(row) : Quad{};
    const T* weight = tile.weights_of(turn.first);
    PARAMIXER_UNROLL_BY(4)
    for (int k = 0; k < arguments.links; ++k, weight += arguments.weight.column) {
      const int source = wrap_row(row + arguments.rows - offset[k], arguments.rows);
      multiply_add(widen(weight[tile.row_of(source) * arguments.weight.row]), from.load(source),
                   sums);
    }
    to.at(row) = narrow_quad<T>(sums);
  }
}

// Buffer t holds the rows before turn t of the sweep, the one behind those the gradient behind the
// last one. A single factor's gradient replaces the rows before it; that of two goes where nothing
// is needed any more, for which there is another buffer where they are the sweep's last.
template <Residual kResidual, typename T>
__device__ __forceinline__ void sweep_tile_backward(const TileArguments<T>& arguments,
                                                    const Tile<T>& tile) {
  const bool three = arguments.links == 3;
  const int first = tile.place().group, end = tile.place().groups_end;
  for (int group = first; group < end; ++group) {
    int from = arguments.turns;
    tile.begin_load(arguments.value, tile.place().value, group, 0);
    tile.begin_load(arguments.grad, tile.place().grad, group, from);
    ptx::cp_async_commit_group();
    if (three && group == first) tile.stage_weights();
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    for (int t = 0; t + 1 < arguments.turns; ++t) {
      if (three) {
        apply_three<kResidual>(arguments, tile, arguments.turn[t], t, t + 1);
      } else {
        apply_links<kResidual>(arguments, tile, arguments.turn[t], t, t + 1);
      }
      __syncthreads();
    }
    for (int t = arguments.turns - 1; t >= 0; --t) {
      const Turn& turn = arguments.turn[t];
      const int to = turn.factors == 1 ? t
                     : from != t + 1   ? t + 1
                                       : arguments.turns + (from == arguments.turns);
      if (three) {
        back_three<kResidual>(arguments, tile, group, turn, t, from, to);
      } else {
        add_dots(arguments, tile, group, turn, t, from);
        __syncthreads();
        apply_transpose<kResidual>(arguments, tile, turn, from, to);
      }
      __syncthreads();
      from = to;
    }
    tile.store(arguments.result, tile.place().result, group, from);
    __syncthreads();  // the next group is written where this one was read
  }
  tile.store_dots();
  __syncthreads();  // the next tile clears them
}

template <typename T>
__global__ void __launch_bounds__(TileTraits::kThreads, TileTraits::kBlocksPerSM)
    chain_tile_backward_kernel(const __grid_constant__ TileArguments<T> arguments) {
  PARAMIXER_DYNAMIC_SHARED(unsigned char, shared);
  const Tile<T> tile(arguments, shared);
  for (int64_t t = blockIdx.x; t < arguments.tiles; t += gridDim.x) {
    tile.find(t);
    tile.clear_dots();
    __syncthreads();
    if (arguments.residual == Residual::kPrevious) {
      sweep_tile_backward<Residual::kPrevious>(arguments, tile);
    } else {
      sweep_tile_backward<Residual::kNone>(arguments, tile);
    }
  }
}

template <typename T>
using TileKernel = void (*)(const TileArguments<T>);

template <typename T>
TileKernel<T> find_tile_kernel(Direction direction) {
  return direction == Direction::kForward ? chain_tile_kernel<T> : chain_tile_backward_kernel<T>;
}

}  // namespace paramixer::cuda
