// Chains in host memory with every layout that matters, and their definition in float64. The tests
// of the CUDA kernels on the host and on a GPU run these.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "chain_cases.h"
#include "core/problem.h"
#include "kernel_cases.h"

namespace paramixer::testing {

enum class ChainLayout {
  kContiguous,
  kSliced,           // eight more channels in each row and four more factors in each row of weights
  kShifted,          // one element off any alignment
  kTransposed,       // channels and links lie apart
  kFactorsOutside,   // weights as (M, B, N, K)
  kExpandedBatch,    // the inputs of one batch item serve all
  kPermutedBatches,  // two batch dimensions, the inner one with the larger stride
};
inline constexpr int kChainLayoutCount = 7;

inline const char* name_of(Residual residual) {
  return residual == Residual::kNone       ? "none"
         : residual == Residual::kPrevious ? "previous"
                                           : "initial";
}

struct ChainCase {
  int64_t length;
  int64_t channels;
  Protocol protocol;
  Residual residual;
  ChainLayout layout;
};

inline std::string describe(const ChainCase& c) {
  return "N=" + std::to_string(c.length) + " D=" + std::to_string(c.channels) + " " +
         std::to_string(factor_count(c.protocol)) + " factors, " + c.protocol.name + ", residual " +
         name_of(c.residual) + ", layout " + std::to_string(static_cast<int>(c.layout));
}

// Operands of a chain: (B, N, D) and weights (B, N, M, K). What surrounds them is NaN.
template <typename T>
class ChainInstance {
 public:
  explicit ChainInstance(const ChainCase& c)
      : case_(c), factors_(factor_count(c.protocol)), random_(23) {
    const bool two = c.layout == ChainLayout::kPermutedBatches;
    problem_.length = c.length;
    problem_.channels = c.channels;
    problem_.links = c.protocol.links;
    problem_.batch_dims = two ? 2 : 1;
    problem_.batch_sizes[0] = 2;
    problem_.batch_sizes[1] = two ? 3 : 0;
    value_ = make(c.channels, true);
    grad_ = make(c.channels, true);
    for (Tensor<T>* state : {&result_, &temporary_}) *state = make(c.channels, false);
    make_weights();
  }

  const Operand& value() const { return value_.operand; }
  const Operand& result() const { return result_.operand; }
  const Operand& temporary() const { return temporary_.operand; }
  // The state after `factors` factors, which check() compares too.
  const Operand& kept(int factors) {
    for (const auto& [count, buffer] : kept_) {
      if (count == factors) return buffer.operand;
    }
    return kept_.emplace_back(factors, make(case_.channels, false)).second.operand;
  }

  const ChainCase& chain_case() const { return case_; }
  int factors() const { return factors_; }

  ChainProblem problem(const Operand& from, const Operand& to) const {
    ChainProblem chain;
    chain.problem = problem_;
    chain.problem.weight = weight_.operand;
    chain.problem.value = from;
    chain.problem.grad = value_.operand;
    chain.problem.result = to;
    chain.weight_factor = weight_factor_;
    chain.factors = factors_;
    chain.residual = case_.residual;
    return chain;
  }

  // The backward pass of one sweep, from the chain's value and any gradient.
  ChainProblem backward_problem(const Sweep& sweep) {
    ChainProblem chain = problem(value_.operand, result_.operand);
    chain.problem.grad = grad_.operand;
    // No more blocks can share a row's channels than it has groups of them.
    const int64_t groups = (case_.channels + sweep.channels - 1) / sweep.channels;
    dots_.assign(groups * dots_of_split(sweep), NAN);
    chain.problem.dots.data = dots_.data();
    return chain;
  }

  // Calls body(tensor) for every tensor that a problem points to, but for the dots.
  template <typename Body>
  void for_each_tensor(const Body& body) {
    for (Tensor<T>* tensor : {&weight_, &value_, &grad_, &result_, &temporary_}) body(*tensor);
    for (auto& [count, state] : kept_) body(state);
  }
  std::vector<float>& dots() { return dots_; }

