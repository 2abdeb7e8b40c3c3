// CPU kernels of a chain of sparse factors: what its two passes share, and forward. Its gradients
// are in chain_backward.inl. Compiled once per instruction set, as kernels.inl.
//
// One task takes a group of channels of one batch item through the whole chain: its rows of V are
// read once and its rows of the result written once, everything in between stays in two buffers of
// N rows that this thread keeps. The sweeps and the order of the rows are those of the plan
// (core/chain_plan.h): after every sweep the rows are dealt to the classes of the next step, and
// the classes are followed depth first, so that most sweeps run in the first- and second-level
// cache whatever N is. A sweep of a pair slides along its ring with two rows of input and four of
// the state between the factors in registers: per row one load, one store and six multiply-adds.
// Scratch holds accumulators (float, or double): 16-bit values are widened when read and rounded
// once, at the end of the chain, both by the pairs themselves.
//
// A team of threads takes a task together: while the ring is whole they share its rows, from then
// on the classes. A row is computed the same way whoever does it.

#pragma once

#include "cpu/kernels.inl"

namespace paramixer::cpu {
namespace PARAMIXER_ISA_NAMESPACE {
namespace {

// Channels that slide through the registers of a pair together.
template <typename A>
constexpr int kSlide = kVectorBytes / sizeof(A) * (kVectorBytes == 64 ? 4 : 1);

// Rings whose rows are prefetched, so many rows ahead: fewer rows stay in the second-level cache.
constexpr int64_t kFarRing = 512;
constexpr int64_t kRowsAhead = 16;

// Rings at most so long keep what a task needs for the rest of the chain in that cache: there it is
// prefetched all at once.
constexpr int64_t kNearRows = 64;

// Rows of one factor that go through the loop over links together: their sums fill the registers,
// and while one waits for a cache there are others to go on with. Dilated links are a window of
// their class's ring.
template <typename A, int L>
constexpr int kRingRows = kVectorBytes == 64 ? 4 : kRowsAtOnce<A, L>;

// A team shares rings of at least so many rows, in parts of whole groups of rows: whatever goes
// along a ring by tiles takes the same tiles in parts.
constexpr int64_t kSharedRing = 256;
constexpr int64_t kSharedGroup = 32;

struct RowPart {
  int64_t begin;
  int64_t end;
};

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
  PARAMIXER_INLINE Walk after(int64_t rows) const {
    const auto ahead = static_cast<__int128>(rows) * step + position;
    return {static_cast<int64_t>(ahead % length), step, length};
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

// Calls body<L>(c) for blocks of L channels at c that cover the channels from c to `width`. The
// last one is of as few vectors as hold the rest, and lies over the one before it. (The body stands
// here once for each L: of two copies in one function, the compiler keeps the registers of
// neither.)
template <typename A, int L, typename Body>
PARAMIXER_INLINE void over_channels(int64_t width, const Body& body, int64_t c = 0) {
  constexpr int kVector = kVectorBytes / sizeof(A);
  for (; c < width; c += L) {
    const int64_t rest = width - c;
    if constexpr (L > 1) {
      constexpr int kLess = L > kVector ? L - kVector
                            : L == 4    ? 1
                                        : L / 2;  // no block of two lanes
      if (width < L || (L > kVector && rest <= kLess)) {
        return over_channels<A, kLess>(width, body, c);
      }
    }
    body.template operator()<L>(rest < L ? width - L : c);
  }
}

// Rows of scratch or of an operand.
template <typename Element>
struct Rows {
  Element* data = nullptr;
  int64_t row = 0;

  PARAMIXER_INLINE Element* at(int64_t p) const { return data + p * row; }
};

// Where row p of a ring is written, or was: four rows at a time lie `advance` elements behind the
// four before them, or where the walk leads.
template <typename Element>
struct Target {
  Element* row[4];
  int64_t advance;
  bool walks;  // rows are asked for in order, and the walk leads from row[0] on
  Walk walk;

  PARAMIXER_INLINE Element* at(int64_t p) {
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

// weight[0] row + weight[1] next + weight[2] previous (+ row); weights are numbers, or blocks of
// one.
template <bool kAddRow, typename Weight, typename Block>
PARAMIXER_INLINE Block three_links(const Weight* weight, const Block& row, const Block& next,
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
template <bool kPrevious, bool kStream, typename A, int L, typename From, typename To>
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
template <bool kPrevious, bool kStream, int L, typename A, typename From, typename To>
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

template <bool kPrevious, bool kStream, int L, typename A, typename From, typename To>
PARAMIXER_INLINE void pair_block(Rows<const From> input, const RingWeights<A>& weights,
                                 int64_t ring, RowPart part, Target<To> target, int64_t channel) {
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
  int64_t p = part.begin;
  PairState<Lanes<A, L>> s = {read_block<A, L>(from(p + 1)),
                              read_block<A, L>(from(p + 2)),
                              middle(p - 2),
                              middle(p - 1),
                              middle(p),
                              middle(p + 1)};
  if (!target.walks) {
    const From* x = input.at(p + 3) + channel;
    const A* second = weights.data + p * weights.row;
    const A* first = second + 2 * weights.row;
    To* to[4];
    for (int k = 0; k < 4; ++k) to[k] = target.at(p + k) + channel;
    const auto step = [&](auto& previous, auto& row, auto& far, auto& near,
                          To*& to) PARAMIXER_INLINE_LAMBDA {
      pair_step<kPrevious, kStream>(previous, row, far, near, x, first, second, to);
      x += input.row;
      first += weights.row;
      second += weights.row;
      to += target.advance;
    };
    for (; p + 4 <= part.end && p + 6 < ring; p += 4) {
      if (ring >= kFarRing) {
        for (int k = 0; k < 4; ++k) {
          prefetch<false>(x + (kRowsAhead + k) * input.row, L);
          if (!kStream) prefetch<true>(to[k] + kRowsAhead / 4 * target.advance, L);
          if (channel == 0) prefetch<false>(first + (kRowsAhead + k) * weights.row, 6);
        }
      }
      step(s.x1, s.x2, s.y0, s.y2, to[0]);
      step(s.x2, s.x1, s.y1, s.y3, to[1]);
      step(s.x1, s.x2, s.y2, s.y0, to[2]);
      step(s.x2, s.x1, s.y3, s.y1, to[3]);
    }
  }
  alignas(kVectorBytes) To surplus[L];  // rows past the end of the ring
  for (; p < part.end; p += 4) {
    const auto step = [&](auto& previous, auto& row, auto& far, auto& near,
                          int64_t p) PARAMIXER_INLINE_LAMBDA {
      pair_step<kPrevious, kStream>(previous, row, far, near, from(p + 3), weight(p + 2), weight(p),
                                    p < part.end ? target.at(p) + channel : surplus);
    };
    step(s.x1, s.x2, s.y0, s.y2, p);
    step(s.x2, s.x1, s.y1, s.y3, p + 1);
    step(s.x1, s.x2, s.y2, s.y0, p + 2);
    step(s.x2, s.x1, s.y3, s.y1, p + 3);
  }
}

// ---- One factor with any links

// The links of a stretch whose rows no other link has read shortly before: those to prefetch.
class FarLinks {
 public:
  FarLinks(const Stretch& stretch, int links, int64_t ring, int64_t row) {
    if (ring < kFarRing) return;
    for (int k = 0; k < links; ++k) {
      bool is_near = false;
      for (int other = 0; other < links; ++other) {
        const int64_t ahead = stretch.shift[other] - stretch.shift[k];
        is_near = is_near || (ahead > 0 && ahead < kFarRing) || (ahead == 0 && other < k);
      }
      if (!is_near) distance_[count_++] = (stretch.shift[k] + kRowsAhead) * row;
    }
  }

  // For the row at `own`.
  template <typename A>
  PARAMIXER_INLINE void operator()(const A* own, int64_t width) const {
    for (int i = 0; i < count_; ++i) prefetch<false>(own + distance_[i], width);
  }

 private:
  int64_t distance_[kMaxLinks];
  int count_ = 0;
};

// Rows of one factor, or its transpose, times a ring; `plus` is added where it is given.
template <bool kStream, typename A>
void gather_ring(Direction direction, Rows<const A> input, const RingWeights<A>& weights,
                 const int64_t* offsets, int links, int64_t ring, RowPart part, int64_t width,
                 Target<A> target, Rows<const A> plus) {
  Stretch stretch;
  for (int64_t begin = part.begin; begin < part.end; begin = stretch.end) {
    find_stretch(offsets, links, ring, direction, begin, part.end, stretch);
    Gather<A> gather(weights.data + begin * weights.row, weights.row, input.at(begin), input.row,
                     links);
    if (plus.data != nullptr) gather.plus = plus.at(begin), gather.plus_row = plus.row;
    gather.set_distances(stretch, direction, weights.column);
    gather.find_window(stretch);
    const FarLinks far_links(stretch, links, ring, input.row);
    int64_t p = begin;
    with_row_shape<A>(width, [&]<int L, int kRest>() {
      sweep<kRingRows<A, L>>(stretch.end - begin, [&]<int kRows>() PARAMIXER_INLINE_LAMBDA {
        A* to[kRows];
        for (int r = 0; r < kRows; ++r, ++p) {
          to[r] = target.at(p);
          if (ring > kNearRows) {
            prefetch<false>(gather.weight + (kRowsAhead + r) * weights.row, links);
          }
          if (ring < kFarRing) continue;
          far_links(gather.source + r * input.row, width);
          if (!kStream && !target.walks) prefetch<true>(target.at(p + kRowsAhead), width);
        }
        gather.template rows<kStream, L, kRest, kRows>(width, [&](int r) { return to[r]; });
        gather.advance(kRows);
      });
    });
  }
}

// ---- One task: a group of channels of one batch item

// The storage type of a dtype that is summed in A.
template <DType kDType, typename A>
using Storage = std::conditional_t<kDType == DType::kBFloat16, BFloat16,
                                   std::conditional_t<kDType == DType::kFloat16, Float16, A>>;

// Calls body<T>() with the storage type of `dtype`, which is summed in A.
template <typename A, typename Body>
PARAMIXER_INLINE void with_storage(DType dtype, const Body& body) {
  if constexpr (std::is_same_v<A, float>) {
    if (dtype == DType::kBFloat16) return body.template operator()<BFloat16>();
    if (dtype == DType::kFloat16) return body.template operator()<Float16>();
  }
  body.template operator()<A>();
}

template <typename A>
struct ChannelTask {
  const ChainProblem& chain;
  const Problem& problem;
  DType dtype;
  int64_t batch;
  int64_t channel;
  int64_t width;       // channels of the operands
  int64_t row;         // elements of a row of scratch
  int64_t span;        // those of them that are computed
  bool in_place;       // operands are what the kernels take, else they go by way of scratch
  A* packed;           // room for the weights of one sweep over one ring
  A* widened;          // all weights of the batch item, where they are widened once
  const Team* team;    // null: this thread alone
  int near_sweep = 0;  // the first one on rings of at most kNearRows
  A* copied_value = nullptr;
  A* copied_result = nullptr;
  Rows<const A> value;
  Rows<const A> initial = {};  // V_0, where every factor adds it

  // Takes what it needs from the front of `scratch`.
  ChannelTask(const ChainProblem& chain, DType dtype, const ChainTask& task, Pass pass, A*& scratch)
      : chain(chain),
        problem(chain.problem),
        dtype(dtype),
        batch(task.batch),
        channel(task.channel),
        width(task.width),
        row(scratch_row<A>(task.width)),
        span(pass == Pass::kForward ? width : (width + kWidest<A> - 1) / kWidest<A> * kWidest<A>),
        in_place(holds_accumulators() && span == width),
        packed(take_packed(scratch, problem.length)),
        widened(take_widened(scratch, widened_weights(chain, dtype, pass))),
        team(task.team) {
    if (in_place) {
      value = {operand<const A>(problem.value), problem.value.row};
    } else {
      copied_value = scratch;
      copied_result = scratch + problem.length * row;
      scratch += 2 * problem.length * row;
      value = {copied_value, row};
    }
    if (chain.residual == Residual::kInitial) initial = value;
    while (near_sweep < chain.sweep_count && chain.sweeps[near_sweep].ring > kNearRows)
      ++near_sweep;
  }

  A* take_packed(A*& scratch, int64_t ring) const {
    A* const room = scratch;
    scratch += scratch_row<A>(ring * 2 * problem.links);
    return room;
  }

  static A* take_widened(A*& scratch, int64_t elements) {
    A* const room = scratch;
    scratch += elements;
    return elements > 0 ? room : nullptr;
  }

  bool holds_accumulators() const { return dtype == DType::kFloat64 || dtype == DType::kFloat32; }

  // Calls body(i, scratch) for every i in [0, count) on the threads of the team.
  template <typename Body>
  void on_team(int64_t count, const Body& body) const {
    const auto part = [](const void* work, int64_t i, void* scratch) {
      (*static_cast<const Body*>(work))(i, static_cast<A*>(scratch));
      stream_fence();
    };
    team->each(*team, count, part, &body);
  }

  // Calls body(part, scratch) for the rows of a ring, all of them or what each thread takes. Only a
  // thread of a team gets scratch.
  template <typename Body>
  void share_rows(int64_t ring, const Body& body) const {
    if (team == nullptr || ring < kSharedRing) return body(RowPart{0, ring}, nullptr);
    const int64_t groups = (ring + kSharedGroup - 1) / kSharedGroup;
    const int64_t rows = (groups + team->threads - 1) / team->threads * kSharedGroup;
    on_team((ring + rows - 1) / rows, [&](int64_t i, A* scratch) {
      body(RowPart{i * rows, ring < (i + 1) * rows ? ring : (i + 1) * rows}, scratch);
    });
  }

  template <typename Element>
  Element* operand(const Operand& operand) const {
    return static_cast<Element*>(operand.data) + batch_offset(problem, operand, batch) + channel;
  }

  // `rows` rows of an operand, as the walk goes, widened; what is computed beyond them is zero.
  void copy_rows(const Operand& source, Walk walk, int64_t rows, A* to) const {
    with_storage<A>(dtype, [&]<typename T>() {
      const T* from = operand<const T>(source);
      for (int64_t p = 0; p < rows; ++p, to += row) {
        const T* source_row = from + walk.next() * source.row;
        for (int64_t c = width; c < span; ++c) to[c] = 0;
        over_channels<A, kWidest<A>>(width, [&]<int L>(int64_t c) PARAMIXER_INLINE_LAMBDA {
          write_block<false>(to + c, read_block<A, L>(source_row + c));
        });
      }
    });
  }

  // The same for a whole ring.
  void copy_ring(const Operand& source, const Walk& walk, int64_t ring, A* to) const {
    share_rows(ring, [&](RowPart part, A*) {
      copy_rows(source, walk.after(part.begin), part.end - part.begin, to + part.begin * row);
    });
  }

  // Widens V into scratch.
  void copy_value() const {
    copy_ring(problem.value, {0, 1 % problem.length, problem.length}, problem.length, copied_value);
  }

  // Rounds a result that was computed in scratch.
  void round_result() const {
    with_storage<A>(dtype, [&]<typename T>() {
      T* to = operand<T>(problem.result);
      share_rows(problem.length, [&](RowPart part, A*) {
        for (int64_t p = part.begin; p < part.end; ++p) {
          over_channels<A, kWidest<A>>(width, [&]<int L>(int64_t c) PARAMIXER_INLINE_LAMBDA {
            write_block<false>(to + p * problem.result.row + c,
                               read_block<A, L>(copied_result + p * row + c));
          });
        }
      });
    });
  }

  // Weights (N, M, K) that the sweeps can read as they are.
  struct ReadyWeights {
    const A* data;
    int64_t row;
    int64_t factor;
    int64_t column;
  };
  ReadyWeights ready_weights() const {
    if (widened != nullptr) {
      return {widened, chain.factors * problem.links, problem.links, 1};
    }
    const Operand& weight = problem.weight;
    const A* data = nullptr;
    if (holds_accumulators()) {
      data = static_cast<const A*>(weight.data) + batch_offset(problem, weight, batch);
    }
    return {data, weight.row, chain.weight_factor, weight.column};
  }

  void widen_weights() const {
    const int64_t row = chain.factors * problem.links;
    with_storage<A>(dtype, [&]<typename T>() {
      const T* from =
          static_cast<const T*>(problem.weight.data) + batch_offset(problem, problem.weight, batch);
      share_rows(problem.length, [&](RowPart part, A*) {
        for (int64_t p = part.begin; p < part.end; ++p) {
          over_channels<A, kWidest<A>>(row, [&]<int L>(int64_t c) PARAMIXER_INLINE_LAMBDA {
            write_block<false>(widened + p * row + c,
                               read_block<A, L>(from + p * problem.weight.row + c));
          });
        }
      });
    });
  }

  // Where the ring of rows r, r + step, .. finds its weights for a sweep: ready, or packed.
  RingWeights<A> weights(const Sweep& sweep, int64_t r) const {
    const ReadyWeights ready = ready_weights();
    const bool in_order = sweep.factors == 1 || pair_in_order(sweep, ready.factor, ready.column);
    if (ready.data != nullptr && in_order && sweep.step * sweep.ring == problem.length) {
      return {ready.data + sweep.first * ready.factor + r * ready.row, sweep.step * ready.row,
              ready.column};
    }
    const int count = problem.links * sweep.factors;
    pack_weights(sweep, r, packed, count);
    return {packed, count, 1};
  }

  int64_t weight_offset(const Sweep& sweep) const {
    return batch_offset(problem, problem.weight, batch) + sweep.first * chain.weight_factor;
  }

  // The weights of a ring's rows that the sweeps from this one on will read one by one, far apart.
  PARAMIXER_INLINE void prefetch_weights(const Sweep& sweep, int64_t r) const {
    Walk walk = {r, sweep.step, problem.length};
    const int64_t links = (chain.factors - sweep.first) * problem.links;
    const auto prefetch_from = [&](const auto* weight, int64_t row) PARAMIXER_INLINE_LAMBDA {
      for (int64_t p = 0; p < sweep.ring; ++p) prefetch<false>(weight + walk.next() * row, links);
    };
    if (widened != nullptr) {
      const ReadyWeights ready = ready_weights();
      return prefetch_from(ready.data + sweep.first * ready.factor, ready.row);
    }
    with_storage<A>(dtype, [&]<typename T>() PARAMIXER_INLINE_LAMBDA {
      prefetch_from(static_cast<const T*>(problem.weight.data) + weight_offset(sweep),
                    problem.weight.row);
    });
  }

  // The rows of V, of the result or of a gradient that they will read or write so.
  template <bool kWrite>
  PARAMIXER_INLINE void prefetch_rows(const Operand& rows, const Sweep& sweep, int64_t r) const {
    Walk walk = {r, sweep.step, problem.length};
    with_storage<A>(dtype, [&]<typename T>() PARAMIXER_INLINE_LAMBDA {
      const T* const first = operand<const T>(rows);
      for (int64_t p = 0; p < sweep.ring; ++p) {
        prefetch<kWrite>(first + walk.next() * rows.row, width);
      }
    });
  }

  // Whether the links of a pair lie in its order in one piece of memory.
  static bool pair_in_order(const Sweep& sweep, int64_t factor, int64_t column) {
    bool in_order = factor == 3 * column && column == 1;
    for (int k = 0; k < 6; ++k) in_order = in_order && sweep.columns[k] == k % 3;
    return in_order;
  }

  // Six links, widened.
  template <typename T>
  static PARAMIXER_INLINE void copy_pair_row(A* to, const T* from) {
    if constexpr (std::is_same_v<T, A>) {
      __builtin_memcpy(to, from, 6 * sizeof(A));
    } else {
      for (const int k : {0, 2}) store<4>(to + k, load<4>(from + k));
    }
  }

  // Copies the weights of a ring's rows for a sweep to rows of `pitch` elements.
  void pack_weights(const Sweep& sweep, int64_t r, A* to, int64_t pitch) const {
    const Operand& weight = problem.weight;
    const int count = problem.links * sweep.factors;
    int64_t column[2 * kMaxLinks];
    for (int k = 0; k < count; ++k) {
      column[k] = sweep.factors == 1
                      ? k * weight.column
                      : k / 3 * chain.weight_factor + sweep.columns[k] * weight.column;
    }
    const bool in_order =
        sweep.factors == 2 && pair_in_order(sweep, chain.weight_factor, weight.column);
    with_storage<A>(dtype, [&]<typename T>() {
      const T* data = static_cast<const T*>(weight.data) + weight_offset(sweep);
      const int64_t ahead = kRowsAhead * sweep.step * weight.row;
      share_rows(sweep.ring, [&](RowPart part, A*) {
        Walk walk = Walk{r, sweep.step, problem.length}.after(part.begin);
        for (int64_t p = part.begin; p < part.end; ++p) {
          A* const row = to + p * pitch;
          const T* from = data + walk.next() * weight.row;
          if (sweep.ring >= kFarRing) prefetch<false>(from + ahead, count);
          if (in_order) {
            copy_pair_row(row, from);
          } else {
            for (int k = 0; k < count; ++k) row[k] = widen(from[column[k]]);
          }
        }
      });
    });
  }

  // Rows r, r + step, .. of `rows` rows.
  template <typename Element>
  static Target<Element> rows_of(Element* data, int64_t row, int64_t r, int64_t step, int64_t ring,
                                 int64_t rows) {
    Target<Element> target = {};
    target.walks = step * ring != rows;
    target.walk = {r * row, step % rows * row, rows * row};
    for (int k = 0; k < 4; ++k) target.row[k] = data + (target.walks ? 0 : (r + k * step) * row);
    target.advance = 4 * step * row;
    return target;
  }
  Target<A> rows_in_order(A* data, int64_t ring) const {
    return rows_of(data, row, 0, 1, ring, ring);
  }
  template <typename T>
  Target<T> rows_of_operand(const Operand& to, int64_t r, const Sweep& sweep) const {
    return rows_of(operand<T>(to), to.row, r, sweep.step, sweep.ring, problem.length);
  }
  Target<A> rows_of_result(int64_t r, const Sweep& sweep) const {
    if (in_place) return rows_of_operand<A>(problem.result, r, sweep);
    return rows_of(copied_result, row, r, sweep.step, sweep.ring, problem.length);
  }

  // Scratch in which the classes of the next sweep lie `class_size` elements behind each other.
  Target<A> dealt_rows(A* data, const Deal& deal, int64_t class_size) const {
    Target<A> target = {};
    for (int k = 0; k < 4; ++k) {
      const int q = k % deal.deal;
      target.row[k] = data + deal.class_of[q] * class_size + (deal.start[q] + k / deal.deal) * row;
    }
    target.advance = 4 / deal.deal * row;
    return target;
  }

  // One sweep over the ring r: V_m, or V_{m+1} for a pair, from V_{m-1}. Pairs alone take storage
  // types. Rows that a walk leads to can only be written in order, by one thread.
  template <bool kStream, typename From, typename To>
  void apply(const Sweep& sweep, const RingWeights<A>& ring_weights, Rows<const From> input,
             const Target<To>& to) const {
    const auto apply_to = [&](RowPart part, A*) {
      apply_rows<kStream>(sweep, ring_weights, input, part, to);
    };
    if (to.walks) return apply_to({0, sweep.ring}, nullptr);
    share_rows(sweep.ring, apply_to);
  }

  template <bool kStream, typename From, typename To>
  void apply_rows(const Sweep& sweep, const RingWeights<A>& ring_weights, Rows<const From> input,
                  RowPart part, const Target<To>& to) const {
    const bool previous = chain.residual == Residual::kPrevious;
    if (sweep.factors == 2) {
      return over_channels<A, kSlide<A>>(span, [&]<int L>(int64_t c) PARAMIXER_INLINE_LAMBDA {
        if (previous) {
          pair_block<true, kStream, L>(input, ring_weights, sweep.ring, part, to, c);
        } else {
          pair_block<false, kStream, L>(input, ring_weights, sweep.ring, part, to, c);
        }
      });
    }
    if constexpr (std::is_same_v<From, A> && std::is_same_v<To, A>) {
      gather_ring<kStream>(Direction::kForward, input, ring_weights, sweep.offsets, problem.links,
                           sweep.ring, part, span, to, previous ? input : initial);
    }
  }
};

// ---- Forward

// T is the storage type.
template <typename A, typename T>
struct ForwardTask : ChannelTask<A> {
  using ChannelTask<A>::ChannelTask, ChannelTask<A>::chain, ChannelTask<A>::problem;
  using ChannelTask<A>::row;
  bool stream = false;

  // Everything, with two buffers of a ring at `free`.
  void run(A* free) const {
    A* const other = free + problem.length * row;
    if (this->widened != nullptr) this->widen_weights();
    const bool many = chain.sweep_count > 1;
    const bool reads = many && is_pair(0), writes = many && is_pair(chain.sweep_count - 1);
    if constexpr (std::is_same_v<A, T>) return run(0, 0, this->value, free, other);
    if (reads) {
      const T* const first = this->template operand<const T>(problem.value);
      run(0, 0, Rows<const T>{first, problem.value.row}, free, other);
    } else {
      this->copy_value();
      run(0, 0, this->value, free, other);
    }
    if (!writes) this->round_result();
  }

 private:
  bool is_pair(int s) const { return chain.sweeps[s].factors == 2; }

  // Everything from sweep s on for the ring r. The sweep's rows go to `here`, those of its classes'
  // sweeps to `other`: both have room for one ring.
  template <typename From>
  void run(int s, int64_t r, Rows<const From> input, A* here, A* other) const {
    const Sweep& sweep = chain.sweeps[s];
    if (s == this->near_sweep) {
      this->prefetch_weights(sweep, r);
      if (!stream) this->template prefetch_rows<true>(problem.result, sweep, r);
    }
    const auto weights = this->weights(sweep, r);
    if constexpr (std::is_same_v<From, A>) {  // no chain of one sweep reads another type
      if (s + 1 == chain.sweep_count) return last(sweep, r, weights, input);
    }
    const Deal& deal = sweep.deal;
    const int64_t size = deal.rows * row;
    this->template apply<false>(sweep, weights, input, this->dealt_rows(here, deal, size));
    const auto run_class = [&](const ForwardTask& task, int64_t c, A* other) {
      A* const rows = here + c * size;
      task.run(s + 1, r + c * sweep.step, Rows<const A>{rows, row}, other, rows);
    };
    if (this->team == nullptr || deal.classes == 1) {
      for (int64_t c = 0; c < deal.classes; ++c) run_class(*this, c, other);
    } else {
      this->on_team(deal.classes, [&](int64_t c, A* scratch) {
        ForwardTask alone = *this;
        alone.team = nullptr;
        alone.packed = this->take_packed(scratch, deal.rows);
        run_class(alone, c, scratch);
      });
    }
  }

  void last(const Sweep& sweep, int64_t r, const RingWeights<A>& weights,
            Rows<const A> input) const {
    if constexpr (!std::is_same_v<A, T>) {
      if (sweep.factors == 2 && chain.sweep_count > 1) {
        const auto result = this->template rows_of_operand<T>(problem.result, r, sweep);
        return this->template apply<false>(sweep, weights, input, result);
      }
    }
    const auto result = this->rows_of_result(r, sweep);
    if (stream) return this->template apply<true>(sweep, weights, input, result);
    this->template apply<false>(sweep, weights, input, result);
  }
};

template <DType kDType, typename A>
void chain_forward(const ChainProblem& chain, const ChainTask& channels, bool stream,
                   void* scratch) {
  A* free = static_cast<A*>(scratch);
  ForwardTask<A, Storage<kDType, A>> task(chain, kDType, channels, Pass::kForward, free);
  task.stream = stream && task.in_place;
  task.run(free);
  if (stream) stream_fence();
}

}  // namespace
}  // namespace PARAMIXER_ISA_NAMESPACE
}  // namespace paramixer::cpu
