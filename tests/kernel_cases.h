// The cases that kernels are tested with: problems in host memory with every size and layout that
// matters, and the definition evaluated in float64. The tests of the CPU kernels, of the CUDA
// kernels on the host and of the CUDA kernels on a GPU all run these.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "core/numeric.h"
#include "core/problem.h"
#include "core/rotation.h"

namespace paramixer::testing {

enum class Layout {
  kContiguous,
  kTransposed,      // channels lie N apart
  kSliced,          // eight more channels in each row, in front: 16-byte accesses stay possible
  kSlicedUnevenly,  // three more channels: they do not
  kShifted,         // contiguous, one element off any alignment
  kExpandedBatch,   // inputs: one batch item serves all
  kExpandedRow,     // inputs: one row serves all
  kExpandedColumn,  // inputs: one column serves all
  kPermutedBatch,   // two batch dimensions, the inner one with the larger stride
  kManyBatches,     // four batch dimensions
};
inline constexpr int kLayoutCount = 10;

struct Case {
  int64_t length;
  int64_t channels;
  int links;
  Layout layout;
  int64_t reach = 1;  // the offsets are multiples of it
};

inline std::string describe(const Case& c) {
  static const char* const kNames[kLayoutCount] = {
      "contiguous",     "transposed",   "sliced",          "sliced unevenly", "shifted",
      "expanded batch", "expanded row", "expanded column", "permuted batch",  "many batches"};
  return "N=" + std::to_string(c.length) + " D=" + std::to_string(c.channels) +
         " K=" + std::to_string(c.links) + " " + kNames[static_cast<int>(c.layout)];
}

// Every N with every D, and every layout with small, odd and vector-sized rows; K and, in the first
// part, the layout take turns.
inline std::vector<Case> cases() {
  const std::vector<int64_t> lengths = {1, 2, 3, 5, 17, 31, 64, 67};
  const std::vector<int64_t> channels = {1, 2, 3, 4, 7, 8, 16, 33, 64, 100, 128, 130};
  const std::vector<int> links = {1, 2, 3, 9, 11, 64};
  constexpr int64_t kManyLinksElements = 2500;  // 64 links on more would take most of the time
  std::vector<Case> list;
  size_t turn = 0;
  for (const int64_t n : lengths) {
    for (const int64_t d : channels) {
      const int k = links[turn % links.size()];
      list.push_back({n, d, n * d > kManyLinksElements ? std::min(k, 11) : k,
                      Layout(turn * 7 / links.size() % kLayoutCount)});
      ++turn;
    }
    ++turn;  // or else a D would always meet the same K
  }
  for (int layout = 0; layout < kLayoutCount; ++layout) {
    for (const int64_t d : {1, 8, 16, 33, 128}) {
      list.push_back({turn % 2 ? 17 : 37, d, links[turn % 5], Layout(layout)});
      ++turn;
    }
  }
  return list;
}

template <typename T>
inline constexpr DType kDType = DType::kFloat64;
template <>
inline constexpr DType kDType<float> = DType::kFloat32;
template <>
inline constexpr DType kDType<BFloat16> = DType::kBFloat16;
template <>
inline constexpr DType kDType<Float16> = DType::kFloat16;

// The spacing of numbers just above 1, by the bits of the significand.
template <typename T>
double epsilon() {
  if (std::is_same_v<T, double>) return std::ldexp(1.0, -52);
  if (std::is_same_v<T, float>) return std::ldexp(1.0, -23);
  return std::ldexp(1.0, std::is_same_v<T, BFloat16> ? -7 : -10);
}

// As torch allocates: every vector access and streaming store of a contiguous tensor is aligned.
template <typename T>
struct AlignedAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{64};
  AlignedAllocator() = default;
  template <typename U>
  AlignedAllocator(const AlignedAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kAlignment)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kAlignment); }
  bool operator==(const AlignedAllocator&) const = default;
};
template <typename T>
using Storage = std::vector<T, AlignedAllocator<T>>;

