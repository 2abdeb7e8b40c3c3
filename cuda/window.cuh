// One factor of any links, a tile of consecutive rows of a ring at a time (window_plan.h):
//
//     mix_window:  Y = S(W) V + R, or X = S(W)^T V + R
//     dot_window:  A[i,k] = sum_c G[i,c] V[(i + o_k) mod N, c]
//
// A block takes a tile, 64 bytes of channels after 64 bytes. The rows of the tile and those that
// near links reach lie in a window in shared memory. A far link leads a tile to rows that adjoin
// too, but no other one to the same: these come from memory straight to the registers of the four
// lanes that a row has. The weights of a tile's rows are staged once for all channels, four links
// to an access; those of a transpose lie with the rows that links come from, and are staged with
// the rows that they lead to. Dots grow where weights would lie: those of four links are added over
// the lanes of a row in three shuffles, after which each lane has one of them.
//
// Bytes per row of D channels, s being the size of T: device memory reads D s of V (dots: of G too)
// and K s of W, or writes 4 K of dots, and writes D s of the product. L2 delivers V window / tile
// times and once for every far link, and that is the bound. Shared memory reads 1.25 D s a near
// link.
#pragma once

#include <type_traits>

#include "tile.cuh"
#include "window_arguments.h"

namespace paramixer::cuda {

// What a lane has of a row, as it is summed.
template <typename T>
struct Quads {
  static constexpr int kCount = Traits::kVectorBytes / (kQuad * static_cast<int>(sizeof(T)));
  Quad quad[kCount];
};

template <typename T>
PARAMIXER_INLINE Quads<T> widen_quads(Vector16 vector) {
  const auto words = paramixer::detail::bit_cast<Pack<QuadWord<T>, Quads<T>::kCount>>(vector);
  Quads<T> quads;
  PARAMIXER_UNROLL
  for (int q = 0; q < Quads<T>::kCount; ++q) quads.quad[q] = widen_quad<T>(words.element[q]);
  return quads;
}

template <typename T>
PARAMIXER_INLINE Vector16 narrow_quads(const Quads<T>& quads) {
  Pack<QuadWord<T>, Quads<T>::kCount> words;
  PARAMIXER_UNROLL
  for (int q = 0; q < Quads<T>::kCount; ++q) words.element[q] = narrow_quad<T>(quads.quad[q]);
  return paramixer::detail::bit_cast<Vector16>(words);
}

// Calls body(count, link) for the links from `first` to before `end`, `count` of them at a time:
// four, then the rest one by one. A constant by its type.
template <typename Body>
PARAMIXER_INLINE void for_each_four(int first, int end, const Body& body) {
  int link = first;
  PARAMIXER_UNROLL_BY(1)
  for (; link + 4 <= end; link += 4) body(std::integral_constant<int, 4>{}, link);
  PARAMIXER_UNROLL_BY(1)
  for (; link < end; ++link) body(std::integral_constant<int, 1>{}, link);
}

// Sums kCount numbers over the four lanes of a row: of four each lane gets the one of its number,
// of one all lanes get it. Whole warps come here.
template <int kCount>
__device__ __forceinline__ float add_over_lanes(const float (&number)[kCount], int lane) {
  static_assert(kWindowPieces == 4 && (kCount == 4 || kCount == 1));
  const auto from = [](float value, int apart) {
    return __shfl_xor_sync(0xffffffffu, value, apart);
  };
  if constexpr (kCount == 1) {
    const float sum = number[0] + from(number[0], 2);
    return sum + from(sum, 1);
  } else {
    const bool upper = lane & 2, odd = lane & 1;
    const float even_sum = (upper ? number[2] : number[0]) + from(upper ? number[0] : number[2], 2);
    const float odd_sum = (upper ? number[3] : number[1]) + from(upper ? number[1] : number[3], 2);
    return (odd ? odd_sum : even_sum) + from(odd ? even_sum : odd_sum, 1);
  }
}

// The lanes of a block in one group of channels.
template <bool kVectors, typename T>
class WindowLanes {
 public:
  // Between a lane's rows: as many as the block's threads take at once.
  static constexpr int kApart = TileTraits::kThreads / kWindowPieces;

  __device__ WindowLanes(const WindowArguments<T>& arguments, const Tile<T>& tile, int group)
      : arguments_(arguments),
        tile_(tile),
        piece_(tile.own_piece(group)),
        source_(arguments.tile.value.data + tile.place().value +
                piece_.channel * arguments.tile.value.column) {}

