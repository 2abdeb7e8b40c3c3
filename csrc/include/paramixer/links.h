// Link protocols: the offsets of every factor, as paramixer.links gives them in Python. Torch-free.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace paramixer {

// offsets[m] are the K offsets of factor m, m = 0 being applied first.
using FactorOffsets = std::vector<std::vector<int64_t>>;

namespace detail {

inline void check_at_least(const char* function, const char* argument, int64_t minimum,
                           int64_t value) {
  if (value >= minimum) return;
  throw std::invalid_argument(std::string(function) + ": " + argument + " must be at least " +
                              std::to_string(minimum) + " (got " + std::to_string(value) + ")");
}

// Powers of two up to 2^61 only: a larger offset would not fit 64 bits.
inline void check_at_most(const char* function, const char* argument, int64_t maximum,
                          int64_t value) {
  if (value <= maximum) return;
  throw std::invalid_argument(std::string(function) + ": " + argument + " must be at most " +
                              std::to_string(maximum) + " (got " + std::to_string(value) + ")");
}

}  // namespace detail

// ceil(log2(length)), and 1 for a single position.
inline int64_t default_factors(int64_t length) {
  int64_t factors = 1;
  while ((int64_t{1} << factors) < length) ++factors;
  return factors;
}

// Chord: every factor links position i to i, i+1, i+2, i+4, .., i+2^(links-2).
// `factors` defaults to ceil(log2 length), `links` (the self link included) to 1 + ceil(log2
// length).
inline FactorOffsets chord(int64_t length, std::optional<int64_t> factors = std::nullopt,
                           std::optional<int64_t> links = std::nullopt) {
  detail::check_at_least("chord", "length", 1, length);
  const int64_t factor_count = factors.value_or(default_factors(length));
  const int64_t link_count = links.value_or(1 + default_factors(length));
  detail::check_at_least("chord", "factors", 1, factor_count);
  detail::check_at_least("chord", "links", 1, link_count);
  detail::check_at_most("chord", "links", 62, link_count);
  std::vector<int64_t> offsets = {0};
  for (int64_t k = 0; k + 1 < link_count; ++k) offsets.push_back(int64_t{1} << k);
  return FactorOffsets(factor_count, offsets);
}

// Symmetric circular dilated links: factor m links i to i, i+d, .., i+hd, i-d, .., i-hd with d =
// 2^m, h = (links-1)/2. `factors` defaults to ceil(log2 length); `links` must be odd.
inline FactorOffsets cdil(int64_t length, std::optional<int64_t> factors = std::nullopt,
                          int64_t links = 3) {
  detail::check_at_least("cdil", "length", 1, length);
  const int64_t factor_count = factors.value_or(default_factors(length));
  detail::check_at_least("cdil", "factors", 1, factor_count);
  detail::check_at_most("cdil", "factors", 56, factor_count);
  detail::check_at_least("cdil", "links", 1, links);
  if (links % 2 == 0) {
    throw std::invalid_argument("cdil: links must be odd (got " + std::to_string(links) + ")");
  }
  const int64_t reach = (links - 1) / 2;
  FactorOffsets offsets(factor_count, std::vector<int64_t>{0});
  for (int64_t m = 0; m < factor_count; ++m) {
    for (const int64_t direction : {1, -1}) {
      for (int64_t step = 1; step <= reach; ++step) {
        offsets[m].push_back(direction * step * (int64_t{1} << m));
      }
    }
  }
  return offsets;
}

}  // namespace paramixer
