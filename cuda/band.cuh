// Several factors of dilated links (CDIL) at once, on tensor cores, for 16-bit types:
//
//   Y = S_{F-1} .. S_1 S_0 V      or, transposed,  Y = S_0^T S_1^T .. S_{F-1}^T V
//
// Along a class of rows (band_pass.h) kMerged consecutive factors make one band matrix: row i of
// the product has kTaps coefficients, which depend on the row alone and serve all channels. A block
// takes kRows rows of a class times kChannels channels, kept in shared memory from the first factor
// to the last, and does for every band of the pass:
//
//   compose   a thread makes a row's coefficients from the weights of kMerged factors, in float32,
//             rounded once to T
//   multiply  a warp takes 16 rows that are neighbours in the band, and by mma.m16n8k16 adds up the
//             window of 16 kSteps rows that they link to (32 for K = 3); the sums stay in registers
//             until every warp has read, then they replace the rows, rounded once to T
//
// while the next band's weights arrive. Residual "previous" adds the identity to every factor. The
// band then holds the product less the identity, and the row itself is added in float32: rounding
// the coefficient 1 + w would cost more than all the roundings of a chain of single factors.
//
// Numerics: V and coefficients are rounded once a band, where single factors round V once each. On
// random data the 2-norm error is 0.63 to 0.98 times theirs for K = 3, the same for a single
// factor, and, where two factors merge, the same without the residual and 0.75 to 0.97 times with
// it. A coefficient is a product of up to kMerged weights: in float16 it overflows where they are
// beyond 40 (K = 3) or 250. The window multiplies zeros, and zero times infinity is NaN: a value
// that is not finite may spread to rows that have no links to it, in its channel and the tiles that
// read it.
//
// Bytes of device memory per element of Y: 2 (1 + halo) of V, 2 of Y, and for every 64 channels
// 2 F K / D of W; halo = 2 margin / (512 - 2 margin) in long classes, 0 in a closed tile. The copy
// of these is the bound that the kernel should reach. It does not yet: about 16 instructions an
// element and band are issued (K = 3), a third of them for coefficients, which at F <= 9 takes
// longer than the copy; scripts/benchmarks/NOTES.md counts them. In shared memory a band reads the
// tile kSteps times and writes it once, and a row's coefficients twice: 2.8 bytes per element and
// factor for K = 3.
#pragma once

#include <type_traits>

#include "band_pass.h"
#include "device.cuh"
#include "primitives.cuh"

namespace paramixer::cuda {

template <typename T>
struct BandArguments {
  View<const T, int64_t> weight;  // of factor 0
  View<const T, int64_t> value;
  View<T, int64_t> result;
  int weight_row, value_row, result_row;  // strides once more: narrow, for one multiplication
  int64_t weight_factor;
  int64_t step;
  int64_t batch_sizes[kMaxBatchDims];
  int batch_dims;
  int length, channels;
  int ring, classes, tiles, channel_tiles;
  int rows, margin;
  int factors;
  int value_width, result_width;
  bool packed_weights;
  int8_t column[kMaxPassFactors][kMaxBandLinks];
};

template <typename T>
BandArguments<T> make_band_arguments(const BandPass& pass, const BandShape& shape) {
  const Problem& problem = pass.problem;
  BandArguments<T> arguments{};
  arguments.weight = make_view<const T, int64_t>(problem.weight);
  arguments.value = make_view<const T, int64_t>(problem.value);
  arguments.result = make_view<T, int64_t>(problem.result);
  arguments.weight_row = static_cast<int>(problem.weight.row);
  arguments.value_row = static_cast<int>(problem.value.row);
  arguments.result_row = static_cast<int>(problem.result.row);
  arguments.weight_factor = pass.weight_factor;
  arguments.step = pass.step;
  for (int d = 0; d < problem.batch_dims; ++d) arguments.batch_sizes[d] = problem.batch_sizes[d];
  arguments.batch_dims = problem.batch_dims;
  arguments.length = static_cast<int>(problem.length);
  arguments.channels = static_cast<int>(problem.channels);
  arguments.ring = static_cast<int>(shape.ring);
  arguments.classes = static_cast<int>(shape.classes);
  arguments.tiles = static_cast<int>(shape.tiles);
  arguments.channel_tiles = static_cast<int>(shape.channel_tiles);
  arguments.rows = shape.rows;
  arguments.margin = shape.margin;
  arguments.factors = pass.factors;
  arguments.value_width = shape.value_width;
  arguments.result_width = shape.result_width;
  arguments.packed_weights = shape.packed_weights;
  for (int f = 0; f < kMaxPassFactors; ++f) {
    for (int k = 0; k < kMaxBandLinks; ++k) arguments.column[f][k] = pass.column[f][k];
  }
  return arguments;
}

// One band of the pass: which factors it merges, and how its rows lie in the tile. Row t of class c
// is row c + (t << shift) of the tile.
struct Band {
  int first;    // factor
  int factors;  // at most kMerged
  int shift;
  int class_rows;
  int begin, end;  // rows of the tile that are right after this band
};

__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2], BFloat16) {
  ptx::mma_m16n8k16_bf16(sum, a, b);
}
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2], Float16) {
  ptx::mma_m16n8k16_f16(sum, a, b);
}

