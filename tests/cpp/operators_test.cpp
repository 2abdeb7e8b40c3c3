// The operators as a C++ program sees them: no Python in the process.

#include <gtest/gtest.h>
#include <paramixer/paramixer.h>
#include <torch/torch.h>

namespace {

const std::vector<int64_t> kOffsets = {0, 1, -2, 14};

// Y[i] = sum_k W[i,k] V[(i + o_k) mod N] by torch::roll.
at::Tensor rolled_mix(const at::Tensor& weight, const at::Tensor& value) {
  at::Tensor result;
  for (size_t k = 0; k < kOffsets.size(); ++k) {
    const auto term = weight.select(-1, k).unsqueeze(-1) * torch::roll(value, -kOffsets[k], -2);
    result = result.defined() ? result + term : term;
  }
  return result;
}

std::vector<at::Tensor> leaves() {
  torch::manual_seed(0);
  const auto options = torch::TensorOptions(torch::kDouble).requires_grad(true);
  return {torch::randn({2, 9, 4}, options), torch::randn({2, 9, 5}, options)};
}

// The gradient, and the gradient of a function of the gradient.
std::vector<at::Tensor> first_and_second_gradients(at::Tensor (*function)(const at::Tensor&,
                                                                          const at::Tensor&)) {
  const auto inputs = leaves();
  const auto loss = function(inputs[0], inputs[1]).sin().sum();
  auto first = torch::autograd::grad({loss}, inputs, {}, std::nullopt, /*create_graph=*/true);
  const auto second = torch::autograd::grad({first[0].sin().sum() + first[1].cos().sum()}, inputs);
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

at::Tensor mix_with_offsets(const at::Tensor& weight, const at::Tensor& value) {
  return paramixer::mix(weight, value, kOffsets);
}

TEST(Operators, MixIsASumOfRolledValues) {
  const auto inputs = leaves();
  EXPECT_TRUE(
      torch::allclose(mix_with_offsets(inputs[0], inputs[1]), rolled_mix(inputs[0], inputs[1])));
}

TEST(Operators, TransposeIsTheAdjoint) {
  const auto inputs = leaves();
  const auto other = torch::randn_like(inputs[1]);
  const auto left = (paramixer::mix(inputs[0], inputs[1], kOffsets) * other).sum();
  const auto right = (inputs[1] * paramixer::mix_transpose(inputs[0], other, kOffsets)).sum();
  EXPECT_TRUE(torch::allclose(left, right));
}

TEST(Operators, GradientsNeedNoPython) {
  const auto actual = first_and_second_gradients(mix_with_offsets);
  const auto expected = first_and_second_gradients(rolled_mix);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i)
    EXPECT_TRUE(torch::allclose(actual[i], expected[i])) << i;
}

TEST(Operators, GradientOfWeightIsLinkDot) {
  const auto inputs = leaves();
  const auto grad = torch::randn_like(inputs[1]);
  const auto result = paramixer::mix(inputs[0], inputs[1], kOffsets);
  const auto gradients = torch::autograd::grad({result}, inputs, {grad});
  EXPECT_TRUE(torch::allclose(gradients[0], paramixer::link_dot(grad, inputs[1], kOffsets)));
  EXPECT_TRUE(torch::allclose(gradients[1], paramixer::mix_transpose(inputs[0], grad, kOffsets)));
}

// Two factors with different offsets, as a chain and as one product after the other.
const std::vector<int64_t> kChainOffsets = {0, 1, -2, 14};
constexpr int64_t kChainFactors = 2;

std::vector<at::Tensor> chain_leaves() {
  torch::manual_seed(0);
  const auto options = torch::TensorOptions(torch::kDouble).requires_grad(true);
  return {torch::randn({2, 9, kChainFactors, 2}, options), torch::randn({2, 9, 5}, options)};
}

at::Tensor chain_of_products(const at::Tensor& weight, const at::Tensor& value,
                             const std::string& residual) {
  at::Tensor state = value;
  for (int64_t m = 0; m < kChainFactors; ++m) {
    const at::Tensor input = state;
    state =
        paramixer::mix(weight.select(-2, m), input, at::IntArrayRef(kChainOffsets).slice(2 * m, 2));
    if (residual == "previous") state = state + input;
    if (residual == "initial") state = state + value;
  }
  return state;
}

class Chain : public testing::TestWithParam<const char*> {};

TEST_P(Chain, IsOneProductAfterTheOther) {
  const auto inputs = chain_leaves();
  const auto result = paramixer::mix_chain(inputs[0], inputs[1], kChainOffsets, GetParam());
  const auto expected = chain_of_products(inputs[0], inputs[1], GetParam());
  EXPECT_TRUE(torch::allclose(result, expected));

  const auto grad = torch::randn_like(result);
  auto actual = torch::autograd::grad({result.sin()}, inputs, {grad}, std::nullopt,
                                      /*create_graph=*/true);
  auto wanted = torch::autograd::grad({expected.sin()}, inputs, {grad}, std::nullopt,
                                      /*create_graph=*/true);
  for (auto* gradients : {&actual, &wanted}) {
    const auto second =
        torch::autograd::grad({(*gradients)[0].sin().sum() + (*gradients)[1].cos().sum()}, inputs);
    gradients->insert(gradients->end(), second.begin(), second.end());
  }
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_TRUE(torch::allclose(actual[i], wanted[i]));
}

INSTANTIATE_TEST_SUITE_P(Residuals, Chain, testing::Values("none", "previous", "initial"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Operators, TracksRotateAndTheirGradientRotatesBack) {
  const auto options = torch::TensorOptions(torch::kDouble).requires_grad(true);
  const auto value = torch::randn({2, 9, 6}, options);
  const auto rotate = [](const at::Tensor& x, int64_t direction) {
    const auto tracks = x.chunk(3, -1);
    return torch::cat({tracks[0], torch::roll(tracks[1], -direction, -2),
                       torch::roll(tracks[2], 4 * direction, -2)},
                      -1);
  };
  const auto result = paramixer::rotate_tracks(value, {0, 1, -4});
  EXPECT_TRUE(torch::equal(result, rotate(value, 1)));
  const auto grad = torch::randn_like(result);
  const auto back = torch::autograd::grad({result}, {value}, {grad})[0];
  EXPECT_TRUE(torch::equal(back, rotate(grad, -1)));

  const auto padded = paramixer::rotate_tracks(value, {0, 1, -4}, torch::tensor({5, 0}));
  EXPECT_TRUE(torch::equal(padded.narrow(1, 0, 5)[0], rotate(value.narrow(1, 0, 5), 1)[0]));
  EXPECT_EQ(padded.narrow(1, 5, 4).count_nonzero().item<int64_t>(), 0);
  EXPECT_EQ(padded[1].count_nonzero().item<int64_t>(), 0);
}

TEST(Operators, ErrorsHaveTheirTypes) {
  const auto inputs = leaves();
  EXPECT_THROW(paramixer::mix(inputs[0], inputs[1], {0, 1}), c10::ValueError);
  EXPECT_THROW(paramixer::mix(inputs[0], inputs[1].to(torch::kFloat), kOffsets), c10::TypeError);
  EXPECT_THROW(paramixer::link_dot(inputs[0], inputs[1], kOffsets), c10::ValueError);
  const auto chain = chain_leaves();
  EXPECT_THROW(paramixer::mix_chain(chain[0], chain[1], kChainOffsets, "last"), c10::ValueError);
  EXPECT_THROW(paramixer::mix_chain(chain[0], chain[1], {0, 1}), c10::ValueError);
}

TEST(Operators, EmptyTensors) {
  EXPECT_EQ(paramixer::mix(torch::zeros({0, 4}), torch::zeros({0, 3}), kOffsets).sizes(),
            at::IntArrayRef({0, 3}));
  const auto dots = paramixer::link_dot(torch::zeros({5, 0}), torch::zeros({5, 0}), kOffsets);
  EXPECT_TRUE(torch::equal(dots, torch::zeros({5, 4})));
}

TEST(Operators, SameBitsForAnyNumberOfThreads) {
  const auto weight = torch::randn({3, 500, 4});
  const auto value = torch::randn({3, 500, 70});
  torch::set_num_threads(1);
  const auto one = paramixer::mix(weight, value, kOffsets);
  torch::set_num_threads(3);
  EXPECT_TRUE(torch::equal(paramixer::mix(weight, value, kOffsets), one));
}

TEST(Library, SaysWhatItIs) {
  EXPECT_STRNE(paramixer::cpu_instruction_set(), "");
  EXPECT_STRNE(PARAMIXER_VERSION, "");
}

}  // namespace
