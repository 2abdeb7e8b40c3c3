#include "launch_band.cuh"

namespace paramixer::cuda {

template cudaError_t launch_band<Float16>(const BandPass& pass, cudaStream_t stream);

}  // namespace paramixer::cuda
