// The CUDA kernels as plain C++ functions. Torch-free.
//
// Operands and their meaning are those of core/problem.h, in device memory, with any strides (zero
// in what is read). The caller has reduced the offsets to [0, N), has 1 <= K <= kMaxLinks and no
// empty result, and has made the operands' device current. D = 0 is allowed for link_dot, which
// then writes zeros. Work is queued on `stream`; the return value is that of the launch.
#pragma once

#include <cuda_runtime_api.h>

#include "core/numeric.h"
#include "core/problem.h"
#include "core/rotation.h"

namespace paramixer::cuda {

// Reads weight and value, writes result.
cudaError_t mix(DType dtype, const Problem& problem, cudaStream_t stream);
cudaError_t mix_transpose(DType dtype, const Problem& problem, cudaStream_t stream);

// Reads grad and value, writes dots.
cudaError_t link_dot(DType dtype, const Problem& problem, cudaStream_t stream);

// Both gradients of mix in one kernel: reads weight, value and grad, writes dots (of weight) and
// result (of value).
cudaError_t mix_backward(DType dtype, const Problem& problem, cudaStream_t stream);

// Reads value (and lengths, in device memory too; those outside of [0, N] count as the nearer end),
// writes result. Elements of 2, 4 or 8 bytes.
cudaError_t rotate_tracks(int bytes, const Rotation& rotation, cudaStream_t stream);

// A sweep in tiles or with a window (of a plan by plan_for_cuda): reads the chain's weight and
// value, the rows before the sweep's first factor, and writes result, the rows behind its last.
// grad is V_0 where the residual is the initial value. A sweep with a halo or a window cannot write
// over what it reads; one of whole rings can.
cudaError_t chain_tile(DType dtype, const ChainProblem& chain, const Sweep& sweep,
                       cudaStream_t stream);

// Both gradients of such a sweep: reads weight, value (the rows before the sweep's first
// factor) and grad (of the rows behind its last), writes result (the gradient of value) and dots,
// which are contiguous, (groups, B, N, factors of the sweep, K) in float32 for groups of
// sweep.channels channels; the gradient of the weights is their sum over the groups. Where the
// residual is the initial value, sweeps have one factor, and what the gradient adds to that value's
// past the factor is the caller's. result overlaps nothing.
cudaError_t chain_tile_backward(DType dtype, const ChainProblem& chain, const Sweep& sweep,
                                cudaStream_t stream);

}  // namespace paramixer::cuda
