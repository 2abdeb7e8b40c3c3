// Autocast: every operator is a sum of products, so it runs in the autocast dtype, as matmul does.
#pragma once

#include <ATen/autocast_mode.h>

#include <optional>

namespace paramixer::ops {

template <c10::DeviceType device>
struct Autocast {
  c10::impl::ExcludeDispatchKeyGuard no_autocast{
      c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device))};
  at::ScalarType dtype = at::autocast::get_autocast_dtype(device);

  at::Tensor operator()(const at::Tensor& tensor) const {
    return at::autocast::cached_cast(dtype, tensor, device);
  }
  std::optional<at::Tensor> operator()(const std::optional<at::Tensor>& tensor) const {
    return tensor.has_value() ? std::optional((*this)(*tensor)) : std::nullopt;
  }
};

}  // namespace paramixer::ops
