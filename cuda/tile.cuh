// A tile on chip: the rows of one ring (or of a piece of it with its halos) at one group of
// channels, and what goes with its rows: weights, sums of dots. What kernels do with it is theirs;
// where things lie, and how they come and go, is here.
//
// The rows r, r + step, r + 2 step, .. (mod N) of a ring are a tile's rows 0, 1, 2, ..; a table in
// shared memory says where each lies. A row is `quads` accesses of four channels. The lanes of a
// warp that shared memory serves together read 128 bytes, without a conflict where these come from
// different banks: neighbouring rows do, and so do rows one more than a multiple of 8 apart.
#pragma once

#include <type_traits>

#include "device.cuh"
#include "primitives.cuh"
#include "tile_arguments.h"

namespace paramixer::cuda {

// Four channels, as they are summed and as they are stored.
struct Quad {
  float channel[kQuad];
};
template <typename T>
using QuadWord = std::conditional_t<sizeof(T) == 4, Vector16, Vector8>;

template <typename T>
PARAMIXER_INLINE Quad widen_quad(QuadWord<T> word) {
  if constexpr (std::is_same_v<T, BFloat16>) {  // an instruction a channel; the compiler takes two
    const auto pairs = paramixer::detail::bit_cast<Pack<uint32_t, 2>>(word);
    Quad quad;
    PARAMIXER_UNROLL
    for (int p = 0; p < 2; ++p) {
      quad.channel[2 * p] = paramixer::detail::bit_cast<float>(pairs.element[p] << 16);
      quad.channel[2 * p + 1] = paramixer::detail::bit_cast<float>(pairs.element[p] & 0xffff0000u);
    }
    return quad;
  }
  const auto pack = paramixer::detail::bit_cast<Pack<T, kQuad>>(word);
  Quad quad;
  PARAMIXER_UNROLL
  for (int c = 0; c < kQuad; ++c) quad.channel[c] = widen(pack.element[c]);
  return quad;
}

template <typename T>
PARAMIXER_INLINE QuadWord<T> narrow_quad(const Quad& quad) {
  Pack<T, kQuad> pack;
  PARAMIXER_UNROLL
  for (int c = 0; c < kQuad; ++c) pack.element[c] = narrow<T>(quad.channel[c]);
  return paramixer::detail::bit_cast<QuadWord<T>>(pack);
}

PARAMIXER_INLINE void multiply_add(float factor, const Quad& term, Quad& sums) {
  PARAMIXER_UNROLL
  for (int c = 0; c < kQuad; ++c) sums.channel[c] += factor * term.channel[c];
}

// The sum of products over the first `valid` channels.
PARAMIXER_INLINE float dot(const Quad& a, const Quad& b, int valid) {
  float sum = 0;
  PARAMIXER_UNROLL
  for (int c = 0; c < kQuad; ++c) {
    if (c < valid) sum += a.channel[c] * b.channel[c];
  }
  return sum;
}

// `row` in [0, 2 rows) brought back onto the tile: what is larger before than after has not wrapped
// below zero.
PARAMIXER_INLINE int wrap_row(int row, int rows) {
  const unsigned before = row, after = before - rows;
  return static_cast<int>(after < before ? after : before);
}

// One quad of all rows of a buffer.
template <typename T>
struct Column {
  unsigned char* first;
  int row_bytes;

