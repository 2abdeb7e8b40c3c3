// A tile on chip: the rows of one ring (or of a piece of it with its halos) at one group of
// channels, and the weights of the factors that go through them. What kernels do with it is theirs;
// where things lie, and how they come and go, is here.
//
// The rows r, r + step, r + 2 step, .. (mod N) of a ring are a tile's rows 0, 1, 2, ..; a table in
// shared memory says where each lies. A row is `lanes` accesses of 16 bytes. Eight lanes of a warp
// read 128 bytes of shared memory at a time, without a conflict where they come from different
// banks: neighbouring rows do, and so do rows 8 apart, where segments begin, thanks to `slot`.
#pragma once

#include "device.cuh"
#include "primitives.cuh"
#include "tile_arguments.h"

namespace paramixer::cuda {

// The channels of a 16-byte access, as they are summed.
template <typename T>
inline constexpr int kLaneChannels = Traits::kVectorBytes / static_cast<int>(sizeof(T));
template <typename T>
using Lane = Pack<T, kLaneChannels<T>>;
template <typename T>
struct Sums {
  Accumulate<T> channel[kLaneChannels<T>];
};

template <typename T>
PARAMIXER_INLINE Sums<T> widen_lane(Vector16 vector) {
  const auto lane = paramixer::detail::bit_cast<Lane<T>>(vector);
  Sums<T> sums;
  PARAMIXER_UNROLL
  for (int c = 0; c < kLaneChannels<T>; ++c) sums.channel[c] = widen(lane.element[c]);
  return sums;
}

template <typename T>
PARAMIXER_INLINE Vector16 narrow_lane(const Sums<T>& sums) {
  Lane<T> lane;
  PARAMIXER_UNROLL
  for (int c = 0; c < kLaneChannels<T>; ++c) lane.element[c] = narrow<T>(sums.channel[c]);
  return paramixer::detail::bit_cast<Vector16>(lane);
}

template <typename T>
PARAMIXER_INLINE void multiply_add(Accumulate<T> factor, const Sums<T>& term, Sums<T>& sums) {
  PARAMIXER_UNROLL
  for (int c = 0; c < kLaneChannels<T>; ++c) sums.channel[c] += factor * term.channel[c];
}

// What a block works on, and where its batch item begins in each operand.
struct TilePlace {
  int64_t vector;    // the first access of a row in its group of channels
  int64_t ring_row;  // row of the batch item where the ring begins
  int64_t begin;     // of the tile on its ring; its halo lies before that
  int64_t weight, value, grad, result;
  int64_t group;      // of channels
  int64_t batch_row;  // the first row of the batch item among those of all
};

// Neighbouring blocks take the groups of channels of the same rows, whose weights they share in L2,
// then rings whose rows lie side by side.
template <typename T>
PARAMIXER_INLINE TilePlace place_tile(const TileArguments<T>& arguments, int64_t tile) {
  TilePlace place{};
  int64_t rest = tile / arguments.groups;
  place.group = tile - rest * arguments.groups;
  place.vector = place.group * arguments.lanes;
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

  // ---- Rows on chip, in buffers of all rows

  PARAMIXER_INLINE Vector16& at(int buffer, int row, int lane) const {
    auto* rows = reinterpret_cast<Vector16*>(shared_ + buffer * arguments_.memory.buffer);
    return rows[slot(row, lane)];
  }

  PARAMIXER_INLINE Sums<T> load(int buffer, int row, int lane) const {
    return widen_lane<T>(at(buffer, row, lane));
  }

  // The weights of a row of the stage, 16-byte aligned.
  PARAMIXER_INLINE T* weights(int stage, int stage_row) const {
    const TileMemory& memory = arguments_.memory;
    unsigned char* begin = shared_ + memory.buffers * memory.buffer + stage * memory.stage;
    return reinterpret_cast<T*>(begin) + stage_row * arguments_.weight_row;
  }

  // Where a row of the tile lies among the rows of its batch item.
  PARAMIXER_INLINE int32_t row_of(int row) const { return table()[row]; }

  // Rows that are the tile's own; the ring may end within it. They begin behind the halo.
  PARAMIXER_INLINE int own_rows(const TilePlace& place) const {
    const int64_t left = arguments_.ring - place.begin;
    return left < arguments_.tile ? static_cast<int>(left) : arguments_.tile;
  }

  // ---- Copies. All threads of the block call these.

  // Fills the table of rows; the others need it behind a barrier.
  __device__ void find_rows(const TilePlace& place) const {
    const auto length = static_cast<uint64_t>(arguments_.length);
    for (int row = threadIdx.x; row < arguments_.rows; row += blockDim.x) {
      // Steps before the ring's beginning come from its end.
      const int64_t position = place.begin + row - arguments_.halo + arguments_.ring;
      const auto along = static_cast<uint64_t>(position % arguments_.ring);
      table()[row] = static_cast<int32_t>((place.ring_row + along * arguments_.step) % length);
    }
  }

  // Begins to copy the rows of the tile to a buffer; the batch item begins `offset` elements behind
  // the view's first.
  __device__ void begin_load(const View<const T, int64_t>& view, int64_t offset,
                             const TilePlace& place, int buffer) const {
    const T* source = view.data + offset;
    for (int i = threadIdx.x; i < arguments_.rows * arguments_.lanes; i += blockDim.x) {
      const int row = i >> arguments_.lane_bits, lane = i & (arguments_.lanes - 1);
      const int64_t channel = (place.vector + lane) * kLaneChannels<T>;
      const T* address = source + table()[row] * view.row + channel * view.column;
      if (arguments_.vectors) {
        const bool inside = channel < arguments_.channels;
        ptx::cp_async<16>(&at(buffer, row, lane), inside ? address : source, inside ? 16 : 0);
      } else {
        at(buffer, row, lane) = gather(address, view.column, arguments_.channels - channel);
      }
    }
  }

  // Writes the rows of the tile, without its halos, from a buffer.
  __device__ void store(const View<T, int64_t>& view, int64_t offset, const TilePlace& place,
                        int buffer) const {
    T* target = view.data + offset;
    for (int i = threadIdx.x; i < own_rows(place) * arguments_.lanes; i += blockDim.x) {
      const int row = (i >> arguments_.lane_bits) + arguments_.halo;
      const int lane = i & (arguments_.lanes - 1);
      const int64_t channel = (place.vector + lane) * kLaneChannels<T>;
      if (channel >= arguments_.channels) continue;
      T* address = target + table()[row] * view.row + channel * view.column;
      const Vector16 vector = at(buffer, row, lane);
      if (arguments_.vectors) {
        store_vector(address, vector);
      } else {
        scatter(vector, address, view.column, arguments_.channels - channel);
      }
    }
  }

  // Begins to copy the weights of a turn to a stage, those of at most stage_rows rows from `begin`
  // on.
  __device__ void begin_stage(const TilePlace& place, const Turn& turn, int begin,
                              int stage) const {
    const int count = turn.factors * arguments_.links;
    const int bytes = turn.weight_bytes;
    const int pieces = bytes > 0 ? count * static_cast<int>(sizeof(T)) / bytes : count;
    int bits = 0;  // a power of two of threads for each row: divisions cost more than idle threads
    while (1 << bits < pieces) ++bits;
    const T* source = arguments_.weight.data + place.weight + turn.first * arguments_.weight_factor;
    const int left = arguments_.rows - begin;
    const int rows = left < arguments_.stage_rows ? left : arguments_.stage_rows;
    for (int i = threadIdx.x; i < rows << bits; i += blockDim.x) {
      const int row = i >> bits, piece = i & ((1 << bits) - 1);
      if (piece >= pieces) continue;
      T* target = weights(stage, row);
      const T* weight = source + table()[begin + row] * arguments_.weight.row;
      if (bytes > 0) {
        begin_copy(bytes, target, weight, piece);
      } else {
        begin_copy_element(turn, target, weight, piece);
      }
    }
  }

 private:
  PARAMIXER_INLINE int slot(int row, int lane) const {
    const int banks = (8 >> arguments_.lane_bits) - 1;
    return ((row ^ ((row >> 3) & banks)) << arguments_.lane_bits) + lane;
  }

  PARAMIXER_INLINE int32_t* table() const {
    const TileMemory& memory = arguments_.memory;
    return reinterpret_cast<int32_t*>(shared_ + memory.buffers * memory.buffer + 2 * memory.stage);
  }

  // A lane of elements that lie `stride` apart; beyond the last channel it is filled with zeros.
  static __device__ Vector16 gather(const T* address, int64_t stride, int64_t channels) {
    Lane<T> lane;
    PARAMIXER_UNROLL
    for (int c = 0; c < kLaneChannels<T>; ++c) {
      lane.element[c] = c < channels ? address[c * stride] : T{};
    }
    return paramixer::detail::bit_cast<Vector16>(lane);
  }

  static __device__ void scatter(Vector16 vector, T* address, int64_t stride, int64_t channels) {
    const auto lane = paramixer::detail::bit_cast<Lane<T>>(vector);
    PARAMIXER_UNROLL
    for (int c = 0; c < kLaneChannels<T>; ++c) {
      if (c < channels) address[c * stride] = lane.element[c];
    }
  }

  static __device__ void begin_copy(int bytes, T* target, const T* source, int piece) {
    const int element = piece * bytes / static_cast<int>(sizeof(T));
    if (bytes == 16) {
      ptx::cp_async<16>(target + element, source + element);
    } else if (bytes == 8) {
      ptx::cp_async<8>(target + element, source + element);
    } else {
      ptx::cp_async<4>(target + element, source + element);
    }
  }

  // Element `index` of a turn, wherever its weight lies.
  __device__ void begin_copy_element(const Turn& turn, T* target, const T* source,
                                     int index) const {
    int64_t offset = index * arguments_.weight.column;
    if (turn.factors == 2) {
      offset = turn.column[index] * arguments_.weight.column;
      if (index >= arguments_.links) offset += arguments_.weight_factor;
    }
    if constexpr (sizeof(T) == 4) {
      ptx::cp_async<4>(target + index, source + offset);
    } else {
      target[index] = source[offset];
    }
  }

  const TileArguments<T>& arguments_;
  unsigned char* const shared_;
};

}  // namespace paramixer::cuda
