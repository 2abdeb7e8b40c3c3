// A picture is made by trial: the first segments of two paths are put near the middle, the paths
// grow in turns, and when one is stuck everything starts again. Distractors follow, then the discs.
#include "generators/pathfinder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <optional>
#include <set>
#include <stdexcept>

#include "generators/parallel.h"
#include "generators/random.h"
#include "generators/require.h"
#include "generators/stamps.h"

namespace paramixer::generators {
namespace {

constexpr const char* kName = "pathfinder";
constexpr int kSegmentTries = 3;       // to place one segment
constexpr int kDistractorTries = 5;    // to place one distractor
constexpr int kTailDraws = 64;         // before all places for a tail are listed
constexpr int kFree = 76;              // ground up to 30 % of 255 counts as free
constexpr int kTouching = 459;         // the sum of two grounds, 180 % of 255, that is too much
constexpr double kLeastFree = 0.01;    // of a picture, for another distractor
constexpr double kLeastWeight = 1e-4;  // of all steps together, for a path to go on
constexpr double kPi = std::numbers::pi;
constexpr int kDegrees = 360;

struct Point {
  int y = 0;
  int x = 0;

  Point operator+(Point other) const { return {y + other.y, x + other.x}; }
  auto operator<=>(const Point&) const = default;
};

// To the nearest point; the small term keeps ties the same in every C library.
Point towards(double angle, double distance) {
  const auto nearest = [](double value) {
    return static_cast<int>(std::floor(value + 0.5 + 1e-9));
  };
  return {nearest(distance * std::sin(angle)), nearest(distance * std::cos(angle))};
}

// Everything about a margin that does not depend on the picture.
struct Kit {
  struct Start {
    Point to_head;   // from the tail
    Point to_pivot;  // from the tail
    SegmentStamps segment;
  };
  struct Step {
    Point to_head;          // from the pivot
    SegmentStamps segment;  // drawn from the head back
  };
  struct Turn {
    int step;
    double weight;
  };
  struct Heading {
    Point to_pivot;  // from the last pivot
    std::vector<Turn> turns;
  };

  int margin = 0;
  std::vector<Point> disc;        // the points within the margin of one
  std::vector<Start> starts;      // one a degree
  std::vector<Step> steps;        // the points of a circle around the pivot
  std::vector<Heading> headings;  // those of starts, then those of steps
};

// The points of a circle, one for each pixel of its length.
std::set<Point> circle(int radius) {
  std::set<Point> points;
  for (int i = 0; i < 2 * kPi * radius; ++i) {
    points.insert(towards(static_cast<double>(i) / radius, radius));
  }
  return points;
}

std::vector<Point> disc_points(int radius) {
  std::vector<Point> points;
  for (int y = -radius; y <= radius; ++y) {
    for (int x = -radius; x <= radius; ++x) {
      if (y * y + x * x <= radius * radius) points.push_back({y, x});
    }
  }
  return points;
}

// The possible ones; they weigh cos^2 of their angle, which continuity magnifies.
std::vector<Kit::Turn> turns_from(double heading, const std::vector<double>& steps,
                                  double continuity) {
  std::vector<Kit::Turn> turns;
  for (int step = 0; step < std::ssize(steps); ++step) {
    const double turn = std::abs(std::remainder(steps[step] - heading, 2 * kPi)) * continuity;
    if (turn < kPi / 2) turns.push_back({step, std::cos(turn) * std::cos(turn)});
  }
  return turns;
}

Kit make_kit(const PathfinderOptions& options, int margin) {
  const int length = options.segment_length;
  const Pen pen({length, options.thickness, margin, options.antialias});
  Kit kit{margin, disc_points(margin), {}, {}, {}};
  std::vector<double> start_angles, step_angles;
  for (int degree = 0; degree < kDegrees; ++degree) {
    const double angle = degree * kPi / 180;
    start_angles.push_back(angle);
    kit.starts.push_back({towards(angle, length), towards(angle, -margin), pen.draw(angle)});
  }
  for (const Point point : circle(length + margin)) {
    const double angle = std::atan2(point.y, point.x);
    step_angles.push_back(angle);
    kit.steps.push_back({point, pen.draw(angle + kPi)});
  }
  for (const auto* angles : {&start_angles, &step_angles}) {
    for (const double heading : *angles) {
      kit.headings.push_back({towards(heading, length + 2 * margin),
                              turns_from(heading, step_angles, options.continuity)});
    }
  }
  return kit;
}

struct Segment {
  Point at;  // the tail of a start, the head of a step
  const SegmentStamps* stamps;
};

struct Path {
  Point pivot;  // the next segment begins near it, at a margin from the last one
  int heading = 0;
  std::vector<Segment> segments;

