#include "enqueue.h"
#include "launch.h"
#include "rotate_tracks.cuh"

namespace paramixer::cuda {

cudaError_t rotate_tracks(int bytes, const Rotation& rotation, cudaStream_t stream) {
  const LaunchShape shape = rotation_shape(bytes, rotation);
  return with_rotation(rotation, bytes, shape, [&](auto function, auto arguments) {
    return enqueue(function, arguments, shape.blocks, shape.threads, /*shared_bytes=*/0, stream);
  });
}

}  // namespace paramixer::cuda
