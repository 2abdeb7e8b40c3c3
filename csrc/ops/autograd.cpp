// Gradients to any order. Three operators are bilinear and closed under differentiation, so each
// gradient is one of them again:
//   mix(W, V):            dW = link_dot(dY, V)    dV = mix_transpose(W, dY)
//   mix_transpose(W, V):  dW = link_dot(V, dX)    dV = mix(W, dX)
//   link_dot(G, V):       dG = mix(dA, V)         dV = mix_transpose(dA, G)
//
// Two forms of one rule. autograd::Function serves everything that compiled autograd and
// torch.compile see; functorch and forward mode refuse it, and get a hand-written node. The headers
// of that node are the ones PyTorch's generated code uses; they move between releases, which is why
// all of it stays in this file.

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <algorithm>
#include <functional>
#include <mutex>

#include "core/chain_plan.h"
#include "ops/chain_sequence.h"
#include "ops/check.h"
#include "ops/operators.h"
#include "ops/rotate_tracks.h"
#include "ops/transforms.h"
#include "paramixer/paramixer.h"

namespace paramixer::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// ---- The rules

struct Wanted {
  bool first;
  bool second;
};

// The two gradients (undefined where not wanted), shaped as `first` and `second`.
using Gradients = std::tuple<at::Tensor, at::Tensor>(const at::Tensor& first,
                                                     const at::Tensor& second,
                                                     const at::Tensor& grad,
                                                     at::IntArrayRef offsets, Wanted wanted);

std::tuple<at::Tensor, at::Tensor> mix_gradients(const at::Tensor& weight, const at::Tensor& value,
                                                 const at::Tensor& grad, at::IntArrayRef offsets,
                                                 Wanted wanted) {
  if (wanted.first && wanted.second) return mix_backward(grad, weight, value, offsets);
  return {wanted.first ? link_dot(grad, value, offsets) : at::Tensor(),
          wanted.second ? mix_transpose(weight, grad, offsets) : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor> mix_transpose_gradients(const at::Tensor& weight,
                                                           const at::Tensor& value,
                                                           const at::Tensor& grad,
                                                           at::IntArrayRef offsets, Wanted wanted) {
  return {wanted.first ? link_dot(value, grad, offsets) : at::Tensor(),
          wanted.second ? mix(weight, grad, offsets) : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor> link_dot_gradients(const at::Tensor& left,
                                                      const at::Tensor& right,
                                                      const at::Tensor& grad,
                                                      at::IntArrayRef offsets, Wanted wanted) {
  return {wanted.first ? mix(grad, right, offsets) : at::Tensor(),
          wanted.second ? mix_transpose(grad, left, offsets) : at::Tensor()};
}

// An operator's name, what it computes, and its gradients.
struct MixRule {
  static constexpr auto kName = "paramixer::mix";
  static constexpr auto kForward = &mix;
  static constexpr auto kGradients = &mix_gradients;
};
struct MixTransposeRule {
  static constexpr auto kName = "paramixer::mix_transpose";
  static constexpr auto kForward = &mix_transpose;
  static constexpr auto kGradients = &mix_transpose_gradients;
};
struct LinkDotRule {
  static constexpr auto kName = "paramixer::link_dot";
  static constexpr auto kForward = &link_dot;
  static constexpr auto kGradients = &link_dot_gradients;
};

// Gradients have the dtype the forward pass ran in, also when backward is called inside an autocast
// region. Where an operand was broadcast, the engine sums its gradient to its shape.
struct NoAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

template <typename Rule>
variable_list gradients_of(const at::Tensor& first, const at::Tensor& second,
                           const at::Tensor& grad, at::IntArrayRef offsets, Wanted wanted) {
  const NoAutocast guard;
  const auto [d_first, d_second] = Rule::kGradients(first, second, grad, offsets, wanted);
  return {d_first, d_second};
}

// What has to be saved of an operand: the gradient of one operand needs the other.
at::Tensor saved_for(const at::Tensor& other, const at::Tensor& operand) {
  return other.requires_grad() ? operand : at::Tensor();
}

// ---- As an autograd::Function

template <typename Rule>
struct RuleFunction : torch::autograd::Function<RuleFunction<Rule>> {
  // backward() uses nothing but what ctx holds, so compiled autograd may trace it.
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& first, const at::Tensor& second,
                            at::IntArrayRef offsets) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({saved_for(second, first), saved_for(first, second)});
    ctx->saved_data["offsets"] = offsets.vec();
    return Rule::kForward(first, second, offsets);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto offsets = ctx->saved_data["offsets"].toIntVector();
    auto gradients = gradients_of<Rule>(saved[0], saved[1], grads[0], offsets,
                                        {ctx->needs_input_grad(0), ctx->needs_input_grad(1)});
    gradients.emplace_back();  // offsets
    return gradients;
  }
};

// ---- As a node of our own

template <typename Rule>
struct RuleNode : torch::autograd::Node {
  SavedVariable first_;
  SavedVariable second_;
  std::vector<int64_t> offsets_;

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(2);
    return gradients_of<Rule>(first_.unpack(), second_.unpack(), grads[0], offsets_,
                              {task_should_compute_output(0), task_should_compute_output(1)});
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    first_.reset_data();
    second_.reset_data();
  }

  std::string name() const override { return std::string(Rule::kName) + "_backward"; }
};

// torch 2.11 owns nodes by shared_ptr, later releases by intrusive_ptr; deleteNode exists only in
// the former.
template <typename NodeType>
auto make_node() {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, NodeType>) {
    return c10::make_intrusive<NodeType>();
  } else {
    return std::shared_ptr<NodeType>(new NodeType(), [](auto* node) { deleteNode(node); });
  }
}

