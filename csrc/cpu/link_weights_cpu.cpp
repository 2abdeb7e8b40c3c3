// The CPU key of link_weights and its gradient: tiles of rows are shared over threads.

#include <ATen/Functions.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "ops/link_weights.h"
#include "ops/prepare.h"

#ifndef _OPENMP
#error "at::parallel_for is silently serial in a file that is compiled without OpenMP"
#endif

namespace paramixer::cpu {
namespace {

using ops::OptionalTensor;

// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kGrain = 65536;

// Parts that the rows are cut into for the gradients of the parameters, which are sums over rows.
// They do not depend on the number of threads, so that neither do the sums.
constexpr int64_t kMostChunks = 32;
constexpr int64_t kLeastChunk = 4 * kLinkTile;

// Memory for the kernel that this thread runs; it is kept from call to call.
void* thread_scratch(size_t bytes) {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local size_t held = 0;
  if (held < bytes) {
    held = (bytes + 4095) / 4096 * 4096;
    memory.reset(std::aligned_alloc(4096, held));
    TORCH_CHECK_WITH(OutOfMemoryError, memory != nullptr, "link_weights: no memory for ", held,
                     " bytes");
  }
  return memory.get();
}

// The networks as the kernels read them, and the tensors that hold what they read.
class PreparedNetworks {
 public:
  PreparedNetworks(const at::Tensor& x, const at::Tensor& hidden_weight,
                   const OptionalTensor& hidden_bias, const at::Tensor& output_weight)
      : sums_(x.options().dtype(at::toOpMathType(x.scalar_type()))) {
    networks.width = x.size(-1);
    networks.factors = output_weight.size(0);
    networks.outputs = output_weight.size(1);
    networks.hidden = output_weight.size(2);
    networks.x = rows(x);
    networks.hidden_weight_transposed = parameter(by_factor(hidden_weight).transpose(1, 2));
    networks.hidden_bias = bias(hidden_bias, networks.hidden);
  }

  // What only one of the two passes needs.
  void prepare_forward(const at::Tensor& output_weight, const OptionalTensor& output_bias) {
    networks.output_weight_transposed = parameter(output_weight.transpose(1, 2));
    networks.output_bias = bias(output_bias, networks.outputs);
  }
  void prepare_backward(const at::Tensor& hidden_weight, const at::Tensor& output_weight,
                        const at::Tensor& grad) {
    networks.hidden_weight = parameter(by_factor(hidden_weight));
    networks.output_weight = parameter(output_weight);
    networks.grad = rows(grad);
  }

  void* scratch() const {
    return thread_scratch(link_scratch(networks) * sums_.dtype().itemsize());
  }

  const at::TensorOptions& sums() const {
    return sums_;
  }  // of the type that products are summed in

  LinkNetworks networks;

 private:
  at::Tensor by_factor(const at::Tensor& hidden_weight) const {
    return hidden_weight.reshape({networks.factors, networks.hidden, networks.width});
  }

  const void* rows(const at::Tensor& tensor) { return keep(tensor.contiguous()); }

  const void* parameter(const at::Tensor& tensor) { return keep(tensor.to(sums_).contiguous()); }

  const void* bias(const OptionalTensor& tensor, int64_t columns) {
    return tensor.has_value() ? parameter(*tensor)
                              : keep(at::zeros({networks.factors, columns}, sums_));
  }

  const void* keep(const at::Tensor& tensor) {
    kept_.push_back(tensor);
    return tensor.const_data_ptr();
  }

  at::TensorOptions sums_;
  std::vector<at::Tensor> kept_;
};

at::Tensor link_weights(const at::Tensor& x, const at::Tensor& hidden_weight,
                        const OptionalTensor& hidden_bias, const at::Tensor& output_weight,
                        const OptionalTensor& output_bias) {
  const at::Tensor result =
      ops::allocate_link_weights(x, hidden_weight, hidden_bias, output_weight, output_bias);
  if (result.numel() == 0) return result;
  PreparedNetworks prepared(x, hidden_weight, hidden_bias, output_weight);
  prepared.prepare_forward(output_weight, output_bias);
  LinkNetworks& n = prepared.networks;
  n.result = result.mutable_data_ptr();
  const auto& kernels = selected_instruction_set().link_kernels_of(ops::dtype_of(x));
  const int64_t rows = result.numel() / (n.factors * n.outputs);
  const int64_t tiles = (rows + kLinkTile - 1) / kLinkTile;
  const int64_t work = kLinkTile * hidden_weight.numel();
  at::parallel_for(0, tiles, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work)),
                   [&](int64_t begin, int64_t end) {
                     kernels.forward(n, begin * kLinkTile, std::min(end * kLinkTile, rows),
                                     prepared.scratch());
                   });
  return result;
}

