// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c.
#include <immintrin.h>

#define PARAMIXER_ISA_AVX512
#define PARAMIXER_ISA_NAMESPACE avx512
#include "cpu/chain_backward.inl"
#include "cpu/kernels.inl"
#include "cpu/link_weights.inl"

namespace paramixer::cpu {
namespace {

bool processor_has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace

extern const InstructionSet kAvx512;
const InstructionSet kAvx512 = {"avx512", processor_has_avx512, PARAMIXER_KERNELS,
                                PARAMIXER_CHAIN_KERNELS, PARAMIXER_LINK_KERNELS};

}  // namespace paramixer::cpu
