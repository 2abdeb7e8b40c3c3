// The one validator: the same rules and messages for CPU, CUDA and Meta, before anything is
// computed. Sizes may be symbolic.
#pragma once

#include <ATen/ExpandUtils.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "core/problem.h"

namespace paramixer::ops {

// What follows the batch dimensions: (N, columns) in most operands, (N, M, K) in a chain's weight.
inline constexpr int64_t kRank = 2;
inline constexpr int64_t kChainWeightRank = 3;

inline void check_link_count(const char* op, at::IntArrayRef offsets) {
  TORCH_CHECK_VALUE(!offsets.empty() && offsets.size() <= size_t{kMaxLinks}, op,
                    ": offsets must hold 1 to ", kMaxLinks, " links (got ", offsets.size(), ")");
}

inline void check_operand(const char* op, const char* name, const at::Tensor& tensor,
                          int64_t rank) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK_TYPE(
      type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, op,
      ": ", name, " must be float64, float32, bfloat16 or float16 (got ", type, ")");
  TORCH_CHECK_VALUE(tensor.dim() >= rank, op, ": ", name, " must have at least ",
                    rank == kRank ? "two" : "three", " dimensions (got shape ", tensor.sym_sizes(),
                    ")");
}

// Rules that operators of two operands share, called `first_name` and `second_name`; the first
// has `first_rank` dimensions besides the batch, the second is (*, N, columns).
inline void check_operands(const char* op, const char* first_name, const at::Tensor& first,
                           int64_t first_rank, const char* second_name, const at::Tensor& second) {
  check_operand(op, first_name, first, first_rank);
  check_operand(op, second_name, second, kRank);
  TORCH_CHECK_TYPE(first.scalar_type() == second.scalar_type(), op, ": ", first_name, " and ",
                   second_name, " must have one dtype (got ", first.scalar_type(), " and ",
                   second.scalar_type(), ")");
  TORCH_CHECK_VALUE(first.device() == second.device(), op, ": ", first_name, " and ", second_name,
                    " must be on one device (got ", first.device(), " and ", second.device(), ")");
  TORCH_CHECK_VALUE(first.sym_size(-first_rank) == second.sym_size(-kRank), op, ": ", first_name,
                    " and ", second_name, " must have the same length N in ",
                    first_rank == kRank ? "dimension -2" : "dimensions -3 and -2", " (got shapes ",
                    first.sym_sizes(), " and ", second.sym_sizes(), ")");
  const int64_t shared = std::min(first.dim() - first_rank, second.dim() - kRank);
  for (int64_t d = 1; d <= shared; ++d) {
    const auto a = first.sym_size(-first_rank - d);
    const auto b = second.sym_size(-kRank - d);
    TORCH_CHECK_VALUE(a == b || a == 1 || b == 1, op, ": batch dimensions of ", first_name, " and ",
                      second_name, " must broadcast (got shapes ", first.sym_sizes(), " and ",
                      second.sym_sizes(), ")");
  }
}

// (batch of first and second broadcast, N, columns)
inline c10::SymDimVector result_shape(const at::Tensor& first, const at::Tensor& second,
                                      const c10::SymInt& columns, int64_t first_rank = kRank) {
  const auto batch = [](const at::Tensor& t, int64_t rank) {
    return t.sym_sizes().slice(0, t.dim() - rank);
  };
  const auto broadcast = at::infer_size_symint(batch(first, first_rank), batch(second, kRank));
  c10::SymDimVector shape(broadcast.begin(), broadcast.end());
  shape.push_back(second.sym_size(-2));
  shape.push_back(columns);
  return shape;
}

// mix and mix_transpose: weight (*, N, K) and value (*, N, D) with K offsets.
inline void check_mix(const char* op, const at::Tensor& weight, const at::Tensor& value,
                      at::IntArrayRef offsets) {
  check_link_count(op, offsets);
  check_operands(op, "weight", weight, kRank, "value", value);
  TORCH_CHECK_VALUE(weight.sym_size(-1) == static_cast<int64_t>(offsets.size()), op,
                    ": weight must have one column per offset (got shape ", weight.sym_sizes(),
                    " and ", offsets.size(), " offsets)");
}

