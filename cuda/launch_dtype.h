// The launch for one dtype: declared here, defined in launch_dtype.cuh, instantiated in a .cu file.
#pragma once

#include <cuda_runtime_api.h>

#include "core/problem.h"
#include "launch_shape.h"
#include "tile_plan.h"

namespace paramixer::cuda {

template <typename T>
cudaError_t launch(Kernel kernel, const Problem& problem, cudaStream_t stream);
template <typename T>
cudaError_t launch_tile(Direction direction, const ChainProblem& chain, const Sweep& sweep,
                        cudaStream_t stream);

}  // namespace paramixer::cuda
