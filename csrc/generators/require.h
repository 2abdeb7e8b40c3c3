// How the generators refuse an argument: generator, argument, rule and value.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace paramixer::generators {

template <typename Value>
void require(bool holds, const char* generator, const char* argument, const std::string& rule,
             const Value& value) {
  if (holds) return;
  std::ostringstream message;
  message << generator << ": " << argument << " must be " << rule << " (got " << value << ")";
  throw std::invalid_argument(message.str());
}

// What every generator takes.
inline void require_run(const char* generator, int64_t first, int64_t count, int threads) {
  require(first >= 0, generator, "first", "at least 0", first);
  require(count >= 0, generator, "count", "at least 0", count);
  require(threads >= 1, generator, "threads", "at least 1", threads);
}

}  // namespace paramixer::generators