  Point origin() const { return segments.front().at; }
  Point end() const { return segments.back().at; }
};

// Calls visit(value, index) for every pixel of a stamp that lies in a picture.
template <typename Visit>
void each_pixel(const Stamp& stamp, Point at, int size, const Visit& visit) {
  const int top = at.y + stamp.top, left = at.x + stamp.left;
  const int first = std::max(0, -left), last = std::min(stamp.width, size - left);
  for (int y = std::max(0, -top); y < std::min(stamp.height, size - top); ++y) {
    const uint8_t* row = &stamp.pixels[y * stamp.width];
    const int start = (top + y) * size + left;
    for (int x = first; x < last; ++x) visit(row[x], start + x);
  }
}

// What a path has to keep clear of.
class Ground {
 public:
  Ground(int size, int padding) : size_(size), taken_(size * size) {
    for (int i = 0; i < size * size; ++i)
      taken_[i] = from_edge({i / size, i % size}) < padding ? 255 : 0;
  }

  int size() const { return size_; }

  // Pixels between it and the nearest edge; negative outside.
  int from_edge(Point p) const {
    return std::min(std::min(p.y, p.x), size_ - 1 - std::max(p.y, p.x));
  }

  void add(const Segment& segment) {
    // A pointer by value: bytes may alias the vector's own pointer, which forbids vector code.
    each_pixel(
        segment.stamps->ground, segment.at, size_,
        [pixels = taken_.data()](uint8_t value, int i) { pixels[i] = std::max(pixels[i], value); });
  }

  void add(const Ground& other) {
    for (size_t i = 0; i < taken_.size(); ++i) taken_[i] = std::max(taken_[i], other.taken_[i]);
  }

  // From 0 to 1: how free everything within `margin` of a point is; `disc` are those points.
  double room(Point p, int margin, const std::vector<Point>& disc) const {
    if (from_edge(p) < margin) return 0;
    const uint8_t* centre = &taken_[p.y * size_ + p.x];
    int most = 0;
    for (const Point q : disc) most = std::max<int>(most, centre[q.y * size_ + q.x]);
    return (255 - most) / 255.;
  }

  bool fits(const Segment& segment) const {
    int most = 0;
    each_pixel(segment.stamps->ground, segment.at, size_,
               [&](uint8_t value, int i) { most = std::max(most, taken_[i] + value); });
    return most < kTouching;
  }

  // Whether the core of a segment lies on free ground, and `border` pixels away from the edge.
  bool is_free(const Segment& segment, int border) const {
    bool free = true;
    each_pixel(segment.stamps->ground, segment.at, size_, [&](uint8_t value, int i) {
      const bool inside = from_edge({i / size_, i % size_}) >= border;
      free &= value < 255 || (inside && taken_[i] <= kFree);
    });
    return free;
  }

  double free_share() const {
    const auto free = std::count_if(taken_.begin(), taken_.end(), [](int v) { return v <= kFree; });
    return static_cast<double>(free) / static_cast<double>(taken_.size());
  }

 private:
  int size_;
  std::vector<uint8_t> taken_;
};

class Canvas {
 public:
  explicit Canvas(int size) : size_(size), brightness_(size * size) {}

  void clear() { std::fill(brightness_.begin(), brightness_.end(), 0.f); }

  void paint(const Stamp& stamp, Point at, double contrast) {
    each_pixel(stamp, at, size_, [&](uint8_t value, int i) {
      brightness_[i] = std::max(brightness_[i], static_cast<float>(contrast * value));
    });
  }

  void paint(const Path& path, double contrast) {
    for (const Segment& segment : path.segments) paint(segment.stamps->line, segment.at, contrast);
  }

