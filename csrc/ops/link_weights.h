// link_weights: its types, and what the keys of its forward and backward pass share.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace paramixer::ops {

using OptionalTensor = std::optional<at::Tensor>;

using LinkWeights = at::Tensor(const at::Tensor& x, const at::Tensor& hidden_weight,
                               const OptionalTensor& hidden_bias, const at::Tensor& output_weight,
                               const OptionalTensor& output_bias);

// The gradients by x, hidden_weight, hidden_bias, output_weight and output_bias for `grad`, that of
// the result. An empty tensor takes the place of the one by x where it is not wanted.
using LinkGradientTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using LinkWeightsBackward = LinkGradientTensors(const at::Tensor& grad, const at::Tensor& x,
                                                const at::Tensor& hidden_weight,
                                                const OptionalTensor& hidden_bias,
                                                const at::Tensor& output_weight, bool wants_x);

LinkWeightsBackward link_weights_backward;  // through the dispatcher

// Check the arguments, then allocate; sizes may be symbolic. Every result is contiguous.
LinkWeights allocate_link_weights;
LinkWeightsBackward allocate_link_weights_backward;

}  // namespace paramixer::ops
