#include "generators/pathfinder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "generators/stamps.h"
#include "support.h"

namespace paramixer::generators {
namespace {

uint64_t hash(const std::vector<uint8_t>& bytes) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325;
  for (const uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001b3;
  return hash;
}

uint8_t pixel(const Stamp& stamp, int y, int x) {
  const int row = y - stamp.top, column = x - stamp.left;
  if (row < 0 || row >= stamp.height || column < 0 || column >= stamp.width) return 0;
  return stamp.pixels[row * stamp.width + column];
}

TEST(Pathfinder, DrawsEverySizeAndDifficulty) {
  for (const int size : {16, 32, 64, 128, 256}) {
    for (const char* difficulty : {"easy", "medium", "hard"}) {
      const auto options = pathfinder_options(size, difficulty);
      const auto [pixels, labels, margins] = generate_pathfinder(options, 0, 0, 3, 2);
      const int64_t picture = int64_t{size} * size;
      for (int i = 0; i < 3; ++i) {
        const auto begin = pixels.begin() + i * picture, end = begin + picture;
        EXPECT_EQ(*std::max_element(begin, end), 255);
        const double lit = std::count_if(begin, end, [](int value) { return value > 50; });
        EXPECT_GT(lit, 2 * options.contour_length * options.segment_length);
        EXPECT_LT(lit, 0.6 * picture);
        EXPECT_TRUE(std::count(options.margins.begin(), options.margins.end(), margins[i]));
      }
    }
  }
}

TEST(Pathfinder, HasTheSettingsOfTheLongRangeArena) {
  const auto hard = pathfinder_options(32, "hard");
  EXPECT_EQ(hard.contour_length, 14);
  EXPECT_EQ(hard.distractor_length, 4);
  EXPECT_EQ(hard.distractors, 5);
  const auto path_x = pathfinder_options(128, "hard");
  EXPECT_EQ(path_x.margins, (std::vector<int>{2, 3}));
  EXPECT_EQ(path_x.distractors, 8);
  EXPECT_EQ(path_x.distractor_contrast, path_x.path_contrast);
}

TEST(Pathfinder, DependsOnSeedAndIndexAlone) {
  for (const int size : {16, 32, 128}) {
    const auto options = pathfinder_options(size, "easy");
    const auto all = generate_pathfinder(options, 1, 0, 40, 1);
    const auto same = generate_pathfinder(options, 1, 0, 40, 5);
    EXPECT_EQ(all.pixels, same.pixels);
    EXPECT_EQ(all.labels, same.labels);
    EXPECT_EQ(all.margins, same.margins);
    const auto part = generate_pathfinder(options, 1, 30, 10, 2);
    EXPECT_TRUE(std::equal(part.pixels.begin(), part.pixels.end(),
                           all.pixels.begin() + int64_t{30} * size * size));
    EXPECT_NE(all.pixels, generate_pathfinder(options, 2, 0, 40, 1).pixels);
  }
}

// A change of these numbers is a change of every data set that somebody made from a seed.
TEST(Pathfinder, KeepsItsSequence) {
  EXPECT_EQ(hash(generate_pathfinder(pathfinder_options(32, "hard"), 0, 0, 8, 1).pixels),
            16021579161526089155u);
  EXPECT_EQ(hash(generate_pathfinder(pathfinder_options(128, "easy"), 0, 0, 4, 1).pixels),
            3946127887789120169u);
}

TEST(Pathfinder, LabelsAreBalanced) {
  const auto labels = generate_pathfinder(pathfinder_options(32, "easy"), 3, 0, 4000, 2).labels;
  const int ones = std::accumulate(labels.begin(), labels.end(), 0);
  EXPECT_NEAR(ones, 2000, 130);  // 4 standard deviations
}

// Two paths alone, in black but for the discs: their places are where the construction says.
TEST(Pathfinder, DiscsLieAtAStartInTheMiddleAndAtAnEnd) {
  PathfinderOptions options = pathfinder_options(64, "easy");
  options.distractors = 0;
  options.path_contrast = 1e-3;
  const auto pixels = generate_pathfinder(options, 4, 0, 50, 2).pixels;
  for (int i = 0; i < 50; ++i) {
    const uint8_t* picture = &pixels[i * 64 * 64];
    int near_middle = 0;
    for (int y = 0; y < 64; ++y) {
      for (int x = 0; x < 64; ++x) {
        if (picture[y * 64 + x] < 128) continue;
        // The window of the first start, the distance of the second, and the disc's radius.
        near_middle += std::max(std::abs(y - 31.5), std::abs(x - 31.5)) < 8 + 12 + 3;
      }
    }
    EXPECT_GE(near_middle, 15);  // a disc of radius 2.5
  }
}

// How far apart the discs of a picture are that shows nothing else.
double disc_distance(const uint8_t* picture, const PathfinderOptions& options) {
  int top = options.size, bottom = 0, left = options.size, right = 0;
  for (int i = 0; i < options.size * options.size; ++i) {
    if (picture[i] < 128) continue;
    top = std::min(top, i / options.size), bottom = std::max(bottom, i / options.size);
    left = std::min(left, i % options.size), right = std::max(right, i % options.size);
  }
  const double diameter = 2 * options.marker_radius;
  return std::hypot(bottom - top - diameter, right - left - diameter);
}

// One path is as long as another, but a straight one ends farther away.
TEST(Pathfinder, ContinuityStraightensPaths) {
  PathfinderOptions options = pathfinder_options(256, "easy");
  options.distractors = 0;
  options.path_contrast = 1e-3;
  const auto mean_distance = [&](double continuity) {
    options.continuity = continuity;
    const auto [pixels, labels, margins] = generate_pathfinder(options, 5, 0, 100, 2);
    double sum = 0;
    int count = 0;
    for (int i = 0; i < 100; ++i) {
      if (labels[i] == 0) continue;
      sum += disc_distance(&pixels[int64_t{i} * 256 * 256], options);
      ++count;
    }
    return sum / count;
  };
  const double straight = mean_distance(8), bent = mean_distance(1);
  // Six segments of 5 pixels with gaps of 6 between them: 60; 86 % of it with this law of turns.
  EXPECT_NEAR(straight, 60, 3);
  EXPECT_NEAR(bent, 0.86 * 60, 4);
}

TEST(Pathfinder, RefusesImpossibleArguments) {
  const auto refuse = [](const PathfinderOptions& options, int64_t first = 0, int64_t count = 1,
                         int threads = 1) {
    return message_of([&] { generate_pathfinder(options, 0, first, count, threads); });
  };
  EXPECT_EQ(message_of([] { pathfinder_options(48, "easy"); }),
            "pathfinder: size must be 16, 32, 64, 128 or 256 (got 48)");
  EXPECT_EQ(message_of([] { pathfinder_options(32, "mild"); }),
            "pathfinder: difficulty must be easy, medium or hard (got mild)");
  EXPECT_EQ(refuse({.size = 4}), "pathfinder: size must be in 8 .. 1024 (got 4)");
  EXPECT_EQ(refuse({.padding = 0}),
            "pathfinder: padding must be at least 1 and below a quarter of size (got 0)");
  EXPECT_EQ(refuse({.thickness = 0.7}),
            "pathfinder: thickness must be a positive integer divided by antialias, and below size "
            "(got 0.7)");
  EXPECT_EQ(refuse({.margins = {}}), "pathfinder: margins must be at least one (got none)");
  EXPECT_EQ(refuse({.contour_length = 1}), "pathfinder: contour_length must be at least 2 (got 1)");
  EXPECT_EQ(refuse({}, -1), "pathfinder: first must be at least 0 (got -1)");
  EXPECT_EQ(refuse({}, 0, -2), "pathfinder: count must be at least 0 (got -2)");
  EXPECT_EQ(refuse({}, 0, 1, 0), "pathfinder: threads must be at least 1 (got 0)");
  EXPECT_THROW(generate_pathfinder({.contour_length = 200}, 0, 0, 1, 1), std::runtime_error);
}

TEST(Stamps, ALineRunsFromItsPointIntoItsDirection) {
  const Pen pen({.length = 5, .thickness = 2, .margin = 3, .antialias = 2});
  const auto [line, ground] = pen.draw(0);
  for (int x = 0; x <= 5; ++x) EXPECT_GT(pixel(line, 0, x), 200) << x;
  EXPECT_EQ(pixel(line, 0, 8), 0);
  EXPECT_EQ(pixel(line, 0, -3), 0);
  EXPECT_LT(pixel(line, 3, 2), 5);  // the filter rings
  for (int y = -3; y <= 3; ++y) EXPECT_GT(pixel(ground, y, 2), 250) << y;
  EXPECT_LT(pixel(ground, 6, 2), 5);
  const auto [down, unused] = pen.draw(std::acos(0.));
  for (int y = 0; y <= 5; ++y) EXPECT_GT(pixel(down, y, 0), 200) << y;
}

TEST(Stamps, BrightnessIsTheAreaOfALine) {
  const Pen pen({.length = 5, .thickness = 1.5, .margin = 2, .antialias = 2});
  for (int degree = 0; degree < 360; degree += 7) {
    const auto line = pen.draw(degree * std::acos(-1.) / 180).line;
    const double area = std::accumulate(line.pixels.begin(), line.pixels.end(), 0.) / 255;
    EXPECT_NEAR(area, 5.5 * 1.5, 2) << degree;
  }
}

TEST(Stamps, ADiscIsRound) {
  const Stamp disc = draw_disc(3, 2);
  EXPECT_EQ(disc.height, disc.width);
  EXPECT_EQ(pixel(disc, 0, 0), 255);
  EXPECT_NEAR(std::accumulate(disc.pixels.begin(), disc.pixels.end(), 0.) / 255, 9 * 3.14, 4);
  for (int y = -4; y <= 4; ++y) {
    for (int x = -4; x <= 4; ++x) EXPECT_EQ(pixel(disc, y, x), pixel(disc, -x, y));
  }
}

TEST(Stamps, ReducingKeepsAnEvenSurface) {
  const std::vector<uint8_t> grey(21 * 21, 100);
  EXPECT_EQ(Reducer(21, 11)(grey), std::vector<uint8_t>(11 * 11, 100));
}

}  // namespace
}  // namespace paramixer::generators
