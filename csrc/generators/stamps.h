// What Pathfinder pictures are made of: segments and discs.
#pragma once

#include <cstdint>
#include <vector>

namespace paramixer::generators {

// A small picture, and where its first pixel lies from the one that it is put on.
struct Stamp {
  int top = 0;
  int left = 0;
  int height = 0;
  int width = 0;
  std::vector<uint8_t> pixels;
};

struct SegmentStamps {
  Stamp line;
  Stamp ground;  // the line with its margin all around: what no other segment may touch
};

struct SegmentShape {
  int length = 0;
  double thickness = 0;  // times antialias: an integer
  int margin = 0;
  int antialias = 1;
};

// How the pixels of a fine square make those of a coarse one of as many or fewer: Lanczos' filter.
class Reducer {
 public:
  Reducer(int from, int to);

  // (from, from) to (to, to), rounded.
  std::vector<uint8_t> operator()(const std::vector<uint8_t>& fine) const;

 private:
  struct Weights {
    int first = 0;  // of the fine pixels
    std::vector<double> values;
  };

  int from_;
  std::vector<Weights> weights_;  // of every coarse pixel
};

// Draws segments of one shape: `antialias` times finer in black and white, then reduced.
class Pen {
 public:
  explicit Pen(const SegmentShape& shape);

  // From the pixel it is put on into a direction: radians, from that of x to that of y (downwards).
  SegmentStamps draw(double angle) const;

 private:
  SegmentShape shape_;
  int reach_;  // nothing is drawn farther away
  Reducer reduce_;
};

Stamp draw_disc(double radius, int antialias);

}  // namespace paramixer::generators
