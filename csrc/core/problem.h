// One sparse factor as the kernels see it: sizes, strides, offsets and pointers, passed by value.
//
//   mix:            result[i,c] = sum_k weight[i,k] value[(i + o_k) mod N, c]
//   mix_transpose:  result[j,c] = sum_k weight[(j - o_k) mod N, k] value[(j - o_k) mod N, c]
//   link_dot:       dots[i,k]   = sum_c grad[i,c] value[(i + o_k) mod N, c]
//   mix_backward:   dots as link_dot, and result as mix_transpose with grad in place of value
//
// Torch-free; compiles for host and device.
#pragma once

#include <cstdint>

#include "core/numeric.h"

namespace paramixer {

// The operators, as described above.
enum class Kernel : int { kMix, kMixTranspose, kLinkDot, kMixBackward };
inline constexpr int kKernelCount = 4;

// What a factor of a chain adds to its product: nothing, its input, or the chain's value.
enum class Residual : int { kNone, kPrevious, kInitial };

inline constexpr int kMaxLinks = 64;
inline constexpr int kMaxBatchDims = 4;

// One operand, (batch..., N, columns): columns are links or channels. Strides count elements and
// may be zero (broadcast); torch has no negative ones. `data` is the first element.
struct Operand {
  void* data = nullptr;
  int64_t batch[kMaxBatchDims] = {};
  int64_t row = 0;
  int64_t column = 0;
};

struct Problem {
  int64_t length = 0;    // N, the ring
  int64_t channels = 0;  // D
  int32_t links = 0;     // K <= kMaxLinks
  int32_t batch_dims = 0;
  int64_t batch_sizes[kMaxBatchDims] = {};  // outermost first
  int64_t offsets[kMaxLinks] = {};          // reduced to [0, N)
  Operand weight;                           // (B, N, K), read
  Operand value;                            // (B, N, D), read
  Operand grad;                             // (B, N, D), read
  Operand result;                           // (B, N, D), written
  Operand dots;                             // (B, N, K), written
};

// Where a sweep leaves row p = q + deal s of a ring: in class class_of[q], as its row start[q] + s.
// The next sweep's step is `deal` times as large, and its classes lie one behind the other.
struct Deal {
  static constexpr int kMost = 4;
  int deal = 1;
  int64_t classes = 1;
  int64_t rows = 0;  // of each class
  int64_t class_of[kMost] = {};
  int64_t start[kMost] = {};
};

// One pass over the rows of every ring of a step, with one factor or several; see
// core/chain_plan.h.
struct Sweep {
  int first = 0;        // the first factor, counted from 0
  int factors = 1;      // 2 without tiles: a pair, links 0, 1, -1 and then 0, 2, -2
  int columns[6] = {};  // of a pair's links in the weights of each factor
  int64_t step = 1;     // in [0, N): rows r, r + step, r + 2 step, .. (mod N) form a ring,
  int64_t classes = 1;  // for r = 0 .. classes - 1,
  int64_t ring = 0;     // of so many rows
  Deal deal;
  const int64_t* offsets = nullptr;  // K a factor, counted along the ring, in [0, ring)
  // In plans in tiles: the rows of a ring that are written together, the rows on either side that
  // their links reach, and the channels of a tile. tile = ring is a whole ring, which has no sides.
  int64_t tile = 0;  // 0: no tiles
  int64_t halo = 0;
  int64_t channels = 0;
  bool bands = false;  // the factors of a tile are merged into bands, for tensor cores
  // Of a single factor: rows on chip, `halo` of them before the tile, that serve the links which
  // stay among them; other links read memory. 0: no window.
  int64_t window = 0;
};

// A chain of factors. `problem` is that of the first factor, but for its offsets; weight and dots
// of the others lie `weight_factor` and `dots_factor` elements behind it.
struct ChainProblem {
  Problem problem;
  int64_t weight_factor = 0;
  int64_t dots_factor = 0;
  int32_t factors = 0;
  Residual residual = Residual::kNone;
  const Sweep* sweeps = nullptr;
  int32_t sweep_count = 0;
};

// The first sweep that keeps the gradient of its result in a buffer of its own: one of a single
// factor, or of a pair before such a one. Pairs before pairs leave it over the state itself.
// sweep_count: there is none.
PARAMIXER_INLINE int first_kept_gradient(const ChainProblem& chain) {
  int s = 0;
  while (s < chain.sweep_count && chain.sweeps[s].factors != 1 &&
         (s + 1 == chain.sweep_count || chain.sweeps[s + 1].factors != 1)) {
    ++s;
  }
  return s;
}

// The offset as a non-negative shift along a ring of `length` positions.
PARAMIXER_INLINE int64_t reduce_offset(int64_t offset, int64_t length) {
  const int64_t remainder = offset % length;
  return remainder < 0 ? remainder + length : remainder;
}

// `position` in [0, 2 * length) brought back onto the ring, without a division.
template <typename Index>
PARAMIXER_INLINE Index wrap(Index position, Index length) {
  return position >= length ? position - length : position;
}

PARAMIXER_INLINE int64_t batch_count(const Problem& problem) {
  int64_t count = 1;
  for (int d = 0; d < problem.batch_dims; ++d) count *= problem.batch_sizes[d];
  return count;
}

// Elements between an operand's first element and the first element of its batch item `batch`.
PARAMIXER_INLINE int64_t batch_offset(const Problem& problem, const Operand& operand,
                                      int64_t batch) {
  int64_t offset = 0;
  for (int d = problem.batch_dims - 1; d >= 0; --d) {
    offset += (batch % problem.batch_sizes[d]) * operand.batch[d];
    batch /= problem.batch_sizes[d];
  }
  return offset;
}

// The largest distance in elements between two elements of an operand with `columns` columns:
// 32-bit indices serve when it fits for every operand.
PARAMIXER_INLINE int64_t extent(const Problem& problem, const Operand& operand, int64_t columns) {
  int64_t last = (problem.length - 1) * operand.row + (columns - 1) * operand.column;
  for (int d = 0; d < problem.batch_dims; ++d)
    last += (problem.batch_sizes[d] - 1) * operand.batch[d];
  return last;
}

}  // namespace paramixer
