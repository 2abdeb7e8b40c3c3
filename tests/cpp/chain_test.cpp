// The fused chains of every instruction set this processor has, forward and backward, against the
// chain in float64, in every split of the channels, and against each other.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "chain_cases.h"
#include "core/chain_plan.h"
#include "cpu/chain_options.h"
#include "cpu/kernels.h"
#include "kernel_cases.h"

namespace paramixer {
namespace {

using cpu::InstructionSet;
using cpu::Pass;
using testing::Layout;
using testing::Protocol;
using testing::Role;
using testing::Storage;
using testing::Tensor;

std::vector<const InstructionSet*> supported_sets() {
  std::vector<const InstructionSet*> sets;
  for (const auto* set : cpu::instruction_sets()) {
    if (set->supported()) sets.push_back(set);
  }
  return sets;
}

// ---- Cases

struct ChainCase {
  int64_t length;
  int64_t channels;
  Protocol protocol;
  Residual residual;
  Layout layout;
};

std::string describe(const ChainCase& c) {
  static const char* const kResiduals[] = {"none", "previous", "initial"};
  return testing::describe({c.length, c.channels, c.protocol.links, c.layout}) + " " +
         std::to_string(testing::factor_count(c.protocol)) + " factors, " + c.protocol.name +
         ", residual " + kResiduals[static_cast<int>(c.residual)];
}

// Every N with every D, then every layout and residual with every protocol. What is not in both
// loops takes turns; 17 factors are more than any log2 N here.
std::vector<ChainCase> chain_cases() {
  std::vector<ChainCase> list;
  size_t turn = 0;
  const auto add = [&](int64_t length, int64_t channels, size_t protocol, size_t residual,
                       size_t layout) {
    const int factors = turn % 31 == 0 ? 17 : 1 + static_cast<int>(turn * 5 % 9);
    const auto protocols = testing::protocols(length, factors);
    list.push_back({length, channels, protocols[protocol % protocols.size()],
                    Residual(residual % 3), Layout(layout % testing::kLayoutCount)});
    ++turn;
  };
  for (const int64_t length : {1, 2, 3, 4, 5, 7, 16, 17, 64, 67, 100, 130}) {
    for (const int64_t channels : {1, 2, 3, 4, 7, 8, 16, 17, 33, 64, 100, 130}) {
      add(length, channels, turn * 2, turn, turn / 3);
    }
    ++turn;  // or else a D would always meet the same residual
  }
  const std::vector<int64_t> lengths = {1024, 24, 32, 256, 517, 600};
  const std::vector<int64_t> channels = {3, 16, 5, 34, 8, 1, 64};
  const size_t protocols = testing::protocols(1, 1).size();
  for (int layout = 0; layout < testing::kLayoutCount; ++layout) {
    for (size_t protocol = 0; protocol < protocols; ++protocol) {
      add(lengths[turn % lengths.size()], channels[turn % channels.size()], protocol, turn, layout);
    }
  }
  return list;
}

// The tensors of a chain. Storage around them, and outputs before a pass, are NaN.
template <typename T>
class ChainInstance {
 public:
  using A = Accumulate<T>;

  explicit ChainInstance(const ChainCase& c)
      : case_(c), factors_(testing::factor_count(c.protocol)), random_(23) {
    problem_.length = c.length;
    problem_.channels = c.channels;
    problem_.links = c.protocol.links;
    testing::set_batch_sizes(problem_, c.layout, 2);
    make_weight();
    value_ = make_rows<T>(c.channels, Role::kInput);
    grad_ = make_rows<T>(c.channels, Role::kInput);
    result_ = make_rows<T>(c.channels, Role::kOutput);
    dots_ = make_rows<A>(factors_ * c.protocol.links, Role::kOutput);
    compute_reference();
  }