  PARAMIXER_INLINE QuadWord<T>& at(int row) const {
    return *reinterpret_cast<QuadWord<T>*>(first + row * row_bytes);
  }
  PARAMIXER_INLINE Quad load(int row) const { return widen_quad<T>(at(row)); }
};

// Neighbouring blocks take the groups of channels of the same rows, then rings whose rows lie side
// by side. It stays in shared memory: registers that no inner loop needs would be spilled there.
template <typename T>
__device__ __forceinline__ TilePlace place_tile(const TileArguments<T>& arguments, int64_t tile) {
  TilePlace place{};
  int64_t rest = tile / arguments.splits;
  place.split = tile - rest * arguments.splits;
  place.group = static_cast<int32_t>(place.split) * arguments.groups_of_split;
  place.groups_end = place.group + arguments.groups_of_split;
  if (place.groups_end > arguments.groups) place.groups_end = arguments.groups;
  int64_t outer = rest / arguments.classes;
  place.ring_row = rest - outer * arguments.classes;
  rest = outer / arguments.tiles_of_ring;
  place.begin = (outer - rest * arguments.tiles_of_ring) * arguments.tile;
  place.batch_row = rest * arguments.length;
  for (int d = arguments.batch_dims - 1; d >= 0; --d) {
    outer = d > 0 ? rest / arguments.batch_sizes[d] : int64_t{0};
    const int64_t coordinate = rest - outer * arguments.batch_sizes[d];
    rest = outer;
    place.weight += coordinate * arguments.weight.batch[d];
    place.value += coordinate * arguments.value.batch[d];
    place.grad += coordinate * arguments.grad.batch[d];
    place.result += coordinate * arguments.result.batch[d];
  }
  return place;
}

// A tile in the shared memory of its block.
template <typename T>
class Tile {
 public:
  __device__ Tile(const TileArguments<T>& arguments, unsigned char* shared)
      : arguments_(arguments), shared_(shared) {}

  // ---- What lies on chip

  PARAMIXER_INLINE Column<T> column(int buffer, int quad) const {
    return {shared_ + buffer * arguments_.memory.buffer + quad * static_cast<int>(kWordBytes),
            arguments_.row_bytes};
  }

  // The staged weights of a turn, rows of 3 or 6.
  PARAMIXER_INLINE float* weights(const Turn& turn) const {
    return staged() + arguments_.memory.even_rows * 3 * turn.first;
  }

  // What a window keeps of every row of its tile for every link.
  PARAMIXER_INLINE float* kept() const { return staged(); }
  PARAMIXER_INLINE const unsigned char* window() const { return shared_; }

  // The sums of a turn's dots, for every row `dots_row` of each factor.
  PARAMIXER_INLINE float* dots(const Turn& turn) const {
    return sums() + arguments_.memory.even_rows * arguments_.memory.dots_row * turn.first;
  }

  PARAMIXER_INLINE TilePlace& place() const {
    return *reinterpret_cast<TilePlace*>(shared_ + arguments_.memory.place_begin());
  }

  // Where a row of the tile lies among the rows of its batch item.
  PARAMIXER_INLINE int32_t row_of(int row) const { return table()[row]; }

  // The row of the batch item `ahead` of another one, both in [0, N).
  PARAMIXER_INLINE int32_t far_row(int32_t row, int32_t ahead) const {
    const unsigned beyond = static_cast<unsigned>(row) + static_cast<unsigned>(ahead);
    return wrap_row(static_cast<int>(beyond), static_cast<int>(arguments_.length));
  }

  // The weights of a factor in device memory, those of row 0 of the batch item.
  PARAMIXER_INLINE const T* weights_of(int factor) const {
    return arguments_.weight.data + place().weight + factor * arguments_.weight_factor;
  }

  // Rows that are the tile's own; the ring may end within it. They begin behind the halo.
  PARAMIXER_INLINE int own_rows() const {
    const int64_t left = arguments_.ring - place().begin;
    return left < arguments_.tile ? static_cast<int>(left) : arguments_.tile;
  }

  // How many channels of a quad there are.
  PARAMIXER_INLINE int valid_channels(int group, int quad) const {
    const int64_t left = arguments_.channels - (int64_t{group} * arguments_.quads + quad) * kQuad;
    return left < 0 ? 0 : left < kQuad ? static_cast<int>(left) : kQuad;
  }

  // What a thread copies: 16 bytes of every so many rows.
  struct Piece {
    int index;  // in the row
    int row, rows;
    int64_t channel;
    int64_t channels;  // that there are from that one on
  };

  PARAMIXER_INLINE Piece own_piece(int group) const {
    const int bits = arguments_.piece_bits;
    const int thread = threadIdx.x, threads = blockDim.x;
    Piece piece{thread & ((1 << bits) - 1), thread >> bits, threads >> bits, 0, 0};
    piece.channel = int64_t{group} * arguments_.quads * kQuad + piece.index * kPieceChannels;
    piece.channels = arguments_.channels - piece.channel;
    return piece;
  }

