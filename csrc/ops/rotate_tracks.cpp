// rotate_tracks on the keys that move no data. Autograd is in autograd.cpp, kernels in cpu/ and
// cuda/.

#include "ops/rotate_tracks.h"

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>

#include "ops/check.h"
#include "ops/operators.h"
#include "paramixer/paramixer.h"

namespace paramixer {

at::Tensor rotate_tracks(const at::Tensor& value, at::IntArrayRef shifts,
                         const std::optional<at::Tensor>& lengths) {
  static const auto op = ops::find_operator<ops::RotateTracks>("paramixer::rotate_tracks");
  return op.call(value, shifts, lengths);
}

namespace ops {

at::Tensor allocate_rotate_tracks(const at::Tensor& value, at::IntArrayRef shifts,
                                  const std::optional<at::Tensor>& lengths) {
  check_rotate_tracks(value, shifts, lengths);
  return at::empty_like(value);
}

void check_ring_lengths(const at::Tensor& value, const std::optional<at::Tensor>& lengths) {
  if (!lengths.has_value()) return;
  const at::Tensor rings = lengths->contiguous();
  const auto* const first = rings.const_data_ptr<int64_t>();
  const auto* const last = first + rings.numel();
  const int64_t length = value.size(-2);
  const auto* const wrong =
      std::find_if(first, last, [&](int64_t ring) { return ring < 0 || ring > length; });
  TORCH_CHECK_VALUE(wrong == last,
                    "rotate_tracks: lengths must be at least 0 and at most N = ", length, " (got ",
                    *wrong, ")");
}

PreparedRotation::PreparedRotation(const at::Tensor& value, at::IntArrayRef shifts,
                                   const std::optional<at::Tensor>& lengths,
                                   const at::Tensor& result, ChannelStride channel_stride)
    : problem_({.value = value, .result = result}, shifts, channel_stride),
      rotation_{problem_.problem()} {
  if (!lengths.has_value()) return;
  lengths_ = lengths->contiguous();
  rotation_.lengths = lengths_.const_data_ptr<int64_t>();
  std::copy(shifts.begin(), shifts.end(), rotation_.problem.offsets);
}

namespace {

TORCH_LIBRARY_IMPL(paramixer, Meta, m) { m.impl("rotate_tracks", &allocate_rotate_tracks); }

// Autocast chooses the dtype of arithmetic; what only moves data keeps its own, as torch.roll does.
TORCH_LIBRARY_IMPL(paramixer, AutocastCPU, m) {
  m.impl("rotate_tracks", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(paramixer, AutocastCUDA, m) {
  m.impl("rotate_tracks", torch::CppFunction::makeFallthrough());
}

}  // namespace
}  // namespace ops
}  // namespace paramixer