// The same number, of which the compiler knows nothing: what is computed from it is computed where
// it is used, instead of kept in registers around the loop over the bands.
__device__ __forceinline__ int recompute_from(int number) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(number));
#endif
  return number;
}

// Both rounded, in one instruction where there is one: halves of a word that wait apart for their
// meeting would take twice the registers.
template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    return paramixer::detail::bit_cast<uint32_t>(__floats2bfloat162_rn(low, high));
  } else {
    return paramixer::detail::bit_cast<uint32_t>(__floats2half2_rn(low, high));
  }
#else
  return narrow<T>(low).bits | uint32_t{narrow<T>(high).bits} << 16;
#endif
}

// 32 bits of high:low from bit `shift` on, at most 32.
__device__ __forceinline__ uint32_t funnel_shift(uint32_t low, uint32_t high, int shift) {
#if defined(__CUDA_ARCH__)
  return __funnelshift_rc(low, high, shift);
#else
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> shift);
#endif
}

// One block's work; every method is called by all its threads.
template <typename T, typename Traits, bool kTranspose, bool kKeep>
class BandTile {
 public:
  __device__ __forceinline__ BandTile(const BandArguments<T>& arguments, BandShared<Traits>& shared)
      : arguments_(arguments), shared_(shared) {}

  // Finds the block's part of the pass. In shared memory it costs no registers.
  __device__ __forceinline__ void find_place() {
    if (thread() != 0) return;
    // Neighbouring blocks share rows of W, then lines of V.
    const int block = static_cast<int>(blockIdx.x);
    const int outer = block / arguments_.channel_tiles;
    const int channel = (block - outer * arguments_.channel_tiles) * Traits::kChannels;
    const int far = outer / arguments_.classes;
    const int item = far / arguments_.tiles;
    BandPlace place{};
    place.first_row = outer - far * arguments_.classes;
    place.first_position =
        (far - item * arguments_.tiles) * (arguments_.rows - 2 * arguments_.margin);
    place.rows = arguments_.ring - place.first_position + 2 * arguments_.margin;
    if (place.rows > arguments_.rows) place.rows = arguments_.rows;
    place.channels = arguments_.channels - channel;
    if (place.channels > Traits::kChannels) place.channels = Traits::kChannels;
    place.value = channel * arguments_.value.column;
    place.result = channel * arguments_.result.column;
    int64_t batch = item;
    for (int d = arguments_.batch_dims - 1; d >= 0; --d) {
      // One batch dimension, the usual case, needs no division.
      const int64_t next = d > 0 ? batch / arguments_.batch_sizes[d] : 0;
      const int64_t coordinate = batch - next * arguments_.batch_sizes[d];
      batch = next;
      place.weight += coordinate * arguments_.weight.batch[d];
      place.value += coordinate * arguments_.value.batch[d];
      place.result += coordinate * arguments_.result.batch[d];
    }
    shared_.place = place;
  }

  __device__ __forceinline__ int bands() const {
    return (arguments_.factors + Traits::kMerged - 1) / Traits::kMerged;
  }

