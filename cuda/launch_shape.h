// How a problem is cut into blocks and threads, and which variant of a kernel runs it. The launch
// and the host emulator both ask here. Torch-free and CUDA-free.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>

#include "core/problem.h"
#include "core/rotation.h"
#include "traits.h"

namespace paramixer::cuda {

// What the hardware and the index types allow; tests narrow it to reach every variant.
struct LaunchLimits {
  int64_t max_blocks = Traits::kMaxBlocks;
  int64_t max_index32 = Traits::kMaxIndex32;
  int vector_bytes = Traits::kVectorBytes;
};

struct LaunchShape {
  int64_t blocks = 0;  // all on gridDim.x, the only grid dimension that may exceed 65535
  int threads = Traits::kThreads;
  bool wide_index = false;  // 64-bit indices
  // Elements per access; more than one only where rows are contiguous and aligned.
  int width = 1;
  int64_t vectors = 0;  // accesses per row: channels / width
  // Neighbouring threads that share a row (link_dot and mix_backward), a power of two.
  int lanes = 1;
};

namespace detail {

// The operands a kernel touches, by what their columns are; null where it touches fewer.
struct Touched {
  std::array<const Operand*, 3> channels;
  std::array<const Operand*, 2> links;
};

inline Touched touched(Kernel kernel, const Problem& problem) {
  switch (kernel) {
    case Kernel::kLinkDot:
      return {{&problem.grad, &problem.value, nullptr}, {&problem.dots, nullptr}};
    case Kernel::kMixBackward:
      return {{&problem.grad, &problem.value, &problem.result}, {&problem.weight, &problem.dots}};
    case Kernel::kMix:
    case Kernel::kMixTranspose:
      break;
  }
  return {{&problem.value, &problem.result, nullptr}, {&problem.weight, nullptr}};
}

// What an index has to hold.
inline int64_t largest_index(const Problem& problem, const Touched& operands) {
  // Neighbours are formed as row + offset before they wrap, items as rows times channels.
  int64_t largest = std::max(2 * problem.length, batch_count(problem) * problem.length *
                                                     std::max<int64_t>(problem.channels, 1));
  for (const Operand* operand : operands.channels) {
    if (operand) largest = std::max(largest, extent(problem, *operand, problem.channels));
  }
  for (const Operand* operand : operands.links) {
    if (operand) largest = std::max(largest, extent(problem, *operand, problem.links));
  }
  return largest;
}

inline int64_t largest_index(const Rotation& rotation) {
  const Problem& problem = rotation.problem;
  int64_t largest = largest_index(problem, {{&problem.value, &problem.result, nullptr}, {}});
  for (int track = 0; track < problem.links; ++track) {
    largest = std::max(largest, std::abs(problem.offsets[track]));
  }
  return largest;
}

// Every row of the operand is contiguous and starts at a multiple of `width` elements.
inline bool rows_are_aligned(const Problem& problem, const Operand& operand, int width, int bytes) {
  bool aligned =
      operand.column == 1 && reinterpret_cast<uintptr_t>(operand.data) % (width * bytes) == 0;
  aligned = aligned && (problem.length == 1 || operand.row % width == 0);
  for (int d = 0; d < problem.batch_dims; ++d) {
    aligned = aligned && (problem.batch_sizes[d] == 1 || operand.batch[d] % width == 0);
  }
  return aligned;
}

inline int access_width(Kernel kernel, const Problem& problem, int bytes, int vector_bytes) {
  const int width = vector_bytes / bytes;
  if (width <= 1 || problem.channels % width != 0) return 1;
  for (const Operand* operand : touched(kernel, problem).channels) {
    if (operand && !rows_are_aligned(problem, *operand, width, bytes)) return 1;
  }
  return width;
}

// Words of a track divide it, and every row begins with a whole one.
inline int word_width(const Rotation& rotation, int bytes, int vector_bytes) {
  const Problem& problem = rotation.problem;
  int width = std::max(vector_bytes / bytes, 1);
  while (width > 1 && (rotation.track_width() % width != 0 ||
                       !rows_are_aligned(problem, problem.value, width, bytes) ||
                       !rows_are_aligned(problem, problem.result, width, bytes))) {
    width /= 2;
  }
  return width;
}

// The lanes of a row read one cache line together; fewer lanes serve rows shorter than that, so
// that a block always works on many rows.
inline int lanes_per_row(int64_t vectors, int access_bytes) {
  int lanes = std::min(Traits::kWarp, Traits::kLineBytes / access_bytes);
  while (lanes > 1 && lanes / 2 >= vectors) lanes /= 2;
  return lanes;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t round_up(int64_t number, int64_t multiple) {
  return ceil_div(number, multiple) * multiple;
}

}  // namespace detail

// `bytes` is the size of one element.
inline LaunchShape launch_shape(Kernel kernel, int bytes, const Problem& problem,
                                const LaunchLimits& limits = {}) {
  const int64_t rows = batch_count(problem) * problem.length;
  LaunchShape shape;
  shape.wide_index =
      detail::largest_index(problem, detail::touched(kernel, problem)) > limits.max_index32;
  shape.width = detail::access_width(kernel, problem, bytes, limits.vector_bytes);
  shape.vectors = problem.channels / shape.width;
  int64_t items = rows * shape.vectors;
  if (kernel == Kernel::kLinkDot || kernel == Kernel::kMixBackward) {
    shape.lanes = detail::lanes_per_row(shape.vectors, shape.width * bytes);
    items = rows * shape.lanes;
  }
  shape.blocks = std::min(detail::ceil_div(items, shape.threads), limits.max_blocks);
  return shape;
}

inline LaunchShape rotation_shape(int bytes, const Rotation& rotation,
                                  const LaunchLimits& limits = {}) {
  const Problem& problem = rotation.problem;
  LaunchShape shape;
  shape.wide_index = detail::largest_index(rotation) > limits.max_index32;
  shape.width = detail::word_width(rotation, bytes, limits.vector_bytes);
  shape.vectors = problem.channels / shape.width;
  const int64_t items = batch_count(problem) * problem.length * shape.vectors;
  shape.blocks = std::min(detail::ceil_div(items, shape.threads), limits.max_blocks);
  return shape;
}

}  // namespace paramixer::cuda
