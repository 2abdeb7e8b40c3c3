// CPU kernels of a chain of sparse factors. Included by kernels_*.cpp after kernels.inl, in the
// namespace of one instruction set.
//
// One task takes a group of channels of one batch item through the whole chain: its rows of V are
// read once and its rows of the result written once, everything in between stays in two buffers of
// N rows that this thread keeps. The sweeps and the order of the rows are those of the plan
// (core/chain_plan.h): after every sweep the rows are dealt to the classes of the next step, and
// the classes are followed depth first, so that most sweeps run in the first- and second-level
// cache whatever N is. A sweep of a pair slides along its ring with two rows of input and four of
// the state between the factors in registers: per row one load, one store and six multiply-adds.
// Scratch holds accumulators (float, or double): 16-bit values are widened when read and rounded
// once, at the end of the chain.

#pragma once

#include "cpu/kernels.inl"

#define PARAMIXER_INLINE_LAMBDA __attribute__((always_inline))

namespace paramixer::cpu {
namespace PARAMIXER_ISA_NAMESPACE {
namespace {

// Channels that slide through the registers of a pair together.
template <typename A>
constexpr int kSlide = kVectorBytes / sizeof(A) * (kVectorBytes == 64 ? 2 : 1);

// Rows r, r + step, r + 2 step, .. (mod N).
struct Walk {
  int64_t position;
  int64_t step;  // in [0, N)
  int64_t length;

  PARAMIXER_INLINE int64_t next() {
    const int64_t here = position;
    position = wrap(position + step, length);
    return here;
  }
};

// The weights of a ring's rows for one sweep, in accumulators.
template <typename A>
struct RingWeights {
  const A* data;
  int64_t row;
  int64_t column;
};

// Blocks of L accumulators, read from and written to any storage type.
template <typename A, int L, typename From>
PARAMIXER_INLINE Lanes<A, L> read_block(const From* from) {
  using Block = Lanes<A, L>;
  Block block;
  for (int p = 0; p < Block::kParts; ++p) {
    block.part[p] = load<Block::kWidth>(from + p * Block::kWidth);
  }
  return block;
}

template <bool kStream, typename A, int L, typename To>
PARAMIXER_INLINE void write_block(To* to, const Lanes<A, L>& block) {
  using Block = Lanes<A, L>;
  for (int p = 0; p < Block::kParts; ++p) {
    if constexpr (kStream && std::is_same_v<To, A> && Block::kWidth * sizeof(A) == kVectorBytes) {
      stream(to + p * Block::kWidth, block.part[p]);
    } else {
      store<Block::kWidth>(to + p * Block::kWidth, block.part[p]);
    }
  }
}

// Calls body<L>(c) for blocks of L channels at c that cover `width` channels; the last one lies
// over the one before it.
template <int kWidestBlock, typename Body>
PARAMIXER_INLINE void over_channels(int64_t width, const Body& body) {
  if constexpr (kWidestBlock > 1) {
    constexpr int kHalf = kWidestBlock == 4 ? 1 : kWidestBlock / 2;  // two lanes are no vector
    if (width < kWidestBlock) return over_channels<kHalf>(width, body);
  }
  for (int64_t c = 0; c < width; c += kWidestBlock) {
    body.template operator()<kWidestBlock>(c + kWidestBlock <= width ? c : width - kWidestBlock);
  }
}

// Rows of scratch or of an operand.
template <typename Element>
struct Rows {
  Element* data = nullptr;
  int64_t row = 0;

  PARAMIXER_INLINE Element* at(int64_t p) const { return data + p * row; }
};

// Where a sweep writes row p of a ring: four rows at a time lie `advance` elements behind the four
// before them, or where the walk leads.
template <typename A>
struct Target {
  A* row[4];
  int64_t advance;
  bool walks;  // rows are asked for in order, and the walk leads from row[0] on
  Walk walk;

