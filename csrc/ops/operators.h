// The operators' types, and those that only their gradients call.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <tuple>

namespace paramixer::ops {

using Bilinear = at::Tensor(const at::Tensor&, const at::Tensor&, at::IntArrayRef);
using BilinearBackward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                            const at::Tensor&, at::IntArrayRef);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// grad has the shape of mix(weight, value). Returns (grad_weight, grad_value), not summed over
// broadcast dimensions.
std::tuple<at::Tensor, at::Tensor> mix_backward(const at::Tensor& grad, const at::Tensor& weight,
                                                const at::Tensor& value, at::IntArrayRef offsets);

}  // namespace paramixer::ops
