// CPU kernels of one sparse factor. This source is compiled once per instruction set
// (kernels_*.cpp), each time in a namespace of its own and with internal linkage throughout: no
// symbol of one instruction set can serve another.
//
// Each row of a result is a sum over K links of rows of the ring. Within a stretch of rows in which
// no link passes the end of the ring, link k is a constant distance in memory, so the inner loops
// hold neither a division nor a branch:
//   - channels go in blocks of L lanes, kBlocks blocks at a time held in registers over all K
//   links;
//   - the last, incomplete block is laid over the one before it (channels D-L .. D-1), so no masks
//   are needed;
//   - D < 16 takes narrower blocks (8, 4 or 1 lanes).
// Traffic per row: mix reads D (each row of the ring comes from memory once, K-1 times from a cache
// if it holds the links' reach) + K, writes D. Results larger than kStreamBytes are written past
// the caches, which saves reading what is overwritten. Products are summed in Accumulate<T> in the
// order of the links, with fused multiply-adds where the instruction set has them, and rounded
// once.

#include <type_traits>

#include "cpu/kernels.h"

namespace paramixer::cpu {
namespace PARAMIXER_ISA_NAMESPACE {
namespace {

#include "cpu/vector.h"

constexpr int kBlocks = 4;
constexpr int64_t kStreamBytes = int64_t{8}
                                 << 20;  // more than a core's share of the last-level cache
constexpr int64_t kBackwardTileBytes = 16 << 10;  // rows of dOut that dV and dW read together

// What turns position i into link k's element: `shift` for a row, in elements, constant over a
// stretch of rows.
struct LinkDistances {
  int64_t value[kMaxLinks];
  int64_t weight[kMaxLinks];
};

// Positions [begin, end) of one batch item in which link k reads position i + shift_k; shifts in
// (-N, N).
struct Stretch {
  int64_t begin;
  int64_t end;
  int64_t shift[kMaxLinks];
};

enum class Direction {
  kForward,
  kTransposed
};  // link k of row i reads row i + o_k, or row i - o_k

PARAMIXER_INLINE void find_stretch(const Problem& problem, Direction direction, int64_t begin,
                                   int64_t end, Stretch& stretch) {
  const int64_t length = problem.length;
  stretch.begin = begin;
  for (int k = 0; k < problem.links; ++k) {
    const int64_t offset = problem.offsets[k];
    const int64_t ahead =
        direction == Direction::kForward || offset == 0 ? offset : length - offset;
    const int64_t wrap_at = length - ahead;  // from here on the link starts over at position 0
    const bool wrapped = begin >= wrap_at;
    stretch.shift[k] = wrapped ? ahead - length : ahead;
    if (!wrapped && wrap_at < end) end = wrap_at;
  }
  stretch.end = end;
}

template <typename T>
PARAMIXER_INLINE T* row_of(const Operand& operand, int64_t batch_start, int64_t position) {
  return static_cast<T*>(operand.data) + batch_start + position * operand.row;
}

// Calls body(batch, begin, end, stretch) for every stretch of `range`.
template <typename Body>
PARAMIXER_INLINE void for_each_stretch(const Problem& problem, Direction direction, RowRange range,
                                       Body body) {
  Stretch stretch;
  for (int64_t row = range.begin; row < range.end;) {
    const int64_t batch = row / problem.length;
    const int64_t start = batch * problem.length;
    const int64_t end = range.end - start < problem.length ? range.end - start : problem.length;
    for (int64_t position = row - start; position < end; position = stretch.end) {
      find_stretch(problem, direction, position, end, stretch);
      body(batch, stretch);
    }
    row = start + end;
  }
}

// ---- mix and mix_transpose: result row = sum over links of weight * source row

template <typename T, int L, int kCount, bool kStream>
PARAMIXER_INLINE void gather_blocks(T* result, const T* weight, const T* source,
                                    const LinkDistances& distance, int links) {
  Lanes<T, L> sum[kCount];
  for (int b = 0; b < kCount; ++b) sum[b] = Lanes<T, L>::zero();
  for (int k = 0; k < links; ++k) {
    const auto factor = widen(weight[distance.weight[k]]);
    const T* from = source + distance.value[k];
    for (int b = 0; b < kCount; ++b) sum[b].add_scaled(factor, Lanes<T, L>::read(from + b * L));
  }
  for (int b = 0; b < kCount; ++b) {
    if constexpr (kStream) {
      sum[b].write_past_caches(result + b * L);
    } else {
      sum[b].write(result + b * L);
    }
  }
}

template <typename T, int L, bool kStream>
PARAMIXER_INLINE void gather_row(T* result, const T* weight, const T* source,
                                 const LinkDistances& distance, int links, int64_t channels) {
  int64_t c = 0;
  for (; c + kBlocks * L <= channels; c += kBlocks * L) {
    gather_blocks<T, L, kBlocks, kStream>(result + c, weight, source + c, distance, links);
  }
  for (; c + L <= channels; c += L) {
    gather_blocks<T, L, 1, kStream>(result + c, weight, source + c, distance, links);
  }
  if (c < channels) {
    c = channels - L;
    gather_blocks<T, L, 1, false>(result + c, weight, source + c, distance, links);
  }
}

template <typename T, int L, bool kStream>
void gather_range(const Problem& problem, Direction direction, const Operand& source,
                  RowRange range) {
  LinkDistances distance;
  for_each_stretch(
      problem, direction, range,
      [&](int64_t batch, const Stretch& stretch) __attribute__((always_inline)) {
        for (int k = 0; k < problem.links; ++k) {
          const int64_t weight_rows = direction == Direction::kForward ? 0 : stretch.shift[k];
          distance.value[k] = stretch.shift[k] * source.row;
          distance.weight[k] = weight_rows * problem.weight.row + k * problem.weight.column;
        }
        T* result =
            row_of<T>(problem.result, batch_offset(problem, problem.result, batch), stretch.begin);
        const T* weight = row_of<const T>(
            problem.weight, batch_offset(problem, problem.weight, batch), stretch.begin);
        const T* from =
            row_of<const T>(source, batch_offset(problem, source, batch), stretch.begin);
        for (int64_t i = stretch.begin; i < stretch.end; ++i) {
          gather_row<T, L, kStream>(result, weight, from, distance, problem.links,
                                    problem.channels);
          result += problem.result.row;
          weight += problem.weight.row;
          from += source.row;
        }
      });
}

// Streaming stores need whole, aligned machine vectors.
template <typename T>
bool can_stream(const Problem& problem) {
  const auto aligned = [](int64_t elements) { return elements * sizeof(T) % kVectorBytes == 0; };
  if (reinterpret_cast<uintptr_t>(problem.result.data) % kVectorBytes != 0) return false;
  if (!aligned(problem.result.row)) return false;
  for (int d = 0; d < problem.batch_dims; ++d) {
    if (!aligned(problem.result.batch[d])) return false;
  }
  return batch_count(problem) * problem.length * problem.channels * int64_t{sizeof(T)} >=
         kStreamBytes;
}

template <typename T>
void gather(const Problem& problem, Direction direction, const Operand& source, RowRange range) {
  constexpr int kLanes = 64 / sizeof(Accumulate<T>);  // 16 float or 8 double
  if (problem.channels >= kLanes) {
    if constexpr (sizeof(T) >= sizeof(float) && kCanStream) {
      if (can_stream<T>(problem)) {
        gather_range<T, kLanes, true>(problem, direction, source, range);
        return stream_fence();  // streamed rows become visible before the caller says so to other
                                // threads
      }
    }
    gather_range<T, kLanes, false>(problem, direction, source, range);
  } else if (problem.channels >= 8) {
    gather_range<T, 8, false>(problem, direction, source, range);
  } else if (problem.channels >= 4) {
    gather_range<T, 4, false>(problem, direction, source, range);
  } else {
    gather_range<T, 1, false>(problem, direction, source, range);
  }
}

// ---- link_dot: dots[i,k] = <grad row i, value row i + o_k>

// kCount links of one row. The block laid over the one before it gives only its last channels.
template <typename T, int L, int kCount>
PARAMIXER_INLINE void dot_links(T* dots, int64_t dots_column, const T* grad, const T* value,
                                const int64_t* distance, int64_t channels) {
  Lanes<T, L> sum[kCount];
  for (int k = 0; k < kCount; ++k) sum[k] = Lanes<T, L>::zero();
  int64_t c = 0;
  for (; c + L <= channels; c += L) {
    const auto row = Lanes<T, L>::read(grad + c);
    for (int k = 0; k < kCount; ++k)
      sum[k].add_product(row, Lanes<T, L>::read(value + distance[k] + c));
  }
  if (c < channels) {
    const int known = static_cast<int>(c - (channels - L));
    c = channels - L;
    const auto row = Lanes<T, L>::read(grad + c).without_first(known);
    for (int k = 0; k < kCount; ++k) {
      sum[k].add_product(row, Lanes<T, L>::read(value + distance[k] + c).without_first(known));
    }
  }
  for (int k = 0; k < kCount; ++k) dots[k * dots_column] = narrow<T>(sum[k].sum());
}

template <typename T, int L>
void dot_range(const Problem& problem, RowRange range) {
  LinkDistances distance;
  for_each_stretch(problem, Direction::kForward, range,
                   [&](int64_t batch, const Stretch& stretch) __attribute__((always_inline)) {
                     for (int k = 0; k < problem.links; ++k)
                       distance.value[k] = stretch.shift[k] * problem.value.row;
                     T* dots = row_of<T>(problem.dots, batch_offset(problem, problem.dots, batch),
                                         stretch.begin);
                     const T* grad = row_of<const T>(
                         problem.grad, batch_offset(problem, problem.grad, batch), stretch.begin);
                     const T* value = row_of<const T>(
                         problem.value, batch_offset(problem, problem.value, batch), stretch.begin);
                     const int64_t column = problem.dots.column;
                     for (int64_t i = stretch.begin; i < stretch.end; ++i) {
                       int k = 0;
                       for (; k + 4 <= problem.links; k += 4) {
                         dot_links<T, L, 4>(dots + k * column, column, grad, value,
                                            distance.value + k, problem.channels);
                       }
                       if (problem.links - k == 3) {
                         dot_links<T, L, 3>(dots + k * column, column, grad, value,
                                            distance.value + k, problem.channels);
                         k += 3;
                       }
                       for (; k < problem.links; ++k) {
                         dot_links<T, L, 1>(dots + k * column, column, grad, value,
                                            distance.value + k, problem.channels);
                       }
                       dots += problem.dots.row;
                       grad += problem.grad.row;
                       value += problem.value.row;
                     }
                   });
}

template <typename T>
void link_dot(const Problem& problem, RowRange range) {
  constexpr int kLanes = 64 / sizeof(Accumulate<T>);
  if (problem.channels >= kLanes) {
    dot_range<T, kLanes>(problem, range);
  } else if (problem.channels >= 8) {
    dot_range<T, 8>(problem, range);
  } else if (problem.channels >= 4) {
    dot_range<T, 4>(problem, range);
  } else {
    dot_range<T, 1>(problem, range);
  }
}

template <typename T>
void mix(const Problem& problem, RowRange range) {
  gather<T>(problem, Direction::kForward, problem.value, range);
}

template <typename T>
void mix_transpose(const Problem& problem, RowRange range) {
  gather<T>(problem, Direction::kTransposed, problem.value, range);
}

// dV and dW of the same rows tile by tile, so that both find the tile's rows of dOut in cache.
template <typename T>
void mix_backward(const Problem& problem, RowRange range) {
  const int64_t row_bytes = problem.channels * int64_t{sizeof(T)};
  const int64_t tile = row_bytes == 0 ? range.end : 1 + kBackwardTileBytes / row_bytes;
  for (int64_t begin = range.begin; begin < range.end; begin += tile) {
    const RowRange rows = {begin, begin + tile < range.end ? begin + tile : range.end};
    gather<T>(problem, Direction::kTransposed, problem.grad, rows);
    link_dot<T>(problem, rows);
  }
}

}  // namespace
}  // namespace PARAMIXER_ISA_NAMESPACE
}  // namespace paramixer::cpu

// The initializer of InstructionSet::kernels.
#define PARAMIXER_KERNELS_OF(T)                  \
  {                                              \
      PARAMIXER_ISA_NAMESPACE::mix<T>,           \
      PARAMIXER_ISA_NAMESPACE::mix_transpose<T>, \
      PARAMIXER_ISA_NAMESPACE::link_dot<T>,      \
      PARAMIXER_ISA_NAMESPACE::mix_backward<T>,  \
  }
#define PARAMIXER_KERNELS             \
  {                                   \
      PARAMIXER_KERNELS_OF(double),   \
      PARAMIXER_KERNELS_OF(float),    \
      PARAMIXER_KERNELS_OF(BFloat16), \
      PARAMIXER_KERNELS_OF(Float16),  \
  }
