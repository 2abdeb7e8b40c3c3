// Compiled with -mavx2 -mfma -mf16c.
#include <immintrin.h>

#define PARAMIXER_ISA_AVX2
#define PARAMIXER_ISA_NAMESPACE avx2
#include "cpu/chain_backward.inl"
#include "cpu/kernels.inl"
#include "cpu/link_weights.inl"

namespace paramixer::cpu {
namespace {

bool processor_has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

}  // namespace

extern const InstructionSet kAvx2;
const InstructionSet kAvx2 = {"avx2", processor_has_avx2, PARAMIXER_KERNELS,
                              PARAMIXER_CHAIN_KERNELS, PARAMIXER_LINK_KERNELS};

}  // namespace paramixer::cpu
