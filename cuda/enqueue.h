// One kernel with its one parameter onto a stream.
#pragma once

#include <cuda_runtime_api.h>

#include "launch_shape.h"

namespace paramixer::cuda {

template <typename Function, typename Arguments>
cudaError_t enqueue(Function function, Arguments arguments, const LaunchShape& shape,
                    cudaStream_t stream) {
  void* parameters[] = {&arguments};
  return cudaLaunchKernel(reinterpret_cast<const void*>(function),
                          dim3(static_cast<unsigned>(shape.blocks)), dim3(shape.threads),
                          parameters, /*sharedMem=*/0, stream);
}

}  // namespace paramixer::cuda
