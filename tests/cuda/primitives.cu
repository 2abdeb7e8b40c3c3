#include "primitive_cases.cuh"
#include "primitives.h"

namespace paramixer::testing {
namespace {

class DeviceWords {
 public:
  explicit DeviceWords(const Words& words) : bytes_(words.size() * sizeof(Word)) {
    cudaMalloc(&data_, bytes_);
    cudaMemcpy(data_, words.data(), bytes_, cudaMemcpyHostToDevice);
  }
  ~DeviceWords() { cudaFree(data_); }
  DeviceWords(const DeviceWords&) = delete;
  DeviceWords& operator=(const DeviceWords&) = delete;

  Word* data() const { return static_cast<Word*>(data_); }
  Words read() const {
    Words words(bytes_ / sizeof(Word));
    cudaMemcpy(words.data(), data_, bytes_, cudaMemcpyDeviceToHost);
    return words;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

}  // namespace

std::string wrong_primitives() {
  std::string wrong;
  for (const PrimitiveCase& c : primitive_cases()) {
    const DeviceWords input(c.input), output(Words(c.expected.size(), 0xffffffffu));
    c.kernel<<<1, kPrimitiveThreads, kPrimitiveSharedBytes>>>(input.data(), output.data());
    const cudaError_t status = cudaDeviceSynchronize();
    if (status != cudaSuccess) {
      wrong += std::string(c.name) + ": " + cudaGetErrorString(status) + "; ";
    } else if (output.read() != c.expected) {
      wrong += std::string(c.name) + "; ";
    }
  }
  return wrong;
}

}  // namespace paramixer::testing
