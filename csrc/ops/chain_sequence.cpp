#include "ops/chain_sequence.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/stack.h>

#include <utility>
#include <vector>

#include "ops/check.h"
#include "ops/operators.h"
#include "ops/prepare.h"
#include "paramixer/paramixer.h"

namespace paramixer::ops {
namespace {

// The chain's operands, seen factor by factor.
struct Factors {
  const at::Tensor& all_weights;
  at::IntArrayRef all_offsets;
  Residual residual;

  int64_t count() const { return all_weights.sym_size(-2).guard_int(__FILE__, __LINE__); }
  at::Tensor weight(int64_t factor) const { return all_weights.select(-2, factor); }
  at::IntArrayRef offsets(int64_t factor) const {
    const size_t links = all_offsets.size() / count();
    return all_offsets.slice(factor * links, links);
  }
};

// V_end from V_begin; `keep(m, V_m)` is shown every state after it.
template <typename Keep>
at::Tensor run(const Factors& factors, int64_t begin, int64_t end, const at::Tensor& initial,
               at::Tensor state, const Keep& keep) {
  for (int64_t m = begin; m < end; ++m) {
    at::Tensor mixed = mix(factors.weight(m), state, factors.offsets(m));
    if (factors.residual == Residual::kPrevious) mixed.add_(state);
    if (factors.residual == Residual::kInitial) mixed.add_(initial);
    state = std::move(mixed);
    keep(m + 1, state);
  }
  return state;
}

// V_M; `keep(p, V_m)` is shown the state at the p-th boundary.
template <typename Keep>
at::Tensor run_forward(const Factors& factors, const at::Tensor& value, at::IntArrayRef boundaries,
                       const Keep& keep) {
  size_t next = 0;
  return run(factors, 0, factors.count(), value, value, [&](int64_t m, const at::Tensor& state) {
    if (next < boundaries.size() && boundaries[next] == m) keep(next++, state);
  });
}

// The gradient of a state on its way from V_M to V_0.
class StateGradient {
 public:
  StateGradient(at::Tensor grad, Residual residual)
      : state_(std::move(grad)), residual_(residual) {}

  const at::Tensor& state() const { return state_; }

  // Passes a factor: `product` is what the product alone gives its input.
  void pass(at::Tensor product) {
    if (residual_ == Residual::kPrevious) product.add_(state_);
    if (residual_ == Residual::kInitial) initial_ = initial_.defined() ? initial_ + state_ : state_;
    state_ = std::move(product);
  }

  // The gradient of V_0, once every factor is passed.
  at::Tensor finish() { return residual_ == Residual::kInitial ? state_.add_(initial_) : state_; }

 private:
  at::Tensor state_;
  at::Tensor initial_;  // the sum of what reached V_0 as a residual
  Residual residual_;
};

// The gradient of the value; `keep(m, dW_m)` is shown the weight gradients, the last factor's
// first. Between boundaries the states are computed again.
template <typename Keep>
at::Tensor run_backward(const Factors& factors, const at::Tensor& grad, const at::Tensor& value,
                        const at::Tensor& states, at::IntArrayRef boundaries, const Keep& keep) {
  StateGradient gradient(grad, factors.residual);
  int64_t end = factors.count();
  for (int64_t segment = static_cast<int64_t>(boundaries.size()); segment >= 0; --segment) {
    const int64_t begin = segment == 0 ? 0 : boundaries[segment - 1];
    std::vector<at::Tensor> inputs = {segment == 0 ? value : states.select(0, segment - 1)};
    run(factors, begin, end - 1, value, inputs[0],
        [&](int64_t, const at::Tensor& state) { inputs.push_back(state); });
    for (int64_t m = end - 1; m >= begin; --m) {
      auto [d_weight, product] =
          mix_backward(gradient.state(), factors.weight(m), inputs.back(), factors.offsets(m));
      inputs.pop_back();
      keep(m, d_weight);
      gradient.pass(std::move(product));
    }
    end = begin;
  }
  return gradient.finish();
}

}  // namespace

at::Tensor mix_chain_sequence(const at::Tensor& weight, const at::Tensor& value,
                              at::IntArrayRef offsets, std::string_view residual,
                              std::string_view save) {
  const auto choices = check_mix_chain(weight, value, offsets, residual, save);
  const Factors factors{weight, offsets, choices.residual};
  return run_forward(factors, value, /*boundaries=*/{}, [](size_t, const at::Tensor&) {});
}

std::tuple<at::Tensor, at::Tensor> mix_chain_forward_sequence(const at::Tensor& weight,
                                                              const at::Tensor& value,
                                                              at::IntArrayRef offsets,
                                                              std::string_view residual,
                                                              at::IntArrayRef boundaries) {
  const Factors factors{weight, offsets,
                        check_mix_chain_forward(weight, value, offsets, residual, boundaries)};
  at::Tensor states = allocate_chain_states(weight, value, boundaries);
  const auto keep = [&](size_t p, const at::Tensor& state) { states.select(0, p).copy_(state); };
  return {run_forward(factors, value, boundaries, keep), states};
}

std::tuple<at::Tensor, at::Tensor> mix_chain_backward_sequence(
    const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& value,
    const at::Tensor& states, at::IntArrayRef offsets, std::string_view residual,
    at::IntArrayRef boundaries) {
  const Factors factors{
      weight, offsets,
      check_mix_chain_backward(grad, weight, value, states, offsets, residual, boundaries)};
  at::Tensor d_weight = allocate_chain_weight_gradient(weight, value);
  const auto keep = [&](int64_t m, const at::Tensor& factor) {
    d_weight.select(-2, m).copy_(factor);
  };
  const at::Tensor d_value = run_backward(factors, grad, value, states, boundaries, keep);
  return {d_weight, d_value};
}

std::tuple<at::Tensor, at::Tensor> compose_chain_forward(const at::Tensor& weight,
                                                         const at::Tensor& value,
                                                         at::IntArrayRef offsets,
                                                         std::string_view residual,
                                                         at::IntArrayRef boundaries) {
  const Factors factors{weight, offsets,
                        check_mix_chain_forward(weight, value, offsets, residual, boundaries)};
  std::vector<at::Tensor> kept;
  const auto keep = [&](size_t, const at::Tensor& state) { kept.push_back(state); };
  const at::Tensor result = run_forward(factors, value, boundaries, keep);
  return {result, kept.empty() ? allocate_chain_states(weight, value, {}) : at::stack(kept)};
}

std::tuple<at::Tensor, at::Tensor> compose_chain_backward(const at::Tensor& grad,
                                                          const at::Tensor& weight,
                                                          const at::Tensor& value,
                                                          at::IntArrayRef offsets,
                                                          Residual residual) {
  const Factors factors{weight, offsets, residual};
  std::vector<at::Tensor> d_weights(factors.count());
  const auto keep = [&](int64_t m, const at::Tensor& factor) { d_weights[m] = factor; };
  const at::Tensor d_value =
      run_backward(factors, grad, value, /*states=*/{}, /*boundaries=*/{}, keep);
  return {at::stack(d_weights, -2), d_value};
}

at::Tensor chain_value_gradient(const at::Tensor& grad, const at::Tensor& weight,
                                at::IntArrayRef offsets, Residual residual) {
  const Factors factors{weight, offsets, residual};
  StateGradient gradient(grad, factors.residual);
  for (int64_t m = factors.count() - 1; m >= 0; --m) {
    gradient.pass(mix_transpose(factors.weight(m), gradient.state(), factors.offsets(m)));
  }
  return gradient.finish();
}

}  // namespace paramixer::ops
