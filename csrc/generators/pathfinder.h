// Pathfinder: do the two discs lie on the same dashed path? (Linsley et al., 2018; the Long Range
// Arena's Pathfinder and Path-X.) Torch-free.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace paramixer::generators {

// Lengths are in pixels. A path is a chain of straight segments ("paddles").
struct PathfinderOptions {
  int size = 32;    // of the square picture
  int padding = 1;  // no path comes this close to the edge
  int antialias =
      2;  // how many times finer everything is drawn; thickness * antialias is an integer

  int segment_length = 2;
  double thickness = 0.5;
  std::vector<int> margins = {1};  // free space around a segment; one is drawn for each picture
  double continuity = 1;           // a path turns by at most 90 degrees / continuity
  int seed_distance = 7;           // between the starts of the two paths
  double marker_radius = 1.5;

  int contour_length = 6;     // segments of each of the two paths
  int distractor_length = 2;  // segments of each distractor
  int distractors = 10;       // at most: the ones that find no place are left out

  double path_contrast = 1.5;        // of the two paths; the discs have 1. The brightest thing in a
  double distractor_contrast = 2.0;  // picture becomes 255.
};

// What is known of the Long Range Arena's settings for 32, 64, 128 (Path-X) and 256 pixels, and
// ours for 16. `difficulty` is "easy", "medium" or "hard": paths of 6, 9 or 14 segments (16 pixels:
// 3, 4 or 5), and distractors a third as long.
//
// Throws std::invalid_argument for another size or difficulty.
PathfinderOptions pathfinder_options(int size, const std::string& difficulty);

struct PathfinderSamples {
  std::vector<uint8_t> pixels;  // (count, size, size), rows from the top, 0 .. 255
  std::vector<uint8_t> labels;  // 1: both discs lie on the same path
  std::vector<int32_t> margins;
};

// Pictures first .. first + count - 1 of the endless sequence that options and seed define.
//
// Throws std::invalid_argument, naming argument, rule and value, for impossible options, and
// std::runtime_error where kPathfinderRestarts tries find no place for the two paths.
PathfinderSamples generate_pathfinder(const PathfinderOptions& options, uint64_t seed,
                                      int64_t first, int64_t count, int threads);

inline constexpr int kPathfinderRestarts = 100'000;

}  // namespace paramixer::generators
