#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace paramixer::cpu {

extern const InstructionSet kBaseline;
#if defined(PARAMIXER_X86)
extern const InstructionSet kAvx2;
extern const InstructionSet kAvx512;
#endif

std::span<const InstructionSet* const> instruction_sets() {
  static const InstructionSet* const all[] = {
#if defined(PARAMIXER_X86)
      &kAvx512, &kAvx2,
#endif
      &kBaseline};
  return all;
}

namespace {

const InstructionSet& select() {
  const char* wanted = std::getenv("PARAMIXER_CPU_ISA");
  std::string names;
  for (const InstructionSet* set : instruction_sets()) {
    if (!set->supported()) continue;
    if (wanted == nullptr || std::string(wanted) == set->name) return *set;
    names += names.empty() ? set->name : std::string(", ") + set->name;
  }
  throw std::runtime_error(
      "PARAMIXER_CPU_ISA must name an instruction set this processor supports: " + names +
      " (got " + wanted + ")");
}

}  // namespace

const InstructionSet& selected_instruction_set() {
  static const InstructionSet& selected = select();
  return selected;
}

// As the tasks in chain.inl and chain_backward.inl lay it out.
int64_t chain_scratch_bytes(const ChainProblem& chain, DType dtype, Pass pass, int64_t width) {
  const auto bytes = [&]<typename A>() {
    constexpr int64_t kLanes = 64 / sizeof(A);
    const int64_t length = chain.problem.length, row = scratch_row<A>(width);
    const bool widens = dtype == DType::kBFloat16 || dtype == DType::kFloat16;
    const bool pads =
        pass == Pass::kBackward && (width % kLanes != 0 || chain.problem.channels % kLanes != 0);
    int64_t elements = scratch_row<A>(length * 2 * chain.problem.links);  // a sweep's weights
    if (widens || pads) elements += 2 * length * row;                     // V and the result
    if (pass == Pass::kForward) return (elements + 2 * length * row) * int64_t{sizeof(A)};
    if (chain.residual == Residual::kInitial) elements += length * row;
    elements += 4 * scratch_ring(kTileRows, row) + kTileRows * kPairRow;
    const bool has_singles = has_single_factors(chain);
    if (has_singles) elements += 2 * scratch_ring(length, row);  // gradients
    for (int s = 0; s < chain.sweep_count; ++s) {
      const Sweep& sweep = chain.sweeps[s];
      if (sweep.factors == 2) elements += (sweep.ring + 2 * kHalo) * kPairRow;
      if (s + 1 == chain.sweep_count) break;
      const int64_t ring = scratch_ring(sweep.deal.rows, row);
      elements += sweep.deal.classes * ring;  // states
      if (sweep.deal.classes > 1 && has_singles) elements += 2 * ring;
    }
    return elements * int64_t{sizeof(A)};
  };
  return dtype == DType::kFloat64 ? bytes.operator()<double>() : bytes.operator()<float>();
}

}  // namespace paramixer::cpu
