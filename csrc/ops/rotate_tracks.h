// rotate_tracks: its type, and what the keys that move data share.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "core/rotation.h"
#include "ops/prepare.h"

namespace paramixer::ops {

using RotateTracks = at::Tensor(const at::Tensor& value, at::IntArrayRef shifts,
                                const std::optional<at::Tensor>& lengths);

// Checks the arguments, then allocates the result, at::empty_like of the value; no data is read and
// sizes may be symbolic.
RotateTracks allocate_rotate_tracks;

// What the check above cannot say: 0 <= lengths <= N. For tensors in host memory.
void check_ring_lengths(const at::Tensor& value, const std::optional<at::Tensor>& lengths);

// Operands as a Rotation; copies and temporaries are those of PreparedProblem.
class PreparedRotation {
 public:
  PreparedRotation(const at::Tensor& value, at::IntArrayRef shifts,
                   const std::optional<at::Tensor>& lengths, const at::Tensor& result,
                   ChannelStride channel_stride);

  const Rotation& rotation() const { return rotation_; }
  int64_t rows() const { return problem_.rows(); }
  void finish() { problem_.finish(); }

 private:
  PreparedProblem problem_;
  at::Tensor lengths_;
  Rotation rotation_;
};

}  // namespace paramixer::ops
