// The CPU key of rotate_tracks: rows are shared over threads.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu/rotate_tracks.h"
#include "ops/rotate_tracks.h"

#ifndef _OPENMP
#error "at::parallel_for is silently serial in a file that is compiled without OpenMP"
#endif

namespace paramixer::cpu {
namespace {

// Bytes below which a second thread costs more than it brings.
constexpr int64_t kGrainBytes = 65536;

at::Tensor rotate_tracks_key(const at::Tensor& value, at::IntArrayRef shifts,
                             const std::optional<at::Tensor>& lengths) {
  at::Tensor result = ops::allocate_rotate_tracks(value, shifts, lengths);
  ops::check_ring_lengths(value, lengths);
  if (result.numel() == 0) return result;
  ops::PreparedRotation prepared(value, shifts, lengths, result, ops::ChannelStride::kOne);
  const int64_t element_bytes = value.element_size();
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (value.size(-1) * element_bytes));
  at::parallel_for(0, prepared.rows(), grain, [&](int64_t begin, int64_t end) {
    rotate_tracks(prepared.rotation(), element_bytes, {begin, end});
  });
  prepared.finish();
  return result;
}

TORCH_LIBRARY_IMPL(paramixer, CPU, m) { m.impl("rotate_tracks", &rotate_tracks_key); }

}  // namespace
}  // namespace paramixer::cpu
