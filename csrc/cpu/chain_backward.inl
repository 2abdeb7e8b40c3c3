// CPU kernels of the gradients of a chain of sparse factors. Compiled once per instruction set, as
// kernels.inl.
//
// On the way down the states after every sweep are computed again, ring by ring as in forward, and
// kept: a ring of n rows holds n rows before its classes part, so a chain with classes needs little
// more than N rows in all. On the way up every sweep's gradients are made from its input x and the
// gradient g of its result; of one factor
//   gradient of x, row p:  sum over links k of weight[p - o_k, k] g[p - o_k]
//   dots[p, k] = <g[p], x[p + o_k]>
// A pair's are made a tile of rows at a time: the state between its factors, computed once more,
// and the gradient of that state stay in the first-level cache. Rings of scratch have copies of
// their other end before and behind them, so that no link of a pair passes an end.
//
// All rows are computed in whole blocks: what scratch holds beyond the last channel is zero.

#pragma once

#include "cpu/chain.inl"

namespace paramixer::cpu {
namespace PARAMIXER_ISA_NAMESPACE {
namespace {

// ---- Pairs

// Calls body<kRows>(p) for rows p, p + kStep, .. of [begin, end), as many at once as the registers
// hold.
template <int kStep, typename Body>
PARAMIXER_INLINE void over_rows(int64_t begin, int64_t end, const Body& body) {
  int64_t p = begin;
  const auto at_once = [&]<int kRows>() PARAMIXER_INLINE_LAMBDA {
    for (; p + kRows * kStep <= end; p += kRows * kStep) {
      for (int s = 0; s < kStep; ++s) body.template operator()<kRows>(p + s);
    }
  };
  if constexpr (kVectorBytes == 64) {
    at_once.template operator()<4>();
    at_once.template operator()<2>();
  }
  for (; p < end; ++p) body.template operator()<1>(p);
}

// Rows of the result of a factor with links 0, kStep, -kStep: to[r] for p + kStep r.
template <int kStep, int kPitch, bool kPrevious, int kRows, typename A>
PARAMIXER_INLINE void product_rows(A* to, const A* weights, const A* value, int64_t span) {
  constexpr int L = kWidest<A>;
  using Block = Lanes<A, L>;
  Block weight[kRows * 3];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < 3; ++k) weight[3 * r + k] = Block::all(weights[r * kStep * kPairRow + k]);
  }
  for (int64_t c = 0; c < span; c += L) {
    Block previous = Block::read(value - kStep * kPitch + c), row = Block::read(value + c);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Block next = Block::read(value + (r + 1) * kStep * kPitch + c);
      three_links<kPrevious>(weight + 3 * r, row, next, previous)
          .write(to + r * kStep * kPitch + c);
      previous = row, row = next;
    }
  }
}

// The gradients of the same factor: of the rows p + kStep r of its input, and of their weights.
template <int kStep, int kPitch, bool kPrevious, int kRows, typename A>
PARAMIXER_INLINE void gradient_rows(A* const (&to)[kRows], A* dots, const A* weights, const A* grad,
                                    const A* value, int64_t span) {
  constexpr int L = kWidest<A>;
  using Block = Lanes<A, L>;
  constexpr int kRow = kStep * kPairRow, kNext = kStep * kPitch;
  Block sum[kRows * 3];
  Block weight[kRows * 3];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    weight[3 * r] = Block::all(weights[r * kRow]);
    weight[3 * r + 1] = Block::all(weights[(r + 1) * kRow + 2]);  // what the next row takes of r
    weight[3 * r + 2] = Block::all(weights[(r - 1) * kRow + 1]);
    sum[3 * r] = sum[3 * r + 1] = sum[3 * r + 2] = Block::zero();
  }
  for (int64_t c = 0; c < span; c += L) {
    Block g_previous = Block::read(grad - kNext + c), g = Block::read(grad + c);
    Block x_previous = Block::read(value - kNext + c), x = Block::read(value + c);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Block g_next = Block::read(grad + (r + 1) * kNext + c);
      const Block x_next = Block::read(value + (r + 1) * kNext + c);
      three_links<kPrevious>(weight + 3 * r, g, g_next, g_previous).write(to[r] + c);
      sum[3 * r].add_product(g, x);
      sum[3 * r + 1].add_product(g, x_next);
      sum[3 * r + 2].add_product(g, x_previous);
      g_previous = g, g = g_next, x_previous = x, x = x_next;
    }
  }
  A sums[kRows * 3];
  sum_each(sum, sums);
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < 3; ++k) dots[r * kRow + k] = sums[3 * r + k];
  }
}

