// The CPU key of mix_chain: batch items and groups of channels are shared over threads, each task
// takes its channels through the whole chain. Where batch items are few, all threads take one
// together.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "core/plan_cache.h"
#include "cpu/chain_options.h"
#include "cpu/huge_pages.h"
#include "cpu/kernels.h"
#include "ops/chain_sequence.h"
#include "ops/check.h"
#include "ops/prepare.h"

namespace paramixer::cpu {
namespace {

// Rings of rows of kMostRowBytes that leave no room in the last-level cache for those of other
// threads.
constexpr int64_t kLongRingBytes = int64_t{8} << 20;

// Rows that a thread of a team takes at least: fewer cost less than to share them.
constexpr int64_t kTeamRows = 512;

// ---- Plans, which chains of one shape share

struct PlanKey {
  Residual residual;
  int64_t length;
  int factors;
  std::vector<int64_t> offsets;

  auto operator<=>(const PlanKey&) const = default;
};

std::shared_ptr<const ChainPlan> find_plan(const PlanKey& key) {
  static PlanCache<PlanKey> plans;
  return plans.find(key, [](const PlanKey& key) {
    const PlanOptions options = plan_options(key.residual, key.length);
    const int links = static_cast<int>(key.offsets.size()) / key.factors;
    return plan_chain(key.length, key.factors, links, key.offsets, options);
  });
}

// ---- Scratch, one block a thread

struct Free {
  void operator()(void* block) const { std::free(block); }
};

// Kept from call to call, as fresh pages cost more than the arithmetic; very large blocks are not.
class Scratch {
 public:
  void* reserve(int64_t bytes) {
    if (bytes > size_) {
      block_.reset();
      size_ = (bytes + kHugePage - 1) / kHugePage * kHugePage;
      block_.reset(std::aligned_alloc(kHugePage, size_));
      if (!block_) throw std::bad_alloc();
      advise_huge_pages(block_.get(), size_);
    }
    return block_.get();
  }
  void release_if_large() {
    constexpr int64_t kMostKept = int64_t{64} << 20;
    if (size_ <= kMostKept) return;
    block_.reset();
    size_ = 0;
  }

 private:
  std::unique_ptr<void, Free> block_;
  int64_t size_ = 0;
};

// ---- A chain and its tasks

class Chain {
 public:
  Chain(Pass pass, const ops::Operands& operands, const at::Tensor& weight, at::IntArrayRef offsets,
        Residual residual)
      : pass_(pass),
        prepared_(operands, offsets.slice(0, weight.size(-1)), ops::ChannelStride::kOne),
        plan_(find_plan(
            {residual, weight.size(-3), static_cast<int>(weight.size(-2)), offsets.vec()})) {
    chain_.problem = prepared_.problem();
    chain_.weight_factor = weight.stride(-2);
    chain_.dots_factor = weight.size(-1);
    chain_.factors = static_cast<int32_t>(weight.size(-2));
    chain_.residual = residual;
    chain_.sweeps = plan_->sweeps.data();
    chain_.sweep_count = static_cast<int32_t>(plan_->sweeps.size());
  }

