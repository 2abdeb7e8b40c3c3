// Which of PyTorch's transforms are at work where an Autograd kernel is called.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace paramixer::ops {

// Whether a functorch transform is active; its own accessor stays set after first use and cannot
// tell.
inline bool in_functorch() {
  const auto included = c10::impl::tls_local_dispatch_key_set().included_;
  return included.has(c10::DispatchKey::FuncTorchDynamicLayerBackMode) ||
         included.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

inline at::Tensor tangent_of(const at::Tensor& tensor) { return tensor._fw_grad(/*level=*/0); }

template <typename... Tensors>
bool has_tangent(const Tensors&... tensors) {
  return (tangent_of(tensors).defined() || ...);
}

}  // namespace paramixer::ops