// Scratch of a tile, whose first row is row 0; kHalo rows are before it and behind it.
template <typename A>
struct PairTile {
  A* value;        // the pair's input, where that has no halo
  A* grad;         // the gradient of its result
  A* middle;       // the state between the factors
  A* middle_grad;  // its gradient
  A* dots;
};

// Both gradients of a pair for the tile of `rows` rows that starts at to.at(p): of value, and in
// tile.dots.
template <int kPitch, bool kPrevious, typename A>
void pair_gradients(const PairTile<A>& tile, const A* weights, const A* value, int64_t rows,
                    int64_t p, Target<A>& to, int64_t span) {
  const auto row = [](auto* data, int64_t i) { return data + i * kPitch; };
  const auto weight_row = [&](int64_t i) { return weights + i * kPairRow; };
  over_rows<1>(-2, rows + 2, [&]<int kRows>(int64_t i) PARAMIXER_INLINE_LAMBDA {
    product_rows<1, kPitch, kPrevious, kRows>(row(tile.middle, i), weight_row(i), row(value, i),
                                              span);
  });
  for (const int64_t i : {int64_t{-1}, rows}) {
    const A transposed[3] = {weight_row(i)[3], weight_row(i + 2)[5], weight_row(i - 2)[4]};
    product_rows<2, kPitch, kPrevious, 1>(row(tile.middle_grad, i), transposed, row(tile.grad, i),
                                          span);
  }
  over_rows<2>(0, rows, [&]<int kRows>(int64_t i) PARAMIXER_INLINE_LAMBDA {
    A* middle_grad[kRows];
    for (int r = 0; r < kRows; ++r) middle_grad[r] = row(tile.middle_grad, i + 2 * r);
    gradient_rows<2, kPitch, kPrevious, kRows>(middle_grad, tile.dots + i * kPairRow + 3,
                                               weight_row(i) + 3, row(tile.grad, i),
                                               row(tile.middle, i), span);
  });
  over_rows<1>(0, rows, [&]<int kRows>(int64_t i) PARAMIXER_INLINE_LAMBDA {
    A* result[kRows];
    for (int r = 0; r < kRows; ++r) result[r] = to.at(p + i + r);
    gradient_rows<1, kPitch, kPrevious, kRows>(result, tile.dots + i * kPairRow, weight_row(i),
                                               row(tile.middle_grad, i), row(value, i), span);
  });
}

