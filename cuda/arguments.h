// The one parameter of every kernel, passed by value: a problem with its pointers typed and its
// indices in the chosen width. Nothing in it points to host memory, so a captured graph can replay
// it. Torch-free; compiles for host and device.
#pragma once

#include <cstdint>

#include "core/problem.h"
#include "launch_shape.h"

namespace paramixer::cuda {

template <typename T, typename Index>
struct View {
  T* data;
  Index batch[kMaxBatchDims];
  Index row;
  Index column;
};

template <typename T, typename Index>
struct Arguments {
  Index rows;     // batch items times ring positions
  Index length;   // N
  Index vectors;  // accesses per row
  Index batch_sizes[kMaxBatchDims];
  int batch_dims;
  int links;
  int lanes;
  View<const T, Index> weight;
  View<const T, Index> value;
  View<const T, Index> grad;
  View<T, Index> result;
  View<T, Index> dots;
  Index offsets[kMaxLinks];
};

template <typename T, typename Index>
View<T, Index> make_view(const Operand& operand) {
  View<T, Index> view{static_cast<T*>(operand.data),
                      {},
                      static_cast<Index>(operand.row),
                      static_cast<Index>(operand.column)};
  for (int d = 0; d < kMaxBatchDims; ++d) view.batch[d] = static_cast<Index>(operand.batch[d]);
  return view;
}

template <typename T, typename Index>
Arguments<T, Index> make_arguments(const Problem& problem, const LaunchShape& shape) {
  Arguments<T, Index> arguments{};
  arguments.rows = static_cast<Index>(batch_count(problem) * problem.length);
  arguments.length = static_cast<Index>(problem.length);
  arguments.vectors = static_cast<Index>(shape.vectors);
  for (int d = 0; d < problem.batch_dims; ++d) {
    arguments.batch_sizes[d] = static_cast<Index>(problem.batch_sizes[d]);
  }
  arguments.batch_dims = problem.batch_dims;
  arguments.links = problem.links;
  arguments.lanes = shape.lanes;
  arguments.weight = make_view<const T, Index>(problem.weight);
  arguments.value = make_view<const T, Index>(problem.value);
  arguments.grad = make_view<const T, Index>(problem.grad);
  arguments.result = make_view<T, Index>(problem.result);
  arguments.dots = make_view<T, Index>(problem.dots);
  for (int k = 0; k < problem.links; ++k) {
    arguments.offsets[k] = static_cast<Index>(problem.offsets[k]);
  }
  return arguments;
}

}  // namespace paramixer::cuda