// One operand and the storage around it. What is not part of the operand stays NaN: reading it
// shows in the result, writing it shows in check_surroundings().
template <typename T>
struct Tensor {
  Storage<T> storage;
  int64_t start = 0;  // of the operand within the storage
  Operand operand;    // its data lies in the storage
  int64_t columns = 0;
};

enum class Role { kInput, kOutput };

// Behind a block of storage, to see what is written there. AddressSanitizer guards the end of a
// block itself, against reading too.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr int64_t kGuardBytes = 0;
#else
inline constexpr int64_t kGuardBytes = 256;
#endif

// All bits set, a NaN in every dtype.
template <typename T>
void poison(Storage<T>& storage) {
  std::memset(static_cast<void*>(storage.data()), 0xff, storage.size() * sizeof(T));
}

template <typename T>
bool is_poison(const T& element) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&element);
  return std::all_of(bytes, bytes + sizeof(T), [](unsigned char byte) { return byte == 0xff; });
}

template <typename T>
std::vector<unsigned char> bytes_of(const Storage<T>& storage) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(storage.data());
  return {bytes, bytes + storage.size() * sizeof(T)};
}

// The batch dimensions of a layout; where there is one, it has `items` items.
inline void set_batch_sizes(Problem& problem, Layout layout, int64_t items) {
  std::vector<int64_t> sizes = {items};
  if (layout == Layout::kContiguous) sizes = {};
  if (layout == Layout::kPermutedBatch) sizes = {2, items};
  if (layout == Layout::kManyBatches) sizes = {2, 1, 2, items - 1};
  problem.batch_dims = static_cast<int32_t>(sizes.size());
  std::copy(sizes.begin(), sizes.end(), problem.batch_sizes);
}

// NaN everywhere, in `elements` of the operand and around them.
template <typename T>
void allocate(Tensor<T>& tensor, int64_t elements) {
  const int64_t guard = kGuardBytes / static_cast<int64_t>(sizeof(T));
  tensor.storage.resize(tensor.start + elements + guard);
  poison(tensor.storage);
  tensor.operand.data = tensor.storage.data() + tensor.start;
}

// A tensor (batch..., N, columns) of NaN.
template <typename T>
Tensor<T> lay_out(const Problem& problem, Layout layout, int64_t columns) {
  Tensor<T> tensor;
  tensor.columns = columns;
  Operand& operand = tensor.operand;
  operand.row = columns;
  operand.column = 1;
  if (layout == Layout::kSliced) operand.row += tensor.start = 8;
  if (layout == Layout::kSlicedUnevenly) operand.row += tensor.start = 3;
  if (layout == Layout::kShifted) tensor.start = 1;
  int64_t batch = problem.length * operand.row;
  if (layout == Layout::kTransposed) {
    operand.row = 1;
    operand.column = problem.length;
  }
  for (int n = 0; n < problem.batch_dims; ++n) {
    const int d = layout == Layout::kPermutedBatch ? n : problem.batch_dims - 1 - n;
    operand.batch[d] = batch;
    batch *= problem.batch_sizes[d];
  }
  allocate(tensor, batch);
  return tensor;
}

template <typename T>
int64_t place(const Problem& problem, const Tensor<T>& tensor, int64_t b, int64_t i, int64_t c) {
  return tensor.start + batch_offset(problem, tensor.operand, b) + i * tensor.operand.row +
         c * tensor.operand.column;
}

// Calls body(place) for every element.
template <typename T, typename Body>
void for_each_place(const Problem& problem, const Tensor<T>& tensor, const Body& body) {
  for (int64_t b = 0; b < batch_count(problem); ++b) {
    for (int64_t i = 0; i < problem.length; ++i) {
      for (int64_t c = 0; c < tensor.columns; ++c) body(place(problem, tensor, b, i, c));
    }
  }
}

