// Times the chain kernels launch by launch, for the traits that this was compiled with, and checks
// them against single products in float32. Torch-free.
//
//   kernel_benchmark [--once] B,N,D,PROTOCOL,K,DTYPE,RESIDUAL ..    (chain_case.h; float32,
//   bfloat16)
//
// Prints one line of JSON a case: medians in microseconds with a cold L2 of every launch forward
// and backward and of both products of one factor, and the relative 2-norm error of the chain.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "band_plan.h"
#include "chain_case.h"
#include "launch_band.h"
#include "launch_dtype.h"
#include "pass_plan.h"

namespace paramixer::cuda {
namespace {

int rounds = 20;  // 1 for a profiler, which repeats launches itself
constexpr size_t kFlushBytes = size_t{256} << 20;  // beyond every L2

void require(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "kernel_benchmark: %s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : count_(count) {
    require(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)), "cudaMalloc");
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }
  void write(const std::vector<T>& source) const {
    require(cudaMemcpy(data_, source.data(), count_ * sizeof(T), cudaMemcpyDefault), "write");
  }
  std::vector<T> read() const {
    std::vector<T> target(count_);
    require(cudaMemcpy(target.data(), data_, count_ * sizeof(T), cudaMemcpyDefault), "read");
    return target;
  }

 private:
  T* data_ = nullptr;
  int64_t count_;
};

// Numbers in [-1, 1), the same in every run, as T holds them.
template <typename T>
std::vector<T> numbers(int64_t count, uint32_t seed, float scale) {
  std::vector<T> result(count);
  uint32_t state = seed;
  for (T& number : result) {
    state = state * 1664525u + 1013904223u;
    number = narrow<T>(scale * (static_cast<float>(state >> 8) * 0x1p-23f - 1.0f));
  }
  return result;
}

// Operands of a case as T, contiguous.
template <typename T>
struct Operands {
  explicit Operands(const Case& c)
      : rows(c.batch * c.chain.length),
        links(static_cast<int64_t>(c.chain.offsets.size())),
        weight(rows * links),
        value(rows * c.chain.channels),
        grad(rows * c.chain.channels),
        result(rows * c.chain.channels),
        temporary(rows * c.chain.channels) {}

  int64_t rows, links;  // links of all factors
  Buffer<T> weight, value, grad, result, temporary;
};

template <typename T>
class Chain {
 public:
  explicit Chain(const Case& c) : case_(c), operands_(c) {}

  Operands<T>& operands() { return operands_; }

  // Calls `launch` once for every launch of the forward plan, in order.
  std::vector<double> forward(const std::function<double(const std::function<void()>&)>& launch) {
    const ChainPlan plan = plan_case(case_, Direction::kForward, false);
    const auto targets = choose_targets(plan, {});
    std::vector<double> times;
    T* state = operands_.value.data();
    for (size_t s = 0; s < targets.size(); ++s) {
      const Sweep& sweep = plan.sweeps[s];
      T* target =
          targets[s] == Target::kResult ? operands_.result.data() : operands_.temporary.data();
      times.push_back(launch([&] { run(Direction::kForward, sweep, state, target); }));
      state = target;
    }
    return times;
  }

  // The launches of the backward plan, from any gradient; the states are the value.
  std::vector<double> backward(const std::function<double(const std::function<void()>&)>& launch) {
    const ChainPlan plan = plan_case(case_, Direction::kBackward, true);
    std::vector<double> times;
    for (const Sweep& sweep : plan.sweeps) {
      const Problem problem = this->problem(nullptr, nullptr).problem;
      const int64_t splits = sweep.tile > 0 ? tile_splits(Direction::kBackward, problem, sweep) : 1;
      const Buffer<float> dots(splits * operands_.rows * sweep.factors * links());
      dots_ = dots.data();
      times.push_back(launch([&] {
        run(Direction::kBackward, sweep, operands_.value.data(), operands_.result.data());
      }));
    }
    return times;
  }

  // A factor without tiles; `from` and `to` are the value and the result.
  void run_product(Kernel kernel, int factor, T* from, T* to) {
    Problem problem = this->problem(from, to).problem;
    problem.weight.data = operands_.weight.data() + factor * links();
    std::copy_n(case_.chain.offsets.begin() + factor * links(), links(), problem.offsets);
    problem.dots = {
        .data = dots_, .batch = {case_.chain.length * links()}, .row = links(), .column = 1};
    require(launch<T>(kernel, problem, nullptr), "a product");
  }

  int links() const { return static_cast<int>(case_.chain.offsets.size()) / case_.chain.factors; }
  void set_dots(void* dots) { dots_ = dots; }

 private:
  ChainProblem problem(T* from, T* to) {
    const int64_t row = case_.chain.channels, batch = case_.chain.length * row;
    const int64_t weights = operands_.links;
    ChainProblem chain = detail::sizes_of(case_.chain);
    Problem& problem = chain.problem;
    problem.batch_dims = 1;
    problem.batch_sizes[0] = case_.batch;
    const auto rows_at = [&](T* data) { return Operand{data, {batch}, row, 1}; };
    problem.weight = {operands_.weight.data(), {case_.chain.length * weights}, weights, 1};
    problem.value = rows_at(from);
    problem.grad = rows_at(operands_.grad.data());
    problem.result = rows_at(to);
    problem.dots.data = dots_;
    chain.weight_factor = links();
    return chain;
  }

