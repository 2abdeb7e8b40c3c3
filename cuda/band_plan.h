// Which factors of a chain a pass of composed bands takes, and at what cost. Torch-free and
// CUDA-free.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "band_pass.h"
#include "core/chain_plan.h"
#include "core/numeric.h"
#include "core/problem.h"

namespace paramixer::cuda {

namespace detail {

// Finds the columns of a factor whose links are j distance (mod N), |j| <= reach: false where they
// are not all of them.
inline bool find_band_columns(std::span<const int64_t> offsets, int64_t distance, int64_t length,
                              int8_t (&columns)[kMaxBandLinks]) {
  const int links = static_cast<int>(offsets.size());
  std::vector<int64_t> wanted;
  for (int k = 0; k < links; ++k) wanted.push_back((k - (links - 1) / 2) * distance);
  const std::vector<int> found = paramixer::detail::find_columns(offsets, wanted, length);
  std::copy(found.begin(), found.end(), columns);
  return !found.empty();
}

// Finds step and columns of factors whose links are j step 2^f.
inline bool find_band_links(std::span<const int64_t> offsets, BandPass& pass) {
  const int links = pass.problem.links;
  const int64_t length = pass.problem.length;
  for (int k = 0; k < links; ++k) {  // one of the first factor's links is j = 1
    pass.step = reduce_offset(offsets[k], length);
    int64_t distance = pass.step;
    int factor = 0;
    while (factor < pass.factors && find_band_columns(offsets.subspan(factor * links, links),
                                                      distance, length, pass.column[factor])) {
      distance = 2 * distance % length;
      ++factor;
    }
    if (factor == pass.factors) return true;
  }
  return false;
}

}  // namespace detail

// Fills `pass` with factors [first, first + factors) of a chain whose offsets are M * K integers of
// any sign; value and result are the chain's. False where no pass takes them: other links than
// CDIL's, another residual, or too many factors for a tile.
inline bool make_band_pass(const ChainProblem& chain, std::span<const int64_t> offsets, int first,
                           int factors, BandPass& pass) {
  pass = {};
  pass.problem = chain.problem;
  const int links = chain.problem.links;
  if (links > kMaxBandLinks || factors > kMaxPassFactors) return false;
  if (chain.residual == Residual::kInitial) return false;
  pass.problem.weight.data = static_cast<uint16_t*>(chain.problem.weight.data) +
                             static_cast<int64_t>(first) * chain.weight_factor;
  pass.weight_factor = chain.weight_factor;
  pass.factors = factors;
  pass.keep = chain.residual == Residual::kPrevious;
  const auto own = offsets.subspan(static_cast<size_t>(first) * links, size_t(factors) * links);
  return detail::find_band_links(own, pass) && band_shape(pass).rows > 0;
}

// Factors [first, first + factors) of a chain as one sweep of a plan, where a pass takes them on a
// device whose blocks can have `shared_limit` bytes of shared memory. Only sizes are asked of the
// chain, and its cost counts moves of a row between memory and chip, as TileOptions does.
inline std::optional<ChainPlan> plan_band(DType dtype, const ChainProblem& chain,
                                          std::span<const int64_t> offsets, int first, int factors,
                                          size_t shared_limit) {
  BandPass pass;
  if (!make_band_pass(chain, offsets, first, factors, pass)) return std::nullopt;
  if (!band_serves(dtype, pass, shared_limit)) return std::nullopt;
  const BandShape shape = band_shape(pass);
  ChainPlan plan;
  Sweep& sweep = plan.sweeps.emplace_back();
  sweep.first = first;
  sweep.factors = factors;
  sweep.step = pass.step;
  sweep.classes = shape.classes;
  sweep.ring = shape.ring;
  sweep.tile = std::min<int64_t>(shape.ring, shape.rows - 2 * shape.margin);
  sweep.halo = shape.margin;
  sweep.channels = shape.channels;
  sweep.bands = true;
  // Bytes, or the instructions of the bands where they take longer, and a quarter of the other
  // (scripts/benchmarks/NOTES.md). Channels that a tile has too many cost instructions: half a tile
  // of them only for coefficients, which are 45 %.
  const double read = double(shape.tiles) * shape.rows / double(shape.ring);
  const double channels = double(chain.problem.channels);
  const auto padded = [&](int width) { return std::ceil(channels / width) * width / channels; };
  const double work = 0.45 * padded(shape.channels) + 0.55 * padded(shape.channels / 2);
  const int merged = chain.problem.links == 3 ? 3 : 2;
  const double bytes = read + 1;
  const double instructions = 1.3 * work * read * ((factors + merged - 1) / merged);
  plan.cost = std::max(bytes, instructions) + std::min(bytes, instructions) / 4;
  return plan;
}

}  // namespace paramixer::cuda
