// The CUDA key: the checks and layouts of every other key, then one kernel on the current stream.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "launch.h"
#include "ops/prepare.h"
#include "ops/rotate_tracks.h"

namespace paramixer::cuda {
namespace {

using Launch = cudaError_t(DType, const Problem&, cudaStream_t);

void run(Launch* launch, const ops::Operands& operands, at::IntArrayRef offsets) {
  const c10::cuda::CUDAGuard guard(operands.value.device());
  ops::PreparedProblem prepared(operands, offsets, ops::ChannelStride::kAny);
  C10_CUDA_CHECK(launch(prepared.dtype(), prepared.problem(), c10::cuda::getCurrentCUDAStream()));
  prepared.finish();
}

at::Tensor mix_with(const char* op, Launch* launch, const at::Tensor& weight,
                    const at::Tensor& value, at::IntArrayRef offsets) {
  at::Tensor result = ops::allocate_mix(op, weight, value, offsets);
  if (result.numel() == 0) return result;
  run(launch, {.weight = weight, .value = value, .result = result}, offsets);
  return result;
}

at::Tensor mix_key(const at::Tensor& weight, const at::Tensor& value, at::IntArrayRef offsets) {
  return mix_with("mix", &mix, weight, value, offsets);
}

at::Tensor mix_transpose_key(const at::Tensor& weight, const at::Tensor& value,
                             at::IntArrayRef offsets) {
  return mix_with("mix_transpose", &mix_transpose, weight, value, offsets);
}

at::Tensor link_dot_key(const at::Tensor& grad, const at::Tensor& value, at::IntArrayRef offsets) {
  at::Tensor dots = ops::allocate_link_dot(grad, value, offsets);
  if (dots.numel() == 0) return dots;
  run(&link_dot, {.value = value, .grad = grad, .dots = dots}, offsets);
  return dots;
}

std::tuple<at::Tensor, at::Tensor> mix_backward_key(const at::Tensor& grad,
                                                    const at::Tensor& weight,
                                                    const at::Tensor& value,
                                                    at::IntArrayRef offsets) {
  auto [dots, result] = ops::allocate_mix_backward(grad, weight, value, offsets);
  if (result.numel() == 0) return {dots.zero_(), result};
  run(&mix_backward,
      {.weight = weight, .value = value, .grad = grad, .result = result, .dots = dots}, offsets);
  return {dots, result};
}

at::Tensor rotate_tracks_key(const at::Tensor& value, at::IntArrayRef shifts,
                             const std::optional<at::Tensor>& lengths) {
  at::Tensor result = ops::allocate_rotate_tracks(value, shifts, lengths);
  if (result.numel() == 0) return result;
  const c10::cuda::CUDAGuard guard(value.device());
  ops::PreparedRotation prepared(value, shifts, lengths, result, ops::ChannelStride::kAny);
  C10_CUDA_CHECK(rotate_tracks(static_cast<int>(value.element_size()), prepared.rotation(),
                               c10::cuda::getCurrentCUDAStream()));
  prepared.finish();
  return result;
}

TORCH_LIBRARY_IMPL(paramixer, CUDA, m) {
  m.impl("mix", &mix_key);
  m.impl("mix_transpose", &mix_transpose_key);
  m.impl("link_dot", &link_dot_key);
  m.impl("mix_backward", &mix_backward_key);
  m.impl("rotate_tracks", &rotate_tracks_key);
}

}  // namespace
}  // namespace paramixer::cuda