  // The chain with the plan of the CPU key.
  ChainProblem chain() {
    plan_ = plan_chain(case_.length, factors_, case_.protocol.links, case_.protocol.offsets,
                       cpu::plan_options(case_.residual, case_.length));
    ChainProblem chain;
    chain.problem = problem_;
    chain.problem.weight = weight_.operand;
    chain.problem.value = value_.operand;
    chain.problem.grad = grad_.operand;
    chain.problem.result = result_.operand;
    chain.problem.dots = dots_.operand;
    chain.weight_factor = weight_factor_;
    chain.dots_factor = case_.protocol.links;
    chain.factors = factors_;
    chain.residual = case_.residual;
    chain.sweeps = plan_.sweeps.data();
    chain.sweep_count = static_cast<int32_t>(plan_.sweeps.size());
    return chain;
  }

  void poison_outputs() {
    poison(result_.storage);
    poison(dots_.storage);
  }

  // Outputs and their surroundings, to compare bit by bit.
  std::vector<unsigned char> result_bytes() const { return bytes_of(result_.storage); }
  std::vector<unsigned char> dots_bytes() const { return bytes_of(dots_.storage); }

  // Compares what a pass has written with the chain in float64. Every rounding on the way to an
  // element errs by at most epsilon / 2 of the sum of the magnitudes of all its terms.
  void check(Pass pass) const {
    const int64_t per_factor = case_.protocol.links + 2;  // product, sums, residual
    const int64_t roundings = factors_ * per_factor;
    for (int64_t b = 0; b < batch_count(problem_); ++b) {
      for (int64_t i = 0; i < case_.length; ++i) {
        for (int64_t c = 0; c < case_.channels; ++c) {
          const int64_t e = (b * case_.length + i) * case_.channels + c;
          const Exact& exact = pass == Pass::kForward ? end_[e] : value_grad_[e];
          const double actual = widen(result_.storage[place(problem_, result_, b, i, c)]);
          ASSERT_TRUE(close(actual, exact, roundings + factors_, testing::epsilon<T>()))
              << testing::where(describe(case_), "result", b, i, c);
        }
        if (pass == Pass::kForward) continue;
        for (int64_t k = 0; k < factors_ * case_.protocol.links; ++k) {
          const int64_t e = (b * case_.length + i) * factors_ * case_.protocol.links + k;
          const double actual = dots_.storage[place(problem_, dots_, b, i, k)];
          ASSERT_TRUE(close(actual, weight_grad_[e], roundings + case_.channels + 1, 0))
              << testing::where(describe(case_), "dots", b, i, k);
        }
      }
    }
    check_surroundings(problem_, result_, describe(case_));
    if (pass == Pass::kBackward) check_surroundings(problem_, dots_, describe(case_));
  }

  // Streaming stores want whole, aligned vectors.
  bool can_stream() const {
    return case_.layout == Layout::kContiguous && case_.channels * sizeof(T) % 64 == 0;
  }

 private:
  // A number, and the sum of the magnitudes of all terms that make it.
  struct Exact {
    double value = 0;
    double magnitude = 0;

    void add_product(double factor, const Exact& other) {
      value += factor * other.value;
      magnitude += std::abs(factor) * other.magnitude;
    }
    void add(const Exact& other) { add_product(1, other); }
  };
  using ExactRows = std::vector<Exact>;  // (N, D)

  // (*, N, M, K); for Layout::kTransposed it lies in memory as (*, M, K, N).
  void make_weight() {
    const int64_t links = case_.protocol.links;
    weight_ = testing::make_tensor<T>(problem_, case_.layout, factors_ * links, Role::kInput,
                                      random_, 1 / std::sqrt(double(links)));
    weight_factor_ = links * (case_.layout == Layout::kTransposed ? case_.length : 1);
  }

  // (*, N, columns) with columns side by side.
  template <typename Element>
  Tensor<Element> make_rows(int64_t columns, Role role) {
    const bool apart =
        case_.layout == Layout::kTransposed || case_.layout == Layout::kExpandedColumn;
    return testing::make_tensor<Element>(problem_, apart ? Layout::kContiguous : case_.layout,
                                         columns, role, random_);
  }