  // The bands in the order they are applied in.
  __device__ __forceinline__ Band band(int number) const {
    if (kTranspose) number = bands() - 1 - number;
    Band band;
    band.first = number * Traits::kMerged;
    band.factors = arguments_.factors - band.first;
    if (band.factors > Traits::kMerged) band.factors = Traits::kMerged;
    band.shift = band.first;
    band.class_rows = arguments_.rows >> band.shift;
    // Factor f uses up reach 2^f rows of a margin.
    const int before = Traits::kReach * ((1 << band.first) - 1);
    const int behind = Traits::kReach * ((1 << (band.first + band.factors)) - 1);
    band.begin = arguments_.margin == 0 ? 0 : kTranspose ? arguments_.margin - before : behind;
    band.end = shared_.place.rows - band.begin;
    return band;
  }

  // Finds the tile's rows on the ring.
  __device__ __forceinline__ void find_rows() {
    for (int i = thread(); i < shared_.place.rows; i += Traits::kThreads) {
      int position = (shared_.place.first_position - arguments_.margin + i) % arguments_.ring;
      if (position < 0) position += arguments_.ring;
      int64_t row = shared_.place.first_row + arguments_.step * position;
      if (row >= arguments_.length) row %= arguments_.length;
      shared_.row[i] = static_cast<int>(row);
    }
  }

  // Begins to copy the tile; zeros where rows and channels end.
  __device__ __forceinline__ void begin_values() {
    const T* value = arguments_.value.data + shared_.place.value;
    const int channels = shared_.place.channels;
    const int own = thread();
    const int chunk = own % Traits::kRowChunks;
    for (int row = own / Traits::kRowChunks; row < arguments_.rows;
         row += Traits::kThreads / Traits::kRowChunks) {
      const int left = row < shared_.place.rows ? channels - 8 * chunk : 0;
      const int count = left < 0 ? 0 : left > 8 ? 8 : left;
      // Any address will do where nothing is read.
      const T* source = value;
      if (count > 0) {
        source +=
            int64_t{shared_.row[row]} * arguments_.value_row + 8 * chunk * arguments_.value.column;
      }
      uint16_t* target = shared_.value + (value_place(row) ^ 8 * chunk);
      if (arguments_.value_width == 8) {
        ptx::cp_async<16>(target, source, 2 * count);
      } else if (arguments_.value_width == 2) {
        PARAMIXER_UNROLL
        for (int pair = 0; pair < 4; ++pair) {
          const int pair_left = count - 2 * pair;
          const int bytes = pair_left < 0 ? 0 : pair_left > 2 ? 4 : 2 * pair_left;
          ptx::cp_async<4>(target + 2 * pair, source + (bytes > 0 ? 2 * pair : 0), bytes);
        }
      } else {
        for (int e = 0; e < 8; ++e) {
          target[e] = e < count ? source[e * arguments_.value.column].bits : uint16_t{0};
        }
      }
    }
  }

  // Begins to copy the weights that a band needs.
  __device__ __forceinline__ void begin_weights(const Band& band) {
    const int elements = band.factors * Traits::kLinks;
    const int64_t first = band.first * arguments_.weight_factor;
    if (arguments_.packed_weights) {
      // Words of two elements: the first may begin before the row's weights, the last end behind.
      for (int item = thread(); item < shared_.place.rows * Traits::kWeightWords;
           item += Traits::kThreads) {
        const int row = item / Traits::kWeightWords;
        const int word = item % Traits::kWeightWords;
        const T* source = weights_of(row) + first;
        const int early = begins_early(source) ? 1 : 0;
        const int left = elements + early - 2 * word;
        if (left > 0) {
          ptx::cp_async<4>(shared_.weight + row * Traits::kWeightStride + word,
                           source + 2 * word - early, left > 1 ? 4 : 2);
        }
      }
    } else {
      auto* target = reinterpret_cast<uint16_t*>(shared_.weight);
      for (int item = thread(); item < shared_.place.rows * elements; item += Traits::kThreads) {
        const int row = item / elements;
        const int element = item - row * elements;
        const int factor = element / Traits::kLinks;
        target[2 * Traits::kWeightStride * row + element] =
            weights_of(row)[first + factor * arguments_.weight_factor +
                            (element - factor * Traits::kLinks) * arguments_.weight.column]
                .bits;
      }
    }
  }

