// One kernel with its one parameter onto a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace paramixer::cuda {

template <typename Function, typename Arguments>
cudaError_t enqueue(Function function, Arguments arguments, int64_t blocks, int threads,
                    int64_t shared_bytes, cudaStream_t stream) {
  const auto* kernel = reinterpret_cast<const void*>(function);
  if (shared_bytes > 0) {
    // Per device, and a stream may be of any: cheaper to repeat than to remember.
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  void* parameters[] = {&arguments};
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads), parameters,
                          static_cast<size_t>(shared_bytes), stream);
}

}  // namespace paramixer::cuda
