// How a chain of dilated factors is cut into passes of composed bands. Torch-free and CUDA-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "band_pass.h"

namespace paramixer::cuda {

namespace detail {

// Finds the columns of a factor whose links are j distance (mod N), |j| <= reach: false where they
// are not all of them.
inline bool find_band_columns(std::span<const int64_t> offsets, int64_t distance, int64_t length,
                              int8_t (&columns)[kMaxBandLinks]) {
  const int links = static_cast<int>(offsets.size());
  bool used[kMaxBandLinks] = {};
  for (int k = 0; k < links; ++k) {
    const int64_t wanted = reduce_offset((k - (links - 1) / 2) * distance, length);
    int column = 0;
    while (column < links && (used[column] || reduce_offset(offsets[column], length) != wanted)) {
      ++column;
    }
    if (column == links) return false;
    used[column] = true;
    columns[k] = static_cast<int8_t>(column);
  }
  return true;
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

// The passes of a whole chain, first factor first: those that move the fewest bytes. Empty where
// some factor fits none. Every pass has the chain's value and result: the caller puts tensors of
// its own between them. A pass of one closed tile may write to where it reads.
inline std::vector<BandPass> plan_band_passes(const ChainProblem& chain,
                                              std::span<const int64_t> offsets) {
  // In times of moving all of V: bytes, or the instructions of the bands where they take longer, a
  // quarter of the other, and a launch (scripts/benchmarks/NOTES.md).
  const auto cost = [](const BandPass& pass) {
    const BandShape shape = band_shape(pass);
    const double read = double(shape.tiles) * shape.rows / double(shape.ring);
    const int merged = pass.problem.links == 3 ? 3 : 2;
    const double bytes = read + 1;
    const double instructions = 1.3 * read * ((pass.factors + merged - 1) / merged);
    return std::max(bytes, instructions) + std::min(bytes, instructions) / 4 + 0.1;
  };
  struct Best {
    double cost = std::numeric_limits<double>::infinity();
    BandPass pass;
  };
  std::vector<Best> best(chain.factors + 1);  // of the factors from this one on
  best[chain.factors].cost = 0;
  for (int first = chain.factors - 1; first >= 0; --first) {
    const int most = std::min(kMaxPassFactors, chain.factors - first);
    for (int factors = 1; factors <= most; ++factors) {
      BandPass pass;
      if (!make_band_pass(chain, offsets, first, factors, pass)) continue;
      const double total = cost(pass) + best[first + factors].cost;
      if (total < best[first].cost) best[first] = {total, pass};
    }
  }
  std::vector<BandPass> passes;
  if (best[0].cost == std::numeric_limits<double>::infinity()) return passes;
  for (int first = 0; first < chain.factors; first += best[first].pass.factors) {
    passes.push_back(best[first].pass);
  }
  return passes;
}

}  // namespace paramixer::cuda
