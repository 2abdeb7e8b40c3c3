#include "generators/listops.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "generators/parallel.h"
#include "generators/random.h"
#include "generators/require.h"

namespace paramixer::generators {
namespace {

constexpr const char* kName = "listops";
constexpr StreamId kStream = 1;
constexpr uint8_t kMin = 10, kMax = 11, kMed = 12, kSumMod = 13, kClose = 14;
constexpr int kMostDepth = 255;  // so that a depth fits a byte

uint8_t operator_id(const std::string& name) {
  const auto found = std::find(kListOpsTokens.begin(), kListOpsTokens.end(), "[" + name);
  require(found != kListOpsTokens.end(), kName, "operators", "among MIN, MAX, MED, SM", name);
  return static_cast<uint8_t>(found - kListOpsTokens.begin());
}

// The most tokens an expression can have, or `enough` if it can have more.
int64_t longest(const ListOpsOptions& options, int64_t enough) {
  int64_t length = 1;
  for (int depth = 1; depth < options.max_depth && length < enough; ++depth) {
    length = 2 + options.max_args * length;
  }
  return std::min(length, enough);
}

void check(const ListOpsOptions& options) {
  const auto [max_depth, max_args, min_length, max_length, probability, operators] = options;
  require(max_depth >= 1 && max_depth <= kMostDepth, kName, "max_depth", "in 1 .. 255", max_depth);
  require(max_args >= 2, kName, "max_args", "at least 2", max_args);
  require(min_length >= 0, kName, "min_length", "at least 0", min_length);
  require(max_length >= min_length + 2, kName, "max_length",
          "at least min_length + 2 = " + std::to_string(min_length + 2), max_length);
  require(probability >= 0 && probability <= 1, kName, "operator_probability", "in 0 .. 1",
          probability);
  require(!operators.empty(), kName, "operators", "at least one", "none");
  for (const std::string& name : operators) operator_id(name);
  const int64_t most = longest(options, max_length);
  require(min_length < most, kName, "min_length",
          "below " + std::to_string(most) + ", the most tokens that max_depth and max_args allow",
          min_length);
}

// Draws expressions with the scratch of one thread.
class Grammar {
 public:
  explicit Grammar(const ListOpsOptions& options)
      : options_(options),
        // Compared with 32 random bits.
        operator_below_(static_cast<uint64_t>(options.operator_probability * 0x1p32)) {
    for (const std::string& name : options.operators) operators_.push_back(operator_id(name));
  }

  // Draws until one fits; the tokens stay valid until the next call. Returns its depth.
  int draw(Random& random) {
    for (int attempt = 0; attempt < kListOpsDraws; ++attempt) {
      const int depth = draw_once(random);
      if (depth >= 0 && std::ssize(tokens_) > options_.min_length) return depth;
    }
    throw std::runtime_error("listops: " + std::to_string(kListOpsDraws) +
                             " draws brought no expression with min_length " +
                             std::to_string(options_.min_length) + " < tokens < max_length " +
                             std::to_string(options_.max_length));
  }

  const std::vector<uint8_t>& tokens() const { return tokens_; }

 private:
  // One expression by the rules and its depth; -1 as soon as it is bound to be too long.
  int draw_once(Random& random) {
    tokens_.clear();
    missing_.clear();
    size_t depth = 0;
    int64_t least = 1;  // the tokens it will have if all that is missing are digits
    do {
      const bool can_nest = static_cast<int>(missing_.size()) + 1 < options_.max_depth;
      const uint64_t bits = random.next();
      if (can_nest && (bits >> 32) < operator_below_) {
        const int arguments = 2 + Random::scale(static_cast<uint32_t>(bits), options_.max_args - 1);
        tokens_.push_back(operators_[random.below(static_cast<int>(operators_.size()))]);
        missing_.push_back(arguments);
        depth = std::max(depth, missing_.size());
        least += arguments + 1;
      } else {
        tokens_.push_back(
            static_cast<uint8_t>(Random::scale(static_cast<uint32_t>(bits), /*bound=*/10)));
        close();
      }
      if (least >= options_.max_length) return -1;
    } while (!missing_.empty());
    return static_cast<int>(depth);
  }

  // An expression has ended: so may have the ones around it.
  void close() {
    while (!missing_.empty() && --missing_.back() == 0) {
      tokens_.push_back(kClose);
      missing_.pop_back();
    }
  }

