// Storage types, the type each is summed in, and the one place where values are widened and
// rounded.
//
// float16 and bfloat16 are stored in 16 bits and summed in float32; a result is rounded once, when
// it is stored (to nearest, ties to even; overflow gives infinity, NaN stays NaN). Torch-free;
// compiles for host and device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define PARAMIXER_INLINE __host__ __device__ __forceinline__
#else
// Always inlined: one inline copy compiled with AVX-512 could otherwise be chosen by the linker for
// every caller.
#define PARAMIXER_INLINE inline __attribute__((always_inline))
#endif

namespace paramixer {

enum class DType : int { kFloat64, kFloat32, kBFloat16, kFloat16 };
inline constexpr int kDTypeCount = 4;

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// The type in which products of T are summed.
template <typename T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <typename T>
using Accumulate = typename AccumulateOf<T>::type;

namespace detail {

template <typename To, typename From>
PARAMIXER_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

PARAMIXER_INLINE float widen_half(uint16_t half) {
  const uint32_t magnitude = half & 0x7fffu;
  // The exponent bias grows by 112; a product with 2^112 does that for subnormal numbers too.
  const float scaled = bit_cast<float>(magnitude << 13) * bit_cast<float>(0x77800000u);
  uint32_t bits = bit_cast<uint32_t>(scaled);
  bits |= magnitude >= 0x7c00u ? 0x7f800000u : 0u;  // infinity and NaN keep the largest exponent
  return bit_cast<float>(bits | (uint32_t{half & 0x8000u} << 16));
}

PARAMIXER_INLINE uint16_t round_to_half(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: a sum with 0.5 rounds to multiples of 2^-24
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<uint16_t>(half | sign);
}

PARAMIXER_INLINE uint16_t round_to_bfloat16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

}  // namespace detail

PARAMIXER_INLINE double widen(double value) { return value; }
PARAMIXER_INLINE float widen(float value) { return value; }
PARAMIXER_INLINE float widen(BFloat16 value) {
  return detail::bit_cast<float>(uint32_t{value.bits} << 16);
}
PARAMIXER_INLINE float widen(Float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  return detail::widen_half(value.bits);
#endif
}

template <typename T>
PARAMIXER_INLINE T narrow(Accumulate<T> value) {
  return value;
}
template <>
PARAMIXER_INLINE BFloat16 narrow<BFloat16>(float value) {
#if defined(__CUDA_ARCH__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  return {detail::round_to_bfloat16(value)};
#endif
}
template <>
PARAMIXER_INLINE Float16 narrow<Float16>(float value) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(value))};
#else
  return {detail::round_to_half(value)};
#endif
}

}  // namespace paramixer
