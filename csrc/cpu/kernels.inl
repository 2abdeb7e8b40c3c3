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
//   - D < 16 takes narrower blocks (8, 4 or 1 lanes), a number known to the compiler, and four rows
//     at once, which share the loop over the links, and for D < 4 the vectors.
// A sweep holds what such a loop needs: GatherSweep makes rows of mix and mix_transpose, DotSweep
// rows of link_dot, and mix_backward runs one of each side by side. Memory bounds them: the rows
// that come next are prefetched (Prefetch), and far links take the rows in chains (RowOrder).
// Traffic per row: mix reads D + K and writes D elements, when a cache holds the links' reach.
// Large results are written past the caches (can_stream), which saves reading what is overwritten.
// Products are summed in Accumulate<T> in the order of the links (in chains, of the rows they read
// where these lie next to each other), with fused multiply-adds where the instruction set has them,
// and rounded once.

#pragma once

#include <type_traits>
#include <utility>

#include "cpu/kernels.h"

#define PARAMIXER_INLINE_LAMBDA __attribute__((always_inline))

namespace paramixer::cpu {
namespace PARAMIXER_ISA_NAMESPACE {
namespace {

#include "cpu/vector.h"

constexpr int kBlocks = 4;

// The widest block, in lanes: 16 float or 8 double.
template <typename T>
constexpr int kWidest = 64 / sizeof(Accumulate<T>);

// Rows that go through the loop over links together: narrow blocks share it.
template <typename T, int L>
constexpr int kRowsAtOnce = L < kWidest<T> ? 4 : 1;

// Whether a vector can go across the rows, where a row is narrower than any.
template <typename T, int L, int kRows>
constexpr bool kAcrossRows = L == 1 && kRows == 4 && 4 * sizeof(Accumulate<T>) <= kVectorBytes;

// Rows are prefetched so far ahead. The hardware's prefetchers lose every stream at the end of a
// page of 4 KiB, and a factor reads up to 2 K streams.
constexpr int64_t kAheadBytes = int64_t{16} << 10;

// Links that all reach at least kFarBytes take the rows in chains. The K blocks that a block of a
// chain reads have kChainBytes; mix_backward, which reads two operands, needs them twice.
constexpr int64_t kFarBytes = int64_t{256} << 10;
constexpr int64_t kChainBytes = int64_t{192} << 10;

constexpr int kLineBytes = 64;

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

// The stretch that starts at `begin`, of a ring of `length` rows.
PARAMIXER_INLINE void find_stretch(const int64_t* offsets, int links, int64_t length,
                                   Direction direction, int64_t begin, int64_t end,
                                   Stretch& stretch) {
  stretch.begin = begin;
  for (int k = 0; k < links; ++k) {
    const int64_t offset = offsets[k];
    const int64_t ahead =
        direction == Direction::kForward || offset == 0 ? offset : length - offset;
    const int64_t wrap_at = length - ahead;  // from here on the link starts over at position 0
    const bool wrapped = begin >= wrap_at;
    stretch.shift[k] = wrapped ? ahead - length : ahead;
    if (!wrapped && wrap_at < end) end = wrap_at;
  }
  stretch.end = end;
}

// Brings `count` elements into the second-level cache; an address outside an operand does no harm.
// (A function that does nothing else must be inlined: the compiler would drop calls of it.)
template <bool kWrite, typename T>
PARAMIXER_INLINE void prefetch(const T* data, int64_t count) {
  const uintptr_t end = reinterpret_cast<uintptr_t>(data + count);
  for (uintptr_t line = reinterpret_cast<uintptr_t>(data) & ~uintptr_t{kLineBytes - 1}; line < end;
       line += kLineBytes) {
    __builtin_prefetch(reinterpret_cast<const void*>(line), kWrite, /*locality=*/2);
  }
}

// Brings the rows that a stretch is about to read into the second-level cache: those of the link
// that goes ahead. The others follow on rows that were read before.
template <typename T>
class Prefetch {
 public:
  PARAMIXER_INLINE Prefetch(const Problem& problem, const Stretch& stretch, int64_t ahead,
                            int64_t row) {
    int64_t lead = stretch.shift[0];
    for (int k = 1; k < problem.links; ++k) {
      if (stretch.shift[k] > lead) lead = stretch.shift[k];
    }
    const bool wanted = stretch.begin + lead + ahead < problem.length;
    channels_ = wanted ? problem.channels : 0;
    row_ = row;
    distance_ = (lead + ahead) * row;
  }