  PARAMIXER_INLINE A* at(int64_t p) {
    return walks ? row[0] + walk.next() : row[p & 3] + (p >> 2) * advance;
  }
};

// ---- Pairs: links 0, 1, -1 and then 0, 2, -2

// At position p: rows p + 1 and p + 2 of the input, and p - 2 .. p + 1 of the first factor's
// result.
template <typename Block>
struct PairState {
  Block x1, x2, y0, y1, y2, y3;
};

// weight[0] row + weight[1] next + weight[2] previous (+ row)
template <bool kAddRow, typename A, typename Block>
PARAMIXER_INLINE Block three_links(const A* weight, const Block& row, const Block& next,
                                   const Block& previous) {
  // From zero on: of a sum of two products the compiler may fuse either.
  Block sum = Block::zero();
  sum.add_scaled(weight[0], row);
  sum.add_scaled(weight[2], previous);
  sum.add_scaled(weight[1], next);
  if constexpr (kAddRow) sum.add(row);  // last: the products round at their own magnitude
  return sum;
}

// One row of the result: `previous`, `row` and *from are rows p + 1 .. p + 3 of the input, `far`
// and `near` rows p - 2 and p of the first factor's result. The oldest rows give way to the newest.
template <bool kPrevious, bool kStream, typename A, int L>
PARAMIXER_INLINE void pair_step(Lanes<A, L>& previous, const Lanes<A, L>& row, Lanes<A, L>& far,
                                const Lanes<A, L>& near, const A* from, const A* first,
                                const A* second, A* to) {
  const auto next = read_block<A, L>(from);
  const auto middle = three_links<kPrevious>(first, row, next, previous);
  previous = next;
  write_block<kStream>(to, three_links<kPrevious>(second + 3, near, middle, far));
  far = middle;
}

// A ring of four: everything in registers.
template <bool kPrevious, bool kStream, int L, typename A>
PARAMIXER_INLINE void pair_of_four(Rows<const A> input, const RingWeights<A>& weights,
                                   Target<A>& target, int64_t channel) {
  Lanes<A, L> row[4], middle[4];
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) row[k] = read_block<A, L>(input.at(k) + channel);
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    middle[k] = three_links<kPrevious>(weights.data + k * weights.row, row[k], row[(k + 1) & 3],
                                       row[(k + 3) & 3]);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    write_block<kStream>(target.at(k) + channel,
                         three_links<kPrevious>(weights.data + k * weights.row + 3, middle[k],
                                                middle[k ^ 2], middle[k ^ 2]));
  }
}

template <bool kPrevious, bool kStream, int L, typename A>
PARAMIXER_INLINE void pair_block(Rows<const A> input, const RingWeights<A>& weights, int64_t ring,
                                 Target<A> target, int64_t channel) {
  if (ring == 4) return pair_of_four<kPrevious, kStream, L>(input, weights, target, channel);
  const auto wrapped = [ring](int64_t p) {
    while (p < 0) p += ring;
    while (p >= ring) p -= ring;
    return p;
  };
  const auto from = [&](int64_t p) { return input.at(wrapped(p)) + channel; };
  const auto weight = [&](int64_t p) { return weights.data + wrapped(p) * weights.row; };
  const auto middle = [&](int64_t p) {
    return three_links<kPrevious>(weight(p), read_block<A, L>(from(p)),
                                  read_block<A, L>(from(p + 1)), read_block<A, L>(from(p - 1)));
  };
  PairState<Lanes<A, L>> s = {read_block<A, L>(from(1)),
                              read_block<A, L>(from(2)),
                              middle(-2),
                              middle(-1),
                              middle(0),
                              middle(1)};
  int64_t p = 0;
  if (!target.walks) {
    const A* x = input.at(3) + channel;
    const A* second = weights.data;
    const A* first = second + 2 * weights.row;
    A* to[4];
    for (int k = 0; k < 4; ++k) to[k] = target.row[k] + channel;
    const auto step = [&](auto& previous, auto& row, auto& far, auto& near,
                          A*& to) PARAMIXER_INLINE_LAMBDA {
      pair_step<kPrevious, kStream>(previous, row, far, near, x, first, second, to);
      x += input.row;
      first += weights.row;
      second += weights.row;
      to += target.advance;
    };
    for (; p + 6 < ring; p += 4) {
      step(s.x1, s.x2, s.y0, s.y2, to[0]);
      step(s.x2, s.x1, s.y1, s.y3, to[1]);
      step(s.x1, s.x2, s.y2, s.y0, to[2]);
      step(s.x2, s.x1, s.y3, s.y1, to[3]);
    }
  }
  alignas(kVectorBytes) A surplus[L];  // rows past the end of the ring
  for (; p < ring; p += 4) {
    const auto step = [&](auto& previous, auto& row, auto& far, auto& near,
                          int64_t p) PARAMIXER_INLINE_LAMBDA {
      pair_step<kPrevious, kStream>(previous, row, far, near, from(p + 3), weight(p + 2), weight(p),
                                    p < ring ? target.at(p) + channel : surplus);
    };
    step(s.x1, s.x2, s.y0, s.y2, p);
    step(s.x2, s.x1, s.y1, s.y3, p + 1);
    step(s.x1, s.x2, s.y2, s.y0, p + 2);
    step(s.x2, s.x1, s.y3, s.y1, p + 3);
  }
}

// ---- One factor with any links

// Blocks of one row, the last one at channel `last`; `plus` is added where it is given.
template <bool kStream, int L, int kCount, typename A>
PARAMIXER_INLINE void gather_blocks_of(A* to, const A* weight, const A* from,
                                       const LinkDistances& distance, int links, int64_t last,
                                       const A* plus) {
  Lanes<A, L> sum[kCount];
  const auto at = [&](int b) { return b + 1 < kCount ? b * L : last; };
  for (int b = 0; b < kCount; ++b) sum[b] = Lanes<A, L>::zero();
  for (int k = 0; k < links; ++k) {
    const A factor = weight[distance.weight[k]];
    const A* row = from + distance.value[k];
    for (int b = 0; b < kCount; ++b) sum[b].add_scaled(factor, read_block<A, L>(row + at(b)));
  }
  if (plus != nullptr) {
    for (int b = 0; b < kCount; ++b) sum[b].add(read_block<A, L>(plus + at(b)));
  }
  for (int b = 0; b < kCount; ++b) write_block<kStream>(to + at(b), sum[b]);
}

// The stretch of a ring's rows from `begin` on in which link k reads row p + shift[k].
inline void find_ring_stretch(const int64_t* offsets, int links, Direction direction, int64_t ring,
                              int64_t begin, Stretch& stretch) {
  int64_t end = ring;
  for (int k = 0; k < links; ++k) {
    const int64_t offset = offsets[k];
    const int64_t ahead = direction == Direction::kForward || offset == 0 ? offset : ring - offset;
    const bool wrapped = begin >= ring - ahead;
    stretch.shift[k] = wrapped ? ahead - ring : ahead;
    if (!wrapped && ring - ahead < end) end = ring - ahead;
  }
  stretch.begin = begin;
  stretch.end = end;
}

// One factor, or its transpose, times the rows of a ring; `plus` is added where it is given.
template <bool kStream, typename A>
void gather_ring(Direction direction, Rows<const A> input, const RingWeights<A>& weights,
                 const int64_t* offsets, int links, int64_t ring, int64_t width, Target<A> target,
                 Rows<const A> plus) {
  Stretch stretch;
  LinkDistances distance;
  for (int64_t begin = 0; begin < ring; begin = stretch.end) {
    find_ring_stretch(offsets, links, direction, ring, begin, stretch);
    for (int k = 0; k < links; ++k) {
      const int64_t weight_rows = direction == Direction::kForward ? 0 : stretch.shift[k];
      distance.value[k] = stretch.shift[k] * input.row;
      distance.weight[k] = weight_rows * weights.row + k * weights.column;
    }
    with_row_shape<A>(width, [&]<int L, int kRest>() {
      for (int64_t p = begin; p < stretch.end; ++p) {
        A* to = target.at(p);
        const A* weight = weights.data + p * weights.row;
        const A* from = input.at(p);
        const A* add = plus.data == nullptr ? nullptr : plus.at(p);
        const auto blocks = [&]<int kCount>(int64_t c, int64_t last) {
          gather_blocks_of<kStream, L, kCount>(to + c, weight, from + c, distance, links, last,
                                               add == nullptr ? nullptr : add + c);
        };
        int64_t c = 0;
        if constexpr (L == kWidest<A>) {
          for (; c + kBlocks * L <= width; c += kBlocks * L) {
            blocks.template operator()<kBlocks>(c, (kBlocks - 1) * L);
          }
        }
        if constexpr (kRest > 0) blocks.template operator()<kRest>(c, width - L - c);
      }
    });
  }
}

// ---- The gradients of one factor

// dots[r * kLinks + k] of kRows rows p, p + 1, .. and kLinks links: <grad row, value row + o_k>.
// The channels that blocks share count once.
template <int kRows, int kLinks, int L, typename A>
PARAMIXER_INLINE void dot_rows(A* dots, const A* grad, int64_t grad_row, const A* value,
                               int64_t value_row, const int64_t* distance, int64_t width) {
  Lanes<A, L> sum[kRows * kLinks];
  for (auto& one : sum) one = Lanes<A, L>::zero();
  const auto add_block = [&](int64_t c, const auto& keep) {
    for (int r = 0; r < kRows; ++r) {
      const auto row = keep(read_block<A, L>(grad + r * grad_row + c));
      for (int k = 0; k < kLinks; ++k) {
        sum[r * kLinks + k].add_product(
            row, keep(read_block<A, L>(value + r * value_row + distance[k] + c)));
      }
    }
  };
  int64_t c = 0;
  for (; c + L <= width; c += L) add_block(c, [](const auto& block) { return block; });
  if (c < width) {
    const auto last = LaneMask<A, L>::without_first(static_cast<int>(c - (width - L)));
    add_block(width - L, [&](const auto& block) { return last.keep(block); });
  }
  sum_each(sum, dots);
}

// ---- One task: a group of channels of one batch item

// Calls body<T>() with the storage type of `dtype`, which is summed in A.
template <typename A, typename Body>
PARAMIXER_INLINE void with_storage(DType dtype, const Body& body) {
  if constexpr (std::is_same_v<A, float>) {
    if (dtype == DType::kBFloat16) return body.template operator()<BFloat16>();
    if (dtype == DType::kFloat16) return body.template operator()<Float16>();
  }
  body.template operator()<A>();
}

// Operands of 16-bit types are widened into scratch, so that one set of kernels serves them too.
template <typename A>
struct ChannelTask {
  const ChainProblem& chain;
  const Problem& problem;
  DType dtype;
  int64_t batch;
  int64_t channel;
  int64_t width;
  int64_t row;  // elements of a row of scratch
  A* packed;    // room for the weights of one sweep over one ring
  A* widened_result = nullptr;
  Rows<const A> value;
  Rows<const A> initial = {};  // V_0, where every factor adds it