// grad and value, both (*, N, D).
inline void check_link_dot(const char* op, const at::Tensor& grad, const at::Tensor& value,
                           at::IntArrayRef offsets) {
  check_link_count(op, offsets);
  check_operands(op, "grad", grad, kRank, "value", value);
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

// ---- Chains

// The position of `value` among `choices`.
template <size_t count>
size_t check_choice(const char* op, const char* name, std::string_view value,
                    const std::array<std::string_view, count>& choices) {
  const auto found = std::find(choices.begin(), choices.end(), value);
  if (found == choices.end()) {
    std::string list;
    for (const auto choice : choices)
      list += (list.empty() ? "'" : ", '") + std::string(choice) + "'";
    TORCH_CHECK_VALUE(false, op, ": ", name, " must be one of (", list, ") (got '", value, "')");
  }
  return found - choices.begin();
}

inline Residual parse_residual(const char* op, std::string_view residual) {
  constexpr std::array<std::string_view, 3> kResiduals = {"none", "previous", "initial"};
  return static_cast<Residual>(check_choice(op, "residual", residual, kResiduals));
}

// weight (*, N, M, K), value (*, N, D) and M K offsets.
inline Residual check_chain_operands(const char* op, const at::Tensor& weight,
                                     const at::Tensor& value, at::IntArrayRef offsets,
                                     std::string_view residual) {
  check_operands(op, "weight", weight, kChainWeightRank, "value", value);
  const auto factors = weight.sym_size(-2);
  const auto links = weight.sym_size(-1);
  TORCH_CHECK_VALUE(factors >= 1, op, ": weight must hold at least one factor in dimension -2 ",
                    "(got shape ", weight.sym_sizes(), ")");
  TORCH_CHECK_VALUE(links >= 1 && links <= kMaxLinks, op, ": weight must hold 1 to ", kMaxLinks,
                    " links in dimension -1 (got shape ", weight.sym_sizes(), ")");
  TORCH_CHECK_VALUE(factors * links == static_cast<int64_t>(offsets.size()), op,
                    ": offsets must hold M K integers, one per factor and link of weight ", "(got ",
                    offsets.size(), " for shape ", weight.sym_sizes(), ")");
  return parse_residual(op, residual);
}

struct ChainChoices {
  Residual residual;
  bool save_boundaries;  // whether states between the factors are saved for the backward pass
};

inline ChainChoices check_mix_chain(const at::Tensor& weight, const at::Tensor& value,
                                    at::IntArrayRef offsets, std::string_view residual,
                                    std::string_view save) {
  constexpr std::array<std::string_view, 2> kSaves = {"boundaries", "input"};
  return {check_chain_operands("mix_chain", weight, value, offsets, residual),
          check_choice("mix_chain", "save", save, kSaves) == 0};
}

inline Residual check_chain_boundaries(const char* op, const at::Tensor& weight,
                                       const at::Tensor& value, at::IntArrayRef offsets,
                                       std::string_view residual, at::IntArrayRef boundaries) {
  const Residual parsed = check_chain_operands(op, weight, value, offsets, residual);
  int64_t previous = 0;
  for (const int64_t boundary : boundaries) {
    TORCH_CHECK_VALUE(boundary > previous && weight.sym_size(-2) > boundary, op,
                      ": boundaries must ascend from at least 1 to at most M - 1 (got ", boundaries,
                      " and M = ", weight.sym_size(-2), ")");
    previous = boundary;
  }
  return parsed;
}

inline Residual check_mix_chain_forward(const at::Tensor& weight, const at::Tensor& value,
                                        at::IntArrayRef offsets, std::string_view residual,
                                        at::IntArrayRef boundaries) {
  return check_chain_boundaries("mix_chain_forward", weight, value, offsets, residual, boundaries);
}

// grad has the shape of mix_chain(weight, value), and states that shape once per boundary.
inline Residual check_mix_chain_backward(const at::Tensor& grad, const at::Tensor& weight,
                                         const at::Tensor& value, const at::Tensor& states,
                                         at::IntArrayRef offsets, std::string_view residual,
                                         at::IntArrayRef boundaries) {
  constexpr auto kOp = "mix_chain_backward";
  const Residual parsed = check_chain_boundaries(kOp, weight, value, offsets, residual, boundaries);
  auto shape = result_shape(weight, value, value.sym_size(-1), kChainWeightRank);
  const auto check_like_result = [&](const char* name, const at::Tensor& tensor) {
    TORCH_CHECK_TYPE(tensor.scalar_type() == value.scalar_type(), kOp, ": ", name,
                     " and value must have one dtype (got ", tensor.scalar_type(), " and ",
                     value.scalar_type(), ")");
    TORCH_CHECK_VALUE(tensor.device() == value.device(), kOp, ": ", name,
                      " and value must be on one device (got ", tensor.device(), " and ",
                      value.device(), ")");
    TORCH_CHECK_VALUE(tensor.sym_sizes() == c10::SymIntArrayRef(shape), kOp, ": ", name,
                      " must have the shape of mix_chain_forward(weight, value) (got ",
                      tensor.sym_sizes(), ", expected ", c10::SymIntArrayRef(shape), ")");
  };
  check_like_result("grad", grad);
  shape.insert(shape.begin(), static_cast<int64_t>(boundaries.size()));
  check_like_result("states", states);
  return parsed;
}

// ---- Rotations

// value (*, N, D) with T shifts, T dividing D; lengths (*).
inline void check_rotate_tracks(const at::Tensor& value, at::IntArrayRef shifts,
                                const std::optional<at::Tensor>& lengths) {
  constexpr auto kOp = "rotate_tracks";
  const auto tracks = static_cast<int64_t>(shifts.size());
  TORCH_CHECK_VALUE(tracks >= 1 && tracks <= kMaxLinks, kOp, ": shifts must hold 1 to ", kMaxLinks,
                    " tracks (got ", tracks, ")");
  for (const int64_t shift : shifts) {
    TORCH_CHECK_VALUE(shift != std::numeric_limits<int64_t>::min(), kOp,
                      ": shifts must be greater than -2^63, which has no opposite (got ", shift,
                      ")");
  }
  check_operand(kOp, "value", value, kRank);
  TORCH_CHECK_VALUE(value.sym_size(-1) % tracks == 0, kOp,
                    ": value must have channels D in dimension -1 that divide into one track per "
                    "shift (got shape ",
                    value.sym_sizes(), " and ", tracks, " shifts)");
  if (!lengths.has_value()) return;
  TORCH_CHECK_TYPE(lengths->scalar_type() == at::kLong, kOp, ": lengths must be int64 (got ",
                   lengths->scalar_type(), ")");
  TORCH_CHECK_VALUE(lengths->device() == value.device(), kOp,
                    ": value and lengths must be on one device (got ", value.device(), " and ",
                    lengths->device(), ")");
  const auto batch = value.sym_sizes().slice(0, value.dim() - kRank);
  TORCH_CHECK_VALUE(lengths->sym_sizes() == batch, kOp,
                    ": lengths must have the batch dimensions of value, ", batch, " (got shape ",
                    lengths->sym_sizes(), ")");
}

}  // namespace paramixer::ops
