// Plans of chains: a plain interpreter follows a plan's sweeps, rings and deals row by row, and
// must come to what the definition of the chain gives. Weights and values are integers modulo 2^64,
// whose sums are exact in any order: one wrong term shows in the result.

#include "core/chain_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "chain_cases.h"

namespace paramixer {
namespace {

using testing::Protocol;

// A value of the chain, or a row that a tile does not have.
struct Row {
  uint64_t value = 0;
  bool known = false;
};

struct Chain {
  int64_t length;
  int factors;
  int links;
  std::vector<int64_t> offsets;
  bool previous;  // the residual
  std::vector<uint64_t> weights;
  std::vector<uint64_t> values;

  Chain(int64_t length, const Protocol& protocol, bool previous)
      : length(length),
        factors(testing::factor_count(protocol)),
        links(protocol.links),
        offsets(protocol.offsets),
        previous(previous),
        weights(length * factors * links),
        values(length) {
    std::mt19937_64 random(length);
    for (auto& weight : weights) weight = random();
    for (auto& value : values) value = random();
  }

  uint64_t weight(int64_t position, int factor, int link) const {
    return weights[(position * factors + factor) * links + link];
  }

  std::vector<uint64_t> result() const {
    std::vector<uint64_t> state = values;
    for (int m = 0; m < factors; ++m) {
      std::vector<uint64_t> next(length);
      for (int64_t i = 0; i < length; ++i) {
        if (previous) next[i] = state[i];
        for (int k = 0; k < links; ++k) {
          next[i] +=
              weight(i, m, k) *
              state[reduce_offset(i + reduce_offset(offsets[m * links + k], length), length)];
        }
      }
      state = next;
    }
    return state;
  }
};

class Interpreter {
 public:
  Interpreter(const Chain& chain, const ChainPlan& plan)
      : chain_(chain), plan_(plan), result_(chain.length) {
    std::vector<Row> rows;
    for (const uint64_t value : chain.values) rows.push_back({value, true});
    if (plan.sweeps[0].tile == 0 && plan.cost == 0) {
      run(0, 0, rows);
    } else {
      for (const Sweep& sweep : plan.sweeps) rows = sweep_in_place(sweep, rows);
      result_ = rows;
    }
  }

  const std::vector<Row>& result() const { return result_; }

 private:
  // Link k of a factor, as the sweep says: how far along the ring, and in which column.
  struct Link {
    int64_t distance;
    int column;
  };

  std::vector<Link> links_of(const Sweep& sweep, int factor) const {
    std::vector<Link> links;
    if (sweep.factors == 2 && sweep.tile == 0) {
      const int64_t distance = factor + 1;
      for (int k = 0; k < 3; ++k) {
        const int64_t along = k == 0 ? 0 : k == 1 ? distance : -distance;
        links.push_back({along, sweep.columns[3 * factor + k]});
      }
      return links;
    }
    for (int k = 0; k < chain_.links; ++k) {
      if (sweep.offsets == nullptr) {  // a product
        links.push_back({chain_.offsets[sweep.first * chain_.links + k], k});
        continue;
      }
      const int64_t offset = sweep.offsets[factor * chain_.links + k];
      EXPECT_TRUE(0 <= offset && offset < sweep.ring);
      links.push_back({2 * offset > sweep.ring ? offset - sweep.ring : offset, k});
    }
    return links;
  }

  int64_t position(const Sweep& sweep, int64_t r, int64_t p) const {
    return (r + reduce_offset(p, sweep.ring) * sweep.step) % chain_.length;
  }

  // One factor times all rows of a whole ring, or times those of a tile that starts at `begin`: a
  // link that leaves the tile has no value.
  std::vector<Row> apply(const Sweep& sweep, int factor, int64_t r, const std::vector<Row>& rows,
                         int64_t begin, bool whole) const {
    const auto size = static_cast<int64_t>(rows.size());
    const auto links = links_of(sweep, factor);
    std::vector<Row> next(size);
    for (int64_t p = 0; p < size; ++p) {
      next[p] = {chain_.previous ? rows[p].value : 0, rows[p].known};
      for (const Link& link : links) {
        int64_t other = p + link.distance;
        if (whole) other = reduce_offset(other, size);
        if (other < 0 || other >= size || !rows[other].known) {
          next[p].known = false;
          continue;
        }
        const int64_t i = position(sweep, r, begin + p);
        next[p].value += chain_.weight(i, sweep.first + factor, link.column) * rows[other].value;
      }
    }
    return next;
  }