  // Calls body(weight, its index in (N, M, K), row, row that it links) for all links of a factor.
  template <typename Body>
  void for_each_link(int64_t b, int m, const Body& body) const {
    const int64_t links = case_.protocol.links;
    for (int64_t i = 0; i < case_.length; ++i) {
      for (int64_t k = 0; k < links; ++k) {
        const int64_t offset = reduce_offset(case_.protocol.offsets[m * links + k], case_.length);
        const int64_t from = place(problem_, weight_, b, i, k) + m * weight_factor_;
        body(double(widen(weight_.storage[from])), (i * factors_ + m) * links + k, i,
             reduce_offset(i + offset, case_.length));
      }
    }
  }

  ExactRows rows_of(const Tensor<T>& tensor, int64_t b) const {
    ExactRows rows(case_.length * case_.channels);
    for (int64_t i = 0; i < case_.length; ++i) {
      for (int64_t c = 0; c < case_.channels; ++c) {
        const double element = widen(tensor.storage[place(problem_, tensor, b, i, c)]);
        rows[i * case_.channels + c] = {element, std::abs(element)};
      }
    }
    return rows;
  }

  void compute_reference() {
    const int64_t channels = case_.channels, links = case_.protocol.links;
    for (int64_t b = 0; b < batch_count(problem_); ++b) {
      std::vector<ExactRows> states = {rows_of(value_, b)};
      for (int m = 0; m < factors_; ++m) {
        ExactRows next(case_.length * channels);
        if (case_.residual == Residual::kPrevious) next = states[m];
        if (case_.residual == Residual::kInitial) next = states[0];
        for_each_link(b, m, [&](double weight, int64_t, int64_t i, int64_t other) {
          for (int64_t c = 0; c < channels; ++c) {
            next[i * channels + c].add_product(weight, states[m][other * channels + c]);
          }
        });
        states.push_back(std::move(next));
      }
      end_.insert(end_.end(), states.back().begin(), states.back().end());

      ExactRows grad = rows_of(grad_, b);
      ExactRows initial_grad(case_.length * channels);
      std::vector<Exact> weight_grad(case_.length * factors_ * links);
      for (int m = factors_ - 1; m >= 0; --m) {
        ExactRows next(case_.length * channels);
        if (case_.residual == Residual::kPrevious) next = grad;
        for_each_link(b, m, [&](double weight, int64_t w, int64_t i, int64_t other) {
          for (int64_t c = 0; c < channels; ++c) {
            const Exact& g = grad[i * channels + c];
            const Exact& x = states[m][other * channels + c];
            next[other * channels + c].add_product(weight, g);
            weight_grad[w].value += g.value * x.value;
            weight_grad[w].magnitude += g.magnitude * x.magnitude;
          }
        });
        if (case_.residual == Residual::kInitial) {
          for (size_t e = 0; e < grad.size(); ++e) initial_grad[e].add(grad[e]);
        }
        grad = std::move(next);
      }
      for (size_t e = 0; e < grad.size(); ++e) grad[e].add(initial_grad[e]);
      value_grad_.insert(value_grad_.end(), grad.begin(), grad.end());
      weight_grad_.insert(weight_grad_.end(), weight_grad.begin(), weight_grad.end());
    }
  }

  // `roundings` on the way, and one to a storage type with that epsilon. The reference itself
  // rounds as float64 does; float16 is denormal below 2^-14.
  static ::testing::AssertionResult close(double actual, const Exact& exact, int64_t roundings,
                                          double stored) {
    const double each = (testing::epsilon<A>() + testing::epsilon<double>()) / 2;
    const double bound = (roundings * 1.01 + 1) * each * exact.magnitude +
                         1.01 * stored / 2 * std::abs(exact.value) +
                         (std::is_same_v<T, Float16> && stored > 0 ? std::ldexp(1.0, -25) : 0.0);
    return testing::within(bound, actual, exact.value);
  }

