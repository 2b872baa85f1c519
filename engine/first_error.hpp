#pragma once

#include <cstdint>
#include <mutex>
#include <optional>

#include "quant/error.hpp"

namespace moeref {

/// Of the Errors of a loop over tokens, that of the lowest token, whatever the order in which
/// threads meet them.
class FirstError {
 public:
  template <typename Work>
  void guard(std::int64_t token, Work work) {
    try {
      work();
    } catch (const Error& error) {
      const std::lock_guard lock(mutex_);
      if (!error_ || token < token_) {
        token_ = token;
        error_ = error;
      }
    }
  }
  void rethrow() const {
    if (error_) throw *error_;
  }

 private:
  std::mutex mutex_;
  std::int64_t token_ = 0;
  std::optional<Error> error_;
};

}  // namespace moeref
