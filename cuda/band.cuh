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
// random data the 2-norm error is 0.6 to 0.98 times theirs for K = 3 (1 for a single factor, which
// is exactly the same), and 0.75 to 1.05 for K = 5 .. 9, whose bands merge two. A coefficient is a
// product of up to kMerged weights, so float16 overflows where weights are beyond 40 (K = 3). The
// window multiplies zeros, and zero times infinity is NaN: a value that is not finite spreads to
// rows near it in the tile that it has no links to, and to no other tile or channel.
//
// Bytes of device memory per element of Y: 2 (1 + halo) of V and 2 of Y, and 2 F K / D of W for
// every 64 channels; halo = 2 margin / (512 - 2 margin) is 0 in a closed tile. That is the bound
// from D = 64 on. In shared memory a band reads kSteps and writes 1 times the tile, and a row's
// coefficients take 4 kBandWords bytes twice: 2.8 bytes per element and factor for K = 3.
#pragma once

#include "band_pass.h"
#include "device.cuh"
#include "primitives.cuh"

namespace paramixer::cuda {

template <typename T>
struct BandArguments {
  View<const T, int64_t> weight;  // of factor 0
  View<const T, int64_t> value;
  View<T, int64_t> result;
  int64_t weight_factor;
  int64_t step;
  int64_t batch_sizes[kMaxBatchDims];
  int batch_dims;
  int length, channels;
  int ring, classes, tiles, channel_tiles;
  int rows, margin;
  int factors;
  int value_width, result_width;
  bool packed_weights, keep;
  int8_t column[kMaxPassFactors][kMaxBandLinks];
};

template <typename T>
BandArguments<T> make_band_arguments(const BandPass& pass, const BandShape& shape) {
  const Problem& problem = pass.problem;
  BandArguments<T> arguments{};
  arguments.weight = make_view<const T, int64_t>(problem.weight);
  arguments.value = make_view<const T, int64_t>(problem.value);
  arguments.result = make_view<T, int64_t>(problem.result);
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
  arguments.keep = pass.keep;
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

template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  return narrow<T>(low).bits | uint32_t{narrow<T>(high).bits} << 16;
}

// One block's work; every method is called by all its threads.
template <typename T, typename Traits, bool kTranspose>
class BandTile {
 public:
  __device__ __forceinline__ BandTile(const BandArguments<T>& arguments,
                                      BandShared<Traits>& shared)
      : arguments_(arguments),
        shared_(shared),
        weight_(arguments.weight.data),
        value_(arguments.value.data),
        result_(arguments.result.data),
        // Rounded up: exact for what wrap() divides.
        reciprocal_((uint32_t{1} << 31) / arguments.rows + 1) {
    // Neighbouring blocks share rows of W, then lines of V.
    const int outer = static_cast<int>(blockIdx.x) / arguments.channel_tiles;
    const int first_channel =
        (static_cast<int>(blockIdx.x) - outer * arguments.channel_tiles) * Traits::kChannels;
    const int far = outer / arguments.classes;
    first_row_ = outer - far * arguments.classes;
    int64_t batch = far / arguments.tiles;
    const int tile = far - static_cast<int>(batch) * arguments.tiles;
    first_position_ = tile * (arguments.rows - 2 * arguments.margin);
    channels_ = arguments.channels - first_channel;
    if (channels_ > Traits::kChannels) channels_ = Traits::kChannels;
    value_ += first_channel * arguments.value.column;
    result_ += first_channel * arguments.result.column;
    for (int d = arguments.batch_dims - 1; d >= 0; --d) {
      const int64_t next = batch / arguments.batch_sizes[d];
      const int64_t coordinate = batch - next * arguments.batch_sizes[d];
      batch = next;
      weight_ += coordinate * arguments.weight.batch[d];
      value_ += coordinate * arguments.value.batch[d];
      result_ += coordinate * arguments.result.batch[d];
    }
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
    band.end = arguments_.rows - band.begin;
    return band;
  }

  // Finds the tile's rows on the ring.
  __device__ __forceinline__ void find_rows() {
    for (int i = thread(); i < arguments_.rows; i += Traits::kThreads) {
      int position = (first_position_ - arguments_.margin + i) % arguments_.ring;
      if (position < 0) position += arguments_.ring;
      int64_t row = first_row_ + arguments_.step * position;
      if (row >= arguments_.length) row %= arguments_.length;
      shared_.row[i] = static_cast<int>(row);
      const bool odd = arguments_.packed_weights && begins_early(weight_ + row_weights(row));
      shared_.weight_start[i] =
          static_cast<uint16_t>(2 * Traits::kWeightStride * i + static_cast<int>(odd));
    }
  }

