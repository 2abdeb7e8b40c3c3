// What kernels need beyond CUDA C++: shared memory by macro, and a few PTX instructions under their
// own names. Compute capability 8.0 and later; each is documented by the PTX manual.
//
// This is nvcc's half. On the host the emulator defines the same names (tests/emulator/simt.h and
// ptx.h) before it includes a kernel file.
#pragma once

#if defined(__CUDACC__)

#include <cstdint>

// An array of `count` elements that the threads of a block share, aligned to 16 bytes.
#define PARAMIXER_SHARED(type, name, count) __shared__ __align__(16) type name[count]
// The shared memory whose size the launch gives, aligned to 16 bytes. Once per kernel.
#define PARAMIXER_DYNAMIC_SHARED(type, name)                  \
  extern __shared__ __align__(16) unsigned char name##_raw[]; \
  type* const name = reinterpret_cast<type*>(name##_raw)

namespace ptx {

namespace detail {

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

}  // namespace detail

// ---- matrices of 16-bit elements

// Loads kMatrices (1, 2 or 4) matrices of 8 x 8 elements from shared memory. Lane 8 i + r gives the
// address of row r of matrix i, a multiple of 16 bytes; fragment[i] of lane l holds row l / 4,
// columns 2 (l % 4) and the next. All lanes of the warp call it.
template <int kMatrices>
__device__ __forceinline__ void ldmatrix(std::uint32_t (&fragment)[kMatrices], const void* row) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  const unsigned address = detail::shared_address(row);
  if constexpr (kMatrices == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(fragment[0])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(fragment[0]), "=r"(fragment[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(address)
                 : "memory");
  }
}

// The same matrices transposed: fragment[i] of lane l holds column l / 4, rows 2 (l % 4) and the
// next.
template <int kMatrices>
__device__ __forceinline__ void ldmatrix_trans(std::uint32_t (&fragment)[kMatrices],
                                               const void* row) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  const unsigned address = detail::shared_address(row);
  if constexpr (kMatrices == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(fragment[0])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(fragment[0]), "=r"(fragment[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(address)
                 : "memory");
  }
}

// sum (16 x 8) += a (16 x 16) b (16 x 8) in float32. With g = lane / 4 and t = lane % 4:
//   sum: rows g, g, g + 8, g + 8, columns 2 t, 2 t + 1, 2 t, 2 t + 1
//   a:   pairs in rows g, g + 8, g, g + 8 at columns 2 t, 2 t, 2 t + 8, 2 t + 8
//   b:   pairs in column g at rows 2 t, 2 t + 8
// ldmatrix<4> brings a from rows, ldmatrix_trans<2> brings b from rows. All lanes of the warp call
// it.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&sum)[4], const std::uint32_t (&a)[4],
                                                  const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_m16n8k16_f16(float (&sum)[4], const std::uint32_t (&a)[4],
                                                 const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- asynchronous copies to shared memory

// Begins to copy kBytes (4, 8 or 16), to which both addresses are aligned. Only `source_bytes` of
// them are read, the rest becomes zeros. The copy is there for the thread that began it after its
// wait, and for others after a barrier behind that wait.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global,
                                         int source_bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const unsigned target = detail::shared_address(shared);
  const std::size_t source = __cvta_generic_to_global(global);
  if constexpr (kBytes == 16) {  // past L1, which only whole 16 bytes can
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(target), "l"(source), "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(target), "l"(source), "n"(kBytes), "r"(source_bytes)
                 : "memory");
  }
}

// The copies begun since the last call become a group.
__device__ __forceinline__ void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" : : : "memory");
}

// Waits for all of this thread's groups but the latest kPending.
template <int kPending>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

// ---- named barriers

// Waits until `threads` threads of the block, in whole warps, have come to barrier `id` (1 to 15;
// 0 is __syncthreads').
__device__ __forceinline__ void bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

}  // namespace ptx

#endif