// A ring of four, whose links 2 and -2 lead to the same row: no halo. to[i] and grad[i] are row i,
// `middle_grad` and `value` four rows of scratch; dots as a tile's.
template <bool kPrevious, typename A>
void gradients_of_four(A* const (&to)[4], A* dots, const RingWeights<A>& weights,
                       const A* const (&grad)[4], Rows<const A> value, Rows<A> middle_grad,
                       int64_t span) {
  constexpr int L = kWidest<A>;
  using Block = Lanes<A, L>;
  Block weight[12], sum[12];
  // What row i takes of itself, of row i + first and of row i + second.
  const auto set_weights = [&](int first, int first_link, int second, int second_link, int link)
                               PARAMIXER_INLINE_LAMBDA {
                                 const auto at = [&](int i, int k) {
                                   return Block::all(weights.data[(i & 3) * weights.row + k]);
                                 };
#pragma GCC unroll 4
                                 for (int i = 0; i < 4; ++i) {
                                   weight[3 * i] = at(i, link);
                                   weight[3 * i + 1] = at(i + first, first_link);
                                   weight[3 * i + 2] = at(i + second, second_link);
                                 }
                               };
  for (auto& one : sum) one = Block::zero();
  set_weights(0, 1, 0, 2, 0);
  for (int64_t c = 0; c < span; c += L) {
    Block x[4], y[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x[i] = Block::read(value.at(i) + c);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      y[i] = three_links<kPrevious>(weight + 3 * i, x[i], x[(i + 1) & 3], x[(i + 3) & 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Block g = Block::read(grad[i] + c);
      sum[2 * i].add_product(g, y[i]);
      sum[2 * i + 1].add_product(g, y[i ^ 2]);
    }
  }
  A sums[12];
  sum_each(sum, sums);
  for (int i = 0; i < 4; ++i) {
    dots[i * kPairRow + 3] = sums[2 * i];
    dots[i * kPairRow + 4] = dots[i * kPairRow + 5] = sums[2 * i + 1];
  }
  set_weights(2, 5, 2, 4, 3);
  for (int64_t c = 0; c < span; c += L) {
    Block g[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) g[i] = Block::read(grad[i] + c);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      three_links<kPrevious>(weight + 3 * i, g[i], g[i ^ 2], g[i ^ 2]).write(middle_grad.at(i) + c);
    }
  }
  for (auto& one : sum) one = Block::zero();
  set_weights(1, 2, 3, 1, 0);
  for (int64_t c = 0; c < span; c += L) {
    Block x[4], g[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      x[i] = Block::read(value.at(i) + c);
      g[i] = Block::read(middle_grad.at(i) + c);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int next = (i + 1) & 3, previous = (i + 3) & 3;
      sum[3 * i].add_product(g[i], x[i]);
      sum[3 * i + 1].add_product(g[i], x[next]);
      sum[3 * i + 2].add_product(g[i], x[previous]);
      three_links<kPrevious>(weight + 3 * i, g[i], g[next], g[previous]).write(to[i] + c);
    }
  }
  sum_each(sum, sums);
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < 3; ++k) dots[i * kPairRow + k] = sums[3 * i + k];
  }
}

// Calls body<kPitch>() with the elements of a row of scratch.
template <typename A, typename Body>
PARAMIXER_INLINE void with_pitch(int64_t row, const Body& body) {
  if (row == kWidest<A>) return body.template operator()<kWidest<A>>();
  if (row == 2 * kWidest<A>) return body.template operator()<2 * kWidest<A>>();
  if (row == 4 * kWidest<A>) return body.template operator()<4 * kWidest<A>>();
  body.template operator()<8 * kWidest<A>>();
}

// ---- One factor with any links

// dots[k] = <grad row, value row + distance[k]> for kLinks links.
template <int kLinks, typename A>
PARAMIXER_INLINE void dot_links(A* dots, const A* grad, const A* value, const int64_t* distance,
                                int64_t span) {
  using Block = Lanes<A, kWidest<A>>;
  Block sum[kLinks];
  for (auto& one : sum) one = Block::zero();
  for (int64_t c = 0; c < span; c += kWidest<A>) {
    const Block row = Block::read(grad + c);
    for (int k = 0; k < kLinks; ++k) {
      sum[k].add_product(row, Block::read(value + distance[k] + c));
    }
  }
  sum_each(sum, dots);
}

// ---- One task

template <typename A>
struct BackwardTask : ChannelTask<A> {
  using ChannelTask<A>::ChannelTask, ChannelTask<A>::chain, ChannelTask<A>::problem;
  using ChannelTask<A>::row, ChannelTask<A>::span;

  A* dots = nullptr;          // (N, M, K) of this batch item
  A* initial_grad = nullptr;  // for Residual::kInitial: the sum of the gradients of all states
  PairTile<A> tile = {};
  int first_kept = first_kept_gradient(chain);

