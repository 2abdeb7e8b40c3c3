// The one parameter of the kernels with a window. The launch and the host emulator both ask here.
// Torch-free and CUDA-free.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/chain_plan.h"
#include "core/problem.h"
#include "launch_shape.h"
#include "tile_arguments.h"
#include "window_plan.h"

namespace paramixer::cuda {

// kMix:          result = S(W) value + residual, with V_0 in grad where the residual is that
// kMixTranspose: result = S(W)^T value, and value where the residual is the previous state
// kLinkDot:      dots of grad with value
// Window and tables are those of `tile`; its offsets are those of the links in their order, near
// ones as bytes in the window, far ones as rows of the batch item, in [0, N).
template <typename T>
struct WindowArguments {
  TileArguments<T> tile;
  bool transpose;
  int32_t near;       // links
  int32_t far_place;  // of the first far link among what is kept of a row
  uint8_t column[kMaxLinks];
};

// Backward, problem.grad is the gradient behind the factor and problem.value the state before it.
template <typename T>
WindowArguments<T> make_window_arguments(Kernel kernel, const ChainProblem& chain,
                                         const Sweep& sweep, const TileShape& shape) {
  const bool transpose = kernel == Kernel::kMixTranspose;
  const int count = chain.problem.links;
  const WindowLinks links = window_links(sweep, count);
  WindowArguments<T> arguments{};
  arguments.tile = make_tile_arguments<T>(chain, sweep, shape);
  TileArguments<T>& tile = arguments.tile;
  if (transpose) {  // links lead the other way
    tile.value = tile.grad;
    tile.halo = static_cast<int32_t>(sweep.window - sweep.tile - sweep.halo);
    if (tile.residual == Residual::kInitial) tile.residual = Residual::kNone;  // the caller's
  }
  tile.stage_bits = std::min<int>(5, std::bit_width(static_cast<unsigned>(count - 1)));
  arguments.transpose = transpose;
  arguments.near = static_cast<int32_t>(links.near.size());
  arguments.far_place = static_cast<int32_t>(detail::round_up(arguments.near, 4));
  int place = 0;
  for (const int column : links.near) {
    const int64_t offset = paramixer::detail::shorter_way(sweep.offsets[column], sweep.ring);
    tile.offset[place] =
        kWindowRowBytes * static_cast<int32_t>(tile.halo + (transpose ? -offset : offset));
    arguments.column[place++] = static_cast<uint8_t>(column);
  }
  const int64_t length = chain.problem.length;
  for (const int column : links.far) {
    const int64_t rows = sweep.offsets[column] * sweep.step % length;
    tile.offset[place] = static_cast<int32_t>(transpose ? (length - rows) % length : rows);
    arguments.column[place++] = static_cast<uint8_t>(column);
  }
  return arguments;
}

}  // namespace paramixer::cuda