  void poison() {
    for (Tensor<T>* state : {&result_, &temporary_}) testing::poison(state->storage);
    std::fill(dots_.begin(), dots_.end(), NAN);
  }

  // Everything that was written, with its surroundings.
  std::vector<unsigned char> bytes() const {
    auto bytes = bytes_of(result_.storage);
    const auto* dots = reinterpret_cast<const unsigned char*>(dots_.data());
    bytes.insert(bytes.end(), dots, dots + dots_.size() * sizeof(float));
    return bytes;
  }

  // Adds the residual to a product of factor `factor`, as the sequence of single products does.
  void add_residual(const ChainProblem& chain) {
    if (case_.residual == Residual::kNone) return;
    const Operand& source =
        case_.residual == Residual::kPrevious ? chain.problem.value : chain.problem.grad;
    for_each_element([&](int64_t b, int64_t i, int64_t c) {
      T& target = element(chain.problem.result, b, i, c);
      target = narrow<T>(widen(target) + widen(element(source, b, i, c)));
    });
  }

  // The result against the definition. A rounding error of one state reaches the result no larger
  // than the sum of all terms' magnitudes.
  void check() const {
    Numbers state = numbers(value_);
    const Numbers initial = state;
    for (int m = 0; m < factors_; ++m) {
      for (const auto& [count, buffer] : kept_) {
        if (count == m) check_state(buffer, state, m);
        if (::testing::Test::HasFatalFailure()) return;
      }
      state = apply(m, state, initial);
    }
    check_state(result_, state, factors_);
  }

  // Both gradients of a sweep against their definition; the dots summed over splits of the
  // channels.
  void check_backward(const Sweep& sweep) const {
    std::vector<Numbers> states = {numbers(value_)};
    for (int f = 0; f + 1 < sweep.factors; ++f) {
      states.push_back(apply(sweep.first + f, states.back(), states[0]));
    }
    ASSERT_NO_FATAL_FAILURE(check_splits(sweep));
    Numbers grad = numbers(grad_);
    for (int f = sweep.factors - 1; f >= 0; --f) {
      ASSERT_NO_FATAL_FAILURE(check_dots(sweep, f, grad, states[f]));
      grad = apply_transpose(sweep.first + f, grad);
    }
    check_state(result_, grad, sweep.factors);
  }

 private:
  // Exact values, and the sums of their terms' magnitudes.
  struct Numbers {
    std::vector<double> value;
    std::vector<double> magnitude;
  };

  // A single product and its residual round twice.
  double rounding(int factors) const {
    return 1.05 * factors * (epsilon<T>() + (problem_.links + 2) * epsilon<Accumulate<T>>());
  }

  void check_state(const Tensor<T>& buffer, const Numbers& expected, int factors) const {
    int64_t e = 0;
    for_each_element([&](int64_t b, int64_t i, int64_t c) {
      const double actual = widen(element(buffer.operand, b, i, c));
      const double bound = rounding(factors) * expected.magnitude[e] + std::ldexp(factors, -24);
      ASSERT_LE(std::abs(actual - expected.value[e]), bound)
          << describe(case_) << ": [" << b << ", " << i << ", " << c << "] after " << factors
          << " factors is " << actual << ", expected " << expected.value[e];
      ++e;
    });
    check_surroundings(problem_, buffer, describe(case_));
  }

  int64_t dots_of_split(const Sweep& sweep) const {
    return batches() * case_.length * sweep.factors * problem_.links;
  }

  // How many splits of the channels have dots.
  int64_t written_splits(const Sweep& sweep) const {
    int64_t splits = 0;
    for (size_t first = 0; first < dots_.size(); first += dots_of_split(sweep)) {
      splits += !std::isnan(dots_[first]);
    }
    return splits;
  }

