// Choose the variant, fill its arguments, launch it.
#pragma once

#include "enqueue.h"
#include "kernels.cuh"
#include "launch_dtype.h"

namespace paramixer::cuda {

template <typename T>
cudaError_t launch(Kernel kernel, const Problem& problem, cudaStream_t stream) {
  const LaunchShape shape = launch_shape(kernel, sizeof(T), problem);
  return with_kernel<T>(kernel, problem, shape, [&](auto function, auto arguments) {
    return enqueue(function, arguments, shape, stream);
  });
}

}  // namespace paramixer::cuda
