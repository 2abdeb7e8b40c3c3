#include "generators/listops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "generators/parallel.h"
#include "generators/random.h"
#include "support.h"

namespace paramixer::generators {
namespace {

// Another way to the value than the generator's stack: by recursive descent, with a table of how
// often each digit occurs.
int value_at(const std::vector<uint8_t>& tokens, size_t& at) {
  const uint8_t token = tokens[at++];
  if (token < 10) return token;
  std::array<int, 10> occurs = {};
  int count = 0, sum = 0;
  while (kListOpsTokens[tokens[at]] != "]") {
    const int value = value_at(tokens, at);
    ++occurs[value], ++count, sum += value;
  }
  ++at;
  const auto ranked = [&](int rank) {  // the value of that rank, from 0
    int value = 0;
    for (int seen = occurs[0]; seen <= rank; seen += occurs[++value]) {
    }
    return value;
  };
  const std::string_view name = kListOpsTokens[token];
  if (name == "[MIN") return ranked(0);
  if (name == "[MAX") return ranked(count - 1);
  if (name == "[SM") return sum % 10;
  return count % 2 == 1 ? ranked(count / 2) : (ranked(count / 2 - 1) + ranked(count / 2)) / 2;
}

std::vector<uint8_t> expression(const ListOpsSamples& samples, size_t i) {
  return {samples.tokens.begin() + samples.offsets[i],
          samples.tokens.begin() + samples.offsets[i + 1]};
}

std::string rows(const ListOpsSamples& samples) {
  std::vector<int64_t> all(samples.labels.size());
  std::iota(all.begin(), all.end(), 0);
  return listops_rows(samples, all);
}

std::vector<uint8_t> parse(const std::string& text) {
  std::vector<uint8_t> tokens;
  for (size_t start = 0; start < text.size();) {
    const size_t end = std::min(text.find(' ', start), text.size());
    const auto found = std::find(kListOpsTokens.begin(), kListOpsTokens.end(),
                                 std::string_view(text).substr(start, end - start));
    tokens.push_back(static_cast<uint8_t>(found - kListOpsTokens.begin()));
    start = end + 1;
  }
  return tokens;
}

const ListOpsOptions kSmall{.max_depth = 5, .max_args = 5, .min_length = 16, .max_length = 64};

TEST(ListOps, EvaluatesKnownExpressions) {
  const std::pair<const char*, int> cases[] = {
      {"7", 7},
      {"[MAX 1 4 ]", 4},
      {"[MIN 3 [MAX 1 2 ] 9 ]", 2},
      {"[MED 1 2 ]", 1},      // 1.5, cut
      {"[MED 9 0 5 ]", 5},    // unsorted
      {"[MED 8 1 4 9 ]", 6},  // (4 + 8) / 2
      {"[SM 9 9 9 ]", 7},     // 27 mod 10
      {"[SM [MED 2 8 8 ] [MIN 5 6 ] ]", 3},
  };
  for (const auto& [text, value] : cases) EXPECT_EQ(evaluate_listops(parse(text)), value) << text;
}

TEST(ListOps, LabelsAreTheValues) {
  for (const ListOpsOptions& options : {kSmall, ListOpsOptions{}}) {
    const ListOpsSamples samples = generate_listops(options, 1, 0, 2000, 2);
    for (size_t i = 0; i < samples.labels.size(); ++i) {
      size_t at = 0;
      const auto tokens = expression(samples, i);
      EXPECT_EQ(samples.labels[i], value_at(tokens, at));
      EXPECT_EQ(at, tokens.size());
    }
  }
}

TEST(ListOps, ExpressionsKeepToTheGrammar) {
  const ListOpsOptions options{
      .max_depth = 4, .max_args = 3, .min_length = 5, .max_length = 20, .operators = {"SM", "MIN"}};
  const ListOpsSamples samples = generate_listops(options, 2, 0, 3000, 1);
  int64_t shortest = 100, longest = 0;
  for (size_t i = 0; i < samples.labels.size(); ++i) {
    const auto tokens = expression(samples, i);
    shortest = std::min<int64_t>(shortest, std::ssize(tokens));
    longest = std::max<int64_t>(longest, std::ssize(tokens));
    std::vector<int> arguments;
    size_t depth = 0;
    for (const uint8_t token : tokens) {
      const std::string_view text = kListOpsTokens[token];
      if (text == "]") {
        EXPECT_GE(arguments.back(), 2);
        EXPECT_LE(arguments.back(), 3);
        arguments.pop_back();
        continue;
      }
      if (!arguments.empty()) ++arguments.back();
      if (token < 10) continue;
      EXPECT_TRUE(text == "[SM" || text == "[MIN") << text;
      arguments.push_back(0);
      depth = std::max(depth, arguments.size());
    }
    EXPECT_TRUE(arguments.empty());
    EXPECT_EQ(samples.depths[i], depth);
    EXPECT_LE(depth, 3u);
  }
  EXPECT_EQ(shortest, 7);  // none has 6
  EXPECT_EQ(longest, 19);
}

TEST(ListOps, DependOnSeedAndIndexAlone) {
  const auto all = generate_listops(kSmall, 3, 0, 500, 1);
  for (const int threads : {2, 7}) {
    const auto same = generate_listops(kSmall, 3, 0, 500, threads);
    EXPECT_EQ(all.tokens, same.tokens);
    EXPECT_EQ(all.offsets, same.offsets);
    EXPECT_EQ(all.labels, same.labels);
    EXPECT_EQ(all.depths, same.depths);
  }
  const auto part = generate_listops(kSmall, 3, 200, 50, 2);
  for (size_t i = 0; i < 50; ++i) EXPECT_EQ(expression(part, i), expression(all, 200 + i));
  EXPECT_NE(all.tokens, generate_listops(kSmall, 4, 0, 500, 1).tokens);
}

// A change of these numbers is a change of every data set that somebody made from a seed.
TEST(ListOps, KeepTheirSequence) {
  const ListOpsOptions options{.max_depth = 3, .min_length = 8, .max_length = 12};
  EXPECT_EQ(rows(generate_listops(options, 0, 0, 3, 1)),
            "( ( ( ( ( [MAX 4 ) 7 ) 7 ) ( ( ( ( ( [MAX 8 ) 5 ) 0 ) 9 ) ] ) ) ] )\t9\r\n"
            "( ( ( [MAX 3 ) ( ( ( ( ( ( [MIN 6 ) 9 ) 9 ) 9 ) 1 ) ] ) ) ] )\t3\r\n"
            "( ( ( [SM 4 ) ( ( ( ( ( ( ( [MED 3 ) 6 ) 3 ) 0 ) 7 ) 5 ) ] ) ) ] )\t8\r\n");
}

TEST(ListOps, RowsAreThoseOfTheOfficialFiles) {
  const ListOpsSamples samples{
      parse("[MAX 1 4 ] [SM 2 [MIN 3 4 ] 5 ] 6"), {0, 4, 12, 13}, {4, 0, 6}, {1, 2, 0}};
  EXPECT_EQ(rows(samples),
            "( ( ( [MAX 1 ) 4 ) ] )\t4\r\n"
            "( ( ( ( [SM 2 ) ( ( ( [MIN 3 ) 4 ) ] ) ) 5 ) ] )\t0\r\n"
            "6\t6\r\n");
  EXPECT_EQ(listops_rows(samples, std::vector<int64_t>{2}), "6\t6\r\n");
  EXPECT_THROW(listops_rows(samples, std::vector<int64_t>{3}), std::out_of_range);
  EXPECT_THROW(listops_rows(samples, std::vector<int64_t>{-1}), std::out_of_range);
}

TEST(ListOps, NoneAreNothing) {
  const auto samples = generate_listops(kSmall, 0, 0, 0, 4);
  EXPECT_TRUE(samples.tokens.empty());
  EXPECT_EQ(samples.offsets, std::vector<int64_t>{0});
  EXPECT_EQ(rows(samples), "");
}

TEST(ListOps, RefuseImpossibleArguments) {
  const auto refuse = [](const ListOpsOptions& options, int64_t first = 0, int64_t count = 1,
                         int threads = 1) {
    return message_of([&] { generate_listops(options, 0, first, count, threads); });
  };
  EXPECT_EQ(refuse({.max_depth = 0}), "listops: max_depth must be in 1 .. 255 (got 0)");
  EXPECT_EQ(refuse({.max_args = 1}), "listops: max_args must be at least 2 (got 1)");
  EXPECT_EQ(refuse({.min_length = -1}), "listops: min_length must be at least 0 (got -1)");
  EXPECT_EQ(refuse({.max_length = 501}),
            "listops: max_length must be at least min_length + 2 = 502 (got 501)");
  EXPECT_EQ(refuse({.operator_probability = 1.5}),
            "listops: operator_probability must be in 0 .. 1 (got 1.5)");
  EXPECT_EQ(refuse({.operators = {}}), "listops: operators must be at least one (got none)");
  EXPECT_EQ(refuse({.operators = {"AVG"}}),
            "listops: operators must be among MIN, MAX, MED, SM (got AVG)");
  EXPECT_EQ(refuse({.max_depth = 3, .max_args = 2}),
            "listops: min_length must be below 10, the most tokens that max_depth and max_args "
            "allow (got 500)");
  EXPECT_EQ(refuse({}, -1), "listops: first must be at least 0 (got -1)");
  EXPECT_EQ(refuse({}, 0, -1), "listops: count must be at least 0 (got -1)");
  EXPECT_EQ(refuse({}, 0, 1, 0), "listops: threads must be at least 1 (got 0)");
  // Three tokens are none of 1 and 4, 5, ..: only the draws can tell.
  EXPECT_THROW(generate_listops({.min_length = 2, .max_length = 4}, 0, 0, 1, 1),
               std::runtime_error);
}

TEST(Random, IsUniform) {
  std::array<int, 10> occurs = {};
  double sum = 0;
  Random random(5, 6, 7);
  for (int i = 0; i < 100000; ++i) {
    ++occurs[random.below(10)];
    sum += random.uniform();
  }
  for (const int count : occurs) EXPECT_NEAR(count, 10000, 400);  // 4 standard deviations
  EXPECT_NEAR(sum / 100000, 0.5, 0.004);
}

TEST(Random, StreamsDiffer) {
  EXPECT_EQ(Random(1, 2, 3).next(), Random(1, 2, 3).next());
  EXPECT_NE(Random(1, 2, 3).next(), Random(2, 2, 3).next());
  EXPECT_NE(Random(1, 2, 3).next(), Random(1, 3, 3).next());
  EXPECT_NE(Random(1, 2, 3).next(), Random(1, 2, 4).next());
}

TEST(Parallel, TakesEverySampleOnce) {
  for (const int threads : {1, 3, 50}) {
    std::vector<int> taken(20);
    for_each_sample(20, threads, [&] { return [&](int64_t i) { ++taken[i]; }; });
    EXPECT_EQ(taken, std::vector<int>(20, 1));
  }
}

TEST(Parallel, PassesOnTheException) {
  const auto fail = [] {
    return [](int64_t i) {
      if (i == 5) throw std::runtime_error("five");
    };
  };
  EXPECT_THROW(for_each_sample(100, 3, fail), std::runtime_error);
}

}  // namespace
}  // namespace paramixer::generators
