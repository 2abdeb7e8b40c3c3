// The launch of a pass for one dtype: declared here, defined in launch_band.cuh, instantiated in a
// .cu file.
#pragma once

#include <cuda_runtime_api.h>

#include "band_pass.h"

namespace paramixer::cuda {

template <typename T>
cudaError_t launch_band(const BandPass& pass, cudaStream_t stream);

}  // namespace paramixer::cuda
