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

}  // namespace paramixer::cpu