  std::vector<Row> sweep_ring(const Sweep& sweep, int64_t r, const std::vector<Row>& rows) const {
    const int64_t tile = sweep.tile, halo = sweep.halo;
    if (tile == 0 || tile == sweep.ring) {
      std::vector<Row> state = rows;
      for (int factor = 0; factor < sweep.factors; ++factor) {
        state = apply(sweep, factor, r, state, 0, true);
      }
      return state;
    }
    std::vector<Row> result(rows.size());
    for (int64_t begin = 0; begin < sweep.ring; begin += tile) {
      std::vector<Row> state;
      for (int64_t p = begin - halo; p < begin + tile + halo; ++p) {
        state.push_back(rows[reduce_offset(p, sweep.ring)]);
      }
      for (int factor = 0; factor < sweep.factors; ++factor) {
        state = apply(sweep, factor, r, state, begin - halo, false);
      }
      for (int64_t p = begin; p < std::min(begin + tile, sweep.ring); ++p) {
        result[p] = state[p - begin + halo];
      }
    }
    return result;
  }

  // Every ring of a sweep whose rows keep their order.
  std::vector<Row> sweep_in_place(const Sweep& sweep, const std::vector<Row>& state) const {
    std::vector<Row> next(state.size());
    for (int64_t r = 0; r < sweep.classes; ++r) {
      std::vector<Row> ring;
      for (int64_t p = 0; p < sweep.ring; ++p) ring.push_back(state[position(sweep, r, p)]);
      ring = sweep_ring(sweep, r, ring);
      for (int64_t p = 0; p < sweep.ring; ++p) next[position(sweep, r, p)] = ring[p];
    }
    return next;
  }

