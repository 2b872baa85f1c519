#include "io/inspect/value_statistics.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <vector>

#include "quant/formats.hpp"

namespace moeref {
namespace {

constexpr std::uint64_t kMantissaOfF64 = (std::uint64_t{1} << 52) - 1;

/// Exact for every value of a format here: all are normal in f64 or zero.
bool is_power_of_two(double value) {
  return (std::bit_cast<std::uint64_t>(value) & kMantissaOfF64) == 0;
}

/// Counts `times` elements of one value.
void count_value(ValueStatistics& statistics, double value, std::int64_t times) {
  statistics.count += times;
  if (std::isnan(value)) {
    statistics.nans += times;
    return;
  }
  if (std::isinf(value)) {
    statistics.infinities += times;
    if (value < 0) statistics.negatives += times;
    return;
  }
  statistics.min = statistics.finite == 0 ? value : std::min(statistics.min, value);
  statistics.max = statistics.finite == 0 ? value : std::max(statistics.max, value);
  statistics.finite += times;
  statistics.sum_abs += std::fabs(value) * static_cast<double>(times);
  if (value == 0) {
    statistics.zeros += times;
    if (std::signbit(value)) statistics.negative_zeros += times;
    return;
  }
  if (value < 0) statistics.negatives += times;
  if (!is_power_of_two(value)) statistics.not_powers_of_two += times;
}

std::array<std::int64_t, 256> count_bytes(std::span<const std::byte> bytes) {
  std::array<std::array<std::uint32_t, 256>, 4>
      part{};  // four: equal neighbours do not wait for each other
  std::array<std::int64_t, 256> counts{};
  constexpr std::size_t kAtOnce = std::size_t{1} << 30;  // no part can overflow
  while (!bytes.empty()) {
    const std::span<const std::byte> some = bytes.first(std::min(bytes.size(), kAtOnce));
    for (auto& table : part) table.fill(0);
    for (std::size_t i = 0; i < some.size(); ++i) ++part[i % 4][static_cast<std::size_t>(some[i])];
    for (std::size_t code = 0; code < counts.size(); ++code) {
      for (const auto& table : part) counts[code] += table[code];
    }
    bytes = bytes.subspan(some.size());
  }
  return counts;
}

void count_code(ValueStatistics& statistics, Format format, std::uint32_t code,
                std::int64_t times) {
  if (times == 0) return;
  const double value = decode(format, code);
  count_value(statistics, value, times);
  const FormatInfo& known = info(format);
  const double magnitude = std::fabs(value);
  if (known.bits <= 8 && magnitude == known.max_finite) statistics.saturated += times;
  const bool below_normal = format == Format::e8m0 ? code == 0 : magnitude < known.min_normal;
  if (magnitude != 0 && below_normal) statistics.subnormals += times;
}

ValueStatistics code_statistics(std::span<const std::byte> bytes, Format format) {
  ValueStatistics statistics;
  const auto counts = count_bytes(bytes);
  if (format != Format::e2m1) {
    for (std::uint32_t code = 0; code < 256; ++code)
      count_code(statistics, format, code, counts[code]);
    return statistics;
  }
  std::array<std::int64_t, 16> nibbles{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    nibbles[byte & 15] += counts[byte];
    nibbles[byte >> 4] += counts[byte];
  }
  for (std::uint32_t code = 0; code < 16; ++code)
    count_code(statistics, format, code, nibbles[code]);
  return statistics;
}

ValueStatistics half_statistics(std::span<const std::byte> bytes, Format format) {
  std::vector<std::int64_t> counts(65536, 0);
  for (std::size_t at = 0; at + 2 <= bytes.size(); at += 2) {
    ++counts[load<std::uint16_t>(bytes.data() + at)];
  }
  ValueStatistics statistics;
  for (std::uint32_t code = 0; code < counts.size(); ++code) {
    count_code(statistics, format, code, counts[code]);
  }
  return statistics;
}

template <typename T>
ValueStatistics number_statistics(std::span<const std::byte> bytes) {
  ValueStatistics statistics;
  for (std::size_t at = 0; at + sizeof(T) <= bytes.size(); at += sizeof(T)) {
    const auto value = load<T>(bytes.data() + at);
    count_value(statistics, static_cast<double>(value), 1);
    if constexpr (std::is_same_v<T, float>) {
      if (std::fpclassify(value) == FP_SUBNORMAL) ++statistics.subnormals;
    }
  }
  return statistics;
}

ValueStatistics integer_statistics(std::span<const std::byte> bytes, DType dtype) {
  switch (dtype) {
    case DType::i8:
      return number_statistics<std::int8_t>(bytes);
    case DType::u16:
      return number_statistics<std::uint16_t>(bytes);
    case DType::i16:
      return number_statistics<std::int16_t>(bytes);
    case DType::u32:
      return number_statistics<std::uint32_t>(bytes);
    case DType::i32:
      return number_statistics<std::int32_t>(bytes);
    case DType::u64:
      return number_statistics<std::uint64_t>(bytes);
    case DType::i64:
      return number_statistics<std::int64_t>(bytes);
    default:
      return number_statistics<std::uint8_t>(bytes);
  }
}

}  // namespace

void ValueStatistics::add(const ValueStatistics& other) {
  if (other.finite != 0) {
    min = finite == 0 ? other.min : std::min(min, other.min);
    max = finite == 0 ? other.max : std::max(max, other.max);
  }
  count += other.count;
  finite += other.finite;
  sum_abs += other.sum_abs;
  zeros += other.zeros;
  negative_zeros += other.negative_zeros;
  negatives += other.negatives;
  nans += other.nans;
  infinities += other.infinities;
  saturated += other.saturated;
  subnormals += other.subnormals;
  not_powers_of_two += other.not_powers_of_two;
}

ElementFormat format_of(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return Format::f16;
    case DType::bf16:
      return Format::bf16;
    case DType::f32:
      return Format::f32;
    case DType::f64:
      return Format::f64;
    case DType::f8_e4m3:
      return Format::e4m3;
    case DType::f8_e5m2:
      return Format::e5m2;
    case DType::f8_e8m0:
      return Format::e8m0;
    case DType::f8_e4m3fnuz:
      return Format::e4m3fnuz;
    case DType::f8_e5m2fnuz:
      return Format::e5m2fnuz;
    case DType::f4:
      return Format::e2m1;
    default:
      return std::nullopt;
  }
}

ValueStatistics value_statistics(std::span<const std::byte> bytes, DType dtype,
                                 ElementFormat format) {
  if (!format) return integer_statistics(bytes, dtype);
  switch (*format) {
    case Format::f64:
      return number_statistics<double>(bytes);
    case Format::f32:
      return number_statistics<float>(bytes);
    case Format::bf16:
    case Format::f16:
      return half_statistics(bytes, *format);
    default:
      return code_statistics(bytes, *format);
  }
}

ByteDigest digest(std::span<const std::byte> bytes) {
  constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15;
  ByteDigest result{bytes.size() * kMultiplier, true};
  std::uint64_t any = 0;
  std::size_t at = 0;
  const auto mix = [&](std::uint64_t word) {
    any |= word;
    result.hash = (result.hash ^ word) * kMultiplier;
    result.hash ^= result.hash >> 32;
  };
  for (; at + 8 <= bytes.size(); at += 8) mix(load<std::uint64_t>(bytes.data() + at));
  for (; at < bytes.size(); ++at) mix(static_cast<std::uint64_t>(bytes[at]));
  result.all_zero = any == 0;
  return result;
}

}  // namespace moeref