  ChannelTask(const ChainProblem& chain, DType dtype, const ChainTask& task, A*& scratch)
      : chain(chain),
        problem(chain.problem),
        dtype(dtype),
        batch(task.batch),
        channel(task.channel),
        width(task.width),
        row(scratch_row<A>(task.width)),
        packed(scratch) {
    scratch += scratch_row<A>(problem.length * 2 * problem.links);
    if (in_place()) {
      value = {operand<const A>(problem.value), problem.value.row};
    } else {
      const Walk walk = {0, 1 % problem.length, problem.length};
      value = widened(problem.value, walk, problem.length, scratch);
      widened_result = scratch + problem.length * row;
      scratch += 2 * problem.length * row;
    }
    if (chain.residual == Residual::kInitial) initial = value;
  }

  bool in_place() const { return dtype == DType::kFloat64 || dtype == DType::kFloat32; }

  template <typename Element>
  Element* operand(const Operand& operand) const {
    return static_cast<Element*>(operand.data) + batch_offset(problem, operand, batch) + channel;
  }

  // `rows` rows of an operand, as the walk goes, copied into scratch.
  Rows<const A> widened(const Operand& source, Walk walk, int64_t rows, A* to) const {
    with_storage<A>(dtype, [&]<typename T>() {
      const T* from = operand<const T>(source);
      for (int64_t p = 0; p < rows; ++p) {
        const T* source_row = from + walk.next() * source.row;
        over_channels<kWidest<A>>(width, [&]<int L>(int64_t c) PARAMIXER_INLINE_LAMBDA {
          write_block<false>(to + p * row + c, read_block<A, L>(source_row + c));
        });
      }
    });
    return {to, row};
  }

