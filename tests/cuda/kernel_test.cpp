// The launch functions on a real GPU: the cases of the emulator test, graphs, and tensors beyond
// 32-bit indices. Skips, and says so, where there is no GPU.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "kernel_cases.h"
#include "launch.h"
#include "primitives.h"
#include "rotation_cases.h"

namespace paramixer::testing {
namespace {

class CudaEnvironment : public ::testing::Environment {
 public:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
      GTEST_SKIP() << "no CUDA device: the kernels were compiled but not run";
    }
  }
};

const auto* const kEnvironment = ::testing::AddGlobalTestEnvironment(new CudaEnvironment);

void require(cudaError_t status) { ASSERT_EQ(status, cudaSuccess) << cudaGetErrorString(status); }

cudaError_t launch(Kernel kernel, DType dtype, const Problem& problem, cudaStream_t stream) {
  switch (kernel) {
    case Kernel::kMix:
      return cuda::mix(dtype, problem, stream);
    case Kernel::kMixTranspose:
      return cuda::mix_transpose(dtype, problem, stream);
    case Kernel::kLinkDot:
      return cuda::link_dot(dtype, problem, stream);
    case Kernel::kMixBackward:
      break;
  }
  return cuda::mix_backward(dtype, problem, stream);
}

template <typename T>
class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t count) : count_(count) {
    require(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)));
  }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  T* data() const { return data_; }
  void clear() { require(cudaMemset(data_, 0, count_ * sizeof(T))); }
  void write(size_t at, const Storage<T>& source) {
    require(cudaMemcpy(data_ + at, source.data(), source.size() * sizeof(T), cudaMemcpyDefault));
  }
  Storage<T> read(size_t at, size_t count) const {
    Storage<T> target(count);
    require(cudaMemcpy(target.data(), data_ + at, count * sizeof(T), cudaMemcpyDefault));
    return target;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

// A tensor's storage in device memory, and its operand pointing there.
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(Tensor<T>& tensor) : tensor_(tensor), buffer_(tensor.storage.size()) {
    upload();
    tensor.operand.data = buffer_.data() + tensor.start;
  }
  void upload() { buffer_.write(0, tensor_.storage); }
  void download() { tensor_.storage = buffer_.read(0, tensor_.storage.size()); }

 private:
  Tensor<T>& tensor_;
  DeviceBuffer<T> buffer_;
};

template <typename T>
class InstanceOnDevice {
 public:
  explicit InstanceOnDevice(const Case& c)
      : instance(c),
        weight_(instance.weight),
        value_(instance.value),
        grad_(instance.grad),
        result_(instance.result),
        dots_(instance.dots) {}

  void poison_outputs() {
    instance.poison_outputs();
    result_.upload();
    dots_.upload();
  }
  void download_outputs() {
    require(cudaDeviceSynchronize());
    result_.download();
    dots_.download();
  }
  void run(Kernel kernel) {
    poison_outputs();
    require(launch(kernel, kDType<T>, instance.problem(), nullptr));
    download_outputs();
  }

  Instance<T> instance;

 private:
  OnDevice<T> weight_, value_, grad_, result_, dots_;
};

template <typename T>
class CudaKernelTest : public ::testing::Test {};
TYPED_TEST_SUITE(CudaKernelTest, DTypes);

TYPED_TEST(CudaKernelTest, AgreesWithFloat64AndRepeatsBitForBit) {
  for (const Case& c : cases()) {
    InstanceOnDevice<TypeParam> on_device(c);
    for (const Kernel kernel : kKernels) {
      SCOPED_TRACE(name_of(kernel));
      on_device.run(kernel);
      ASSERT_NO_FATAL_FAILURE(on_device.instance.check(kernel));
      const auto first = on_device.instance.output_bytes();
      on_device.run(kernel);
      ASSERT_EQ(on_device.instance.output_bytes(), first) << describe(c);
    }
  }
}

TYPED_TEST(CudaKernelTest, LinkDotOfNoChannelsIsZero) {
  InstanceOnDevice<TypeParam> on_device({5, 0, 3, Layout::kShifted});
  on_device.run(Kernel::kLinkDot);
  on_device.instance.check(Kernel::kLinkDot);
}

TYPED_TEST(CudaKernelTest, RotationsAreTheirDefinition) {
  for (const Case& c : rotation_cases()) {
    SCOPED_TRACE(describe(c));
    InstanceOnDevice<TypeParam> on_device(c);
    const std::vector<int64_t> lengths = ring_lengths(on_device.instance.problem());
    DeviceBuffer<int64_t> device_lengths(lengths.size());
    device_lengths.write(0, Storage<int64_t>(lengths.begin(), lengths.end()));
    for (const auto* rings : {static_cast<const std::vector<int64_t>*>(nullptr), &lengths}) {
      Rotation rotation = make_rotation(on_device.instance, rings);
      const Rotation expected = rotation;
      if (rings) rotation.lengths = device_lengths.data();
      on_device.poison_outputs();
      require(cuda::rotate_tracks(sizeof(TypeParam), rotation, nullptr));
      on_device.download_outputs();
      ASSERT_NO_FATAL_FAILURE(on_device.instance.check(expected));
    }
  }
}

TEST(CudaPrimitivesTest, ComputeWhatTheEmulatorSays) { EXPECT_EQ(wrong_primitives(), ""); }

