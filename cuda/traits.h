// The compile-time numbers of the CUDA kernels, all that there is to tune (scripts/tune.py sweep).
// Torch-free and CUDA-free.
#pragma once

#include <cstdint>
#include <limits>

#include "core/problem.h"

namespace paramixer::cuda {

struct Traits {
  static constexpr int kWarp = 32;
  static constexpr int kThreads = 256;
  // Leaves 128 registers to a thread. Without a number ptxas aims at full multiprocessors and
  // spills to get there.
  static constexpr int kBlocksPerSM = 2;
  // The widest access of one thread, and the line that the lanes of one row read together.
  static constexpr int kVectorBytes = 16;
  static constexpr int kLineBytes = 128;
  // Links whose loads a thread has in flight at once.
  static constexpr int kLinksInFlight = 4;
  // Links whose partial dots a thread keeps in registers; more of them take further passes.
  static constexpr int kLinksPerPass = 8;
  // Enough blocks to fill any GPU for hundreds of waves; larger problems loop.
  static constexpr int64_t kMaxBlocks = int64_t{1} << 20;
  // A 32-bit loop counter may step once beyond the last item, by one item per thread of the grid.
  static constexpr int64_t kMaxIndex32 =
      std::numeric_limits<int32_t>::max() - kMaxBlocks * kThreads;
};

// Of the kernels that take a tile of rows through several factors of a chain.
struct TileTraits {
  static constexpr int kThreads = 256;  // at most
  static constexpr int kBlocksPerSM = 2;
  // What every architecture gives a block; on those with more, further blocks hide each other's
  // waiting.
  static constexpr int64_t kSharedBytes = 99 * 1024;
  // A row of a tile of any number of links is at most so many 16-byte accesses: wider rows use
  // whole sectors, narrower ones make longer tiles.
  static constexpr int kMostPieces = 4;
  // Rows of a chain of neighbours that a thread takes through two factors of three links in
  // registers, of which it reads 6 more; one more than a multiple of 8, so that neighbouring
  // segments begin in different banks. Chains of fewer rows than the least are not worth it;
  // backward a walk ends early where no chain has more.
  static constexpr int kSegment = 9;
  static constexpr int kLeastSegment = 6;
  static constexpr int kLeastSegmentBack = 4;
  // For which blocks share the groups of channels of a tile: two on each of 132 multiprocessors.
  static constexpr int64_t kBlocksAtOnce = 264;
  // Of a launch; its offsets travel in the kernel's parameters.
  static constexpr int kMostFactors = 16;
  static constexpr int kMostOffsets = 256;
  // With a window: rows whose sums a thread makes together, as offsets and addresses serve them
  // all.
  static constexpr int kWindowRows = 2;
};

// Of the kernels that take a tile through composed bands (BandTraits in band_pass.h).
struct BandKnobs {
  static constexpr int kThreads = 256;
  // Of a tile, a power of two.
  static constexpr int kRows = 512;
  // Up to five links, and more, of which blocks keep more in shared memory.
  static constexpr int kBlocksPerSM = 2;
  static constexpr int kBlocksPerSMOfMany = 1;
};

static_assert(TileTraits::kThreads % Traits::kWarp == 0 && TileTraits::kThreads <= 1024);
static_assert((TileTraits::kMostPieces & (TileTraits::kMostPieces - 1)) == 0);
static_assert(TileTraits::kSegment % 8 == 1, "segments begin in different banks");
static_assert(TileTraits::kLeastSegment >= 1 && TileTraits::kLeastSegment <= TileTraits::kSegment);
static_assert(TileTraits::kLeastSegmentBack >= 1 &&
              TileTraits::kLeastSegmentBack <= TileTraits::kSegment);
static_assert(TileTraits::kMostOffsets >= kMaxLinks, "a launch takes at least one factor");

static_assert(Traits::kThreads % Traits::kWarp == 0, "shuffles need whole warps");
static_assert(Traits::kThreads <= 1024);
static_assert(Traits::kLineBytes / Traits::kVectorBytes <= Traits::kWarp);
static_assert(Traits::kLinksPerPass % Traits::kLinksInFlight == 0);
static_assert(Traits::kMaxIndex32 > 0);
static_assert(Traits::kMaxBlocks <= std::numeric_limits<int32_t>::max(), "limit of gridDim.x");

}  // namespace paramixer::cuda
