// Choose the variant, fill its arguments, launch it.
#pragma once

#include "band_kernels.cuh"
#include "enqueue.h"
#include "launch_band.h"

namespace paramixer::cuda {

template <typename T>
cudaError_t launch_band(const BandPass& pass, cudaStream_t stream) {
  const BandShape shape = band_shape(pass);
  if (shape.rows == 0) return cudaErrorInvalidValue;
  return enqueue(find_band_kernel<T>(pass), make_band_arguments<T>(pass, shape), shape.blocks,
                 shape.threads, shape.shared_bytes, stream);
}

}  // namespace paramixer::cuda
