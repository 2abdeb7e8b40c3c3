// Warp collectives: shuffles, votes and reductions. Each is an operand that every lane brings and
// one exchange over the operands of all lanes. Included by simt.h.
#pragma once

#include <bit>
#include <type_traits>

#include "simt.h"

namespace simt::detail {

inline constexpr unsigned kAllLanes = 0xffffffffu;

// The operands of the lanes that met.
template <typename Operand>
class Lanes {
 public:
  explicit Lanes(void* const* operands) : operands_(operands) {}
  Operand& operator[](unsigned lane) const { return *static_cast<Operand*>(operands_[lane]); }

  // Calls visit(operand) in the order of lanes.
  template <typename Visit>
  void each(Visit visit) const {
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      if (operands_[lane]) visit((*this)[lane]);
    }
  }

 private:
  void* const* operands_;
};

// `Exchange` is a lambda without captures that takes Lanes<Operand>.
template <typename Operand, typename Exchange>
void meet(const char* name, unsigned mask, Operand& operand, const std::source_location& where,
          Exchange) {
  meet({name, mask, where, &operand,
        [](void* const* operands) { Exchange{}(Lanes<Operand>(operands)); }});
}

inline void check_width(int width, const std::source_location& where) {
  if (width < 1 || width > static_cast<int>(kWarp) || !std::has_single_bit(unsigned(width))) {
    fail("the width of a shuffle must be a power of two up to 32, got " + std::to_string(width),
         where);
  }
}

template <typename T>
T shuffle(const char* name, unsigned mask, T value, unsigned source,
          const std::source_location& where) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "shuffles move numbers of 4 or 8 bytes");
  if (!(mask >> source & 1)) {
    fail(
        std::string(name) + " reads lane " + std::to_string(source) + ", which its mask leaves out",
        where);
  }
  struct Operand {
    T value;
    unsigned source;
    T result;
  } operand{value, source, {}};
  meet(name, mask, operand, where, [](Lanes<Operand> lanes) {
    lanes.each([&](Operand& lane) { lane.result = lanes[lane.source].value; });
  });
  return operand.result;
}

// Gives every lane what `combine` makes of the values of all, in the order of lanes.
template <typename T, typename Combine>
T reduce(const char* name, unsigned mask, T value, const std::source_location& where, Combine) {
  meet(name, mask, value, where, [](Lanes<T> lanes) {
    bool first = true;
    T result{};
    lanes.each([&](T& lane) {
      result = first ? lane : Combine{}(result, lane);
      first = false;
    });
    lanes.each([&](T& lane) { lane = result; });
  });
  return value;
}

}  // namespace simt::detail

// ---- shuffles: lanes are cut into segments of `width`; what lies outside of one is the own value

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              const std::source_location where = std::source_location::current()) {
  simt::detail::check_width(width, where);
  const unsigned segment = simt::detail::lane_index() & ~(static_cast<unsigned>(width) - 1);
  const unsigned inside = static_cast<unsigned>(source) & (static_cast<unsigned>(width) - 1);
  return simt::detail::shuffle(__func__, mask, value, segment + inside, where);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  const std::source_location where = std::source_location::current()) {
  simt::detail::check_width(width, where);
  const unsigned lane = simt::detail::lane_index();
  const unsigned source = (lane ^ static_cast<unsigned>(lane_mask)) % simt::kWarp;
  // A lane of a later segment cannot be read, one of an earlier segment can.
  const bool readable = source / width <= lane / width;
  return simt::detail::shuffle(__func__, mask, value, readable ? source : lane, where);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 const std::source_location where = std::source_location::current()) {
  simt::detail::check_width(width, where);
  const unsigned lane = simt::detail::lane_index();
  const bool inside = delta <= lane % width;
  return simt::detail::shuffle(__func__, mask, value, inside ? lane - delta : lane, where);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   const std::source_location where = std::source_location::current()) {
  simt::detail::check_width(width, where);
  const unsigned lane = simt::detail::lane_index();
  const bool inside = delta < width - lane % width;
  return simt::detail::shuffle(__func__, mask, value, inside ? lane + delta : lane, where);
}

// ---- votes

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              const std::source_location where = std::source_location::current()) {
  const unsigned own = (predicate ? 1u : 0u) << simt::detail::lane_index();
  return simt::detail::reduce(__func__, mask, own, where,
                              [](unsigned a, unsigned b) { return a | b; });
}

inline int __any_sync(unsigned mask, int predicate,
                      const std::source_location where = std::source_location::current()) {
  return simt::detail::reduce(__func__, mask, int{predicate != 0}, where,
                              [](int a, int b) { return a | b; });
}

inline int __all_sync(unsigned mask, int predicate,
                      const std::source_location where = std::source_location::current()) {
  return simt::detail::reduce(__func__, mask, int{predicate != 0}, where,
                              [](int a, int b) { return a & b; });
}

// ---- reductions of int and unsigned

template <typename T>
T __reduce_add_sync(unsigned mask, T value,
                    const std::source_location where = std::source_location::current()) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return simt::detail::reduce(__func__, mask, value, where, [](T a, T b) {
    return static_cast<T>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
  });
}

template <typename T>
T __reduce_min_sync(unsigned mask, T value,
                    const std::source_location where = std::source_location::current()) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return simt::detail::reduce(__func__, mask, value, where, [](T a, T b) { return b < a ? b : a; });
}

template <typename T>
T __reduce_max_sync(unsigned mask, T value,
                    const std::source_location where = std::source_location::current()) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return simt::detail::reduce(__func__, mask, value, where, [](T a, T b) { return a < b ? b : a; });
}

// ---- barriers of a warp

inline void __syncwarp(unsigned mask = simt::detail::kAllLanes,
                       const std::source_location where = std::source_location::current()) {
  int nothing = 0;
  simt::detail::meet(__func__, mask, nothing, where, [](simt::detail::Lanes<int>) {});
}