template <typename Rule>
at::Tensor apply_node(c10::DispatchKeySet keys, const at::Tensor& first, const at::Tensor& second,
                      at::IntArrayRef offsets) {
  static const auto op = find_operator<Bilinear>(Rule::kName);
  decltype(make_node<RuleNode<Rule>>()) node;
  if (torch::autograd::compute_requires_grad(first, second)) {
    node = make_node<RuleNode<Rule>>();
    node->set_next_edges(torch::autograd::collect_next_edges(first, second));
    node->first_ = SavedVariable(saved_for(second, first), /*is_output=*/false);
    node->second_ = SavedVariable(saved_for(first, second), /*is_output=*/false);
    node->offsets_ = offsets.vec();
  }
  at::Tensor result = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return op.redispatch(keys & c10::after_autograd_keyset, first, second, offsets);
  }();
  if (node) torch::autograd::set_history(result, node);

  // d f(a, b) = f(da, b) + f(a, db)
  at::Tensor tangent;
  if (tangent_of(first).defined()) {
    tangent = Rule::kForward(tangent_of(first), second._fw_primal(0), offsets);
  }
  if (tangent_of(second).defined()) {
    const at::Tensor term = Rule::kForward(first._fw_primal(0), tangent_of(second), offsets);
    tangent = tangent.defined() ? tangent + term : term;
  }
  if (tangent.defined()) result._set_fw_grad(tangent, /*level=*/0, /*is_inplace_op=*/false);
  return result;
}

// ---- The Autograd kernels

template <typename Rule>
at::Tensor bilinear_autograd(c10::DispatchKeySet keys, const at::Tensor& first,
                             const at::Tensor& second, at::IntArrayRef offsets) {
  if (in_functorch() || has_tangent(first, second)) {
    return apply_node<Rule>(keys, first, second, offsets);
  }
  return RuleFunction<Rule>::apply(first, second, offsets);
}

// Where its own derivatives are asked for, mix_backward is the two operators it stands for.
std::tuple<at::Tensor, at::Tensor> mix_backward_autograd(c10::DispatchKeySet keys,
                                                         const at::Tensor& grad,
                                                         const at::Tensor& weight,
                                                         const at::Tensor& value,
                                                         at::IntArrayRef offsets) {
  static const auto op = find_operator<BilinearBackward>("paramixer::mix_backward");
  if (in_functorch() || has_tangent(grad, weight, value) ||
      torch::autograd::compute_requires_grad(grad, weight, value)) {
    check_mix_backward(grad, weight, value, offsets);
    return {link_dot(grad, value, offsets), mix_transpose(weight, grad, offsets)};
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_autograd_keyset, grad, weight, value, offsets);
}

