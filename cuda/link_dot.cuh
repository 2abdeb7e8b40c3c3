// link_dot:     A[i,k] = sum_c G[i,c] V[(i + o_k) mod N, c]
// mix_backward: A and, in the same sweep,
//               X[j,c] = sum_k W[(j - o_k) mod N, k] G[(j - o_k) mod N, c]
//
// A block takes kThreads / lanes consecutive rows. The lanes of a row (a power of two, at most a
// warp, together one 128-byte line) walk along its channels; each keeps the partial dots of
// kLinksPerPass links in registers, and a butterfly of shuffles adds them in a fixed order. More
// links take further passes over the row, which L1 then holds. mix_backward makes its row of X in
// the first pass, while the row of G is at hand.
//
// Bytes per row, s being the size of T. Device memory, while the links' rows stay in L2: link_dot
// reads 2 D s and writes K s, mix_backward reads (2 D + K) s and writes (D + K) s; these are the
// bounds. Through L2 at most (K + 1) D s and (2 K + 2) D s. No shared memory: rows meet only in L1,
// partial sums only in the lanes of one warp.
#pragma once

#include "device.cuh"
#include "mix.cuh"

namespace paramixer::cuda {

// Adds the products of one access to the partial dots of kLinksPerPass links from `first` on.
template <int kWidth, typename T, typename Index>
PARAMIXER_INLINE void add_dots(const Arguments<T, Index>& arguments, Index row, int first,
                               const T* grad, const T* value,
                               Accumulate<T> (&dots)[Traits::kLinksPerPass]) {
  constexpr int kInFlight = Traits::kLinksInFlight;
  const Pack<T, kWidth> own = load_pack<kWidth>(grad);
  PARAMIXER_UNROLL
  for (int begin = 0; begin < Traits::kLinksPerPass; begin += kInFlight) {
    Pack<T, kWidth> pack[kInFlight] = {};
    PARAMIXER_UNROLL
    for (int l = 0; l < kInFlight; ++l) {
      const int link = first + begin + l;
      if (link < arguments.links) {
        pack[l] =
            load_pack<kWidth>(value + neighbour<false>(arguments, row, link) * arguments.value.row);
      }
    }
    PARAMIXER_UNROLL
    for (int l = 0; l < kInFlight; ++l) {
      if (first + begin + l < arguments.links) {
        PARAMIXER_UNROLL
        for (int e = 0; e < kWidth; ++e) {
          dots[begin + l] += widen(own.element[e]) * widen(pack[l].element[e]);
        }
      }
    }
  }
}

// Gives every lane of a row the sums over its lanes. All threads of the warp must come here.
template <typename Sum>
__device__ __forceinline__ void add_lanes(int lanes, Sum (&dots)[Traits::kLinksPerPass]) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    PARAMIXER_UNROLL
    for (int l = 0; l < Traits::kLinksPerPass; ++l) {
      dots[l] += __shfl_xor_sync(0xffffffffu, dots[l], step);
    }
  }
}

template <bool kBackward, int kWidth, typename T, typename Index>
__device__ __forceinline__ void sweep_rows(const Arguments<T, Index>& arguments) {
  const int lanes = arguments.lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const Index rows_per_block = Traits::kThreads / lanes;
  const Index own_row = static_cast<Index>(threadIdx.x) / lanes;
  const Index step = static_cast<Index>(gridDim.x) * rows_per_block;
  // All threads of a block go round equally often, with or without a row, because shuffles need
  // whole warps.
  for (Index base = static_cast<Index>(blockIdx.x) * rows_per_block; base < arguments.rows;
       base += step) {
    const bool has_row = base + own_row < arguments.rows;
    const Site<Index> site = locate(arguments, has_row ? base + own_row : base);
    const T* grad = arguments.grad.data + site.grad;
    const T* value = arguments.value.data + site.value;
    const Index vectors = has_row ? arguments.vectors : Index{0};
    for (int first = 0; first < arguments.links; first += Traits::kLinksPerPass) {
      Accumulate<T> dots[Traits::kLinksPerPass] = {};
      for (Index vector = lane; vector < vectors; vector += lanes) {
        const T* grad_column = grad + column_offset<kWidth>(arguments.grad, vector);
        const T* value_column = value + column_offset<kWidth>(arguments.value, vector);
        add_dots<kWidth>(arguments, site.row, first, grad_column + site.row * arguments.grad.row,
                         value_column, dots);
        if (kBackward && first == 0) {
          Accumulate<T> sum[kWidth] = {};
          sum_links<true>(arguments, site.row, arguments.weight.data + site.weight, grad_column,
                          arguments.grad.row, sum);
          store_pack(arguments.result.data + site.result + site.row * arguments.result.row +
                         column_offset<kWidth>(arguments.result, vector),
                     sum);
        }
      }
      add_lanes(lanes, dots);
      T* target = arguments.dots.data + site.dots + site.row * arguments.dots.row;
      PARAMIXER_UNROLL
      for (int l = 0; l < Traits::kLinksPerPass; ++l) {
        const int link = first + l;
        if (has_row && link < arguments.links && (l & (lanes - 1)) == lane) {
          target[link * arguments.dots.column] = narrow<T>(dots[l]);
        }
      }
    }
  }
}

template <typename T, typename Index, int kWidth>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSM)
    link_dot_kernel(const __grid_constant__ Arguments<T, Index> arguments) {
  sweep_rows<false, kWidth>(arguments);
}

template <typename T, typename Index, int kWidth>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSM)
    mix_backward_kernel(const __grid_constant__ Arguments<T, Index> arguments) {
  sweep_rows<true, kWidth>(arguments);
}

}  // namespace paramixer::cuda
