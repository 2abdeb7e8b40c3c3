// The one validator: the same rules and messages for CPU, CUDA and Meta, before anything is
// computed. Sizes may be symbolic.
#pragma once

#include <ATen/ExpandUtils.h>
#include <ATen/core/Tensor.h>

#include <algorithm>

#include "core/problem.h"

namespace paramixer::ops {

// Rules that every operator shares, for operands (*, N, columns) called `first_name` and
// `second_name`.
inline void check_operands(const char* op, const char* first_name, const at::Tensor& first,
                           const char* second_name, const at::Tensor& second,
                           at::IntArrayRef offsets) {
  TORCH_CHECK_VALUE(!offsets.empty() && offsets.size() <= size_t{kMaxLinks}, op,
                    ": offsets must hold 1 to ", kMaxLinks, " links (got ", offsets.size(), ")");
  const auto check_one = [op](const char* name, const at::Tensor& tensor) {
    const auto type = tensor.scalar_type();
    TORCH_CHECK_TYPE(
        type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, op,
        ": ", name, " must be float64, float32, bfloat16 or float16 (got ", type, ")");
    TORCH_CHECK_VALUE(tensor.dim() >= 2, op, ": ", name,
                      " must have at least two dimensions (got shape ", tensor.sym_sizes(), ")");
  };
  check_one(first_name, first);
  check_one(second_name, second);
  TORCH_CHECK_TYPE(first.scalar_type() == second.scalar_type(), op, ": ", first_name, " and ",
                   second_name, " must have one dtype (got ", first.scalar_type(), " and ",
                   second.scalar_type(), ")");
  TORCH_CHECK_VALUE(first.device() == second.device(), op, ": ", first_name, " and ", second_name,
                    " must be on one device (got ", first.device(), " and ", second.device(), ")");
  TORCH_CHECK_VALUE(first.sym_size(-2) == second.sym_size(-2), op, ": ", first_name, " and ",
                    second_name, " must have the same length N in dimension -2 (got shapes ",
                    first.sym_sizes(), " and ", second.sym_sizes(), ")");
  const int64_t shared = std::min(first.dim(), second.dim()) - 2;
  for (int64_t d = 3; d < 3 + shared; ++d) {
    const auto a = first.sym_size(-d);
    const auto b = second.sym_size(-d);
    TORCH_CHECK_VALUE(a == b || a == 1 || b == 1, op, ": batch dimensions of ", first_name, " and ",
                      second_name, " must broadcast (got shapes ", first.sym_sizes(), " and ",
                      second.sym_sizes(), ")");
  }
}

// (batch of first and second broadcast, N, columns)
inline c10::SymDimVector result_shape(const at::Tensor& first, const at::Tensor& second,
                                      const c10::SymInt& columns) {
  const auto batch = [](const at::Tensor& t) { return t.sym_sizes().slice(0, t.dim() - 2); };
  const auto broadcast = at::infer_size_symint(batch(first), batch(second));
  c10::SymDimVector shape(broadcast.begin(), broadcast.end());
  shape.push_back(second.sym_size(-2));
  shape.push_back(columns);
  return shape;
}

// mix and mix_transpose: weight (*, N, K) and value (*, N, D) with K offsets.
inline void check_mix(const char* op, const at::Tensor& weight, const at::Tensor& value,
                      at::IntArrayRef offsets) {
  check_operands(op, "weight", weight, "value", value, offsets);
  TORCH_CHECK_VALUE(weight.sym_size(-1) == static_cast<int64_t>(offsets.size()), op,
                    ": weight must have one column per offset (got shape ", weight.sym_sizes(),
                    " and ", offsets.size(), " offsets)");
}

// grad and value, both (*, N, D).
inline void check_link_dot(const char* op, const at::Tensor& grad, const at::Tensor& value,
                           at::IntArrayRef offsets) {
  check_operands(op, "grad", grad, "value", value, offsets);
  TORCH_CHECK_VALUE(
      grad.sym_size(-1) == value.sym_size(-1), op,
      ": grad and value must have the same number of channels D in dimension -1 (got shapes ",
      grad.sym_sizes(), " and ", value.sym_sizes(), ")");
}

// grad has the shape of mix(weight, value).
inline void check_mix_backward(const at::Tensor& grad, const at::Tensor& weight,
                               const at::Tensor& value, at::IntArrayRef offsets) {
  check_mix("mix_backward", weight, value, offsets);
  check_link_dot("mix_backward", grad, value, offsets);
  const auto shape = result_shape(weight, value, value.sym_size(-1));
  TORCH_CHECK_VALUE(grad.sym_sizes() == c10::SymIntArrayRef(shape),
                    "mix_backward: grad must have the shape of mix(weight, value) (got ",
                    grad.sym_sizes(), ", expected ", c10::SymIntArrayRef(shape), ")");
}

}  // namespace paramixer::ops