  void run() {
    const Problem& problem = chain_.problem;
    const int64_t batches = batch_count(problem);
    const bool in_teams = 2 * batches <= std::min<int64_t>(at::get_num_threads(), team_size());
    const int64_t width = group_width(batches, in_teams);
    const int64_t groups = (problem.channels + width - 1) / width;
    const ChainKernel kernel = selected_instruction_set().kernel(prepared_.dtype(), pass_);
    const int64_t bytes = chain_scratch_bytes(chain_, prepared_.dtype(), pass_, width);
    const bool stream = can_stream(problem, accumulator_bytes(prepared_.dtype()));
    const Team team = {at::get_num_threads(),
                       team_scratch_bytes(chain_, prepared_.dtype(), pass_, width), &share_parts};
    const auto run_group = [&](int64_t batch, int64_t group, void* scratch) {
      const int64_t channel = group * width;
      const ChainTask task = {batch, channel, std::min(width, problem.channels - channel),
                              in_teams ? &team : nullptr};
      kernel(chain_, task, stream, scratch);
    };
    // The groups of a batch item add to the same dots, one after the other.
    const bool in_order = in_teams || pass_ == Pass::kBackward;
    const int64_t tasks = in_order ? batches : batches * groups;
    const auto run_tasks = [&](int64_t begin, int64_t end) {
      thread_local Scratch scratch;
      void* const block = scratch.reserve(bytes);
      for (int64_t task = begin; task < end; ++task) {
        if (in_order) {
          for (int64_t group = 0; group < groups; ++group) run_group(task, group, block);
        } else {
          run_group(task / groups, task % groups, block);
        }
      }
      scratch.release_if_large();
    };
    if (in_teams) {
      run_tasks(0, tasks);
    } else {
      at::parallel_for(0, tasks, 1, run_tasks);
    }
    prepared_.finish();
  }

 private:
  // Channels of a task. Forward has the same bits for any; the order in which backward sums over
  // channels follows from it, so there it must not depend on the number of threads.
  int64_t group_width(int64_t batches, bool in_teams) const {
    const Problem& problem = chain_.problem;
    const DType dtype = prepared_.dtype();
    const int64_t lanes = 64 / accumulator_bytes(dtype);
    int64_t width = widest_group(dtype);
    // A long ring that is never dealt is read from the last-level cache by every far link.
    const bool dealt = plan_->sweeps.back().classes > 1;
    if (!dealt && problem.length * kMostRowBytes >= kLongRingBytes) width /= 2;
    if (pass_ == Pass::kForward) {
      while (!in_teams && width > lanes &&
             batches * ((problem.channels + width - 1) / width) < at::get_num_threads()) {
        width /= 2;
      }
      return width;
    }
    // Scratch for two threads, or one for each batch item, stays within two tensors the size of V,
    // or the one page that a thread has of it anyway.
    const int64_t threads = std::min<int64_t>(batches, 2);
    const int64_t values = batches * problem.length * problem.channels;
    const int64_t bound =
        std::max(2 * values * accumulator_bytes(dtype) / threads, int64_t{kHugePage});
    while (width > lanes && chain_scratch_bytes(chain_, dtype, pass_, width) > bound) width /= 2;
    return width;
  }

  // Threads that find work in one task: rows for all, but classes for a few.
  int64_t team_size() const {
    const int s = first_class_sweep(chain_);
    return s < chain_.sweep_count ? chain_.sweeps[s].classes : chain_.problem.length / kTeamRows;
  }

  static void share_parts(const Team& team, int64_t count, Team::Part part, const void* work) {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      thread_local Scratch scratch;
      void* const block = scratch.reserve(team.scratch_bytes);
      for (int64_t i = begin; i < end; ++i) part(work, i, block);
      scratch.release_if_large();
    });
  }

  Pass pass_;
  ops::PreparedProblem prepared_;
  std::shared_ptr<const ChainPlan> plan_;
  ChainProblem chain_;
};

// ---- The operators

void advise_huge_pages(const at::Tensor& fresh) {
  cpu::advise_huge_pages(fresh.mutable_data_ptr(), static_cast<int64_t>(fresh.nbytes()));
}

// Factors of the weight share all strides but their own, so the first stands for all.
at::Tensor first_factor(const at::Tensor& weight) { return weight.select(-2, 0); }

// A Problem takes any strides of few batch dimensions; of more it would copy the weight, and of
// that the first factor alone. Copied here, all of them are one.
at::Tensor with_one_batch_dim(const at::Tensor& tensor, const at::Tensor& result, int64_t rank) {
  std::vector<int64_t> shape = result.sizes().slice(0, result.dim() - 2).vec();
  for (int64_t d = -rank; d < 0; ++d) shape.push_back(tensor.size(d));
  return tensor.expand(shape).contiguous().flatten(0, result.dim() - 3);
}

