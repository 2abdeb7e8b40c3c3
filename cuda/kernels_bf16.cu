#include "launch_dtype.cuh"

namespace paramixer::cuda {

template cudaError_t launch<BFloat16>(Kernel kernel, const Problem& problem, cudaStream_t stream);
template cudaError_t launch_tile<BFloat16>(Direction direction, const ChainProblem& chain,
                                           const Sweep& sweep, cudaStream_t stream);

}  // namespace paramixer::cuda
