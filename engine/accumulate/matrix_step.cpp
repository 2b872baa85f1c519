#include "engine/accumulate/matrix_step.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "engine/exact/rounding.hpp"
#include "quant/formats.hpp"
#include "quant/mini_float.hpp"

namespace moeref::accumulate {
namespace {

constexpr int kF32FractionBits = 23;
constexpr int kF32LowestExponent = -126;
constexpr int kTf32ClearedBits = 13;
/// The exponent of a zero under ZeroOperands::smallest_exponent.
constexpr int kZeroExponent = -126;

UnitNumber f32_number(std::uint32_t bits) {
  const std::uint32_t field = bits >> kF32FractionBits & 0xFFu;
  const std::uint32_t fraction = bits & 0x007F'FFFFu;
  UnitNumber number;
  number.fraction_bits = kF32FractionBits;
  number.negative = (bits & kF32SignMask) != 0;
  if (field == 0xFFu) {
    number.kind = fraction != 0 ? NumberKind::nan : NumberKind::infinite;
    return number;
  }
  const auto magnitude =
      static_cast<std::int32_t>(field == 0 ? fraction : fraction | 1u << kF32FractionBits);
  number.significand = number.negative ? -magnitude : magnitude;
  number.exponent = static_cast<std::int16_t>(std::max(static_cast<int>(field), 1) - 127);
  return number;
}

/// value * 2^shift toward zero. A zero that takes no part in the alignment may lie far above it.
std::int64_t shifted_toward_zero(std::int64_t value, int shift) {
  if (value == 0) return 0;
  if (shift >= 0) return value << shift;
  const std::int64_t magnitude = std::abs(value) >> std::min(-shift, 63);
  return value < 0 ? -magnitude : magnitude;
}

/// value * 2^shift toward minus infinity.
std::int64_t shifted_down(std::int64_t value, int shift) {
  return shift >= 0 ? value << shift : value >> std::min(-shift, 63);
}

struct OutputGrid {
  int fraction_bits;
  int lowest_exponent;
  bool nearest;
  double overflow;  ///< magnitudes from here on are infinite
};

OutputGrid grid_of(StepOutput output) {
  switch (output) {
    case StepOutput::f32_toward_zero:
      return {kF32FractionBits, kF32LowestExponent, false, 0x1p128};
    case StepOutput::e8m13_toward_zero:
      return {13, kF32LowestExponent, false, 0x1p128};
    case StepOutput::f16_nearest:
      break;
  }
  return {10, -14, true, 65536.0};
}

constexpr OutputGrid kNearestF32{kF32FractionBits, kF32LowestExponent, true, 0x1p128};

/// sum * 2^weight on the grid: exact in double, or infinity. An exact or underflowing zero is +0.
double rounded(std::int64_t sum, int weight, const OutputGrid& grid) {
  const auto magnitude = static_cast<std::uint64_t>(std::abs(sum));
  if (magnitude == 0) return 0.0;
  const int exponent = static_cast<int>(std::bit_width(magnitude)) - 1 + weight;
  const int unit = std::max(exponent, grid.lowest_exponent) - grid.fraction_bits;
  const int dropped = unit - weight;
  std::uint64_t kept = magnitude;
  if (dropped <= 0) {
    kept = magnitude << -dropped;
  } else {
    kept = dropped < 64 ? magnitude >> dropped : 0;
    if (grid.nearest && dropped <= 64) {
      const std::uint64_t half = std::uint64_t{1} << (dropped - 1);
      const std::uint64_t rest = dropped < 64 ? magnitude & (2 * half - 1) : magnitude;
      if (rest > half || (rest == half && (kept & 1) != 0)) ++kept;
    }
  }
  if (kept == 0) return 0.0;
  double value = std::ldexp(static_cast<double>(kept), unit);
  if (value >= grid.overflow) value = std::numeric_limits<double>::infinity();
  return sum < 0 ? -value : value;
}

std::uint32_t bits_in(StepOutput output, double value) {
  const auto narrow = static_cast<float>(value);
  if (output == StepOutput::f16_nearest) return encode(Format::f16, narrow, EncodePolicy::eigen);
  return std::bit_cast<std::uint32_t>(narrow);
}

/// What infinities and NaNs make of a sum of products and c.
class Specials {
 public:
  void add(const UnitNumber& number) { add(number.kind, number.negative); }
  void add_product(const UnitNumber& a, const UnitNumber& b) {
    if (a.kind == NumberKind::finite && b.kind == NumberKind::finite) return;
    const bool zero = (a.kind == NumberKind::finite && a.significand == 0) ||
                      (b.kind == NumberKind::finite && b.significand == 0);
    const bool nan = a.kind == NumberKind::nan || b.kind == NumberKind::nan || zero;
    add(nan ? NumberKind::nan : NumberKind::infinite, a.negative != b.negative);
  }
  void add(NumberKind kind, bool negative) {
    nan_ |= kind == NumberKind::nan;
    positive_ |= kind == NumberKind::infinite && !negative;
    negative_ |= kind == NumberKind::infinite && negative;
  }
  bool any() const { return nan_ || positive_ || negative_; }
  bool is_nan() const { return nan_ || (positive_ && negative_); }
  double infinity() const {
    const double infinity = std::numeric_limits<double>::infinity();
    return negative_ ? -infinity : infinity;
  }