  // A piece of one row; `column` is that of the batch item's first row, in the view.
  template <bool kVectors>
  PARAMIXER_INLINE Vector16 load_piece(const View<const T, int64_t>& view, const T* column,
                                       int32_t row, const Piece& piece) const {
    const T* address = column + row * view.row;
    if constexpr (!kVectors) return gather(address, view.column, piece.channels);
    if (piece.channels <= 0) return Vector16{};
    return *reinterpret_cast<const Vector16*>(address);
  }

  template <bool kVectors>
  PARAMIXER_INLINE void store_piece(const View<T, int64_t>& view, T* column, int32_t row,
                                    const Piece& piece, Vector16 vector) const {
    T* address = column + row * view.row;
    if constexpr (kVectors) {
      store_vector(address, vector);
    } else {
      scatter(vector, address, view.column, piece.channels);
    }
  }

  // ---- Copies. All threads of the block call these.

  // Finds the block's place and fills the table of rows; both are there behind a barrier, as is
  // what was there before.
  __device__ void find(int64_t tile) const {
    if (threadIdx.x == 0) place() = place_tile(arguments_, tile);
    __syncthreads();
    const int64_t first = place().begin - arguments_.halo, ring = arguments_.ring;
    for (int row = threadIdx.x; row < arguments_.rows; row += blockDim.x) {
      // Steps before the ring's beginning come from its end. Its halos are no longer than a ring.
      int64_t along = first + row;
      along += along < 0 ? ring : 0;
      along -= along >= ring ? ring : 0;
      int64_t place_in_item = place().ring_row + along * arguments_.step;
      if (!arguments_.regular) place_in_item %= arguments_.length;
      table()[row] = static_cast<int32_t>(place_in_item);
    }
  }

  // Begins to copy a group of channels of the tile's rows to a buffer; the batch item begins
  // `offset` elements behind the view's first.
  __device__ void begin_load(const View<const T, int64_t>& view, int64_t offset, int group,
                             int buffer) const {
    const Piece piece = own_piece(group);
    const T* source = view.data + offset + piece.channel * view.column;
    const auto for_each_row = [&](auto copy) {
      for (int row = piece.row; row < arguments_.rows; row += piece.rows) {
        copy(at(buffer, row, piece), source + table()[row] * view.row);
      }
    };
    if (!arguments_.vectors) {
      for_each_row([&](Vector16* target, const T* address) {
        *target = gather(address, view.column, piece.channels);
      });
    } else if (piece.channels > 0) {
      for_each_row([](Vector16* target, const T* address) { ptx::cp_async<16>(target, address); });
    } else {
      for_each_row([](Vector16* target, const T*) { *target = Vector16{}; });
    }
  }

  // Writes a group of channels of the tile's rows, without its halos, from a buffer.
  __device__ void store(const View<T, int64_t>& view, int64_t offset, int group, int buffer) const {
    const Piece piece = own_piece(group);
    if (piece.channels <= 0) return;
    T* target = view.data + offset + piece.channel * view.column;
    const int end = arguments_.halo + own_rows();
    const auto for_each_row = [&](auto copy) {
      for (int row = arguments_.halo + piece.row; row < end; row += piece.rows) {
        copy(target + table()[row] * view.row, *at(buffer, row, piece));
      }
    };
    if (arguments_.vectors) {
      for_each_row([](T* address, Vector16 vector) { store_vector(address, vector); });
    } else {
      for_each_row([&](T* address, Vector16 vector) {
        scatter(vector, address, view.column, piece.channels);
      });
    }
  }

