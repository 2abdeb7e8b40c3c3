// CPU kernels of one sparse factor. This source is compiled once per instruction set
// (kernels_*.cpp), each time in a namespace of its own and with internal linkage throughout: no
// symbol of one instruction set can serve another.
//
// Each row of a result is a sum over K links of rows of the ring. Within a stretch of rows in which
// no link passes the end of the ring, link k is a constant distance in memory, so the inner loops
// hold neither a division nor a branch:
//   - channels go in blocks of L lanes, kBlocks of them at a time in registers over all K links;
//   - the last, incomplete block lies over the one before it (channels D-L .. D-1), so that no load
//     and no store is partial;
//   - D < 16 takes narrower blocks (8, 4 or 1 lanes), a number known to the compiler.
// Traffic per row: mix reads D + K and writes D elements, when a cache holds the links' reach.
// Results of at least kStreamBytes are written past the caches, which saves reading what is
// overwritten. Products are summed in Accumulate<T> in the order of the links, with fused
// multiply-adds where the instruction set has them, and rounded once.

#include <type_traits>
#include <utility>

#include "cpu/kernels.h"

namespace paramixer::cpu {
namespace PARAMIXER_ISA_NAMESPACE {
namespace {

#include "cpu/vector.h"

constexpr int kBlocks = 4;

// The widest block, in lanes: 16 float or 8 double.
template <typename T>
constexpr int kWidest = 64 / sizeof(Accumulate<T>);

// More than a core's share of the last-level cache.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// Rows of dOut that dV and dW read together; they stay in the second-level cache. Tiles of 16 KiB
// made far links (2 MiB apart) a third slower: the prefetchers lose their streams at every tile.
constexpr int64_t kBackwardTileBytes = int64_t{128} << 10;

// From a row's own element to the one that link k reads, in elements.
struct LinkDistances {
  int64_t value[kMaxLinks];
  int64_t weight[kMaxLinks];
};

// Positions [begin, end) of one batch item in which link k reads position i + shift[k], |shift| <
// N.
struct Stretch {
  int64_t begin;
  int64_t end;
  int64_t shift[kMaxLinks];
};

// Link k of row i reads row i + o_k, or row i - o_k.
enum class Direction { kForward, kTransposed };

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
PARAMIXER_INLINE T* row_of(const Problem& problem, const Operand& operand, int64_t batch,
                           int64_t position) {
  return static_cast<T*>(operand.data) + batch_offset(problem, operand, batch) +
         position * operand.row;
}

// Calls body(batch, stretch) for every stretch of `range`.
template <typename Body>
PARAMIXER_INLINE void for_each_stretch(const Problem& problem, Direction direction, RowRange range,
                                       const Body& body) {
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

// kCount blocks of one row, next to each other but for the last one, which starts at channel
// `last`.
template <typename T, int L, int kCount, bool kStream>
PARAMIXER_INLINE void gather_blocks(T* result, const T* weight, const T* source,
                                    const LinkDistances& distance, int links, int64_t last) {
  Lanes<T, L> sum[kCount];
  for (int b = 0; b < kCount; ++b) sum[b] = Lanes<T, L>::zero();
  for (int k = 0; k < links; ++k) {
    const auto factor = widen(weight[distance.weight[k]]);
    const T* from = source + distance.value[k];
    for (int b = 0; b < kCount; ++b) {
      sum[b].add_scaled(factor, Lanes<T, L>::read(from + (b + 1 < kCount ? b * L : last)));
    }
  }
  for (int b = 0; b < kCount; ++b) {
    T* to = result + (b + 1 < kCount ? b * L : last);
    if constexpr (kStream) {
      sum[b].write_past_caches(to);
    } else {
      sum[b].write(to);
    }
  }
}

// kRest blocks, the last one laid over the one before it, follow the channels that fill groups of
// kBlocks.
template <typename T, int L, int kRest, bool kStream>
PARAMIXER_INLINE void gather_row(T* result, const T* weight, const T* source,
                                 const LinkDistances& distance, int links, int64_t channels) {
  int64_t c = 0;
  if constexpr (L == kWidest<T>) {
    for (; c + kBlocks * L <= channels; c += kBlocks * L) {
      gather_blocks<T, L, kBlocks, kStream>(result + c, weight, source + c, distance, links,
                                            (kBlocks - 1) * L);
    }
  }
  if constexpr (kRest > 0) {
    gather_blocks<T, L, kRest, kStream>(result + c, weight, source + c, distance, links,
                                        channels - L - c);
  }
}

template <typename T, int L, int kRest, bool kStream>
void gather_stretch(const Problem& problem, Direction direction, const Operand& source,
                    int64_t batch, const Stretch& stretch) {
  LinkDistances distance;
  for (int k = 0; k < problem.links; ++k) {
    const int64_t weight_rows = direction == Direction::kForward ? 0 : stretch.shift[k];
    distance.value[k] = stretch.shift[k] * source.row;
    distance.weight[k] = weight_rows * problem.weight.row + k * problem.weight.column;
  }
  T* result = row_of<T>(problem, problem.result, batch, stretch.begin);
  const T* weight = row_of<const T>(problem, problem.weight, batch, stretch.begin);
  const T* from = row_of<const T>(problem, source, batch, stretch.begin);
  const int links = problem.links;
  const int64_t channels = problem.channels;
  for (int64_t i = stretch.begin; i < stretch.end; ++i) {
    gather_row<T, L, kRest, kStream>(result, weight, from, distance, links, channels);
    result += problem.result.row;
    weight += problem.weight.row;
    from += source.row;
  }
}

// Streaming stores need whole, aligned machine vectors.
template <typename T, int L>
bool can_stream(const Problem& problem) {
  const auto aligned = [](int64_t elements) { return elements * sizeof(T) % kVectorBytes == 0; };
  if (reinterpret_cast<uintptr_t>(problem.result.data) % kVectorBytes != 0) return false;
  if (problem.channels % L != 0 || !aligned(problem.result.row)) return false;
  for (int d = 0; d < problem.batch_dims; ++d) {
    if (!aligned(problem.result.batch[d])) return false;
  }
  const int64_t rows = batch_count(problem) * problem.length;
  return rows * problem.channels * int64_t{sizeof(T)} >= kStreamBytes;
}

template <typename T, int L, int kRest>
void gather_shape(const Problem& problem, Direction direction, const Operand& source,
                  RowRange range) {
  if constexpr (kCanStream && sizeof(T) >= sizeof(float) && L == kWidest<T>) {
    if (can_stream<T, L>(problem)) {
      for_each_stretch(problem, direction, range, [&](int64_t batch, const Stretch& stretch) {
        gather_stretch<T, L, kRest, true>(problem, direction, source, batch, stretch);
      });
      return stream_fence();  // before the caller tells other threads that the rows are there
    }
  }
  for_each_stretch(problem, direction, range, [&](int64_t batch, const Stretch& stretch) {
    gather_stretch<T, L, kRest, false>(problem, direction, source, batch, stretch);
  });
}

// Calls body<L, kRest>() with the widest block that D channels fill, and the number of blocks
// beyond groups of kBlocks.
template <typename T, typename Body>
PARAMIXER_INLINE void with_row_shape(int64_t channels, const Body& body) {
  constexpr int kW = kWidest<T>;
  if (channels >= kW) {
    static_assert(kBlocks == 4);
    const int64_t rest = (channels % (kBlocks * kW) + kW - 1) / kW;
    if (rest == 0) return body.template operator()<kW, 0>();
    if (rest == 1) return body.template operator()<kW, 1>();
    if (rest == 2) return body.template operator()<kW, 2>();
    if (rest == 3) return body.template operator()<kW, 3>();
    return body.template operator()<kW, 4>();
  }
  if (channels > 8) return body.template operator()<8, 2>();
  if (channels == 8) return body.template operator()<8, 1>();
  if (channels > 4) return body.template operator()<4, 2>();
  if (channels == 4) return body.template operator()<4, 1>();
  if (channels == 3) return body.template operator()<1, 3>();
  if (channels == 2) return body.template operator()<1, 2>();
  body.template operator()<1, 1>();
}

template <typename T>
void gather(const Problem& problem, Direction direction, const Operand& source, RowRange range) {
  with_row_shape<T>(problem.channels, [&]<int L, int kRest>() {
    gather_shape<T, L, kRest>(problem, direction, source, range);
  });
}

// ---- link_dot: dots[i,k] = <grad row i, value row i + o_k>

// kCount links of one row. The last block lies over the one before it: `last` keeps its new
// channels.
template <typename T, int L, int kRest, int kCount>
PARAMIXER_INLINE void dot_links(T* dots, int64_t dots_column, const T* grad, const T* value,
                                const int64_t* distance, int64_t channels,
                                const LaneMask<T, L>& last) {
  Lanes<T, L> sum[kCount];
  for (int k = 0; k < kCount; ++k) sum[k] = Lanes<T, L>::zero();
  const auto add_block = [&](int64_t c, const auto& keep) {
    const auto row = keep(Lanes<T, L>::read(grad + c));
    for (int k = 0; k < kCount; ++k) {
      sum[k].add_product(row, keep(Lanes<T, L>::read(value + distance[k] + c)));
    }
  };
  const auto all = [](const auto& block) { return block; };
  const auto new_ones = [&](const auto& block) { return last.keep(block); };
  if constexpr (L == kWidest<T>) {
    int64_t c = 0;
    for (; c + L <= channels; c += L) add_block(c, all);
    if (c < channels) add_block(channels - L, new_ones);
  } else {
    for (int b = 0; b + 1 < kRest; ++b) add_block(b * L, all);
    add_block(channels - L, new_ones);
  }
  Accumulate<T> sums[kCount];
  sum_each(sum, sums);
  for (int k = 0; k < kCount; ++k) dots[k * dots_column] = narrow<T>(sums[k]);
}

template <typename T, int L, int kRest>
PARAMIXER_INLINE void dot_row(T* dots, int64_t column, const T* grad, const T* value,
                              const LinkDistances& distance, int links, int64_t channels,
                              const LaneMask<T, L>& last) {
  const auto some = [&]<int kCount>(int k) {
    dot_links<T, L, kRest, kCount>(dots + k * column, column, grad, value, distance.value + k,
                                   channels, last);
  };
  int k = 0;
  for (; k + 4 <= links; k += 4) some.template operator()<4>(k);
  if (links - k == 3) return some.template operator()<3>(k);
  for (; k < links; ++k) some.template operator()<1>(k);
}

template <typename T, int L, int kRest>
void dot_stretch(const Problem& problem, int64_t batch, const Stretch& stretch) {
  LinkDistances distance;
  for (int k = 0; k < problem.links; ++k) distance.value[k] = stretch.shift[k] * problem.value.row;
  T* dots = row_of<T>(problem, problem.dots, batch, stretch.begin);
  const T* grad = row_of<const T>(problem, problem.grad, batch, stretch.begin);
  const T* value = row_of<const T>(problem, problem.value, batch, stretch.begin);
  const int links = problem.links;
  const int64_t channels = problem.channels;
  const auto last = LaneMask<T, L>::without_first(static_cast<int>((L - channels % L) % L));
  for (int64_t i = stretch.begin; i < stretch.end; ++i) {
    dot_row<T, L, kRest>(dots, problem.dots.column, grad, value, distance, links, channels, last);
    dots += problem.dots.row;
    grad += problem.grad.row;
    value += problem.value.row;
  }
}

template <typename T>
void link_dot(const Problem& problem, RowRange range) {
  with_row_shape<T>(problem.channels, [&]<int L, int kRest>() {
    for_each_stretch(problem, Direction::kForward, range,
                     [&](int64_t batch, const Stretch& stretch) {
                       // Rows of the widest blocks loop over them: no need for one copy a number of
                       // blocks.
                       dot_stretch<T, L, L == kWidest<T> ? 0 : kRest>(problem, batch, stretch);
                     });
  });
}

// ---- the operators

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