  // For the rows from `own` on.
  template <int kRows>
  PARAMIXER_INLINE void rows(const T* own) const {
    for (int r = 0; r < kRows; ++r) prefetch<false>(own + distance_ + r * row_, channels_);
  }

 private:
  int64_t channels_;
  int64_t row_;
  int64_t distance_;
};

template <typename T>
PARAMIXER_INLINE T* row_of(const Problem& problem, const Operand& operand, int64_t batch,
                           int64_t position) {
  return static_cast<T*>(operand.data) + batch_offset(problem, operand, batch) +
         position * operand.row;
}

// The order in which the rows of a batch item are computed: a block of rows, the block `step` rows
// further on, and so on to the end of the item; then the next chain. Links that reach one step, or
// several, read what the blocks just before have left in the second-level cache; row by row, each
// of them would read from memory or a shared cache. Near links take the item as one block.
struct RowOrder {
  int64_t step;
  int64_t block;
  int64_t ahead;  // the rows wanted next lie so far beyond those wanted now
};

template <typename T>
PARAMIXER_INLINE RowOrder choose_order(const Problem& problem) {
  int64_t step = problem.length;  // the shortest reach of a link
  for (int k = 0; k < problem.links; ++k) {
    const int64_t offset = problem.offsets[k];
    const int64_t reach = offset < problem.length - offset ? offset : problem.length - offset;
    if (offset != 0 && reach < step) step = reach;
  }
  const int64_t row_bytes = problem.channels * int64_t{sizeof(T)};
  if (step == problem.length || step * row_bytes < kFarBytes) {
    return {problem.length, problem.length, 1 + kAheadBytes / row_bytes};
  }
  return {step, 1 + kChainBytes / (problem.links * row_bytes), step};
}

// Calls body(batch, stretch) for every stretch of `range`.
template <typename Body>
PARAMIXER_INLINE void for_each_stretch(const Problem& problem, Direction direction,
                                       const RowOrder& order, RowRange range, const Body& body) {
  const auto smaller = [](int64_t a, int64_t b) { return a < b ? a : b; };
  Stretch stretch;
  for (int64_t row = range.begin; row < range.end;) {
    const int64_t batch = row / problem.length;
    const int64_t start = batch * problem.length;
    const int64_t first = row - start;
    const int64_t end = smaller(range.end - start, problem.length);
    const int64_t first_end = smaller(first + order.step, end);
    for (int64_t head = first; head < first_end; head += order.block) {
      const int64_t rows = smaller(order.block, first_end - head);
      for (int64_t block = head; block < end; block += order.step) {
        const int64_t block_end = smaller(block + rows, end);
        for (int64_t position = block; position < block_end; position = stretch.end) {
          find_stretch(problem.offsets, problem.links, problem.length, direction, position,
                       block_end, stretch);
          body(batch, stretch);
        }
      }
    }
    row = start + end;
  }
}

// ---- mix and mix_transpose: result row = sum over links of weight * source row

// Where the sums of a row, and of the rows behind it, find their operands.
template <typename T>
struct Gather {
  const T* weight;
  int64_t weight_row;
  const T* source;
  int64_t source_row;
  int links;
  bool window = false;      // link k + 1 reads the row behind that of link k
  const T* plus = nullptr;  // added to the sum, where it is given
  int64_t plus_row = 0;
  LinkDistances distance;

  PARAMIXER_INLINE Gather(const T* weight, int64_t weight_row, const T* source, int64_t source_row,
                          int links)
      : weight(weight),
        weight_row(weight_row),
        source(source),
        source_row(source_row),
        links(links) {}

