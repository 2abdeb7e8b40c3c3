// The cases that passes of composed bands are tested with, and their definition in float64: the
// factors one at a time. The tests on the host and on a GPU run these.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "band_pass.h"
#include "core/numeric.h"
#include "kernel_cases.h"

namespace paramixer::testing {

struct BandCase {
  int64_t length;
  int64_t channels;
  int links;
  int factors;
  int64_t step = 1;
  bool keep = false;
  bool transpose = false;
  Layout layout = Layout::kContiguous;
};

inline std::string describe(const BandCase& c) {
  return describe(Case{c.length, c.channels, c.links, c.layout}) + " " + std::to_string(c.factors) +
         " factors from step " + std::to_string(c.step) + (c.keep ? ", residual" : "") +
         (c.transpose ? ", transposed" : "");
}

// Closed tiles of every length that closes, halo tiles of one block and of several, classes in the
// order of the ring and in others; K, D, number of factors, residual, direction and layout take
// turns.
inline std::vector<BandCase> band_cases() {
  const std::vector<int> links = {3, 5, 3, 9, 3, 7};
  const std::vector<int64_t> channels = {64, 8, 33, 100, 1, 130, 32, 7, 66, 128, 40};
  std::vector<BandCase> list;
  int turn = 0;
  const auto add = [&](int64_t length, int64_t step) {
    const int k = links[turn % links.size()];
    const int most = k == 3 ? 10 : k == 5 ? 8 : 7;
    for (int factors = 1 + turn * 3 % most; factors > 0; --factors) {
      BandCase c{length,
                 channels[turn % channels.size()],
                 k,
                 factors,
                 step % length,
                 turn % 2 == 1,
                 turn / 2 % 2 == 1,
                 Layout(turn * 3 % kLayoutCount)};
      ++turn;
      cuda::BandPass pass;
      pass.problem.length = length;
      pass.problem.channels = c.channels;
      pass.problem.links = k;
      pass.factors = factors;
      pass.step = c.step;
      if (cuda::band_shape(pass).rows == 0) continue;  // too wide a margin: the next smaller pass
      list.push_back(c);
      return;
    }
  };
  for (const int64_t length :
       {1, 2, 3, 4, 5, 8, 12, 16, 17, 31, 32, 48, 64, 67, 96, 100, 128, 256}) {
    for (const int64_t step : {1, 2, 3, 8}) add(length, step);
  }
  for (const int64_t length : {500, 512, 513, 600, 768, 1000, 1024}) {
    for (const int64_t step : {1, 2, 6, 64}) add(length, step);
  }
  for (int layout = 0; layout < kLayoutCount; ++layout) {
    for (const int64_t length : {97, 128, 520}) {
      add(length, 1);
      list.back().layout = Layout(layout);
    }
  }
  return list;
}

// The tensors of a pass. Storage around them, and the output before the pass, are NaN.
template <typename T>
class BandInstance {
 public:
  explicit BandInstance(const BandCase& c) : case_(c), random_(31) {
    problem_.length = c.length;
    problem_.channels = c.channels;
    problem_.links = c.links;
    set_batch_sizes(problem_, c.layout, 2);
    weight = make(c.factors * c.links, Role::kInput, 1 / std::sqrt(double(c.links)));
    value = make(c.channels, Role::kInput);
    result = make(c.channels, Role::kOutput);
    // Every factor's links in an order of its own.
    for (int f = 0; f < c.factors; ++f) {
      auto* columns = pass_.column[f];
      for (int k = 0; k < c.links; ++k) columns[k] = static_cast<int8_t>(k);
      std::shuffle(columns, columns + c.links, random_);
    }
  }

  Tensor<T> weight, value, result;

  cuda::BandPass pass() const {
    cuda::BandPass pass = pass_;
    pass.problem = problem_;
    pass.problem.weight = weight.operand;
    pass.problem.value = value.operand;
    pass.problem.result = result.operand;
    pass.weight_factor = case_.links * weight.operand.column;
    pass.factors = case_.factors;
    pass.step = case_.step;
    pass.keep = case_.keep;
    pass.transpose = case_.transpose;
    return pass;
  }

  void poison_outputs() { poison(result.storage); }

