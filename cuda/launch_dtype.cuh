// Choose the variant, fill its arguments, launch it.
#pragma once

#include "chain_tile_backward.cuh"
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

template <typename T>
cudaError_t launch_tile(Direction direction, const ChainProblem& chain, const Sweep& sweep,
                        cudaStream_t stream) {
  const TileShape shape = tile_shape(direction, sizeof(T), chain, sweep);
  auto arguments = make_tile_arguments<T>(direction, chain, sweep, shape);
  const auto* function = reinterpret_cast<const void*>(find_tile_kernel<T>(direction));
  const auto shared_bytes = static_cast<size_t>(shape.memory.total());
  const cudaError_t error = cudaFuncSetAttribute(
      function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  void* parameters[] = {&arguments};
  return cudaLaunchKernel(function, dim3(static_cast<unsigned>(shape.blocks)), dim3(shape.threads),
                          parameters, shared_bytes, stream);
}

}  // namespace paramixer::cuda
