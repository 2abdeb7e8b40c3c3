// Windows: a single factor of any links over rings that are too long for a tile. The links that
// lead no farther than a window around a tile are served from shared memory, where every row of it
// comes once; the others read memory, a tile's rows one after the other. Torch-free and CUDA-free.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "core/chain_plan.h"
#include "core/problem.h"
#include "launch_shape.h"
#include "tile_plan.h"
#include "traits.h"

namespace paramixer::cuda {

// Accesses of a row on chip, each a lane's: 64 bytes, whole sectors of memory.
inline constexpr int kWindowPieces = 4;
inline constexpr int kWindowRowBytes = kWindowPieces * Traits::kVectorBytes;

// A factor's columns by how their links are served.
struct WindowLinks {
  std::vector<int> near, far;

  // What is kept of a row for every link, four at a time: near ones first, then far ones.
  int64_t fours() const {
    return detail::ceil_div(static_cast<int64_t>(near.size()), 4) +
           detail::ceil_div(static_cast<int64_t>(far.size()), 4);
  }
};

inline WindowLinks window_links(const Sweep& sweep, int links) {
  WindowLinks found;
  for (int k = 0; k < links; ++k) {
    const int64_t offset = paramixer::detail::shorter_way(sweep.offsets[k], sweep.ring);
    const bool is_near = -sweep.halo <= offset && offset <= sweep.window - sweep.tile - sweep.halo;
    (is_near ? found.near : found.far).push_back(k);
  }
  return found;
}

// One window, and for every row of the tile a weight or a dot of every link.
inline TileMemory window_memory(const Sweep& sweep, const WindowLinks& links) {
  TileMemory memory{};
  memory.buffer = static_cast<int32_t>(sweep.window * kWindowRowBytes);
  memory.buffers = 1;
  memory.weights = static_cast<int32_t>(sweep.tile * links.fours() * Traits::kVectorBytes);
  memory.table = detail::shared_part(sweep.window * static_cast<int64_t>(sizeof(int32_t)));
  memory.place = detail::shared_part(sizeof(TilePlace));
  return memory;
}

namespace detail {

// In moves of a row between device memory and chip, as tile_options counts, by the rates and the
// instructions of scripts/tuning/model.py: what takes longest, and a quarter of the rest.
inline double window_cost(Direction direction, int bytes, int64_t channels, const Sweep& sweep,
                          const WindowLinks& links) {
  const double near = double(links.near.size()), far = double(links.far.size());
  const double read = double(sweep.window) / double(sweep.tile);
  const double lanes = double(round_up(channels, sweep.channels)) / double(channels);
  const double staged = 30 * double(std::bit_ceil(links.near.size() + links.far.size()));
  const double device = 2, l2 = 0.54 * (1 + read + far);
  const double shared = 0.114 * lanes * (1.25 * near + read);
  const double each = 12 + (bytes == 4 ? 2 : 2.5) * near + 4.2 * far;
  const double instructions = 0.13 / bytes * (lanes * each + staged / double(channels));
  const double slowest = std::max({device, l2, shared, instructions});
  const double cost = slowest + (device + l2 + shared + instructions - slowest) / 4;
  if (direction == Direction::kForward) return cost;
  // The state before it once more, the gradient, and the dots, which are written and summed.
  return 3.3 * cost + 12 * (near + far) / (double(channels) * bytes);
}

// Makes the tile as long as shared memory allows for a window that has the sweep's halo and
// `behind` rows on its other side; false where it holds none.
inline bool set_window(Sweep& sweep, const WindowLinks& links, int64_t behind,
                       int64_t shared_bytes) {
  const auto fits = [&](int64_t rows) {
    sweep.tile = rows;
    sweep.window = sweep.halo + rows + behind;
    return sweep.window <= shared_bytes / kWindowRowBytes &&
           window_memory(sweep, links).total() <= shared_bytes;
  };
  int64_t least = 0, beyond = std::min(sweep.ring, shared_bytes / kWindowRowBytes) + 1;
  while (least + 1 < beyond) {
    const int64_t middle = (least + beyond) / 2;
    (fits(middle) ? least : beyond) = middle;
  }
  if (least == 0) return false;
  const int64_t tiles = ceil_div(sweep.ring, least);
  return fits(ceil_div(sweep.ring, tiles));
}

// The cheapest of all windows from one link to another for a sweep that is otherwise known: that
// sweep and its cost, or nothing.
inline std::optional<std::pair<Sweep, double>> cheapest_window(Direction direction, int bytes,
                                                               int64_t channels, Sweep sweep,
                                                               int links, int64_t shared_bytes) {
  std::vector<int64_t> ends = {0};
  for (int k = 0; k < links; ++k) {
    ends.push_back(paramixer::detail::shorter_way(sweep.offsets[k], sweep.ring));
  }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  std::optional<std::pair<Sweep, double>> best;
  for (const int64_t first : ends) {
    for (const int64_t last : ends) {
      if (first > 0 || last < 0) continue;
      sweep.halo = -first;
      sweep.tile = 0;
      sweep.window = last - first;
      const WindowLinks found = window_links(sweep, links);
      if (!set_window(sweep, found, last, shared_bytes)) continue;
      const double cost = window_cost(direction, bytes, channels, sweep, found);
      if (!best || cost < best->second) best = {sweep, cost};
    }
  }
  return best;
}

}  // namespace detail

// The cheapest window for one factor, and its cost; nothing where none fits. `offsets` in
// [0, length).
inline std::optional<ChainPlan> plan_window(Direction direction, int bytes, int64_t length,
                                            int64_t channels, std::span<const int64_t> offsets,
                                            int64_t shared_bytes = TileTraits::kSharedBytes) {
  std::optional<ChainPlan> best;
  for (int64_t step = paramixer::detail::shortest_link(offsets, length); step > 0; step /= 2) {
    auto along = paramixer::detail::all_in_steps(offsets, step % length, length);
    if (along.empty()) continue;
    Sweep sweep;
    sweep.step = step % length;
    sweep.classes = std::gcd(length, sweep.step);
    sweep.ring = length / sweep.classes;
    sweep.channels = kWindowRowBytes / bytes;
    sweep.offsets = along.data();  // moving a vector leaves its elements in place
    const auto found = detail::cheapest_window(direction, bytes, channels, sweep,
                                               static_cast<int>(offsets.size()), shared_bytes);
    if (!found || (best && best->cost <= found->second)) continue;
    best.emplace();
    best->sweeps = {found->first};
    best->offsets.push_back(std::move(along));
    best->cost = found->second;
  }
  return best;
}

}  // namespace paramixer::cuda
