// Kernels with one mistake each, for the sanitizers to find: `planted_faults NAME` runs one, where
// `none` is the same work without a mistake. CMakeLists.txt says what each report must contain.

#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "simt.h"

namespace {

constexpr unsigned kThreads = 64;
constexpr unsigned kBlocks = 4;

enum class Fault {
  kNone,
  kMissingBarrier,
  kMissingWarpBarrier,
  kMissingBarrierBehindWait,
  kMissingWait,
  kRace,
  kRaceOfBlocks,
  kReadBeyondShared,
  kReadBeyondGlobal,
  kMisaligned,
};

struct alignas(16) Four {
  float x[4];
};

// The right kernel touches every primitive that orders threads. Each fault changes one place.
template <Fault kFault>
void planted_kernel(const float* input, float* output) {
  PARAMIXER_SHARED(float, tile, kThreads);
  PARAMIXER_SHARED(Four, staged, kThreads);
  const unsigned t = threadIdx.x, lane = t % 32;
  const bool guilty = t == 5;
  const float* source = input + blockIdx.x * 4 * kThreads;

  tile[t] = source[t];
  if (kFault != Fault::kMissingBarrier) __syncthreads();
  float sum = tile[(t + 1) % kThreads];
  __syncthreads();

  tile[t] = sum;
  if (kFault != Fault::kMissingWarpBarrier) __syncwarp();
  sum += tile[t - lane + (lane + 1) % 32];

  ptx::cp_async<16>(&staged[t], source + 4 * t);
  ptx::cp_async_commit_group();
  if (kFault == Fault::kMissingWait && guilty) sum += staged[t].x[0];
  ptx::cp_async_wait_group<0>();
  if (kFault != Fault::kMissingBarrierBehindWait) ptx::bar_sync(1, kThreads);
  sum += staged[(t + 1) % kThreads].x[1];
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);

  if (kFault == Fault::kReadBeyondShared && guilty) sum += tile[kThreads];
  if (kFault == Fault::kReadBeyondGlobal && guilty) sum += input[4 * kThreads * kBlocks];
  if (kFault == Fault::kMisaligned && guilty) {
    sum += reinterpret_cast<const Four*>(source + 1)->x[0];
  }
  output[blockIdx.x * kThreads + t] = sum;
  if (kFault == Fault::kRace) output[blockIdx.x * kThreads] = 1.0f;
  if (kFault == Fault::kRaceOfBlocks && guilty) output[0] = 1.0f;
}

template <Fault kFault>
void run() {
  std::vector<float> input(4 * kThreads * kBlocks, 1.0f), output(kThreads * kBlocks);
  simt::launch({.name = "planted", .grid = {kBlocks}, .block = {kThreads}, .workers = 1},
               [&] { planted_kernel<kFault>(input.data(), output.data()); });
}

const std::map<std::string, void (*)()> kFaults = {
    {"none", run<Fault::kNone>},
    {"missing_barrier", run<Fault::kMissingBarrier>},
    {"missing_warp_barrier", run<Fault::kMissingWarpBarrier>},
    {"missing_barrier_behind_wait", run<Fault::kMissingBarrierBehindWait>},
    {"missing_wait", run<Fault::kMissingWait>},
    {"race", run<Fault::kRace>},
    {"race_of_blocks", run<Fault::kRaceOfBlocks>},
    {"read_beyond_shared", run<Fault::kReadBeyondShared>},
    {"read_beyond_global", run<Fault::kReadBeyondGlobal>},
    {"misaligned", run<Fault::kMisaligned>},
};

}  // namespace

int main(int, char** arguments) {
  kFaults.at(arguments[1])();
  std::puts("ended without a report");
}
