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

// As the tasks in chain.inl lay it out.
int64_t chain_scratch_bytes(const ChainProblem& chain, DType dtype, Pass pass, int64_t width) {
  const auto bytes = [&]<typename A>(bool widens) {
    const int64_t length = chain.problem.length, row = scratch_row<A>(width);
    int64_t elements = scratch_row<A>(length * 2 * chain.problem.links);  // a sweep's weights
    if (widens) elements += 2 * length * row;                             // V and the result
    if (pass == Pass::kForward) {
      elements += 2 * length * row;  // two states
    } else {
      // The sum of the states' gradients.
      if (chain.residual == Residual::kInitial) elements += length * row;
      for (int s = 0, first = 0; s < chain.sweep_count; ++s) {
        if (chain.sweeps[s].deal.deal == 1 && s + 1 < chain.sweep_count) continue;
        // A run's states, and two gradients.
        elements += (s - first + 2) * scratch_ring(chain.sweeps[s].ring, row);
        first = s + 1;
      }
    }
    return static_cast<int64_t>(sizeof(A)) * elements;
  };
  if (dtype == DType::kFloat64) return bytes.operator()<double>(false);
  return bytes.operator()<float>(dtype != DType::kFloat32);
}

}  // namespace paramixer::cpu
