// The Python extension module. Loading it loads libparamixer.so, which registers the operators; no
// tensor passes here.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "bindings/generators.h"
#include "cpu/chain_options.h"
#include "paramixer/build_info.h"
#include "pass_plan.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

// Python counts dtypes and residuals as DType and Residual do.
std::vector<paramixer::Sweep> chain_sweeps(int64_t length, int links,
                                           const std::vector<int64_t>& offsets, int residual) {
  const int factors = static_cast<int>(offsets.size()) / links;
  const auto options =
      paramixer::cpu::plan_options(static_cast<paramixer::Residual>(residual), length);
  auto sweeps = paramixer::plan_chain(length, factors, links, offsets, options).sweeps;
  for (auto& sweep : sweeps) sweep.offsets = nullptr;  // they end with the plan
  return sweeps;
}

// Of a GPU of compute capability 9.0 or 10.0.
std::vector<paramixer::Sweep> cuda_chain_sweeps(int64_t length, int64_t channels, int links,
                                                const std::vector<int64_t>& offsets, int residual,
                                                int dtype) {
  constexpr int64_t kSharedBytes = 227 * 1024;
  const int factors = static_cast<int>(offsets.size()) / links;
  auto sweeps = paramixer::cuda::plan_for_cuda(
                    {paramixer::cuda::Direction::kForward, static_cast<paramixer::DType>(dtype),
                     static_cast<paramixer::Residual>(residual), length, channels, factors, offsets,
                     /*cuts=*/{}, paramixer::cuda::bands_are_on() ? kSharedBytes : 0})
                    .sweeps;
  for (auto& sweep : sweeps) sweep.offsets = nullptr;
  return sweeps;
}

int64_t chain_group(int dtype) {
  return paramixer::cpu::widest_group(static_cast<paramixer::DType>(dtype));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("has_cuda", &paramixer::has_cuda, "Whether this build holds CUDA kernels.");
  m.def("cpu_instruction_set", &paramixer::cpu_instruction_set,
        "The instruction set of the CPU kernels in use.");

  using paramixer::Sweep;
  py::class_<Sweep>(m, "Sweep", "One pass of a chain over the rows; see core/problem.h.")
      .def_readonly("first", &Sweep::first)
      .def_readonly("factors", &Sweep::factors)
      .def_readonly("step", &Sweep::step)
      .def_readonly("classes", &Sweep::classes)
      .def_readonly("ring", &Sweep::ring)
      .def_readonly("tile", &Sweep::tile)
      .def_readonly("halo", &Sweep::halo)
      .def_readonly("channels", &Sweep::channels)
      .def_readonly("bands", &Sweep::bands)
      .def_readonly("window", &Sweep::window)
      .def_property_readonly("deal", [](const Sweep& sweep) { return sweep.deal.deal; });
  m.def("chain_sweeps", &chain_sweeps, "length"_a, "links"_a, "offsets"_a, "residual"_a,
        "The passes of the CPU kernels over the rows of a chain.");
  m.def("cuda_chain_sweeps", &cuda_chain_sweeps, "length"_a, "channels"_a, "links"_a, "offsets"_a,
        "residual"_a, "dtype"_a, "The launches of the CUDA kernels for a chain.");
  m.def("chain_group", &chain_group, "dtype"_a,
        "The most channels that the CPU kernels take through a chain together.");

  bind_generators(m);
}
