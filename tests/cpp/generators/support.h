// What the tests of all generators need.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>

namespace paramixer::generators {

inline std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no std::invalid_argument";
}

}  // namespace paramixer::generators
