// Chains on a real GPU, launched as the CUDA key launches them: cases of the emulator test, and a
// captured graph.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "band.h"
#include "chain_instance.h"
#include "launch.h"
#include "pass_plan.h"

namespace paramixer::testing {
namespace {

using cuda::Direction;
using Bytes = std::vector<unsigned char>;

void require(cudaError_t status) { ASSERT_EQ(status, cudaSuccess) << cudaGetErrorString(status); }

// The tensors of an instance in device memory.
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(ChainInstance<T>& instance) {
    instance.for_each_tensor([&](Tensor<T>& tensor) { copies_.emplace_back(tensor.storage); });
    copies_.emplace_back(instance.dots());
  }

  // Moves an operand of the instance to the device.
  void move(Operand& operand) const { move(operand.data); }
  void move(void*& data) const {
    for (const Copy& copy : copies_) {
      auto* host = static_cast<char*>(copy.host);
      auto* address = static_cast<char*>(data);
      if (address >= host && address < host + copy.bytes) {
        data = static_cast<char*>(copy.device) + (address - host);
        return;
      }
    }
  }
  ChainProblem move(ChainProblem chain) const {
    Problem& problem = chain.problem;
    for (Operand* operand :
         {&problem.weight, &problem.value, &problem.grad, &problem.result, &problem.dots}) {
      move(*operand);
    }
    return chain;
  }

  void upload() const {
    for (const Copy& copy : copies_) {
      require(cudaMemcpy(copy.device, copy.host, copy.bytes, cudaMemcpyHostToDevice));
    }
  }
  void download() const {
    require(cudaDeviceSynchronize());
    for (const Copy& copy : copies_) {
      require(cudaMemcpy(copy.host, copy.device, copy.bytes, cudaMemcpyDeviceToHost));
    }
  }

 private:
  struct Copy {
    template <typename Storage>
    explicit Copy(Storage& storage)
        : host(storage.data()), bytes(storage.size() * sizeof(storage[0])) {
      require(cudaMalloc(&device, std::max<size_t>(bytes, 1)));
    }
    ~Copy() { cudaFree(device); }
    Copy(const Copy&) = delete;
    Copy& operator=(const Copy&) = delete;

    void* host;
    size_t bytes;
    void* device = nullptr;
  };

  std::deque<Copy> copies_;
};

// The shared memory that a block of bands can have; 0 without a GPU.
int64_t band_bytes() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

template <typename T>
class CudaChainTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (band_bytes() == 0) GTEST_SKIP() << "no CUDA device: the kernels were compiled but not run";
  }

  static ChainPlan plan(const ChainCase& c, Direction direction,
                        const std::vector<int64_t>& cuts = {}) {
    const bool bands = direction == Direction::kForward && sizeof(T) == 2;
    return cuda::plan_for_cuda({direction, kDType<T>, c.residual, c.length, c.channels,
                                factor_count(c.protocol), c.protocol.offsets, cuts,
                                bands ? band_bytes() : 0});
  }

  // One launch forward, of a sweep that is no product.
  static cudaError_t launch(const ChainCase& c, const ChainProblem& chain, const Sweep& sweep,
                            cudaStream_t stream) {
    if (!sweep.bands) return cuda::chain_tile(kDType<T>, chain, sweep, stream);
    cuda::BandPass pass;
    EXPECT_TRUE(cuda::make_band_pass(chain, c.protocol.offsets, sweep.first, sweep.factors, pass));
    return cuda::launch_band_pass(kDType<T>, pass, stream);
  }

  // Calls run(sweep, problem on the host) for every launch of a plan.
  template <typename Run>
  static void for_each_launch(ChainInstance<T>& instance, const ChainPlan& plan,
                              const std::vector<int64_t>& cuts, const Run& run) {
    const auto targets = cuda::choose_targets(plan, cuts);
    Operand state = instance.value();
    for (size_t s = 0; s < targets.size(); ++s) {
      const Sweep& sweep = plan.sweeps[s];
      const Operand target = targets[s] == cuda::Target::kResult      ? instance.result()
                             : targets[s] == cuda::Target::kTemporary ? instance.temporary()
                                                                      : kept(instance, sweep);
      run(sweep, instance.problem(state, target));
      state = target;
    }
  }

  static Operand kept(ChainInstance<T>& instance, const Sweep& sweep) {
    return instance.kept(sweep.first + sweep.factors);
  }

  static void check_forward(const ChainCase& c, const std::vector<int64_t>& cuts) {
    SCOPED_TRACE(describe(c));
    const ChainPlan own = plan(c, Direction::kForward, cuts);
    for (const Sweep& sweep : own.sweeps) {
      if (sweep.tile == 0) return;  // kernel_test.cpp runs products
    }
    ChainInstance<T> instance(c);
    for (const int64_t cut : cuts) instance.kept(static_cast<int>(cut));
    const OnDevice<T> device(instance);
    const auto run = [&] {
      instance.poison();
      device.upload();
      for_each_launch(instance, own, cuts, [&](const Sweep& sweep, const ChainProblem& chain) {
        require(launch(c, device.move(chain), sweep, nullptr));
      });
      device.download();
      return instance.bytes();
    };
    const Bytes first = run();
    ASSERT_NO_FATAL_FAILURE(instance.check());
    ASSERT_TRUE(run() == first) << "another run, other bits";
  }

  static void check_backward(const ChainCase& c) {
    SCOPED_TRACE(describe(c));
    ChainInstance<T> instance(c);
    const ChainPlan own = plan(c, Direction::kBackward);
    for (const Sweep& sweep : own.sweeps) {
      if (sweep.tile == 0) continue;
      const ChainProblem chain = instance.backward_problem(sweep);  // makes the dots
      const OnDevice<T> device(instance);
      const auto run = [&] {
        instance.poison();
        device.upload();
        require(cuda::chain_tile_backward(kDType<T>, device.move(chain), sweep, nullptr));
        device.download();
        return instance.bytes();
      };
      const Bytes first = run();
      ASSERT_NO_FATAL_FAILURE(instance.check_backward(sweep));
      ASSERT_TRUE(run() == first) << "another run, other bits";
    }
  }
};