// ---- The chain of factors: an autograd::Function for first derivatives, and for all others the
// single-factor operators it stands for

// The CPU kernels compute states again on chip, which costs less than storing them.
std::vector<int64_t> boundaries_to_save(const at::Tensor& weight, bool save) {
  if (!save || weight.device().is_cpu()) return {};
  return saved_boundaries(weight.sym_size(-2).guard_int(__FILE__, __LINE__));
}

// The gradient of the value needs the weight alone, that of the weight needs everything.
struct ChainFunction : torch::autograd::Function<ChainFunction> {
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& weight, const at::Tensor& value,
                            at::IntArrayRef offsets, std::string_view residual,
                            bool save_boundaries) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const bool weight_gradient = weight.requires_grad();
    const auto boundaries = boundaries_to_save(weight, weight_gradient && save_boundaries);
    const auto [result, states] = mix_chain_forward(weight, value, offsets, residual, boundaries);
    ctx->saved_data["offsets"] = offsets.vec();
    ctx->saved_data["residual"] = std::string(residual);
    ctx->saved_data["boundaries"] = boundaries;
    if (weight_gradient) {
      ctx->save_for_backward({weight, value, states});
    } else {
      ctx->save_for_backward({weight});
    }
    return result;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const NoAutocast guard;
    const auto saved = ctx->get_saved_variables();
    const auto offsets = ctx->saved_data["offsets"].toIntVector();
    const auto& residual = ctx->saved_data["residual"].toStringRef();
    variable_list gradients(5);  // the last three are no tensors
    if (ctx->needs_input_grad(0)) {
      std::tie(gradients[0], gradients[1]) =
          mix_chain_backward(grads[0], saved[0], saved[1], saved[2], offsets, residual,
                             ctx->saved_data["boundaries"].toIntVector());
    } else if (ctx->needs_input_grad(1)) {
      gradients[1] =
          chain_value_gradient(grads[0], saved[0], offsets, parse_residual("mix_chain", residual));
    }
    return gradients;
  }
};

at::Tensor mix_chain_autograd(c10::DispatchKeySet keys, const at::Tensor& weight,
                              const at::Tensor& value, at::IntArrayRef offsets,
                              std::string_view residual, std::string_view save) {
  static const auto op = find_operator<Chain>("paramixer::mix_chain");
  const bool requires_grad = torch::autograd::compute_requires_grad(weight, value);
  if (has_tangent(weight, value) || (requires_grad && in_functorch())) {
    return mix_chain_sequence(weight, value, offsets, residual, save);
  }
  if (requires_grad) {
    const auto choices = check_mix_chain(weight, value, offsets, residual, save);
    return ChainFunction::apply(weight, value, offsets, residual, choices.save_boundaries);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_autograd_keyset, weight, value, offsets, residual, save);
}

std::tuple<at::Tensor, at::Tensor> mix_chain_forward_autograd(
    c10::DispatchKeySet keys, const at::Tensor& weight, const at::Tensor& value,
    at::IntArrayRef offsets, std::string_view residual, at::IntArrayRef boundaries) {
  static const auto op = find_operator<ChainForward>("paramixer::mix_chain_forward");
  if (has_tangent(weight, value) || torch::autograd::compute_requires_grad(weight, value)) {
    return compose_chain_forward(weight, value, offsets, residual, boundaries);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_autograd_keyset, weight, value, offsets, residual,
                       boundaries);
}