  // Two buffers of a ring, from sweep first_kept on: the gradient of a sweep's result, and that of
  // the next sweep's.
  struct Gradients {
    A* here = nullptr;
    A* next = nullptr;
  };

  A* take(A*& free, int64_t rows) const {
    A* const first = free + kHalo * row;
    free += scratch_ring(rows, row);
    return first;
  }

  Gradients take_gradients(A*& free, int64_t ring) const {
    A* const here = take(free, ring);
    return {here, take(free, ring)};
  }

  void take_tile(A*& free) {
    for (A** part : {&tile.value, &tile.grad, &tile.middle, &tile.middle_grad}) {
      *part = take(free, kTileRows);
    }
    tile.dots = free;
    free += kTileRows * kPairRow;
  }

  // This task as one thread of the team takes a part of it, rings of at most `ring` rows.
  BackwardTask member(A*& free, int64_t ring) const {
    BackwardTask alone = *this;
    alone.team = nullptr;
    alone.packed = this->take_packed(free, ring);
    alone.take_tile(free);
    return alone;
  }

  // Copies the ends of a ring to where the ring goes on.
  void close(A* data, int64_t ring) const {
    for (int64_t p = 1; p <= kHalo; ++p) {
      copy(data - p * row, data + reduce_offset(-p, ring) * row);
      copy(data + (ring - 1 + p) * row, data + (p - 1) % ring * row);
    }
  }
  PARAMIXER_INLINE void copy(A* to, const A* from) const {
    for (int64_t c = 0; c < span; c += kWidest<A>) {
      Lanes<A, kWidest<A>>::read(from + c).write(to + c);
    }
  }

  // The dots of `count` links, added to those of the channels before these.
  PARAMIXER_INLINE void put_dots(A* to, const A* sums, int count) const {
    if (this->channel == 0) {
      for (int k = 0; k < count; ++k) to[k] = sums[k];
    } else {
      for (int k = 0; k < count; ++k) to[k] += sums[k];
    }
  }
  // Those of a pair, for `rows` rows from tile.dots.
  void put_pair_dots(const Sweep& sweep, Walk& walk, int64_t rows) const {
    A* const first = dots + sweep.first * chain.dots_factor;
    const bool in_order = this->pair_in_order(sweep, chain.dots_factor, 1);
    for (int64_t i = 0; i < rows; ++i) {
      A* const to = first + walk.next() * problem.dots.row;
      const A* const sums = tile.dots + i * kPairRow;
      if (in_order) {
        put_dots(to, sums, 6);
      } else {
        for (int k = 0; k < 6; ++k) {
          put_dots(to + k / 3 * chain.dots_factor + sweep.columns[k], sums + k, 1);
        }
      }
    }
  }

  // A pair's weights in scratch, with halo.
  RingWeights<A> weights_with_halo(const Sweep& sweep, int64_t r, A* to) const {
    this->pack_weights(sweep, r, to, kPairRow);
    const auto copy_row = [&](int64_t p, int64_t from) {
      __builtin_memcpy(to + p * kPairRow, to + from * kPairRow, kPairRow * sizeof(A));
    };
    for (int64_t p = 1; p <= kHalo; ++p) {
      copy_row(-p, reduce_offset(-p, sweep.ring));
      copy_row(sweep.ring - 1 + p, (p - 1) % sweep.ring);
    }
    return {to, kPairRow, 1};
  }

  // What the sweeps from this one on will read and write row by row, far apart.
  PARAMIXER_INLINE void prefetch_operands(const Sweep& sweep, int64_t r) const {
    this->prefetch_weights(sweep, r);
    this->template prefetch_rows<false>(problem.grad, sweep, r);
    Walk walk = {r, sweep.step, problem.length};
    const int64_t links = (chain.factors - sweep.first) * problem.links;
    const A* const first = dots + sweep.first * chain.dots_factor;
    for (int64_t p = 0; p < sweep.ring; ++p) {
      prefetch<true>(first + walk.next() * problem.dots.row, links);
    }
  }