  PARAMIXER_INLINE void set_distances(const Stretch& stretch, Direction direction,
                                      int64_t weight_column) {
    for (int k = 0; k < links; ++k) {
      const int64_t weight_rows = direction == Direction::kForward ? 0 : stretch.shift[k];
      distance.value[k] = stretch.shift[k] * source_row;
      distance.weight[k] = weight_rows * weight_row + k * weight_column;
    }
  }

  // Takes the links in the order of the rows they read, if these lie next to each other.
  void find_window(const Stretch& stretch) {
    int64_t lowest = stretch.shift[0];
    for (int k = 1; k < links; ++k) lowest = stretch.shift[k] < lowest ? stretch.shift[k] : lowest;
    LinkDistances in_order;
    uint64_t taken = 0;
    for (int k = 0; k < links; ++k) {
      const int64_t place = stretch.shift[k] - lowest;
      if (place >= links || (taken >> place & 1) != 0) return;
      taken |= uint64_t{1} << place;
      in_order.value[place] = distance.value[k];
      in_order.weight[place] = distance.weight[k];
    }
    distance = in_order;
    window = true;
  }

  PARAMIXER_INLINE void advance(int rows) {
    weight += rows * weight_row;
    source += rows * source_row;
    if (plus != nullptr) plus += rows * plus_row;
  }

  // kCount blocks of each row from channel c on, next to each other but for the last one, which
  // starts `last` channels after c. Row r goes to to(r).
  template <bool kStream, int L, int kRows, int kCount, typename To>
  PARAMIXER_INLINE void blocks(int64_t c, int64_t last, const To& to) const {
    const auto start = [&](int b) { return b + 1 < kCount ? b * L : last; };
    Lanes<T, L> sum[kRows][kCount];
    for (int r = 0; r < kRows; ++r) {
      for (int b = 0; b < kCount; ++b) sum[r][b] = Lanes<T, L>::zero();
    }
    if (kRows > 1 && window && links >= kRows) {
      add_window(sum, c, start);
    } else {
      add_links(sum, c, start);
    }
    for (int r = 0; r < kRows; ++r) {
      for (int b = 0; b < kCount; ++b) {
        if (plus != nullptr) sum[r][b].add(Lanes<T, L>::read(plus + r * plus_row + c + start(b)));
        if constexpr (kStream && L == kWidest<T>) {
          sum[r][b].write_past_caches(to(r) + c + start(b));
        } else {
          sum[r][b].write(to(r) + c + start(b));
        }
      }
    }
  }

  // Adds the products of all links: link by link, each for all rows.
  template <int L, int kRows, int kCount, typename Start>
  PARAMIXER_INLINE void add_links(Lanes<T, L> (&sum)[kRows][kCount], int64_t c,
                                  const Start& start) const {
    for (int k = 0; k < links; ++k) {
      const T* factor = weight + distance.weight[k];
      const T* from = source + distance.value[k] + c;
      for (int r = 0; r < kRows; ++r) {
        const auto wide_factor = widen(factor[r * weight_row]);
        for (int b = 0; b < kCount; ++b) {
          sum[r][b].add_scaled(wide_factor, Lanes<T, L>::read(from + r * source_row + start(b)));
        }
      }
    }
  }

  // The same for a window, whose links find_window has put in order: each of its rows is read once,
  // for all sums.
  template <int L, int kRows, int kCount, typename Start>
  PARAMIXER_INLINE void add_window(Lanes<T, L> (&sum)[kRows][kCount], int64_t c,
                                   const Start& start) const {
    const T* from = source + distance.value[0] + c;
    const auto add_row = [&](int place, int first, int end) PARAMIXER_INLINE_LAMBDA {
      Lanes<T, L> block[kCount];
      for (int b = 0; b < kCount; ++b) block[b] = Lanes<T, L>::read(from + start(b));
      for (int r = first; r < end; ++r) {
        const auto factor = widen(weight[r * weight_row + distance.weight[place - r]]);
        for (int b = 0; b < kCount; ++b) sum[r][b].add_scaled(factor, block[b]);
      }
      from += source_row;
    };
#pragma GCC unroll 4
    for (int place = 0; place < kRows - 1; ++place) add_row(place, 0, place + 1);
    for (int place = kRows - 1; place < links; ++place) add_row(place, 0, kRows);
#pragma GCC unroll 4
    for (int first = 1; first < kRows; ++first) add_row(links - 1 + first, first, kRows);
  }

