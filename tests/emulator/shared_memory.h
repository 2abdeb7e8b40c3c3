// The shared memory of one block: arrays between guards, all of it NaN until it is written.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace simt {

class SharedMemory {
 public:
  // What a block of compute capability 9.0 or 10.0 can have, and the part of it that needs no
  // opt-in and so bounds static arrays.
  static constexpr std::size_t kBytes = 227 * 1024;
  static constexpr std::size_t kStaticBytes = 48 * 1024;

  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Forgets all arrays but the dynamic one, whose size this is.
  void reset(std::size_t dynamic_bytes);
  // What a new block finds.
  void poison();

  void* dynamic() const { return arrays_.front().data; }
  // The array of this key, made on first use; null where there is no room for it.
  void* find_or_add(const void* key, const char* name, std::size_t bytes);

  // All of it in one array.
  bool contains(const void* address, std::size_t bytes) const;
  // The name of an array beside which something was written; null where there is none.
  const char* damaged() const;

 private:
  struct Array {
    const void* key;
    const char* name;
    char* data;
    std::size_t bytes;
  };

  void* add(const void* key, const char* name, std::size_t bytes);

  char* memory_;
  std::size_t used_ = 0;  // beyond it, everything is poison
  std::vector<Array> arrays_;
};

}  // namespace simt
