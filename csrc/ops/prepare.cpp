#include "ops/prepare.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <array>
#include <vector>

#include "ops/check.h"

namespace paramixer::ops {

DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return DType::kFloat64;
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      return DType::kFloat16;
  }
}

namespace {

// The five operands in a fixed order, to treat them alike.
constexpr std::array kTensors = {&Operands::weight, &Operands::value, &Operands::grad,
                                 &Operands::result, &Operands::dots};
constexpr std::array kFields = {&Problem::weight, &Problem::value, &Problem::grad, &Problem::result,
                                &Problem::dots};

bool is_result(at::Tensor Operands::* tensor) {
  return tensor == &Operands::result || tensor == &Operands::dots;
}

// A contiguous tensor for the kernel in place of `tensor`: a copy of an input, room for a result.
at::Tensor stand_in(const at::Tensor& tensor, bool is_result) {
  return is_result ? at::empty(tensor.sizes(), tensor.options()) : tensor.contiguous();
}

// Batch sizes and strides with dimensions of one element dropped and neighbours merged where every
// operand allows it.
struct Batch {
  std::vector<int64_t> sizes;
  std::array<std::vector<int64_t>, kTensors.size()> strides;
};

Batch merged_batch(const Operands& operands, at::IntArrayRef batch_sizes) {
  Batch batch;
  for (size_t d = 0; d < batch_sizes.size(); ++d) {
    if (batch_sizes[d] == 1) continue;
    bool merges = !batch.sizes.empty();
    for (size_t t = 0; t < kTensors.size() && merges; ++t) {
      const at::Tensor& tensor = operands.*kTensors[t];
      merges = !tensor.defined() || batch.strides[t].back() == tensor.stride(d) * batch_sizes[d];
    }
    if (merges) {
      batch.sizes.back() *= batch_sizes[d];
    } else {
      batch.sizes.push_back(batch_sizes[d]);
    }
    for (size_t t = 0; t < kTensors.size(); ++t) {
      const at::Tensor& tensor = operands.*kTensors[t];
      const int64_t stride = tensor.defined() ? tensor.stride(d) : 0;
      if (merges) {
        batch.strides[t].back() = stride;
      } else {
        batch.strides[t].push_back(stride);
      }
    }
  }
  return batch;
}

at::Tensor allocate_result(const at::Tensor& value, c10::SymIntArrayRef shape) {
  if (shape == value.sym_sizes()) return at::empty_like(value);
  return at::empty_symint(shape, value.options());
}

c10::SymDimVector chain_shape(const at::Tensor& weight, const at::Tensor& value) {
  return result_shape(weight, value, value.sym_size(-1), kChainWeightRank);
}

}  // namespace

at::Tensor allocate_mix(const char* op, const at::Tensor& weight, const at::Tensor& value,
                        at::IntArrayRef offsets) {
  check_mix(op, weight, value, offsets);
  return allocate_result(value, result_shape(weight, value, value.sym_size(-1)));
}

at::Tensor allocate_link_dot(const at::Tensor& grad, const at::Tensor& value,
                             at::IntArrayRef offsets) {
  check_link_dot("link_dot", grad, value, offsets);
  const auto links = static_cast<int64_t>(offsets.size());
  return at::empty_symint(result_shape(grad, value, links), value.options());
}

std::pair<at::Tensor, at::Tensor> allocate_mix_backward(const at::Tensor& grad,
                                                        const at::Tensor& weight,
                                                        const at::Tensor& value,
                                                        at::IntArrayRef offsets) {
  check_mix_backward(grad, weight, value, offsets);
  return {allocate_link_dot(grad, value, offsets),
          allocate_mix("mix_backward", weight, grad, offsets)};
}

at::Tensor allocate_mix_chain(const at::Tensor& weight, const at::Tensor& value) {
  return allocate_result(value, chain_shape(weight, value));
}

at::Tensor allocate_chain_states(const at::Tensor& weight, const at::Tensor& value,
                                 at::IntArrayRef boundaries) {
  auto shape = chain_shape(weight, value);
  shape.insert(shape.begin(), static_cast<int64_t>(boundaries.size()));
  return at::empty_symint(shape, value.options());
}

at::Tensor allocate_chain_weight_gradient(const at::Tensor& weight, const at::Tensor& value) {
  auto shape = chain_shape(weight, value);
  shape.back() = weight.sym_size(-2);
  shape.push_back(weight.sym_size(-1));
  return at::empty_symint(shape, weight.options());
}

PreparedProblem::PreparedProblem(const Operands& operands, at::IntArrayRef offsets,
                                 ChannelStride channel_stride)
    : original_(operands) {
  const at::Tensor& full =
      operands.result.defined() ? operands.result : operands.dots;  // has every batch dimension
  const auto batch_sizes = full.sizes().slice(0, full.dim() - 2);
  dtype_ = dtype_of(full);

  for (const auto tensor : kTensors) {
    if (!(operands.*tensor).defined()) continue;
    std::vector<int64_t> shape = batch_sizes.vec();
    shape.push_back((operands.*tensor).size(-2));
    shape.push_back((operands.*tensor).size(-1));
    used_.*tensor = (operands.*tensor).expand(shape);
    const bool has_channels = tensor != &Operands::weight && tensor != &Operands::dots;
    if (has_channels && channel_stride == ChannelStride::kOne && shape.back() > 1 &&
        (used_.*tensor).stride(-1) != 1) {
      used_.*tensor = stand_in(used_.*tensor, is_result(tensor));
    }
  }
  Batch batch = merged_batch(used_, batch_sizes);
  if (batch.sizes.size() > size_t{kMaxBatchDims}) {
    for (const auto tensor : kTensors) {
      if ((used_.*tensor).defined()) used_.*tensor = stand_in(used_.*tensor, is_result(tensor));
    }
    batch = merged_batch(used_, batch_sizes);
  }

  const at::Tensor& channels = used_.value.defined() ? used_.value : used_.grad;
  problem_.length = full.size(-2);
  problem_.channels = channels.size(-1);
  problem_.links = static_cast<int32_t>(offsets.size());
  problem_.batch_dims = static_cast<int32_t>(batch.sizes.size());
  std::copy(batch.sizes.begin(), batch.sizes.end(), problem_.batch_sizes);
  for (size_t k = 0; k < offsets.size(); ++k) {
    problem_.offsets[k] = reduce_offset(offsets[k], problem_.length);
  }
  for (size_t t = 0; t < kTensors.size(); ++t) {
    const at::Tensor& tensor = used_.*kTensors[t];
    if (!tensor.defined()) continue;
    Operand& operand = problem_.*kFields[t];
    operand.data = is_result(kTensors[t]) ? tensor.mutable_data_ptr()
                                          : const_cast<void*>(tensor.const_data_ptr());
    std::copy(batch.strides[t].begin(), batch.strides[t].end(), operand.batch);
    operand.row = tensor.stride(-2);
    operand.column = tensor.stride(-1);
  }
}

void PreparedProblem::finish() {
  for (const auto tensor : {&Operands::result, &Operands::dots}) {
    if ((original_.*tensor).defined() &&
        (original_.*tensor).const_data_ptr() != (used_.*tensor).const_data_ptr()) {
      (original_.*tensor).copy_(used_.*tensor);
    }
  }
}

}  // namespace paramixer::ops
