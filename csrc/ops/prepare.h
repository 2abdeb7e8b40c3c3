// What the CPU, CUDA and Meta kernels of an operator do alike: check the arguments, allocate the
// results by the design's layout rule, and describe the operands as a Problem.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "core/problem.h"

namespace paramixer::ops {

// For tensors that a validator has let pass.
DType dtype_of(const at::Tensor& tensor);

// Check the arguments, then allocate the result; no data is read and sizes may be symbolic. A
// result that has exactly the shape of the second operand is at::empty_like of it, whatever its
// strides; any other is contiguous.
at::Tensor allocate_mix(const char* op, const at::Tensor& weight, const at::Tensor& value,
                        at::IntArrayRef offsets);
at::Tensor allocate_link_dot(const at::Tensor& grad, const at::Tensor& value,
                             at::IntArrayRef offsets);
std::pair<at::Tensor, at::Tensor> allocate_mix_backward(const at::Tensor& grad,
                                                        const at::Tensor& weight,
                                                        const at::Tensor& value,
                                                        at::IntArrayRef offsets);

// For chains; the arguments have been checked.
at::Tensor allocate_mix_chain(const at::Tensor& weight, const at::Tensor& value);
at::Tensor allocate_chain_states(const at::Tensor& weight, const at::Tensor& value,
                                 at::IntArrayRef boundaries);
at::Tensor allocate_chain_weight_gradient(const at::Tensor& weight, const at::Tensor& value);

// The tensors of an operator; those it does not have stay undefined.
struct Operands {
  at::Tensor weight = {};
  at::Tensor value = {};
  at::Tensor grad = {};
  at::Tensor result = {};
  at::Tensor dots = {};
};

enum class ChannelStride { kAny, kOne };  // what the kernel can read and write

// Operands as a Problem: batch dimensions are broadcast, and merged where the strides allow. Where
// the kernel cannot take the strides as they are, inputs are copied and results go through a
// temporary until finish().
class PreparedProblem {
 public:
  PreparedProblem(const Operands& operands, at::IntArrayRef offsets, ChannelStride channel_stride);

  const Problem& problem() const { return problem_; }
  DType dtype() const { return dtype_; }
  int64_t rows() const { return batch_count(problem_) * problem_.length; }

  // Copies results that were written to a temporary to where they belong.
  void finish();

 private:
  Operands original_;
  Operands used_;
  Problem problem_;
  DType dtype_;
};

}  // namespace paramixer::ops
