// CPU kernels of a chain of sparse factors. Included by kernels_*.cpp after kernels.inl, in the
// namespace of one instruction set.
//
// One task takes a group of channels of one batch item through the whole chain: its rows of V are
// read once and its rows of the result written once, everything in between stays in two buffers of
// N rows that this thread keeps. The sweeps and the order of the rows are those of the plan
// (core/chain_plan.h): after every sweep the rows are dealt to the classes of the next step, and
// the classes are followed depth first, so that most sweeps run in the first- and second-level
// cache whatever N is. A sweep of a pair slides along its ring with two rows of input and four of the
// state between the factors in registers: per row one load, one store and six multiply-adds.
// Scratch holds accumulators (float, or double): 16-bit values are widened when read and rounded
// once, at the end of the chain.

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

// Calls body<L>(c) for blocks of L channels at c that cover `width` channels; the last one lies over
// the one before it.
template <int kWidestBlock, typename Body>
PARAMIXER_INLINE void for_each_block(int64_t width, const Body& body) {
  if constexpr (kWidestBlock > 1) {
    constexpr int kHalf = kWidestBlock == 4 ? 1 : kWidestBlock / 2;  // two lanes are no vector
    if (width < kWidestBlock) return for_each_block<kHalf>(width, body);
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
template <typename To>
struct Target {
  To* row[4];
  int64_t advance;
  bool walks;  // rows are asked for in order, and the walk leads from row[0] on
  Walk walk;

  PARAMIXER_INLINE To* at(int64_t p) {
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
  Block sum = row;
  if constexpr (kAddRow) {
    sum.add_scaled(weight[0], row);
  } else {
    sum.scale(weight[0]);
  }
  sum.add_scaled(weight[2], previous);
  sum.add_scaled(weight[1], next);
  return sum;
}

// One row of the result: `previous`, `row` and *from are rows p + 1 .. p + 3 of the input, `far` and
// `near` rows p - 2 and p of the first factor's result. The oldest rows give way to the newest.
template <bool kPrevious, bool kStream, typename From, typename To, typename A, int L>
PARAMIXER_INLINE void pair_step(Lanes<A, L>& previous, const Lanes<A, L>& row, Lanes<A, L>& far,
                                const Lanes<A, L>& near, const From* from, const A* first,
                                const A* second, To* to) {
  const auto next = read_block<A, L>(from);
  const auto middle = three_links<kPrevious>(first, row, next, previous);
  previous = next;
  write_block<kStream>(to, three_links<kPrevious>(second + 3, near, middle, far));
  far = middle;
}

// A ring of four: everything in registers.
template <bool kPrevious, bool kStream, int L, typename From, typename To, typename A>
PARAMIXER_INLINE void pair_of_four(Rows<const From> input, const RingWeights<A>& weights,
                                   Target<To>& target, int64_t channel) {
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

template <bool kPrevious, bool kStream, int L, typename From, typename To, typename A>
PARAMIXER_INLINE void pair_block(Rows<const From> input, const RingWeights<A>& weights,
                                 int64_t ring, Target<To> target, int64_t channel) {
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
  PairState<Lanes<A, L>> s = {read_block<A, L>(from(1)), read_block<A, L>(from(2)),
                              middle(-2),                middle(-1),
                              middle(0),                 middle(1)};
  int64_t p = 0;
  if (!target.walks) {
    const From* x = input.at(3) + channel;
    const A* second = weights.data;
    const A* first = second + 2 * weights.row;
    To* to[4];
    for (int k = 0; k < 4; ++k) to[k] = target.row[k] + channel;
    const auto step = [&](auto& previous, auto& row, auto& far, auto& near,
                          To*& to) PARAMIXER_INLINE_LAMBDA {
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
  alignas(kVectorBytes) To surplus[L];  // rows past the end of the ring
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
template <bool kStream, int L, int kCount, typename From, typename To, typename A, typename Plus>
PARAMIXER_INLINE void gather_blocks_of(To* to, const A* weight, const From* from,
                                       const LinkDistances& distance, int links, int64_t last,
                                       const Plus* plus) {
  Lanes<A, L> sum[kCount];
  const auto at = [&](int b) { return b + 1 < kCount ? b * L : last; };
  for (int b = 0; b < kCount; ++b) sum[b] = Lanes<A, L>::zero();
  for (int k = 0; k < links; ++k) {
    const A factor = weight[distance.weight[k]];
    const From* row = from + distance.value[k];
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
template <bool kStream, typename From, typename To, typename A, typename Plus>
void gather_ring(Direction direction, Rows<const From> input, const RingWeights<A>& weights,
                 const int64_t* offsets, int links, int64_t ring, int64_t width, Target<To> target,
                 Rows<const Plus> plus) {
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
        To* to = target.at(p);
        const A* weight = weights.data + p * weights.row;
        const From* from = input.at(p);
        const Plus* add = plus.data == nullptr ? nullptr : plus.at(p);
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
template <int kRows, int kLinks, int L, typename From, typename A>
PARAMIXER_INLINE void dot_rows(A* dots, const A* grad, int64_t grad_row, const From* value,
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

template <typename T>
struct ChannelTask {
  using A = Accumulate<T>;
  const ChainProblem& chain;
  const Problem& problem;
  int64_t batch;
  int64_t channel;
  int64_t width;
  int64_t row;  // elements of a row of scratch
  A* packed;    // room for the weights of one sweep over one ring
  Rows<const A> initial = {};  // V_0, where every factor adds it

  ChannelTask(const ChainProblem& chain, const ChainTask& task, A*& scratch)
      : chain(chain),
        problem(chain.problem),
        batch(task.batch),
        channel(task.channel),
        width(task.width),
        row(scratch_row<A>(task.width)),
        packed(scratch) {
    scratch += scratch_row<A>(problem.length * 2 * problem.links);
    if (chain.residual != Residual::kInitial) return;
    const Operand& value = problem.value;
    if constexpr (std::is_same_v<T, A>) {
      initial = {operand<const A>(value, 0), value.row};
    } else {
      initial = widened(value, Walk{0, 1 % problem.length, problem.length}, problem.length, scratch);
      scratch += problem.length * row;
    }
  }

  template <typename Element>
  Element* operand(const Operand& operand, int64_t position) const {
    return static_cast<Element*>(operand.data) + batch_offset(problem, operand, batch) +
           position * operand.row + channel;
  }

  // `rows` rows of an operand, as the walk goes, copied into scratch.
  Rows<const A> widened(const Operand& source, Walk walk, int64_t rows, A* to) const {
    const T* from = operand<const T>(source, 0);
    for (int64_t p = 0; p < rows; ++p) {
      const T* source_row = from + walk.next() * source.row;
      for_each_block<kWidest<A>>(width, [&]<int L>(int64_t c) PARAMIXER_INLINE_LAMBDA {
        write_block<false>(to + p * row + c, read_block<A, L>(source_row + c));
      });
    }
    return {to, row};
  }

  // Where the ring of rows r, r + step, .. finds its weights for a sweep: in place, or packed.
  RingWeights<A> weights(const Sweep& sweep, int64_t r) const {
    const Operand& weight = problem.weight;
    const T* first = static_cast<const T*>(weight.data) + batch_offset(problem, weight, batch) +
                     sweep.first * chain.weight_factor;
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
    if constexpr (std::is_same_v<T, A>) {
      if (in_order && sweep.step * sweep.ring == problem.length) {
        return {first + r * weight.row, sweep.step * weight.row, weight.column};
      }
    }
    Walk walk = {r, sweep.step, problem.length};
    for (int64_t p = 0; p < sweep.ring; ++p) {
      const T* from = first + walk.next() * weight.row;
      for (int k = 0; k < count; ++k) packed[p * count + k] = widen(from[column[k]]);
    }
    return {packed, count, 1};
  }

  // Rows r, r + step, .. of an operand with `rows` rows, or of scratch.
  template <typename To>
  static Target<To> rows_of(To* data, int64_t row, int64_t r, int64_t step, int64_t ring,
                            int64_t rows) {
    Target<To> target = {};
    target.walks = step * ring != rows;
    target.walk = {r * row, step % rows * row, rows * row};
    for (int k = 0; k < 4; ++k) target.row[k] = data + (target.walks ? 0 : (r + k * step) * row);
    target.advance = 4 * step * row;
    return target;
  }
  Target<A> rows_in_order(A* data, int64_t ring) const {
    return rows_of(data, row, 0, 1, ring, ring);
  }
  Target<T> rows_of_result(int64_t r, const Sweep& sweep) const {
    return rows_of(operand<T>(problem.result, 0), problem.result.row, r, sweep.step, sweep.ring,
                   problem.length);
  }

  // Scratch in which the classes of the next sweep lie one behind the other.
  Target<A> dealt_rows(A* data, const Deal& deal) const {
    Target<A> target = {};
    for (int k = 0; k < 4; ++k) {
      const int q = k % deal.deal;
      target.row[k] =
          data + (deal.class_of[q] * deal.rows + deal.start[q] + k / deal.deal) * row;
    }
    target.advance = 4 / deal.deal * row;
    return target;
  }

  // One sweep over the ring r: V_m, or V_{m+1} for a pair, from V_{m-1}.
  template <bool kStream, typename From, typename To>
  void apply(const Sweep& sweep, int64_t r, Rows<const From> input, const Target<To>& to) const {
    const auto ring_weights = weights(sweep, r);
    if (sweep.factors == 2) {
      return for_each_block<kSlide<A>>(width, [&]<int L>(int64_t c) PARAMIXER_INLINE_LAMBDA {
        if (chain.residual == Residual::kPrevious) {
          pair_block<true, kStream, L>(input, ring_weights, sweep.ring, to, c);
        } else {
          pair_block<false, kStream, L>(input, ring_weights, sweep.ring, to, c);
        }
      });
    }
    const auto gather = [&](const auto& plus) {
      gather_ring<kStream>(Direction::kForward, input, ring_weights, sweep.offsets, problem.links,
                           sweep.ring, width, to, plus);
    };
    if (chain.residual == Residual::kPrevious) return gather(input);
    gather(initial);
  }
};

// ---- Forward

template <typename T>
struct ForwardTask : ChannelTask<T> {
  using A = Accumulate<T>;
  using ChannelTask<T>::ChannelTask, ChannelTask<T>::chain, ChannelTask<T>::row;
  bool stream = false;

  // Everything from sweep s on for the ring r. The sweep's rows go to `here`, those of its classes'
  // sweeps to `other`: both have room for one ring.
  template <typename From>
  void run(int s, int64_t r, Rows<const From> input, A* here, A* other) const {
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

template <typename T>
void chain_forward(const ChainProblem& chain, const ChainTask& channels, bool stream,
                   void* scratch) {
  using A = Accumulate<T>;
  A* free = static_cast<A*>(scratch);
  ForwardTask<T> task(chain, channels, free);
  task.stream = stream;
  const Operand& value = chain.problem.value;
  task.run(0, 0, Rows<const T>{task.template operand<const T>(value, 0), value.row}, free,
           free + chain.problem.length * task.row);
  if (stream) stream_fence();
}

// ---- Backward
//
// The states inside the chain are computed again on the way down and kept, ring by ring: a ring of n
// rows holds n rows for every factor before its classes part, so a chain with classes needs no more
// than twice N rows in all. On the way up every factor's two gradients are made in one sweep from
// its input x and the gradient g of its result:
//   gradient of x, row p:  sum over links k of weight[p - o_k, k] g[p - o_k]
//   dots[p, k] = <g[p], x[p + o_k]>

// Links of a ring that the end of the ring does not pass, in elements: link k of row p reads the
// gradient at p - o_k, the weights of that row, and the value at p + o_k.
struct BackwardDistances {
  int64_t grad[kMaxLinks];
  int64_t weight[kMaxLinks];
  int64_t value[kMaxLinks];
};

// How a factor of three links lies on a ring.
enum class Three {
  kAny,
  kSelf,  // the first link is 0
  kNext,  // the links are 0, 1, -1, and no row here is at the end of the ring
};

// Three links: both gradients of kRows rows in one loop over the channels. kAddRow adds g[p] to the
// gradient of x[p].
template <Three kThree, bool kAddRow, bool kStream, int kRows, int L, typename From, typename To,
          typename A>
PARAMIXER_INLINE void three_link_rows(To* const (&to)[kRows], A* dots,
                                      const RingWeights<A>& weights, int64_t p, Rows<const A> grad,
                                      Rows<const From> value, const BackwardDistances& distance,
                                      int64_t width) {
  using Block = Lanes<A, L>;
  Block sum[kRows * 3];
  Block factor[kRows * 3];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) {
      sum[3 * r + k] = Block::zero();
      factor[3 * r + k] =
          Block::all(weights.data[(p + r) * weights.row + distance.weight[k]]);
    }
  }
  const A* const g = grad.at(p);
  const From* const x = value.at(p);
  const int64_t grad_row = grad.row, value_row = value.row;
  const int64_t g0 = distance.grad[0], g1 = distance.grad[1], g2 = distance.grad[2];
  const int64_t x0 = distance.value[0], x1 = distance.value[1], x2 = distance.value[2];
  const auto add_block = [&](int64_t c, const auto& keep) PARAMIXER_INLINE_LAMBDA {
    const auto add_row = [&](int r, const Block& row, const Block& g0, const Block& g1,
                             const Block& g2, const Block& x0, const Block& x1,
                             const Block& x2) PARAMIXER_INLINE_LAMBDA {
      Block result = kAddRow ? row : g0;
      if constexpr (kAddRow) {
        result.add_product(factor[3 * r], g0);
      } else {
        result.multiply(factor[3 * r]);
      }
      result.add_product(factor[3 * r + 1], g1);
      result.add_product(factor[3 * r + 2], g2);
      write_block<kStream>(to[r] + c, result);
      const Block kept = keep(row);
      sum[3 * r].add_product(kept, keep(x0));
      sum[3 * r + 1].add_product(kept, keep(x1));
      sum[3 * r + 2].add_product(kept, keep(x2));
    };
    const A* const gc = g + c;
    const From* const xc = x + c;
    if constexpr (kThree == Three::kNext) {
      Block g_last = read_block<A, L>(gc - grad_row), g_here = read_block<A, L>(gc);
      Block x_last = read_block<A, L>(xc - value_row), x_here = read_block<A, L>(xc);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Block g_next = read_block<A, L>(gc + (r + 1) * grad_row);
        const Block x_next = read_block<A, L>(xc + (r + 1) * value_row);
        add_row(r, g_here, g_here, g_last, g_next, x_here, x_next, x_last);
        g_last = g_here, g_here = g_next, x_last = x_here, x_here = x_next;
      }
    } else {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const A* const gr = gc + r * grad_row;
        const From* const xr = xc + r * value_row;
        const Block row = read_block<A, L>(gr);
        constexpr bool kSelf = kThree == Three::kSelf;
        add_row(r, row, kSelf ? row : read_block<A, L>(gr + g0), read_block<A, L>(gr + g1),
                read_block<A, L>(gr + g2), read_block<A, L>(kSelf ? xr : xr + x0),
                read_block<A, L>(xr + x1), read_block<A, L>(xr + x2));
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

template <typename T>
struct BackwardTask : ChannelTask<T> {
  using A = Accumulate<T>;
  using ChannelTask<T>::ChannelTask, ChannelTask<T>::chain, ChannelTask<T>::problem;
  using ChannelTask<T>::row, ChannelTask<T>::width;
  static constexpr int kRowsAtOnce = kVectorBytes == 64 ? 4 : 1;  // as the registers hold

  A* dots = nullptr;        // (N, M, K) of this batch item
  bool stream = false;
  A* initial_grad = nullptr;  // for Residual::kInitial: the sum of the gradients of all states

  // The dots of one factor at one position. Those of earlier channels are there already.
  void put_dots(const Sweep& sweep, int64_t position, int link, const A* sums, int count) const {
    A* to = dots + position * problem.dots.row + sweep.first * chain.dots_factor + link;
    for (int k = 0; k < count; ++k) to[k] = this->channel > 0 ? to[k] + sums[k] : sums[k];
  }

  // Calls body(p, end, distances) for every stretch of rows [p, end).
  template <typename From, typename Body>
  void for_each_stretch_of(const Sweep& sweep, const RingWeights<A>& weights, Rows<const A> grad,
                           Rows<const From> value, const Body& body) const {
    Stretch ahead, back;
    BackwardDistances distance;
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

  template <bool kSelf, bool kAddRow, bool kStream, int L, typename From, typename To>
  void three_links_of(const Sweep& sweep, int64_t r, const RingWeights<A>& weights,
                      Rows<const A> grad, Rows<const From> value, Target<To> target) const {
    Walk walk = {r, sweep.step, problem.length};
    for_each_stretch_of(
        sweep, weights, grad, value,
        [&](int64_t p, int64_t end, const BackwardDistances& distance) {
          alignas(kVectorBytes) A sums[32];
          const auto rows = [&]<Three kThree, int kRows>() PARAMIXER_INLINE_LAMBDA {
            To* to[kRows];
            for (int i = 0; i < kRows; ++i) to[i] = target.at(p + i);
            three_link_rows<kThree, kAddRow, kStream, kRows, L>(to, sums, weights, p, grad, value,
                                                                distance, width);
            for (int i = 0; i < kRows; ++i) put_dots(sweep, walk.next(), 0, sums + 3 * i, 3);
            p += kRows;
          };
          const auto all = [&]<Three kThree>() PARAMIXER_INLINE_LAMBDA {
            while (p + kRowsAtOnce <= end) rows.template operator()<kThree, kRowsAtOnce>();
            while (p < end) rows.template operator()<kThree, 1>();
          };
          if constexpr (!kSelf) return all.template operator()<Three::kAny>();
          if (distance.value[1] == value.row && distance.value[2] == -value.row &&
              distance.grad[1] == -grad.row && distance.grad[2] == grad.row) {
            return all.template operator()<Three::kNext>();
          }
          all.template operator()<Three::kSelf>();
        });
  }

  template <bool kStream, int L, typename From, typename To, typename Plus>
  void any_links_of(const Sweep& sweep, int64_t r, const RingWeights<A>& weights,
                    Rows<const A> grad, Rows<const From> value, Target<To> target,
                    Rows<const Plus> plus) const {
    gather_ring<kStream>(Direction::kTransposed, grad, weights, sweep.offsets, problem.links,
                         sweep.ring, width, target, plus);
    Walk walk = {r, sweep.step, problem.length};
    for_each_stretch_of(sweep, weights, grad, value,
                        [&](int64_t p, int64_t end, const BackwardDistances& distance) {
                          for (; p < end; ++p) {
                            const int64_t position = walk.next();
                            alignas(kVectorBytes) A sums[32];
                            const auto links = [&]<int kLinks>(int k) PARAMIXER_INLINE_LAMBDA {
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
  template <bool kStream, typename From, typename To>
  void gradients(const Sweep& sweep, int64_t r, Rows<const A> grad, Rows<const From> value,
                 const Target<To>& target) const {
    if (initial_grad != nullptr) {
      for (int64_t e = 0; e < sweep.ring * row; ++e) initial_grad[e] += grad.data[e];
    }
    const auto weights = this->weights(sweep, r);
    with_block(width, [&]<int L>() {
      if (problem.links == 3 && initial_grad == nullptr) {
        const auto three = [&]<bool kSelf, bool kAddRow>() {
          three_links_of<kSelf, kAddRow, kStream, L>(sweep, r, weights, grad, value, target);
        };
        const bool self = sweep.offsets[0] == 0;
        if (chain.residual == Residual::kPrevious) {
          return self ? three.template operator()<true, true>()
                      : three.template operator()<false, true>();
        }
        return self ? three.template operator()<true, false>()
                    : three.template operator()<false, false>();
      }
      Rows<const A> plus;
      if (chain.residual == Residual::kPrevious) plus = grad;
      if (initial_grad != nullptr && sweep.first == 0) plus = {initial_grad, row};
      any_links_of<kStream, L>(sweep, r, weights, grad, value, target, plus);
    });
  }

  // Calls body<L>() with the widest block that `width` channels fill.
  template <typename Body>
  static void with_block(int64_t width, const Body& body) {
    if (width >= kWidest<A>) return body.template operator()<kWidest<A>>();
    if (width >= 8) return body.template operator()<8>();
    if (width >= 4) return body.template operator()<4>();
    body.template operator()<1>();
  }

  // From sweep s on, for the ring r: the gradient of `input` goes to `target`. A run of sweeps whose
  // rows stay as they are ends where the classes part or the chain ends.
  template <typename From, typename To>
  void run(int s, int64_t r, Rows<const From> input, const Target<To>& target, A* free) const {
    const Sweep* const sweeps = chain.sweeps;
    const int64_t ring = sweeps[s].ring, size = scratch_ring(ring, row);
    int last = s;
    while (last + 1 < chain.sweep_count && sweeps[last].deal.deal == 1) ++last;
    A* const states = free;  // the inputs of sweeps s + 1 .. last
    A* grad = states + (last - s) * size;
    A* other = grad + size;
    const auto state = [&](int m) { return Rows<const A>{states + (m - s - 1) * size, row}; };
    const auto apply = [&](int m, const Target<A>& to) {
      if (m == s) return this->template apply<false>(sweeps[m], r, input, to);
      this->template apply<false>(sweeps[m], r, state(m), to);
    };
    for (int m = s; m < last; ++m) {
      apply(m, this->rows_in_order(states + (m - s) * size, ring));
    }
    if (last + 1 == chain.sweep_count) {
      this->widened(problem.grad, Walk{r, sweeps[last].step, problem.length}, ring, grad);
    } else {
      const Deal& deal = sweeps[last].deal;
      apply(last, this->dealt_rows(other, deal));
      for (int64_t c = 0; c < deal.classes; ++c) {
        run(last + 1, r + c * sweeps[last].step,
            Rows<const A>{other + c * deal.rows * row, row},
            this->rows_of(grad, row, c, deal.deal, deal.rows, ring), other + size);
      }
    }
    for (int m = last; m > s; --m) {
      gradients<false>(sweeps[m], r, Rows<const A>{grad, row}, state(m),
                       this->rows_in_order(other, ring));
      A* const done = grad;
      grad = other;
      other = done;
    }
    if (stream && s == 0) {
      return gradients<true>(sweeps[s], r, Rows<const A>{grad, row}, input, target);
    }
    gradients<false>(sweeps[s], r, Rows<const A>{grad, row}, input, target);
  }
};

template <typename T>
void chain_backward(const ChainProblem& chain, const ChainTask& channels, bool stream,
                    void* scratch) {
  using A = Accumulate<T>;
  const Problem& problem = chain.problem;
  A* free = static_cast<A*>(scratch);
  BackwardTask<T> task(chain, channels, free);
  task.dots = static_cast<A*>(problem.dots.data) + batch_offset(problem, problem.dots, task.batch);
  task.stream = stream;
  if (chain.residual == Residual::kInitial) {
    task.initial_grad = free;
    free += problem.length * task.row;
    __builtin_memset(task.initial_grad, 0, problem.length * task.row * sizeof(A));
  }
  const Operand& value = problem.value;
  task.run(0, 0, Rows<const T>{task.template operand<const T>(value, 0), value.row},
           task.rows_of_result(0, chain.sweeps[0]), free);
  if (stream) stream_fence();
}

}  // namespace
}  // namespace PARAMIXER_ISA_NAMESPACE
}  // namespace paramixer::cpu

// The initializer of InstructionSet::chain_kernels.
#define PARAMIXER_CHAIN_KERNELS_OF(T) \
  {PARAMIXER_ISA_NAMESPACE::chain_forward<T>, PARAMIXER_ISA_NAMESPACE::chain_backward<T>}
#define PARAMIXER_CHAIN_KERNELS                                           \
  {                                                                       \
    PARAMIXER_CHAIN_KERNELS_OF(double), PARAMIXER_CHAIN_KERNELS_OF(float), \
        PARAMIXER_CHAIN_KERNELS_OF(BFloat16), PARAMIXER_CHAIN_KERNELS_OF(Float16), \
  }
