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

// Whether a result is written past the caches: it is more than a core's share of the last-level
// cache, and all its rows are whole cache lines.
PARAMIXER_INLINE bool can_stream(const Problem& problem, int64_t element_bytes) {
  constexpr int64_t kStreamBytes = int64_t{8} << 20, kLineBytes = 64;
  const auto in_lines = [&](int64_t elements) {
    return elements * element_bytes % kLineBytes == 0;
  };
  if (reinterpret_cast<uintptr_t>(problem.result.data) % kLineBytes != 0) return false;
  if (!in_lines(problem.channels) || !in_lines(problem.result.row)) return false;
  for (int d = 0; d < problem.batch_dims; ++d) {
    if (!in_lines(problem.result.batch[d])) return false;
  }
  const int64_t rows = batch_count(problem) * problem.length;
  return rows * problem.channels * element_bytes >= kStreamBytes;
}

// Threads that share a task, where there are fewer tasks than threads.
struct Team {
  // Part i of the work, with scratch of the thread that does it.
  using Part = void (*)(const void* work, int64_t i, void* scratch);

  int64_t threads;
  int64_t scratch_bytes;
  // Calls part(work, i, scratch) for every i in [0, count) and returns when all are done.
  void (*each)(const Team&, int64_t count, Part part, const void* work);
};

// A group of channels of one batch item, which goes through a chain alone.
struct ChainTask {
  int64_t batch;
  int64_t channel;
  int64_t width;
  const Team* team;  // null: one thread
};

// Runs one task, of at most kMostRowBytes of accumulators, with scratch of at least
// chain_scratch_bytes that starts on a cache line; a team's threads have what team_scratch_bytes
// says.
// Backward reads value and grad and writes result; dots, accumulators with unit strides over
// factors and links, are written for channel 0 and added to for all others.
using ChainKernel = void (*)(const ChainProblem&, const ChainTask&, bool stream, void* scratch);

// A row of scratch, at most. Wide rows share what a row costs: its weights and its sums.
inline constexpr int64_t kMostRowBytes = 512;

// Elements of a row of scratch with `width` accumulators: 64, 128, 256 or 512 bytes.
template <typename A>
PARAMIXER_INLINE int64_t scratch_row(int64_t width) {
  int64_t row = 64 / sizeof(A);
  while (row < width) row *= 2;
  return row;
}

// Rows of scratch before and behind a ring or a tile of backward, and the rows of a tile.
inline constexpr int64_t kHalo = 3;
inline constexpr int64_t kTileRows = 32;

// A row of a pair's weights or dots, six links, in scratch.
inline constexpr int kPairRow = 8;

// Elements of a ring of scratch. Rings that follow each other begin at different places of a page:
// rows of several that are used together would else all meet in one set of the cache.
PARAMIXER_INLINE int64_t scratch_ring(int64_t rows, int64_t row) {
  return (rows + 2 * kHalo) * row + 80;
}

enum class Pass : int { kForward, kBackward };

struct InstructionSet {
  const char* name;
  bool (*supported)();
  RowKernel kernels[kDTypeCount][kKernelCount];  // by DType and Kernel
  ChainKernel chain_kernels[kDTypeCount][2];     // by DType and Pass
  LinkKernels link_kernels[kDTypeCount];         // by DType

  RowKernel kernel(DType dtype, Kernel kernel) const {
    return kernels[static_cast<int>(dtype)][static_cast<int>(kernel)];
  }
  ChainKernel kernel(DType dtype, Pass pass) const {
    return chain_kernels[static_cast<int>(dtype)][static_cast<int>(pass)];
  }
  const LinkKernels& link_kernels_of(DType dtype) const {
    return link_kernels[static_cast<int>(dtype)];
  }
};

// Best first; the last one, "baseline", is supported everywhere.
std::span<const InstructionSet* const> instruction_sets();

// Elements of scratch, in whole cache lines, for the weights of a batch item that forward widens
// once, for all its sweeps; 0 where it does not: they are accumulators already, their order is not
// that of memory, or they would leave no room in the caches.
inline constexpr int64_t kMostWidened = int64_t{1} << 20;

PARAMIXER_INLINE int64_t widened_weights(const ChainProblem& chain, DType dtype, Pass pass) {
  const Problem& problem = chain.problem;
  const bool dense = problem.weight.column == 1 && chain.weight_factor == problem.links;
  const int64_t count = problem.length * chain.factors * problem.links;
  const bool narrow = dtype == DType::kBFloat16 || dtype == DType::kFloat16;
  const bool widens = pass == Pass::kForward && narrow && dense && count <= kMostWidened;
  return widens ? (count + 15) / 16 * 16 : 0;
}

// What tasks need that share the channels in groups of `width`, and each thread of their teams.
int64_t chain_scratch_bytes(const ChainProblem& chain, DType dtype, Pass pass, int64_t width);
int64_t team_scratch_bytes(const ChainProblem& chain, DType dtype, Pass pass, int64_t width);

// The first sweep whose rings are fewer rows than all: a team shares its classes. sweep_count:
// there is none, all sweeps are shared by rows.
PARAMIXER_INLINE int first_class_sweep(const ChainProblem& chain) {
  int s = 0;
  while (s < chain.sweep_count && chain.sweeps[s].classes == 1) ++s;
  return s;
}

// The best one this processor supports, or the one named by the environment variable
// PARAMIXER_CPU_ISA (read once). Throws std::runtime_error when that name is unknown or not
// supported here.
const InstructionSet& selected_instruction_set();

}  // namespace paramixer::cpu
