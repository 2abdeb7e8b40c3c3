// How the CUDA key takes a chain through its sweeps: in tiles, in composed bands on tensor cores,
// one factor at a time with a window, or as single products. Torch-free and CUDA-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "band_plan.h"
#include "core/chain_plan.h"
#include "core/numeric.h"
#include "core/problem.h"
#include "tile_arguments.h"
#include "tile_plan.h"
#include "traits.h"
#include "window_plan.h"

namespace paramixer::cuda {

// The ways to run a sweep: a single product, tiles on chip, tiles with composed bands, or one
// factor in tiles with windows.
enum class Way { kProduct, kTiles, kBands, kWindows };

constexpr Way way_of(const Sweep& sweep) {
  return sweep.bands        ? Way::kBands
         : sweep.window > 0 ? Way::kWindows
         : sweep.tile > 0   ? Way::kTiles
                            : Way::kProduct;
}

// Whether chains may run in bands, as PARAMIXER_CUDA_BANDS says; null is an unset variable.
inline bool parse_band_switch(const char* wanted) {
  const std::string text = wanted == nullptr ? "on" : wanted;
  if (text != "on" && text != "off") {
    throw std::runtime_error("PARAMIXER_CUDA_BANDS must be on or off (got " + text + ")");
  }
  return text == "on";
}

// What the environment says, read once.
inline bool bands_are_on() {
  static const bool on = parse_band_switch(std::getenv("PARAMIXER_CUDA_BANDS"));
  return on;
}

// A chain of weights (B, N, M, K) and values (B, N, D) but for the batch, of which no plan depends.
struct ChainShape {
  Direction direction;
  DType dtype;
  Residual residual;
  int64_t length;
  int64_t channels;
  int factors;
  std::vector<int64_t> offsets;  // M K
  std::vector<int64_t> cuts;     // where sweeps end, ascending numbers of factors
  int64_t band_bytes = 0;        // shared memory that a block of bands can have; 0: no bands

  auto operator<=>(const ChainShape&) const = default;
};

namespace detail {

// Whether there are kernels that run the chain in tiles: none for float64, for which nobody waits.
inline bool can_run_in_tiles(const ChainShape& chain) {
  return chain.dtype != DType::kFloat64 && chain.length <= std::numeric_limits<int32_t>::max();
}

// Every kind of tile that a chain can have.
inline std::vector<TileKind> tile_kinds(const ChainShape& chain) {
  std::vector<TileKind> kinds;
  if (!can_run_in_tiles(chain)) return kinds;
  const int bytes = element_bytes(chain.dtype);
  const int links = static_cast<int>(chain.offsets.size()) / chain.factors;
  if (links == 3) return {{chain.direction, chain.residual, links, bytes, kThreeQuads}};
  for (int pieces = TileTraits::kMostPieces; pieces >= 1; pieces /= 2) {
    const int row = pieces * Traits::kVectorBytes;
    if (pieces > 1 && chain.channels * bytes <= row / 2) continue;
    kinds.push_back({chain.direction, chain.residual, links, bytes, row / (kQuad * bytes)});
  }
  return kinds;
}

// The chain's sizes, for plans that ask nothing of its operands.
inline ChainProblem sizes_of(const ChainShape& chain) {
  ChainProblem sizes;
  sizes.problem.length = chain.length;
  sizes.problem.channels = chain.channels;
  sizes.problem.links = static_cast<int32_t>(chain.offsets.size()) / chain.factors;
  sizes.factors = chain.factors;
  sizes.residual = chain.residual;
  return sizes;
}

}  // namespace detail

// Where a sweep writes: the chain's result, a tensor of the call's own, or a state that is kept.
enum class Target { kResult, kTemporary, kKept };

// Targets of the sweeps of a forward plan. The last one writes the result, those before a cut the
// next state that is kept. Any other writes what the next one writes too, if that works in place,
// as whole rings do, and else the result and the temporary in turns.
inline std::vector<Target> choose_targets(const ChainPlan& plan, std::span<const int64_t> cuts) {
  const std::vector<Sweep>& sweeps = plan.sweeps;
  std::vector<Target> targets(sweeps.size(), Target::kResult);
  for (size_t s = sweeps.size() - 1; s-- > 0;) {
    const Sweep& next = sweeps[s + 1];
    const bool in_place = next.tile == next.ring && next.halo == 0 && next.window == 0;
    if (std::find(cuts.begin(), cuts.end(), next.first) != cuts.end()) {
      targets[s] = Target::kKept;
    } else if (targets[s + 1] != Target::kKept && in_place) {
      targets[s] = targets[s + 1];
    } else {
      targets[s] = targets[s + 1] == Target::kResult ? Target::kTemporary : Target::kResult;
    }
  }
  return targets;
}

// The cheapest plan over all kinds of tiles, with bands or windows wherever those cost less; where
// there are none, single products.
inline ChainPlan plan_for_cuda(const ChainShape& chain) {
  const ChainProblem sizes = detail::sizes_of(chain);
  const auto links = static_cast<size_t>(sizes.problem.links);
  const OtherSweep other = [&](int first, int end) -> std::optional<ChainPlan> {
    std::optional<ChainPlan> best;
    if (chain.direction == Direction::kForward) {
      best = plan_band(chain.dtype, sizes, chain.offsets, first, end - first,
                       static_cast<size_t>(chain.band_bytes));
    }
    if (end - first > 1) return best;
    const std::span<const int64_t> all = chain.offsets;
    auto window =
        plan_window(chain.direction, element_bytes(chain.dtype), chain.length, chain.channels,
                    all.subspan(static_cast<size_t>(first) * links, links));
    // By moves alone: a copy's sweep would point to the offsets of the original.
    if (window && (!best || window->cost < best->cost)) best = std::move(window);
    return best;
  };
  ChainPlan best = plan_tiles(chain.length, chain.factors, chain.offsets, chain.cuts, {});
  best.cost = std::numeric_limits<double>::infinity();
  for (const TileKind& kind : detail::tile_kinds(chain)) {
    TileOptions options = detail::tile_options(kind);
    options.rows_of = [&kind](const Sweep& sweep) { return detail::most_rows(kind, sweep); };
    ChainPlan plan =
        plan_tiles(chain.length, chain.factors, chain.offsets, chain.cuts, options, other);
    if (plan.cost < best.cost) best = std::move(plan);
  }
  return best;
}

}  // namespace paramixer::cuda