  // All rows of the product that are the tile's own.
  __device__ void mix() const {
    if (piece_.channels <= 0) return;
    constexpr int kRows = TileTraits::kWindowRows;
    const int own = tile_.own_rows();
    int row = piece_.row;
    PARAMIXER_UNROLL_BY(1)
    for (; row + (kRows - 1) * kApart < own; row += kRows * kApart) mix_rows<kRows>(row);
    PARAMIXER_UNROLL_BY(1)
    for (; row < own; row += kApart) mix_rows<1>(row);
  }

  // Adds these channels to the dots of all rows that are the tile's own. All threads of the block
  // come here.
  __device__ void dot() const {
    const auto& view = arguments_.tile.grad;
    const T* grad = view.data + tile_.place().grad + piece_.channel * view.column;
    const int own = tile_.own_rows();
    // Shuffles need whole warps, so that all threads go round equally often.
    PARAMIXER_UNROLL_BY(1)
    for (int base = 0; base < own; base += kApart) {
      const bool wanted = base + piece_.row < own;
      const Rows<1> rows = find_rows<1>(wanted ? base + piece_.row : 0);
      const Quads<T> gradient =
          widen_quads<T>(tile_.template load_piece<kVectors>(view, grad, rows.place[0], piece_));
      for_each_link([&](auto count, auto is_near, int link, int kept) {
        Vector16 other[count.value][1];
        load_links<is_near.value>(rows, link, other);
        float sums[count.value] = {};
        PARAMIXER_UNROLL
        for (int l = 0; l < count.value; ++l) {
          const Quads<T> value = widen_quads<T>(other[l][0]);
          PARAMIXER_UNROLL
          for (int q = 0; q < Quads<T>::kCount; ++q) {
            sums[l] += paramixer::cuda::dot(gradient.quad[q], value.quad[q], kQuad);
          }
        }
        const float sum = add_over_lanes(sums, piece_.index);
        // Of a single link its own lane writes.
        const int lane = count.value == 4 ? piece_.index : 0;
        if (wanted && (count.value == 4 || piece_.index == 0)) {
          *kept_of(rows.first, kept + lane) += sum;
        }
      });
    }
  }

 private:
  // Rows of the tile, kApart from one another, and where they lie in the batch item.
  template <int kRows>
  struct Rows {
    int first;
    int32_t place[kRows];
  };

  template <int kRows>
  PARAMIXER_INLINE Rows<kRows> find_rows(int first) const {
    Rows<kRows> rows{first, {}};
    PARAMIXER_UNROLL
    for (int i = 0; i < kRows; ++i) {
      rows.place[i] = tile_.row_of(arguments_.tile.halo + first + i * kApart);
    }
    return rows;
  }

  // Calls body(count, is_near, link, its place among what is kept of a row) for all links.
  template <typename Body>
  PARAMIXER_INLINE void for_each_link(const Body& body) const {
    const int near = arguments_.near, beyond = arguments_.far_place - near;
    for_each_four(0, near,
                  [&](auto count, int link) { body(count, std::true_type{}, link, link); });
    for_each_four(near, arguments_.tile.links, [&](auto count, int link) {
      body(count, std::false_type{}, link, link + beyond);
    });
  }

  // The rows of the window that lie `bytes` further on in it than the tile's.
  template <int kRows>
  PARAMIXER_INLINE Vector16 near_row(const Rows<kRows>& rows, int bytes, int i) const {
    const unsigned char* first =
        tile_.window() + rows.first * kWindowRowBytes + piece_.index * Traits::kVectorBytes;
    return *reinterpret_cast<const Vector16*>(first + bytes + i * kApart * kWindowRowBytes);
  }

  // The neighbours of rows along kCount links.
  template <bool kNear, int kCount, int kRows>
  PARAMIXER_INLINE void load_links(const Rows<kRows>& rows, int link,
                                   Vector16 (&other)[kCount][kRows]) const {
    const TileArguments<T>& tile = arguments_.tile;
    PARAMIXER_UNROLL
    for (int l = 0; l < kCount; ++l) {
      const int offset = tile.offset[link + l];
      PARAMIXER_UNROLL
      for (int i = 0; i < kRows; ++i) {
        if constexpr (kNear) {
          other[l][i] = near_row(rows, offset, i);
        } else {
          other[l][i] = tile_.template load_piece<kVectors>(
              tile.value, source_, tile_.far_row(rows.place[i], offset), piece_);
        }
      }
    }
  }

  // The weight or the dot of a row of the tile.
  PARAMIXER_INLINE float* kept_of(int row, int kept) const {
    return tile_.kept() + 4 * (kept / 4 * arguments_.tile.tile + row) + kept % 4;
  }

