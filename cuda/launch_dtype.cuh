// Choose the variant, fill its arguments, launch it.
#pragma once

#include "chain_tile_backward.cuh"
#include "enqueue.h"
#include "kernels.cuh"
#include "launch_dtype.h"
#include "window.cuh"

namespace paramixer::cuda {

template <typename T>
cudaError_t launch(Kernel kernel, const Problem& problem, cudaStream_t stream) {
  const LaunchShape shape = launch_shape(kernel, sizeof(T), problem);
  return with_kernel<T>(kernel, problem, shape, [&](auto function, auto arguments) {
    return enqueue(function, arguments, shape.blocks, shape.threads, /*shared_bytes=*/0, stream);
  });
}

template <typename T>
cudaError_t launch_tile(Direction direction, const ChainProblem& chain, const Sweep& sweep,
                        cudaStream_t stream) {
  if (sweep.window > 0) {
    const auto run = [&](auto function, const auto& arguments, const TileShape& shape) {
      return enqueue(function, arguments, shape.blocks, shape.threads, shape.memory.total(),
                     stream);
    };
    return for_each_window_launch<T>(direction, chain, sweep, /*limits=*/{}, run);
  }
  const TileShape shape = tile_shape(direction, sizeof(T), chain, sweep);
  const auto arguments = make_tile_arguments<T>(chain, sweep, shape);
  return enqueue(find_tile_kernel<T>(direction), arguments, shape.blocks, shape.threads,
                 shape.memory.total(), stream);
}

}  // namespace paramixer::cuda