  // Puts the weights that have come into order: factor by factor, links by distance.
  __device__ __forceinline__ void unpack_weights(const Band& band) {
    for (int row = thread(); row < shared_.place.rows; row += Traits::kThreads) {
      auto* weights = reinterpret_cast<uint16_t*>(shared_.weight + row * Traits::kWeightStride);
      const int early =
          arguments_.packed_weights &&
                  begins_early(weights_of(row) + band.first * arguments_.weight_factor)
              ? 1
              : 0;
      uint16_t ordered[Traits::kMerged][Traits::kLinks] = {};
      PARAMIXER_UNROLL
      for (int f = 0; f < Traits::kMerged; ++f) {
        if (f == band.factors) break;
        PARAMIXER_UNROLL
        for (int link = 0; link < Traits::kLinks; ++link) {
          const int column = arguments_.column[band.first + f][link];
          ordered[f][link] = weights[early + f * Traits::kLinks + column];
        }
      }
      PARAMIXER_UNROLL
      for (int f = 0; f < Traits::kMerged; ++f) {
        PARAMIXER_UNROLL
        for (int link = 0; link < Traits::kLinks; ++link) {
          weights[f * Traits::kFactorWeights + link] = ordered[f][link];
        }
      }
    }
  }

  // Makes the coefficients of every row of the tile. A warp reads a row's coefficients in pairs of
  // columns of its window; so that pairs are words, rows keep their taps at one of two parities.
  // Rows that a halo tile cannot know have none.
  __device__ __forceinline__ void compose(const Band& band) {
    for (int row = thread(); row < arguments_.rows; row += Traits::kThreads) {
      float taps[Traits::kTaps] = {};
      if (row >= band.begin && row < band.end) {
        switch (Traits::kMerged - band.factors) {  // fewer only in the last factors of a pass
          case 0:
            compose_row<Traits::kMerged>(band, row, taps);
            break;
          case 1:
            compose_row<Traits::kMerged - 1>(band, row, taps);
            break;
          default:
            compose_row<1>(band, row, taps);
        }
        if (kKeep) taps[Traits::kBandReach] -= 1.0f;
      }
      const int shift = (first_column(row >> band.shift) & 1) != 0 ? 16 : 32;
      uint32_t* target = shared_.band + band_slot(row) * Traits::kBandWords;
      uint32_t before = 0;
      PARAMIXER_UNROLL
      for (int word = 0; word < Traits::kTapWords; ++word) {
        const bool last = word == Traits::kTapWords - 1;
        const uint32_t pair = pack_pair<T>(taps[2 * word], last ? 0.0f : taps[2 * word + !last]);
        target[word] = funnel_shift(before, pair, shift);
        before = pair;
      }
    }
  }

  // Applies the composed band to the tile, in place.
  __device__ __forceinline__ void multiply(const Band& band) {
    // Groups of 16 rows, class after class. More than kHeld a warp only where every class is held
    // by one group alone, so that none reads what another has replaced.
    const int groups = ((band.class_rows + Traits::kMmaRows - 1) / Traits::kMmaRows) << band.shift;
    for (int first = 0; first < groups; first += Traits::kHeld * Traits::kWarps) {
      const int lane = thread() % cuda::Traits::kWarp;
      const int base = first + thread() / cuda::Traits::kWarp;
      uint32_t held[Traits::kHeld][Traits::kRowChunks][2];
      PARAMIXER_UNROLL
      for (int h = 0; h < Traits::kHeld; ++h) {
        const int group = base + h * Traits::kWarps;
        if (group < groups) multiply_group(band, group, lane, held[h]);
      }
      __syncthreads();
      PARAMIXER_UNROLL
      for (int h = 0; h < Traits::kHeld; ++h) {
        const int group = base + h * Traits::kWarps;
        if (group < groups) store_group(band, group, lane, held[h]);
      }
    }
  }

