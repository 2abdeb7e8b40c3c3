// The launch of one dtype: declared here, defined in launch_dtype.cuh, instantiated in one .cu file
// per dtype.
#pragma once

#include <cuda_runtime_api.h>

#include "core/problem.h"
#include "launch_shape.h"

namespace paramixer::cuda {

template <typename T>
cudaError_t launch(Kernel kernel, DType dtype, const Problem& problem, cudaStream_t stream);

}  // namespace paramixer::cuda
