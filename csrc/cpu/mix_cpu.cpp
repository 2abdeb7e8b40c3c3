// The CPU key: rows are shared over threads, each row is computed by one of them.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu/kernels.h"
#include "ops/prepare.h"

#ifndef _OPENMP
#error "at::parallel_for is silently serial in a file that is compiled without OpenMP"
#endif

namespace paramixer::cpu {
namespace {

// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kGrain = 32768;

void run(Kernel kernel, const ops::Operands& operands, at::IntArrayRef offsets) {
  ops::PreparedProblem prepared(operands, offsets, ops::ChannelStride::kOne);
  const Problem& problem = prepared.problem();
  const RowKernel rows = selected_instruction_set().kernel(prepared.dtype(), kernel);
  const int64_t grain =
      std::max<int64_t>(1, kGrain / std::max<int64_t>(1, problem.channels * problem.links));
  at::parallel_for(0, prepared.rows(), grain,
                   [&](int64_t begin, int64_t end) { rows(problem, {begin, end}); });
  prepared.finish();
}

at::Tensor mix(const at::Tensor& weight, const at::Tensor& value, at::IntArrayRef offsets) {
  at::Tensor result = ops::allocate_mix("mix", weight, value, offsets);
  if (result.numel() != 0)
    run(Kernel::kMix, {.weight = weight, .value = value, .result = result}, offsets);
  return result;
}

at::Tensor mix_transpose(const at::Tensor& weight, const at::Tensor& value,
                         at::IntArrayRef offsets) {
  at::Tensor result = ops::allocate_mix("mix_transpose", weight, value, offsets);
  if (result.numel() != 0)
    run(Kernel::kMixTranspose, {.weight = weight, .value = value, .result = result}, offsets);
  return result;
}

at::Tensor link_dot(const at::Tensor& grad, const at::Tensor& value, at::IntArrayRef offsets) {
  at::Tensor dots = ops::allocate_link_dot(grad, value, offsets);
  if (value.size(-1) == 0) return dots.zero_();  // sums of nothing
  if (dots.numel() != 0)
    run(Kernel::kLinkDot, {.value = value, .grad = grad, .dots = dots}, offsets);
  return dots;
}

std::tuple<at::Tensor, at::Tensor> mix_backward(const at::Tensor& grad, const at::Tensor& weight,
                                                const at::Tensor& value, at::IntArrayRef offsets) {
  auto [dots, result] = ops::allocate_mix_backward(grad, weight, value, offsets);
  if (result.numel() == 0) return {dots.zero_(), result};
  run(Kernel::kMixBackward,
      {.weight = weight, .value = value, .grad = grad, .result = result, .dots = dots}, offsets);
  return {dots, result};
}

TORCH_LIBRARY_IMPL(paramixer, CPU, m) {
  m.impl("mix", &mix);
  m.impl("mix_transpose", &mix_transpose);
  m.impl("link_dot", &link_dot);
  m.impl("mix_backward", &mix_backward);
}

}  // namespace
}  // namespace paramixer::cpu