  void run(Direction direction, const Sweep& sweep, T* from, T* to) {
    ChainProblem chain = problem(from, to);
    switch (way_of(sweep)) {
      case Way::kProduct:
        return run_product(direction == Direction::kForward ? Kernel::kMix : Kernel::kMixBackward,
                           sweep.first, from, to);
      case Way::kTiles:
      case Way::kWindows:
        if (chain.residual == Residual::kInitial) chain.problem.grad.data = operands_.value.data();
        return require(launch_tile<T>(direction, chain, sweep, nullptr), "a launch in tiles");
      case Way::kBands:
        if constexpr (sizeof(T) == 2) {
          BandPass pass;
          make_band_pass(chain, case_.chain.offsets, sweep.first, sweep.factors, pass);
          require(launch_band<T>(pass, nullptr), "a launch in bands");
        }
    }
  }

  const Case& case_;
  Operands<T> operands_;
  void* dots_ = nullptr;
};

double cold_microseconds(const Buffer<char>& flush, const std::function<void()>& run) {
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "cudaEventCreate");
  require(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> times(rounds);
  if (rounds > 1) run();
  for (float& milliseconds : times) {
    require(cudaMemsetAsync(flush.data(), 0, kFlushBytes, nullptr), "cudaMemsetAsync");
    cudaEventRecord(begin);
    run();
    cudaEventRecord(end);
    require(cudaEventSynchronize(end), "the launch");
    require(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + rounds / 2, times.end());
  return 1e3 * times[rounds / 2];
}

// The chain as products in float32 of the same operands, without a residual.
template <typename T>
std::vector<float> expected(const Case& c, Operands<T>& operands) {
  Case wide = c;
  wide.chain.dtype = DType::kFloat32;
  Chain<float> chain(wide);
  const auto copy = [](const Buffer<T>& from, const Buffer<float>& to) {
    const std::vector<T> source = from.read();
    std::vector<float> target(source.size());
    std::transform(source.begin(), source.end(), target.begin(), [](T x) { return widen(x); });
    to.write(target);
  };
  copy(operands.weight, chain.operands().weight);
  copy(operands.value, chain.operands().value);
  float* from = chain.operands().value.data();
  float* to = chain.operands().result.data();
  for (int m = 0; m < c.chain.factors; ++m) {
    chain.run_product(Kernel::kMix, m, from, to);
    from = to;
    to = to == chain.operands().result.data() ? chain.operands().temporary.data()
                                              : chain.operands().result.data();
  }
  return (from == chain.operands().result.data() ? chain.operands().result
                                                 : chain.operands().temporary)
      .read();
}

template <typename T>
double error(const Case& c, Chain<T>& chain) {
  const std::vector<float> wanted = expected(c, chain.operands());
  const std::vector<T> result = chain.operands().result.read();
  double difference = 0, norm = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    difference += std::pow(double(widen(result[i])) - wanted[i], 2);
    norm += std::pow(double(wanted[i]), 2);
  }
  const double relative = std::sqrt(difference / norm);
  return std::isfinite(relative) ? relative : 1e9;  // JSON has no NaN
}

void print_times(const char* name, const std::vector<double>& times) {
  std::printf("\"%s\": [", name);
  for (size_t i = 0; i < times.size(); ++i) std::printf("%s%.2f", i ? ", " : "", times[i]);
  std::printf("], ");
}

template <typename T>
void benchmark(const Case& c, const Buffer<char>& flush) {
  Chain<T> chain(c);
  Operands<T>& operands = chain.operands();
  const float scale = std::sqrt(3.0f / static_cast<float>(chain.links()));
  operands.weight.write(numbers<T>(operands.rows * operands.links, 1, scale));
  operands.value.write(numbers<T>(operands.rows * c.chain.channels, 2, 1));
  operands.grad.write(numbers<T>(operands.rows * c.chain.channels, 3, 1));
  const auto cold = [&](const std::function<void()>& run) { return cold_microseconds(flush, run); };
  chain.forward([](const std::function<void()>& run) { return run(), 0.0; });
  if (c.chain.residual == Residual::kNone) std::printf("\"error\": %.3e, ", error(c, chain));
  print_times("forward", chain.forward(cold));
  print_times("backward", chain.backward(cold));
  const Buffer<T> dots(operands.rows * chain.links());
  chain.set_dots(dots.data());
  for (const auto& [name, kernel] :
       {std::pair{"mix", Kernel::kMix}, std::pair{"mix_backward", Kernel::kMixBackward}}) {
    print_times(name, {cold([&] {
                  chain.run_product(kernel, c.chain.factors / 2, operands.value.data(),
                                    operands.result.data());
                })});
  }
}

}  // namespace
}  // namespace paramixer::cuda

int main(int count, char** arguments) {
  using namespace paramixer;
  const cuda::Buffer<char> flush(cuda::kFlushBytes);
  for (int a = 1; a < count; ++a) {
    if (arguments[a] == std::string("--once")) {
      cuda::rounds = 1;
      continue;
    }
    const cuda::Case c = cuda::parse_case(arguments[a]);
    std::printf("{");
    if (c.chain.dtype == DType::kFloat32) cuda::benchmark<float>(c, flush);
    if (c.chain.dtype == DType::kBFloat16) cuda::benchmark<BFloat16>(c, flush);
    std::printf("\"case\": \"%s\"}\n", arguments[a]);
    std::fflush(stdout);
  }
}
