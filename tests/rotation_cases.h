// The cases that rotations of tracks are tested with, on the problems of kernel_cases.h: the links
// of a case are its tracks.
#pragma once

#include <vector>

#include "core/rotation.h"
#include "kernel_cases.h"

namespace paramixer::testing {

// Every N with tracks of every width, and every layout with small, odd and vector-sized tracks; the
// number of tracks and, in the first part, the layout take turns.
inline std::vector<Case> rotation_cases() {
  const std::vector<int64_t> lengths = {1, 2, 3, 17, 64, 67};
  const std::vector<int64_t> widths = {1, 2, 3, 4, 5, 8, 10, 16, 28};
  const std::vector<int> tracks = {1, 2, 3, 5, 11};
  std::vector<Case> list;
  size_t turn = 0;
  const auto add = [&](int64_t length, int64_t width, Layout layout) {
    const int count = tracks[turn++ % tracks.size()];
    list.push_back({length, count * width, count, layout});
  };
  for (const int64_t length : lengths) {
    for (const int64_t width : widths) add(length, width, Layout(turn * 3 % kLayoutCount));
  }
  for (int layout = 0; layout < kLayoutCount; ++layout) {
    for (const int64_t width : {1, 6, 16}) add(turn % 2 ? 17 : 37, width, Layout(layout));
  }
  return list;
}

// A ring for every batch item, of N rows and of fewer, down to none.
inline std::vector<int64_t> ring_lengths(const Problem& problem) {
  std::vector<int64_t> lengths;
  for (int64_t b = 0; b < batch_count(problem); ++b) {
    lengths.push_back(b % 3 == 1 ? 0 : problem.length - b * 5 % problem.length);
  }
  return lengths;
}

// Rings of N rows; or, with lengths, of their own, and shifts of any sign that no ring reduces.
template <typename T>
Rotation make_rotation(const Instance<T>& instance, const std::vector<int64_t>* lengths) {
  Rotation rotation{instance.problem()};
  if (lengths == nullptr) return rotation;
  rotation.lengths = lengths->data();
  for (int t = 0; t < rotation.problem.links; ++t) {
    rotation.problem.offsets[t] = (t % 2 ? -1 : 1) * (t * 1000 + 3);
  }
  return rotation;
}

}  // namespace paramixer::testing