  std::vector<unsigned char> output_bytes() const { return bytes_of(result.storage); }

  double output(int64_t b, int64_t i, int64_t c) const {
    return widen(result.storage[place(problem_, result, b, i, c)]);
  }
  void set_value(int64_t b, int64_t i, int64_t c, double x) {
    value.storage[place(problem_, value, b, i, c)] = narrow<T>(static_cast<float>(x));
  }

  // Compares with the factors one at a time in float64. A band rounds its coefficients and its
  // result once each, by at most epsilon / 2 of the sum of the magnitudes of all terms; sums are
  // in float32.
  void check() const {
    const int bands = (case_.factors + 1) / 2;
    const double bound = (2 * bands + 0.5) * epsilon<T>() / 2 +
                         case_.factors * (case_.links + 30.0) * epsilon<float>();
    for (int64_t b = 0; b < batch_count(problem_); ++b) {
      const Chain exact = exact_chain(b);
      for (int64_t i = 0; i < case_.length; ++i) {
        for (int64_t c = 0; c < case_.channels; ++c) {
          const int64_t e = i * case_.channels + c;
          const double least = std::is_same_v<T, Float16> ? std::ldexp(30.0, -25) : 0.0;
          ASSERT_TRUE(within(bound * exact.magnitude[e] + least, output(b, i, c), exact.value[e]))
              << where(describe(case_), "result", b, i, c);
        }
      }
    }
    check_surroundings(problem_, result, describe(case_));
  }

  // The 2-norm error of the output over that of the factors one at a time, each rounded to T.
  double error_ratio() const {
    double own = 0, single = 0;
    for (int64_t b = 0; b < batch_count(problem_); ++b) {
      const Chain exact = exact_chain(b);
      const Chain rounded = chain(b, [](double x) { return widen(narrow<T>(float(x))); });
      for (int64_t e = 0; e < case_.length * case_.channels; ++e) {
        const double actual = output(b, e / case_.channels, e % case_.channels);
        own += (actual - exact.value[e]) * (actual - exact.value[e]);
        single += (rounded.value[e] - exact.value[e]) * (rounded.value[e] - exact.value[e]);
      }
    }
    return std::sqrt(own / single);
  }

 private:
  // (N, D), and the sums of the magnitudes of all terms.
  struct Chain {
    std::vector<double> value, magnitude;
  };

  Tensor<T> make(int64_t columns, Role role, double deviation = 1) {
    return make_tensor<T>(problem_, case_.layout, columns, role, random_, deviation);
  }

  Chain exact_chain(int64_t b) const {
    return chain(b, [](double x) { return x; });
  }

  template <typename Round>
  Chain chain(int64_t b, Round round) const {
    const int64_t n = case_.length, d = case_.channels;
    Chain from;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t c = 0; c < d; ++c)
        from.value.push_back(widen(value.storage[place(problem_, value, b, i, c)]));
    }
    for (const double x : from.value) from.magnitude.push_back(std::abs(x));
    for (int number = 0; number < case_.factors; ++number) {
      const int f = case_.transpose ? case_.factors - 1 - number : number;
      Chain to{std::vector<double>(n * d), std::vector<double>(n * d)};
      if (case_.keep) to = from;
      for (int64_t i = 0; i < n; ++i) {
        for (int k = 0; k < case_.links; ++k) {
          const int64_t offset = (k - (case_.links - 1) / 2) * (int64_t{1} << f) * case_.step;
          const int64_t other = reduce_offset(i + offset, n);
          const int64_t column = f * case_.links + pass_.column[f][k];
          const double w = widen(weight.storage[place(problem_, weight, b, i, column)]);
          const int64_t target = case_.transpose ? other : i, source = case_.transpose ? i : other;
          for (int64_t c = 0; c < d; ++c) {
            to.value[target * d + c] += w * from.value[source * d + c];
            to.magnitude[target * d + c] += std::abs(w) * from.magnitude[source * d + c];
          }
        }
      }
      for (double& x : to.value) x = round(x);
      from = std::move(to);
    }
    return from;
  }

  BandCase case_;
  Problem problem_;
  cuda::BandPass pass_;
  std::mt19937 random_;
};

using BandDTypes = ::testing::Types<BFloat16, Float16>;

}  // namespace paramixer::testing
