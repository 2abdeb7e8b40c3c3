// The CUDA key of mix_chain: a chain is planned in tiles, and each sweep of the plan is one launch
// on the current stream. How many there are depends on the plan and never on the batch.

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "tile_plan.h"
#include "core/plan_cache.h"
#include "launch.h"
#include "ops/chain_sequence.h"
#include "ops/check.h"
#include "ops/prepare.h"
#include "paramixer/paramixer.h"

namespace paramixer::cuda {
namespace {

std::shared_ptr<const ChainPlan> find_plan(Direction direction, const at::Tensor& weight,
                                           const at::Tensor& value, at::IntArrayRef offsets,
                                           Residual residual, at::IntArrayRef cuts) {
  static PlanCache<ChainShape> plans;
  const ChainShape shape = {direction,
                            ops::dtype_of(value),
                            residual,
                            value.size(-2),
                            value.size(-1),
                            static_cast<int>(weight.size(-2)),
                            offsets.vec(),
                            cuts.vec()};
  return plans.find(shape, plan_for_cuda);
}

// A forward call and its plan; the state goes from sweep to sweep.
class Chain {
 public:
  Chain(const at::Tensor& weight, const at::Tensor& value, at::IntArrayRef offsets,
        Residual residual, at::IntArrayRef cuts)
      : weight_(weight),
        value_(value),
        offsets_(offsets),
        residual_(residual),
        plan_(find_plan(Direction::kForward, weight, value, offsets, residual, cuts)) {}

  bool has_tiles() const {
    return std::any_of(plan_->sweeps.begin(), plan_->sweeps.end(),
                       [](const Sweep& sweep) { return way_of(sweep) == Way::kTiles; });
  }

  // Writes V_M to `result` and the states at the cuts, in their order, to `states`.
  void run(const at::Tensor& result, const at::Tensor& states, at::IntArrayRef cuts) const {
    const auto targets = choose_targets(result, states, cuts);
    at::Tensor state = value_;
    for (size_t s = 0; s < targets.size(); ++s) {
      run_sweep(plan_->sweeps[s], state, targets[s]);
      state = targets[s];
    }
  }

 private:
  // Where each sweep writes. The last one writes the result, those before a cut a state that is
  // kept. Any other writes what the next one writes too, if that can work in place, and else the
  // result or one temporary in turns.
  std::vector<at::Tensor> choose_targets(const at::Tensor& result, const at::Tensor& states,
                                         at::IntArrayRef cuts) const {
    const std::vector<Sweep>& sweeps = plan_->sweeps;
    std::vector<at::Tensor> targets(sweeps.size());
    targets.back() = result;
    at::Tensor temporary;
    size_t cut = cuts.size();
    for (size_t s = sweeps.size() - 1; s-- > 0;) {
      if (cut > 0 && cuts[cut - 1] == sweeps[s + 1].first) {
        targets[s] = states.select(0, static_cast<int64_t>(--cut));
        continue;
      }
      const at::Tensor& next = targets[s + 1];
      const bool in_place = sweeps[s + 1].tile == sweeps[s + 1].ring;
      // A state that is kept must not hold another one before.
      if (in_place && (next.is_same(result) || next.is_same(temporary))) {
        targets[s] = next;
      } else if (!next.is_same(result)) {
        targets[s] = result;
      } else {
        if (!temporary.defined()) temporary = at::empty(result.sizes(), result.options());
        targets[s] = temporary;
      }
    }
    return targets;
  }

  void run_sweep(const Sweep& sweep, const at::Tensor& from, const at::Tensor& to) const {
    switch (way_of(sweep)) {
      case Way::kProduct:
        return run_product(sweep, from, to);
      case Way::kTiles:
        return run_tiles(sweep, from, to);
    }
  }

  void run_tiles(const Sweep& sweep, const at::Tensor& from, const at::Tensor& to) const {
    ops::Operands operands{.weight = weight_.select(-2, 0), .value = from, .result = to};
    if (residual_ == Residual::kInitial) operands.grad = value_;
    const auto links = static_cast<size_t>(weight_.size(-1));
    ops::PreparedProblem prepared(operands, offsets_.slice(0, links), ops::ChannelStride::kAny);
    ChainProblem chain;
    chain.problem = prepared.problem();
    chain.weight_factor = weight_.stride(-2);
    chain.factors = static_cast<int32_t>(weight_.size(-2));
    chain.residual = residual_;
    C10_CUDA_CHECK(
        chain_tile(prepared.dtype(), chain, sweep, c10::cuda::getCurrentCUDAStream()));
  }

  void run_product(const Sweep& sweep, const at::Tensor& from, const at::Tensor& to) const {
    const auto links = static_cast<size_t>(weight_.size(-1));
    at::Tensor mixed =
        mix(weight_.select(-2, sweep.first), from, offsets_.slice(sweep.first * links, links));
    if (residual_ == Residual::kPrevious) mixed.add_(from);
    if (residual_ == Residual::kInitial) mixed.add_(value_);
    to.copy_(mixed);
  }

  const at::Tensor& weight_;
  const at::Tensor& value_;
  at::IntArrayRef offsets_;
  Residual residual_;
  std::shared_ptr<const ChainPlan> plan_;
};

// V_M, and the states at the boundaries.
std::tuple<at::Tensor, at::Tensor> run_chain(const at::Tensor& weight, const at::Tensor& value,
                                             at::IntArrayRef offsets, std::string_view residual,
                                             at::IntArrayRef boundaries) {
  const Residual parsed =
      ops::check_mix_chain_forward(weight, value, offsets, residual, boundaries);
  at::Tensor result = ops::allocate_mix_chain(weight, value);
  at::Tensor states = ops::allocate_chain_states(weight, value, boundaries);
  if (result.numel() == 0) return {result, states};
  const Chain chain(weight, value, offsets, parsed, boundaries);
  // A Problem takes few batch dimensions as they are.
  if (!chain.has_tiles() || result.dim() - 2 > kMaxBatchDims) {
    return ops::mix_chain_forward_sequence(weight, value, offsets, residual, boundaries);
  }
  const c10::cuda::CUDAGuard guard(value.device());
  chain.run(result, states, boundaries);
  return {result, states};
}

at::Tensor mix_chain_key(const at::Tensor& weight, const at::Tensor& value, at::IntArrayRef offsets,
                         std::string_view residual, std::string_view save) {
  ops::check_mix_chain(weight, value, offsets, residual, save);
  return std::get<0>(run_chain(weight, value, offsets, residual, /*boundaries=*/{}));
}

TORCH_LIBRARY_IMPL(paramixer, CUDA, m) {
  m.impl("mix_chain", &mix_chain_key);
  m.impl("mix_chain_forward", &run_chain);
  m.impl("mix_chain_backward", &ops::mix_chain_backward_sequence);
}

}  // namespace
}  // namespace paramixer::cuda
