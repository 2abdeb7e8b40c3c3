// The CUDA key of mix_chain: a chain is planned in tiles, bands and windows, and each sweep of the
// plan is one launch on the current stream (backward two with a window, and the sum of the dots
// over blocks that share the channels of a row). How many there are depends on the plan and never
// on the batch.

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "band.h"
#include "core/plan_cache.h"
#include "launch.h"
#include "ops/chain_sequence.h"
#include "ops/check.h"
#include "ops/operators.h"
#include "ops/prepare.h"
#include "paramixer/paramixer.h"
#include "pass_plan.h"

namespace paramixer::cuda {
namespace {

std::shared_ptr<const ChainPlan> find_plan(Direction direction, const at::Tensor& weight,
                                           const at::Tensor& value, at::IntArrayRef offsets,
                                           Residual residual, at::IntArrayRef cuts,
                                           int64_t band_bytes = 0) {
  static PlanCache<ChainShape> plans;
  const ChainShape shape = {direction,      ops::dtype_of(value), residual,
                            value.size(-2), value.size(-1),       static_cast<int>(weight.size(-2)),
                            offsets.vec(),  cuts.vec(),           band_bytes};
  return plans.find(shape, plan_for_cuda);
}

bool is_all_products(const ChainPlan& plan) {
  return std::all_of(plan.sweeps.begin(), plan.sweeps.end(),
                     [](const Sweep& sweep) { return way_of(sweep) == Way::kProduct; });
}

// The chain's operands, seen factor by factor. Its batch dimensions are few enough for a Problem to
// take them as they are.
struct Factors {
  const at::Tensor& weights;
  at::IntArrayRef all_offsets;
  Residual residual;

  int64_t links() const { return weights.size(-1); }
  at::Tensor weight(int64_t factor) const { return weights.select(-2, factor); }
  at::IntArrayRef offsets(int64_t factor, int64_t count = 1) const {
    return all_offsets.slice(factor * links(), count * links());
  }