  // Rounds a result that was computed in scratch.
  void finish() const {
    if (in_place()) return;
    with_storage<A>(dtype, [&]<typename T>() {
      T* to = operand<T>(problem.result);
      for (int64_t p = 0; p < problem.length; ++p) {
        over_channels<kWidest<A>>(width, [&]<int L>(int64_t c) PARAMIXER_INLINE_LAMBDA {
          write_block<false>(to + p * problem.result.row + c,
                             read_block<A, L>(widened_result + p * row + c));
        });
      }
    });
  }

  // Where the ring of rows r, r + step, .. finds its weights for a sweep: in place, or packed.
  RingWeights<A> weights(const Sweep& sweep, int64_t r) const {
    const Operand& weight = problem.weight;
    const int links = problem.links, count = links * sweep.factors;
    int64_t column[2 * kMaxLinks];
    bool in_order = true;
    for (int k = 0; k < count; ++k) {
      column[k] = k * weight.column;
      if (sweep.factors == 2) {
        column[k] = k / 3 * chain.weight_factor + sweep.columns[k] * weight.column;
        in_order = in_order && column[k] == k;
      }
    }
    const int64_t first = batch_offset(problem, weight, batch) + sweep.first * chain.weight_factor;
    if (in_place() && in_order && sweep.step * sweep.ring == problem.length) {
      const A* data = static_cast<const A*>(weight.data) + first;
      return {data + r * weight.row, sweep.step * weight.row, weight.column};
    }
    with_storage<A>(dtype, [&]<typename T>() {
      const T* data = static_cast<const T*>(weight.data) + first;
      Walk walk = {r, sweep.step, problem.length};
      for (int64_t p = 0; p < sweep.ring; ++p) {
        const T* from = data + walk.next() * weight.row;
        for (int k = 0; k < count; ++k) packed[p * count + k] = widen(from[column[k]]);
      }
    });
    return {packed, count, 1};
  }