 private:
  bool nan_ = false;
  bool positive_ = false;
  bool negative_ = false;
};

int exponent_of(const UnitNumber& number) {
  return number.significand == 0 ? kZeroExponent : number.exponent;
}

/// The exponent that the terms of one step are aligned to.
class Alignment {
 public:
  Alignment(ZeroOperands zeros, int lowest) : zeros_(zeros), lowest_(lowest) {}
  void add(bool zero, int exponent) {
    if (zero && zeros_ == ZeroOperands::skipped) return;
    largest_ = std::max(largest_, exponent);
    any_ = true;
  }
  bool any() const { return any_; }
  int exponent() const {
    return zeros_ == ZeroOperands::skipped ? std::max(largest_, lowest_) : largest_;
  }

 private:
  ZeroOperands zeros_;
  int lowest_;
  int largest_ = std::numeric_limits<int>::min();
  bool any_ = false;
};

std::uint32_t unit_nan(StepOutput output) {
  return output == StepOutput::f16_nearest ? kUnitNanF16 : kUnitNanF32;
}

std::int64_t product_of(const UnitNumber& a, const UnitNumber& b) {
  return static_cast<std::int64_t>(a.significand) * b.significand;
}

/// Some products cut to 24 fraction bits below their largest exponent, and summed.
struct MfmaSum {
  std::int64_t sum = 0;
  int exponent = std::numeric_limits<int>::min();
};

constexpr int kMfmaFractionBits = 24;
constexpr int kMfmaGuardBits = 7;

MfmaSum mfma_products(std::span<const UnitNumber> a, std::span<const UnitNumber> b,
                      std::size_t first, std::size_t stride) {
  MfmaSum result;
  for (std::size_t k = first; k < a.size(); k += stride) {
    result.exponent = std::max(result.exponent, exponent_of(a[k]) + exponent_of(b[k]));
  }
  for (std::size_t k = first; k < a.size(); k += stride) {
    const int exponent = exponent_of(a[k]) + exponent_of(b[k]);
    result.sum += shifted_toward_zero(
        product_of(a[k], b[k]),
        kMfmaFractionBits - a[k].fraction_bits - b[k].fraction_bits - (result.exponent - exponent));
  }
  return result;
}

}  // namespace

UnitNumber operand_number(Format format, std::uint32_t code) {
  if (format == Format::f32) {
    UnitNumber number = f32_number(code >> kTf32ClearedBits << kTf32ClearedBits);
    number.significand /= 1 << kTf32ClearedBits;
    number.fraction_bits = kF32FractionBits - kTf32ClearedBits;
    return number;
  }
  const MiniFloat description = mini_float(format);
  const int m = description.mantissa_bits;
  const std::uint32_t magnitude = code & description.magnitude_mask();
  UnitNumber number;
  number.fraction_bits = static_cast<std::uint8_t>(m);
  number.negative = (code & description.sign_mask()) != 0 && format != Format::ue4m3;
  const float value = std::bit_cast<float>(
      decode_to_f32_bits(description, format == Format::ue4m3 ? magnitude : code));
  if (std::isnan(value)) {
    number.kind = NumberKind::nan;
    return number;
  }
  if (std::isinf(value)) {
    number.kind = NumberKind::infinite;
    return number;
  }
  const auto field = static_cast<int>(magnitude >> m);
  const auto fraction = static_cast<std::int32_t>(magnitude & ((1u << m) - 1u));
  if (format == Format::e8m0) {
    number.significand = 1;
    number.exponent = static_cast<std::int16_t>(field - description.bias);
    return number;
  }
  const std::int32_t significand = field == 0 ? fraction : fraction | 1 << m;
  number.significand = number.negative ? -significand : significand;
  number.exponent = static_cast<std::int16_t>(std::max(field, 1) - description.bias);
  return number;
}

UnitNumber accumulator_number(Format format, std::uint32_t bits) {
  return format == Format::f32 ? f32_number(bits) : operand_number(format, bits);
}

std::uint32_t fused_step(const FusedDot& unit, std::span<const UnitNumber> a,
                         std::span<const UnitNumber> b, std::uint32_t c, int scale_exponent) {
  const Format accumulator = unit.output == StepOutput::f16_nearest ? Format::f16 : Format::f32;
  const UnitNumber addend = accumulator_number(accumulator, c);
  Specials specials;
  specials.add(addend);
  Alignment alignment(unit.zeros, unit.lowest_exponent);
  alignment.add(addend.significand == 0, exponent_of(addend));
  const auto exponent = [&](std::size_t k) {
    return exponent_of(a[k]) + exponent_of(b[k]) + scale_exponent;
  };
  for (std::size_t k = 0; k < a.size(); ++k) {
    specials.add_product(a[k], b[k]);
    alignment.add(a[k].significand == 0 || b[k].significand == 0, exponent(k));
  }
  if (specials.any()) {
    return specials.is_nan() ? unit_nan(unit.output) : bits_in(unit.output, specials.infinity());
  }
  if (!alignment.any()) return 0;
  const int top = alignment.exponent();
  const auto aligned = [&](std::int64_t significand, int fraction_bits, int from) {
    return shifted_toward_zero(significand, unit.fraction_bits - fraction_bits - (top - from));
  };
  std::int64_t sum = aligned(addend.significand, addend.fraction_bits, exponent_of(addend));
  for (std::size_t k = 0; k < a.size(); ++k) {
    const std::int64_t product = product_of(a[k], b[k]);
    if (product == 0) continue;
    sum += aligned(product, a[k].fraction_bits + b[k].fraction_bits, exponent(k));
  }
  return bits_in(unit.output, rounded(sum, top - unit.fraction_bits, grid_of(unit.output)));
}

std::uint32_t scaled_group_step(const ScaledGroupDot& unit, std::span<const UnitNumber> a,
                                std::span<const UnitNumber> b, std::span<const UnitNumber> a_scales,
                                std::span<const UnitNumber> b_scales, std::uint32_t c) {
  constexpr std::size_t kGroup = 16;
  const UnitNumber addend = f32_number(c);
  Specials specials;
  specials.add(addend);
  for (std::size_t i = 0; i < a_scales.size(); ++i) {
    specials.add(a_scales[i].kind, false);
    specials.add(b_scales[i].kind, false);
  }
  if (specials.any()) {
    return specials.is_nan() ? kUnitNanF32
                             : bits_in(StepOutput::f32_toward_zero, specials.infinity());
  }
  struct Term {
    std::int64_t value = 0;
    int exponent = 0;
    int fraction_bits = 0;
  };
  std::vector<Term> terms;
  Alignment alignment(unit.zeros, unit.lowest_exponent);
  alignment.add(addend.significand == 0, exponent_of(addend));
  for (std::size_t first = 0; first < a.size(); first += kGroup) {
    std::int64_t sum = 0;
    for (std::size_t k = first; k < first + kGroup; ++k) {
      // An E2M1 exponent is 0, 1 or 2.
      sum += product_of(a[k], b[k]) * (std::int64_t{1} << (a[k].exponent + b[k].exponent));
    }
    const std::size_t scale = first / static_cast<std::size_t>(unit.block);
    const UnitNumber& sa = a_scales[scale];
    const UnitNumber& sb = b_scales[scale];
    Term term;
    term.value = sum * product_of(sa, sb);
    term.exponent = exponent_of(sa) + exponent_of(sb);
    term.fraction_bits =
        a[first].fraction_bits + b[first].fraction_bits + sa.fraction_bits + sb.fraction_bits;
    alignment.add(term.value == 0, term.exponent);
    terms.push_back(term);
  }
  if (!alignment.any()) return 0;
  const int top = alignment.exponent();
  std::int64_t sum = shifted_toward_zero(
      addend.significand, unit.fraction_bits - kF32FractionBits - (top - exponent_of(addend)));
  for (const Term& term : terms) {
    sum += shifted_toward_zero(term.value,
                               unit.fraction_bits - term.fraction_bits - (top - term.exponent));
  }
  return bits_in(StepOutput::f32_toward_zero,
                 rounded(sum, top - unit.fraction_bits, grid_of(StepOutput::f32_toward_zero)));
}

std::uint32_t fma_step(std::span<const UnitNumber> a, std::span<const UnitNumber> b,
                       std::uint32_t c) {
  const auto value = [](const UnitNumber& number) {
    if (number.kind == NumberKind::nan) return exact::canonical_nan();
    const float sign = number.negative ? -1.0f : 1.0f;
    if (number.kind == NumberKind::infinite) return sign * std::numeric_limits<float>::infinity();
    if (number.significand == 0) return sign * 0.0f;
    return std::ldexp(static_cast<float>(number.significand),
                      number.exponent - number.fraction_bits);
  };
  auto sum = std::bit_cast<float>(c);
  for (std::size_t k = 0; k < a.size(); ++k) sum = std::fma(value(a[k]), value(b[k]), sum);
  return std::bit_cast<std::uint32_t>(std::isnan(sum) ? exact::canonical_nan() : sum);
}

std::uint32_t mfma_step(const MfmaDot& unit, std::span<const UnitNumber> a,
                        std::span<const UnitNumber> b, std::uint32_t c) {
  const auto nan = std::bit_cast<std::uint32_t>(exact::canonical_nan());
  const auto infinity = [&](const Specials& specials) {
    return specials.is_nan()
               ? nan
               : std::bit_cast<std::uint32_t>(static_cast<float>(specials.infinity()));
  };
  const UnitNumber addend = f32_number(c);
  Specials operands;
  operands.add(addend);
  Specials overflow;
  for (std::size_t k = 0; k < a.size(); ++k) {
    operands.add_product(a[k], b[k]);
    const double product =
        std::ldexp(static_cast<double>(product_of(a[k], b[k])),
                   exponent_of(a[k]) + exponent_of(b[k]) - a[k].fraction_bits - b[k].fraction_bits);
    if (std::fabs(product) >= 0x1p128) overflow.add(NumberKind::infinite, product < 0.0);
  }
  if (operands.any()) return infinity(operands);
  if (overflow.any()) return infinity(overflow);

  MfmaSum products = mfma_products(a, b, 0, unit.splits_even_odd ? 2 : 1);
  if (unit.splits_even_odd) {
    const MfmaSum odd = mfma_products(a, b, 1, 2);
    const int exponent = std::max(products.exponent, odd.exponent);
    products = {shifted_down(products.sum, products.exponent - exponent) +
                    shifted_down(odd.sum, odd.exponent - exponent),
                exponent};
  }
  const int top = std::max(products.exponent, exponent_of(addend));
  const std::int64_t sum = shifted_down(products.sum, kMfmaGuardBits + products.exponent - top);
  const bool drops_addend = unit.splits_even_odd && exponent_of(addend) < top - 25;
  const std::int64_t cut =
      drops_addend ? 0
                   : shifted_down(addend.significand,
                                  kMfmaFractionBits - kF32FractionBits + exponent_of(addend) - top);
  const double value =
      rounded(sum + (cut << kMfmaGuardBits), top - kMfmaFractionBits - kMfmaGuardBits, kNearestF32);
  return std::bit_cast<std::uint32_t>(static_cast<float>(value));
}

}  // namespace moeref::accumulate
