// From a pass to the kernel instantiation that runs it.
#pragma once

#include "band.cuh"

namespace paramixer::cuda {

template <typename T>
using BandFunction = void (*)(const BandArguments<T>);

template <typename T, int kLinks>
BandFunction<T> find_band_kernel(const BandPass& pass) {
  using Traits = BandTraits<kLinks>;
  if (pass.transpose) {
    return pass.keep ? band_kernel<T, Traits, true, true> : band_kernel<T, Traits, true, false>;
  }
  return pass.keep ? band_kernel<T, Traits, false, true> : band_kernel<T, Traits, false, false>;
}

template <typename T>
BandFunction<T> find_band_kernel(const BandPass& pass) {
  switch (pass.problem.links) {
    case 3:
      return find_band_kernel<T, 3>(pass);
    case 5:
      return find_band_kernel<T, 5>(pass);
    case 7:
      return find_band_kernel<T, 7>(pass);
    default:
      return find_band_kernel<T, 9>(pass);
  }
}

}  // namespace paramixer::cuda