  // Rows r, r + step, .. of `rows` rows.
  static Target<A> rows_of(A* data, int64_t row, int64_t r, int64_t step, int64_t ring,
                           int64_t rows) {
    Target<A> target = {};
    target.walks = step * ring != rows;
    target.walk = {r * row, step % rows * row, rows * row};
    for (int k = 0; k < 4; ++k) target.row[k] = data + (target.walks ? 0 : (r + k * step) * row);
    target.advance = 4 * step * row;
    return target;
  }
  Target<A> rows_in_order(A* data, int64_t ring) const {
    return rows_of(data, row, 0, 1, ring, ring);
  }
  Target<A> rows_of_result(int64_t r, const Sweep& sweep) const {
    A* const data = in_place() ? operand<A>(problem.result) : widened_result;
    return rows_of(data, in_place() ? problem.result.row : row, r, sweep.step, sweep.ring,
                   problem.length);
  }

  // Scratch in which the classes of the next sweep lie one behind the other.
  Target<A> dealt_rows(A* data, const Deal& deal) const {
    Target<A> target = {};
    for (int k = 0; k < 4; ++k) {
      const int q = k % deal.deal;
      target.row[k] = data + (deal.class_of[q] * deal.rows + deal.start[q] + k / deal.deal) * row;
    }
    target.advance = 4 / deal.deal * row;
    return target;
  }

  // One sweep over the ring r: V_m, or V_{m+1} for a pair, from V_{m-1}.
  template <bool kStream>
  void apply(const Sweep& sweep, int64_t r, Rows<const A> input, const Target<A>& to) const {
    const auto ring_weights = weights(sweep, r);
    const bool previous = chain.residual == Residual::kPrevious;
    if (sweep.factors == 2) {
      return over_channels<kSlide<A>>(width, [&]<int L>(int64_t c) PARAMIXER_INLINE_LAMBDA {
        if (previous) {
          pair_block<true, kStream, L>(input, ring_weights, sweep.ring, to, c);
        } else {
          pair_block<false, kStream, L>(input, ring_weights, sweep.ring, to, c);
        }
      });
    }
    gather_ring<kStream>(Direction::kForward, input, ring_weights, sweep.offsets, problem.links,
                         sweep.ring, width, to, previous ? input : initial);
  }
};

// ---- Forward

template <typename A>
struct ForwardTask : ChannelTask<A> {
  using ChannelTask<A>::ChannelTask, ChannelTask<A>::chain, ChannelTask<A>::row;
  bool stream = false;

