#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace moeref {

/// The offset of the first byte that is not part of well-formed UTF-8 (Unicode 15, table 3-7), or
/// npos.
std::size_t find_invalid_utf8(std::string_view text);

/// `text` in single quotes for a message of one line: control characters and malformed bytes as
/// \xNN, the middle of a long text left out.
std::string in_quotes(std::string_view text);

}  // namespace moeref