  void run(size_t s, int64_t r, const std::vector<Row>& input) {
    const Sweep& sweep = plan_.sweeps[s];
    ASSERT_EQ(static_cast<int64_t>(input.size()), sweep.ring);
    const std::vector<Row> rows = sweep_ring(sweep, r, input);
    if (s + 1 == plan_.sweeps.size()) {
      for (int64_t p = 0; p < sweep.ring; ++p) {
        Row& row = result_[position(sweep, r, p)];
        ASSERT_FALSE(row.known) << "a row of the result was written twice";
        row = rows[p];
      }
      return;
    }
    const Deal& deal = sweep.deal;
    std::vector<std::vector<Row>> classes(deal.classes, std::vector<Row>(deal.rows));
    for (int64_t p = 0; p < sweep.ring; ++p) {
      const int64_t q = p % deal.deal;
      classes.at(deal.class_of[q]).at(deal.start[q] + p / deal.deal) = rows[p];
    }
    for (int64_t c = 0; c < deal.classes; ++c) {
      run(s + 1, position(sweep, r, c), classes[c]);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }

  const Chain& chain_;
  const ChainPlan& plan_;
  std::vector<Row> result_;
};

std::vector<PlanOptions> all_options(int64_t length) {
  std::vector<PlanOptions> list;
  for (const bool pairs : {true, false}) {
    for (const int64_t small_ring : {int64_t{1}, int64_t{8}, length}) {
      list.push_back({.pairs = pairs, .small_ring = small_ring});
    }
  }
  return list;
}

ChainPlan plan_of(int64_t length, const Protocol& protocol, const PlanOptions& options) {
  return plan_chain(length, testing::factor_count(protocol), protocol.links, protocol.offsets,
                    options);
}

std::string describe(int64_t length, const Protocol& protocol, const PlanOptions& options) {
  return "N=" + std::to_string(length) + ", " + std::to_string(testing::factor_count(protocol)) +
         " factors, " + protocol.name + ", " + (options.pairs ? "pairs" : "no pairs") +
         ", small ring " + std::to_string(options.small_ring);
}

// Calls body(N, protocol, options) for every small case until one fails.
template <typename Body>
void for_each_plan(const Body& body) {
  std::vector<int64_t> lengths(40);
  std::iota(lengths.begin(), lengths.end(), 1);
  for (const int64_t length : {64, 96, 100, 125, 128, 257}) lengths.push_back(length);
  for (const int64_t length : lengths) {
    const int most = static_cast<int>(default_factors(length)) + 2;
    for (int factors = 1; factors <= most; ++factors) {
      for (const Protocol& protocol : testing::protocols(length, factors)) {
        for (const PlanOptions& options : all_options(length)) {
          SCOPED_TRACE(describe(length, protocol, options));
          body(length, protocol, options);
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
  }
}

TEST(ChainPlan, GivesTheChain) {
  for_each_plan([](int64_t length, const Protocol& protocol, const PlanOptions& options) {
    for (const bool previous : {false, true}) {
      const Chain chain(length, protocol, previous);
      const ChainPlan plan = plan_of(length, protocol, options);
      const Interpreter interpreter(chain, plan);
      const auto expected = chain.result();
      for (int64_t i = 0; i < length; ++i) {
        const Row& row = interpreter.result()[i];
        ASSERT_TRUE(row.known && row.value == expected[i]) << "row " << i;
      }
    }
  });
}

// Calls body(N, protocol, cuts, options) for plans in tiles of all sizes until one fails.
template <typename Body>
void for_each_tile_plan(const Body& body) {
  std::vector<int64_t> lengths(24);
  std::iota(lengths.begin(), lengths.end(), 1);
  for (const int64_t length : {64, 96, 100, 128, 257}) lengths.push_back(length);
  for (const int64_t length : lengths) {
    const int factors = static_cast<int>(default_factors(length)) + 1;
    for (const Protocol& protocol : testing::protocols(length, factors)) {
      for (const int64_t rows : {int64_t{0}, int64_t{1}, int64_t{8}, int64_t{32}, length}) {
        for (const int most : {1, 3, 16}) {
          for (const auto& cuts : {std::vector<int64_t>{}, {1}, {factors / 2 + 1, factors}}) {
            const TileOptions options = {.rows = rows, .channels = 4, .factors = most};
            SCOPED_TRACE(describe(length, protocol, {}) + ", tiles of " + std::to_string(rows));
            body(length, protocol, cuts, options);
            if (::testing::Test::HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST(SavedBoundaries, CutALongChainAfterPairs) {
  using Cuts = std::vector<int64_t>;
  EXPECT_EQ(saved_boundaries(1), Cuts{});
  EXPECT_EQ(saved_boundaries(2), Cuts{1});
  EXPECT_EQ(saved_boundaries(5), (Cuts{1, 3}));
  EXPECT_EQ(saved_boundaries(6), (Cuts{2, 4}));
  EXPECT_EQ(saved_boundaries(14), (Cuts{4, 8}));
  EXPECT_EQ(saved_boundaries(17), (Cuts{4, 10}));
}

ChainPlan plan_in_tiles(int64_t length, const Protocol& protocol, const TileOptions& options,
                        const std::vector<int64_t>& cuts = {}) {
  return plan_tiles(length, testing::factor_count(protocol), protocol.offsets, cuts, options);
}

TEST(TilePlan, GivesTheChain) {
  for_each_tile_plan(
      [](int64_t length, const Protocol& protocol, const auto& cuts, const TileOptions& options) {
        const Chain chain(length, protocol, true);
        const ChainPlan plan = plan_in_tiles(length, protocol, options, cuts);
        const Interpreter interpreter(chain, plan);
        const auto expected = chain.result();
        for (int64_t i = 0; i < length; ++i) {
          const Row& row = interpreter.result()[i];
          ASSERT_TRUE(row.known && row.value == expected[i]) << "row " << i;
        }
      });
}

// What the kernels take for granted.
TEST(TilePlan, HasEveryFactorOnceAndEndsAtCuts) {
  for_each_tile_plan(
      [](int64_t length, const Protocol& protocol, const auto& cuts, const TileOptions& options) {
        const ChainPlan plan = plan_in_tiles(length, protocol, options, cuts);
        std::vector<int64_t> ends;
        int next = 0;
        for (const Sweep& sweep : plan.sweeps) {
          ASSERT_EQ(sweep.first, next);
          ends.push_back(next += sweep.factors);
          if (sweep.tile == 0) {
            ASSERT_EQ(sweep.factors, 1);
            continue;
          }
          ASSERT_LE(sweep.factors, options.factors);
          ASSERT_EQ(sweep.classes * sweep.ring, length);
          const int64_t on_chip = sweep.tile + 2 * sweep.halo;
          ASSERT_LE(on_chip, std::min(sweep.ring, options.rows));
          if (sweep.tile == sweep.ring) continue;
          // One row less would need a tile more.
          const auto tiles = [&](int64_t rows) { return (sweep.ring + rows - 1) / rows; };
          ASSERT_EQ(tiles(sweep.tile), tiles(options.rows - 2 * sweep.halo));
        }
        ASSERT_EQ(next, testing::factor_count(protocol));
        for (const int64_t cut : cuts) {
          if (cut > next) continue;
          ASSERT_TRUE(std::find(ends.begin(), ends.end(), cut) != ends.end()) << cut;
        }
      });
}

// The short links of the first factors go with a halo, the others within their class.
TEST(TilePlan, OfCdilOverAPowerOfTwoEndsInWholeClasses) {
  const auto protocol = testing::make_protocol("cdil", cdil(16384));
  const ChainPlan plan =
      plan_in_tiles(16384, protocol, {.rows = 512, .factors = 16, .factor_cost = 0.1});
  ASSERT_EQ(plan.sweeps.size(), 2);
  EXPECT_EQ(plan.sweeps[0].factors, 5);
  EXPECT_EQ(plan.sweeps[0].halo, 31);
  EXPECT_EQ(plan.sweeps[1].factors, 9);
  EXPECT_EQ(plan.sweeps[1].classes, 32);
  EXPECT_EQ(plan.sweeps[1].tile, plan.sweeps[1].ring);
  // The last factors alone would do with smaller rings, but a block has room for more.
  const std::vector<int64_t> cuts = {10};
  EXPECT_EQ(plan_in_tiles(16384, protocol, {.rows = 512, .factors = 16, .factor_cost = 0.1}, cuts)
                .sweeps.back()
                .ring,
            512);
}

// What the kernels take for granted.
TEST(ChainPlan, HasEveryFactorOnceAndRingsThatCoverAllRows) {
  for_each_plan([](int64_t length, const Protocol& protocol, const PlanOptions& options) {
    const ChainPlan plan = plan_of(length, protocol, options);
    int next = 0;
    int64_t step = 1 % length;
    for (size_t s = 0; s < plan.sweeps.size(); ++s) {
      const Sweep& sweep = plan.sweeps[s];
      const Deal& deal = sweep.deal;
      ASSERT_EQ(sweep.first, next);
      next += sweep.factors;
      ASSERT_EQ(sweep.step, step);
      ASSERT_EQ(sweep.classes, std::gcd(length, step));
      ASSERT_EQ(sweep.classes * sweep.ring, length);
      ASSERT_EQ(deal.classes * deal.rows, sweep.ring);
      ASSERT_TRUE(1 <= deal.deal && deal.deal <= Deal::kMost);
      ASSERT_EQ(deal.deal & (deal.deal - 1), 0);  // the first rows of classes then need no modulo
      ASSERT_LT((sweep.classes - 1) + (deal.classes - 1) * step, length);
      ASSERT_TRUE(deal.deal == 1 || options.pairs || options.small_ring < length);
      step = step * deal.deal % length;
    }
    ASSERT_EQ(next, testing::factor_count(protocol));
    ASSERT_EQ(plan.sweeps.back().deal.deal, 1);
  });
}

// Two factors a sweep, and four classes after each, from the offsets alone.
TEST(ChainPlan, OfCdilOverAPowerOfTwoHasPairsAndClosedClasses) {
  for (const int64_t length : {16, 64, 128, 1024, 16384}) {
    const int factors = static_cast<int>(default_factors(length));
    for (const Protocol& protocol : testing::protocols(length, factors)) {
      if (protocol.name != "cdil 3" && protocol.name != "permuted cdil 3" &&
          protocol.name != "cdil modulo N") {
        continue;
      }
      SCOPED_TRACE(describe(length, protocol, {}));
      const ChainPlan pairs = plan_of(length, protocol, {});
      ASSERT_EQ(pairs.sweeps.size(), (factors + 1) / 2);
      for (size_t s = 0; s < pairs.sweeps.size(); ++s) {
        ASSERT_EQ(pairs.sweeps[s].factors, std::min(2, factors - 2 * static_cast<int>(s)));
        ASSERT_EQ(pairs.sweeps[s].classes, int64_t{1} << (2 * s));
      }
      const ChainPlan singles = plan_of(length, protocol, {.pairs = false});
      ASSERT_EQ(singles.sweeps.size(), factors);
      for (const Sweep& sweep : singles.sweeps) {
        ASSERT_EQ(sweep.classes, int64_t{1} << sweep.first);
        for (int k = 0; k < 3; ++k) {  // the neighbours on the ring
          ASSERT_TRUE(sweep.offsets[k] <= 1 || sweep.offsets[k] == sweep.ring - 1);
        }
      }
    }
  }
}

// Where N is odd no class closes, but in the order of a dealt ring the links of a pair are short.
TEST(ChainPlan, OfCdilOverAnOddRingHasPairs) {
  for (const int64_t length : {17, 257, 16385}) {
    const int factors = static_cast<int>(default_factors(length));
    const auto protocol = testing::make_protocol("cdil", cdil(length, factors));
    const ChainPlan plan = plan_of(length, protocol, {});
    ASSERT_EQ(plan.sweeps.size(), (factors + 1) / 2);
    for (const Sweep& sweep : plan.sweeps) ASSERT_EQ(sweep.ring, length);
  }
}

}  // namespace
}  // namespace paramixer
