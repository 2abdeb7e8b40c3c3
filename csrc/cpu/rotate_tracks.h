// The CPU kernel of rotate_tracks, torch-free and thread-free. It moves bytes and computes nothing,
// so one compilation serves every instruction set and every dtype of a size.
#pragma once

#include <cstdint>

#include "core/rotation.h"
#include "cpu/kernels.h"

namespace paramixer::cpu {

// Writes the rows in `range` of the result, which has at least one channel. Channels must have a
// column stride of one, and lengths must lie in [0, N].
void rotate_tracks(const Rotation& rotation, int64_t element_bytes, RowRange range);

}  // namespace paramixer::cpu
