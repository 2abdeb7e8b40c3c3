// Choose the variant, fill its arguments, launch it.
#pragma once

#include "band_kernels.cuh"
#include "launch_band.h"

namespace paramixer::cuda {

template <typename T>
cudaError_t launch_band(const BandPass& pass, cudaStream_t stream) {
  const BandShape shape = band_shape(pass);
  if (shape.rows == 0) return cudaErrorInvalidValue;
  const auto kernel = reinterpret_cast<const void*>(find_band_kernel<T>(pass));
  // Per device, and a stream may be of any: cheaper to repeat than to remember.
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));
  if (status != cudaSuccess) return status;
  auto arguments = make_band_arguments<T>(pass, shape);
  void* parameters[] = {&arguments};
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(shape.blocks)), dim3(shape.threads),
                          parameters, shape.shared_bytes, stream);
}

}  // namespace paramixer::cuda
