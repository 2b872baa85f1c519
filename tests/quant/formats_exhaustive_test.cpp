#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "quant/dequantize.hpp"
#include "quant/formats.hpp"
#include "tests/quant/representable.hpp"

// Every encoder on all 2^32 f32 inputs. The expectation is a list of ranges of bit patterns with
// one code each, found by bisection over the representable values; the encoder is evaluated on
// every pattern.

namespace moeref {
namespace {

using namespace test;

/// The patterns [first, next segment's first) have this code.
struct Segment {
  std::uint64_t first;
  std::uint32_t code;
};

constexpr std::uint64_t kPatterns = std::uint64_t{1} << 32;
constexpr std::uint64_t kChunk = std::uint64_t{1} << 22;

/// Appends the finite magnitudes of one sign: code c from starts[c] on.
void append_magnitudes(const std::vector<std::uint32_t>& starts, std::uint64_t sign,
                       const std::function<std::uint32_t(std::uint32_t)>& code_of,
                       std::vector<Segment>& segments) {
  for (std::uint32_t code = 0; code < starts.size(); ++code) {
    segments.push_back({sign + starts[code], code_of(code)});
  }
}

/// starts[c] = first pattern that rounds to magnitude code c; the last entry is overflow.
std::vector<std::uint32_t> magnitude_starts(Format format) {
  const Representable list = representable(format);
  std::vector<std::uint32_t> starts{0};
  for (std::uint32_t code = 0; code < list.values.size(); ++code) {
    const double upper = code + 1 < list.values.size() ? list.values[code + 1] : list.beyond;
    starts.push_back(first_pattern_above_middle(list.values[code], upper, code % 2 != 0));
  }
  return starts;
}

std::vector<Segment> expected_segments(Format format, EncodePolicy policy) {
  const std::vector<std::uint32_t> starts = magnitude_starts(format);
  const auto overflow = static_cast<std::uint32_t>(starts.size()) - 1;
  std::vector<Segment> segments;
  for (const bool negative : {false, true}) {
    const std::uint64_t sign = negative ? 0x8000'0000u : 0;
    const auto code_of = [&](std::uint32_t magnitude) {
      return magnitude == overflow ? expected_overflow(format, policy, negative)
                                   : signed_code(format, policy, magnitude, negative);
    };
    append_magnitudes(starts, sign, code_of, segments);
    segments.push_back({sign + 0x7F80'0000u, expected_infinity(format, policy, negative)});
    segments.push_back({sign + 0x7F80'0001u, expected_nan(format, policy, negative)});
  }
  segments.push_back({kPatterns, 0});
  return segments;
}

std::vector<Segment> expected_e8m0_segments(const E8M0Case& rule) {
  const bool saturates = is_saturating(rule.policy);
  const std::uint32_t overflow = saturates ? 0xFE : 0xFF;
  const std::uint32_t infinity = rule.policy == EncodePolicy::cuda_satfinite ? 0xFE : 0xFF;
  const std::uint32_t zero = rule.policy == EncodePolicy::ml_dtypes_nosat ? 0xFF : 0x00;
  std::vector<std::uint32_t> starts{1};  // the smallest subnormal; zero is apart
  for (std::uint32_t code = 1; code <= 255; ++code) {
    starts.push_back(first_e8m0_pattern(code, rule.rounding));
  }
  std::vector<Segment> segments;
  for (const std::uint64_t sign : {std::uint64_t{0}, std::uint64_t{0x8000'0000u}}) {
    segments.push_back({sign, zero});
    if (sign != 0 && is_ml_dtypes(rule.policy)) {
      segments.push_back({sign + 1, saturates ? 0x00u : 0xFFu});
    } else {
      append_magnitudes(
          starts, sign, [&](std::uint32_t code) { return code == 255 ? overflow : code; },
          segments);
    }
    segments.push_back({sign + 0x7F80'0000u, infinity});
    segments.push_back({sign + 0x7F80'0001u, 0xFF});
  }
  segments.push_back({kPatterns, 0});
  return segments;
}

/// Calls check(first, last) for chunks of all patterns, on every core.
void for_all_patterns(const std::function<void(std::uint64_t, std::uint64_t)>& check) {
  std::atomic<std::uint64_t> next{0};
  const auto work = [&] {
    for (std::uint64_t first = next.fetch_add(kChunk); first < kPatterns;
         first = next.fetch_add(kChunk)) {
      check(first, first + kChunk);
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i) {
    threads.emplace_back(work);
  }
  for (std::thread& thread : threads) thread.join();
}

/// Compares encode(pattern) with the segments on every pattern.
template <typename Encode>
void expect_segments(const std::vector<Segment>& segments, const Encode& encode) {
  for (std::size_t i = 1; i < segments.size(); ++i) {
    ASSERT_LE(segments[i - 1].first, segments[i].first);
  }
  std::mutex mutex;
  std::uint64_t wrong = 0;
  std::string example;
  for_all_patterns([&](std::uint64_t first, std::uint64_t last) {
    const auto after = std::upper_bound(
        segments.begin(), segments.end(), first,
        [](std::uint64_t pattern, const Segment& segment) { return pattern < segment.first; });
    auto segment = after - 1;
    for (std::uint64_t pattern = first; pattern < last; ++segment) {
      const std::uint64_t end = std::min(last, (segment + 1)->first);
      std::uint32_t differing = 0;
      for (std::uint64_t p = pattern; p < end; ++p) {
        differing |= encode(from_bits(static_cast<std::uint32_t>(p))) ^ segment->code;
      }
      for (std::uint64_t p = pattern; differing != 0 && p < end; ++p) {
        const std::uint32_t code = encode(from_bits(static_cast<std::uint32_t>(p)));
        if (code == segment->code) continue;
        const std::lock_guard lock(mutex);
        if (wrong++ == 0) {
          example = fmt::format("0x{:08x}: 0x{:x}, expected 0x{:x}", p, code, segment->code);
        }
      }
      pattern = end;
    }
  });
  EXPECT_EQ(wrong, 0u) << "for example " << example;
}

struct Pair {
  Format format;
  EncodePolicy policy;
};

std::vector<Pair> all_pairs() {
  std::vector<Pair> pairs;
  for (const Format format : kEncodedFormats) {
    for (const EncodePolicy policy : known_policies(format)) pairs.push_back({format, policy});
  }
  return pairs;
}

class EveryFloat : public testing::TestWithParam<Pair> {};

TEST_P(EveryFloat, HasTheCodeFoundBySearch) {
  const auto [format, policy] = GetParam();
  const Encoder encode_one = encoder(format, policy);
  expect_segments(expected_segments(format, policy), encode_one);
}

INSTANTIATE_TEST_SUITE_P(Formats, EveryFloat, testing::ValuesIn(all_pairs()), [](const auto& test) {
  return std::string(name(test.param.format)) + "_" + policy_name(test.param.policy);
});

class EveryFloatAsE8M0 : public testing::TestWithParam<E8M0Case> {};

TEST_P(EveryFloatAsE8M0, HasTheCodeFoundBySearch) {
  const E8M0Case& rule = GetParam();
  expect_segments(expected_e8m0_segments(rule), [&](float value) -> std::uint32_t {
    return encode_e8m0(value, rule.rounding, rule.policy);
  });
}

INSTANTIATE_TEST_SUITE_P(Formats, EveryFloatAsE8M0, testing::ValuesIn(kE8M0Cases),
                         [](const auto& test) {
                           return fmt::format("{}_{}", policy_name(test.param.policy),
                                              rounding_name(test.param.rounding));
                         });

/// The branch-free casts of the dequantizer against the encoder, over every f32 as an unscaled
/// code.
class EveryFloatThroughDequantize : public testing::TestWithParam<Format> {};

TEST_P(EveryFloatThroughDequantize, IsTheValueOfItsCode) {
  const Format target = GetParam();
  const Encoder encode_one = encoder(target, EncodePolicy::eigen);
  std::atomic<std::uint64_t> wrong{0};
  for_all_patterns([&](std::uint64_t first, std::uint64_t last) {
    constexpr std::uint64_t kRow = 1u << 14;
    std::vector<std::uint32_t> patterns(kRow);
    std::vector<float> cast_once(kRow);
    std::vector<float> cast_f32(kRow);
    ScaledMatrix matrix;
    matrix.name = "patterns";
    matrix.rows = 1;
    matrix.cols = kRow;
    matrix.codes.data = reinterpret_cast<const std::byte*>(patterns.data());
    matrix.codes.format = Format::f32;
    for (std::uint64_t row = first; row < last; row += kRow) {
      for (std::uint64_t i = 0; i < kRow; ++i) patterns[i] = static_cast<std::uint32_t>(row + i);
      dequantize(matrix, DequantizeOrder::once, target, cast_once);
      dequantize(matrix, DequantizeOrder::checkpoint, target, cast_f32);
      for (std::uint64_t i = 0; i < kRow; ++i) {
        const float value = from_bits(patterns[i]);
        const float expected =
            value == value ? decode(target, encode_one(value)) : from_bits(0x7FC0'0000u);
        if (to_bits(cast_once[i]) != to_bits(expected) ||
            to_bits(cast_f32[i]) != to_bits(expected)) {
          ++wrong;
        }
      }
    }
  });
  EXPECT_EQ(wrong, 0u);
}

INSTANTIATE_TEST_SUITE_P(Formats, EveryFloatThroughDequantize,
                         testing::Values(Format::bf16, Format::f16),
                         [](const auto& test) { return std::string(name(test.param)); });

}  // namespace
}  // namespace moeref
