#include "tests/judge/gpu_numbers.hpp"

#include <mpfr.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "quant/gpu/approx.hpp"
#include "tests/judge/mpfr_real.hpp"

namespace moeref::judge {
namespace {

__extension__ using Digits = unsigned __int128;

/// (-1)^negative * (digits + rest) * 2^exponent, 0 <= rest < 1, rest > 0 if `more`.
struct Exact {
  bool negative = false;
  Digits digits = 0;
  int exponent = 0;
  bool more = false;
};

/// A binary format to round to: so many digits, the lowest bit of all, the first power beyond.
struct Grid {
  int digits;
  int lowest;
  int beyond;
};
constexpr Grid kF32Grid{24, -149, 128};
constexpr Grid kBf16Grid{8, -133, 128};
constexpr Grid kF16Grid{11, -24, 16};

const Grid& grid_of(Format dtype) {
  switch (dtype) {
    case Format::bf16:
      return kBf16Grid;
    case Format::f16:
      return kF16Grid;
    default:
      return kF32Grid;
  }
}

int top_bit(Digits digits) {
  int bit = -1;
  for (; digits != 0; digits >>= 1) ++bit;
  return bit;
}

Exact exact_of(float x) {
  const std::uint32_t bits = float_bits(x);
  const std::uint32_t exponent = exponent_field(x);
  Exact exact;
  exact.negative = (bits >> 31) != 0;
  exact.digits = mantissa_field(x) + (exponent == 0 ? 0u : 1u << 23);
  exact.exponent = static_cast<int>(exponent == 0 ? 1 : exponent) - 150;
  return exact;
}

float signed_zero(bool negative) { return negative ? -0.0f : 0.0f; }

/// To nearest, ties to even. Numbers have at least 26 digits left where `more` is set, or none are
/// dropped.
float nearest(const Exact& x, const Grid& grid, bool endless) {
  if (x.digits == 0) return signed_zero(x.negative);
  const int top = top_bit(x.digits) + x.exponent;
  int unit = top - grid.digits + 1;
  if (!endless) unit = std::max(unit, grid.lowest);
  const int dropped = unit - x.exponent;
  Digits kept = 0;
  if (dropped <= 0) {
    if (x.more) std::abort();
    kept = x.digits << -dropped;
  } else if (dropped < 128) {
    kept = x.digits >> dropped;
    const Digits rest = x.digits - (kept << dropped);
    const Digits half = Digits{1} << (dropped - 1);
    if (rest > half || (rest == half && (x.more || (kept & 1) != 0))) ++kept;
  }  // else less than half of a unit: digits have fewer than 127 bits
  const double magnitude = std::ldexp(static_cast<double>(kept), unit);
  if (endless && magnitude < 0x1p-126) return signed_zero(x.negative);
  if (magnitude >= std::ldexp(1.0, grid.beyond)) return x.negative ? -infinity() : infinity();
  const auto result = static_cast<float>(magnitude);
  return x.negative ? -result : result;
}

bool is_negative(float x) { return (float_bits(x) >> 31) != 0; }
bool is_infinite(float x) { return std::fabs(x) == infinity(); }

std::vector<double> make_magnitudes(int mantissa_bits, int bias, std::uint32_t last) {
  std::vector<double> values;
  for (std::uint32_t code = 0; code <= last; ++code) {
    const int exponent = static_cast<int>(code >> mantissa_bits);
    const double mantissa = std::ldexp(code & ((1u << mantissa_bits) - 1), -mantissa_bits);
    values.push_back(exponent == 0 ? std::ldexp(mantissa, 1 - bias)
                                   : std::ldexp(1.0 + mantissa, exponent - bias));
  }
  return values;
}

/// The magnitudes and, last, where one more code would be.
const std::vector<double>& magnitudes_and_beyond(Format elements) {
  static const std::vector<double> e4m3 = make_magnitudes(3, 7, 0x7F);
  static const std::vector<double> e4m3fnuz = make_magnitudes(3, 8, 0x80);
  static const std::vector<double> e5m2 = make_magnitudes(2, 15, 0x7C);
  static const std::vector<double> e2m1 = make_magnitudes(1, 1, 0x8);
  switch (elements) {
    case Format::e4m3:
    case Format::ue4m3:
      return e4m3;
    case Format::e4m3fnuz:
      return e4m3fnuz;
    case Format::e5m2:
      return e5m2;
    default:
      return e2m1;
  }
}

/// With the sign; E4M3FNUZ has no -0.
std::uint32_t with_sign(Format elements, std::uint32_t magnitude, bool negative) {
  if (!negative || (elements == Format::e4m3fnuz && magnitude == 0)) return magnitude;
  return magnitude | (elements == Format::e2m1 ? 0x8u : 0x80u);
}

std::uint32_t largest_code(Format elements) {
  return static_cast<std::uint32_t>(magnitudes_and_beyond(elements).size()) - 2;
}

}  // namespace

float gpu_nan() { return float_of(kGpuNan); }
float infinity() { return std::numeric_limits<float>::infinity(); }
bool is_nan(float x) { return exponent_field(x) == 255 && mantissa_field(x) != 0; }
std::uint32_t float_bits(float x) { return std::bit_cast<std::uint32_t>(x); }
float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }
std::uint32_t exponent_field(float x) { return float_bits(x) >> 23 & 255; }
std::uint32_t mantissa_field(float x) { return float_bits(x) & 0x7F'FFFF; }

float F32::seen(float x) const {
  return flush && exponent_field(x) == 0 ? signed_zero(is_negative(x)) : x;
}

float F32::times(float a, float b) const {
  a = seen(a);
  b = seen(b);
  const bool negative = is_negative(a) != is_negative(b);
  if (is_nan(a) || is_nan(b)) return gpu_nan();
  if (is_infinite(a) || is_infinite(b)) {
    if (a == 0.0f || b == 0.0f) return gpu_nan();
    return negative ? -infinity() : infinity();
  }
  const Exact x = exact_of(a);
  const Exact y = exact_of(b);
  return nearest({negative, x.digits * y.digits, x.exponent + y.exponent}, kF32Grid, flush);
}

float F32::over(float a, float b) const {
  a = seen(a);
  b = seen(b);
  const bool negative = is_negative(a) != is_negative(b);
  if (is_nan(a) || is_nan(b)) return gpu_nan();
  if (is_infinite(a)) {
    if (is_infinite(b)) return gpu_nan();
    return negative ? -infinity() : infinity();
  }
  if (is_infinite(b)) return signed_zero(negative);
  if (b == 0.0f) {
    if (a == 0.0f) return gpu_nan();
    return negative ? -infinity() : infinity();
  }
  const Exact x = exact_of(a);
  const Exact y = exact_of(b);
  constexpr int kShift = 90;  // the quotient keeps more than 64 digits
  const Digits shifted = x.digits << kShift;
  const Digits quotient = shifted / y.digits;
  return nearest(
      {negative, quotient, x.exponent - y.exponent - kShift, quotient * y.digits != shifted},
      kF32Grid, flush);
}

float F32::plus(float a, float b) const {
  a = seen(a);
  b = seen(b);
  if (is_nan(a) || is_nan(b)) return gpu_nan();
  if (is_infinite(a) || is_infinite(b)) {
    if (is_infinite(a) && is_infinite(b) && is_negative(a) != is_negative(b)) return gpu_nan();
    return is_infinite(a) ? a : b;
  }
  if (a == 0.0f && b == 0.0f) return signed_zero(is_negative(a) && is_negative(b));
  Exact x = exact_of(a);
  Exact y = exact_of(b);
  if (x.digits == 0) return b;
  if (y.digits == 0) return a;
  if (x.exponent < y.exponent) std::swap(x, y);
  // The digits of the larger are raised to the unit of the smaller. Where that would be too far,
  // the smaller one counts as a single unit, far below every digit that matters, as it is itself.
  constexpr int kFar = 90;
  const int distance = x.exponent - y.exponent;
  if (distance > kFar) {
    y.digits = 1;
    y.exponent = x.exponent - kFar;
  }
  const Digits large = x.digits << (x.exponent - y.exponent);
  if (x.negative == y.negative) {
    return nearest({x.negative, large + y.digits, y.exponent}, kF32Grid, flush);
  }
  if (large == y.digits) return 0.0f;
  const bool x_wins = large > y.digits;
  return nearest(
      {x_wins ? x.negative : y.negative, x_wins ? large - y.digits : y.digits - large, y.exponent},
      kF32Grid, flush);
}

float F32::minus(float a, float b) const { return plus(a, float_of(float_bits(b) ^ 0x8000'0000u)); }

float F32::smaller(float a, float b) const {
  a = seen(a);
  b = seen(b);
  if (is_nan(a)) return is_nan(b) ? gpu_nan() : b;
  if (is_nan(b)) return a;
  if (a == 0.0f && b == 0.0f) return signed_zero(is_negative(a) || is_negative(b));
  return a < b ? a : b;
}

float F32::larger(float a, float b) const {
  a = seen(a);
  b = seen(b);
  if (is_nan(a)) return is_nan(b) ? gpu_nan() : b;
  if (is_nan(b)) return a;
  if (a == 0.0f && b == 0.0f) return signed_zero(is_negative(a) && is_negative(b));
  return a > b ? a : b;
}

float approximate_reciprocal(float x) { return gpu::rcp_approx_ftz(x); }

float quotient(const F32& math, float x, float y) {
  return math.flush ? math.times(x, approximate_reciprocal(y)) : math.over(x, y);
}

float reciprocal(const F32& math, float y) {
  return math.flush ? approximate_reciprocal(y) : math.over(1.0f, y);
}

float triton_quotient(float x, float y) {
  const F32 math;
  float k = 1.0f;
  if (std::fabs(y) > 0x1p126f) k = 0.25f;
  if (std::fabs(y) < 0x1p-126f) k = 0x1p24f;
  return math.times(math.times(x, k), approximate_reciprocal(math.times(y, k)));
}

float in_dtype(Format dtype, float x) {
  if (is_nan(x)) return gpu_nan();
  if (is_infinite(x)) return x;
  return nearest(exact_of(x), grid_of(dtype), false);
}

float value_of(Format format, std::uint32_t bits) {
  if (format == Format::f32) return float_of(bits);
  if (format == Format::bf16) return float_of(bits << 16);
  if (format == Format::f16) {
    const std::uint32_t exponent = bits >> 10 & 31;
    const std::uint32_t mantissa = bits & 1023;
    const bool negative = (bits >> 15 & 1) != 0;
    if (exponent == 31) {
      if (mantissa != 0) return gpu_nan();
      return negative ? -infinity() : infinity();
    }
    const double value = exponent == 0
                             ? std::ldexp(mantissa, -24)
                             : std::ldexp(1024 + mantissa, static_cast<int>(exponent) - 25);
    return negative ? -static_cast<float>(value) : static_cast<float>(value);
  }
  const std::uint32_t magnitude = bits & 0x7F;
  if (magnitude > largest_code(Format::e4m3)) return gpu_nan();
  const auto value = static_cast<float>(magnitudes_and_beyond(Format::e4m3)[magnitude]);
  return (bits & 0x80) != 0 ? -value : value;
}

std::uint32_t bits_in(Format dtype, float x) {
  if (dtype == Format::f32) return float_bits(x);
  if (dtype == Format::bf16) return float_bits(x) >> 16;
  if (is_nan(x)) return 0x7FFF;
  const std::uint32_t sign = is_negative(x) ? 0x8000 : 0;
  if (is_infinite(x)) return sign | 0x7C00;
  if (x == 0.0f) return sign;
  const int exponent = std::max(std::ilogb(x), -14);
  const double digits = std::ldexp(std::fabs(static_cast<double>(x)), 10 - exponent);
  return sign + (static_cast<std::uint32_t>(exponent + 15) << 10) +
         static_cast<std::uint32_t>(digits) - 1024;
}

float constant(double x) {
  int exponent = 0;
  const double digits = std::frexp(std::fabs(x), &exponent);
  return nearest({x < 0, static_cast<Digits>(std::ldexp(digits, 53)), exponent - 53}, kF32Grid,
                 false);
}

float power_of_two(int e) { return static_cast<float>(std::ldexp(1.0, e)); }

float log2_in(Format dtype, float x) {
  if (is_nan(x) || x < 0.0f) return gpu_nan();
  if (x == 0.0f) return -infinity();
  if (is_infinite(x)) return x;
  MpfrReal result(grid_of(dtype).digits);  // no logarithm is subnormal
  const MpfrReal argument(24, static_cast<double>(x));
  mpfr_log2(result.get(), argument.get(), MPFR_RNDN);
  return result.to_float();
}

const std::vector<double>& magnitudes(Format elements) {
  static std::vector<double> of[4];
  const std::size_t index = elements == Format::e4m3       ? 0
                            : elements == Format::e4m3fnuz ? 1
                            : elements == Format::e5m2     ? 2
                                                           : 3;
  if (of[index].empty()) {
    const std::vector<double>& all = magnitudes_and_beyond(elements);
    of[index].assign(all.begin(), all.end() - 1);
  }
  return of[index];
}

float largest_of(Format elements) { return static_cast<float>(magnitudes(elements).back()); }

std::uint32_t nearest_magnitude(Format elements, float y, Halfway halfway) {
  const std::vector<double>& values = magnitudes_and_beyond(elements);
  const auto exact = static_cast<double>(y);
  std::uint32_t code = 0;
  for (std::uint32_t next = 1; next < values.size(); ++next) {
    // Nearer to the next one: beyond the middle of the two, which a double holds.
    const double middle = (values[next - 1] + values[next]) / 2;
    bool up = exact > middle;
    if (exact == middle) {
      up = halfway == Halfway::away || (halfway == Halfway::even && next % 2 == 0);
    }
    if (up) code = next;
  }
  return code;
}

std::uint32_t saturating_code(Format elements, float y) {
  if (is_nan(y)) {
    return elements == Format::e2m1 ? 0x7 : elements == Format::e4m3fnuz ? 0x80 : 0x7F;
  }
  const std::uint32_t code =
      std::min(nearest_magnitude(elements, std::fabs(y)), largest_code(elements));
  return with_sign(elements, code, is_negative(y));
}

std::uint32_t torch_code(Format elements, float y) {
  const bool fnuz = elements == Format::e4m3fnuz;
  if (is_nan(y)) return fnuz ? 0x80 : with_sign(elements, 0x7F, is_negative(y));
  const std::uint32_t code = nearest_magnitude(elements, std::fabs(y));
  if (code <= largest_code(elements)) return with_sign(elements, code, is_negative(y));
  if (fnuz) return 0x80;
  return with_sign(elements, elements == Format::e5m2 ? 0x7C : 0x7F, is_negative(y));
}

std::uint8_t fp4_code(float y, Halfway halfway, SignOf sign, std::uint8_t nan_code) {
  if (is_nan(y)) return nan_code;
  const std::uint32_t code = std::min(nearest_magnitude(Format::e2m1, std::fabs(y), halfway), 7u);
  bool negative = false;
  switch (sign) {
    case SignOf::bit:
      negative = is_negative(y);
      break;
    case SignOf::below_zero:
      negative = y < 0.0f;
      break;
    case SignOf::below_zero_unless_code_0:
      negative = y < 0.0f && code != 0;
      break;
    case SignOf::not_above_zero:
      negative = !(y > 0.0f);
      break;
  }
  return static_cast<std::uint8_t>(code | (negative ? 8u : 0u));
}

std::uint32_t e8m0_not_below(float x) {
  if (is_nan(x)) return 0xFF;
  for (std::uint32_t code = 0; code < 0xFE; ++code) {
    if (std::ldexp(1.0, static_cast<int>(code) - 127) >= std::fabs(static_cast<double>(x))) {
      return code;
    }
  }
  return 0xFE;
}

int exponent_rounded_up(float x) {
  return static_cast<int>(exponent_field(x)) + (mantissa_field(x) != 0 ? 1 : 0);
}

float amax_of_numbers(std::span<const float> x, float start) {
  float largest = start;
  for (const float value : x) {
    if (!is_nan(value)) largest = std::max(largest, std::fabs(value));
  }
  return largest;
}

float amax_of_pairs(std::span<const float> x) {
  const bool any = std::any_of(x.begin(), x.end(), [](float value) { return !is_nan(value); });
  return any || x.empty() ? amax_of_numbers(x) : gpu_nan();
}

float amax_or_nan(std::span<const float> x) {
  return std::any_of(x.begin(), x.end(), is_nan) ? gpu_nan() : amax_of_numbers(x);
}

}  // namespace moeref::judge