  template <int kCount>
  PARAMIXER_INLINE Pack<float, kCount> weights_of(int row, int kept) const {
    using Word = std::conditional_t<kCount == 4, Vector16, float>;
    return paramixer::detail::bit_cast<Pack<float, kCount>>(
        *reinterpret_cast<const Word*>(kept_of(row, kept)));
  }

  template <int kRows>
  PARAMIXER_INLINE void mix_rows(int first) const {
    const TileArguments<T>& tile = arguments_.tile;
    const Rows<kRows> rows = find_rows<kRows>(first);
    Quads<T> sums[kRows] = {};
    if (tile.residual == Residual::kPrevious) {
      PARAMIXER_UNROLL
      for (int i = 0; i < kRows; ++i) {
        sums[i] = widen_quads<T>(near_row(rows, tile.halo * kWindowRowBytes, i));
      }
    } else if (tile.residual == Residual::kInitial) {
      const T* initial = tile.grad.data + tile_.place().grad + piece_.channel * tile.grad.column;
      PARAMIXER_UNROLL
      for (int i = 0; i < kRows; ++i) {
        sums[i] = widen_quads<T>(
            tile_.template load_piece<kVectors>(tile.grad, initial, rows.place[i], piece_));
      }
    }
    for_each_link([&](auto count, auto is_near, int link, int kept) {
      Vector16 other[count.value][kRows];
      load_links<is_near.value>(rows, link, other);
      PARAMIXER_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const auto weights = weights_of<count.value>(first + i * kApart, kept);
        PARAMIXER_UNROLL
        for (int l = 0; l < count.value; ++l) {
          const Quads<T> value = widen_quads<T>(other[l][i]);
          PARAMIXER_UNROLL
          for (int q = 0; q < Quads<T>::kCount; ++q) {
            multiply_add(weights.element[l], value.quad[q], sums[i].quad[q]);
          }
        }
      }
    });
    T* target = tile.result.data + tile_.place().result + piece_.channel * tile.result.column;
    PARAMIXER_UNROLL
    for (int i = 0; i < kRows; ++i) {
      tile_.template store_piece<kVectors>(tile.result, target, rows.place[i], piece_,
                                           narrow_quads<T>(sums[i]));
    }
  }

  const WindowArguments<T>& arguments_;
  const Tile<T>& tile_;
  const typename Tile<T>::Piece piece_;
  const T* const source_;
};

// Where the weight or the dot of a link is kept, for row 0 of the tile, and how far rows are apart.
template <typename T>
PARAMIXER_INLINE float* kept_of_link(const WindowArguments<T>& arguments, const Tile<T>& tile,
                                     int link) {
  const int kept = link < arguments.near ? link : link - arguments.near + arguments.far_place;
  return tile.kept() + 4 * (kept / 4) * arguments.tile.tile + kept % 4;
}

// Stages the weights of all links for the tile's rows. Neighbouring threads take neighbouring
// weights of a row; of a transpose near ones come from the rows of the window one after the other,
// and go where the link leads.
template <typename T>
__device__ void stage_window_weights(const WindowArguments<T>& arguments, const Tile<T>& tile) {
  const int bits = arguments.tile.stage_bits, thread = threadIdx.x, threads = blockDim.x;
  const bool transpose = arguments.transpose;
  const int halo = arguments.tile.halo, own = tile.own_rows();
  const int begin = transpose ? 0 : halo, end = transpose ? arguments.tile.rows : halo + own;
  for (int link = thread & ((1 << bits) - 1); link < arguments.tile.links; link += 1 << bits) {
    const bool is_near = link < arguments.near;
    const int offset = transpose ? arguments.tile.offset[link] : 0;
    // Window rows between a weight's row and that of the tile it is for, which begins at its halo.
    const int before = transpose && is_near ? offset / kWindowRowBytes : halo;
    const int ahead = is_near ? 0 : offset;
    const T* source = tile.weights_of(0) + arguments.column[link] * arguments.tile.weight.column;
    float* target = kept_of_link(arguments, tile, link);
    PARAMIXER_UNROLL_BY(4)
    for (int row = begin + (thread >> bits); row < end; row += threads >> bits) {
      if (row < before || row >= before + own) continue;
      const int32_t place = tile.far_row(tile.row_of(row), ahead);
      target[4 * (row - before)] = widen(source[place * arguments.tile.weight.row]);
    }
  }
}

template <typename T>
__device__ void clear_window_dots(const WindowArguments<T>& arguments, const Tile<T>& tile) {
  const int count = arguments.tile.memory.weights / static_cast<int>(sizeof(float));
  for (int i = threadIdx.x; i < count; i += blockDim.x) tile.kept()[i] = 0;
}