  // Everything from sweep s on for the ring r. The sweep's rows go to `here`, those of its classes'
  // sweeps to `other`: both have room for one ring.
  void run(int s, int64_t r, Rows<const A> input, A* here, A* other) const {
    const Sweep& sweep = chain.sweeps[s];
    if (s + 1 == chain.sweep_count) {
      const auto result = this->rows_of_result(r, sweep);
      if (stream) return this->template apply<true>(sweep, r, input, result);
      return this->template apply<false>(sweep, r, input, result);
    }
    const Deal& deal = sweep.deal;
    this->template apply<false>(sweep, r, input, this->dealt_rows(here, deal));
    for (int64_t c = 0; c < deal.classes; ++c) {
      A* const rows = here + c * deal.rows * row;
      run(s + 1, r + c * sweep.step, Rows<const A>{rows, row}, other + c * deal.rows * row, rows);
    }
  }
};

template <DType kDType, typename A>
void chain_forward(const ChainProblem& chain, const ChainTask& channels, bool stream,
                   void* scratch) {
  A* free = static_cast<A*>(scratch);
  ForwardTask<A> task(chain, kDType, channels, free);
  task.stream = stream && task.in_place();
  task.run(0, 0, task.value, free, free + chain.problem.length * task.row);
  task.finish();
  if (stream) stream_fence();
}

// ---- Backward
//
// The states inside the chain are computed again on the way down and kept, ring by ring: a ring of
// n rows holds n rows for every factor before its classes part, so a chain with classes needs no
// more than twice N rows in all. On the way up every factor's two gradients are made in one sweep
// from its input x and the gradient g of its result:
//   gradient of x, row p:  sum over links k of weight[p - o_k, k] g[p - o_k]
//   dots[p, k] = <g[p], x[p + o_k]>

// Links of a ring that the end of the ring does not pass, in elements: link k of row p reads the
// gradient at p - o_k, the weights of that row, and the value at p + o_k.
struct BackwardDistances {
  int64_t grad[kMaxLinks];
  int64_t weight[kMaxLinks];
  int64_t value[kMaxLinks];
};

// Three links, the first of them 0: both gradients of kRows rows in one loop over the channels.
// With kNext the other links are 1 and -1, and no row here is at the end of the ring: the rows
// slide through registers. With `previous`, g[p] is part of the gradient of x[p].
template <bool kNext, int kRows, int L, typename A>
PARAMIXER_INLINE void three_link_rows(A* const (&to)[kRows], A* dots, const RingWeights<A>& weights,
                                      bool previous, int64_t p, Rows<const A> grad,
                                      Rows<const A> value, const BackwardDistances& distance,
                                      int64_t width) {
  using Block = Lanes<A, L>;
  Block sum[kRows * 3];
  Block factor[kRows * 3];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const A* const weight = weights.data + (p + r) * weights.row;
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) {
      sum[3 * r + k] = Block::zero();
      factor[3 * r + k] = Block::all(weight[distance.weight[k]]);
    }
  }
  const A* const g = grad.at(p);
  const A* const x = value.at(p);
  const int64_t grad_row = grad.row, value_row = value.row;
  const int64_t g1 = distance.grad[1], g2 = distance.grad[2];
  const int64_t x1 = distance.value[1], x2 = distance.value[2];
  const auto add_block = [&](int64_t c, const auto& keep) PARAMIXER_INLINE_LAMBDA {
    const auto add_row = [&](int r, const Block& row, const Block& g1, const Block& g2,
                             const Block& x0, const Block& x1, const Block& x2)
                             PARAMIXER_INLINE_LAMBDA {
                               Block result = Block::zero();
                               result.add_product(factor[3 * r], row);
                               result.add_product(factor[3 * r + 1], g1);
                               result.add_product(factor[3 * r + 2], g2);
                               if (previous) result.add(row);
                               result.write(to[r] + c);
                               const Block kept = keep(row);
                               sum[3 * r].add_product(kept, keep(x0));
                               sum[3 * r + 1].add_product(kept, keep(x1));
                               sum[3 * r + 2].add_product(kept, keep(x2));
                             };
    const A* const gc = g + c;
    const A* const xc = x + c;
    if constexpr (kNext) {
      Block g_last = Block::read(gc - grad_row), g_here = Block::read(gc);
      Block x_last = Block::read(xc - value_row), x_here = Block::read(xc);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Block g_next = Block::read(gc + (r + 1) * grad_row);
        const Block x_next = Block::read(xc + (r + 1) * value_row);
        add_row(r, g_here, g_last, g_next, x_here, x_next, x_last);
        g_last = g_here, g_here = g_next, x_last = x_here, x_here = x_next;
      }
    } else {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const A* const gr = gc + r * grad_row;
        const A* const xr = xc + r * value_row;
        add_row(r, Block::read(gr), Block::read(gr + g1), Block::read(gr + g2), Block::read(xr),
                Block::read(xr + x1), Block::read(xr + x2));
      }
    }
  };
  int64_t c = 0;
  for (; c + L <= width; c += L) {
    add_block(c, [](const Block& block) PARAMIXER_INLINE_LAMBDA { return block; });
  }
  if (c < width) {
    const auto last = LaneMask<A, L>::without_first(static_cast<int>(c - (width - L)));
    add_block(width - L,
              [&](const Block& block) PARAMIXER_INLINE_LAMBDA { return last.keep(block); });
  }
  sum_each(sum, dots);
}

template <typename A>
struct BackwardTask : ChannelTask<A> {
  using ChannelTask<A>::ChannelTask, ChannelTask<A>::chain, ChannelTask<A>::problem;
  using ChannelTask<A>::row, ChannelTask<A>::width;
  static constexpr int kRowsAtOnce = kVectorBytes == 64 ? 4 : 1;  // as the registers hold

  A* dots = nullptr;          // (N, M, K) of this batch item
  A* initial_grad = nullptr;  // for Residual::kInitial: the sum of the gradients of all states

