#include "io/utf8.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace moeref {
namespace {

/// UTF-8 of a code point by the definition (RFC 3629), surrogates too.
std::string encode(std::uint32_t code) {
  const auto byte = [](std::uint32_t bits) { return static_cast<char>(bits); };
  if (code < 0x80) return {byte(code)};
  if (code < 0x800) return {byte(0xC0 | code >> 6), byte(0x80 | (code & 0x3F))};
  if (code < 0x10000) {
    return {byte(0xE0 | code >> 12), byte(0x80 | (code >> 6 & 0x3F)), byte(0x80 | (code & 0x3F))};
  }
  return {byte(0xF0 | code >> 18), byte(0x80 | (code >> 12 & 0x3F)),
          byte(0x80 | (code >> 6 & 0x3F)), byte(0x80 | (code & 0x3F))};
}

TEST(Utf8, TakesEveryCodePointButSurrogates) {
  for (std::uint32_t code = 0; code <= 0x110FFF; ++code) {
    const bool is_valid = code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF);
    const std::string text = "ab" + encode(code) + "c";
    ASSERT_EQ(find_invalid_utf8(text), is_valid ? std::string::npos : 2U) << code;
  }
}

TEST(Utf8, TakesTwoByteStringsExactlyIfTheyAreWellFormed) {
  for (int first = 0; first < 256; ++first) {
    for (int second = 0; second < 256; ++second) {
      const std::string text{static_cast<char>(first), static_cast<char>(second)};
      std::size_t expected = std::string::npos;
      if (first >= 0x80) {
        const bool is_pair = first >= 0xC2 && first < 0xE0 && second >= 0x80 && second < 0xC0;
        if (!is_pair) expected = 0;
      } else if (second >= 0x80) {
        expected = 1;
      }
      ASSERT_EQ(find_invalid_utf8(text), expected) << first << " " << second;
    }
  }
}

TEST(Utf8, RefusesOverlongAndCutSequences) {
  EXPECT_EQ(find_invalid_utf8("\xC1\xBF"), 0U);
  EXPECT_EQ(find_invalid_utf8("\xE0\x9F\xBF"), 0U);
  EXPECT_EQ(find_invalid_utf8("\xF0\x8F\xBF\xBF"), 0U);
  EXPECT_EQ(find_invalid_utf8("a\xE2\x82"), 1U);
  EXPECT_EQ(find_invalid_utf8("a\xF0\x9F\x98"), 1U);
  EXPECT_EQ(find_invalid_utf8("\xF0\x9F\x98"
                              "a"),
            0U);
  EXPECT_EQ(find_invalid_utf8(""), std::string::npos);
}

TEST(InQuotes, KeepsALineALine) {
  EXPECT_EQ(in_quotes("plain \u00e9 \u6f22 \U0001F600"), "'plain \u00e9 \u6f22 \U0001F600'");
  EXPECT_EQ(in_quotes(std::string_view("a\n\r\t\0\x1b\x7f"
                                       "b",
                                       8)),
            "'a\\x0a\\x0d\\x09\\x00\\x1b\\x7fb'");
  EXPECT_EQ(in_quotes("\xff\xc3"), "'\\xff\\xc3'");
  EXPECT_EQ(in_quotes("\u0085\u2028\u2029"), "'\\xc2\\x85\\xe2\\x80\\xa8\\xe2\\x80\\xa9'");
}

TEST(InQuotes, LeavesOutTheMiddleOfLongText) {
  const std::string short_enough(200, 'x');
  EXPECT_EQ(in_quotes(short_enough), "'" + short_enough + "'");
  std::string text;
  for (int i = 0; i < 100; ++i) text += "\u6f22";  // 300 bytes; the cuts fall inside characters
  std::string head, tail;
  for (int i = 0; i < 46; ++i) head += "\u6f22";
  for (int i = 0; i < 20; ++i) tail += "\u6f22";
  EXPECT_EQ(in_quotes(text), "'" + head + "... (102 bytes left out) ..." + tail + "'");
}

}  // namespace
}  // namespace moeref
