// From a problem and its launch shape to the kernel instantiation that runs it and its arguments.
#pragma once

#include <cstdint>

#include "arguments.h"
#include "launch_shape.h"
#include "link_dot.cuh"
#include "mix.cuh"

namespace paramixer::cuda {

template <typename T, typename Index>
using KernelFunction = void (*)(const Arguments<T, Index>);

template <typename T, typename Index, int kWidth>
KernelFunction<T, Index> find_kernel(Kernel kernel) {
  switch (kernel) {
    case Kernel::kMix:
      return mix_kernel<T, Index, kWidth, false>;
    case Kernel::kMixTranspose:
      return mix_kernel<T, Index, kWidth, true>;
    case Kernel::kLinkDot:
      return link_dot_kernel<T, Index, kWidth>;
    case Kernel::kMixBackward:
      break;
  }
  return mix_backward_kernel<T, Index, kWidth>;
}

// Calls run(kernel, arguments) and returns what it returns.
template <typename T, typename Index, typename Run>
auto with_index(Kernel kernel, const Problem& problem, const LaunchShape& shape, Run run) {
  constexpr int kVector = Traits::kVectorBytes / sizeof(T);
  const auto function =
      shape.width == 1 ? find_kernel<T, Index, 1>(kernel) : find_kernel<T, Index, kVector>(kernel);
  return run(function, make_arguments<T, Index>(problem, shape));
}

template <typename T, typename Run>
auto with_kernel(Kernel kernel, const Problem& problem, const LaunchShape& shape, Run run) {
  return shape.wide_index ? with_index<T, int64_t>(kernel, problem, shape, run)
                          : with_index<T, int32_t>(kernel, problem, shape, run);
}

}  // namespace paramixer::cuda