  // The dots of one factor at one position. Those of earlier channels are there already.
  PARAMIXER_INLINE void put_dots(const Sweep& sweep, int64_t position, int link, const A* sums,
                                 int count) const {
    A* to = dots + position * problem.dots.row + sweep.first * chain.dots_factor + link;
    for (int k = 0; k < count; ++k) to[k] = this->channel > 0 ? to[k] + sums[k] : sums[k];
  }

  // Calls body(p, end, distances) for every stretch of rows [p, end).
  template <typename Body>
  void for_each_stretch_of(const Sweep& sweep, const RingWeights<A>& weights, Rows<const A> grad,
                           Rows<const A> value, const Body& body) const {
    Stretch ahead, back;
    BackwardDistances distance = {};
    for (int64_t p = 0; p < sweep.ring;) {
      const int64_t* offsets = sweep.offsets;
      find_ring_stretch(offsets, problem.links, Direction::kForward, sweep.ring, p, ahead);
      find_ring_stretch(offsets, problem.links, Direction::kTransposed, sweep.ring, p, back);
      for (int k = 0; k < problem.links; ++k) {
        distance.grad[k] = back.shift[k] * grad.row;
        distance.weight[k] = back.shift[k] * weights.row + k * weights.column;
        distance.value[k] = ahead.shift[k] * value.row;
      }
      const int64_t end = ahead.end < back.end ? ahead.end : back.end;
      body(p, end, distance);
      p = end;
    }
  }

  template <int L>
  void three_links_of(const Sweep& sweep, int64_t r, const RingWeights<A>& weights,
                      Rows<const A> grad, Rows<const A> value, Target<A> target) const {
    const bool previous = chain.residual == Residual::kPrevious;
    Walk walk = {r, sweep.step, problem.length};
    for_each_stretch_of(sweep, weights, grad, value,
                        [&](int64_t p, int64_t end, const BackwardDistances& distance) {
                          const auto rows = [&]<bool kNext, int kRows>() PARAMIXER_INLINE_LAMBDA {
                            A sums[3 * kRows];
                            A* to[kRows];
                            for (int i = 0; i < kRows; ++i) to[i] = target.at(p + i);
                            three_link_rows<kNext, kRows, L>(to, sums, weights, previous, p, grad,
                                                             value, distance, width);
                            for (int i = 0; i < kRows; ++i)
                              put_dots(sweep, walk.next(), 0, sums + 3 * i, 3);
                            p += kRows;
                          };
                          const bool next =
                              distance.value[1] == value.row && distance.value[2] == -value.row &&
                              distance.grad[1] == -grad.row && distance.grad[2] == grad.row;
                          if (next) {
                            while (p + kRowsAtOnce <= end)
                              rows.template operator()<true, kRowsAtOnce>();
                          } else {
                            while (p + kRowsAtOnce <= end)
                              rows.template operator()<false, kRowsAtOnce>();
                          }
                          while (p < end) rows.template operator()<false, 1>();
                        });
  }

  template <int L>
  void any_links_of(const Sweep& sweep, int64_t r, const RingWeights<A>& weights,
                    Rows<const A> grad, Rows<const A> value, const Target<A>& target,
                    Rows<const A> plus) const {
    gather_ring<false>(Direction::kTransposed, grad, weights, sweep.offsets, problem.links,
                       sweep.ring, width, target, plus);
    Walk walk = {r, sweep.step, problem.length};
    for_each_stretch_of(sweep, weights, grad, value,
                        [&](int64_t p, int64_t end, const BackwardDistances& distance) {
                          for (; p < end; ++p) {
                            const int64_t position = walk.next();
                            const auto links = [&]<int kLinks>(int k) PARAMIXER_INLINE_LAMBDA {
                              A sums[kLinks];
                              dot_rows<1, kLinks, L>(sums, grad.at(p), grad.row, value.at(p),
                                                     value.row, distance.value + k, width);
                              put_dots(sweep, position, k, sums, kLinks);
                            };
                            int k = 0;
                            for (; k + 8 <= problem.links; k += 8) links.template operator()<8>(k);
                            for (; k + 4 <= problem.links; k += 4) links.template operator()<4>(k);
                            for (; k < problem.links; ++k) links.template operator()<1>(k);
                          }
                        });
  }

