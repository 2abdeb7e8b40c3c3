// Passes of composed bands on a real GPU: the cases of the emulator test.

#include "band.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "band_cases.h"

namespace paramixer::testing {
namespace {

void require(cudaError_t status) { ASSERT_EQ(status, cudaSuccess) << cudaGetErrorString(status); }

// A tensor's storage in device memory, and its operand pointing there.
template <typename T>
class TensorOnDevice {
 public:
  explicit TensorOnDevice(Tensor<T>& tensor)
      : tensor_(tensor), bytes_(tensor.storage.size() * sizeof(T)) {
    require(cudaMalloc(reinterpret_cast<void**>(&data_), bytes_));
    upload();
    tensor.operand.data = data_ + tensor.start;
  }
  ~TensorOnDevice() { cudaFree(data_); }
  TensorOnDevice(const TensorOnDevice&) = delete;
  TensorOnDevice& operator=(const TensorOnDevice&) = delete;

  void upload() {
    require(cudaMemcpy(data_, tensor_.storage.data(), bytes_, cudaMemcpyHostToDevice));
  }
  void download() {
    require(cudaMemcpy(tensor_.storage.data(), data_, bytes_, cudaMemcpyDeviceToHost));
  }

 private:
  Tensor<T>& tensor_;
  size_t bytes_;
  T* data_ = nullptr;
};

template <typename T>
class CudaBandTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int device = 0, shared = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
            cudaSuccess) {
      GTEST_SKIP() << "no CUDA device: the kernels were compiled but not run";
    }
    shared_limit = static_cast<size_t>(shared);
  }

  size_t shared_limit = 0;
};

TYPED_TEST_SUITE(CudaBandTest, BandDTypes);

TYPED_TEST(CudaBandTest, AgreesWithFloat64AndItself) {
  for (const BandCase& c : band_cases()) {
    SCOPED_TRACE(describe(c));
    BandInstance<TypeParam> instance(c);
    TensorOnDevice<TypeParam> weight(instance.weight), value(instance.value),
        result(instance.result);
    const cuda::BandPass pass = instance.pass();
    if (!cuda::band_serves(kDType<TypeParam>, pass, this->shared_limit)) continue;
    const auto run = [&] {
      instance.poison_outputs();
      result.upload();
      require(cuda::launch_band_pass(kDType<TypeParam>, pass, nullptr));
      require(cudaDeviceSynchronize());
      result.download();
      return instance.output_bytes();
    };
    const auto first = run();
    ASSERT_NO_FATAL_FAILURE(instance.check());
    ASSERT_EQ(run(), first);
  }
}

}  // namespace
}  // namespace paramixer::testing