TEST(CudaGraphTest, ACapturedLaunchReplaysWithItsOffsets) {
  InstanceOnDevice<float> on_device({67, 64, 9, Layout::kPermutedBatch});
  cudaStream_t stream;
  require(cudaStreamCreate(&stream));
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  {
    Problem problem = on_device.instance.problem();
    require(launch(Kernel::kMixBackward, DType::kFloat32, problem, stream));
    problem = {};  // what the graph holds must not depend on it
  }
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  require(cudaStreamEndCapture(stream, &graph));
  require(cudaGraphInstantiate(&executable, graph, 0));
  for (int replay = 0; replay < 2; ++replay) {
    on_device.poison_outputs();
    require(cudaGraphLaunch(executable, stream));
    on_device.download_outputs();
    on_device.instance.check(Kernel::kMixBackward);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

// More than 2^31 elements: 64-bit indices, and blocks that loop. All rows are zero but the first
// and the last few, whose small integers make every sum exact; the links join each row to itself
// and to the one before it.
class LargeTensorTest : public ::testing::Test {
 protected:
  static constexpr int64_t kLength = (int64_t{1} << 25) + 3;
  static constexpr int64_t kChannels = 64;
  static constexpr int64_t kRows = 4;  // that are not zero, at either end

  static int pattern(int64_t row, int64_t channel) {
    const bool zero = row >= kRows && row < kLength - kRows;
    return zero ? 0 : static_cast<int>((7 * row + channel) % 5) - 2;
  }

  static BFloat16 stored(double x) { return narrow<BFloat16>(static_cast<float>(x)); }

  static void fill_ends(DeviceBuffer<BFloat16>& buffer) {
    buffer.clear();
    for (const int64_t first : {int64_t{0}, kLength - kRows}) {
      Storage<BFloat16> rows;
      for (int64_t i = first; i < first + kRows; ++i) {
        for (int64_t c = 0; c < kChannels; ++c) rows.push_back(stored(pattern(i, c)));
      }
      buffer.write(first * kChannels, rows);
    }
  }

  // Calls expect(row, column) for the rows at both ends and compares.
  template <typename Expected>
  static void check_ends(const DeviceBuffer<BFloat16>& buffer, int64_t columns, Expected expected) {
    for (const int64_t first : {int64_t{0}, kLength - kRows - 2}) {
      const auto rows = buffer.read(first * columns, (kRows + 2) * columns);
      for (int64_t i = 0; i < kRows + 2; ++i) {
        for (int64_t c = 0; c < columns; ++c) {
          ASSERT_EQ(widen(rows[i * columns + c]), expected(first + i, c)) << first + i << ", " << c;
        }
      }
    }
  }

  static Operand contiguous(const DeviceBuffer<BFloat16>& buffer, int64_t columns) {
    return {.data = buffer.data(), .row = columns, .column = 1};
  }

  static int64_t before(int64_t row) { return (row + kLength - 1) % kLength; }
  static int64_t after(int64_t row) { return (row + 1) % kLength; }
};

TEST_F(LargeTensorTest, EveryKernel) {
  constexpr size_t kElements = kLength * kChannels;
  constexpr int kLinks = 2;
  size_t free_bytes = 0, total_bytes = 0;
  require(cudaMemGetInfo(&free_bytes, &total_bytes));
  if (free_bytes < 2 * (2 * kElements + 2 * kLength * kLinks) + (size_t{1} << 30)) {
    GTEST_SKIP() << "too little free memory for a tensor of 2^31 elements";
  }
  DeviceBuffer<BFloat16> value(kElements), result(kElements), weight(kLength * kLinks),
      dots(kLength * kLinks);
  fill_ends(value);
  weight.write(0, Storage<BFloat16>(kLength * kLinks, stored(1)));
  Problem problem;
  problem.length = kLength;
  problem.channels = kChannels;
  problem.links = kLinks;
  problem.offsets[1] = kLength - 1;
  problem.weight = contiguous(weight, kLinks);
  problem.value = problem.grad = contiguous(value, kChannels);
  problem.result = contiguous(result, kChannels);
  problem.dots = contiguous(dots, kLinks);

  const auto dot = [](int64_t row, int64_t link) {
    double sum = 0;
    for (int64_t c = 0; c < kChannels; ++c)
      sum += pattern(row, c) * pattern(link ? before(row) : row, c);
    return widen(stored(sum));
  };
  const auto transposed = [](int64_t row, int64_t c) {
    return pattern(row, c) + pattern(after(row), c);
  };

  require(cuda::mix(DType::kBFloat16, problem, nullptr));
  check_ends(result, kChannels,
             [](int64_t row, int64_t c) { return pattern(row, c) + pattern(before(row), c); });
  require(cuda::mix_transpose(DType::kBFloat16, problem, nullptr));
  check_ends(result, kChannels, transposed);
  require(cuda::link_dot(DType::kBFloat16, problem, nullptr));
  check_ends(dots, kLinks, dot);
  result.clear();
  dots.clear();
  require(cuda::mix_backward(DType::kBFloat16, problem, nullptr));
  check_ends(result, kChannels, transposed);
  check_ends(dots, kLinks, dot);
}

}  // namespace
}  // namespace paramixer::testing
