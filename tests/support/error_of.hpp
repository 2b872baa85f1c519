#pragma once

#include <string>

#include "quant/error.hpp"

namespace moeref {

/// The message of the Error that `call()` throws; "no error" if it returns.
template <typename Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace moeref
