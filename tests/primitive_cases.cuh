// Every function of cuda/primitives.cuh and every warp collective, with what it must compute: the
// emulator's tests and the tests on a GPU run the same kernels. One block; all data are words.
//
// Include what defines the words of CUDA first.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "primitives.cuh"

namespace paramixer::testing {

using Word = std::uint32_t;
using Words = std::vector<Word>;
using WordKernel = void (*)(const Word* input, Word* output);

inline constexpr int kPrimitiveThreads = 128;

struct PrimitiveCase {
  const char* name;
  WordKernel kernel;
  Words input;
  Words expected;
};

// ---- shuffles, votes and reductions, of whole warps and of parts of them

inline constexpr int kCollectives = 14;
inline constexpr Word kOddLanes = 0xaaaaaaaau;

static __global__ void collectives_kernel(const Word* input, Word* output) {
  const Word all = 0xffffffffu;
  const Word lane = threadIdx.x % 32;
  const Word x = input[threadIdx.x];
  Word* out = output + threadIdx.x * kCollectives;
  out[0] = __shfl_xor_sync(all, x, 5);
  out[1] = __shfl_xor_sync(all, x, 16, 8);
  out[2] = __shfl_down_sync(all, x, 3);
  out[3] = __shfl_down_sync(all, x, 3, 8);
  out[4] = __shfl_up_sync(all, x, 3);
  out[5] = __shfl_up_sync(all, x, 3, 8);
  out[6] = __shfl_sync(all, x, 37);
  out[7] = __shfl_sync(all, x, 6, 4);
  out[8] = __ballot_sync(all, x % 3 == 0);
  out[9] = static_cast<Word>(2 * __any_sync(all, x == 40) + __all_sync(all, x < 120));
  out[10] = __reduce_add_sync(all, x);
  out[11] = __reduce_max_sync(all, x) - __reduce_min_sync(all, x);
  out[12] = out[13] = 0;
  if (lane % 2 == 1) {
    out[12] = __shfl_xor_sync(kOddLanes, x, 2);
    out[13] = __reduce_add_sync(kOddLanes, x) + __ballot_sync(kOddLanes, lane > 15);
  }
  __syncwarp();
}

inline PrimitiveCase collectives_case() {
  PrimitiveCase c{"collectives", collectives_kernel, Words(kPrimitiveThreads), {}};
  for (Word i = 0; i < kPrimitiveThreads; ++i) c.input[i] = i * 37 % kPrimitiveThreads;
  for (Word i = 0; i < kPrimitiveThreads; ++i) {
    const Word lane = i % 32;
    const Word* warp = &c.input[i - lane];
    Word ballot = 0, any = 0, all = 1, sum = 0, odd_sum = 0, least = ~0u, most = 0;
    for (Word l = 0; l < 32; ++l) {
      ballot |= (warp[l] % 3 == 0 ? 1u : 0u) << l;
      any |= warp[l] == 40;
      all &= warp[l] < 120;
      sum += warp[l];
      odd_sum += l % 2 ? warp[l] : 0;
      least = warp[l] < least ? warp[l] : least;
      most = warp[l] > most ? warp[l] : most;
    }
    const Word row[kCollectives] = {
        warp[lane ^ 5],
        lane < 16 ? warp[lane] : warp[lane ^ 16],  // earlier segments can be read, later cannot
        warp[lane + 3 < 32 ? lane + 3 : lane],
        warp[lane % 8 + 3 < 8 ? lane + 3 : lane],
        warp[lane >= 3 ? lane - 3 : lane],
        warp[lane % 8 >= 3 ? lane - 3 : lane],
        warp[5],
        warp[lane / 4 * 4 + 2],
        ballot,
        2 * any + all,
        sum,
        most - least,
        lane % 2 ? warp[lane ^ 2] : 0,
        lane % 2 ? odd_sum + 0xaaaa0000u : 0};
    c.expected.insert(c.expected.end(), row, row + kCollectives);
  }
  return c;
}

// ---- ldmatrix and mma: each warp multiplies a 16 x 16 by a 16 x 8 matrix

inline constexpr int kAWords = 16 * 16 / 2;
inline constexpr int kBWords = 16 * 8 / 2;
inline constexpr int kSums = 16 * 8;
inline constexpr int kFragments = 8 * 32;  // that one warp loads besides

template <bool kBFloat16>
static __global__ void matrices_kernel(const Word* input, Word* output) {
  PARAMIXER_SHARED(Word, tile, 4 * (kAWords + kBWords));
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  Word* a_tile = tile + warp * (kAWords + kBWords);
  Word* b_tile = a_tile + kAWords;
  const Word* source = input + warp * (kAWords + kBWords);
  ptx::cp_async<16>(a_tile + 4 * lane, source + 4 * lane);
  if (lane < 16) ptx::cp_async<16>(b_tile + 4 * lane, source + kAWords + 4 * lane);
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
  __syncwarp();

  Word a[4], b[2];
  const Word* a_row = a_tile + 8 * (lane % 16) + 4 * (lane / 16);
  const Word* b_row = b_tile + 4 * (lane % 16);
  ptx::ldmatrix(a, a_row);
  ptx::ldmatrix_trans(b, b_row);
  float sum[4] = {1, 1, 1, 1};
  for (int repeat = 0; repeat < 2; ++repeat) {
    if (kBFloat16) {
      ptx::mma_m16n8k16_bf16(sum, a, b);
    } else {
      ptx::mma_m16n8k16_f16(sum, a, b);
    }
  }
  Word* out = output + warp * (kSums + kFragments);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    reinterpret_cast<float*>(out)[8 * row + column] = sum[i];
  }