  // Scaled so that the brightest pixel is 255.
  void write(uint8_t* pixels) const {
    const float most = *std::max_element(brightness_.begin(), brightness_.end());
    for (const float value : brightness_)
      *pixels++ = static_cast<uint8_t>(255 * value / most + .5f);
  }

 private:
  int size_;
  std::vector<float> brightness_;
};

// Makes pictures with the scratch of one thread.
class Painter {
 public:
  Painter(const PathfinderOptions& options, const std::vector<Kit>& kits, const Stamp& disc)
      : options_(options),
        kits_(kits),
        disc_(disc),
        empty_(options.size, options.padding),
        grounds_{empty_, empty_},
        canvas_(options.size) {}

  struct Facts {
    bool label;
    int margin;
  };

  Facts draw(Random& random, uint8_t* pixels) {
    kit_ = &kits_[random.below(static_cast<int>(kits_.size()))];
    place_paths(random);
    canvas_.clear();
    for (const Path& path : paths_) canvas_.paint(path, options_.path_contrast);
    grounds_[0].add(grounds_[1]);
    for (int i = 0; i < options_.distractors; ++i) draw_distractor(random);
    const int origin = random.below(2), end = random.below(2);
    canvas_.paint(disc_, paths_[origin].origin(), 1);
    canvas_.paint(disc_, paths_[end].end(), 1);
    canvas_.write(pixels);
    return {origin == end, kit_->margin};
  }

 private:
  // Both paths complete; afterwards the two grounds together hold all their segments.
  void place_paths(Random& random) {
    for (int restart = 0; restart < kPathfinderRestarts; ++restart) {
      for (Ground& ground : grounds_) ground = empty_;
      if (!start_paths(random) || !grow_paths(random)) continue;
      for (const int p : {0, 1}) grounds_[p].add(paths_[p].segments.back());
      return;
    }
    throw std::runtime_error("pathfinder: " + std::to_string(kPathfinderRestarts) +
                             " tries found no place for two paths with contour_length " +
                             std::to_string(options_.contour_length) + " in size " +
                             std::to_string(options_.size));
  }

  // The first path starts in the middle, the second at the seed distance from it.
  bool start_paths(Random& random) {
    // So far from the edge, but in at least 4 x 4 pixels.
    const int border = std::min(2 * options_.seed_distance, options_.size / 2 - 2);
    const auto first = start_somewhere(random, grounds_[0], border);
    if (!first) return false;
    paths_[0] = *first;
    grounds_[1].add(paths_[0].segments[0]);
    for (int attempt = 0; attempt < kSegmentTries; ++attempt) {
      const int degree = random.below(kDegrees);
      const Point tail =
          paths_[0].origin() + towards(random.below(kDegrees) * kPi / 180, options_.seed_distance);
      if (!is_inside(tail, degree, grounds_[1])) continue;
      paths_[1] = start_at(tail, degree);
      if (!grounds_[1].fits(paths_[1].segments[0])) continue;
      grounds_[0].add(paths_[1].segments[0]);
      return true;
    }
    return false;
  }

  bool grow_paths(Random& random) {
    for (int segment = 1; segment < options_.contour_length; ++segment) {
      for (const int p : {0, 1}) {
        // A path may touch its own last segment, with which the next one is connected.
        const Segment last = paths_[p].segments.back();
        if (!grow(paths_[p], grounds_[p], random)) return false;
        grounds_[p].add(last);
        grounds_[1 - p].add(paths_[p].segments.back());
      }
    }
    return true;
  }

  void draw_distractor(Random& random) {
    for (int attempt = 0; attempt < kDistractorTries; ++attempt) {
      if (grounds_[0].free_share() < kLeastFree) return;
      const auto path = grow_distractor(random);
      if (!path) continue;
      for (const Segment& segment : path->segments) grounds_[0].add(segment);
      canvas_.paint(*path, options_.distractor_contrast);
      return;
    }
  }

  std::optional<Path> grow_distractor(Random& random) {
    Ground& ground = grounds_[1];
    ground = grounds_[0];
    auto path = start_somewhere(random, ground, /*border=*/1);
    for (int segment = 1; path && segment < options_.distractor_length; ++segment) {
      const Segment last = path->segments.back();
      if (!grow(*path, ground, random)) return std::nullopt;
      ground.add(last);
    }
    return path;
  }

