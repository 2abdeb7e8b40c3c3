// Must not compile, and the compiler must say why.

#include "simt.h"

void sum_kernel(const float* input, float* output) { atomicAdd(output, input[threadIdx.x]); }