// An output as lay_out() makes it, or an input of normal numbers. Those that an expanded input
// leaves out differ from the ones it repeats: reading them shows in the result.
template <typename T>
Tensor<T> make_tensor(const Problem& problem, Layout layout, int64_t columns, Role role,
                      std::mt19937& random, double deviation = 1) {
  Tensor<T> tensor = lay_out<T>(problem, layout, columns);
  if (role == Role::kOutput) return tensor;
  std::normal_distribution<double> normal(0, deviation);
  for_each_place(problem, tensor, [&](int64_t place) {
    tensor.storage[place] = narrow<T>(static_cast<Accumulate<T>>(normal(random)));
  });
  if (layout == Layout::kExpandedBatch) tensor.operand.batch[0] = 0;
  if (layout == Layout::kExpandedRow) tensor.operand.row = 0;
  if (layout == Layout::kExpandedColumn) tensor.operand.column = 0;
  return tensor;
}

// Nothing but the output itself was written.
template <typename T>
void check_surroundings(const Problem& problem, const Tensor<T>& tensor,
                        const std::string& description) {
  std::vector<bool> inside(tensor.storage.size());
  for_each_place(problem, tensor, [&](int64_t place) { inside[place] = true; });
  for (size_t e = 0; e < inside.size(); ++e) {
    ASSERT_TRUE(inside[e] || is_poison(tensor.storage[e]))
        << description << ": element " << e << " outside of an output was written";
  }
}

// How messages call an element.
inline std::string where(const std::string& description, const char* name, int64_t b, int64_t i,
                         int64_t c) {
  return description + ": " + name + "[" + std::to_string(b) + ", " + std::to_string(i) + ", " +
         std::to_string(c) + "]";
}

inline ::testing::AssertionResult within(double bound, double actual, double expected) {
  if (std::abs(actual - expected) <= bound) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "got " << actual << ", expected " << expected << " within " << bound;
}

template <typename T>
class Instance {
 public:
  Tensor<T> weight, value, grad, result, dots;

  explicit Instance(const Case& c) : case_(c), random_(17) {
    problem_.length = c.length;
    problem_.channels = c.channels;
    problem_.links = c.links;
    set_batch_sizes(problem_, c.layout, 3);
    set_offsets();
    weight = make(c.links, Role::kInput);
    value = make(c.channels, Role::kInput);
    grad = make(c.channels, Role::kInput);
    result = make(c.channels, Role::kOutput);
    dots = make(c.links, Role::kOutput);
  }

  // Operands as they are now: a test may have pointed them to other memory.
  Problem problem() const {
    Problem problem = problem_;
    problem.weight = weight.operand;
    problem.value = value.operand;
    problem.grad = grad.operand;
    problem.result = result.operand;
    problem.dots = dots.operand;
    return problem;
  }

  void poison_outputs() {
    poison(result.storage);
    poison(dots.storage);
  }

  // Both outputs with their surroundings, to compare bit by bit.
  std::vector<unsigned char> output_bytes() const {
    auto bytes = bytes_of(result.storage);
    const auto more = bytes_of(dots.storage);
    bytes.insert(bytes.end(), more.begin(), more.end());
    return bytes;
  }

  // Compares what `kernel` has written with the definition, evaluated in float64.
  void check(Kernel kernel) const {
    const bool makes_dots = kernel == Kernel::kLinkDot || kernel == Kernel::kMixBackward;
    if (makes_dots) check_dots();
    if (kernel == Kernel::kMix) check_result(value, false);
    if (kernel == Kernel::kMixTranspose) check_result(value, true);
    if (kernel == Kernel::kMixBackward) check_result(grad, true);
    check_surroundings(problem_, result, describe(case_));
    check_surroundings(problem_, dots, describe(case_));
  }