  static_assert(kSharedGroup % kTileRows == 0);

  // What a pair reads and writes for the tile at p.
  PARAMIXER_INLINE void prefetch_tile(const Sweep& sweep, Target<A> source, Rows<const A> input,
                                      Target<A> target, Walk walk, int64_t p) const {
    const A* const first = dots + sweep.first * chain.dots_factor;
    const int64_t end = p + kTileRows < sweep.ring ? p + kTileRows : sweep.ring;
    for (; p < end; ++p) {
      if (source.row[0] != nullptr) prefetch<false>(source.at(p), span);
      prefetch<false>(input.at(p), span);
      if (sweep.step == 1) prefetch<true>(target.at(p), span);
      prefetch<true>(first + walk.next() * problem.dots.row, 2 * problem.links);
    }
  }

  // `source` is where the sweeps after this one have left the gradient of its result, if any.
  void pair(const Sweep& sweep, int64_t r, const RingWeights<A>& weights, Target<A> source,
            Rows<const A> input, bool has_halo, RowPart part, Target<A> target) const {
    const int64_t ring = sweep.ring;
    const bool is_last = source.row[0] == nullptr;
    Walk walk = Walk{r, sweep.step, problem.length}.after(part.begin);
    for (int64_t p = part.begin; p < part.end; p += kTileRows) {
      const int64_t rows = part.end - p < kTileRows ? part.end - p : kTileRows;
      const A* const value = has_halo ? input.at(p) : tile.value;
      if (ring >= kFarRing) {
        Walk ahead = walk;
        ahead.position = (walk.position + rows * walk.step) % walk.length;
        prefetch_tile(sweep, source, input, target, ahead, p + rows);
      }
      for (int64_t i = -kHalo; i < rows + kHalo; ++i) {
        const int64_t from = p + i >= 0 && p + i < ring ? p + i : reduce_offset(p + i, ring);
        if (!is_last) copy(tile.grad + i * row, source.at(from));
        if (!has_halo) copy(tile.value + i * row, input.at(from));
      }
      if (is_last) {
        const int64_t first = (r + reduce_offset(p - kHalo, ring) * sweep.step) % problem.length;
        this->copy_rows(problem.grad, {first, sweep.step, problem.length}, rows + 2 * kHalo,
                        tile.grad - kHalo * row);
      }
      with_pitch<A>(row, [&]<int kPitch>() {
        const A* const w = weights.data + p * kPairRow;
        if (chain.residual == Residual::kPrevious) {
          pair_gradients<kPitch, true>(tile, w, value, rows, p, target, span);
        } else {
          pair_gradients<kPitch, false>(tile, w, value, rows, p, target, span);
        }
      });
      put_pair_dots(sweep, walk, rows);
    }
  }

  bool ends_in_four(int s) const {
    const Sweep& sweep = chain.sweeps[s];
    return s + 1 == chain.sweep_count && sweep.factors == 2 && sweep.ring == 4;
  }

  // The last sweep, over a ring of four.
  void pair_of_four(const Sweep& sweep, int64_t r, Rows<const A> input, Target<A> target) const {
    A* to[4];
    const A* grad[4];
    Walk walk = {r, sweep.step, problem.length};
    if (!this->in_place) this->copy_rows(problem.grad, walk, 4, tile.grad);
    for (int i = 0; i < 4; ++i) {
      to[i] = target.at(i);
      grad[i] = this->in_place
                    ? this->template operand<const A>(problem.grad) + walk.next() * problem.grad.row
                    : tile.grad + i * row;
    }
    const auto weights = this->weights(sweep, r);
    const Rows<A> middle_grad = {tile.middle_grad, row};
    if (chain.residual == Residual::kPrevious) {
      gradients_of_four<true>(to, tile.dots, weights, grad, input, middle_grad, span);
    } else {
      gradients_of_four<false>(to, tile.dots, weights, grad, input, middle_grad, span);
    }
    walk.position = r;
    put_pair_dots(sweep, walk, 4);
  }

