// A chain as the command lines of plans.cpp and kernel_benchmark.cpp name it:
// B,N,D,PROTOCOL,K,DTYPE, RESIDUAL, such as 8,16384,128,cdil,3,float32,none.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/problem.h"
#include "paramixer/links.h"
#include "pass_plan.h"

namespace paramixer::cuda {

// Of a block, on compute capability 9.0 and 10.0.
inline constexpr int64_t kSharedLimit = 227 * 1024;

inline constexpr std::array kDTypes = {"float64", "float32", "bfloat16", "float16"};
inline constexpr std::array kResiduals = {"none", "previous", "initial"};

struct Case {
  int64_t batch;
  ChainShape chain;
};

template <size_t kCount>
int index_in(const std::array<const char*, kCount>& names, const std::string& name) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) throw std::invalid_argument("unknown name " + name);
  return static_cast<int>(found - names.begin());
}

inline Case parse_case(const std::string& text) {
  std::vector<std::string> words;
  std::stringstream stream(text);
  for (std::string word; std::getline(stream, word, ',');) words.push_back(word);
  if (words.size() != 7) throw std::invalid_argument("not seven words in " + text);
  const int64_t length = std::stoll(words[1]), links = std::stoll(words[4]);
  const FactorOffsets factors =
      words[3] == "chord" ? chord(length, std::nullopt, links) : cdil(length, std::nullopt, links);
  Case result{std::stoll(words[0]), {}};
  result.chain.dtype = static_cast<DType>(index_in(kDTypes, words[5]));
  result.chain.residual = static_cast<Residual>(index_in(kResiduals, words[6]));
  result.chain.length = length;
  result.chain.channels = std::stoll(words[2]);
  result.chain.factors = static_cast<int>(factors.size());
  for (const auto& factor : factors) {
    for (const int64_t offset : factor) {
      result.chain.offsets.push_back(reduce_offset(offset, length));
    }
  }
  return result;
}

// The plan of the forward pass, without cuts or with those of training, or of the backward pass.
inline ChainPlan plan_case(const Case& c, Direction direction, bool training) {
  ChainShape chain = c.chain;
  chain.direction = direction;
  if (training) chain.cuts = saved_boundaries(chain.factors);
  const bool bands = direction == Direction::kForward && element_bytes(chain.dtype) == 2;
  chain.band_bytes = bands ? kSharedLimit : 0;
  return plan_for_cuda(chain);
}

}  // namespace paramixer::cuda
