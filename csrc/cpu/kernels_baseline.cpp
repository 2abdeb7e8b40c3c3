// Portable: vectors of 16 bytes through the compiler's vector types, no processor-specific code.
#define PARAMIXER_ISA_NAMESPACE baseline
#include "cpu/chain_backward.inl"
#include "cpu/kernels.inl"
#include "cpu/link_weights.inl"

namespace paramixer::cpu {
namespace {

bool always_supported() { return true; }

}  // namespace

extern const InstructionSet kBaseline;
const InstructionSet kBaseline = {"baseline", always_supported, PARAMIXER_KERNELS,
                                  PARAMIXER_CHAIN_KERNELS, PARAMIXER_LINK_KERNELS};

}  // namespace paramixer::cpu
