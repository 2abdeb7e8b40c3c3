// ListOps: nested list operations over digits whose value is the label (Nangia and Bowman, 2018),
// drawn by the rules of the Long Range Arena. Torch-free.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace paramixer::generators {

// A token's index in this list is its id. SM is the sum modulo 10, MED the median cut to an
// integer.
inline constexpr std::array<std::string_view, 15> kListOpsTokens = {
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "[MIN", "[MAX", "[MED", "[SM", "]"};

// The grammar: an expression is a digit or an operator with 2 .. max_args expressions.
struct ListOpsOptions {
  int max_depth = 10;  // the root is at depth 1; at max_depth there are digits only
  int max_args = 10;
  int64_t min_length = 500;            // min_length < tokens < max_length, where operators, digits
  int64_t max_length = 2000;           // and closing brackets count
  double operator_probability = 0.25;  // of being an operator, above max_depth
  std::vector<std::string> operators = {"MIN", "MAX", "MED", "SM"};  // equally likely
};

// Expressions one behind the other.
struct ListOpsSamples {
  std::vector<uint8_t> tokens;
  std::vector<int64_t> offsets;  // count + 1: expression i is tokens[offsets[i] .. offsets[i + 1])
  std::vector<uint8_t> labels;   // the value, 0 .. 9
  std::vector<uint8_t> depths;   // most operators around one digit
};

// Samples first .. first + count - 1 of the endless sequence that options and seed define. Each is
// drawn again until its length fits, which keeps the distribution of the official generator.
//
// Throws std::invalid_argument, naming argument, rule and value, for options that no expression can
// meet, and std::runtime_error where kListOpsDraws draws bring none that fits.
ListOpsSamples generate_listops(const ListOpsOptions& options, uint64_t seed, int64_t first,
                                int64_t count, int threads);

inline constexpr int kListOpsDraws = 1'000'000;

// The value of one expression.
int evaluate_listops(std::span<const uint8_t> tokens);

// Rows of the official files, "( ( ( [MAX 1 ) 4 ) ] )", a tab, the label, CR and LF, of the chosen
// samples. Throws std::out_of_range for an index that is none.
std::string listops_rows(const ListOpsSamples& samples, std::span<const int64_t> chosen);

}  // namespace paramixer::generators