  // Four rows of kChannels, which lie next to each other: a vector goes across the rows.
  template <int kChannels>
  PARAMIXER_INLINE void adjoining_rows(T* to) const {
    constexpr auto kLanes = std::make_integer_sequence<int, 4>();
    Vector<Accumulate<T>, 4> sum[kChannels] = {};
    for (int k = 0; k < links; ++k) {
      const auto factors = load_apart(weight + distance.weight[k], weight_row);
      const T* from = source + distance.value[k];
      [&]<int... kParts>(std::integer_sequence<int, kParts...>) {
        ((sum[kParts] =
              multiply_add(sum[kParts], repeat_lanes<kChannels, 4 * kParts>(factors, kLanes),
                           load<4>(from + 4 * kParts))),
         ...);
      }(std::make_integer_sequence<int, kChannels>());
    }
    for (int p = 0; p < kChannels; ++p) {
      if (plus != nullptr) sum[p] += load<4>(plus + 4 * p);
      store<4>(to + 4 * p, sum[p]);
    }
  }

  // All channels of kRows rows: kRest blocks, the last one laid over the one before it, follow
  // those that fill groups of kBlocks.
  template <bool kStream, int L, int kRest, int kRows, typename To>
  PARAMIXER_INLINE void rows(int64_t channels, const To& to) const {
    if constexpr (kAcrossRows<T, L, kRows>) {
      const bool adjoining = source_row == kRest && to(1) == to(0) + kRest &&
                             to(3) == to(0) + 3 * kRest && (plus == nullptr || plus_row == kRest);
      if (adjoining) return adjoining_rows<kRest>(to(0));
    }
    int64_t c = 0;
    if constexpr (L == kWidest<T>) {
      for (; c + kBlocks * L <= channels; c += kBlocks * L) {
        blocks<kStream, L, kRows, kBlocks>(c, (kBlocks - 1) * L, to);
      }
    }
    if constexpr (kRest > 0) blocks<kStream, L, kRows, kRest>(c, channels - L - c, to);
  }
};

template <typename T, int L, int kRest, bool kStream>
class GatherSweep {
 public:
  PARAMIXER_INLINE GatherSweep(const Problem& problem, Direction direction, const Operand& source,
                               int64_t batch, const Stretch& stretch, int64_t ahead)
      : problem_(problem),
        result_(row_of<T>(problem, problem.result, batch, stretch.begin)),
        gather_(row_of<const T>(problem, problem.weight, batch, stretch.begin), problem.weight.row,
                row_of<const T>(problem, source, batch, stretch.begin), source.row, problem.links),
        prefetch_(problem, stretch, ahead, source.row) {
    gather_.set_distances(stretch, direction, problem.weight.column);
  }

  template <int kRows>
  PARAMIXER_INLINE void next_rows() {
    if constexpr (L == kWidest<T>) prefetch_.template rows<kRows>(gather_.source);
    gather_.template rows<kStream, L, kRest, kRows>(
        problem_.channels, [&](int r) { return result_ + r * problem_.result.row; });
    result_ += kRows * problem_.result.row;
    gather_.advance(kRows);
  }

