// The CPU kernels of one sparse factor, torch-free and thread-free: each call computes a range of
// rows, and whoever calls decides how ranges are shared over threads. A row is computed the same
// way in whatever range it falls.
#pragma once

#include <cstdint>
#include <span>

#include "core/problem.h"
#include "cpu/link_weights.h"

namespace paramixer::cpu {

// Rows are numbered batch item by batch item: row r is position r % N of batch item r / N.
struct RowRange {
  int64_t begin;
  int64_t end;
};

// Channels that are read and written must have a column stride of one.
using RowKernel = void (*)(const Problem&, RowRange);

struct InstructionSet {
  const char* name;
  bool (*supported)();
  RowKernel kernels[kDTypeCount][kKernelCount];  // by DType and Kernel
  LinkKernels link_kernels[kDTypeCount];         // by DType

  RowKernel kernel(DType dtype, Kernel kernel) const {
    return kernels[static_cast<int>(dtype)][static_cast<int>(kernel)];
  }
  const LinkKernels& link_kernels_of(DType dtype) const {
    return link_kernels[static_cast<int>(dtype)];
  }
};

// Best first; the last one, "baseline", is supported everywhere.
std::span<const InstructionSet* const> instruction_sets();

// The best one this processor supports, or the one named by the environment variable
// PARAMIXER_CPU_ISA (read once). Throws std::runtime_error when that name is unknown or not
// supported here.
const InstructionSet& selected_instruction_set();

}  // namespace paramixer::cpu