  // Stages the weights of all rows and factors of three links, widened and in the order of turns.
  // Neighbouring threads take neighbouring weights of a row.
  __device__ void stage_weights() const {
    const int bits = arguments_.stage_bits, thread = threadIdx.x, threads = blockDim.x;
    for (int e = thread & ((1 << bits) - 1); e < 3 * arguments_.factors; e += 1 << bits) {
      const Element element = find_element(e);
      const T* source = weights_of(element.factor) + element.link * arguments_.weight.column;
      float* target = weights(*element.turn) + element.index;
      const int stride = 3 * element.turn->factors;
      PARAMIXER_UNROLL_BY(4)
      for (int row = thread >> bits; row < arguments_.rows; row += threads >> bits) {
        target[row * stride] = widen(source[table()[row] * arguments_.weight.row]);
      }
    }
  }

  __device__ void clear_dots() const {
    const int count = arguments_.memory.even_rows * arguments_.memory.dots_row * arguments_.factors;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sums()[i] = 0;
  }

  // Writes the dots of the tile's own rows, those of the factors of a row side by side.
  __device__ void store_dots() const {
    const TilePlace& place = this->place();
    const int links = arguments_.links, stride = arguments_.memory.dots_row;
    const int per_row = arguments_.factors * links;
    float* target = arguments_.dots + place.split * arguments_.dots_split;
    const int end = arguments_.halo + own_rows();
    for (int e = threadIdx.x % Traits::kWarp; e < per_row; e += Traits::kWarp) {
      const Element element = find_element(e);
      const float* source =
          dots(*element.turn) + element.index / links * stride + element.index % links;
      const int place_in_row = element.factor * links + element.link;
      for (int row = arguments_.halo + threadIdx.x / Traits::kWarp; row < end;
           row += blockDim.x / Traits::kWarp) {
        target[(place.batch_row + table()[row]) * per_row + place_in_row] =
            source[row * stride * element.turn->factors];
      }
    }
  }

 private:
  static constexpr size_t kWordBytes = sizeof(QuadWord<T>);
  static constexpr int kPieceChannels = Traits::kVectorBytes / static_cast<int>(sizeof(T));

  PARAMIXER_INLINE Vector16* at(int buffer, int row, const Piece& piece) const {
    return reinterpret_cast<Vector16*>(shared_ + buffer * arguments_.memory.buffer +
                                       row * arguments_.row_bytes) +
           piece.index;
  }

  // A weight, or a dot, of a row: in the order of turns, and in the chain's.
  struct Element {
    const Turn* turn;
    int index;  // among those of the turn
    int factor, link;
  };

  PARAMIXER_INLINE Element find_element(int e) const {
    const int links = arguments_.links;
    int t = 0;
    while (e >= (arguments_.turn[t].first + arguments_.turn[t].factors) * links) ++t;
    const Turn& turn = arguments_.turn[t];
    const int index = e - turn.first * links;
    return {&turn, index, turn.first + index / links,
            turn.factors == 2 ? turn.column[index] : index % links};
  }

  PARAMIXER_INLINE float* staged() const {
    return reinterpret_cast<float*>(shared_ + arguments_.memory.weights_begin());
  }
  PARAMIXER_INLINE float* sums() const {
    return reinterpret_cast<float*>(shared_ + arguments_.memory.dots_begin());
  }
  PARAMIXER_INLINE int32_t* table() const {
    return reinterpret_cast<int32_t*>(shared_ + arguments_.memory.table_begin());
  }

  // A piece of elements that lie `stride` apart; beyond the last channel it is filled with zeros.
  static __device__ Vector16 gather(const T* address, int64_t stride, int64_t channels) {
    Pack<T, kPieceChannels> pack;
    PARAMIXER_UNROLL
    for (int c = 0; c < kPieceChannels; ++c) {
      pack.element[c] = c < channels ? address[c * stride] : T{};
    }
    return paramixer::detail::bit_cast<Vector16>(pack);
  }

  static __device__ void scatter(Vector16 vector, T* address, int64_t stride, int64_t channels) {
    const auto pack = paramixer::detail::bit_cast<Pack<T, kPieceChannels>>(vector);
    PARAMIXER_UNROLL
    for (int c = 0; c < kPieceChannels; ++c) {
      if (c < channels) address[c * stride] = pack.element[c];
    }
  }

  const TileArguments<T>& arguments_;
  unsigned char* const shared_;
};

}  // namespace paramixer::cuda