TYPED_TEST_SUITE(CudaChainTest, TileDTypes);

// Every protocol, with all layouts, residuals and some widths in turn.
TYPED_TEST(CudaChainTest, AgreesWithFloat64AndRepeatsBitForBit) {
  int turn = 0;
  for (const int64_t length : {1, 2, 17, 100, 512}) {
    const int factors = static_cast<int>(default_factors(length)) + 1;
    for (const Protocol& protocol : protocols(length, factors)) {
      const ChainCase c = {length, std::vector<int64_t>{1, 8, 20, 33, 64}[turn % 5], protocol,
                           Residual(turn % 3), ChainLayout(turn % kChainLayoutCount)};
      const bool cut = turn++ % 2 == 0 && factors > 1;
      ASSERT_NO_FATAL_FAILURE(
          this->check_forward(c, cut ? std::vector<int64_t>{1} : std::vector<int64_t>{}));
      ASSERT_NO_FATAL_FAILURE(this->check_backward(c));
    }
  }
}

// Long rings: several launches, halos, tiles that do not divide the ring.
TYPED_TEST(CudaChainTest, LongRings) {
  for (const int64_t length : {1000, 1024, 2000, 4097}) {
    for (const int links : {3, 9}) {
      const Protocol protocol = make_protocol("cdil", cdil(length, std::nullopt, links));
      const ChainCase c = {length, 40, protocol, links == 3 ? Residual::kPrevious : Residual::kNone,
                           ChainLayout::kContiguous};
      ASSERT_NO_FATAL_FAILURE(this->check_forward(c, {4, 8}));
      ASSERT_NO_FATAL_FAILURE(this->check_backward(c));
    }
  }
}

// Windows, with near links and far ones.
TYPED_TEST(CudaChainTest, LongRingsOfChord) {
  for (const int64_t length : {4096, 4097}) {
    const ChainCase c = {length, length == 4096 ? 40 : 9,
                         make_protocol("chord", chord(length, /*factors=*/3)), Residual::kPrevious,
                         ChainLayout::kContiguous};
    ASSERT_NO_FATAL_FAILURE(this->check_forward(c, {1}));
    ASSERT_NO_FATAL_FAILURE(this->check_backward(c));
  }
}

TYPED_TEST(CudaChainTest, ACapturedChainReplays) {
  const ChainCase c = {1024, 64, make_protocol("cdil", cdil(1024)), Residual::kPrevious,
                       ChainLayout::kContiguous};
  ChainInstance<TypeParam> instance(c);
  const OnDevice<TypeParam> device(instance);
  cudaStream_t stream;
  require(cudaStreamCreate(&stream));
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  {
    const ChainPlan own = this->plan(c, Direction::kForward);  // gone when the graph runs
    this->for_each_launch(instance, own, {}, [&](const Sweep& sweep, const ChainProblem& chain) {
      require(this->launch(c, device.move(chain), sweep, stream));
    });
  }
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  require(cudaStreamEndCapture(stream, &graph));
  require(cudaGraphInstantiate(&executable, graph, 0));
  for (int replay = 0; replay < 2; ++replay) {
    instance.poison();
    device.upload();
    require(cudaGraphLaunch(executable, stream));
    device.download();
    ASSERT_NO_FATAL_FAILURE(instance.check());
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace paramixer::testing
