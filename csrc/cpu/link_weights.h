// The CPU kernels of link_weights, torch-free and thread-free: M networks of two layers, one a
// factor, on every row x[r] of E inputs,
//
//   result[r,m,:] = output_weight[m] gelu(hidden_weight[m] x[r] + hidden_bias[m]) + output_bias[m]
//
// Each call works on a range of rows, in scratch memory that the caller lends it.
#pragma once

#include <cstdint>

#include "core/numeric.h"

namespace paramixer::cpu {

// Rows are of the storage type T, parameters and their gradients of Accumulate<T>; all contiguous.
// A second layout of the weights serves the other direction of each product.
struct LinkNetworks {
  int64_t width = 0;    // E
  int64_t factors = 0;  // M
  int64_t hidden = 0;   // h
  int64_t outputs = 0;  // Q

  const void* x = nullptr;                         // (rows, E)
  const void* hidden_weight = nullptr;             // (M, h, E), for grad_x
  const void* hidden_weight_transposed = nullptr;  // (M, E, h)
  const void* hidden_bias = nullptr;               // (M, h)
  const void* output_weight = nullptr;             // (M, Q, h), for the backward pass
  const void* output_weight_transposed = nullptr;  // (M, h, Q), for the forward pass
  const void* output_bias = nullptr;               // (M, Q), for the forward pass

  void* result = nullptr;      // (rows, M, Q)
  const void* grad = nullptr;  // (rows, M, Q), of the result
  void* grad_x = nullptr;      // (rows, E), or null where it is not wanted
};

// What a range of rows adds to the gradients of the parameters. Columns are padded with zeros to
// whole vectors.
struct LinkGradients {
  void* hidden_weight = nullptr;             // (M, h, padded(E))
  void* output_weight_transposed = nullptr;  // (M, h, padded(Q))
  void* hidden_bias = nullptr;               // (M, h)
  void* output_bias = nullptr;               // (M, Q)
};

// 16 lanes are the widest vector of any instruction set.
PARAMIXER_INLINE constexpr int64_t padded(int64_t columns) { return (columns + 15) / 16 * 16; }

// Rows that are worked on together. A range that starts at a multiple of it wastes nothing.
inline constexpr int kLinkTile = 48;

// Elements of Accumulate<T> that either call needs as scratch, aligned to 64 bytes.
PARAMIXER_INLINE constexpr int64_t link_scratch(const LinkNetworks& n) {
  const int64_t forward = n.width + n.hidden + n.outputs + n.factors * n.outputs;
  const int64_t backward =
      2 * n.width + padded(n.width) + 2 * n.hidden + n.outputs + padded(n.outputs);
  return kLinkTile * (forward > backward ? forward : backward);
}

struct LinkKernels {
  void (*forward)(const LinkNetworks&, int64_t begin, int64_t end, void* scratch);
  void (*backward)(const LinkNetworks&, const LinkGradients&, int64_t begin, int64_t end,
                   void* scratch);
};

}  // namespace paramixer::cpu
