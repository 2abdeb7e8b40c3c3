// The Python extension module. Loading it loads libparamixer.so, which registers the operators; no
// tensor passes here.

#include <pybind11/pybind11.h>

#include "paramixer/build_info.h"

PYBIND11_MODULE(_C, m) {
  m.def("has_cuda", &paramixer::has_cuda, "Whether this build holds CUDA kernels.");
  m.def("cpu_instruction_set", &paramixer::cpu_instruction_set,
        "The instruction set of the CPU kernels in use.");
}