// Writes the dots of the tile's own rows, those of a row side by side.
template <typename T>
__device__ void store_window_dots(const WindowArguments<T>& arguments, const Tile<T>& tile) {
  const TilePlace& place = tile.place();
  const int links = arguments.tile.links, own = tile.own_rows();
  float* target = arguments.tile.dots + place.split * arguments.tile.dots_split;
  for (int link = threadIdx.x % Traits::kWarp; link < links; link += Traits::kWarp) {
    const float* source = kept_of_link(arguments, tile, link);
    for (int row = threadIdx.x / Traits::kWarp; row < own; row += blockDim.x / Traits::kWarp) {
      const int64_t item_row = place.batch_row + tile.row_of(arguments.tile.halo + row);
      target[item_row * links + arguments.column[link]] = source[4 * row];
    }
  }
}

// Calls body(lanes) for every group of channels with the rows of the window on chip; prepare() goes
// on while the first ones come.
template <bool kVectors, typename T, typename Prepare, typename Body>
__device__ __forceinline__ void for_each_group(const WindowArguments<T>& arguments,
                                               const Tile<T>& tile, const Prepare& prepare,
                                               const Body& body) {
  const int first = tile.place().group, end = tile.place().groups_end;
  for (int group = first; group < end; ++group) {
    tile.begin_load(arguments.tile.value, tile.place().value, group, 0);
    ptx::cp_async_commit_group();
    if (group == first) prepare();
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    body(WindowLanes<kVectors, T>(arguments, tile, group));
    __syncthreads();  // the next group is written where this one was read
  }
}

template <bool kVectors, typename T>
__device__ __forceinline__ void mix_tile(const WindowArguments<T>& arguments, const Tile<T>& tile) {
  for_each_group<kVectors>(
      arguments, tile, [&] { stage_window_weights(arguments, tile); },
      [](const WindowLanes<kVectors, T>& lanes) { lanes.mix(); });
}

template <bool kVectors, typename T>
__device__ __forceinline__ void dot_tile(const WindowArguments<T>& arguments, const Tile<T>& tile) {
  for_each_group<kVectors>(
      arguments, tile, [&] { clear_window_dots(arguments, tile); },
      [](const WindowLanes<kVectors, T>& lanes) { lanes.dot(); });
  store_window_dots(arguments, tile);
  __syncthreads();  // the next tile clears them
}

template <typename T>
__global__ void __launch_bounds__(TileTraits::kThreads, TileTraits::kBlocksPerSM)
    mix_window_kernel(const __grid_constant__ WindowArguments<T> arguments) {
  PARAMIXER_DYNAMIC_SHARED(unsigned char, shared);
  const Tile<T> tile(arguments.tile, shared);
  for (int64_t t = blockIdx.x; t < arguments.tile.tiles; t += gridDim.x) {
    tile.find(t);
    __syncthreads();
    arguments.tile.vectors ? mix_tile<true>(arguments, tile) : mix_tile<false>(arguments, tile);
  }
}

template <typename T>
__global__ void __launch_bounds__(TileTraits::kThreads, TileTraits::kBlocksPerSM)
    dot_window_kernel(const __grid_constant__ WindowArguments<T> arguments) {
  PARAMIXER_DYNAMIC_SHARED(unsigned char, shared);
  const Tile<T> tile(arguments.tile, shared);
  for (int64_t t = blockIdx.x; t < arguments.tile.tiles; t += gridDim.x) {
    tile.find(t);
    __syncthreads();
    arguments.tile.vectors ? dot_tile<true>(arguments, tile) : dot_tile<false>(arguments, tile);
  }
}

// Calls run(kernel, arguments, shape) for every launch of a sweep with a window until one fails;
// what it returns is a success where it is its type's default.
template <typename T, typename Run>
auto for_each_window_launch(Direction direction, const ChainProblem& chain, const Sweep& sweep,
                            const LaunchLimits& limits, const Run& run) {
  const auto launch = [&](Kernel kernel) {
    const bool dots = kernel == Kernel::kLinkDot;
    const TileShape shape = tile_shape(dots ? Direction::kBackward : Direction::kForward, sizeof(T),
                                       chain, sweep, limits);
    return run(dots ? dot_window_kernel<T> : mix_window_kernel<T>,
               make_window_arguments<T>(kernel, chain, sweep, shape), shape);
  };
  if (direction == Direction::kForward) return launch(Kernel::kMix);
  const auto status = launch(Kernel::kMixTranspose);
  return status == decltype(status){} ? launch(Kernel::kLinkDot) : status;
}

}  // namespace paramixer::cuda
