// What the CPU key asks of a plan, and how many channels it takes through a chain together.
#pragma once

#include <cstdint>

#include "core/chain_plan.h"
#include "core/numeric.h"
#include "cpu/kernels.h"

namespace paramixer::cpu {

// Rows of a ring that stay in the first-level cache with their gradients.
inline constexpr int64_t kSmallRing = 64;

// Of what scratch holds.
constexpr int64_t accumulator_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

// V_0 is added in its own order of the rows: chains that do so stay on the whole ring.
inline PlanOptions plan_options(Residual residual, int64_t length) {
  const bool deals = residual != Residual::kInitial;
  return {.pairs = deals, .small_ring = deals ? kSmallRing : length};
}

// Channels of a task, where there are enough of them for all threads.
constexpr int64_t widest_group(DType dtype) { return kMostRowBytes / accumulator_bytes(dtype); }

}  // namespace paramixer::cpu
