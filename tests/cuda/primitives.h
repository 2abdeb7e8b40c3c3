// What the test of cuda/primitives.cuh on a GPU runs; the kernels are compiled by nvcc.
#pragma once

#include <string>

namespace paramixer::testing {

// Runs every case of primitive_cases.cuh. Names those that compute something else; empty when all
// are right.
std::string wrong_primitives();

}  // namespace paramixer::testing
