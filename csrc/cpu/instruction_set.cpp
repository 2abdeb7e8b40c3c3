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

namespace {

// What a thread needs to take one ring through the sweeps from `first` on, as the tasks in
// chain.inl and chain_backward.inl lay it out; of no sweeps, to take part in those before.
template <typename A>
int64_t scratch_elements(const ChainProblem& chain, Pass pass, int64_t width, int first) {
  const int64_t length = first < chain.sweep_count ? chain.sweeps[first].ring : 0;
  const int64_t row = scratch_row<A>(width);
  int64_t elements = scratch_row<A>(length * 2 * chain.problem.links);  // a sweep's weights
  if (pass == Pass::kForward) return elements + 2 * length * row;
  elements += 4 * scratch_ring(kTileRows, row) + kTileRows * kPairRow;
  const int kept = first_kept_gradient(chain);
  if (first >= kept) elements += 2 * scratch_ring(length, row);  // gradients
  for (int s = first; s < chain.sweep_count; ++s) {
    const Sweep& sweep = chain.sweeps[s];
    if (sweep.factors == 2) elements += (sweep.ring + 2 * kHalo) * kPairRow;
    if (s + 1 == chain.sweep_count) break;
    const int64_t ring = scratch_ring(sweep.deal.rows, row);
    elements += sweep.deal.classes * ring;  // states
    if (s + 1 == kept || (s + 1 > kept && sweep.deal.classes > 1)) elements += 2 * ring;
  }
  return elements;
}

// And what a task needs for all rows beside the sweeps.
template <typename A>
int64_t operand_elements(const ChainProblem& chain, DType dtype, Pass pass, int64_t width) {
  constexpr int64_t kLanes = 64 / sizeof(A);
  const int64_t rows = chain.problem.length * scratch_row<A>(width);
  const bool widens = dtype == DType::kBFloat16 || dtype == DType::kFloat16;
  const bool backward = pass == Pass::kBackward;
  const bool pads = backward && (width % kLanes != 0 || chain.problem.channels % kLanes != 0);
  const bool sums_gradients = backward && chain.residual == Residual::kInitial;
  return (widens || pads ? 2 * rows : 0) + (sums_gradients ? rows : 0) +
         widened_weights(chain, dtype, pass);
}

// body<A>() is a number of accumulators.
template <typename Body>
int64_t bytes_of(DType dtype, const Body& body) {
  if (dtype == DType::kFloat64)
    return body.template operator()<double>() * int64_t { sizeof(double) };
  return body.template operator()<float>() * int64_t { sizeof(float) };
}

}  // namespace

int64_t chain_scratch_bytes(const ChainProblem& chain, DType dtype, Pass pass, int64_t width) {
  return bytes_of(dtype, [&]<typename A>() {
    return operand_elements<A>(chain, dtype, pass, width) +
           scratch_elements<A>(chain, pass, width, 0);
  });
}

int64_t team_scratch_bytes(const ChainProblem& chain, DType dtype, Pass pass, int64_t width) {
  const int first = first_class_sweep(chain);
  return bytes_of(dtype,
                  [&]<typename A>() { return scratch_elements<A>(chain, pass, width, first); });
}

}  // namespace paramixer::cpu