 private:
  const Problem& problem_;
  T* result_;
  Gather<T> gather_;
  Prefetch<T> prefetch_;
};

// Calls body<kStream>(): whether the result is written past the caches.
template <typename T, int L, typename Body>
PARAMIXER_INLINE void with_stores(const Problem& problem, const Body& body) {
  if constexpr (kCanStream && sizeof(T) >= sizeof(float) && L == kWidest<T>) {
    if (can_stream(problem, sizeof(T))) {
      body.template operator()<true>();
      return stream_fence();  // before the caller tells other threads that the rows are there
    }
  }
  body.template operator()<false>();
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

// Calls next_rows<kRows>() until `rows` rows are done.
template <int kRowsAtOnce, typename NextRows>
PARAMIXER_INLINE void sweep(int64_t rows, const NextRows& next_rows) {
  for (; rows >= kRowsAtOnce; rows -= kRowsAtOnce) next_rows.template operator()<kRowsAtOnce>();
  for (; rows > 0; --rows) next_rows.template operator()<1>();
}

template <typename T>
void gather(const Problem& problem, Direction direction, RowRange range) {
  const RowOrder order = choose_order<T>(problem);
  with_row_shape<T>(problem.channels, [&]<int L, int kRest>() {
    with_stores<T, L>(problem, [&]<bool kStream>() {
      for_each_stretch(
          problem, direction, order, range, [&](int64_t batch, const Stretch& stretch) {
            GatherSweep<T, L, kRest, kStream> gather(problem, direction, problem.value, batch,
                                                     stretch, order.ahead);
            sweep<kRowsAtOnce<T, L>>(stretch.end - stretch.begin,
                                     [&]<int kRows>() { gather.template next_rows<kRows>(); });
          });
    });
  });
}

// ---- link_dot: dots[i,k] = <grad row i, value row i + o_k>

template <typename T, int L, int kRest>
class DotSweep {
 public:
  PARAMIXER_INLINE DotSweep(const Problem& problem, int64_t batch, const Stretch& stretch,
                            int64_t ahead)
      : problem_(problem),
        dots_(row_of<T>(problem, problem.dots, batch, stretch.begin)),
        grad_(row_of<const T>(problem, problem.grad, batch, stretch.begin)),
        value_(row_of<const T>(problem, problem.value, batch, stretch.begin)),
        last_(LaneMask<T, L>::without_first(static_cast<int>((L - problem.channels % L) % L))),
        prefetch_(problem, stretch, ahead, problem.value.row) {
    for (int k = 0; k < problem.links; ++k) distance_[k] = stretch.shift[k] * problem.value.row;
  }

  template <int kRows>
  PARAMIXER_INLINE void next_rows() {
    if constexpr (L == kWidest<T>) prefetch_.template rows<kRows>(value_);
    int k = 0;
    for (; k + 4 <= problem_.links; k += 4) dot_links<kRows, 4>(k);
    if (problem_.links - k == 3) {
      dot_links<kRows, 3>(k);
    } else {
      for (; k < problem_.links; ++k) dot_links<kRows, 1>(k);
    }
    dots_ += kRows * problem_.dots.row;
    grad_ += kRows * problem_.grad.row;
    value_ += kRows * problem_.value.row;
  }

 private:
  // Links first .. first + kCount - 1 of each row. The last block lies over the one before it:
  // `last_` keeps its new channels.
  template <int kRows, int kCount>
  PARAMIXER_INLINE void dot_links(int first) {
    if constexpr (kAcrossRows<T, L, kRows>) {
      if (adjoining_) return dot_adjoining_rows<kCount>(first);
    }
    const int64_t channels = problem_.channels;
    Lanes<T, L> sum[kRows * kCount];
    for (int i = 0; i < kRows * kCount; ++i) sum[i] = Lanes<T, L>::zero();
    const auto add_block = [&](int64_t c, const auto& keep) {
      for (int r = 0; r < kRows; ++r) {
        const auto row = keep(Lanes<T, L>::read(grad_ + r * problem_.grad.row + c));
        for (int k = 0; k < kCount; ++k) {
          const T* from = value_ + r * problem_.value.row + distance_[first + k];
          sum[r * kCount + k].add_product(row, keep(Lanes<T, L>::read(from + c)));
        }
      }
    };
    const auto all = [](const auto& block) { return block; };
    const auto new_ones = [&](const auto& block) { return last_.keep(block); };
    if constexpr (L == kWidest<T>) {
      int64_t c = 0;
      for (; c + L <= channels; c += L) add_block(c, all);
      if (c < channels) add_block(channels - L, new_ones);
    } else {
      for (int b = 0; b + 1 < kRest; ++b) add_block(b * L, all);
      add_block(channels - L, new_ones);
    }
    Accumulate<T> sums[kRows * kCount];
    sum_each(sum, sums);
    for (int r = 0; r < kRows; ++r) {
      T* to = dots_ + r * problem_.dots.row + first * problem_.dots.column;
      for (int k = 0; k < kCount; ++k) {
        to[k * problem_.dots.column] = narrow<T>(sums[r * kCount + k]);
      }
    }
  }

  // Of four rows that lie next to each other, in grad and in value: a vector goes across the rows.
  template <int kCount>
  PARAMIXER_INLINE void dot_adjoining_rows(int first) {
    constexpr auto kLanes = std::make_integer_sequence<int, 4>();
    [&]<int... kChannels>(std::integer_sequence<int, kChannels...>) {
      const Vector<Accumulate<T>, 4> row[] = {load_every<kRest, kChannels>(grad_, kLanes)...};
      for (int k = first; k < first + kCount; ++k) {
        const T* from = value_ + distance_[k];
        Vector<Accumulate<T>, 4> sum = {};
        ((sum = multiply_add(sum, row[kChannels], load_every<kRest, kChannels>(from, kLanes))),
         ...);
        T* to = dots_ + k * problem_.dots.column;
        for (int r = 0; r < 4; ++r) to[r * problem_.dots.row] = narrow<T>(sum[r]);
      }
    }(std::make_integer_sequence<int, kRest>());
  }

  const Problem& problem_;
  const bool adjoining_ =
      problem_.grad.row == problem_.channels && problem_.value.row == problem_.channels;
  T* dots_;
  const T* grad_;
  const T* value_;
  const LaneMask<T, L> last_;
  int64_t distance_[kMaxLinks];
  Prefetch<T> prefetch_;
};

template <typename T>
void link_dot(const Problem& problem, RowRange range) {
  constexpr auto kForward = Direction::kForward;
  const RowOrder order = choose_order<T>(problem);
  with_row_shape<T>(problem.channels, [&]<int L, int kRest>() {
    for_each_stretch(problem, kForward, order, range, [&](int64_t batch, const Stretch& stretch) {
      // Rows of the widest blocks loop over them: no need for one copy a number of blocks.
      DotSweep<T, L, L == kWidest<T> ? 0 : kRest> dot(problem, batch, stretch, order.ahead);
      sweep<kRowsAtOnce<T, L>>(stretch.end - stretch.begin,
                               [&]<int kRows>() { dot.template next_rows<kRows>(); });
    });
  });
}

// ---- the operators

template <typename T>
void mix(const Problem& problem, RowRange range) {
  gather<T>(problem, Direction::kForward, range);
}

template <typename T>
void mix_transpose(const Problem& problem, RowRange range) {
  gather<T>(problem, Direction::kTransposed, range);
}

// dV and dW in one loop over the rows: a row of dOut is loaded once, and the streams of both are in
// flight together. Only where neither's links pass the end of the ring is a stretch one of both.
template <typename T>
void mix_backward(const Problem& problem, RowRange range) {
  constexpr auto kForward = Direction::kForward, kTransposed = Direction::kTransposed;
  const RowOrder order = choose_order<T>(problem);
  with_row_shape<T>(problem.channels, [&]<int L, int kRest>() {
    with_stores<T, L>(problem, [&]<bool kStream>() {
      for_each_stretch(problem, kForward, order, range, [&](int64_t batch, const Stretch& forward) {
        Stretch both = forward, back;
        for (; both.begin < forward.end; both.begin = both.end) {
          find_stretch(problem.offsets, problem.links, problem.length, kTransposed, both.begin,
                       forward.end, back);
          both.end = back.end;
          GatherSweep<T, L, kRest, kStream> gather(problem, kTransposed, problem.grad, batch, back,
                                                   order.ahead);
          DotSweep<T, L, L == kWidest<T> ? 0 : kRest> dot(problem, batch, both, order.ahead);
          sweep<kRowsAtOnce<T, L>>(both.end - both.begin, [&]<int kRows>() {
            gather.template next_rows<kRows>();
            dot.template next_rows<kRows>();
          });
        }
      });
    });
  });
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
