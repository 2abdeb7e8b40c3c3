// Link protocols: the offsets of every factor, as paramixer.links gives them in Python. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace paramixer {

// offsets[m] are the K offsets of factor m, m = 0 being applied first.
using FactorOffsets = std::vector<std::vector<int64_t>>;

// The operators' limit of links per row.
inline constexpr int64_t kMostLinks = 64;

namespace detail {

inline void check_range(const char* function, const char* argument, int64_t value, int64_t minimum,
                        int64_t maximum = INT64_MAX) {
  if (value >= minimum && value <= maximum) return;
  std::string rule = "at least " + std::to_string(minimum);
  if (maximum != INT64_MAX) rule += " and at most " + std::to_string(maximum);
  throw std::invalid_argument(std::string(function) + ": " + argument + " must be " + rule +
                              " (got " + std::to_string(value) + ")");
}

inline int64_t ceil_log2(int64_t length) {
  int64_t exponent = 0;
  while (exponent < 62 && (int64_t{1} << exponent) < length) ++exponent;
  return exponent;
}

}  // namespace detail

// The number of factors that links every position to every other: ceil(log2 length), at least one.
inline int64_t default_factors(int64_t length) {
  return std::max<int64_t>(1, detail::ceil_log2(length));
}

// Chord: every factor links position i to i, i+1, i+2, i+4, .., i+2^(links-2).
//
// `factors` defaults to ceil(log2 length), `links`, which counts the self link, to one more.
inline FactorOffsets chord(int64_t length, std::optional<int64_t> factors = std::nullopt,
                           std::optional<int64_t> links = std::nullopt) {
  detail::check_range("chord", "length", length, 1);
  const int64_t factor_count = factors.value_or(default_factors(length));
  const int64_t link_count = links.value_or(1 + detail::ceil_log2(length));
  detail::check_range("chord", "factors", factor_count, 1);
  detail::check_range("chord", "links", link_count, 1, kMostLinks);
  std::vector<int64_t> offsets = {0};
  for (int64_t k = 0; k + 1 < link_count; ++k) offsets.push_back(int64_t{1} << k);
  return FactorOffsets(factor_count, offsets);
}

// Circular dilated links: factor m links i to i, i+d, .., i+hd, i-d, .., i-hd,
// d = 2^m and h = (links-1)/2.
//
// `factors` defaults to ceil(log2 length); `links` must be odd.
inline FactorOffsets cdil(int64_t length, std::optional<int64_t> factors = std::nullopt,
                          int64_t links = 3) {
  detail::check_range("cdil", "length", length, 1);
  const int64_t factor_count = factors.value_or(default_factors(length));
  detail::check_range("cdil", "links", links, 1, kMostLinks - 1);
  if (links % 2 == 0) {
    throw std::invalid_argument("cdil: links must be odd (got " + std::to_string(links) + ")");
  }
  const int64_t reach = (links - 1) / 2;
  int64_t most_factors = 63;  // so that reach * 2^(factors - 1) fits 64 bits
  while (most_factors > 1 && reach > (INT64_MAX >> (most_factors - 1))) --most_factors;
  detail::check_range("cdil", "factors", factor_count, 1, most_factors);
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