  // One factor with any links.
  void factor(const Sweep& sweep, int64_t r, const A* grad, Rows<const A> input,
              const Target<A>& target) const {
    // Packed, as the transpose reads every row of weights once for each link.
    this->pack_weights(sweep, r, this->packed, problem.links);
    const auto gradients_of = [&](RowPart part, A*) {
      factor_rows(sweep, r, grad, input, part, target);
    };
    if (target.walks) return gradients_of({0, sweep.ring}, nullptr);
    this->share_rows(sweep.ring, gradients_of);
  }

  void factor_rows(const Sweep& sweep, int64_t r, const A* grad, Rows<const A> input, RowPart part,
                   const Target<A>& target) const {
    Rows<const A> plus = {};
    if (chain.residual == Residual::kPrevious) plus = {grad, row};
    if (initial_grad != nullptr) {
      for (int64_t e = part.begin * row; e < part.end * row; ++e) initial_grad[e] += grad[e];
      if (sweep.first == 0) plus = {initial_grad, row};
    }
    const RingWeights<A> weights = {this->packed, problem.links, 1};
    gather_ring<false>(Direction::kTransposed, Rows<const A>{grad, row}, weights, sweep.offsets,
                       problem.links, sweep.ring, part, span, target, plus);
    factor_dots(sweep, r, grad, input, part);
  }

  void factor_dots(const Sweep& sweep, int64_t r, const A* grad, Rows<const A> input,
                   RowPart part) const {
    A* const first = dots + sweep.first * chain.dots_factor;
    const int64_t ahead = kRowsAhead * sweep.step * problem.dots.row;
    Walk walk = Walk{r, sweep.step, problem.length}.after(part.begin);
    Stretch stretch;
    int64_t distance[kMaxLinks];
    for (int64_t begin = part.begin; begin < part.end; begin = stretch.end) {
      find_stretch(sweep.offsets, problem.links, sweep.ring, Direction::kForward, begin, part.end,
                   stretch);
      for (int k = 0; k < problem.links; ++k) distance[k] = stretch.shift[k] * input.row;
      const FarLinks far_links(stretch, problem.links, sweep.ring, input.row);
      for (int64_t p = begin; p < stretch.end; ++p) {
        A* const to = first + walk.next() * problem.dots.row;
        far_links(input.at(p), span);
        if (sweep.ring >= kFarRing) prefetch<true>(to + ahead, problem.links);
        const auto links = [&]<int kLinks>(int k) PARAMIXER_INLINE_LAMBDA {
          A sums[kLinks];
          dot_links<kLinks>(sums, grad + p * row, input.at(p), distance + k, span);
          put_dots(to + k, sums, kLinks);
        };
        int k = 0;
        for (; k + 8 <= problem.links; k += 8) links.template operator()<8>(k);
        for (; k + 4 <= problem.links; k += 4) links.template operator()<4>(k);
        for (; k + 3 <= problem.links; k += 3) links.template operator()<3>(k);
        for (; k < problem.links; ++k) links.template operator()<1>(k);
      }
    }
  }