  __device__ __forceinline__ void write_rows() {
    T* result = arguments_.result.data + shared_.place.result;
    const int channels = shared_.place.channels;
    const int own = thread();
    const int chunk = own % Traits::kRowChunks;
    const int rows = shared_.place.rows - 2 * arguments_.margin;
    if (8 * chunk >= channels) return;
    for (int row = own / Traits::kRowChunks; row < rows;
         row += Traits::kThreads / Traits::kRowChunks) {
      const int tile_row = row + arguments_.margin;
      T* target = result + int64_t{shared_.row[tile_row]} * arguments_.result_row +
                  8 * chunk * arguments_.result.column;
      const uint16_t* source = shared_.value + (value_place(tile_row) ^ 8 * chunk);
      const int left = channels - 8 * chunk;
      if (arguments_.result_width == 8 && left >= 8) {
        store_vector(target, *reinterpret_cast<const Vector16*>(source));
      } else {
        for (int e = 0; e < 8 && e < left; ++e) target[e * arguments_.result.column] = {source[e]};
      }
    }
  }

 private:
  static __device__ __forceinline__ int thread() {
    return recompute_from(static_cast<int>(threadIdx.x));
  }

  // Where chunk 0 of a row lies in BandShared::value; chunk c lies at this ^ 8 c. So the 8 chunks
  // of a row change places with its number, and 8 rows that lie 1, 8 or 64 apart have each chunk in
  // 8 different groups of banks.
  static __device__ __forceinline__ int value_place(int row) {
    return row * Traits::kChannels + ((row ^ (row >> 3) ^ (row >> 6)) & 7) * 8;
  }

  // Rows of the band change places for the same reason.
  static __device__ __forceinline__ int band_slot(int row) {
    return row ^ (((row >> 3) ^ (row >> 6)) & 7);
  }

  // The column of the window that the first tap of row t of a class falls on.
  static __device__ __forceinline__ int first_column(int t) {
    return t % Traits::kMmaRows + Traits::kMargin - Traits::kBandReach;
  }

  static __device__ __forceinline__ bool begins_early(const T* weights) {
    return reinterpret_cast<uintptr_t>(weights) % 4 != 0;
  }

  // The weights of a row of the tile, in device memory.
  __device__ __forceinline__ const T* weights_of(int row) const {
    return arguments_.weight.data + shared_.place.weight +
           int64_t{shared_.row[row]} * arguments_.weight_row;
  }

  // The tile as a ring: what leaves it on one side comes in on the other. In a halo tile that is
  // wrong, and only rows outside of [Band::begin, Band::end) see it.
  __device__ __forceinline__ int wrap(int row) const { return row & (arguments_.rows - 1); }

  // A factor's weights in a row of the tile, however far it lies outside: of all links, or of one.
  __device__ __forceinline__ void load_weights(int factor, int row,
                                               float (&weights)[Traits::kLinks]) const {
    const uint16_t* source = weights_in_order(factor, row);
    PARAMIXER_UNROLL
    for (int unit = 0; unit < Traits::kLinks; unit += 4) {
      const auto four = *reinterpret_cast<const FourWeights*>(source + unit);
      PARAMIXER_UNROLL
      for (int i = 0; i < 4 && unit + i < Traits::kLinks; ++i) {
        weights[unit + i] = with_identity(four.element[i], unit + i);
      }
    }
  }
  __device__ __forceinline__ float load_weight(int factor, int row, int link) const {
    return with_identity(T{weights_in_order(factor, row)[link]}, link);
  }

  struct alignas(8) FourWeights {
    T element[4];
  };

  __device__ __forceinline__ const uint16_t* weights_in_order(int factor, int row) const {
    return reinterpret_cast<const uint16_t*>(shared_.weight + wrap(row) * Traits::kWeightStride) +
           factor * Traits::kFactorWeights;
  }
  __device__ __forceinline__ float with_identity(T weight, int link) const {
    return kKeep && link == Traits::kReach ? widen(weight) + 1.0f : widen(weight);
  }

