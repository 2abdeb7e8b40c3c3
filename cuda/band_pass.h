// Composed bands: what one pass does, which factors it can take, and how it is cut into blocks. The
// launch and the host emulator both ask here. Torch-free and CUDA-free.
//
// Factor f of a pass (f = 0, 1, ..) links rows j step 2^f apart, |j| <= reach = (K - 1) / 2. The
// step cuts the ring of N rows into gcd(N, step) classes that never meet: rows r, r + step,
// r + 2 step, .. (mod N). Along a class the links are j 2^f, so kMerged consecutive factors are one
// band matrix of reach (2^kMerged - 1) links to either side.
//
// A block keeps a tile of a class on chip: the whole class where that fits (a closed tile), or a
// stretch of it with a margin on either side, which every factor uses up a part of (a halo tile).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>

#include "core/problem.h"
#include "launch_shape.h"
#include "traits.h"

namespace paramixer::cuda {

inline constexpr int kMaxBandLinks = 9;
inline constexpr int kMaxPassFactors = 10;

// result = S_{F-1} .. S_0 value, or, transposed, S_0^T .. S_{F-1}^T value; `keep` adds the identity
// to every factor (residual "previous").
struct BandPass {
  Problem problem;            // weight is that of factor 0; offsets, grad and dots are not used
  int64_t weight_factor = 0;  // elements from one factor's weights to the next one's
  int32_t factors = 0;        // F
  int64_t step = 1;           // in [0, N)
  bool keep = false;
  bool transpose = false;
  // column[f][reach + j] of factor f holds the weight of the link to row i + j step 2^f.
  int8_t column[kMaxPassFactors][kMaxBandLinks] = {};
};

// The compile-time numbers of the kernel for K links.
template <int kLinksPerRow>
struct BandTraits {
  static constexpr int kLinks = kLinksPerRow;
  static constexpr int kReach = (kLinks - 1) / 2;
  // Merging costs kLinks times the work of the factors before, and widens the band: three factors
  // of three links, else two.
  static constexpr int kMerged = kLinks == 3 ? 3 : 2;
  static constexpr int kBandReach = kReach * ((1 << kMerged) - 1);
  static constexpr int kTaps = 2 * kBandReach + 1;

  // A tile: at most kRows rows of a class, always a power of two, and kChannels channels.
  static constexpr int kRows = BandKnobs::kRows;
  static constexpr int kChannels = 64;
  static constexpr int kRowChunks = kChannels / 8;  // of 16 bytes
  static constexpr int kThreads = BandKnobs::kThreads;
  static constexpr int kWarps = kThreads / cuda::Traits::kWarp;
  static constexpr int kBlocksPerSM =
      kLinks <= 5 ? BandKnobs::kBlocksPerSM : BandKnobs::kBlocksPerSMOfMany;

  // mma.m16n8k16: a warp multiplies 16 rows of the band with a window of 16 kSteps rows of the
  // tile, which begins kMargin rows before the first of them.
  static constexpr int kMmaRows = 16;
  static constexpr int kMargin = detail::round_up(kBandReach, 8);
  static constexpr int kSteps = (kMmaRows + 2 * kMargin) / 16;
  // Groups of 16 rows whose results a warp holds until all warps have read: 16 registers each.
  static constexpr int kHeld = kRows / kMmaRows / kWarps;

