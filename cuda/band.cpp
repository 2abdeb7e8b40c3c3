#include "band.h"

#include "launch_band.h"

namespace paramixer::cuda {

cudaError_t launch_band_pass(DType dtype, const BandPass& pass, cudaStream_t stream) {
  switch (dtype) {
    case DType::kBFloat16:
      return launch_band<BFloat16>(pass, stream);
    case DType::kFloat16:
      return launch_band<Float16>(pass, stream);
    case DType::kFloat64:
    case DType::kFloat32:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace paramixer::cuda
