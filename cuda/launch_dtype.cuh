// Choose the variant, fill its arguments, launch it.
#pragma once

#include "kernels.cuh"
#include "launch_dtype.h"

namespace paramixer::cuda {

template <typename T>
cudaError_t launch(Kernel kernel, const Problem& problem, cudaStream_t stream) {
  const LaunchShape shape = launch_shape(kernel, sizeof(T), problem);
  return with_kernel<T>(kernel, problem, shape, [&](auto function, auto arguments) {
    void* parameters[] = {&arguments};
    return cudaLaunchKernel(reinterpret_cast<const void*>(function),
                            dim3(static_cast<unsigned>(shape.blocks)), dim3(shape.threads),
                            parameters, /*sharedMem=*/0, stream);
  });
}

}  // namespace paramixer::cuda