std::tuple<at::Tensor, at::Tensor> mix_chain_backward_autograd(
    c10::DispatchKeySet keys, const at::Tensor& grad, const at::Tensor& weight,
    const at::Tensor& value, const at::Tensor& states, at::IntArrayRef offsets,
    std::string_view residual, at::IntArrayRef boundaries) {
  static const auto op = find_operator<ChainBackward>("paramixer::mix_chain_backward");
  if (has_tangent(grad, weight, value) ||
      torch::autograd::compute_requires_grad(grad, weight, value)) {
    return compose_chain_backward(
        grad, weight, value, offsets,
        check_mix_chain_backward(grad, weight, value, states, offsets, residual, boundaries));
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_autograd_keyset, grad, weight, value, states, offsets,
                       residual, boundaries);
}

// ---- The rotation of tracks: a linear map whose transpose rotates back, in the two forms of the
// rules above. The gradient needs nothing but shifts and lengths.

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor rotate_back(const at::Tensor& grad, at::IntArrayRef shifts, const at::Tensor& lengths) {
  const NoAutocast guard;
  std::vector<int64_t> opposite(shifts.size());
  std::transform(shifts.begin(), shifts.end(), opposite.begin(), std::negate<>());
  return rotate_tracks(grad, opposite, lengths.defined() ? OptionalTensor(lengths) : std::nullopt);
}

struct RotateFunction : torch::autograd::Function<RotateFunction> {
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& value, at::IntArrayRef shifts,
                            const OptionalTensor& lengths) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({lengths.value_or(at::Tensor())});
    ctx->saved_data["shifts"] = shifts.vec();
    return rotate_tracks(value, shifts, lengths);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto shifts = ctx->saved_data["shifts"].toIntVector();
    return {rotate_back(grads[0], shifts, ctx->get_saved_variables()[0]), {}, {}};
  }
};

struct RotateNode : torch::autograd::Node {
  SavedVariable lengths_;
  std::vector<int64_t> shifts_;

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(1);
    return {rotate_back(grads[0], shifts_, lengths_.unpack())};
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    lengths_.reset_data();
  }

  std::string name() const override { return "paramixer::rotate_tracks_backward"; }
};

at::Tensor apply_rotate_node(c10::DispatchKeySet keys, const at::Tensor& value,
                             at::IntArrayRef shifts, const OptionalTensor& lengths) {
  static const auto op = find_operator<RotateTracks>("paramixer::rotate_tracks");
  decltype(make_node<RotateNode>()) node;
  if (torch::autograd::compute_requires_grad(value)) {
    node = make_node<RotateNode>();
    node->set_next_edges(torch::autograd::collect_next_edges(value));
    node->lengths_ = SavedVariable(lengths.value_or(at::Tensor()), /*is_output=*/false);
    node->shifts_ = shifts.vec();
  }
  at::Tensor result = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return op.redispatch(keys & c10::after_autograd_keyset, value, shifts, lengths);
  }();
  if (node) torch::autograd::set_history(result, node);
  if (has_tangent(value)) {
    result._set_fw_grad(rotate_tracks(tangent_of(value), shifts, lengths), /*level=*/0,
                        /*is_inplace_op=*/false);
  }
  return result;
}

at::Tensor rotate_tracks_autograd(c10::DispatchKeySet keys, const at::Tensor& value,
                                  at::IntArrayRef shifts, const OptionalTensor& lengths) {
  if (in_functorch() || has_tangent(value)) return apply_rotate_node(keys, value, shifts, lengths);
  return RotateFunction::apply(value, shifts, lengths);
}

TORCH_LIBRARY_IMPL(paramixer, Autograd, m) {
  m.impl("mix", &bilinear_autograd<MixRule>);
  m.impl("mix_transpose", &bilinear_autograd<MixTransposeRule>);
  m.impl("link_dot", &bilinear_autograd<LinkDotRule>);
  m.impl("mix_backward", &mix_backward_autograd);
  m.impl("mix_chain", &mix_chain_autograd);
  m.impl("mix_chain_forward", &mix_chain_forward_autograd);
  m.impl("mix_chain_backward", &mix_chain_backward_autograd);
  m.impl("rotate_tracks", &rotate_tracks_autograd);
}

}  // namespace
}  // namespace paramixer::ops
