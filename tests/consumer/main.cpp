// Uses paramixer from C++: calls an operator, takes first and second gradients, and runs saved
// models without Python.
//
//   consumer FOLDER [--aot-inductor]
//
// FOLDER holds model.pt (TorchScript), recorded.pt and, when asked for, model.pt2 (AOTInductor).

#include <paramixer/paramixer.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>
#include <torch/torch.h>

#include <iostream>

namespace {

void require(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error("failed: " + what);
  std::cout << "ok: " << what << '\n';
}

void operators_and_gradients() {
  const auto offsets = paramixer::chord(16)[0];
  const auto options = torch::TensorOptions(torch::kDouble).requires_grad(true);
  const auto weight = torch::randn({16, int64_t(offsets.size())}, options);
  const auto value = torch::randn({16, 3}, options);
  const auto result = paramixer::mix(weight, value, offsets);
  require(result.sizes() == value.sizes(), "mix");

  const auto first =
      torch::autograd::grad({result.square().sum()}, {weight}, {}, std::nullopt, true);
  require(torch::allclose(first[0], paramixer::link_dot(2 * result, value, offsets)),
          "first gradient");
  const auto second = torch::autograd::grad({first[0].sum()}, {weight, value});
  require(second[0].abs().sum().item<double>() > 0 && second[1].abs().sum().item<double>() > 0,
          "second gradient");
}

// What the Python side recorded: an input, the model's output, the gradient of the output's sum by
// the input.
struct Recorded {
  explicit Recorded(const torch::jit::Module& module)
      : input(module.attr("input").toTensor()),
        output(module.attr("output").toTensor()),
        gradient(module.attr("gradient").toTensor()) {}
  at::Tensor input, output, gradient;
};

void torchscript(const std::string& folder, const Recorded& recorded) {
  auto model = torch::jit::load(folder + "/model.pt");
  const auto input = recorded.input.clone().requires_grad_(true);
  const auto output = model.forward({input}).toTensor();
  require(torch::allclose(output, recorded.output, 1e-5, 1e-6), "TorchScript model");
  const auto gradient = torch::autograd::grad({output.sum()}, {input})[0];
  require(torch::allclose(gradient, recorded.gradient, 1e-4, 1e-5), "TorchScript model's gradient");
}

void aot_inductor(const std::string& folder, const Recorded& recorded) {
  torch::inductor::AOTIModelPackageLoader loader(folder + "/model.pt2");
  const auto output = loader.run({recorded.input})[0];
  require(torch::allclose(output, recorded.output, 1e-4, 1e-5), "AOTInductor model");
}

}  // namespace

int main(int argc, char** argv) {
  const bool with_aot_inductor = argc == 3 && std::string(argv[2]) == "--aot-inductor";
  if (argc != 2 && !with_aot_inductor) {
    std::cerr << "usage: consumer FOLDER [--aot-inductor]\n";
    return 2;
  }
  try {
    const std::string folder = argv[1];
    const Recorded recorded(torch::jit::load(folder + "/recorded.pt"));
    operators_and_gradients();
    torchscript(folder, recorded);
    if (with_aot_inductor) aot_inductor(folder, recorded);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
