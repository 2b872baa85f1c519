#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace moeref {

/// The one exception type of the library: bad input, told in one line that names the file or
/// tensor, what it has, what is needed, and the fix. Anything else that is thrown is a fault of
/// moeref itself.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws Error with the text "subject: message". `subject` is a tensor, a file, or "file: tensor".
template <typename... Args>
[[noreturn]] void fail(std::string_view subject, fmt::format_string<Args...> message,
                       Args&&... args) {
  throw Error(fmt::format("{}: {}", subject, fmt::format(message, std::forward<Args>(args)...)));
}

}  // namespace moeref