  ChainProblem problem(const ops::PreparedProblem& prepared) const {
    ChainProblem chain;
    chain.problem = prepared.problem();
    chain.weight_factor = weights.stride(-2);
    chain.factors = static_cast<int32_t>(weights.size(-2));
    chain.residual = residual;
    return chain;
  }
};

// ---- Forward

// The shared memory that blocks of the current device can have for composed bands: 0 where the
// switch is off, where elements are wider than 16 bits, or where bands, which count strides of rows
// and blocks in 32 bits, cannot.
int64_t band_bytes(const at::Tensor& weight, const at::Tensor& value, const at::Tensor& result) {
  if (value.element_size() != 2 || !bands_are_on()) return 0;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t channels = result.size(-1);
  const int64_t most_blocks =
      result.numel() / channels * detail::ceil_div(channels, BandTraits<3>::kChannels);
  const int64_t stride = std::max({weight.stride(-3), value.stride(-2), result.stride(-2)});
  if (std::max(most_blocks, stride) > kMost) return 0;
  int device = 0, bytes = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

// Factors of a chain that begins with `initial`, and their plan; the state goes from sweep to
// sweep.
class Forward {
 public:
  Forward(const Factors& factors, const at::Tensor& initial, const ChainPlan& plan)
      : factors_(factors), initial_(initial), plan_(plan) {}

  // Takes `state` through all factors: the last state to `result`, those at the cuts, in their
  // order, to `states`.
  void run(at::Tensor state, const at::Tensor& result, const at::Tensor& states,
           at::IntArrayRef cuts) const {
    const auto targets = choose_targets(plan_, cuts);
    at::Tensor temporary;
    int64_t kept = 0;
    for (size_t s = 0; s < targets.size(); ++s) {
      at::Tensor target = result;
      if (targets[s] == Target::kKept) target = states.select(0, kept++);
      if (targets[s] == Target::kTemporary) {
        if (!temporary.defined()) temporary = at::empty(result.sizes(), result.options());
        target = temporary;
      }
      run_sweep(plan_.sweeps[s], state, target);
      state = target;
    }
  }

 private:
  void run_sweep(const Sweep& sweep, const at::Tensor& from, const at::Tensor& to) const {
    switch (way_of(sweep)) {
      case Way::kProduct:
        return run_product(sweep, from, to);
      case Way::kTiles:
      case Way::kWindows:
        return run_tiles(sweep, from, to);
      case Way::kBands:
        return run_bands(sweep, from, to);
    }
  }

  void run_bands(const Sweep& sweep, const at::Tensor& from, const at::Tensor& to) const {
    const ops::PreparedProblem prepared({.weight = factors_.weight(0), .value = from, .result = to},
                                        factors_.offsets(0), ops::ChannelStride::kAny);
    BandPass pass;
    const bool served = make_band_pass(factors_.problem(prepared), factors_.all_offsets,
                                       sweep.first, sweep.factors, pass);
    TORCH_INTERNAL_ASSERT(served, "mix_chain: the operands are not those that were planned for");
    C10_CUDA_CHECK(launch_band_pass(prepared.dtype(), pass, c10::cuda::getCurrentCUDAStream()));
  }

  void run_tiles(const Sweep& sweep, const at::Tensor& from, const at::Tensor& to) const {
    ops::Operands operands{.weight = factors_.weight(0), .value = from, .result = to};
    if (factors_.residual == Residual::kInitial) operands.grad = initial_;
    const ops::PreparedProblem prepared(operands, factors_.offsets(0), ops::ChannelStride::kAny);
    C10_CUDA_CHECK(chain_tile(prepared.dtype(), factors_.problem(prepared), sweep,
                              c10::cuda::getCurrentCUDAStream()));
  }

  void run_product(const Sweep& sweep, const at::Tensor& from, const at::Tensor& to) const {
    at::Tensor mixed =
        paramixer::mix(factors_.weight(sweep.first), from, factors_.offsets(sweep.first));
    if (factors_.residual == Residual::kPrevious) mixed.add_(from);
    if (factors_.residual == Residual::kInitial) mixed.add_(initial_);
    to.copy_(mixed);
  }

  const Factors& factors_;
  const at::Tensor& initial_;
  const ChainPlan& plan_;
};

// V_M, and the states at the boundaries.
std::tuple<at::Tensor, at::Tensor> mix_chain_forward_key(const at::Tensor& weight,
                                                         const at::Tensor& value,
                                                         at::IntArrayRef offsets,
                                                         std::string_view residual,
                                                         at::IntArrayRef boundaries) {
  const Residual parsed =
      ops::check_mix_chain_forward(weight, value, offsets, residual, boundaries);
  at::Tensor result = ops::allocate_mix_chain(weight, value);
  at::Tensor states = ops::allocate_chain_states(weight, value, boundaries);
  if (result.numel() == 0) return {result, states};
  const c10::cuda::CUDAGuard guard(value.device());
  const auto plan = find_plan(Direction::kForward, weight, value, offsets, parsed, boundaries,
                              band_bytes(weight, value, result));
  if (is_all_products(*plan) || result.dim() - 2 > kMaxBatchDims) {
    return ops::mix_chain_forward_sequence(weight, value, offsets, residual, boundaries);
  }
  const Factors factors{weight, offsets, parsed};
  Forward(factors, value, *plan).run(value, result, states, boundaries);
  return {result, states};
}

at::Tensor mix_chain_key(const at::Tensor& weight, const at::Tensor& value, at::IntArrayRef offsets,
                         std::string_view residual, std::string_view save) {
  ops::check_mix_chain(weight, value, offsets, residual, save);
  return std::get<0>(mix_chain_forward_key(weight, value, offsets, residual, /*boundaries=*/{}));
}

// ---- Backward

// The sweeps of a plan from the last one to the first, which hand down the gradient.
class Backward {
 public:
  Backward(const Factors& factors, const ChainPlan& plan, const at::Tensor& d_weight)
      : factors_(factors), sweeps_(plan.sweeps), d_weight_(d_weight) {}

  // The gradient of the value. Between boundaries the states before sweeps are computed again.
  at::Tensor run(at::Tensor grad, const at::Tensor& value, const at::Tensor& states,
                 at::IntArrayRef boundaries) const {
    size_t end = sweeps_.size();
    at::Tensor passed;  // what reaches the value past the factors, where the residual is that
    for (int64_t segment = static_cast<int64_t>(boundaries.size()); segment >= 0; --segment) {
      const int64_t first = segment == 0 ? 0 : boundaries[segment - 1];
      const at::Tensor start = segment == 0 ? value : states.select(0, segment - 1);
      size_t begin = end;
      while (begin > 0 && sweeps_[begin - 1].first >= first) --begin;
      std::vector<at::Tensor> inputs = inputs_of(begin, end, start, value);
      for (size_t s = end; s-- > begin;) {
        if (factors_.residual == Residual::kInitial) {
          passed = passed.defined() ? passed + grad : grad;
        }
        grad = run_sweep(sweeps_[s], inputs.back(), grad);
        inputs.pop_back();
      }
      end = begin;
    }
    return passed.defined() ? grad.add_(passed) : grad;
  }

 private:
  // The states before the sweeps `begin` to `end`, that before the first being `start`.
  std::vector<at::Tensor> inputs_of(size_t begin, size_t end, const at::Tensor& start,
                                    const at::Tensor& value) const {
    std::vector<at::Tensor> inputs = {start};
    if (end - begin == 1) return inputs;
    const int64_t first = sweeps_[begin].first;
    std::vector<int64_t> cuts;
    for (size_t s = begin + 1; s + 1 < end; ++s) cuts.push_back(sweeps_[s].first - first);
    const int64_t count = sweeps_[end - 1].first - first;
    const at::Tensor weights = factors_.weights.narrow(-2, first, count);
    const Factors factors{weights, factors_.offsets(first, count), factors_.residual};
    const at::Tensor last = ops::allocate_mix_chain(weights, start);
    const at::Tensor states = ops::allocate_chain_states(weights, start, cuts);
    const auto plan = find_plan(Direction::kForward, weights, start, factors.all_offsets,
                                factors.residual, cuts, band_bytes(weights, start, last));
    Forward(factors, value, *plan).run(start, last, states, cuts);
    for (size_t p = 0; p < cuts.size(); ++p) {
      inputs.push_back(states.select(0, static_cast<int64_t>(p)));
    }
    inputs.push_back(last);
    return inputs;
  }

  at::Tensor run_sweep(const Sweep& sweep, const at::Tensor& value, const at::Tensor& grad) const {
    switch (way_of(sweep)) {
      case Way::kProduct:
        return run_product(sweep, value, grad);
      case Way::kTiles:
      case Way::kWindows:
      case Way::kBands:  // forward alone
        break;
    }
    return run_tiles(sweep, value, grad);
  }

  at::Tensor run_product(const Sweep& sweep, const at::Tensor& value,
                         const at::Tensor& grad) const {
    auto [dots, result] =
        ops::mix_backward(grad, factors_.weight(sweep.first), value, factors_.offsets(sweep.first));
    d_weight_.select(-2, sweep.first).copy_(dots);
    if (factors_.residual == Residual::kPrevious) result.add_(grad);
    return result;
  }

  // Blocks that share the channels of a row have dots of their own, which are added in their order.
  at::Tensor run_tiles(const Sweep& sweep, const at::Tensor& value, const at::Tensor& grad) const {
    at::Tensor result = ops::allocate_mix_chain(factors_.weights, grad);
    const ops::PreparedProblem prepared(
        {.weight = factors_.weight(0), .value = value, .grad = grad, .result = result},
        factors_.offsets(0), ops::ChannelStride::kAny);
    ChainProblem chain = factors_.problem(prepared);
    std::vector<int64_t> shape = d_weight_.sizes().vec();
    shape.insert(shape.begin(), tile_splits(Direction::kBackward, chain.problem, sweep));
    shape[shape.size() - 2] = sweep.factors;
    const at::Tensor dots = at::empty(shape, grad.options().dtype(at::kFloat));
    chain.problem.dots.data = dots.mutable_data_ptr();
    C10_CUDA_CHECK(
        chain_tile_backward(prepared.dtype(), chain, sweep, c10::cuda::getCurrentCUDAStream()));
    d_weight_.narrow(-2, sweep.first, sweep.factors).copy_(dots.sum(0));
    return result;
  }

  const Factors& factors_;
  const std::vector<Sweep>& sweeps_;
  const at::Tensor& d_weight_;
};

std::tuple<at::Tensor, at::Tensor> mix_chain_backward_key(
    const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& value,
    const at::Tensor& states, at::IntArrayRef offsets, std::string_view residual,
    at::IntArrayRef boundaries) {
  const Residual parsed =
      ops::check_mix_chain_backward(grad, weight, value, states, offsets, residual, boundaries);
  at::Tensor d_weight = ops::allocate_chain_weight_gradient(weight, value);
  if (grad.numel() == 0) return {d_weight.zero_(), ops::allocate_mix_chain(weight, grad)};
  const auto plan = find_plan(Direction::kBackward, weight, value, offsets, parsed, boundaries);
  if (is_all_products(*plan) || grad.dim() - 2 > kMaxBatchDims) {
    return ops::mix_chain_backward_sequence(grad, weight, value, states, offsets, residual,
                                            boundaries);
  }
  const c10::cuda::CUDAGuard guard(value.device());
  const Factors factors{weight, offsets, parsed};
  return {d_weight, Backward(factors, *plan, d_weight).run(grad, value, states, boundaries)};
}

TORCH_LIBRARY_IMPL(paramixer, CUDA, m) {
  m.impl("mix_chain", &mix_chain_key);
  m.impl("mix_chain_forward", &mix_chain_forward_key);
  m.impl("mix_chain_backward", &mix_chain_backward_key);
}

}  // namespace
}  // namespace paramixer::cuda
