// Passes of composed bands (band.cuh) as a plain C++ function. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "band_pass.h"
#include "core/numeric.h"

namespace paramixer::cuda {

// Queues a pass that band_serves (band_pass.h) on `stream`; operands lie in memory of the current
// device, the result is not empty. The return value is that of the launch.
cudaError_t launch_band_pass(DType dtype, const BandPass& pass, cudaStream_t stream);

}  // namespace paramixer::cuda
