// The CPU kernels of link_weights of every instruction set this processor has, against the
// definition in float64.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace paramixer {
namespace {

struct Sizes {
  int64_t rows, width, factors, hidden, outputs;
};

const Sizes kSizes[] = {{1, 1, 1, 1, 1},   {7, 3, 2, 5, 3},      {48, 16, 1, 8, 8},
                        {49, 17, 3, 9, 4}, {100, 32, 4, 32, 11}, {97, 5, 2, 50, 64}};

// Operands, in the layouts the kernels read, and room for all they write.
struct Instance {
  using Values = std::vector<float>;
  Sizes s;
  Values x, hidden_weight, hidden_bias, output_weight, output_bias, grad;
  Values hidden_transposed, output_transposed, result, grad_x, d_hidden_weight, d_output_weight,
      d_hidden_bias, d_output_bias;
  std::vector<double> scratch;

  static Values random(int64_t count) {
    static std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    Values values(count);
    for (float& v : values) v = normal(generator);
    return values;
  }

  static Values transposed(const Values& from, int64_t blocks, int64_t rows, int64_t columns) {
    Values to(from.size());
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < columns; ++c) {
          to[(b * columns + c) * rows + r] = from[(b * rows + r) * columns + c];
        }
      }
    }
    return to;
  }

  explicit Instance(const Sizes& sizes) : s(sizes) {
    x = random(s.rows * s.width);
    hidden_weight = random(s.factors * s.hidden * s.width);
    hidden_bias = random(s.factors * s.hidden);
    output_weight = random(s.factors * s.outputs * s.hidden);
    output_bias = random(s.factors * s.outputs);
    grad = random(s.rows * s.factors * s.outputs);
    hidden_transposed = transposed(hidden_weight, s.factors, s.hidden, s.width);
    output_transposed = transposed(output_weight, s.factors, s.outputs, s.hidden);
    clear();
  }

  void clear() {
    const int64_t hidden = s.factors * s.hidden;
    result.assign(grad.size(), NAN);
    grad_x.assign(x.size(), NAN);
    d_hidden_weight.assign(hidden * cpu::padded(s.width), 0);
    d_output_weight.assign(hidden * cpu::padded(s.outputs), 0);
    d_hidden_bias.assign(hidden, 0);
    d_output_bias.assign(s.factors * s.outputs, 0);
  }

  void run(const cpu::LinkKernels& kernels, int64_t begin, int64_t end) {
    const cpu::LinkNetworks n = {
        .width = s.width,
        .factors = s.factors,
        .hidden = s.hidden,
        .outputs = s.outputs,
        .x = x.data(),
        .hidden_weight = hidden_weight.data(),
        .hidden_weight_transposed = hidden_transposed.data(),
        .hidden_bias = hidden_bias.data(),
        .output_weight = output_weight.data(),
        .output_weight_transposed = output_transposed.data(),
        .output_bias = output_bias.data(),
        .result = result.data(),
        .grad = grad.data(),
        .grad_x = grad_x.data(),
    };
    // NaN in scratch shows what is read before it is written.
    scratch.assign(cpu::link_scratch(n) / 2 + 16, NAN);
    const auto address = reinterpret_cast<uintptr_t>(scratch.data());
    void* aligned = reinterpret_cast<void*>((address + 63) / 64 * 64);
    kernels.forward(n, begin, end, aligned);
    kernels.backward(n,
                     {d_hidden_weight.data(), d_output_weight.data(), d_hidden_bias.data(),
                      d_output_bias.data()},
                     begin, end, aligned);
  }

  // Everything written, the padding left out.
  std::vector<Values> outputs() const {
    const auto columns = [&](const Values& from, int64_t count) {
      Values to;
      for (size_t row = 0; row < from.size(); row += cpu::padded(count)) {
        to.insert(to.end(), from.begin() + row, from.begin() + row + count);
      }
      return to;
    };
    return {result,        grad_x,        columns(d_hidden_weight, s.width),
            d_hidden_bias, d_output_bias, columns(d_output_weight, s.outputs)};
  }

  std::vector<std::vector<double>> expected() const {
    const int64_t E = s.width, M = s.factors, h = s.hidden, Q = s.outputs;
    std::vector<std::vector<double>> all;
    for (const auto& values : outputs()) all.emplace_back(values.size(), 0.0);
    auto &y = all[0], &dx = all[1], &dw1 = all[2], &db1 = all[3], &db2 = all[4], &dw2 = all[5];
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t m = 0; m < M; ++m) {
        const int64_t links = (r * M + m) * Q;
        for (int64_t q = 0; q < Q; ++q) {
          y[links + q] = output_bias[m * Q + q];
          db2[m * Q + q] += grad[links + q];
        }
        for (int64_t j = m * h; j < (m + 1) * h; ++j) {
          double a = hidden_bias[j], d_hidden = 0;
          for (int64_t e = 0; e < E; ++e) a += double(hidden_weight[j * E + e]) * x[r * E + e];
          const double phi = 0.5 * std::erfc(-a / std::sqrt(2.0));
          for (int64_t q = 0; q < Q; ++q) {
            const double w = output_weight[(m * Q + q) * h + j - m * h];
            y[links + q] += w * a * phi;
            d_hidden += w * grad[links + q];
            dw2[j * Q + q] += a * phi * grad[links + q];
          }
          const double slope = phi + a * std::exp(-a * a / 2) * 0.3989422804014327;
          db1[j] += d_hidden * slope;
          for (int64_t e = 0; e < E; ++e) {
            dw1[j * E + e] += d_hidden * slope * x[r * E + e];
            dx[r * E + e] += d_hidden * slope * hidden_weight[j * E + e];
          }
        }
      }
    }
    return all;
  }
};

