// The operators' types, and those that only their gradients call.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <string_view>
#include <tuple>

namespace paramixer::ops {

using Bilinear = at::Tensor(const at::Tensor&, const at::Tensor&, at::IntArrayRef);
using BilinearBackward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                            const at::Tensor&, at::IntArrayRef);

using Chain = at::Tensor(const at::Tensor&, const at::Tensor&, at::IntArrayRef, std::string_view,
                         std::string_view);
using ChainForward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                        at::IntArrayRef, std::string_view,
                                                        at::IntArrayRef);
using ChainBackward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                         const at::Tensor&, const at::Tensor&,
                                                         at::IntArrayRef, std::string_view,
                                                         at::IntArrayRef);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// grad has the shape of mix(weight, value). Returns (grad_weight, grad_value), not summed over
// broadcast dimensions.
std::tuple<at::Tensor, at::Tensor> mix_backward(const at::Tensor& grad, const at::Tensor& weight,
                                                const at::Tensor& value, at::IntArrayRef offsets);

// The chain and its states V_m after m factors, for every m in `boundaries` (ascending,
// 0 < m < M): (result, states), states (P, *, N, D) for P boundaries, contiguous.
std::tuple<at::Tensor, at::Tensor> mix_chain_forward(const at::Tensor& weight,
                                                     const at::Tensor& value,
                                                     at::IntArrayRef offsets,
                                                     std::string_view residual,
                                                     at::IntArrayRef boundaries);

// grad has the shape of mix_chain(weight, value), states come from mix_chain_forward; the other
// states are computed again. Returns (grad_weight, grad_value), not summed over broadcast
// dimensions; grad_weight (*, N, M, K) is contiguous.
std::tuple<at::Tensor, at::Tensor> mix_chain_backward(
    const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& value,
    const at::Tensor& states, at::IntArrayRef offsets, std::string_view residual,
    at::IntArrayRef boundaries);

}  // namespace paramixer::ops
