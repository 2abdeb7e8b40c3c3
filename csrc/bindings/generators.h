#pragma once

#include <pybind11/pybind11.h>

// Adds the task generators to the module.
void bind_generators(pybind11::module_& m);
