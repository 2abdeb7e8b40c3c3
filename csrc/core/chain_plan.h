// How a chain of M sparse factors runs over a ring of N rows: which factors go together in one
// sweep over the rows, and in which order the rows lie in between.
//
// Factor m of a dilated protocol (CDIL) links rows a multiple of a *step* apart, and the steps grow
// from factor to factor. A step cuts the ring into *classes*: rows r, r + step, r + 2 step, ..
// (mod N), gcd(N, step) of them, each a ring of its own with N / gcd(N, step) rows, on which the
// links are short again. A sweep writes its result in the order of the classes of the next one
// (it *deals* the rows), and from then on the classes have nothing to do with each other: each runs
// through the rest of the chain alone, while it stays in a nearer and nearer cache. Where N is odd
// there is one class, with its rows in another order.
//
// That is plan_chain's way, for caches. plan_tiles plans for memory that a program fills itself: a
// sweep brings a tile of rows on chip and takes it through as many factors as pay, and rows keep
// their order in between. A tile is a whole ring, or has rows around it (the halo) from which the
// factors work their way inwards.
//
// Structure is found from the offsets alone. Factors without it (CHORD) stay on the ring they are
// on. Torch-free, plain integers.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "core/problem.h"

namespace paramixer {

struct ChainPlan {
  std::vector<Sweep> sweeps;
  std::vector<std::vector<int64_t>> offsets;  // what the sweeps point to
  double cost = 0;                            // of plans in tiles, as TileOptions counts it
};

inline Deal make_deal(int64_t ring, int deal) {
  Deal result;
  result.deal = deal;
  result.classes = std::gcd(ring, int64_t{deal});
  result.rows = ring / result.classes;
  for (int64_t q = 0; q < deal; ++q) {
    result.class_of[q] = q % result.classes;
    int64_t ahead = q - result.class_of[q];  // rows from the class's first one, modulo the ring
    while (ahead % deal != 0) ahead += ring;
    result.start[q] = ahead / deal;
  }
  return result;
}

namespace detail {

// The offset counted in steps, in [0, ring); -1 where no number of steps gives it.
inline int64_t in_steps(int64_t offset, int64_t step, int64_t length) {
  const int64_t classes = std::gcd(length, step);
  const int64_t ring = length / classes;
  if (reduce_offset(offset, classes) != 0) return -1;
  // (step / classes) u = offset / classes (mod ring): Euclid's algorithm inverts the first factor.
  int64_t a = step / classes, b = ring, inverse = 1, next_inverse = 0;
  while (b != 0) {
    const int64_t quotient = a / b;
    a = std::exchange(b, a - quotient * b);
    inverse = std::exchange(next_inverse, inverse - quotient * next_inverse);
  }
  const auto steps = static_cast<__int128>(reduce_offset(inverse, ring)) *
                     (reduce_offset(offset, length) / classes);
  return static_cast<int64_t>(steps % ring);
}

// The offset in [0, ring) as the shorter way along the ring, backwards below zero.
inline int64_t shorter_way(int64_t offset, int64_t ring) {
  return 2 * offset > ring ? offset - ring : offset;
}

// Every offset of a factor in steps; empty where one has no such form.
inline std::vector<int64_t> all_in_steps(std::span<const int64_t> offsets, int64_t step,
                                         int64_t length) {
  std::vector<int64_t> result;
  for (const int64_t offset : offsets) {
    result.push_back(in_steps(offset, step, length));
    if (result.back() < 0) return {};
  }
  return result;
}

// The largest distance along the ring, either way.
inline int64_t reach(const std::vector<int64_t>& offsets, int64_t ring) {
  int64_t farthest = 0;
  for (const int64_t offset : offsets) {
    farthest = std::max(farthest, std::abs(shorter_way(offset, ring)));
  }
  return farthest;
}

// The columns whose offsets lead as far along a ring as those wanted, in their order and each
// column once; empty if these are not the links.
inline std::vector<int> find_columns(std::span<const int64_t> offsets,
                                     std::span<const int64_t> wanted, int64_t ring) {
  if (offsets.size() != wanted.size()) return {};
  std::vector<bool> used(offsets.size());
  std::vector<int> columns;
  for (const int64_t offset : wanted) {
    size_t found = 0;
    while (found < offsets.size() &&
           (used[found] || reduce_offset(offsets[found], ring) != reduce_offset(offset, ring))) {
      ++found;
    }
    if (found == offsets.size()) return {};
    used[found] = true;
    columns.push_back(static_cast<int>(found));
  }
  return columns;
}

// The columns of a pair, two factors with links 0, d, -d and 0, 2 d, -2 d of a ring; empty where
// they are none.
inline std::vector<int> find_pair_columns(std::span<const int64_t> first,
                                          std::span<const int64_t> second, int64_t distance,
                                          int64_t ring) {
  auto columns = find_columns(first, std::array{int64_t{0}, distance, -distance}, ring);
  const auto next = find_columns(second, std::array{int64_t{0}, 2 * distance, -2 * distance}, ring);
  if (columns.empty() || next.empty()) return {};
  columns.insert(columns.end(), next.begin(), next.end());
  return columns;
}

}  // namespace detail

struct PlanOptions {
  bool pairs = true;       // two factors a sweep where they allow it
  int64_t small_ring = 1;  // rings of at most so many rows are dealt no further, but for pairs
};

// `offsets` are M * K, factor by factor, of any sign and size; N >= 1.
inline ChainPlan plan_chain(int64_t length, int factors, int links,
                            std::span<const int64_t> offsets, PlanOptions options) {
  const auto ring_of = [&](int64_t step) { return length / std::gcd(length, step); };
  const auto in_steps = [&](int factor, int64_t step) {
    return detail::all_in_steps(offsets.subspan(size_t(factor) * links, links), step, length);
  };
  // The columns of a pair that starts with `factor`; empty where there is none.
  const auto pair_columns = [&](int factor, int64_t step) {
    if (!options.pairs || factor + 1 >= factors) return std::vector<int>();
    return detail::find_pair_columns(in_steps(factor, step), in_steps(factor + 1, step), 1,
                                     ring_of(step));
  };
  // Whether a step serves all factors from this one on: classes never meet again.
  const auto all_from = [&](int factor, int64_t step) {
    for (; factor < factors; ++factor) {
      if (in_steps(factor, step).empty()) return false;
    }
    return true;
  };
  // How much larger the step becomes before `factor`: so that its links are shortest.
  const auto deal_before = [&](int factor, int64_t step) {
    int best = 1;
    int64_t shortest = detail::reach(in_steps(factor, step), ring_of(step));
    for (const int deal : {2, 4}) {
      if (!all_from(factor, step * deal)) break;
      const auto along = in_steps(factor, step * deal);
      const int64_t distance = detail::reach(along, ring_of(step * deal));
      if (distance < shortest) best = deal, shortest = distance;
    }
    const bool nearer = ring_of(step) > options.small_ring && ring_of(step * best) < ring_of(step);
    return nearer || !pair_columns(factor, step * best).empty() ? best : 1;
  };
  ChainPlan plan;
  int64_t step = 1 % length;
  for (int m = 0; m < factors;) {
    Sweep sweep;
    sweep.first = m;
    sweep.step = step;
    sweep.ring = ring_of(step);
    sweep.classes = length / sweep.ring;
    const std::vector<int> columns = pair_columns(m, step);
    std::copy(columns.begin(), columns.end(), sweep.columns);
    sweep.factors = columns.empty() ? 1 : 2;
    std::vector<int64_t>& along = plan.offsets.emplace_back();
    for (int factor = m; factor < m + sweep.factors; ++factor) {
      const auto one = in_steps(factor, step);
      along.insert(along.end(), one.begin(), one.end());
    }
    sweep.offsets = along.data();  // moving a vector leaves its elements in place
    m += sweep.factors;
    sweep.deal = make_deal(sweep.ring, m < factors ? deal_before(m, step) : 1);
    step = step * sweep.deal.deal % length;  // a multiple of N steps nowhere, as N does
    plan.sweeps.push_back(sweep);
  }
  return plan;
}

// What a tile may hold, and what things cost: per row, in units of moving the row once between
// memory and chip.
struct TileOptions {
  int64_t rows = 0;  // of a tile with its halos; 0: no tiles
  int64_t channels = 0;
  int factors = 1;          // at most so many in a sweep
  double move_cost = 1;     // of a row that goes on chip or comes back
  double factor_cost = 0;   // of a factor times a row that is on chip
  double product_cost = 2;  // of a factor without tiles
  // The same as `rows` for a sweep whose tile is not known yet; none: `rows` for all.
  std::function<int64_t(const Sweep&)> rows_of = nullptr;
};

namespace detail {

// The shortest distance other than 0 that a link leads, either way; 1 where all lead nowhere.
inline int64_t shortest_link(std::span<const int64_t> offsets, int64_t length) {
  int64_t shortest = length;
  for (const int64_t offset : offsets) {
    const int64_t ahead = reduce_offset(offset, length);
    if (ahead != 0) shortest = std::min({shortest, ahead, length - ahead});
  }
  return shortest < length ? shortest : 1;
}

// Cuts the sweep's rings, whose halos are known, into equal tiles of at most `rows` rows, or makes
// them whole ones; no tile where it does not hold more than its halos.
inline void set_tile(Sweep& sweep, int64_t rows) {
  if (sweep.ring <= rows) {
    sweep.tile = sweep.ring;
    sweep.halo = 0;
    return;
  }
  sweep.tile = std::max<int64_t>(rows - 2 * sweep.halo, 0);
  if (sweep.tile == 0) return;
  const int64_t tiles = (sweep.ring + sweep.tile - 1) / sweep.tile;
  sweep.tile = (sweep.ring + tiles - 1) / tiles;
}

// `factors` factors in tiles along the rings of `step`: their sweep, offsets and cost, but for
// where they begin. Nothing where a tile does not hold what their links reach.
inline std::optional<ChainPlan> plan_tile(int64_t length, int factors, int64_t step,
                                          std::span<const int64_t> offsets,
                                          const TileOptions& options) {
  const size_t links = offsets.size() / factors;
  ChainPlan plan;
  Sweep& sweep = plan.sweeps.emplace_back();
  sweep.factors = factors;
  sweep.step = step % length;
  sweep.classes = std::gcd(length, sweep.step);
  sweep.ring = length / sweep.classes;
  sweep.channels = options.channels;
  std::vector<int64_t>& along = plan.offsets.emplace_back();
  for (int factor = 0; factor < factors; ++factor) {
    const auto one = all_in_steps(offsets.subspan(factor * links, links), sweep.step, length);
    if (one.empty()) return std::nullopt;
    sweep.halo += reach(one, sweep.ring);
    along.insert(along.end(), one.begin(), one.end());
  }
  sweep.offsets = along.data();
  set_tile(sweep, options.rows_of ? options.rows_of(sweep) : options.rows);
  if (sweep.tile < 1) return std::nullopt;
  const int64_t rows = sweep.tile + 2 * sweep.halo;
  const double redundancy = static_cast<double>(rows) / static_cast<double>(sweep.tile);
  plan.cost = options.move_cost + redundancy * (options.move_cost + factors * options.factor_cost);
  return plan;
}

}  // namespace detail

// The factor counts after which a training pass saves the state, where kernels do not compute all
// of them again: at most two, at even counts near the thirds, which leave no factor of a pair
// alone.
inline std::vector<int64_t> saved_boundaries(int64_t factors) {
  const int64_t pieces = std::min<int64_t>(factors, 3);
  std::vector<int64_t> boundaries;
  for (int64_t i = 1; i < pieces; ++i) {
    const int64_t cut = i * factors / pieces;
    boundaries.push_back(factors < 6 ? cut : cut - cut % 2);
  }
  return boundaries;
}

// Another way to take the factors from `first` to before `end` in one sweep: that sweep and its
// cost, or nothing.
using OtherSweep = std::function<std::optional<ChainPlan>(int first, int end)>;

// The cheapest plan in tiles; factors that no tile holds, or that are cheaper without, are sweeps
// of one factor with tile = 0. Sweeps end at `cuts` (ascending numbers of factors), where somebody
// wants the state. `offsets` as in plan_chain. A sweep that `other` makes is taken where it costs
// less.
inline ChainPlan plan_tiles(int64_t length, int factors, std::span<const int64_t> offsets,
                            std::span<const int64_t> cuts, const TileOptions& options,
                            const OtherSweep& other = nullptr) {
  const size_t links = offsets.size() / factors;
  // The cheapest sweep of the factors from `first` to before `end`. A step longer than the shortest
  // link cannot lead along it. Of equal ones the shortest step: a tile then has the most rows.
  const auto sweep_of = [&](int first, int end) {
    const auto theirs = offsets.subspan(first * links, (end - first) * links);
    std::optional<ChainPlan> best;
    for (int64_t step = detail::shortest_link(theirs, length); step > 0; step /= 2) {
      auto plan = detail::plan_tile(length, end - first, step, theirs, options);
      if (plan && (!best || plan->cost <= best->cost)) best = std::move(plan);
    }
    if (end - first == 1 && (!best || options.product_cost < best->cost)) {
      best.emplace();
      best->sweeps.emplace_back().ring = length;
      best->cost = options.product_cost;
    }
    auto another = other ? other(first, end) : std::nullopt;
    if (another && (!best || another->cost < best->cost)) best = std::move(another);
    if (best) best->sweeps[0].first = first;
    return best;
  };
  // rest[m]: the cheapest plan of the factors from m on, as its first sweep and that one's end.
  struct Rest {
    ChainPlan sweep;
    int end = 0;
    double cost = std::numeric_limits<double>::infinity();
  };
  std::vector<Rest> rest(factors + 1);
  rest[factors].cost = 0;
  for (int m = factors - 1; m >= 0; --m) {
    const auto cut = std::upper_bound(cuts.begin(), cuts.end(), int64_t{m});
    int last = std::min(factors, m + options.factors);
    if (cut != cuts.end()) last = static_cast<int>(std::min<int64_t>(last, *cut));
    for (int end = m + 1; end <= last; ++end) {
      auto sweep = sweep_of(m, end);
      if (!sweep) continue;
      const double cost = sweep->cost + rest[end].cost;
      if (cost < rest[m].cost) rest[m] = {std::move(*sweep), end, cost};
    }
  }
  ChainPlan plan;
  plan.cost = rest[0].cost;
  for (int m = 0; m < factors; m = rest[m].end) {
    plan.sweeps.push_back(rest[m].sweep.sweeps[0]);
    // Moving a vector leaves its elements in place, where the sweep points to.
    for (auto& along : rest[m].sweep.offsets) plan.offsets.push_back(std::move(along));
  }
  return plan;
}

}  // namespace paramixer
