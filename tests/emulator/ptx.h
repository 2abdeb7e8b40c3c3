// The emulator's half of cuda/primitives.cuh, where the functions are documented. What they do to
// memory is done here, in the kernel's translation unit, so that sanitizers see the thread do it.
// Included by simt.h.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "simt.h"
#include "warp.h"

namespace ptx {

namespace detail {

using simt::detail::AsyncCopy;
using simt::detail::Lanes;

inline constexpr unsigned kRows = 8;  // of a matrix that ldmatrix loads
inline constexpr unsigned kRowBytes = 16;

struct MatrixRows {
  std::uint16_t row[kRows];   // that this lane has loaded
  std::uint32_t fragment[4];  // that it receives
};

template <bool kTranspose, unsigned kMatrices>
void deal_fragments(Lanes<MatrixRows> lanes) {
  for (unsigned lane = 0; lane < simt::kWarp; ++lane) {
    const unsigned outer = lane / 4, inner = 2 * (lane % 4);
    for (unsigned matrix = 0; matrix < kMatrices; ++matrix) {
      const auto element = [&](unsigned row, unsigned column) -> std::uint32_t {
        return lanes[kRows * matrix + row].row[column];
      };
      const std::uint32_t low = kTranspose ? element(inner, outer) : element(outer, inner);
      const std::uint32_t high = kTranspose ? element(inner + 1, outer) : element(outer, inner + 1);
      lanes[lane].fragment[matrix] = low | high << 16;
    }
  }
}

template <bool kTranspose, int kMatrices>
void load_matrices(const char* name, std::uint32_t (&fragment)[kMatrices], const void* row,
                   const std::source_location& where) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  MatrixRows operand{};
  if (simt::detail::lane_index() < kRows * kMatrices) {
    simt::detail::check_shared(row, kRowBytes, kRowBytes, where);
    std::memcpy(operand.row, row, kRowBytes);
  }
  simt::detail::meet(name, simt::detail::kAllLanes, operand, where,
                     [](Lanes<MatrixRows> lanes) { deal_fragments<kTranspose, kMatrices>(lanes); });
  std::memcpy(fragment, operand.fragment, sizeof(fragment));
}

inline float widen_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

inline float widen_f16(std::uint16_t bits) {
  const int exponent = bits >> 10 & 0x1f;
  const int fraction = bits & 0x3ff;
  float magnitude = std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  if (exponent == 0) magnitude = std::ldexp(static_cast<float>(fraction), -24);
  if (exponent == 0x1f) magnitude = fraction ? NAN : INFINITY;
  return bits & 0x8000 ? -magnitude : magnitude;
}

struct Fragments {
  std::uint32_t a[4];
  std::uint32_t b[2];
  float sum[4];
};

// Products are exact in float32; they are added one by one, in the order of k.
template <float (*kWiden)(std::uint16_t)>
void multiply(Lanes<Fragments> lanes) {
  float a[16][16], b[16][8];
  for (unsigned lane = 0; lane < simt::kWarp; ++lane) {
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned half = 0; half < 2; ++half) {
      const auto element = [&](std::uint32_t pair) {
        return kWiden(static_cast<std::uint16_t>(pair >> 16 * half));
      };
      for (unsigned i = 0; i < 4; ++i) {
        a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + half] = element(lanes[lane].a[i]);
      }
      for (unsigned i = 0; i < 2; ++i) b[2 * t + 8 * i + half][g] = element(lanes[lane].b[i]);
    }
  }
  for (unsigned lane = 0; lane < simt::kWarp; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      for (unsigned k = 0; k < 16; ++k) lanes[lane].sum[i] += a[row][k] * b[k][column];
    }
  }
}

template <float (*kWiden)(std::uint16_t)>
void multiply_fragments(const char* name, float (&sum)[4], const std::uint32_t (&a)[4],
                        const std::uint32_t (&b)[2], const std::source_location& where) {
  Fragments operand;
  std::memcpy(operand.a, a, sizeof(a));
  std::memcpy(operand.b, b, sizeof(b));
  std::memcpy(operand.sum, sum, sizeof(sum));
  simt::detail::meet(name, simt::detail::kAllLanes, operand, where,
                     [](Lanes<Fragments> lanes) { multiply<kWiden>(lanes); });
  std::memcpy(sum, operand.sum, sizeof(sum));
}

inline void land(const AsyncCopy& copy) {
  simt::detail::allow_access(copy.shared, copy.bytes);
  char* target = static_cast<char*>(copy.shared);
  if (copy.source_bytes > 0) std::memcpy(target, copy.global, copy.source_bytes);
  std::memset(target + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

}  // namespace detail

template <int kMatrices>
void ldmatrix(std::uint32_t (&fragment)[kMatrices], const void* row,
              const std::source_location where = std::source_location::current()) {
  detail::load_matrices<false>(__func__, fragment, row, where);
}

template <int kMatrices>
void ldmatrix_trans(std::uint32_t (&fragment)[kMatrices], const void* row,
                    const std::source_location where = std::source_location::current()) {
  detail::load_matrices<true>(__func__, fragment, row, where);
}

inline void mma_m16n8k16_bf16(float (&sum)[4], const std::uint32_t (&a)[4],
                              const std::uint32_t (&b)[2],
                              const std::source_location where = std::source_location::current()) {
  detail::multiply_fragments<detail::widen_bf16>(__func__, sum, a, b, where);
}

inline void mma_m16n8k16_f16(float (&sum)[4], const std::uint32_t (&a)[4],
                             const std::uint32_t (&b)[2],
                             const std::source_location where = std::source_location::current()) {
  detail::multiply_fragments<detail::widen_f16>(__func__, sum, a, b, where);
}

// Until its wait the target holds poison, and nothing may touch it.
template <int kBytes>
void cp_async(void* shared, const void* global, int source_bytes = kBytes,
              const std::source_location where = std::source_location::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if (source_bytes < 0 || source_bytes > kBytes) {
    simt::detail::fail("cp_async of " + std::to_string(kBytes) + " bytes cannot read " +
                           std::to_string(source_bytes),
                       where);
  }
  simt::detail::check_shared(shared, kBytes, kBytes, where);
  if (reinterpret_cast<std::uintptr_t>(global) % kBytes != 0) {
    simt::detail::fail("misaligned address: cp_async reads " + std::to_string(kBytes) +
                           " bytes from an address that is no multiple of it",
                       where);
  }
  std::memset(shared, 0xff, kBytes);
  simt::detail::forbid_access(shared, kBytes);
  simt::detail::async_copies().open.push_back(
      {shared, global, kBytes, static_cast<std::size_t>(source_bytes), where});
}

inline void cp_async_commit_group() {
  simt::detail::AsyncCopies& copies = simt::detail::async_copies();
  copies.groups.push_back(std::exchange(copies.open, {}));
}

template <int kPending>
void cp_async_wait_group() {
  static_assert(kPending >= 0);
  auto& groups = simt::detail::async_copies().groups;
  if (groups.size() <= kPending) return;
  const auto end = groups.end() - kPending;
  for (auto group = groups.begin(); group != end; ++group) {
    for (const simt::detail::AsyncCopy& copy : *group) detail::land(copy);
  }
  groups.erase(groups.begin(), end);
}

inline void bar_sync(int id, int threads,
                     const std::source_location where = std::source_location::current()) {
  simt::detail::wait_for_threads(id, threads, where);
}

}  // namespace ptx
