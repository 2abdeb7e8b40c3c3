// A rotation of channel tracks as the kernels see it, passed by value.
//
//   result[i,c] = value[(i + o_t) mod L, c]   for i < L,   0 for L <= i < N,   t = c / (D / T)
//
// The D channels are cut into T tracks of equal width; each sequence of the batch is a ring of its
// own length L, and what lies behind it is padding. Torch-free; compiles for host and device.
#pragma once

#include "core/problem.h"

namespace paramixer {

struct Rotation {
  // Its links are the T tracks and its offsets their shifts o_t, which are reduced to [0, N) only
  // where every ring has N rows. Only value and result are used.
  Problem problem;
  const int64_t* lengths = nullptr;  // L of every batch item; null where it is N

  PARAMIXER_INLINE int64_t track_width() const { return problem.channels / problem.links; }
};

}  // namespace paramixer
