// From a pass and its shape to the kernel instantiation that runs it, and its launch.
#pragma once

#include "band.cuh"

namespace paramixer::cuda {

template <typename T>
using BandFunction = void (*)(const BandArguments<T>);

template <typename T>
BandFunction<T> find_band_kernel(int links, bool transpose) {
  switch (links) {
    case 3:
      return transpose ? band_kernel<T, BandTraits<3>, true> : band_kernel<T, BandTraits<3>, false>;
    case 5:
      return transpose ? band_kernel<T, BandTraits<5>, true> : band_kernel<T, BandTraits<5>, false>;
    case 7:
      return transpose ? band_kernel<T, BandTraits<7>, true> : band_kernel<T, BandTraits<7>, false>;
    default:
      return transpose ? band_kernel<T, BandTraits<9>, true> : band_kernel<T, BandTraits<9>, false>;
  }
}

}  // namespace paramixer::cuda
