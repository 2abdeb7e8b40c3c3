// The link protocols that chains are tested with.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "paramixer/links.h"

namespace paramixer::testing {

struct Protocol {
  std::string name;
  int links;
  std::vector<int64_t> offsets;  // factor by factor
};

inline int factor_count(const Protocol& protocol) {
  return static_cast<int>(protocol.offsets.size()) / protocol.links;
}

inline Protocol make_protocol(std::string name, const FactorOffsets& factors) {
  Protocol protocol = {std::move(name), static_cast<int>(factors[0].size()), {}};
  for (const auto& factor : factors) {
    protocol.offsets.insert(protocol.offsets.end(), factor.begin(), factor.end());
  }
  return protocol;
}

// Links 0, d, -d for d = first, base first, base^2 first, ..
inline FactorOffsets dilated(int factors, int64_t base, int64_t first = 1) {
  FactorOffsets offsets;
  for (int64_t distance = first; factors > 0; --factors, distance *= base) {
    offsets.push_back({0, distance, -distance});
  }
  return offsets;
}

// The columns of every factor in an order of its own.
inline FactorOffsets permuted(FactorOffsets offsets) {
  std::mt19937 random(29);
  for (auto& factor : offsets) std::shuffle(factor.begin(), factor.end(), random);
  return offsets;
}

inline FactorOffsets random_offsets(int factors, int links, int64_t least, int64_t most) {
  std::mt19937_64 random(links);
  std::uniform_int_distribution<int64_t> any(least, most);
  FactorOffsets offsets(factors, std::vector<int64_t>(links));
  for (auto& factor : offsets) {
    for (auto& offset : factor) offset = any(random);
  }
  return offsets;
}

// Protocols of `factors` factors on a ring of `length` rows: those of the library, users' own with
// and without their structure, and all of them written in other ways.
inline std::vector<Protocol> protocols(int64_t length, int factors) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  std::vector<Protocol> list;
  for (const int links : {3, 5, 9}) {
    const auto offsets = cdil(length, factors, links);
    list.push_back(make_protocol("cdil " + std::to_string(links), offsets));
    list.push_back(make_protocol("permuted cdil " + std::to_string(links), permuted(offsets)));
  }
  auto reduced = cdil(length, factors);
  for (auto& factor : reduced) {
    for (auto& offset : factor) offset = (offset % length + length) % length;
  }
  auto descending = cdil(length, factors);
  std::reverse(descending.begin(), descending.end());
  list.push_back(make_protocol("cdil modulo N", reduced));
  list.push_back(make_protocol("descending cdil", descending));
  list.push_back(make_protocol("dilations 3^m", dilated(factors, 3)));
  list.push_back(make_protocol("dilations 4^m", dilated(factors, 4)));
  list.push_back(make_protocol("dilations 6 2^m", dilated(factors, 2, 6)));
  list.push_back(make_protocol("chord", chord(length, factors)));
  list.push_back(make_protocol("one link", random_offsets(factors, 1, -length, length)));
  list.push_back(make_protocol("random", random_offsets(factors, 4, -2 * length, 2 * length)));
  list.push_back(make_protocol("huge", random_offsets(factors, 2, -kMost - 1, kMost)));
  return list;
}

}  // namespace paramixer::testing
