// mix:           Y[i,c] = sum_k W[i,k] V[(i + o_k) mod N, c]
// mix_transpose: X[j,c] = sum_k W[(j - o_k) mod N, k] V[(j - o_k) mod N, c]
//
// A block computes kThreads consecutive accesses (16 bytes of channels each, or one element) of the
// result, whose rows lie one after the other through the batch; a thread sums all links of its
// access in registers. So any D fills the block, a warp reads whole lines, and the one weight of a
// row and link is a broadcast.
//
// Bytes per element of the result, s being the size of T: device memory reads s of V (each row
// once, while the rows that the links span stay in L2) and K s / D of W, and writes s; that is the
// bound, the speed of a copy. L1 and L2 deliver K s of V, and L2 alone does where links lead out of
// the block, which bounds large K and short rows. mix_transpose reads its weights K apart, so that
// far links cost a 32-byte sector each. Threads of a block share nothing but L1, hence no shared
// memory.
#pragma once

#include "device.cuh"

namespace paramixer::cuda {

// The sum over all links of weight times source, in link order. `weight` is the first weight of the
// batch item, `source` its first row at the channels wanted.
template <bool kTranspose, int kWidth, typename T, typename Index>
PARAMIXER_INLINE void sum_links(const Arguments<T, Index>& arguments, Index row, const T* weight,
                                const T* source, Index source_stride,
                                Accumulate<T> (&sum)[kWidth]) {
  constexpr int kInFlight = Traits::kLinksInFlight;
  for (int first = 0; first < arguments.links; first += kInFlight) {
    T scale[kInFlight] = {};
    Pack<T, kWidth> pack[kInFlight] = {};
    PARAMIXER_UNROLL
    for (int l = 0; l < kInFlight; ++l) {
      const int link = first + l;
      if (link < arguments.links) {
        const Index other = neighbour<kTranspose>(arguments, row, link);
        const Index weight_row = kTranspose ? other : row;
        scale[l] = weight[weight_row * arguments.weight.row + link * arguments.weight.column];
        pack[l] = load_pack<kWidth>(source + other * source_stride);
      }
    }
    PARAMIXER_UNROLL
    for (int l = 0; l < kInFlight; ++l) {
      if (first + l < arguments.links) {
        const Accumulate<T> factor = widen(scale[l]);
        PARAMIXER_UNROLL
        for (int e = 0; e < kWidth; ++e) sum[e] += factor * widen(pack[l].element[e]);
      }
    }
  }
}

template <typename T, typename Index, int kWidth, bool kTranspose>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSM)
    mix_kernel(const __grid_constant__ Arguments<T, Index> arguments) {
  const Index items = arguments.rows * arguments.vectors;
  const Index step = static_cast<Index>(gridDim.x) * Traits::kThreads;
  for (Index item = static_cast<Index>(blockIdx.x) * Traits::kThreads + threadIdx.x; item < items;
       item += step) {
    const Index flat_row = item / arguments.vectors;
    const Index vector = item - flat_row * arguments.vectors;
    const Site<Index> site = locate(arguments, flat_row);
    const T* weight = arguments.weight.data + site.weight;
    const T* source =
        arguments.value.data + site.value + column_offset<kWidth>(arguments.value, vector);
    T* target = arguments.result.data + site.result + site.row * arguments.result.row +
                column_offset<kWidth>(arguments.result, vector);
    Accumulate<T> sum[kWidth] = {};
    sum_links<kTranspose>(arguments, site.row, weight, source, arguments.value.row, sum);
    store_pack(target, sum);
  }
}

}  // namespace paramixer::cuda