template <typename Body>
void for_each_set(const Body& body) {
  for (const auto* set : cpu::instruction_sets()) {
    if (!set->supported()) continue;
    for (const Sizes& sizes : kSizes) {
      SCOPED_TRACE(std::string(set->name) + ", " + std::to_string(sizes.rows) + " rows");
      Instance instance(sizes);
      body(instance, set->link_kernels_of(DType::kFloat32));
    }
  }
}

TEST(LinkKernels, AgreeWithTheDefinition) {
  for_each_set([](Instance& instance, const cpu::LinkKernels& kernels) {
    instance.run(kernels, 0, instance.s.rows);
    const auto actual = instance.outputs();
    const auto expected = instance.expected();
    for (size_t i = 0; i < actual.size(); ++i) {
      double error = 0, norm = 0;
      for (size_t k = 0; k < actual[i].size(); ++k) {
        error += std::pow(actual[i][k] - expected[i][k], 2);
        norm += std::pow(expected[i][k], 2);
      }
      EXPECT_LE(std::sqrt(error), 3e-6 * std::sqrt(norm)) << "output " << i;
    }
  });
}

// A row has the same bits in whatever range it is computed; gradients of parameters are added to.
TEST(LinkKernels, RangesAddUp) {
  for_each_set([](Instance& instance, const cpu::LinkKernels& kernels) {
    instance.run(kernels, 0, instance.s.rows);
    const auto whole = instance.outputs();
    instance.clear();
    instance.run(kernels, instance.s.rows / 3, instance.s.rows);
    instance.run(kernels, 0, instance.s.rows / 3);
    const auto parts = instance.outputs();
    EXPECT_EQ(parts[0], whole[0]);
    EXPECT_EQ(parts[1], whole[1]);
    for (size_t i = 2; i < whole.size(); ++i) {
      for (size_t k = 0; k < whole[i].size(); ++k) {
        EXPECT_NEAR(parts[i][k], whole[i][k], 1e-4 * (1 + std::abs(whole[i][k])));
      }
    }
  });
}

}  // namespace
}  // namespace paramixer