  Word one[1], two[2], one_trans[1], four_trans[4];
  ptx::ldmatrix(one, b_row);
  ptx::ldmatrix(two, b_row);
  ptx::ldmatrix_trans(one_trans, b_row);
  ptx::ldmatrix_trans(four_trans, a_row);
  const Word fragments[8] = {one[0],        two[0],        two[1],        one_trans[0],
                             four_trans[0], four_trans[1], four_trans[2], four_trans[3]};
  for (int i = 0; i < 8; ++i) out[kSums + 32 * i + lane] = fragments[i];
}

// Small integers, so that every product and sum is exact.
inline int element_of(int warp, int matrix, int row, int column) {
  return (warp * 5 + matrix * 3 + row * 7 + column * 11 + row * column) % 9 - 4;
}

template <bool kBFloat16>
Word bits_of(int x) {
  if (kBFloat16) return std::bit_cast<Word>(static_cast<float>(x)) >> 16;
  const Word magnitude = static_cast<Word>(x < 0 ? -x : x);
  const Word exponent = static_cast<Word>(std::bit_width(magnitude)) - 1;
  const Word half = magnitude ? (exponent + 15) << 10 | (magnitude << (10 - exponent) & 0x3ff) : 0;
  return half | (x < 0 ? 0x8000u : 0u);
}

template <bool kBFloat16>
PrimitiveCase matrices_case() {
  PrimitiveCase c{kBFloat16 ? "matrices of bfloat16" : "matrices of float16",
                  matrices_kernel<kBFloat16>,
                  {},
                  {}};
  for (int warp = 0; warp < kPrimitiveThreads / 32; ++warp) {
    const auto pair = [&](int matrix, int row, int column, bool down = false) {
      return bits_of<kBFloat16>(element_of(warp, matrix, row, column)) |
             bits_of<kBFloat16>(element_of(warp, matrix, row + down, column + !down)) << 16;
    };
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 16; column += 2) c.input.push_back(pair(0, row, column));
    }
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; column += 2) c.input.push_back(pair(1, row, column));
    }
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        int sum = 0;
        for (int k = 0; k < 16; ++k) {
          sum += element_of(warp, 0, row, k) * element_of(warp, 1, k, column);
        }
        c.expected.push_back(std::bit_cast<Word>(static_cast<float>(1 + 2 * sum)));
      }
    }
    // The rows of b are one matrix below the other; those of a are two beside two.
    struct Block {
      int matrix, row, column;
      bool transposed;
    };
    const Block blocks[8] = {{1, 0, 0, false}, {1, 0, 0, false}, {1, 8, 0, false}, {1, 0, 0, true},
                             {0, 0, 0, true},  {0, 8, 0, true},  {0, 0, 8, true},  {0, 8, 8, true}};
    for (const Block& block : blocks) {
      for (int lane = 0; lane < 32; ++lane) {
        const int outer = lane / 4, inner = 2 * (lane % 4);
        c.expected.push_back(block.transposed
                                 ? pair(block.matrix, block.row + inner, block.column + outer, true)
                                 : pair(block.matrix, block.row + outer, block.column + inner));
      }
    }
  }
  return c;
}