// Where the gradients of the parameters lie in a row of sums, and that row's length.
struct GradientLayout {
  int64_t hidden_weight, output_weight, hidden_bias, output_bias, end;

  explicit GradientLayout(const LinkNetworks& n) {
    const int64_t hidden = n.factors * n.hidden;
    hidden_weight = 0;
    output_weight = hidden * padded(n.width);
    hidden_bias = output_weight + hidden * padded(n.outputs);
    output_bias = hidden_bias + hidden;
    end = padded(output_bias + n.factors * n.outputs);
  }

  LinkGradients at(void* sums, int64_t element_size) const {
    const auto place = [&](int64_t elements) {
      return static_cast<char*>(sums) + elements * element_size;
    };
    return {place(hidden_weight), place(output_weight), place(hidden_bias), place(output_bias)};
  }
};

ops::LinkGradientTensors link_weights_backward(const at::Tensor& grad, const at::Tensor& x,
                                               const at::Tensor& hidden_weight,
                                               const OptionalTensor& hidden_bias,
                                               const at::Tensor& output_weight, bool wants_x) {
  const auto gradients = ops::allocate_link_weights_backward(grad, x, hidden_weight, hidden_bias,
                                                             output_weight, wants_x);
  const auto& [d_x, d_hidden_weight, d_hidden_bias, d_output_weight, d_output_bias] = gradients;
  PreparedNetworks prepared(x, hidden_weight, hidden_bias, output_weight);
  prepared.prepare_backward(hidden_weight, output_weight, grad);
  LinkNetworks& n = prepared.networks;
  if (wants_x) n.grad_x = d_x.mutable_data_ptr();
  const auto& kernels = selected_instruction_set().link_kernels_of(ops::dtype_of(x));
  const int64_t rows = c10::multiply_integers(x.sizes().slice(0, x.dim() - 1));
  const int64_t chunk = std::max(kLeastChunk, (rows / kMostChunks / kLinkTile + 1) * kLinkTile);
  const int64_t chunks = std::max<int64_t>(1, (rows + chunk - 1) / chunk);
  const GradientLayout layout(n);
  const at::Tensor parts = at::zeros({chunks, layout.end}, prepared.sums());
  char* const data = static_cast<char*>(parts.mutable_data_ptr());
  const int64_t size = parts.element_size();
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      kernels.backward(n, layout.at(data + c * layout.end * size, size), c * chunk,
                       std::min((c + 1) * chunk, rows), prepared.scratch());
    }
  });

  at::Tensor sum = parts[0];
  for (int64_t c = 1; c < chunks; ++c) sum.add_(parts[c]);
  const int64_t hidden = n.factors * n.hidden;
  const auto weight = [&](int64_t begin, int64_t columns) {  // (M, h, columns)
    const auto padded_columns =
        sum.narrow(0, begin, hidden * padded(columns)).view({n.factors, n.hidden, padded(columns)});
    return padded_columns.narrow(2, 0, columns);
  };
  d_hidden_weight.copy_(weight(layout.hidden_weight, n.width).reshape({hidden, n.width}));
  d_hidden_bias.copy_(sum.narrow(0, layout.hidden_bias, hidden));
  d_output_weight.copy_(weight(layout.output_weight, n.outputs).transpose(1, 2));
  d_output_bias.view(-1).copy_(sum.narrow(0, layout.output_bias, n.factors * n.outputs));
  return gradients;
}

TORCH_LIBRARY_IMPL(paramixer, CPU, m) {
  m.impl("link_weights", &link_weights);
  m.impl("link_weights_backward", &link_weights_backward);
}

}  // namespace
}  // namespace paramixer::cpu