  // One more segment, drawn among the steps with room; false when the path is stuck.
  bool grow(Path& path, const Ground& ground, Random& random) {
    const Kit::Heading& heading = kit_->headings[path.heading];
    const Point pivot = path.pivot + heading.to_pivot;
    double total = 0;
    cumulated_.clear();
    for (const auto [step, weight] : heading.turns) {
      total += weight * ground.room(pivot + kit_->steps[step].to_head, kit_->margin, kit_->disc);
      cumulated_.push_back(total);
    }
    if (total < kLeastWeight) return false;
    for (int attempt = 0; attempt < kSegmentTries; ++attempt) {
      const auto chosen =
          std::upper_bound(cumulated_.begin(), cumulated_.end() - 1, random.uniform() * total);
      const int step = heading.turns[chosen - cumulated_.begin()].step;
      const Segment segment{pivot + kit_->steps[step].to_head, &kit_->steps[step].segment};
      if (!ground.fits(segment)) continue;
      path.segments.push_back(segment);
      path.pivot = pivot;
      path.heading = kDegrees + step;
      return true;
    }
    return false;
  }

  Path start_at(Point tail, int degree) const {
    const Kit::Start& start = kit_->starts[degree];
    return {tail + start.to_pivot, degree, {{tail, &start.segment}}};
  }

  bool is_inside(Point tail, int degree, const Ground& ground) const {
    const Kit::Start& start = kit_->starts[degree];
    return ground.from_edge(tail + start.to_head) >= 0 &&
           ground.from_edge(tail + start.to_pivot) >= 0;
  }

  // A first segment in any direction, anywhere on free ground away from the edge.
  std::optional<Path> start_somewhere(Random& random, const Ground& ground, int border) const {
    for (int attempt = 0; attempt < kSegmentTries; ++attempt) {
      const int degree = random.below(kDegrees);
      const auto tail = free_tail(random, ground, kit_->starts[degree].segment, border);
      if (!tail) return std::nullopt;
      if (is_inside(*tail, degree, ground)) return start_at(*tail, degree);
    }
    return std::nullopt;
  }

  // Uniform among the places where the segment is on free ground.
  std::optional<Point> free_tail(Random& random, const Ground& ground, const SegmentStamps& stamps,
                                 int border) const {
    const int width = ground.size() - 2 * border;
    for (int draw = 0; draw < kTailDraws; ++draw) {
      const Point tail{border + random.below(width), border + random.below(width)};
      if (ground.is_free({tail, &stamps}, border)) return tail;
    }
    std::vector<Point> free;
    for (int i = 0; i < width * width; ++i) {
      const Point tail{border + i / width, border + i % width};
      if (ground.is_free({tail, &stamps}, border)) free.push_back(tail);
    }
    if (free.empty()) return std::nullopt;
    return free[random.below(static_cast<int>(free.size()))];
  }