  // From sweep s on, for the ring r: the gradient of `input` goes to `target`.
  void run(int s, int64_t r, Rows<const A> input, const Target<A>& target, Gradients gradients,
           A* free) const {
    const Sweep& sweep = chain.sweeps[s];
    const bool is_last = s + 1 == chain.sweep_count;
    if (s == this->near_sweep) prefetch_operands(sweep, r);
    if (ends_in_four(s)) return pair_of_four(sweep, r, input, target);
    if (sweep.factors == 1) {
      if (is_last) {
        this->copy_ring(problem.grad, {r, sweep.step, problem.length}, sweep.ring, gradients.here);
      } else {
        run_classes(s, r, this->weights(sweep, r), input, gradients, free);
      }
      return factor(sweep, r, gradients.here, input, target);
    }
    const auto weights = weights_with_halo(sweep, r, free + kHalo * kPairRow);
    free += (sweep.ring + 2 * kHalo) * kPairRow;
    Target<A> source = {};
    if (!is_last) source = run_classes(s, r, weights, input, gradients, free);
    if (s > 0) return pair(sweep, r, weights, source, input, true, {0, sweep.ring}, target);
    // The first sweep writes over nothing that it reads, so a team can share its rows.
    this->share_rows(sweep.ring, [&](RowPart part, A* scratch) {
      const auto whole = [&](const BackwardTask& task) {
        task.pair(sweep, r, weights, source, input, false, part, target);
      };
      if (scratch == nullptr) return whole(*this);
      whole(member(scratch, 0));
    });
  }

  // Sweep s and, for each class of its result, all that follow; returns where they have left the
  // gradient of the result. Pairs that follow a pair write it over their input, kHalo rows further
  // ahead, where they read no more; others to gradients.here.
  Target<A> run_classes(int s, int64_t r, const RingWeights<A>& weights, Rows<const A> input,
                        Gradients gradients, A* free) const {
    const Sweep& sweep = chain.sweeps[s];
    const Deal& deal = sweep.deal;
    const bool next_is_pair = chain.sweeps[s + 1].factors == 2;
    const bool over_input = sweep.factors == 2 && next_is_pair;
    const int64_t size = scratch_ring(deal.rows, row), ahead = kHalo * row;
    A* const states = take(free, deal.rows);
    free += (deal.classes - 1) * size;
    this->template apply<false>(sweep, weights, input, this->dealt_rows(states, deal, size));
    const auto run_class = [&](const BackwardTask& task, int64_t c, A* free) {
      A* const state = states + c * size;
      if (next_is_pair && !ends_in_four(s + 1)) close(state, deal.rows);
      const bool takes = s + 1 == first_kept || (s + 1 > first_kept && deal.classes > 1);
      const Gradients next =
          takes ? take_gradients(free, deal.rows) : Gradients{gradients.next, gradients.here};
      task.run(s + 1, r + c * sweep.step, Rows<const A>{state, row},
               over_input ? this->rows_in_order(state - ahead, deal.rows)
                          : this->rows_of(gradients.here, row, c, deal.deal, deal.rows, sweep.ring),
               next, free);
    };
    if (this->team == nullptr || deal.classes == 1) {
      for (int64_t c = 0; c < deal.classes; ++c) run_class(*this, c, free);
    } else {
      this->on_team(deal.classes, [&](int64_t c, A* scratch) {
        const BackwardTask alone = member(scratch, deal.rows);
        run_class(alone, c, scratch);
      });
    }
    return over_input ? this->dealt_rows(states - ahead, deal, size)
                      : this->rows_in_order(gradients.here, sweep.ring);
  }
};

template <DType kDType, typename A>
void chain_backward(const ChainProblem& chain, const ChainTask& channels, bool, void* scratch) {
  const Problem& problem = chain.problem;
  A* free = static_cast<A*>(scratch);
  BackwardTask<A> task(chain, kDType, channels, Pass::kBackward, free);
  if (!task.in_place) task.copy_value();
  task.dots = static_cast<A*>(problem.dots.data) + batch_offset(problem, problem.dots, task.batch);
  if (chain.residual == Residual::kInitial) {
    task.initial_grad = free;
    free += problem.length * task.row;
    __builtin_memset(task.initial_grad, 0, problem.length * task.row * sizeof(A));
  }
  task.take_tile(free);
  typename BackwardTask<A>::Gradients gradients;
  if (task.first_kept == 0) gradients = task.take_gradients(free, problem.length);
  task.run(0, 0, task.value, task.rows_of_result(0, chain.sweeps[0]), gradients, free);
  if (!task.in_place) task.round_result();
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
