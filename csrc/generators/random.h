// The random numbers of the generators. Each sample has a stream of its own, a function of the seed
// and of the sample's index alone, so that neither threads nor the order of work can change it.
#pragma once

#include <cstdint>

namespace paramixer::generators {

// What a stream is for: two tasks with the same seed and index draw different numbers.
using StreamId = uint64_t;

// Counter based: draw number c of a stream is a hash of key + c * odd constant (SplitMix64: Steele,
// Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
class Random {
 public:
  Random(uint64_t seed, StreamId stream, uint64_t index)
      : state_(hash(hash(hash(seed) + stream) + index)) {}

  uint64_t next() { return hash(state_ += kStep); }

  // Uniform in [0, bound); `bits` are 32 random ones. No value's share is off by more than 2^-32.
  static int scale(uint32_t bits, int bound) {
    return static_cast<int>((uint64_t{bits} * static_cast<uint64_t>(bound)) >> 32);
  }

  int below(int bound) { return scale(static_cast<uint32_t>(next() >> 32), bound); }

  // Uniform in [0, 1), a multiple of 2^-53.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  static constexpr uint64_t kStep = 0x9E3779B97F4A7C15;

  static uint64_t hash(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
  }

  uint64_t state_;
};

}  // namespace paramixer::generators
