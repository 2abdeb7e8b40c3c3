// What the loaded library is. Torch-free.
#pragma once

#define PARAMIXER_API __attribute__((visibility("default")))

namespace paramixer {

// Whether this build holds CUDA kernels. It does not ask for a GPU.
PARAMIXER_API bool has_cuda();

// The instruction set of the CPU kernels in use: "avx512", "avx2" or "baseline".
PARAMIXER_API const char* cpu_instruction_set();

}  // namespace paramixer
