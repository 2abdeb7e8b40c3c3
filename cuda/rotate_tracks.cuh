// rotate_tracks:  Y[i,c] = V[(i + o_t) mod L, c] for i < L, 0 for L <= i < N,   t = c / (D / T)
//
// A block copies kThreads consecutive words of the result, whose rows lie one after the other
// through the batch. A word is the widest access, of 16, 8, 4 or 2 bytes, that the width of a track
// and the alignment of every row allow, and never less than an element; what the dtype is does not
// matter. So a warp writes whole lines, and reads one run of a row for every track it meets.
//
// Bytes per element of the result, s being its size: device memory reads s and writes s, which is
// the bound, the speed of a copy; padding is written and not read. Tracks that end within a sector
// read its 32 bytes twice, from L2 where the shift is small. Threads share nothing, hence no shared
// memory.
#pragma once

#include <type_traits>

#include "arguments.h"
#include "core/rotation.h"
#include "device.cuh"
#include "launch_shape.h"

namespace paramixer::cuda {

template <int kBytes>
using Word = std::conditional_t<
    kBytes == 16, Vector16,
    std::conditional_t<kBytes == 8, uint64_t, std::conditional_t<kBytes == 4, uint32_t, uint16_t>>>;

// The operands in words, and in `links` and `offsets` the tracks and their shifts.
template <int kBytes, typename Index>
struct RotationArguments : Arguments<Word<kBytes>, Index> {
  Index track;             // words of a track
  const int64_t* lengths;  // null: N
};

template <int kBytes, typename Index>
RotationArguments<kBytes, Index> make_rotation_arguments(const Rotation& rotation,
                                                         const LaunchShape& shape) {
  Problem problem = rotation.problem;
  for (Operand* operand : {&problem.value, &problem.result}) {
    operand->row /= shape.width;
    for (int64_t& stride : operand->batch) stride /= shape.width;
  }
  return {make_arguments<Word<kBytes>, Index>(problem, shape),
          static_cast<Index>(rotation.track_width() / shape.width), rotation.lengths};
}

// Lengths are clamped: looking for wrong ones on the host would wait for the device.
template <int kBytes, typename Index>
PARAMIXER_INLINE Index ring_length(const RotationArguments<kBytes, Index>& arguments,
                                   Index flat_row) {
  if (arguments.lengths == nullptr) return arguments.length;
  const int64_t length = arguments.lengths[flat_row / arguments.length];
  if (length < 0) return 0;
  return length < arguments.length ? static_cast<Index>(length) : arguments.length;
}

// The row of the ring that `row` reads.
template <int kBytes, typename Index>
PARAMIXER_INLINE Index source_row(const RotationArguments<kBytes, Index>& arguments, Index row,
                                  Index ring, Index track) {
  Index shift = arguments.offsets[track];
  if (arguments.lengths != nullptr) {
    shift %= ring;
    if (shift < 0) shift += ring;
  }
  return wrap(row + shift, ring);
}

template <int kBytes, typename Index>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSM)
    rotate_tracks_kernel(const __grid_constant__ RotationArguments<kBytes, Index> arguments) {
  const Index items = arguments.rows * arguments.vectors;
  const Index step = static_cast<Index>(gridDim.x) * Traits::kThreads;
  for (Index item = static_cast<Index>(blockIdx.x) * Traits::kThreads + threadIdx.x; item < items;
       item += step) {
    const Index flat_row = item / arguments.vectors;
    const Index column = item - flat_row * arguments.vectors;
    const Site<Index> site = locate(arguments, flat_row);
    const Index ring = ring_length(arguments, flat_row);
    Word<kBytes> word = {};
    if (site.row < ring) {
      const Index row = source_row(arguments, site.row, ring, column / arguments.track);
      word = arguments.value
                 .data[site.value + row * arguments.value.row + column * arguments.value.column];
    }
    Word<kBytes>* const target = arguments.result.data + site.result +
                                 site.row * arguments.result.row + column * arguments.result.column;
    if constexpr (kBytes == Traits::kVectorBytes) {
      store_vector(target, word);
    } else {
      *target = word;
    }
  }
}

// Calls run(kernel, arguments) and returns what it returns; `bytes` is the size of one element.
template <int kBytes, typename Run>
auto with_rotation_of_words(const Rotation& rotation, const LaunchShape& shape, Run run) {
  if (shape.wide_index) {
    return run(rotate_tracks_kernel<kBytes, int64_t>,
               make_rotation_arguments<kBytes, int64_t>(rotation, shape));
  }
  return run(rotate_tracks_kernel<kBytes, int32_t>,
             make_rotation_arguments<kBytes, int32_t>(rotation, shape));
}

template <typename Run>
auto with_rotation(const Rotation& rotation, int bytes, const LaunchShape& shape, Run run) {
  switch (shape.width * bytes) {
    case 16:
      return with_rotation_of_words<16>(rotation, shape, run);
    case 8:
      return with_rotation_of_words<8>(rotation, shape, run);
    case 4:
      return with_rotation_of_words<4>(rotation, shape, run);
    default:
      return with_rotation_of_words<2>(rotation, shape, run);
  }
}

}  // namespace paramixer::cuda
