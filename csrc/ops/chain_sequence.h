// A chain of factors as a sequence of the single-factor operators: on any device that has those.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>
#include <tuple>

#include "core/problem.h"

namespace paramixer::ops {

// ---- Kernels of the chain's operators. Forward keeps two states at a time; backward the states
// between two boundaries.

at::Tensor mix_chain_sequence(const at::Tensor& weight, const at::Tensor& value,
                              at::IntArrayRef offsets, std::string_view residual,
                              std::string_view save);
std::tuple<at::Tensor, at::Tensor> mix_chain_forward_sequence(const at::Tensor& weight,
                                                              const at::Tensor& value,
                                                              at::IntArrayRef offsets,
                                                              std::string_view residual,
                                                              at::IntArrayRef boundaries);
std::tuple<at::Tensor, at::Tensor> mix_chain_backward_sequence(
    const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& value,
    const at::Tensor& states, at::IntArrayRef offsets, std::string_view residual,
    at::IntArrayRef boundaries);

// ---- The same as differentiable functions, for derivatives beyond the first. mix_chain_sequence
// is one already. States that were saved carry no derivative: backward computes all of them again.

std::tuple<at::Tensor, at::Tensor> compose_chain_forward(const at::Tensor& weight,
                                                         const at::Tensor& value,
                                                         at::IntArrayRef offsets,
                                                         std::string_view residual,
                                                         at::IntArrayRef boundaries);
std::tuple<at::Tensor, at::Tensor> compose_chain_backward(const at::Tensor& grad,
                                                          const at::Tensor& weight,
                                                          const at::Tensor& value,
                                                          at::IntArrayRef offsets,
                                                          Residual residual);

// The gradient of the value alone; it needs no states.
at::Tensor chain_value_gradient(const at::Tensor& grad, const at::Tensor& weight,
                                at::IntArrayRef offsets, Residual residual);

}  // namespace paramixer::ops
