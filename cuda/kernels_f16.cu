#include "launch_dtype.cuh"

namespace paramixer::cuda {

template cudaError_t launch<Float16>(Kernel kernel, const Problem& problem, cudaStream_t stream);

}  // namespace paramixer::cuda