at::Tensor mix_chain_unchecked(const at::Tensor& weight, const at::Tensor& value,
                               at::IntArrayRef offsets, Residual residual) {
  at::Tensor result = ops::allocate_mix_chain(weight, value);
  if (result.numel() == 0) return result;
  if (result.dim() - 2 > kMaxBatchDims) {
    const at::Tensor flat =
        mix_chain_unchecked(with_one_batch_dim(weight, result, 3),
                            with_one_batch_dim(value, result, 2), offsets, residual);
    return result.copy_(flat.view(result.sizes()));
  }
  advise_huge_pages(result);
  Chain(Pass::kForward, {.weight = first_factor(weight), .value = value, .result = result}, weight,
        offsets, residual)
      .run();
  return result;
}

at::Tensor mix_chain(const at::Tensor& weight, const at::Tensor& value, at::IntArrayRef offsets,
                     std::string_view residual, std::string_view save) {
  const auto choices = ops::check_mix_chain(weight, value, offsets, residual, save);
  return mix_chain_unchecked(weight, value, offsets, choices.residual);
}

// Inside a fused chain no state comes by, so those that are asked for take the way factor by
// factor.
std::tuple<at::Tensor, at::Tensor> mix_chain_forward(const at::Tensor& weight,
                                                     const at::Tensor& value,
                                                     at::IntArrayRef offsets,
                                                     std::string_view residual,
                                                     at::IntArrayRef boundaries) {
  if (!boundaries.empty()) {
    return ops::mix_chain_forward_sequence(weight, value, offsets, residual, boundaries);
  }
  const Residual parsed =
      ops::check_mix_chain_forward(weight, value, offsets, residual, boundaries);
  return {mix_chain_unchecked(weight, value, offsets, parsed),
          ops::allocate_chain_states(weight, value, boundaries)};
}

// 16-bit gradients of the weight are summed over channels in float32 before they are rounded.
std::tuple<at::Tensor, at::Tensor> mix_chain_backward(
    const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& value,
    const at::Tensor& states, at::IntArrayRef offsets, std::string_view residual,
    at::IntArrayRef boundaries) {
  const Residual parsed =
      ops::check_mix_chain_backward(grad, weight, value, states, offsets, residual, boundaries);
  at::Tensor dots = ops::allocate_chain_weight_gradient(weight, value);
  at::Tensor result = ops::allocate_mix_chain(weight, grad);
  if (result.numel() == 0) return {dots.zero_(), result};
  if (result.dim() - 2 > kMaxBatchDims) {
    const auto [flat_dots, flat] = mix_chain_backward(
        with_one_batch_dim(grad, result, 2), with_one_batch_dim(weight, result, 3),
        with_one_batch_dim(value, result, 2), states.flatten(1, result.dim() - 2), offsets,
        residual, boundaries);
    return {flat_dots.view(dots.sizes()), result.copy_(flat.view(result.sizes()))};
  }
  advise_huge_pages(result);
  advise_huge_pages(dots);
  const bool rounds = dots.scalar_type() == at::kBFloat16 || dots.scalar_type() == at::kHalf;
  at::Tensor sums = rounds ? at::empty(dots.sizes(), dots.options().dtype(at::kFloat)) : dots;
  Chain(Pass::kBackward,
        {.weight = first_factor(weight),
         .value = value,
         .grad = grad,
         .result = result,
         .dots = first_factor(sums)},
        weight, offsets, parsed)
      .run();
  if (rounds) dots.copy_(sums);
  return {dots, result};
}

TORCH_LIBRARY_IMPL(paramixer, CPU, m) {
  m.impl("mix_chain", &mix_chain);
  m.impl("mix_chain_forward", &mix_chain_forward);
  m.impl("mix_chain_backward", &mix_chain_backward);
}

}  // namespace
}  // namespace paramixer::cpu
