// Large pages for large fresh memory: a page fault for every 4 KiB costs more than most kernels.
#pragma once

#include <sys/mman.h>

#include <cstdint>

namespace paramixer::cpu {

inline constexpr int64_t kHugePage = int64_t{2} << 20;

// Asks the kernel to back the whole pages inside the block with large ones, where it has none yet.
inline void advise_huge_pages(void* block, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  const auto begin = (reinterpret_cast<uintptr_t>(block) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(block) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace paramixer::cpu