  // The product of the band's kCount factors, in the middle of its taps.
  template <int kCount>
  __device__ __forceinline__ void compose_row(const Band& band, int row,
                                              float (&taps)[Traits::kTaps]) const {
    constexpr int kWidth = 2 * reach_of(kCount) + 1;
    float product[kWidth];
    compose_level<kCount, kCount>(band, row, product);
    PARAMIXER_UNROLL
    for (int x = 0; x < kWidth; ++x) {
      taps[Traits::kBandReach - reach_of(kCount) + x] = product[x];
    }
  }

  // A row of the product of kLevel factors of kCount: the first ones, or, transposed, the last.
  // Level by level, the sums going over the links o of factor f:
  //   (S_f B)[i, x + o 2^f]     = sum of W_f[i, o] B[i + o 2^f, x]             x in steps
  //   (S_f^T B)[i, 2 x - o]     = sum of W_f[i - o 2^f, o] B[i - o 2^f, x]     x in steps of 2^f
  template <int kCount, int kLevel, int kWidth>
  __device__ __forceinline__ void compose_level(const Band& band, int row,
                                                float (&taps)[kWidth]) const {
    constexpr int kFactor = kTranspose ? kCount - kLevel : kLevel - 1;
    const auto away = [&](int o) { return row + ((o * (1 << kFactor)) << band.shift); };
    float scale[Traits::kLinks];
    if constexpr (kTranspose) {
      PARAMIXER_UNROLL
      for (int link = 0; link < Traits::kLinks; ++link) {
        scale[link] = load_weight(kFactor, away(Traits::kReach - link), link);
      }
    } else {
      load_weights(kFactor, row, scale);
    }
    if constexpr (kLevel == 1) {
      PARAMIXER_UNROLL
      for (int link = 0; link < Traits::kLinks; ++link) {
        taps[kTranspose ? Traits::kLinks - 1 - link : link] = scale[link];
      }
    } else {
      constexpr int kInnerReach = reach_of(kLevel - 1);
      PARAMIXER_UNROLL
      for (int tap = 0; tap < kWidth; ++tap) taps[tap] = 0.0f;
      PARAMIXER_UNROLL
      for (int link = 0; link < Traits::kLinks; ++link) {
        const int o = link - Traits::kReach;
        float inner[2 * kInnerReach + 1];
        compose_level<kCount, kLevel - 1>(band, away(kTranspose ? -o : o), inner);
        PARAMIXER_UNROLL
        for (int x = -kInnerReach; x <= kInnerReach; ++x) {
          const int tap = kTranspose ? 2 * x - o : x + o * (1 << kFactor);
          taps[reach_of(kLevel) + tap] += scale[link] * inner[kInnerReach + x];
        }
      }
    }
  }

  static PARAMIXER_INLINE constexpr int reach_of(int level) {
    return Traits::kReach * ((1 << level) - 1);
  }

  // The row of the tile that is row t of a group, outside of the group too.
  __device__ __forceinline__ int row_of(const Band& band, int group, int t) const {
    const int row_class = group & ((1 << band.shift) - 1);
    return wrap(row_class + (((group >> band.shift) * Traits::kMmaRows + t) << band.shift));
  }

  // Fragments of 16 rows of the band, zeros included; see ptx::mma_m16n8k16_bf16 for their order.
  __device__ __forceinline__ void load_band(const int (&rows)[2], int lane,
                                            uint32_t (&fragments)[Traits::kSteps][4]) const {
    PARAMIXER_UNROLL
    for (int half = 0; half < 2; ++half) {
      const uint32_t* source = shared_.band + band_slot(rows[half]) * Traits::kBandWords;
      const int first_word = lane % 4 - first_column(lane / 4 + 8 * half) / 2;
      PARAMIXER_UNROLL
      for (int quarter = 0; quarter < 2 * Traits::kSteps; ++quarter) {
        const int word = first_word + 4 * quarter;
        const bool inside = static_cast<unsigned>(word) < Traits::kTapWords;
        const uint32_t pair = source[inside ? word : 0];  // no branch around the load
        fragments[quarter / 2][half + 2 * (quarter % 2)] = inside ? pair : 0u;
      }
    }
  }

  // Where a lane's two sums of a row and chunk 0 lie in BandShared::value; see value_place.
  static __device__ __forceinline__ int pair_place(int row, int lane) {
    return value_place(row) + 2 * (lane % 4);
  }
  __device__ __forceinline__ uint32_t* pair_at(int place, int chunk) const {
    return reinterpret_cast<uint32_t*>(shared_.value + (place ^ 8 * chunk));
  }