// ---- cp_async: three groups of 4, 8 and 16 bytes, read in part, of which two stay in flight

inline constexpr int kCopyWords = 1 + 2 + 4;

static __global__ void copies_kernel(const Word* input, Word* output) {
  PARAMIXER_DYNAMIC_SHARED(Word, tile);
  const int t = static_cast<int>(threadIdx.x);
  Word* fours = tile;
  Word* eights = fours + kPrimitiveThreads;
  Word* sixteens = eights + 2 * kPrimitiveThreads;
  const Word* source = input;
  ptx::cp_async<4>(fours + t, source + t);
  ptx::cp_async_commit_group();
  source += kPrimitiveThreads;
  ptx::cp_async<8>(eights + 2 * t, source + 2 * t, t % 9);
  ptx::cp_async_commit_group();
  source += 2 * kPrimitiveThreads;
  ptx::cp_async<16>(sixteens + 4 * t, source + 4 * t, t % 17);
  ptx::cp_async_commit_group();

  Word* out = output + kCopyWords * t;
  const int other = (t + 32) % kPrimitiveThreads;
  ptx::cp_async_wait_group<2>();
  __syncthreads();
  out[0] = fours[other];
  ptx::cp_async_wait_group<1>();
  __syncthreads();
  for (int i = 0; i < 2; ++i) out[1 + i] = eights[2 * other + i];
  ptx::cp_async_wait_group<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[3 + i] = sixteens[4 * other + i];
}

inline PrimitiveCase copies_case() {
  PrimitiveCase c{"copies", copies_kernel, Words(kCopyWords * kPrimitiveThreads), {}};
  for (Word i = 0; i < c.input.size(); ++i) c.input[i] = 0x01010101u * (i % 251 + 1);
  for (int t = 0; t < kPrimitiveThreads; ++t) {
    const int other = (t + 32) % kPrimitiveThreads;
    // The first `bytes` bytes of a word; the rest is zero.
    const auto keep = [](Word word, int bytes) {
      return bytes >= 4 ? word : bytes <= 0 ? 0 : word & ((1u << 8 * bytes) - 1);
    };
    const Word* source = c.input.data();
    c.expected.push_back(source[other]);
    source += kPrimitiveThreads;
    for (int i = 0; i < 2; ++i) {
      c.expected.push_back(keep(source[2 * other + i], other % 9 - 4 * i));
    }
    source += 2 * kPrimitiveThreads;
    for (int i = 0; i < 4; ++i) {
      c.expected.push_back(keep(source[4 * other + i], other % 17 - 4 * i));
    }
  }
  return c;
}

// ---- named barriers: the first and the second pair of warps go their own ways

static __global__ void named_barriers_kernel(const Word* input, Word* output) {
  PARAMIXER_SHARED(Word, tile, kPrimitiveThreads);
  constexpr int kHalf = kPrimitiveThreads / 2;
  const int t = static_cast<int>(threadIdx.x), half = t / kHalf;
  tile[t] = input[t];
  Word sum = 0;
  for (int round = 0; round < (half == 0 ? 3 : 5); ++round) {
    ptx::bar_sync(1 + half, kHalf);
    sum += tile[half * kHalf + (t + round + 1) % kHalf];
  }
  __syncthreads();
  output[t] = sum + tile[(t + kHalf) % kPrimitiveThreads];
}

inline PrimitiveCase named_barriers_case() {
  PrimitiveCase c{"named barriers", named_barriers_kernel, Words(kPrimitiveThreads), {}};
  for (Word i = 0; i < kPrimitiveThreads; ++i) c.input[i] = 1 + i * i;
  const int half_threads = kPrimitiveThreads / 2;
  for (int t = 0; t < kPrimitiveThreads; ++t) {
    const int half = t / half_threads;
    Word sum = c.input[(t + half_threads) % kPrimitiveThreads];
    for (int round = 0; round < (half == 0 ? 3 : 5); ++round) {
      sum += c.input[half * half_threads + (t + round + 1) % half_threads];
    }
    c.expected.push_back(sum);
  }
  return c;
}

inline constexpr int kPrimitiveSharedBytes = kCopyWords * kPrimitiveThreads * 4;

inline std::vector<PrimitiveCase> primitive_cases() {
  return {collectives_case(), matrices_case<true>(), matrices_case<false>(), copies_case(),
          named_barriers_case()};
}

}  // namespace paramixer::testing
