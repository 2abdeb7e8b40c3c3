// A track of a range of rows comes from a range of equally many rows, or from two where the ring
// closes: a rotation is a copy of runs, one for each row and track. Tracks take turns in blocks of
// rows that stay in L1, so that every cache line leaves it once and whole. Each element is read and
// written once, through the caches: a copy that streams past them is about twice as fast.

#include "cpu/rotate_tracks.h"

#include <algorithm>
#include <cstring>

namespace paramixer::cpu {
namespace {

constexpr int64_t kBlockBytes = 16384;

struct Rows {
  char* first;
  int64_t stride;  // bytes
};

// Copies `count` runs of `bytes` bytes, in chunks of kChunk <= bytes. The last chunk ends where the
// run does and may overlap the one before.
template <int64_t kChunk>
void copy_chunks(Rows target, Rows source, int64_t bytes, int64_t count) {
  const int64_t last = bytes - kChunk;
  for (int64_t i = 0; i < count; ++i) {
    char* const to = target.first + i * target.stride;
    const char* const from = source.first + i * source.stride;
    for (int64_t at = 0; at < last; at += kChunk) std::memcpy(to + at, from + at, kChunk);
    std::memcpy(to + last, from + last, kChunk);
  }
}

void copy_runs(Rows target, Rows source, int64_t bytes, int64_t count) {
  if (bytes >= 16) return copy_chunks<16>(target, source, bytes, count);
  if (bytes >= 8) return copy_chunks<8>(target, source, bytes, count);
  if (bytes >= 4) return copy_chunks<4>(target, source, bytes, count);
  copy_chunks<2>(target, source, bytes, count);
}

// The rows of one batch item.
class Sequence {
 public:
  Sequence(const Rotation& rotation, int64_t element_bytes, int64_t batch)
      : problem_(rotation.problem),
        ring_(rotation.lengths ? rotation.lengths[batch] : rotation.problem.length),
        track_bytes_(rotation.track_width() * element_bytes),
        value_(rows(problem_.value, element_bytes, batch)),
        result_(rows(problem_.result, element_bytes, batch)) {}

  void rotate(int64_t begin, int64_t end) const {
    const int64_t row_bytes = track_bytes_ * problem_.links;
    const int64_t block = std::max<int64_t>(1, kBlockBytes / row_bytes);
    const int64_t last = std::min(end, ring_);
    for (int64_t i = begin; i < last; i += block) rotate_block(i, std::min(i + block, last));
    for (int64_t i = std::max(begin, ring_); i < end; ++i) {
      std::memset(result_.first + i * result_.stride, 0, row_bytes);
    }
  }

 private:
  Rows rows(const Operand& operand, int64_t element_bytes, int64_t batch) const {
    char* const data = static_cast<char*>(operand.data);
    return {data + batch_offset(problem_, operand, batch) * element_bytes,
            operand.row * element_bytes};
  }

  void rotate_block(int64_t begin, int64_t end) const {
    for (int track = 0; track < problem_.links; ++track) {
      const int64_t shift = reduce_offset(problem_.offsets[track], ring_);
      const int64_t closes = std::clamp(ring_ - shift, begin, end);  // from here the source wraps
      copy_track(track, begin, closes, shift);
      copy_track(track, closes, end, shift - ring_);
    }
  }

  void copy_track(int track, int64_t begin, int64_t end, int64_t shift) const {
    const auto at = [&](const Rows& rows, int64_t row) {
      return Rows{rows.first + row * rows.stride + track * track_bytes_, rows.stride};
    };
    copy_runs(at(result_, begin), at(value_, begin + shift), track_bytes_, end - begin);
  }

  const Problem& problem_;
  const int64_t ring_, track_bytes_;
  const Rows value_, result_;
};

}  // namespace

void rotate_tracks(const Rotation& rotation, int64_t element_bytes, RowRange range) {
  const int64_t length = rotation.problem.length;
  for (int64_t row = range.begin; row < range.end;) {
    const int64_t batch = row / length;
    const int64_t first = batch * length;
    const int64_t end = std::min(range.end, first + length);
    Sequence(rotation, element_bytes, batch).rotate(row - first, end - first);
    row = end;
  }
}

}  // namespace paramixer::cpu