  // One factor: reads its input and its result's gradient, writes its input's gradient and dots.
  void gradients(const Sweep& sweep, int64_t r, Rows<const A> grad, Rows<const A> value,
                 const Target<A>& target) const {
    if (initial_grad != nullptr) {
      for (int64_t e = 0; e < sweep.ring * row; ++e) initial_grad[e] += grad.data[e];
    }
    const auto weights = this->weights(sweep, r);
    with_block(width, [&]<int L>() {
      if (problem.links == 3 && sweep.offsets[0] == 0 && initial_grad == nullptr) {
        return three_links_of<L>(sweep, r, weights, grad, value, target);
      }
      Rows<const A> plus;
      if (chain.residual == Residual::kPrevious) plus = grad;
      if (initial_grad != nullptr && sweep.first == 0) plus = {initial_grad, row};
      any_links_of<L>(sweep, r, weights, grad, value, target, plus);
    });
  }

  // Calls body<L>() with the widest block that `width` channels fill.
  template <typename Body>
  static void with_block(int64_t width, const Body& body) {
    if (width >= kWidest<A>) return body.template operator()<kWidest<A>>();
    if (width >= 4) return body.template operator()<4>();
    body.template operator()<1>();
  }

  // From sweep s on, for the ring r: the gradient of `input` goes to `target`. A run of sweeps
  // whose rows stay as they are ends where the classes part or the chain ends.
  void run(int s, int64_t r, Rows<const A> input, const Target<A>& target, A* free) const {
    const Sweep* const sweeps = chain.sweeps;
    const int64_t ring = sweeps[s].ring, size = scratch_ring(ring, row);
    int last = s;
    while (last + 1 < chain.sweep_count && sweeps[last].deal.deal == 1) ++last;
    A* const states = free;  // the inputs of sweeps s + 1 .. last
    A* grad = states + (last - s) * size;
    A* other = grad + size;
    const auto state = [&](int m) {
      return m == s ? input : Rows<const A>{states + (m - s - 1) * size, row};
    };
    for (int m = s; m < last; ++m) {
      this->template apply<false>(sweeps[m], r, state(m),
                                  this->rows_in_order(states + (m - s) * size, ring));
    }
    if (last + 1 == chain.sweep_count) {
      this->widened(problem.grad, Walk{r, sweeps[last].step, problem.length}, ring, grad);
    } else {
      const Deal& deal = sweeps[last].deal;
      this->template apply<false>(sweeps[last], r, state(last), this->dealt_rows(other, deal));
      for (int64_t c = 0; c < deal.classes; ++c) {
        run(last + 1, r + c * sweeps[last].step, Rows<const A>{other + c * deal.rows * row, row},
            this->rows_of(grad, row, c, deal.deal, deal.rows, ring), other + size);
      }
    }
    for (int m = last; m > s; --m) {
      gradients(sweeps[m], r, Rows<const A>{grad, row}, state(m), this->rows_in_order(other, ring));
      A* const done = grad;
      grad = other;
      other = done;
    }
    gradients(sweeps[s], r, Rows<const A>{grad, row}, input, target);
  }
};

template <DType kDType, typename A>
void chain_backward(const ChainProblem& chain, const ChainTask& channels, bool, void* scratch) {
  const Problem& problem = chain.problem;
  A* free = static_cast<A*>(scratch);
  BackwardTask<A> task(chain, kDType, channels, free);
  task.dots = static_cast<A*>(problem.dots.data) + batch_offset(problem, problem.dots, task.batch);
  if (chain.residual == Residual::kInitial) {
    task.initial_grad = free;
    free += problem.length * task.row;
    __builtin_memset(task.initial_grad, 0, problem.length * task.row * sizeof(A));
  }
  task.run(0, 0, task.value, task.rows_of_result(0, chain.sweeps[0]), free);
  task.finish();
}

}  // namespace
}  // namespace PARAMIXER_ISA_NAMESPACE
}  // namespace paramixer::cpu

// The initializer of InstructionSet::chain_kernels.
#define PARAMIXER_CHAIN_KERNELS_OF(dtype, A)                    \
  {                                                             \
      PARAMIXER_ISA_NAMESPACE::chain_forward<DType::dtype, A>,  \
      PARAMIXER_ISA_NAMESPACE::chain_backward<DType::dtype, A>, \
  }
#define PARAMIXER_CHAIN_KERNELS                     \
  {                                                 \
      PARAMIXER_CHAIN_KERNELS_OF(kFloat64, double), \
      PARAMIXER_CHAIN_KERNELS_OF(kFloat32, float),  \
      PARAMIXER_CHAIN_KERNELS_OF(kBFloat16, float), \
      PARAMIXER_CHAIN_KERNELS_OF(kFloat16, float),  \
  }