  ChainCase case_;
  int factors_;
  std::mt19937 random_;
  Problem problem_;
  ChainPlan plan_;
  int64_t weight_factor_ = 0;
  Tensor<T> weight_, value_, grad_, result_;
  Tensor<A> dots_;
  std::vector<Exact> end_, value_grad_, weight_grad_;  // the chain in float64
};

// ---- Running a pass

// As many bytes as a task asks for, all NaN, with a guard behind them.
class GuardedScratch {
 public:
  explicit GuardedScratch(int64_t bytes) : bytes_(bytes), block_(bytes + testing::kGuardBytes) {
    std::memset(block_.data(), 0xff, bytes);
    std::memset(block_.data() + bytes, kMark, testing::kGuardBytes);
  }
  void* data() { return block_.data(); }
  void check() const {
    for (int64_t e = bytes_; e < bytes_ + testing::kGuardBytes; ++e) {
      ASSERT_EQ(block_[e], kMark) << "byte " << e - bytes_ << " behind the scratch was written";
    }
  }

 private:
  static constexpr unsigned char kMark = 0xa5;
  int64_t bytes_;
  Storage<unsigned char> block_;
};

// A team of real threads: part i is thread i % threads's.
void share_parts(const cpu::Team& team, int64_t count, cpu::Team::Part part, const void* work) {
  std::vector<std::thread> threads;
  for (int64_t thread = 0; thread < team.threads; ++thread) {
    threads.emplace_back([&, thread] {
      for (int64_t i = thread; i < count; i += team.threads) {
        GuardedScratch scratch(team.scratch_bytes);
        part(work, i, scratch.data());
        scratch.check();
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

// Runs a pass in groups of `width` channels, or as many as a task takes, in the order of the CPU
// key: those of forward, and the batch items of backward, on several threads, or each task on a
// team of `team_threads`.
template <typename T>
void run(const InstructionSet& set, Pass pass, const ChainProblem& chain, int64_t width,
         bool stream = false, int threads = 1, int team_threads = 0) {
  const int64_t channels = chain.problem.channels;
  width = std::min(width, cpu::widest_group(testing::kDType<T>));
  const int64_t groups = (channels + width - 1) / width;
  const int64_t batches = batch_count(chain.problem);
  const DType dtype = testing::kDType<T>;
  const cpu::Team team = {team_threads, cpu::team_scratch_bytes(chain, dtype, pass, width),
                          &share_parts};
  const auto run_group = [&](int64_t batch, int64_t group) {
    const int64_t channel = group * width;
    const cpu::ChainTask task = {batch, channel, std::min(width, channels - channel),
                                 team_threads > 0 ? &team : nullptr};
    GuardedScratch scratch(cpu::chain_scratch_bytes(chain, dtype, pass, width));
    set.kernel(dtype, pass)(chain, task, stream, scratch.data());
    scratch.check();
  };
  const auto run_share = [&](int thread) {
    for (int64_t batch = 0; batch < batches; ++batch) {
      if (pass == Pass::kBackward && batch % threads != thread) continue;
      for (int64_t group = 0; group < groups; ++group) {
        if (pass == Pass::kForward && group % threads != thread) continue;
        run_group(batch, group);
      }
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run_share, thread);
  run_share(0);
  for (auto& other : others) other.join();
}

// Calls body(instance, channels, description) for every case until one fails.
template <typename T, typename Body>
void for_each_case(const Body& body) {
  for (const ChainCase& c : chain_cases()) {
    SCOPED_TRACE(describe(c));
    ChainInstance<T> instance(c);
    body(instance, c.channels);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

constexpr Pass kPasses[] = {Pass::kForward, Pass::kBackward};

std::string name_of(const InstructionSet& set, Pass pass) {
  return std::string(set.name) + (pass == Pass::kForward ? " forward" : " backward");
}

template <typename T>
class CpuChain : public ::testing::Test {};
TYPED_TEST_SUITE(CpuChain, testing::DTypes);

TYPED_TEST(CpuChain, AgreesWithTheDefinition) {
  for_each_case<TypeParam>([](auto& instance, int64_t channels) {
    for (const Pass pass : kPasses) {
      const ChainProblem chain = instance.chain();
      for (const auto* set : supported_sets()) {
        SCOPED_TRACE(name_of(*set, pass));
        instance.poison_outputs();
        run<TypeParam>(*set, pass, chain, channels);
        instance.check(pass);
        if (::testing::Test::HasFatalFailure()) return;
        if (!instance.can_stream()) continue;
        const auto expected = instance.result_bytes();
        instance.poison_outputs();
        run<TypeParam>(*set, pass, chain, channels, true);
        ASSERT_EQ(instance.result_bytes(), expected) << "streamed";
      }
    }
  });
}

// Groups of channels are what threads share: forward has the same bits for all of them, and
// backward adds the groups' dots.
TYPED_TEST(CpuChain, TakesTheChannelsInAnyGroups) {
  for_each_case<TypeParam>([](auto& instance, int64_t channels) {
    for (const Pass pass : kPasses) {
      const ChainProblem chain = instance.chain();
      for (const auto* set : supported_sets()) {
        SCOPED_TRACE(name_of(*set, pass));
        run<TypeParam>(*set, pass, chain, channels);
        const auto whole = instance.result_bytes();
        for (const int64_t width : {1, 3, 8, 16, 20, 32, 48}) {
          if (width >= channels || channels > 20 * width) continue;
          instance.poison_outputs();
          run<TypeParam>(*set, pass, chain, width, false, 2);
          instance.check(pass);
          if (::testing::Test::HasFatalFailure()) return;
          if (pass == Pass::kForward) {
            ASSERT_EQ(instance.result_bytes(), whole) << "width " << width;
          }
        }
      }
    }
  });
}

// A team shares the rows of a task, and has the bits of one thread.
TYPED_TEST(CpuChain, HasTheSameBitsInTeams) {
  for_each_case<TypeParam>([](auto& instance, int64_t channels) {
    const ChainProblem chain = instance.chain();
    if (chain.problem.length < 256) return;  // shorter rings are not shared
    for (const Pass pass : kPasses) {
      for (const auto* set : supported_sets()) {
        SCOPED_TRACE(name_of(*set, pass));
        instance.poison_outputs();
        run<TypeParam>(*set, pass, chain, channels);
        const auto expected = instance.result_bytes();
        const auto expected_dots = instance.dots_bytes();
        for (const int threads : {2, 3}) {
          instance.poison_outputs();
          run<TypeParam>(*set, pass, chain, channels, instance.can_stream(), 1, threads);
          ASSERT_EQ(instance.result_bytes(), expected) << threads << " threads";
          ASSERT_EQ(instance.dots_bytes(), expected_dots) << threads << " threads";
        }
      }
    }
  });
}

// AVX2 and AVX-512 multiply and add the same numbers in the same order.
TYPED_TEST(CpuChain, OfAvx2AndAvx512HasTheSameBits) {
  std::vector<const InstructionSet*> fused;
  for (const auto* set : supported_sets()) {
    if (std::strcmp(set->name, "baseline") != 0) fused.push_back(set);
  }
  if (fused.size() < 2) GTEST_SKIP() << "this processor has no two of them";
  for_each_case<TypeParam>([&](auto& instance, int64_t channels) {
    for (const Pass pass : kPasses) {
      SCOPED_TRACE(name_of(*fused[1], pass));
      const ChainProblem chain = instance.chain();
      instance.poison_outputs();
      run<TypeParam>(*fused[0], pass, chain, channels);
      const auto expected = instance.result_bytes();
      const auto expected_dots = instance.dots_bytes();
      instance.poison_outputs();
      run<TypeParam>(*fused[1], pass, chain, channels);
      ASSERT_EQ(instance.result_bytes(), expected);
      ASSERT_EQ(instance.dots_bytes(), expected_dots);
    }
  });
}

}  // namespace
}  // namespace paramixer
