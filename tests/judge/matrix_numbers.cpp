#include "tests/judge/matrix_numbers.hpp"

#include <mpfr.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "tests/judge/exact_dot.hpp"
#include "tests/judge/mpfr_real.hpp"

namespace moeref::judge {
namespace {

constexpr std::uint32_t kNvidiaHalfNan = 0x7FFFu;
constexpr Grid kF16Nearest{10, -14, 16};
// Any sum of an f32 and a product of two.
constexpr mpfr_prec_t kExact = 700;

bool is_ieee(Format format) {
  return format == Format::bf16 || format == Format::f16 || format == Format::e5m2 ||
         format == Format::f32;
}

/// The sign of zero, infinity and NaN stay.
double rounded(const MpfrReal& exact, const Grid& grid) {
  if (mpfr_regular_p(exact.get()) == 0) return mpfr_get_d(exact.get(), MPFR_RNDN);
  const auto exponent = static_cast<int>(mpfr_get_exp(exact.get())) - 1;
  const int quantum = std::max(exponent, grid.lowest_exponent) - grid.fraction_bits;
  MpfrReal scaled = exact;
  mpfr_mul_2si(scaled.get(), scaled.get(), -quantum, MPFR_RNDN);
  mpfr_rint(scaled.get(), scaled.get(), grid.nearest ? MPFR_RNDN : MPFR_RNDZ);
  mpfr_mul_2si(scaled.get(), scaled.get(), quantum, MPFR_RNDN);
  const double value = mpfr_get_d(scaled.get(), MPFR_RNDN);
  if (std::fabs(value) < power_of_two(grid.beyond)) return value;
  return std::copysign(std::numeric_limits<double>::infinity(), value);
}

/// The bits of a value that f16 has.
std::uint32_t half_bits(double value) {
  const std::uint32_t sign = std::signbit(value) ? 0x8000u : 0u;
  const double size = std::fabs(value);
  if (size < power_of_two(-14)) return sign | static_cast<std::uint32_t>(size * power_of_two(24));
  if (std::isinf(size)) return sign | 0x7C00u;
  const int exponent = std::ilogb(size);
  const auto significand = static_cast<std::uint32_t>(std::ldexp(size, 10 - exponent));
  return sign | (static_cast<std::uint32_t>(exponent + 15) << 10) | (significand & 0x3FFu);
}

}  // namespace

double power_of_two(int exponent) { return std::ldexp(1.0, exponent); }

Number decoded(Format format, std::uint32_t code) {
  const FloatLayout layout = layout_of(format);
  if (format == Format::ue4m3) code &= 0x7Fu;
  const std::uint32_t fraction = code & ((1u << layout.fraction_bits) - 1u);
  const std::uint32_t last = (1u << layout.exponent_bits) - 1u;
  const std::uint32_t field = code >> layout.fraction_bits & last;
  const bool negative =
      format != Format::e8m0 && (code >> (layout.exponent_bits + layout.fraction_bits) & 1u) != 0;
  const double sign = negative ? -1.0 : 1.0;
  const double nan = std::numeric_limits<double>::quiet_NaN();

  if (format == Format::e8m0) {
    if (code == 0xFFu) return {nan};
    const int exponent = static_cast<int>(code) - 127;
    return {power_of_two(exponent), exponent};
  }
  if ((format == Format::e4m3 || format == Format::ue4m3) && (code & 0x7Fu) == 0x7Fu) return {nan};
  if ((format == Format::e4m3fnuz || format == Format::e5m2fnuz) && code == 0x80u) return {nan};
  if (is_ieee(format) && field == last) {
    return {fraction == 0 ? sign * std::numeric_limits<double>::infinity() : nan};
  }
  const int exponent = static_cast<int>(field == 0 ? 1 : field) - layout.bias;
  const double significand = (field == 0 ? 0.0 : 1.0) +
                             static_cast<double>(fraction) * power_of_two(-layout.fraction_bits);
  return {sign * significand * power_of_two(exponent), exponent};
}

Number operand(Format format, std::uint32_t code, std::optional<Format> converted) {
  if (format == Format::f32) code &= ~0x1FFFu;  // tf32
  Number number = decoded(format, code);
  if (!converted || *converted == format || !std::isfinite(number.value) || number.is_zero()) {
    return number;
  }
  const int smallest = 1 - layout_of(*converted).bias;
  number.exponent = std::max(std::ilogb(number.value), smallest);
  return number;
}

Grid grid_of(StepOutput output) {
  switch (output) {
    case StepOutput::f32_toward_zero:
      return {23, -126, 128, false};
    case StepOutput::e8m13_toward_zero:
      return {13, -126, 128, false};
    case StepOutput::f16_nearest:
      break;
  }
  return kF16Nearest;
}

std::uint32_t f32_bits(double value) {
  return std::bit_cast<std::uint32_t>(static_cast<float>(value));
}

std::uint32_t bits_in(StepOutput output, double value) {
  const bool half = output == StepOutput::f16_nearest;
  if (std::isnan(value)) return half ? kNvidiaHalfNan : kNvidiaNan;
  return half ? half_bits(value) : f32_bits(value);
}

double output_of(std::int64_t sum, int weight, const Grid& grid) {
  MpfrReal exact(64);
  mpfr_set_sj_2exp(exact.get(), sum, weight, MPFR_RNDN);
  const double value = rounded(exact, grid);
  return value == 0.0 ? 0.0 : value;
}

double product(double x, double y, const Grid& grid) {
  const MpfrReal first(64, x);
  const MpfrReal second(64, y);
  MpfrReal exact(kExact);
  mpfr_mul(exact.get(), first.get(), second.get(), MPFR_RNDN);
  return rounded(exact, grid);
}

double fused(double x, double y, double z, const Grid& grid) {
  const MpfrReal first(64, x);
  const MpfrReal second(64, y);
  const MpfrReal third(64, z);
  MpfrReal sum(kExact);
  mpfr_fma(sum.get(), first.get(), second.get(), third.get(), MPFR_RNDN);
  return rounded(sum, grid);
}

std::uint32_t ieee_sum(StepOutput output, std::uint32_t x, std::uint32_t y) {
  const bool half = output == StepOutput::f16_nearest;
  const Format format = half ? Format::f16 : Format::f32;
  const MpfrReal first(kExact, decoded(format, x).value);
  const MpfrReal second(kExact, decoded(format, y).value);
  MpfrReal sum(kExact);
  mpfr_add(sum.get(), first.get(), second.get(), MPFR_RNDN);
  return bits_in(output, rounded(sum, half ? kF16Nearest : kF32Nearest));
}

}  // namespace moeref::judge
