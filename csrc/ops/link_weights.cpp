// link_weights and its gradient on every key but the CPU. Wherever the CPU kernels do not serve
// (CUDA, vmap and the other functorch transforms, forward mode, derivatives of the gradient) both
// are compositions of ATen operators, which have derivatives of every order.

#include "ops/link_weights.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "ops/autocast.h"
#include "ops/operators.h"
#include "ops/transforms.h"
#include "paramixer/paramixer.h"

namespace paramixer {

at::Tensor link_weights(const at::Tensor& x, const at::Tensor& hidden_weight,
                        const std::optional<at::Tensor>& hidden_bias,
                        const at::Tensor& output_weight,
                        const std::optional<at::Tensor>& output_bias) {
  static const auto op = ops::find_operator<ops::LinkWeights>("paramixer::link_weights");
  return op.call(x, hidden_weight, hidden_bias, output_weight, output_bias);
}

namespace ops {

LinkGradientTensors link_weights_backward(const at::Tensor& grad, const at::Tensor& x,
                                          const at::Tensor& hidden_weight,
                                          const OptionalTensor& hidden_bias,
                                          const at::Tensor& output_weight, bool wants_x) {
  static const auto op = find_operator<LinkWeightsBackward>("paramixer::link_weights_backward");
  return op.call(grad, x, hidden_weight, hidden_bias, output_weight, wants_x);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ---- The validator

void check_link_weights(const char* op, const at::Tensor& x, const at::Tensor& hidden_weight,
                        const OptionalTensor& hidden_bias, const at::Tensor& output_weight,
                        const OptionalTensor& output_bias) {
  const auto type = x.scalar_type();
  TORCH_CHECK_TYPE(
      type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, op,
      ": x must be float64, float32, bfloat16 or float16 (got ", type, ")");
  const auto check_like_x = [&](const char* name, const at::Tensor& tensor) {
    TORCH_CHECK_TYPE(tensor.scalar_type() == type, op, ": x and ", name,
                     " must have one dtype (got ", type, " and ", tensor.scalar_type(), ")");
    TORCH_CHECK_VALUE(tensor.device() == x.device(), op, ": x and ", name,
                      " must be on one device (got ", x.device(), " and ", tensor.device(), ")");
  };
  const auto check_shape = [&](const char* name, const at::Tensor& tensor,
                               c10::SymIntArrayRef shape, const char* letters) {
    TORCH_CHECK_VALUE(tensor.sym_sizes() == shape, op, ": ", name, " must be ", letters, " = ",
                      shape, " (got shape ", tensor.sym_sizes(), ")");
  };
  check_like_x("hidden_weight", hidden_weight);
  check_like_x("output_weight", output_weight);
  TORCH_CHECK_VALUE(x.dim() >= 1, op, ": x must have at least one dimension (got shape ",
                    x.sym_sizes(), ")");
  TORCH_CHECK_VALUE(output_weight.dim() == 3, op, ": output_weight must be (M, Q, h) (got shape ",
                    output_weight.sym_sizes(), ")");
  const auto factors = output_weight.sym_size(0);
  const auto outputs = output_weight.sym_size(1);
  const auto hidden = factors * output_weight.sym_size(2);
  check_shape("hidden_weight", hidden_weight, {hidden, x.sym_size(-1)}, "(M h, E)");
  if (hidden_bias.has_value()) {
    check_like_x("hidden_bias", *hidden_bias);
    check_shape("hidden_bias", *hidden_bias, {hidden}, "(M h)");
  }
  if (output_bias.has_value()) {
    check_like_x("output_bias", *output_bias);
    check_shape("output_bias", *output_bias, {factors, outputs}, "(M, Q)");
  }
}

c10::SymDimVector result_shape(const at::Tensor& x, const at::Tensor& output_weight) {
  const auto sizes = x.sym_sizes();
  c10::SymDimVector shape(sizes.begin(), sizes.end() - 1);
  shape.push_back(output_weight.sym_size(0));
  shape.push_back(output_weight.sym_size(1));
  return shape;
}

void check_link_weights_backward(const at::Tensor& grad, const at::Tensor& x,
                                 const at::Tensor& hidden_weight, const OptionalTensor& hidden_bias,
                                 const at::Tensor& output_weight) {
  constexpr auto kName = "link_weights_backward";
  check_link_weights(kName, x, hidden_weight, hidden_bias, output_weight, std::nullopt);
  const auto shape = result_shape(x, output_weight);
  TORCH_CHECK_TYPE(grad.scalar_type() == x.scalar_type(), kName,
                   ": grad and x must have one dtype (got ", grad.scalar_type(), " and ",
                   x.scalar_type(), ")");
  TORCH_CHECK_VALUE(grad.device() == x.device(), kName, ": grad and x must be on one device (got ",
                    grad.device(), " and ", x.device(), ")");
  TORCH_CHECK_VALUE(grad.sym_sizes() == c10::SymIntArrayRef(shape), kName,
                    ": grad must have the shape of the result, ", c10::SymIntArrayRef(shape),
                    " (got shape ", grad.sym_sizes(), ")");
}

}  // namespace

at::Tensor allocate_link_weights(const at::Tensor& x, const at::Tensor& hidden_weight,
                                 const OptionalTensor& hidden_bias, const at::Tensor& output_weight,
                                 const OptionalTensor& output_bias) {
  check_link_weights("link_weights", x, hidden_weight, hidden_bias, output_weight, output_bias);
  return at::empty_symint(result_shape(x, output_weight), x.options());
}

LinkGradientTensors allocate_link_weights_backward(const at::Tensor& grad, const at::Tensor& x,
                                                   const at::Tensor& hidden_weight,
                                                   const OptionalTensor& hidden_bias,
                                                   const at::Tensor& output_weight, bool wants_x) {
  check_link_weights_backward(grad, x, hidden_weight, hidden_bias, output_weight);
  const auto empty = [&](c10::SymIntArrayRef shape) {
    return at::empty_symint(shape, x.options());
  };
  return {wants_x ? empty(x.sym_sizes()) : empty({0}), empty(hidden_weight.sym_sizes()),
          empty(hidden_weight.sym_sizes().slice(0, 1)), empty(output_weight.sym_sizes()),
          empty(output_weight.sym_sizes().slice(0, 2))};
}

namespace {

// ---- As compositions of ATen operators. Letters in shapes: R rows of x in all.

// x as (R, E) and what is (*, M, C) for R rows as one block a factor, (M, R, C).
at::Tensor as_rows(const at::Tensor& x) {
  c10::SymInt rows = 1;
  for (const auto& size : x.sym_sizes().slice(0, x.dim() - 1)) rows *= size;
  return x.reshape_symint({rows, x.sym_size(-1)});
}

at::Tensor by_factor(const at::Tensor& rows, const at::Tensor& output_weight, int64_t columns) {
  const auto shape = {rows.sym_size(0), output_weight.sym_size(0), output_weight.sym_size(columns)};
  return rows.reshape_symint(shape).transpose(0, 1);
}

at::Tensor compose(const at::Tensor& x, const at::Tensor& hidden_weight,
                   const OptionalTensor& hidden_bias, const at::Tensor& output_weight,
                   const OptionalTensor& output_bias) {
  check_link_weights("link_weights", x, hidden_weight, hidden_bias, output_weight, output_bias);
  const auto inner = at::gelu(at::linear(as_rows(x), hidden_weight, hidden_bias));  // (R, M h)
  const auto hidden = by_factor(inner, output_weight, 2);
  const auto weight = output_weight.transpose(1, 2);
  const auto links = output_bias.has_value()
                         ? at::baddbmm(output_bias->unsqueeze(1), hidden, weight)
                         : at::bmm(hidden, weight);  // (M, R, Q)
  return links.transpose(0, 1).contiguous().view_symint(result_shape(x, output_weight));
}

LinkGradientTensors compose_backward(const at::Tensor& grad, const at::Tensor& x,
                                     const at::Tensor& hidden_weight,
                                     const OptionalTensor& hidden_bias,
                                     const at::Tensor& output_weight, bool wants_x) {
  check_link_weights_backward(grad, x, hidden_weight, hidden_bias, output_weight);
  const auto rows = as_rows(x);
  const auto inner = at::linear(rows, hidden_weight, hidden_bias);
  const auto hidden = by_factor(at::gelu(inner), output_weight, 2);
  const auto d_links =
      by_factor(grad.reshape_symint({rows.sym_size(0), -1}), output_weight, 1);  // (M, R, Q)
  const auto d_hidden = at::bmm(d_links, output_weight).transpose(0, 1);
  const auto d_inner = at::gelu_backward(d_hidden.reshape_symint(inner.sym_sizes()), inner);
  return {wants_x ? at::mm(d_inner, hidden_weight).view_symint(x.sym_sizes())
                  : at::empty({0}, x.options()),
          at::mm(d_inner.t(), rows), d_inner.sum(0), at::bmm(d_links.transpose(1, 2), hidden),
          d_links.sum(1)};
}

TORCH_LIBRARY_IMPL(paramixer, CUDA, m) {
  m.impl("link_weights", &compose);
  m.impl("link_weights_backward", &compose_backward);
}

TORCH_LIBRARY_IMPL(paramixer, FuncTorchBatchedDecomposition, m) {
  m.impl("link_weights", &compose);
  m.impl("link_weights_backward", &compose_backward);
}

TORCH_LIBRARY_IMPL(paramixer, Meta, m) {
  m.impl("link_weights", &allocate_link_weights);
  m.impl("link_weights_backward", &allocate_link_weights_backward);
}

// ---- Autograd

at::Tensor or_undefined(const OptionalTensor& tensor) { return tensor.value_or(at::Tensor()); }

OptionalTensor or_none(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

template <typename... Tensors>
bool is_transformed(const Tensors&... tensors) {
  return in_functorch() || ((tensors.defined() && has_tangent(tensors)) || ...);
}

// The hidden activations would be the largest tensor of a layer: only what went in is saved.
struct LinkWeightsFunction : torch::autograd::Function<LinkWeightsFunction> {
  // backward() uses nothing but what ctx holds, so compiled autograd may trace it.
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x,
                            const at::Tensor& hidden_weight, const OptionalTensor& hidden_bias,
                            const at::Tensor& output_weight, const OptionalTensor& output_bias) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, hidden_weight, or_undefined(hidden_bias), output_weight});
    ctx->saved_data["has_output_bias"] = output_bias.has_value();
    return link_weights(x, hidden_weight, hidden_bias, output_weight, output_bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    // Gradients have the dtype the forward pass ran in, also when backward is called inside an
    // autocast region.
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const auto saved = ctx->get_saved_variables();
    const bool wants_x = ctx->needs_input_grad(0);
    auto [d_x, d_hidden_weight, d_hidden_bias, d_output_weight, d_output_bias] =
        link_weights_backward(grads[0], saved[0], saved[1], or_none(saved[2]), saved[3], wants_x);
    return {wants_x ? d_x : at::Tensor(), d_hidden_weight,
            saved[2].defined() ? d_hidden_bias : at::Tensor(), d_output_weight,
            ctx->saved_data["has_output_bias"].toBool() ? d_output_bias : at::Tensor()};
  }
};

at::Tensor link_weights_autograd(const at::Tensor& x, const at::Tensor& hidden_weight,
                                 const OptionalTensor& hidden_bias, const at::Tensor& output_weight,
                                 const OptionalTensor& output_bias) {
  if (is_transformed(x, hidden_weight, or_undefined(hidden_bias), output_weight,
                     or_undefined(output_bias))) {
    return compose(x, hidden_weight, hidden_bias, output_weight, output_bias);
  }
  return LinkWeightsFunction::apply(x, hidden_weight, hidden_bias, output_weight, output_bias);
}

LinkGradientTensors link_weights_backward_autograd(c10::DispatchKeySet keys, const at::Tensor& grad,
                                                   const at::Tensor& x,
                                                   const at::Tensor& hidden_weight,
                                                   const OptionalTensor& hidden_bias,
                                                   const at::Tensor& output_weight, bool wants_x) {
  static const auto op = find_operator<LinkWeightsBackward>("paramixer::link_weights_backward");
  const at::Tensor bias = or_undefined(hidden_bias);
  if (is_transformed(grad, x, hidden_weight, bias, output_weight) ||
      torch::autograd::compute_requires_grad(grad, x, hidden_weight, bias, output_weight)) {
    return compose_backward(grad, x, hidden_weight, hidden_bias, output_weight, wants_x);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_autograd_keyset, grad, x, hidden_weight, hidden_bias,
                       output_weight, wants_x);
}

TORCH_LIBRARY_IMPL(paramixer, Autograd, m) {
  m.impl("link_weights", &link_weights_autograd);
  m.impl("link_weights_backward", &link_weights_backward_autograd);
}

// ---- Autocast

template <c10::DeviceType device>
at::Tensor link_weights_autocast(const at::Tensor& x, const at::Tensor& hidden_weight,
                                 const OptionalTensor& hidden_bias, const at::Tensor& output_weight,
                                 const OptionalTensor& output_bias) {
  const Autocast<device> cast;
  return link_weights(cast(x), cast(hidden_weight), cast(hidden_bias), cast(output_weight),
                      cast(output_bias));
}

template <c10::DeviceType device>
LinkGradientTensors link_weights_backward_autocast(const at::Tensor& grad, const at::Tensor& x,
                                                   const at::Tensor& hidden_weight,
                                                   const OptionalTensor& hidden_bias,
                                                   const at::Tensor& output_weight, bool wants_x) {
  const Autocast<device> cast;
  return link_weights_backward(cast(grad), cast(x), cast(hidden_weight), cast(hidden_bias),
                               cast(output_weight), wants_x);
}

template <c10::DeviceType device>
void register_autocast(torch::Library& m) {
  m.impl("link_weights", &link_weights_autocast<device>);
  m.impl("link_weights_backward", &link_weights_backward_autocast<device>);
}

TORCH_LIBRARY_IMPL(paramixer, AutocastCPU, m) { register_autocast<at::kCPU>(m); }
TORCH_LIBRARY_IMPL(paramixer, AutocastCUDA, m) { register_autocast<at::kCUDA>(m); }

}  // namespace
}  // namespace ops
}  // namespace paramixer
