// The operators for C++ users. They go through PyTorch's dispatcher, so C++ and Python share one
// path with autograd (to any order), autocast and every device; saved models that call paramixer::
// operators need this library loaded.
//
//   W  weight  (*, N, K)   one row of K link weights per position
//   V  value   (*, N, D)   D channels per position
//   o  offsets K integers of any sign and size; links that coincide modulo N add up
//
// Batch dimensions broadcast as in at::matmul. float64, float32, bfloat16 and float16; any strides.
// Errors are c10::ValueError (shapes, values), c10::TypeError (dtypes) and c10::NotImplementedError
// (devices).
#pragma once

#include <ATen/core/Tensor.h>
#include <paramixer/build_info.h>
#include <paramixer/links.h>
#include <paramixer/version.h>

#include <optional>
#include <string_view>

namespace paramixer {

// Y[i,c] = sum_k W[i,k] V[(i + o_k) mod N, c]: one sparse factor applied to V. (*, N, D)
PARAMIXER_API at::Tensor mix(const at::Tensor& weight, const at::Tensor& value,
                             at::IntArrayRef offsets);

// X[j,c] = sum_k W[(j - o_k) mod N, k] V[(j - o_k) mod N, c]: the transposed factor applied to V.
// (*, N, D)
PARAMIXER_API at::Tensor mix_transpose(const at::Tensor& weight, const at::Tensor& value,
                                       at::IntArrayRef offsets);

// A[i,k] = sum_c G[i,c] V[(i + o_k) mod N, c]: the inner products along the links. (*, N, K)
PARAMIXER_API at::Tensor link_dot(const at::Tensor& grad, const at::Tensor& value,
                                  at::IntArrayRef offsets);

// V_0 = V; V_m = S_m(W_m) V_{m-1} + R_m for m = 1 .. M: a whole chain of factors applied to V. The
// weight is (*, N, M, K), offsets are M K integers, one factor after the other, and the result V_M
// is (*, N, D).
//
//   residual  R_m: "none" 0, "previous" V_{m-1}, "initial" V_0
//   save      what training keeps besides W: "boundaries" at most three tensors of V's size,
//   "input"
//             V alone, and computes the rest again
//
// CUDA in 16 bits merges CDIL factors into bands where that is faster: a non-finite value can then
// reach rows of its tile and channel that no link leads to. PARAMIXER_CUDA_BANDS=off in the
// environment, read once, turns bands off.
PARAMIXER_API at::Tensor mix_chain(const at::Tensor& weight, const at::Tensor& value,
                                   at::IntArrayRef offsets, std::string_view residual = "none",
                                   std::string_view save = "boundaries");

// W[..,m,:] = output_weight[m] gelu(hidden_weight[m h .. m h + h - 1] x[..] + hidden_bias[..]) +
// output_bias[m]: the links of M factors, computed from data by M networks with h hidden units; the
// GELU is the exact one. x (*, E), hidden_weight (M h, E), hidden_bias (M h), output_weight
// (M, Q, h), output_bias (M, Q). (*, M, Q)
PARAMIXER_API at::Tensor link_weights(const at::Tensor& x, const at::Tensor& hidden_weight,
                                      const std::optional<at::Tensor>& hidden_bias,
                                      const at::Tensor& output_weight,
                                      const std::optional<at::Tensor>& output_bias);

// Y[i,c] = V[(i + o_t) mod L, c] for i < L, 0 for L <= i < N: the channels are cut into T tracks of
// equal width, t = c / (D / T), and track t of each sequence is rotated by shift o_t. V is
// (*, N, D), the shifts are 1 <= T <= 64 integers, T dividing D; lengths (*), int64, gives every
// sequence its ring of L rows, 0 <= L <= N, the rest being padding; without it L = N. (*, N, D)
PARAMIXER_API at::Tensor rotate_tracks(const at::Tensor& value, at::IntArrayRef shifts,
                                       const std::optional<at::Tensor>& lengths = std::nullopt);

}  // namespace paramixer
