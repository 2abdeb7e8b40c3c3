// The operators: the only schemas, the functions C++ calls, and the kernels that compute nothing
// themselves (Meta, Autocast, CUDA in a build without CUDA). Autograd is in autograd.cpp, kernels
// in cpu/ and cuda/.

#include "ops/operators.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "cpu/kernels.h"
#include "ops/autocast.h"
#include "ops/check.h"
#include "ops/prepare.h"
#include "paramixer/paramixer.h"

TORCH_LIBRARY(paramixer, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("mix(Tensor weight, Tensor value, int[] offsets) -> Tensor", tags);
  m.def("mix_transpose(Tensor weight, Tensor value, int[] offsets) -> Tensor", tags);
  m.def("link_dot(Tensor grad, Tensor value, int[] offsets) -> Tensor", tags);
  // Both gradients of mix in one sweep: (grad_weight, grad_value), not yet summed over broadcast
  // batch dimensions.
  m.def("mix_backward(Tensor grad, Tensor weight, Tensor value, int[] offsets) -> (Tensor, Tensor)",
        tags);

  // A chain of M factors; offsets hold K integers a factor, one factor after the other.
  m.def(
      "mix_chain(Tensor weight, Tensor value, int[] offsets, str residual=\"none\", "
      "str save=\"boundaries\") -> Tensor",
      tags);
  // (result, states): the states (P, *, N, D) after the factor counts in boundaries.
  m.def(
      "mix_chain_forward(Tensor weight, Tensor value, int[] offsets, str residual, "
      "int[] boundaries) -> (Tensor, Tensor)",
      tags);
  // (grad_weight, grad_value), not yet summed over broadcast batch dimensions.
  m.def(
      "mix_chain_backward(Tensor grad, Tensor weight, Tensor value, Tensor states, "
      "int[] offsets, str residual, int[] boundaries) -> (Tensor, Tensor)",
      tags);
  m.def(
      "link_weights(Tensor x, Tensor hidden_weight, Tensor? hidden_bias, Tensor output_weight, "
      "Tensor? output_bias) -> Tensor",
      tags);
  // (grad_x, grad_hidden_weight, grad_hidden_bias, grad_output_weight, grad_output_bias); without
  // wants_x the first is empty.
  m.def(
      "link_weights_backward(Tensor grad, Tensor x, Tensor hidden_weight, Tensor? hidden_bias, "
      "Tensor output_weight, bool wants_x) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      tags);

  // Channels cut into tracks, one per shift, and each track rotated along the sequence.
  m.def("rotate_tracks(Tensor value, int[] shifts, Tensor? lengths=None) -> Tensor", tags);
}

namespace paramixer {

static_assert(kMostLinks == kMaxLinks, "links.h and the kernels have one limit");

at::Tensor mix(const at::Tensor& weight, const at::Tensor& value, at::IntArrayRef offsets) {
  static const auto op = ops::find_operator<ops::Bilinear>("paramixer::mix");
  return op.call(weight, value, offsets);
}

at::Tensor mix_transpose(const at::Tensor& weight, const at::Tensor& value,
                         at::IntArrayRef offsets) {
  static const auto op = ops::find_operator<ops::Bilinear>("paramixer::mix_transpose");
  return op.call(weight, value, offsets);
}

at::Tensor link_dot(const at::Tensor& grad, const at::Tensor& value, at::IntArrayRef offsets) {
  static const auto op = ops::find_operator<ops::Bilinear>("paramixer::link_dot");
  return op.call(grad, value, offsets);
}

at::Tensor mix_chain(const at::Tensor& weight, const at::Tensor& value, at::IntArrayRef offsets,
                     std::string_view residual, std::string_view save) {
  static const auto op = ops::find_operator<ops::Chain>("paramixer::mix_chain");
  return op.call(weight, value, offsets, residual, save);
}

bool has_cuda() {
#if defined(PARAMIXER_WITH_CUDA)
  return true;
#else
  return false;
#endif
}

const char* cpu_instruction_set() { return cpu::selected_instruction_set().name; }

namespace ops {

std::tuple<at::Tensor, at::Tensor> mix_backward(const at::Tensor& grad, const at::Tensor& weight,
                                                const at::Tensor& value, at::IntArrayRef offsets) {
  static const auto op = find_operator<BilinearBackward>("paramixer::mix_backward");
  return op.call(grad, weight, value, offsets);
}

std::tuple<at::Tensor, at::Tensor> mix_chain_forward(const at::Tensor& weight,
                                                     const at::Tensor& value,
                                                     at::IntArrayRef offsets,
                                                     std::string_view residual,
                                                     at::IntArrayRef boundaries) {
  static const auto op = find_operator<ChainForward>("paramixer::mix_chain_forward");
  return op.call(weight, value, offsets, residual, boundaries);
}

std::tuple<at::Tensor, at::Tensor> mix_chain_backward(
    const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& value,
    const at::Tensor& states, at::IntArrayRef offsets, std::string_view residual,
    at::IntArrayRef boundaries) {
  static const auto op = find_operator<ChainBackward>("paramixer::mix_chain_backward");
  return op.call(grad, weight, value, states, offsets, residual, boundaries);
}

namespace {

// ---- Meta: the same checks and the same allocation as the kernels, and nothing else

at::Tensor mix_meta(const at::Tensor& weight, const at::Tensor& value, at::IntArrayRef offsets) {
  return allocate_mix("mix", weight, value, offsets);
}

at::Tensor mix_transpose_meta(const at::Tensor& weight, const at::Tensor& value,
                              at::IntArrayRef offsets) {
  return allocate_mix("mix_transpose", weight, value, offsets);
}

std::tuple<at::Tensor, at::Tensor> mix_backward_meta(const at::Tensor& grad,
                                                     const at::Tensor& weight,
                                                     const at::Tensor& value,
                                                     at::IntArrayRef offsets) {
  return allocate_mix_backward(grad, weight, value, offsets);
}

at::Tensor mix_chain_meta(const at::Tensor& weight, const at::Tensor& value,
                          at::IntArrayRef offsets, std::string_view residual,
                          std::string_view save) {
  check_mix_chain(weight, value, offsets, residual, save);
  return allocate_mix_chain(weight, value);
}

std::tuple<at::Tensor, at::Tensor> mix_chain_forward_meta(const at::Tensor& weight,
                                                          const at::Tensor& value,
                                                          at::IntArrayRef offsets,
                                                          std::string_view residual,
                                                          at::IntArrayRef boundaries) {
  check_mix_chain_forward(weight, value, offsets, residual, boundaries);
  return {allocate_mix_chain(weight, value), allocate_chain_states(weight, value, boundaries)};
}

std::tuple<at::Tensor, at::Tensor> mix_chain_backward_meta(
    const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& value,
    const at::Tensor& states, at::IntArrayRef offsets, std::string_view residual,
    at::IntArrayRef boundaries) {
  check_mix_chain_backward(grad, weight, value, states, offsets, residual, boundaries);
  return {allocate_chain_weight_gradient(weight, value), allocate_mix_chain(weight, grad)};
}

TORCH_LIBRARY_IMPL(paramixer, Meta, m) {
  m.impl("mix", &mix_meta);
  m.impl("mix_transpose", &mix_transpose_meta);
  m.impl("link_dot", &allocate_link_dot);
  m.impl("mix_backward", &mix_backward_meta);
  m.impl("mix_chain", &mix_chain_meta);
  m.impl("mix_chain_forward", &mix_chain_forward_meta);
  m.impl("mix_chain_backward", &mix_chain_backward_meta);
}

// ---- Autocast

template <c10::DeviceType device, Bilinear* op>
at::Tensor bilinear_autocast(const at::Tensor& first, const at::Tensor& second,
                             at::IntArrayRef offsets) {
  const Autocast<device> cast;
  return op(cast(first), cast(second), offsets);
}

template <c10::DeviceType device>
std::tuple<at::Tensor, at::Tensor> mix_backward_autocast(const at::Tensor& grad,
                                                         const at::Tensor& weight,
                                                         const at::Tensor& value,
                                                         at::IntArrayRef offsets) {
  const Autocast<device> cast;
  return mix_backward(cast(grad), cast(weight), cast(value), offsets);
}

template <c10::DeviceType device>
at::Tensor mix_chain_autocast(const at::Tensor& weight, const at::Tensor& value,
                              at::IntArrayRef offsets, std::string_view residual,
                              std::string_view save) {
  const Autocast<device> cast;
  return mix_chain(cast(weight), cast(value), offsets, residual, save);
}

template <c10::DeviceType device>
std::tuple<at::Tensor, at::Tensor> mix_chain_forward_autocast(const at::Tensor& weight,
                                                              const at::Tensor& value,
                                                              at::IntArrayRef offsets,
                                                              std::string_view residual,
                                                              at::IntArrayRef boundaries) {
  const Autocast<device> cast;
  return mix_chain_forward(cast(weight), cast(value), offsets, residual, boundaries);
}

template <c10::DeviceType device>
std::tuple<at::Tensor, at::Tensor> mix_chain_backward_autocast(
    const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& value,
    const at::Tensor& states, at::IntArrayRef offsets, std::string_view residual,
    at::IntArrayRef boundaries) {
  const Autocast<device> cast;
  return mix_chain_backward(cast(grad), cast(weight), cast(value), cast(states), offsets, residual,
                            boundaries);
}

template <c10::DeviceType device>
void register_autocast(torch::Library& m) {
  m.impl("mix", &bilinear_autocast<device, paramixer::mix>);
  m.impl("mix_transpose", &bilinear_autocast<device, paramixer::mix_transpose>);
  m.impl("link_dot", &bilinear_autocast<device, paramixer::link_dot>);
  m.impl("mix_backward", &mix_backward_autocast<device>);
  m.impl("mix_chain", &mix_chain_autocast<device>);
  m.impl("mix_chain_forward", &mix_chain_forward_autocast<device>);
  m.impl("mix_chain_backward", &mix_chain_backward_autocast<device>);
}

TORCH_LIBRARY_IMPL(paramixer, AutocastCPU, m) { register_autocast<at::kCPU>(m); }
TORCH_LIBRARY_IMPL(paramixer, AutocastCUDA, m) { register_autocast<at::kCUDA>(m); }

// ---- CUDA tensors in a build without CUDA kernels

#if !defined(PARAMIXER_WITH_CUDA)
void no_cuda_kernels(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, op.schema().operator_name().name,
      ": this build of paramixer has no CUDA kernels; with the CUDA toolkit installed, rebuild it "
      "by PARAMIXER_CUDA=ON pip install --no-build-isolation .");
}

TORCH_LIBRARY_IMPL(paramixer, CUDA, m) {
  for (const char* name : {"mix", "mix_transpose", "link_dot", "mix_backward", "mix_chain",
                           "mix_chain_forward", "mix_chain_backward", "rotate_tracks"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&no_cuda_kernels>());
  }
}
#endif

}  // namespace
}  // namespace ops
}  // namespace paramixer
