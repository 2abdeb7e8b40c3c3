// What all kernels share: 16-byte packs, where a row lies, and which row a link leads to.
//
// Kernel files use the words of CUDA (__global__, threadIdx, ..) without including a CUDA header:
// nvcc knows them, and on the host an emulator defines them before it includes these files.
#pragma once

#include "arguments.h"
#include "core/numeric.h"
#include "core/problem.h"
#include "traits.h"

#if defined(__CUDA_ARCH__)
#define PARAMIXER_PRAGMA(text) _Pragma(#text)
#else
#define PARAMIXER_PRAGMA(text)
#endif
#define PARAMIXER_UNROLL PARAMIXER_PRAGMA(unroll)
#define PARAMIXER_UNROLL_BY(count) PARAMIXER_PRAGMA(unroll count)

namespace paramixer::cuda {

// 16 and 8 bytes that one instruction loads or stores.
#if defined(__CUDACC__)
using Vector16 = uint4;
using Vector8 = uint2;
#else
struct [[gnu::may_alias]] alignas(16) Vector16 {
  uint32_t word[4];
};
struct [[gnu::may_alias]] alignas(8) Vector8 {
  uint32_t word[2];
};
#endif
static_assert(sizeof(Vector16) == Traits::kVectorBytes);

PARAMIXER_INLINE void store_vector(void* address, Vector16 vector) {
#if defined(__CUDA_ARCH__)
  // nvcc may split a plain assignment into four stores.
  __stwb(static_cast<Vector16*>(address), vector);
#else
  *static_cast<Vector16*>(address) = vector;
#endif
}

// kWidth elements that one access moves.
template <typename T, int kWidth>
struct alignas(kWidth * sizeof(T)) Pack {
  T element[kWidth];
};

template <int kWidth, typename T>
PARAMIXER_INLINE Pack<T, kWidth> load_pack(const T* address) {
  if constexpr (kWidth == 1) {
    return {*address};
  } else {
    return paramixer::detail::bit_cast<Pack<T, kWidth>>(
        *reinterpret_cast<const Vector16*>(address));
  }
}

template <int kWidth, typename T>
PARAMIXER_INLINE void store_pack(T* address, const Accumulate<T> (&sum)[kWidth]) {
  Pack<T, kWidth> pack;
  PARAMIXER_UNROLL
  for (int e = 0; e < kWidth; ++e) pack.element[e] = narrow<T>(sum[e]);
  if constexpr (kWidth == 1) {
    *address = pack.element[0];
  } else {
    store_vector(address, paramixer::detail::bit_cast<Vector16>(pack));
  }
}

// Elements from the start of a row to its access number `vector`. Columns may lie apart where
// accesses are scalar.
template <int kWidth, typename T, typename Index>
PARAMIXER_INLINE Index column_offset(const View<T, Index>& view, Index vector) {
  return kWidth == 1 ? vector * view.column : vector * kWidth;
}

// A row of the batch: its position on the ring, and where its batch item begins in each operand.
template <typename Index>
struct Site {
  Index row;
  Index weight, value, grad, result, dots;
};

template <typename T, typename Index>
PARAMIXER_INLINE Site<Index> locate(const Arguments<T, Index>& arguments, Index flat_row) {
  Index batch = flat_row / arguments.length;
  Site<Index> site{flat_row - batch * arguments.length, 0, 0, 0, 0, 0};
  // One batch dimension, the usual case, needs no further division.
  for (int d = arguments.batch_dims - 1; d >= 0; --d) {
    const Index outer = d > 0 ? batch / arguments.batch_sizes[d] : Index{0};
    const Index coordinate = batch - outer * arguments.batch_sizes[d];
    batch = outer;
    site.weight += coordinate * arguments.weight.batch[d];
    site.value += coordinate * arguments.value.batch[d];
    site.grad += coordinate * arguments.grad.batch[d];
    site.result += coordinate * arguments.result.batch[d];
    site.dots += coordinate * arguments.dots.batch[d];
  }
  return site;
}

// The row that link `link` of `row` reads; with kTranspose the row whose link `link` reads `row`.
template <bool kTranspose, typename T, typename Index>
PARAMIXER_INLINE Index neighbour(const Arguments<T, Index>& arguments, Index row, int link) {
  const Index offset = arguments.offsets[link];
  return wrap(kTranspose ? row + (arguments.length - offset) : row + offset, arguments.length);
}

}  // namespace paramixer::cuda