  // Compares the result with the rotation of the value, bit by bit.
  void check(const Rotation& rotation) const {
    const T zero{};
    for (int64_t b = 0; b < batch_count(problem_); ++b) {
      const int64_t ring = rotation.lengths ? rotation.lengths[b] : case_.length;
      for (int64_t i = 0; i < case_.length; ++i) {
        for (int64_t c = 0; c < case_.channels; ++c) {
          const int64_t shift = rotation.problem.offsets[c / rotation.track_width()];
          const T& expected =
              i < ring ? value.storage[place(problem_, value, b, reduce_offset(i + shift, ring), c)]
                       : zero;
          const T& actual = result.storage[place(problem_, result, b, i, c)];
          ASSERT_EQ(std::memcmp(&actual, &expected, sizeof(T)), 0)
              << where(describe(case_), "result", b, i, c);
        }
      }
    }
    check_surroundings(problem_, result, describe(case_));
  }

 private:
  struct Sum {
    double value = 0;
    double magnitude = 0;  // the sum of the terms' magnitudes, which bounds the rounding errors
    int64_t terms = 0;

    void add(double term) {
      value += term;
      magnitude += std::abs(term);
      ++terms;
    }
  };

  // Chord-like offsets, some of them equal, with the last position of the ring among them.
  void set_offsets() {
    for (int k = 0; k < case_.links; ++k) {
      const int64_t offset = k % 5 == 4 ? -1 : k == 0 ? 0 : int64_t{1} << (k % 7);
      problem_.offsets[k] = reduce_offset(offset * case_.reach, case_.length);
    }
  }

  Tensor<T> make(int64_t columns, Role role) {
    return make_tensor<T>(problem_, case_.layout, columns, role, random_);
  }

  double at(const Tensor<T>& tensor, int64_t b, int64_t i, int64_t c) const {
    return widen(tensor.storage[place(problem_, tensor, b, i, c)]);
  }

  void check_result(const Tensor<T>& source, bool transpose) const {
    for (int64_t b = 0; b < batch_count(problem_); ++b) {
      for (int64_t i = 0; i < case_.length; ++i) {
        for (int64_t c = 0; c < case_.channels; ++c) {
          Sum sum;
          for (int k = 0; k < case_.links; ++k) {
            const int64_t offset = problem_.offsets[k];
            const int64_t other = reduce_offset(transpose ? i - offset : i + offset, case_.length);
            sum.add(at(weight, b, transpose ? other : i, k) * at(source, b, other, c));
          }
          ASSERT_TRUE(close(at(result, b, i, c), sum)) << where(describe(case_), "result", b, i, c);
        }
      }
    }
  }

  void check_dots() const {
    for (int64_t b = 0; b < batch_count(problem_); ++b) {
      for (int64_t i = 0; i < case_.length; ++i) {
        for (int k = 0; k < case_.links; ++k) {
          const int64_t other = reduce_offset(i + problem_.offsets[k], case_.length);
          Sum sum;
          for (int64_t c = 0; c < case_.channels; ++c) {
            sum.add(at(grad, b, i, c) * at(value, b, other, c));
          }
          ASSERT_TRUE(close(at(dots, b, i, k), sum)) << where(describe(case_), "dots", b, i, k);
        }
      }
    }
  }

  // One rounding for each term and its sum in the accumulator, one for the store; float16 is
  // denormal below 2^-14.
  static ::testing::AssertionResult close(double actual, const Sum& expected) {
    const double bound = (expected.terms + 1) * epsilon<Accumulate<T>>() * expected.magnitude +
                         epsilon<T>() / 2 * std::abs(expected.value) * 1.01 +
                         (std::is_same_v<T, Float16> ? std::ldexp(1.0, -25) : 0.0);
    return within(bound, actual, expected.value);
  }

  Case case_;
  Problem problem_;
  std::mt19937 random_;
};

inline constexpr Kernel kKernels[] = {Kernel::kMix, Kernel::kMixTranspose, Kernel::kLinkDot,
                                      Kernel::kMixBackward};

inline const char* name_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::kMix:
      return "mix";
    case Kernel::kMixTranspose:
      return "mix_transpose";
    case Kernel::kLinkDot:
      return "link_dot";
    case Kernel::kMixBackward:
      break;
  }
  return "mix_backward";
}

using DTypes = ::testing::Types<double, float, BFloat16, Float16>;

}  // namespace paramixer::testing