  const ListOpsOptions& options_;
  uint64_t operator_below_;
  std::vector<uint8_t> operators_;
  std::vector<uint8_t> tokens_;
  std::vector<int> missing_;  // arguments of every open operator, outermost first
};

uint8_t apply(uint8_t operation, std::span<uint8_t> values) {
  switch (operation) {
    case kMin:
      return *std::min_element(values.begin(), values.end());
    case kMax:
      return *std::max_element(values.begin(), values.end());
    case kSumMod:
      return static_cast<uint8_t>(std::accumulate(values.begin(), values.end(), 0) % 10);
    default:  // kMed
      std::sort(values.begin(), values.end());
      return static_cast<uint8_t>((values[(values.size() - 1) / 2] + values[values.size() / 2]) /
                                  2);
  }
}

ListOpsSamples concatenate(const std::vector<std::vector<uint8_t>>& expressions) {
  ListOpsSamples samples;
  samples.offsets.reserve(expressions.size() + 1);
  samples.offsets.push_back(0);
  for (const auto& tokens : expressions) {
    samples.offsets.push_back(samples.offsets.back() + std::ssize(tokens));
  }
  samples.tokens.reserve(samples.offsets.back());
  for (const auto& tokens : expressions) {
    samples.tokens.insert(samples.tokens.end(), tokens.begin(), tokens.end());
  }
  return samples;
}

// The arguments of every operator, in the order of the operators.
void count_arguments(std::span<const uint8_t> tokens, std::vector<int>& counts) {
  std::vector<size_t> open;
  counts.clear();
  for (const uint8_t token : tokens) {
    if (token == kClose) {
      open.pop_back();
      continue;
    }
    if (!open.empty()) ++counts[open.back()];
    if (token < kMin) continue;
    open.push_back(counts.size());
    counts.push_back(0);
  }
}

// Arguments are taken one at a time: each, and the end, closes a parenthesis before the operator.
void append_expression(std::span<const uint8_t> tokens, std::vector<int>& counts,
                       std::string& text) {
  count_arguments(tokens, counts);
  auto count = counts.begin();
  int depth = 0;
  for (const uint8_t token : tokens) {
    const bool opens = token >= kMin && token != kClose;
    if (opens) {
      for (int parenthesis = *count++; parenthesis >= 0; --parenthesis) text += "( ";
      ++depth;
    }
    text += kListOpsTokens[token];
    if (token == kClose) {
      text += " )";
      --depth;
    }
    if (!opens && depth > 0) text += " )";
    text += ' ';
  }
  text.pop_back();
}

}  // namespace

ListOpsSamples generate_listops(const ListOpsOptions& options, uint64_t seed, int64_t first,
                                int64_t count, int threads) {
  check(options);
  require_run(kName, first, count, threads);
  std::vector<std::vector<uint8_t>> expressions(count);
  std::vector<uint8_t> labels(count), depths(count);
  for_each_sample(count, threads, [&] {
    return [&, grammar = Grammar(options)](int64_t i) mutable {
      Random random(seed, kStream, static_cast<uint64_t>(first + i));
      depths[i] = static_cast<uint8_t>(grammar.draw(random));
      expressions[i] = grammar.tokens();
      labels[i] = static_cast<uint8_t>(evaluate_listops(expressions[i]));
    };
  });
  ListOpsSamples samples = concatenate(expressions);
  samples.labels = std::move(labels);
  samples.depths = std::move(depths);
  return samples;
}

int evaluate_listops(std::span<const uint8_t> tokens) {
  struct Open {
    uint8_t operation;
    size_t first;  // of its values
  };
  static thread_local std::pair<std::vector<Open>, std::vector<uint8_t>> scratch;
  auto& [open, values] = scratch;
  open.clear();
  values.clear();
  for (const uint8_t token : tokens) {
    if (token < kMin) {
      values.push_back(token);
    } else if (token != kClose) {
      open.push_back({token, values.size()});
    } else {
      const auto [operation, start] = open.back();
      open.pop_back();
      const uint8_t value = apply(operation, std::span(values).subspan(start));
      values.resize(start);
      values.push_back(value);
    }
  }
  return values.front();
}

std::string listops_rows(const ListOpsSamples& samples, std::span<const int64_t> chosen) {
  std::string text;
  std::vector<int> counts;
  for (const int64_t i : chosen) {
    const int label = samples.labels.at(i);
    const int64_t start = samples.offsets[i], end = samples.offsets[i + 1];
    append_expression(std::span(samples.tokens).subspan(start, end - start), counts, text);
    text += '\t';
    text += std::to_string(label);
    text += "\r\n";
  }
  return text;
}

}  // namespace paramixer::generators
