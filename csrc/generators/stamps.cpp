#include "generators/stamps.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace paramixer::generators {
namespace {

// Sines differ in the last bit between C libraries: distances this close count as equal.
constexpr double kSame = 1e-9;
constexpr int kLobes = 3;

// The pixels of a square around a centre, 255 where inside(y, x) holds.
template <typename Inside>
std::vector<uint8_t> fill(int reach, const Inside& inside) {
  std::vector<uint8_t> pixels;
  pixels.reserve((2 * reach + 1) * (2 * reach + 1));
  for (int y = -reach; y <= reach; ++y) {
    for (int x = -reach; x <= reach; ++x) pixels.push_back(inside(y, x) ? 255 : 0);
  }
  return pixels;
}

// And everything within `radius` of what is lit.
std::vector<uint8_t> dilate(const std::vector<uint8_t>& pixels, int reach, int radius) {
  const int side = 2 * reach + 1;
  std::vector<uint8_t> result(pixels.size());
  const auto light_around = [&](int y, int x) {
    for (int v = std::max(0, y - radius); v <= std::min(side - 1, y + radius); ++v) {
      for (int u = std::max(0, x - radius); u <= std::min(side - 1, x + radius); ++u) {
        if ((v - y) * (v - y) + (u - x) * (u - x) <= radius * radius) result[v * side + u] = 255;
      }
    }
  };
  for (int i = 0; i < side * side; ++i) {
    if (pixels[i] > 0) light_around(i / side, i % side);
  }
  return result;
}

// Without the black rows and columns at its edges: small stamps are fast.
Stamp crop(const std::vector<uint8_t>& pixels, int reach) {
  const int side = 2 * reach + 1;
  int top = side, bottom = 0, left = side, right = 0;
  for (int i = 0; i < side * side; ++i) {
    if (pixels[i] == 0) continue;
    top = std::min(top, i / side);
    bottom = std::max(bottom, i / side + 1);
    left = std::min(left, i % side);
    right = std::max(right, i % side + 1);
  }
  Stamp stamp{top - reach, left - reach, bottom - top, right - left, {}};
  for (int y = top; y < bottom; ++y) {
    const auto row = pixels.begin() + y * side;
    stamp.pixels.insert(stamp.pixels.end(), row + left, row + right);
  }
  return stamp;
}

double sinc(double x) {
  const double angle = std::numbers::pi * x;
  return std::abs(x) < kSame ? 1 : std::sin(angle) / angle;
}

}  // namespace

Reducer::Reducer(int from, int to) : from_(from), weights_(to) {
  const double scale = static_cast<double>(from) / to;
  for (int i = 0; i < to; ++i) {
    const double centre = (i + 0.5) * scale - 0.5, support = kLobes * scale;
    auto& [first, values] = weights_[i];
    first = std::max(0, static_cast<int>(std::ceil(centre - support)));
    double sum = 0;
    for (int j = first; j < from && j <= centre + support; ++j) {
      const double distance = (j - centre) / scale;
      values.push_back(sinc(distance) * sinc(distance / kLobes));
      sum += values.back();
    }
    for (double& value : values) value /= sum;
  }
}

std::vector<uint8_t> Reducer::operator()(const std::vector<uint8_t>& fine) const {
  const int to = static_cast<int>(weights_.size());
  std::vector<double> rows(from_ * to);
  for (int y = 0; y < from_; ++y) {
    for (int x = 0; x < to; ++x) {
      const uint8_t* pixels = &fine[y * from_ + weights_[x].first];
      for (const double weight : weights_[x].values) rows[y * to + x] += weight * *pixels++;
    }
  }
  std::vector<uint8_t> coarse;
  for (int y = 0; y < to; ++y) {
    for (int x = 0; x < to; ++x) {
      double sum = 0.5 + kSame;
      int row = weights_[y].first;
      for (const double weight : weights_[y].values) sum += weight * rows[row++ * to + x];
      coarse.push_back(static_cast<uint8_t>(std::clamp(sum, 0., 255.)));
    }
  }
  return coarse;
}

Pen::Pen(const SegmentShape& shape)
    : shape_(shape),
      reach_(shape.length + static_cast<int>(std::ceil(shape.thickness)) + shape.margin),
      reduce_(2 * reach_ * shape.antialias + 1, 2 * reach_ + 1) {}

SegmentStamps Pen::draw(double angle) const {
  const int fine_reach = reach_ * shape_.antialias;
  const double cos = std::cos(angle), sin = std::sin(angle);
  const double length = shape_.length * shape_.antialias;
  const double half = shape_.thickness * shape_.antialias / 2;
  const auto line = fill(fine_reach, [&](int y, int x) {
    const double along = x * cos + y * sin, across = y * cos - x * sin;
    // Half open: a line that is parallel to the pixels is as many of them wide as it is thick.
    return along > -0.5 - kSame && along < length + 0.5 + kSame && across > -half + kSame &&
           across < half + kSame;
  });
  const auto ground = dilate(line, fine_reach, shape_.margin * shape_.antialias);
  return {crop(reduce_(line), reach_), crop(reduce_(ground), reach_)};
}

Stamp draw_disc(double radius, int antialias) {
  const double fine_radius = radius * antialias;
  const int reach = static_cast<int>(std::ceil(radius)) + 1, fine_reach = reach * antialias;
  const auto disc = fill(
      fine_reach, [&](int y, int x) { return y * y + x * x < fine_radius * fine_radius + kSame; });
  return crop(Reducer(2 * fine_reach + 1, 2 * reach + 1)(disc), reach);
}

}  // namespace paramixer::generators
