#include "shared_memory.h"

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

namespace simt {
namespace {

// Arrays are aligned to this and to no more, so that what needs more shows here too.
constexpr std::size_t kAlignment = 16;
constexpr std::size_t kGuardBytes = 64;
constexpr std::size_t kMaxArrays = 64;
constexpr std::size_t kMemoryBytes =
    SharedMemory::kBytes + kMaxArrays * (kGuardBytes + 2 * kAlignment) + 2 * kGuardBytes;
// A NaN in every floating-point type.
constexpr std::uint64_t kPoison = ~std::uint64_t{0};
constexpr std::align_val_t kMemoryAlignment{2 * kAlignment};

// Neither of these is a memset or a memcmp, which sanitizers see everywhere: this is the
// emulator's doing, not a thread's.

__attribute__((no_sanitize("address", "thread"))) void fill_with_poison(char* begin, char* end) {
  auto* words = reinterpret_cast<volatile std::uint64_t*>(begin);
  for (std::ptrdiff_t i = 0; i < (end - begin) / 8; ++i) words[i] = kPoison;
}

__attribute__((no_sanitize("address", "thread"))) bool is_poison(const char* begin,
                                                                 const char* end) {
  // Byte by byte up to whole words: arrays end anywhere.
  for (; begin != end && reinterpret_cast<std::uintptr_t>(begin) % 8 != 0; ++begin) {
    if (*reinterpret_cast<const unsigned char*>(begin) != 0xff) return false;
  }
  std::uint64_t words = kPoison;
  for (; begin != end; begin += 8) words &= *reinterpret_cast<const std::uint64_t*>(begin);
  return words == kPoison;
}

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

SharedMemory::SharedMemory()
    : memory_(static_cast<char*>(::operator new(kMemoryBytes, kMemoryAlignment))) {
  fill_with_poison(memory_, memory_ + kMemoryBytes);
}

SharedMemory::~SharedMemory() {
  ASAN_UNPOISON_MEMORY_REGION(memory_, kMemoryBytes);
  ::operator delete(memory_, kMemoryAlignment);
}

void SharedMemory::reset(std::size_t dynamic_bytes) {
  fill_with_poison(memory_, memory_ + used_);
  ASAN_POISON_MEMORY_REGION(memory_, kMemoryBytes);
  arrays_.clear();
  used_ = kGuardBytes;
  add(nullptr, "dynamic shared memory", dynamic_bytes);
}

void SharedMemory::poison() {
  fill_with_poison(memory_, memory_ + used_);
  for ([[maybe_unused]] const Array& array : arrays_) {
    ASAN_UNPOISON_MEMORY_REGION(array.data, array.bytes);
  }
}

void* SharedMemory::add(const void* key, const char* name, std::size_t bytes) {
  char* const data = memory_ + round_up(used_, 2 * kAlignment) + kAlignment;
  used_ = round_up(static_cast<std::size_t>(data - memory_) + bytes + kGuardBytes, 8);
  arrays_.push_back({key, name, data, bytes});
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
  return data;
}

void* SharedMemory::find_or_add(const void* key, const char* name, std::size_t bytes) {
  std::size_t static_bytes = 0;
  for (const Array& array : arrays_) {
    if (array.key == key) return array.data;
    if (array.key) static_bytes += round_up(array.bytes, kAlignment);
  }
  static_bytes += round_up(bytes, kAlignment);
  const bool fits = static_bytes <= kStaticBytes && arrays_.size() < kMaxArrays &&
                    arrays_.front().bytes + static_bytes <= kBytes;
  return fits ? add(key, name, bytes) : nullptr;
}

bool SharedMemory::contains(const void* address, std::size_t bytes) const {
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  for (const Array& array : arrays_) {
    const auto start = reinterpret_cast<std::uintptr_t>(array.data);
    if (begin >= start && begin + bytes <= start + array.bytes) return true;
  }
  return false;
}

const char* SharedMemory::damaged() const {
  for (const Array& array : arrays_) {
    if (array.bytes == 0) continue;
    const char* const end = array.data + array.bytes;
    const char* const guard_end = end + kGuardBytes - array.bytes % 8;
    if (!is_poison(array.data - kAlignment, array.data) || !is_poison(end, guard_end)) {
      return array.name;
    }
  }
  return nullptr;
}

}  // namespace simt
