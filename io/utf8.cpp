#include "io/utf8.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

namespace moeref {
namespace {

constexpr std::size_t kMaxShown = 200;
constexpr std::size_t kTailShown = 60;

bool is_continuation(char byte) { return (static_cast<std::uint8_t>(byte) & 0xC0) == 0x80; }

/// The bytes of the well-formed sequence at the start of `text`, or 0. `text` is not empty.
std::size_t sequence_length(std::string_view text) {
  const auto lead = static_cast<std::uint8_t>(text[0]);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;  // continuation, overlong, or above U+10FFFF
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if (!is_continuation(text[i])) return 0;
  }
  const auto second = static_cast<std::uint8_t>(text[1]);
  if (lead == 0xE0 && second < 0xA0) return 0;  // overlong
  if (lead == 0xED && second > 0x9F) return 0;  // surrogates
  if (lead == 0xF0 && second < 0x90) return 0;  // overlong
  if (lead == 0xF4 && second > 0x8F) return 0;  // above U+10FFFF
  return length;
}

/// Would move the cursor or end the line: C0, DEL, C1 (U+0080 to U+009F), U+2028, U+2029.
bool is_control(std::string_view sequence) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(sequence[i]); };
  if (sequence.size() == 1) return byte(0) < 0x20 || byte(0) == 0x7F;
  if (sequence.size() == 2) return byte(0) == 0xC2 && byte(1) < 0xA0;
  if (sequence.size() == 3) {
    return byte(0) == 0xE2 && byte(1) == 0x80 && (byte(2) == 0xA8 || byte(2) == 0xA9);
  }
  return false;
}

void append_escaped(std::string& out, std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = sequence_length(text.substr(i));
    const std::string_view sequence = text.substr(i, std::max<std::size_t>(length, 1));
    if (length == 0 || is_control(sequence)) {
      for (const char byte : sequence) {
        fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<std::uint8_t>(byte));
      }
    } else {
      out += sequence;
    }
    i += sequence.size();
  }
}

}  // namespace

std::size_t find_invalid_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    if (static_cast<std::uint8_t>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    const std::size_t length = sequence_length(text.substr(i));
    if (length == 0) return i;
    i += length;
  }
  return std::string_view::npos;
}

std::string in_quotes(std::string_view text) {
  std::string out = "'";
  if (text.size() <= kMaxShown) {
    append_escaped(out, text);
  } else {
    std::size_t head = kMaxShown - kTailShown;
    std::size_t tail = text.size() - kTailShown;
    for (int i = 0; i < 3 && is_continuation(text[head]); ++i) --head;
    for (int i = 0; i < 3 && is_continuation(text[tail]); ++i) ++tail;
    append_escaped(out, text.substr(0, head));
    out += fmt::format("... ({} bytes left out) ...", tail - head);
    append_escaped(out, text.substr(tail));
  }
  out += '\'';
  return out;
}

}  // namespace moeref