  // The first splits are written whole and the others not at all; all together take no more than
  // two tensors like V, unless one does.
  void check_splits(const Sweep& sweep) const {
    const int64_t each = dots_of_split(sweep), splits = written_splits(sweep);
    ASSERT_GE(splits, 1) << describe(case_);
    const int64_t value_bytes = batches() * case_.length * case_.channels * int64_t{sizeof(T)};
    const int64_t bytes = splits * each * int64_t{sizeof(float)};
    ASSERT_TRUE(splits == 1 || bytes <= 2 * value_bytes) << describe(case_);
    const auto end = dots_.begin() + splits * each;
    const auto is_nan = [](float dot) { return std::isnan(dot); };
    ASSERT_TRUE(std::none_of(dots_.begin(), end, is_nan)) << describe(case_);
    ASSERT_TRUE(std::all_of(end, dots_.end(), is_nan)) << describe(case_);
  }

  void check_dots(const Sweep& sweep, int factor, const Numbers& grad, const Numbers& state) const {
    const int64_t length = case_.length, channels = case_.channels, links = problem_.links;
    const int64_t per_split = dots_of_split(sweep), splits = written_splits(sweep);
    for (int64_t row = 0; row < batches() * length; ++row) {
      for (int64_t k = 0; k < links; ++k) {
        const int64_t other = neighbour(row, offset(sweep.first + factor, k));
        double expected = 0, magnitude = 0, actual = 0;
        for (int64_t c = 0; c < channels; ++c) {
          expected += grad.value[row * channels + c] * state.value[other * channels + c];
          magnitude += grad.magnitude[row * channels + c] * state.magnitude[other * channels + c];
        }
        for (int64_t g = 0; g < splits; ++g) {
          actual += dots_[g * per_split + (row * sweep.factors + factor) * links + k];
        }
        const double bound = (rounding(sweep.factors) + channels * epsilon<float>()) * magnitude;
        ASSERT_LE(std::abs(actual - expected), bound + std::ldexp(sweep.factors, -20))
            << describe(case_) << ": dots of row " << row << ", factor " << factor << ", link " << k
            << " are " << actual << ", expected " << expected;
      }
    }
  }

  int64_t offset(int m, int64_t k) const {
    return reduce_offset(case_.protocol.offsets[m * problem_.links + k], case_.length);
  }

  // The row of the batch that lies `offset` positions further on the ring.
  int64_t neighbour(int64_t row, int64_t offset) const {
    const int64_t i = row % case_.length;
    return row - i + (i + offset) % case_.length;
  }

  int64_t batches() const { return batch_count(problem_); }