  const PathfinderOptions& options_;
  const std::vector<Kit>& kits_;
  const Stamp& disc_;
  const Kit* kit_ = nullptr;
  const Ground empty_;
  std::array<Ground, 2> grounds_;  // of each of the two paths, then of all distractors and of one
  std::array<Path, 2> paths_;
  std::vector<double> cumulated_;
  Canvas canvas_;
};

void check(const PathfinderOptions& o) {
  const auto at_least = [](const char* argument, auto value, auto least) {
    require(value >= least, kName, argument, "at least " + std::to_string(least), value);
  };
  require(o.size >= 8 && o.size <= 1024, kName, "size", "in 8 .. 1024", o.size);
  require(o.padding >= 1 && o.padding < o.size / 4, kName, "padding",
          "at least 1 and below a quarter of size", o.padding);
  require(o.antialias >= 1 && o.antialias <= 8, kName, "antialias", "in 1 .. 8", o.antialias);
  require(o.segment_length >= 1 && o.segment_length < o.size, kName, "segment_length",
          "at least 1 and below size", o.segment_length);
  const double fine = o.thickness * o.antialias;
  require(fine > 0 && fine == std::floor(fine) && o.thickness < o.size, kName, "thickness",
          "a positive integer divided by antialias, and below size", o.thickness);
  require(!o.margins.empty(), kName, "margins", "at least one", "none");
  for (const int margin : o.margins) {
    require(margin >= 1 && margin < o.size, kName, "margins", "at least 1 and below size", margin);
  }
  require(o.continuity > 0, kName, "continuity", "positive", o.continuity);
  at_least("seed_distance", o.seed_distance, 1);
  require(o.marker_radius > 0 && o.marker_radius < o.size, kName, "marker_radius",
          "positive and below size", o.marker_radius);
  at_least("contour_length", o.contour_length, 2);
  at_least("distractor_length", o.distractor_length, 1);
  at_least("distractors", o.distractors, 0);
  require(o.path_contrast > 0, kName, "path_contrast", "positive", o.path_contrast);
  require(o.distractor_contrast > 0, kName, "distractor_contrast", "positive",
          o.distractor_contrast);
}

// Pictures of different settings have different random numbers.
StreamId stream(const PathfinderOptions& options) {
  return (uint64_t{2} << 32) + static_cast<uint64_t>(options.size) * 1024 + options.contour_length;
}

}  // namespace

PathfinderOptions pathfinder_options(int size, const std::string& difficulty) {
  const std::array<std::string, 3> difficulties = {"easy", "medium", "hard"};
  const auto level = std::find(difficulties.begin(), difficulties.end(), difficulty);
  require(level != difficulties.end(), kName, "difficulty", "easy, medium or hard", difficulty);
  PathfinderOptions options;
  int distractor_segments = 20;
  switch (size) {
    case 16:
    case 32:
      break;
    case 64:
      options = {.segment_length = 5,
                 .thickness = 1,
                 .margins = {1},
                 .continuity = 1.8,
                 .seed_distance = 12,
                 .marker_radius = 2.5,
                 .path_contrast = 0.8};
      distractor_segments = 22;
      break;
    case 128:
      options = {.segment_length = 5,
                 .thickness = 1.5,
                 .margins = {2, 3},
                 .continuity = 1.8,
                 .seed_distance = 20,
                 .marker_radius = 3,
                 .path_contrast = 0.9};
      distractor_segments = 35;
      break;
    case 256:
      options = {.padding = 22,
                 .segment_length = 5,
                 .thickness = 2,
                 .margins = {3},
                 .continuity = 1.8,
                 .seed_distance = 27,
                 .marker_radius = 5,
                 .path_contrast = 1};
      distractor_segments = 30;
      break;
    default:
      require(false, kName, "size", "16, 32, 64, 128 or 256", size);
  }
  const auto rank = level - difficulties.begin();
  options.size = size;
  options.contour_length = std::array{6, 9, 14}[rank];
  options.distractor_length = options.contour_length / 3;
  options.distractors = distractor_segments / options.distractor_length;
  if (size > 32) options.distractor_contrast = options.path_contrast;
  if (size == 16) {
    options.seed_distance = 4;
    options.contour_length = std::array{3, 4, 5}[rank];
    options.distractor_length = 2;
    options.distractors = 2;
  }
  return options;
}

PathfinderSamples generate_pathfinder(const PathfinderOptions& options, uint64_t seed,
                                      int64_t first, int64_t count, int threads) {
  check(options);
  require_run(kName, first, count, threads);
  std::vector<Kit> kits;
  for (const int margin : options.margins) kits.push_back(make_kit(options, margin));
  const Stamp disc = draw_disc(options.marker_radius, options.antialias);
  const int64_t picture = int64_t{options.size} * options.size;
  PathfinderSamples samples;
  samples.pixels.resize(count * picture);
  samples.labels.resize(count);
  samples.margins.resize(count);
  for_each_sample(count, threads, [&] {
    return [&, painter = Painter(options, kits, disc)](int64_t i) mutable {
      Random random(seed, stream(options), static_cast<uint64_t>(first + i));
      const auto [label, margin] = painter.draw(random, &samples.pixels[i * picture]);
      samples.labels[i] = label;
      samples.margins[i] = margin;
    };
  });
  return samples;
}

}  // namespace paramixer::generators
