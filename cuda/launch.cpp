#include "launch.h"

#include "launch_dtype.h"

namespace paramixer::cuda {
namespace {

cudaError_t launch_any(Kernel kernel, DType dtype, const Problem& problem, cudaStream_t stream) {
  switch (dtype) {
    case DType::kFloat64:
      return launch<double>(kernel, problem, stream);
    case DType::kFloat32:
      return launch<float>(kernel, problem, stream);
    case DType::kBFloat16:
      return launch<BFloat16>(kernel, problem, stream);
    case DType::kFloat16:
      return launch<Float16>(kernel, problem, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_any_tile(Direction direction, DType dtype, const ChainProblem& chain,
                            const Sweep& sweep, cudaStream_t stream) {
  switch (dtype) {
    case DType::kFloat64:
      break;  // no plan has tiles
    case DType::kFloat32:
      return launch_tile<float>(direction, chain, sweep, stream);
    case DType::kBFloat16:
      return launch_tile<BFloat16>(direction, chain, sweep, stream);
    case DType::kFloat16:
      return launch_tile<Float16>(direction, chain, sweep, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t mix(DType dtype, const Problem& problem, cudaStream_t stream) {
  return launch_any(Kernel::kMix, dtype, problem, stream);
}

cudaError_t mix_transpose(DType dtype, const Problem& problem, cudaStream_t stream) {
  return launch_any(Kernel::kMixTranspose, dtype, problem, stream);
}

cudaError_t link_dot(DType dtype, const Problem& problem, cudaStream_t stream) {
  return launch_any(Kernel::kLinkDot, dtype, problem, stream);
}

cudaError_t mix_backward(DType dtype, const Problem& problem, cudaStream_t stream) {
  return launch_any(Kernel::kMixBackward, dtype, problem, stream);
}

cudaError_t chain_tile(DType dtype, const ChainProblem& chain, const Sweep& sweep,
                       cudaStream_t stream) {
  return launch_any_tile(Direction::kForward, dtype, chain, sweep, stream);
}

cudaError_t chain_tile_backward(DType dtype, const ChainProblem& chain, const Sweep& sweep,
                                cudaStream_t stream) {
  return launch_any_tile(Direction::kBackward, dtype, chain, sweep, stream);
}

}  // namespace paramixer::cuda