  // A row of the band in shared memory: its taps in pairs, at one of two parities.
  static constexpr int kTapWords = (kTaps + 1) / 2;
  static constexpr int kBandWords = detail::round_up(kTapWords, 4);
  // A row's weights in shared memory: as they come, in words that may begin one element early, and
  // then factor by factor in units of four elements. Strides of 2, 6, 10, .. words keep the rows
  // that half a warp reads in different banks.
  static constexpr int kWeightWords = (kMerged * kLinks + 2) / 2;
  static constexpr int kFactorWeights = detail::round_up(kLinks, 4);
  static constexpr int kWeightStride = detail::round_up(kMerged * kFactorWeights / 2 - 2, 4) + 2;
};

// A block's part of a pass.
struct BandPlace {
  int64_t weight, value, result;  // elements before its batch item, and its channels
  int32_t first_row;              // of its class, on the ring
  int32_t first_position;         // along the class, of the first row that it computes
  int32_t rows, channels;         // of its tile that exist, margins included
};

// What a block keeps in shared memory.
template <typename Traits>
struct alignas(16) BandShared {
  uint16_t value[Traits::kRows * Traits::kChannels];
  uint32_t band[Traits::kRows * Traits::kBandWords];
  uint32_t weight[Traits::kRows * Traits::kWeightStride];
  BandPlace place;
  int32_t row[Traits::kRows];  // of the ring, by row of the tile
};

namespace detail {

template <typename Traits>
constexpr bool band_traits_are_sound() {
  static_assert(Traits::kLinks % 2 == 1 && Traits::kLinks <= kMaxBandLinks);
  static_assert((Traits::kMmaRows + 2 * Traits::kMargin) % 16 == 0);
  static_assert(Traits::kHeld * Traits::kMmaRows * Traits::kWarps == Traits::kRows);
  static_assert((Traits::kRows & (Traits::kRows - 1)) == 0);
  static_assert(Traits::kRowChunks == 8, "the swizzle permutes 8 chunks");
  static_assert(Traits::kThreads % Traits::kRowChunks == 0);
  static_assert(Traits::kWeightWords <= Traits::kWeightStride, "weights are unpacked in place");
  // What a multiprocessor of compute capability 9.0 and 10.0 has, less 1 KiB a block.
  static_assert(Traits::kBlocksPerSM * (sizeof(BandShared<Traits>) + 1024) <= 228 * 1024);
  return true;
}
static_assert(band_traits_are_sound<BandTraits<3>>() && band_traits_are_sound<BandTraits<5>>() &&
              band_traits_are_sound<BandTraits<7>>() && band_traits_are_sound<BandTraits<9>>());

}  // namespace detail

// How a pass is cut into blocks.
struct BandShape {
  int rows = 0;    // of a tile; 0 where the pass cannot be served
  int margin = 0;  // rows on either side of a tile that it does not compute; 0 in a closed tile
  int64_t ring = 0;
  int64_t classes = 0;
  int64_t tiles = 0;  // of a class
  int channels = 0;   // of a tile
  int64_t channel_tiles = 0;
  int64_t blocks = 0;
  int threads = 0;
  size_t shared_bytes = 0;
  // Elements that one access moves: 8, 2, or 1 with any stride.
  int value_width = 1;
  int result_width = 1;
  bool packed_weights = false;  // the weights of consecutive factors lie side by side
};

namespace detail {

template <typename Traits>
void set_tile(const BandPass& pass, BandShape& shape) {
  // Every class of the last band has rows, whole groups of 16 or fewer than one.
  const int last_shift = (pass.factors - 1) / Traits::kMerged * Traits::kMerged;
  const bool is_power = (shape.ring & (shape.ring - 1)) == 0;
  if (is_power && shape.ring <= Traits::kRows && shape.ring >> last_shift > 0) {
    shape.rows = static_cast<int>(shape.ring);
    shape.tiles = 1;
    return;
  }
  const int64_t margin = Traits::kReach * ((int64_t{1} << pass.factors) - 1);
  if (2 * margin + Traits::kMmaRows > Traits::kRows) return;
  int rows = std::max(Traits::kMmaRows, 1 << last_shift);
  while (rows < Traits::kRows && rows < shape.ring + 2 * margin) rows *= 2;
  shape.margin = static_cast<int>(margin);
  shape.rows = rows;
  shape.tiles = ceil_div(shape.ring, rows - 2 * margin);
}

inline int widest_access(const Problem& problem, const Operand& operand) {
  for (const int width : {8, 2}) {
    if (rows_are_aligned(problem, operand, width, sizeof(uint16_t))) return width;
  }
  return 1;
}

template <typename Traits>
BandShape band_shape_for(const BandPass& pass) {
  const Problem& problem = pass.problem;
  BandShape shape;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  // Row numbers, and a step beyond them, are 32-bit numbers in the kernel; so are strides of rows.
  if (problem.length > kMost / 2) return shape;
  for (const Operand* operand : {&problem.weight, &problem.value, &problem.result}) {
    if (operand->row > kMost) return shape;
  }
  shape.classes = std::gcd(problem.length, pass.step);
  shape.ring = problem.length / shape.classes;
  set_tile<Traits>(pass, shape);
  shape.channels = Traits::kChannels;
  shape.channel_tiles = ceil_div(problem.channels, Traits::kChannels);
  shape.blocks = shape.channel_tiles * shape.classes * shape.tiles * batch_count(problem);
  if (shape.blocks > kMost) shape.rows = 0;
  shape.threads = Traits::kThreads;
  shape.shared_bytes = sizeof(BandShared<Traits>);
  shape.value_width = widest_access(problem, problem.value);
  shape.result_width = widest_access(problem, problem.result);
  shape.packed_weights = problem.weight.column == 1 && pass.weight_factor == problem.links;
  return shape;
}

}  // namespace detail

// For a pass with K = 3, 5, 7 or 9; `rows` is 0 for any other, and where no tile can hold it.
inline BandShape band_shape(const BandPass& pass) {
  if (pass.factors < 1 || pass.factors > kMaxPassFactors) return {};
  switch (pass.problem.links) {
    case 3:
      return detail::band_shape_for<BandTraits<3>>(pass);
    case 5:
      return detail::band_shape_for<BandTraits<5>>(pass);
    case 7:
      return detail::band_shape_for<BandTraits<7>>(pass);
    case 9:
      return detail::band_shape_for<BandTraits<9>>(pass);
  }
  return {};
}

// Whether launch_band_pass runs this pass on a device whose blocks can have `shared_limit` bytes of
// shared memory (cudaDevAttrMaxSharedMemoryPerBlockOptin).
inline bool band_serves(DType dtype, const BandPass& pass, size_t shared_limit) {
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16) return false;
  const BandShape shape = band_shape(pass);
  return shape.rows > 0 && shape.shared_bytes <= shared_limit;
}

}  // namespace paramixer::cuda