  // Begins to copy the tile; zeros where channels end.
  __device__ __forceinline__ void begin_values() {
    for (int item = thread(); item < arguments_.rows * Traits::kRowChunks;
         item += Traits::kThreads) {
      const int row = item / Traits::kRowChunks;
      const int chunk = item % Traits::kRowChunks;
      const int left = channels_ - 8 * chunk;
      const int count = left < 0 ? 0 : left > 8 ? 8 : left;
      // Any address will do where nothing is read.
      const T* source = value_ + shared_.row[row] * arguments_.value.row +
                        (count > 0 ? 8 * chunk * arguments_.value.column : 0);
      uint16_t* target = shared_.value + value_place(row, chunk);
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
    const T* first = weight_ + band.first * arguments_.weight_factor;
    if (arguments_.packed_weights) {
      // Words of two elements: the first may begin before the row's weights, the last end behind.
      for (int item = thread(); item < arguments_.rows * Traits::kWeightWords;
           item += Traits::kThreads) {
        const int row = item / Traits::kWeightWords;
        const int word = item % Traits::kWeightWords;
        const T* source = first + row_weights(shared_.row[row]);
        const int early = begins_early(source) ? 1 : 0;
        const int left = elements + early - 2 * word;
        if (left > 0) {
          ptx::cp_async<4>(shared_.weight + row * Traits::kWeightStride + word,
                           source + 2 * word - early, left > 1 ? 4 : 2);
        }
      }
    } else {
      auto* target = reinterpret_cast<uint16_t*>(shared_.weight);
      for (int item = thread(); item < arguments_.rows * elements; item += Traits::kThreads) {
        const int row = item / elements;
        const int element = item - row * elements;
        const int factor = element / Traits::kLinks;
        target[2 * Traits::kWeightStride * row + element] =
            first[row_weights(shared_.row[row]) + factor * arguments_.weight_factor +
                  (element - factor * Traits::kLinks) * arguments_.weight.column]
                .bits;
      }
    }
  }

  // Makes the coefficients of every row of the tile. A warp reads a row's coefficients in pairs of
  // columns of its window; so that pairs are words, rows keep their taps at one of two parities.
  __device__ __forceinline__ void compose(const Band& band) {
    for (int row = thread(); row < arguments_.rows; row += Traits::kThreads) {
      float taps[Traits::kTaps] = {};
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
      if (arguments_.keep) taps[Traits::kBandReach] -= 1.0f;
      const bool odd = (first_column(row >> band.shift) & 1) != 0;
      uint32_t* target = shared_.band + band_slot(row) * Traits::kBandWords;
      PARAMIXER_UNROLL
      for (int word = 0; word < Traits::kTapWords; ++word) {
        constexpr int kLast = Traits::kTaps - 1;
        const float before = word > 0 ? taps[2 * word - 1] : 0.0f;
        const float own = taps[2 * word];
        const float behind = 2 * word < kLast ? taps[2 * word + 1 > kLast ? kLast : 2 * word + 1]
                                              : 0.0f;
        target[word] = pack_pair<T>(odd ? before : own, odd ? own : behind);
      }
    }
  }

  // Applies the composed band to the tile, in place.
  __device__ __forceinline__ void multiply(const Band& band) {
    // Groups of 16 rows, class after class. More than kHeld a warp only where every class is held
    // by one group alone (band_pass.h), so that none reads what another has replaced.
    const int groups = ((band.class_rows + Traits::kMmaRows - 1) / Traits::kMmaRows) << band.shift;
    for (int base = warp(); base - warp() < groups; base += Traits::kHeld * Traits::kWarps) {
      for (int slice = 0; slice < channels_; slice += Traits::kSlice) {
        uint32_t held[Traits::kHeld][Traits::kSlice / 8][2];
        PARAMIXER_UNROLL
        for (int h = 0; h < Traits::kHeld; ++h) {
          const int group = base + h * Traits::kWarps;
          if (group < groups) multiply_group(band, group, slice / 8, held[h]);
        }
        __syncthreads();
        PARAMIXER_UNROLL
        for (int h = 0; h < Traits::kHeld; ++h) {
          const int group = base + h * Traits::kWarps;
          if (group < groups) store_group(band, group, slice / 8, held[h]);
        }
      }
    }
  }

  __device__ __forceinline__ void write_rows() {
    const int rows = arguments_.rows - 2 * arguments_.margin;
    for (int item = thread(); item < rows * Traits::kRowChunks; item += Traits::kThreads) {
      const int row = item / Traits::kRowChunks;
      const int chunk = item % Traits::kRowChunks;
      if (row >= arguments_.ring - first_position_ || 8 * chunk >= channels_) continue;
      const int tile_row = row + arguments_.margin;
      T* target = result_ + shared_.row[tile_row] * arguments_.result.row +
                  8 * chunk * arguments_.result.column;
      const uint16_t* source = shared_.value + value_place(tile_row, chunk);
      const int left = channels_ - 8 * chunk;
      if (arguments_.result_width == 8 && left >= 8) {
        store_vector(target, *reinterpret_cast<const Vector16*>(source));
      } else {
        for (int e = 0; e < 8 && e < left; ++e) target[e * arguments_.result.column] = {source[e]};
      }
    }
  }

 private:
  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ __forceinline__ int lane() { return thread() % cuda::Traits::kWarp; }
  static __device__ __forceinline__ int warp() { return thread() / cuda::Traits::kWarp; }

  // In elements of Shared::value. The 8 chunks of a row change places with the row's number, so
  // that 8 rows that lie 1, 8 or 64 apart have theirs in 8 different groups of banks.
  static __device__ __forceinline__ int value_place(int row, int chunk) {
    return row * Traits::kChannels + ((chunk ^ row ^ (row >> 3) ^ (row >> 6)) & 7) * 8;
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

  __device__ __forceinline__ int64_t row_weights(int64_t row) const {
    return row * arguments_.weight.row;
  }

  // The tile as a ring: what leaves it on one side comes in on the other. In a halo tile that is
  // wrong, and only rows outside of [Band::begin, Band::end) see it.
  __device__ __forceinline__ int wrap(int row) const {
    const auto above = static_cast<uint32_t>(row + (arguments_.rows << Traits::kTurns));
    const auto turns = static_cast<uint32_t>((uint64_t{2 * above} * reciprocal_) >> 32);
    return static_cast<int>(above - turns * static_cast<uint32_t>(arguments_.rows));
  }

  // The weight of link j = link - kReach of a row of the tile, any number of turns away.
  __device__ __forceinline__ float weight(const Band& band, int factor, int row, int link) const {
    const int flip = arguments_.packed_weights ? band.first & 1 : 0;  // K is odd
    const int start = shared_.weight_start[wrap(row)] ^ flip;
    const int column = arguments_.column[band.first + factor][link];
    const float weight = widen(T{reinterpret_cast<const uint16_t*>(
        shared_.weight)[start + factor * Traits::kLinks + column]});
    return arguments_.keep && link == Traits::kReach ? weight + 1.0f : weight;
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
    if constexpr (kLevel == 0) {
      taps[0] = 1.0f;
    } else {
      constexpr int kFactor = kTranspose ? kCount - kLevel : kLevel - 1;
      constexpr int kInnerReach = reach_of(kLevel - 1);
      PARAMIXER_UNROLL
      for (int tap = 0; tap < kWidth; ++tap) taps[tap] = 0.0f;
      PARAMIXER_UNROLL
      for (int link = 0; link < Traits::kLinks; ++link) {
        const int o = link - Traits::kReach;
        const int other = row + (((kTranspose ? -o : o) * (1 << kFactor)) << band.shift);
        const float scale = weight(band, kFactor, kTranspose ? other : row, link);
        float inner[2 * kInnerReach + 1];
        compose_level<kCount, kLevel - 1>(band, other, inner);
        PARAMIXER_UNROLL
        for (int x = -kInnerReach; x <= kInnerReach; ++x) {
          const int tap = kTranspose ? 2 * x - o : x + o * (1 << kFactor);
          taps[reach_of(kLevel) + tap] += scale * inner[kInnerReach + x];
        }
      }
    }
  }

  static PARAMIXER_INLINE constexpr int reach_of(int level) {
    return Traits::kReach * ((1 << level) - 1);
  }

  // The row of the tile that is row t of a group's class.
  __device__ __forceinline__ int row_of(const Band& band, int group, int t) const {
    const int row_class = group & ((1 << band.shift) - 1);
    return wrap(row_class + ((first_of(band, group) + t) << band.shift));
  }
  static __device__ __forceinline__ int first_of(const Band& band, int group) {
    return (group >> band.shift) * Traits::kMmaRows;
  }

  // Fragments of 16 rows of the band, zeros included; see ptx::mma_m16n8k16_bf16 for their order.
  __device__ __forceinline__ void load_band(const int (&rows)[2],
                                            uint32_t (&fragments)[Traits::kSteps][4]) const {
    PARAMIXER_UNROLL
    for (int step = 0; step < Traits::kSteps; ++step) {
      PARAMIXER_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int t = lane() / 4 + 8 * (i % 2);
        const int pair = 8 * step + 4 * (i / 2) + lane() % 4;
        const int word = pair - first_column(t) / 2;
        const bool inside = static_cast<unsigned>(word) < Traits::kTapWords;
        fragments[step][i] =
            inside ? shared_.band[band_slot(rows[i % 2]) * Traits::kBandWords + word] : 0u;
      }
    }
  }

  // Two channels of a row of the tile, as they lie in a lane's sums.
  __device__ __forceinline__ uint32_t* pair_of(int row, int chunk) const {
    return reinterpret_cast<uint32_t*>(shared_.value + value_place(row, chunk)) + lane() % 4;
  }

  __device__ __forceinline__ void start_sums(int row, int chunk, float& low, float& high) const {
    const uint32_t pair = arguments_.keep ? *pair_of(row, chunk) : 0u;
    low = widen(T{static_cast<uint16_t>(pair)});
    high = widen(T{static_cast<uint16_t>(pair >> 16)});
  }

  // Sums of a group's rows and the channels of a slice, rounded, in pairs.
  __device__ __forceinline__ void multiply_group(const Band& band, int group, int first_chunk,
                                                 uint32_t (&held)[Traits::kSlice / 8][2]) const {
    const int rows[2] = {row_of(band, group, lane() / 4), row_of(band, group, lane() / 4 + 8)};
    uint32_t fragments[Traits::kSteps][4];
    load_band(rows, fragments);
    int window[Traits::kSteps];
    PARAMIXER_UNROLL
    for (int step = 0; step < Traits::kSteps; ++step) {
      window[step] = row_of(band, group, 16 * step + lane() % 16 - Traits::kMargin);
    }
    PARAMIXER_UNROLL
    for (int chunk = 0; chunk < Traits::kSlice / 8; chunk += 2) {
      float sum[2][4];
      PARAMIXER_UNROLL
      for (int i = 0; i < 4; ++i) {
        start_sums(rows[i % 2], first_chunk + chunk + i / 2, sum[i / 2][2 * (i % 2)],
                   sum[i / 2][2 * (i % 2) + 1]);
      }
      PARAMIXER_UNROLL
      for (int step = 0; step < Traits::kSteps; ++step) {
        uint32_t values[4];
        ptx::ldmatrix_trans(values, shared_.value + value_place(window[step], first_chunk + chunk +
                                                                                  lane() / 16));
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

  // Rows that a halo tile cannot know become zeros: finite, whatever the data.
  __device__ __forceinline__ void store_group(const Band& band, int group, int first_chunk,
                                              const uint32_t (&held)[Traits::kSlice / 8][2]) const {
    PARAMIXER_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int t = lane() / 4 + 8 * half;
      if (first_of(band, group) + t >= band.class_rows) continue;
      const int row = row_of(band, group, t);
      const bool known = row >= band.begin && row < band.end;
      PARAMIXER_UNROLL
      for (int chunk = 0; chunk < Traits::kSlice / 8; ++chunk) {
        *pair_of(row, first_chunk + chunk) = known ? held[chunk][half] : 0u;
      }
    }
  }

  const BandArguments<T>& arguments_;
  BandShared<Traits>& shared_;
  const T* weight_;  // factor 0 of the batch item
  const T* value_;   // the batch item at the tile's first channel
  T* result_;
  uint32_t reciprocal_;
  int first_row_;       // of the class, on the ring
  int first_position_;  // along the class, of the first row that the tile computes
  int channels_;        // that exist
};

template <typename T, typename Traits, bool kTranspose>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSM)
    band_kernel(const __grid_constant__ BandArguments<T> arguments) {
  PARAMIXER_DYNAMIC_SHARED(BandShared<Traits>, shared);
  BandTile<T, Traits, kTranspose> tile(arguments, *shared);
  tile.find_rows();
  __syncthreads();
  tile.begin_values();
  tile.begin_weights(tile.band(0));
  ptx::cp_async_commit_group();
  for (int number = 0; number < tile.bands(); ++number) {
    const Band band = tile.band(number);
    ptx::cp_async_wait_group<0>();
    __syncthreads();  // weights are there, and values, copied or stored
    tile.compose(band);
    __syncthreads();
    if (number + 1 < tile.bands()) tile.begin_weights(tile.band(number + 1));
    ptx::cp_async_commit_group();
    tile.multiply(band);
  }
  __syncthreads();
  tile.write_rows();
}

}  // namespace paramixer::cuda