  // Sums of a group's rows, rounded, in pairs of channels.
  __device__ __forceinline__ void multiply_group(const Band& band, int group, int lane,
                                                 uint32_t (&held)[Traits::kRowChunks][2]) const {
    const int rows[2] = {row_of(band, group, lane / 4), row_of(band, group, lane / 4 + 8)};
    const int places[2] = {pair_place(rows[0], lane), pair_place(rows[1], lane)};
    uint32_t fragments[Traits::kSteps][4];
    load_band(rows, lane, fragments);
    int window[Traits::kSteps];
    PARAMIXER_UNROLL
    for (int step = 0; step < Traits::kSteps; ++step) {
      window[step] = value_place(row_of(band, group, 16 * step + lane % 16 - Traits::kMargin)) ^
                     8 * (lane / 16);
    }
    PARAMIXER_UNROLL
    for (int chunk = 0; chunk < Traits::kRowChunks; chunk += 2) {
      if (chunk == Traits::kRowChunks / 2 && 8 * chunk >= shared_.place.channels) break;
      float sum[2][4] = {};
      if (kKeep) {
        PARAMIXER_UNROLL
        for (int i = 0; i < 4; ++i) {
          const uint32_t pair = *pair_at(places[i % 2], chunk + i / 2);
          sum[i / 2][2 * (i % 2)] = widen(T{static_cast<uint16_t>(pair)});
          sum[i / 2][2 * (i % 2) + 1] = widen(T{static_cast<uint16_t>(pair >> 16)});
        }
      }
      PARAMIXER_UNROLL
      for (int step = 0; step < Traits::kSteps; ++step) {
        uint32_t values[4];
        ptx::ldmatrix_trans(values, shared_.value + (window[step] ^ 8 * chunk));
        multiply_add(sum[0], fragments[step], {values[0], values[1]}, T{});
        multiply_add(sum[1], fragments[step], {values[2], values[3]}, T{});
      }
      PARAMIXER_UNROLL
      for (int i = 0; i < 4; ++i) {
        held[chunk + i / 2][i % 2] =
            pack_pair<T>(sum[i / 2][2 * (i % 2)], sum[i / 2][2 * (i % 2) + 1]);
      }
    }
  }

  __device__ __forceinline__ void store_group(const Band& band, int group, int lane,
                                              const uint32_t (&held)[Traits::kRowChunks][2]) const {
    PARAMIXER_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int t = lane / 4 + 8 * half;
      if (t >= band.class_rows) continue;  // a class of fewer than 16 rows
      const int place = pair_place(row_of(band, group, t), lane);
      PARAMIXER_UNROLL
      for (int chunk = 0; chunk < Traits::kRowChunks; ++chunk) {
        if (chunk == Traits::kRowChunks / 2 && 8 * chunk >= shared_.place.channels) break;
        *pair_at(place, chunk) = held[chunk][half];
      }
    }
  }

  const BandArguments<T>& arguments_;
  BandShared<Traits>& shared_;
};

template <typename T, typename Traits, bool kTranspose, bool kKeep>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSM)
    band_kernel(const __grid_constant__ BandArguments<T> arguments) {
  PARAMIXER_DYNAMIC_SHARED(BandShared<Traits>, shared);
  BandTile<T, Traits, kTranspose, kKeep> tile(arguments, *shared);
  tile.find_place();
  __syncthreads();
  tile.find_rows();
  __syncthreads();
  tile.begin_values();
  for (int number = 0;; ++number) {
    // A band's weights travel while the band before is applied.
    if (number < tile.bands()) tile.begin_weights(tile.band(number));
    ptx::cp_async_commit_group();
    if (number > 0) tile.multiply(tile.band(number - 1));
    if (number == tile.bands()) break;
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    tile.unpack_weights(tile.band(number));
    __syncthreads();
    tile.compose(tile.band(number));
    __syncthreads();
  }
  __syncthreads();
  tile.write_rows();
}

}  // namespace paramixer::cuda