  template <typename Body>
  void for_each_element(const Body& body) const {
    for (int64_t b = 0; b < batches(); ++b) {
      for (int64_t i = 0; i < problem_.length; ++i) {
        for (int64_t c = 0; c < problem_.channels; ++c) {
          body(b, i, c);
          if (::testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }

  T& element(const Operand& operand, int64_t b, int64_t i, int64_t c) const {
    return static_cast<T*>(
        operand.data)[batch_offset(problem_, operand, b) + i * operand.row + c * operand.column];
  }

  void set_batches(Operand& operand, int64_t one) {
    operand.batch[0] = one;
    if (problem_.batch_dims == 2) operand.batch[1] = 2 * one;
  }

  Tensor<T> make(int64_t columns, bool is_input) {
    const ChainLayout layout = case_.layout;
    Tensor<T> buffer;
    buffer.columns = columns;
    Operand& operand = buffer.operand;
    buffer.start = layout == ChainLayout::kSliced ? 8 : layout == ChainLayout::kShifted;
    operand.row = columns + (layout == ChainLayout::kSliced ? 8 : 0);
    operand.column = 1;
    const int64_t one = operand.row * case_.length;
    if (layout == ChainLayout::kTransposed) {
      operand.column = case_.length;
      operand.row = 1;
    }
    set_batches(operand, one);
    allocate(buffer, batches() * one);
    if (is_input && layout == ChainLayout::kExpandedBatch) operand.batch[0] = 0;
    if (is_input) {
      for_each_element([&](int64_t b, int64_t i, int64_t c) { element(operand, b, i, c) = any(); });
    }
    return buffer;
  }

  void make_weights() {
    const ChainLayout layout = case_.layout;
    const int64_t links = problem_.links, length = case_.length;
    Operand& operand = weight_.operand;
    weight_factor_ = links;
    operand.column = 1;
    operand.row = links * (factors_ + (layout == ChainLayout::kSliced ? 4 : 0));
    if (layout == ChainLayout::kTransposed) {
      weight_factor_ = 1;
      operand.column = factors_;
    }
    int64_t one = operand.row * length;
    const int64_t elements = batches() * one;
    if (layout == ChainLayout::kFactorsOutside) {
      operand.row = links;
      weight_factor_ = batches() * length * links;
      one = length * links;
    }
    set_batches(operand, one);
    weight_.start = layout == ChainLayout::kShifted;
    allocate(weight_, elements);
    if (layout == ChainLayout::kExpandedBatch) operand.batch[0] = 0;
    for (int64_t b = 0; b < batches(); ++b) {
      for (int64_t i = 0; i < length; ++i) {
        for (int m = 0; m < factors_; ++m) {
          for (int64_t k = 0; k < links; ++k) weight(b, i, m, k) = any(1 / std::sqrt(links));
        }
      }
    }
  }

  T any(double scale = 1) {
    return narrow<T>(static_cast<Accumulate<T>>(scale * normal_(random_)));
  }

  T& weight(int64_t b, int64_t i, int m, int64_t k) const {
    return static_cast<T*>(
        weight_.operand.data)[batch_offset(problem_, weight_.operand, b) + i * weight_.operand.row +
                              m * weight_factor_ + k * weight_.operand.column];
  }

  Numbers numbers(const Tensor<T>& buffer) const {
    Numbers list;
    for_each_element([&](int64_t b, int64_t i, int64_t c) {
      list.value.push_back(widen(element(buffer.operand, b, i, c)));
      list.magnitude.push_back(std::abs(list.value.back()));
    });
    return list;
  }

  // Adds factor * from[from_row] to to[to_row], all channels.
  void add_row(double factor, const Numbers& from, int64_t from_row, Numbers& to,
               int64_t to_row) const {
    for (int64_t c = 0; c < case_.channels; ++c) {
      const int64_t source = from_row * case_.channels + c, target = to_row * case_.channels + c;
      to.value[target] += factor * from.value[source];
      to.magnitude[target] += std::abs(factor) * from.magnitude[source];
    }
  }

  static Numbers zeros(const Numbers& like) {
    return {std::vector<double>(like.value.size()), std::vector<double>(like.value.size())};
  }

  // Calls body(weight, row, its neighbour) for every link of factor m.
  template <typename Body>
  void for_each_link(int m, const Body& body) const {
    for (int64_t row = 0; row < batches() * case_.length; ++row) {
      for (int64_t k = 0; k < problem_.links; ++k) {
        body(widen(weight(row / case_.length, row % case_.length, m, k)), row,
             neighbour(row, offset(m, k)));
      }
    }
  }

  Numbers apply(int m, const Numbers& state, const Numbers& initial) const {
    Numbers next = case_.residual == Residual::kPrevious  ? state
                   : case_.residual == Residual::kInitial ? initial
                                                          : zeros(state);
    for_each_link(m, [&](double factor, int64_t row, int64_t other) {
      add_row(factor, state, other, next, row);
    });
    return next;
  }

  Numbers apply_transpose(int m, const Numbers& grad) const {
    Numbers next = case_.residual == Residual::kPrevious ? grad : zeros(grad);
    for_each_link(m, [&](double factor, int64_t row, int64_t other) {
      add_row(factor, grad, row, next, other);
    });
    return next;
  }

  ChainCase case_;
  int factors_;
  std::mt19937 random_;
  std::normal_distribution<double> normal_;
  Problem problem_;
  Tensor<T> value_, grad_, result_, temporary_, weight_;
  std::deque<std::pair<int, Tensor<T>>> kept_;
  int64_t weight_factor_ = 0;
  std::vector<float> dots_;
};

using TileDTypes = ::testing::Types<float, BFloat16, Float16>;

}  // namespace paramixer::testing
