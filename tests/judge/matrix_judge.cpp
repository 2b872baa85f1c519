#include "tests/judge/matrix_judge.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>

#include "tests/judge/matrix_numbers.hpp"

namespace moeref::judge {
namespace {

constexpr int kZeroExponent = -126;  // under fixed126

/// trunc and floor of value * 2^shift. The values have few digits: exact in double.
std::int64_t cut(double value, int shift) {
  return static_cast<std::int64_t>(std::trunc(std::ldexp(value, shift)));
}
std::int64_t cut_down(double value, int shift) {
  return static_cast<std::int64_t>(std::floor(std::ldexp(value, shift)));
}

/// What NaN and infinity make of a sum: NaN or infinity; nothing if all is finite.
std::optional<double> special(std::span<const Number> a, std::span<const Number> b,
                              const Number& c) {
  bool nan = c.is_nan();
  bool plus = c.is_infinite() && !c.is_negative();
  bool minus = c.is_infinite() && c.is_negative();
  for (std::size_t k = 0; k < a.size(); ++k) {
    if (a[k].is_nan() || b[k].is_nan()) nan = true;
    if (!a[k].is_infinite() && !b[k].is_infinite()) continue;
    if (a[k].is_zero() || b[k].is_zero()) nan = true;
    (a[k].is_negative() != b[k].is_negative() ? minus : plus) = true;
  }
  if (nan || (plus && minus)) return std::numeric_limits<double>::quiet_NaN();
  if (plus) return std::numeric_limits<double>::infinity();
  if (minus) return -std::numeric_limits<double>::infinity();
  return std::nullopt;
}

/// One term of a sum that is aligned: value * 2^scale.
struct Term {
  double value;
  int exponent;  ///< with `scale`
  int scale = 0;
};

/// The terms cut to `fraction_bits` below the largest exponent, summed, rounded; nothing if there
/// are none.
std::optional<double> aligned_sum(std::vector<Term> terms, ZeroOperands zeros, int lowest,
                                  int fraction_bits, const Grid& grid) {
  if (zeros == ZeroOperands::skipped) {
    std::erase_if(terms, [](const Term& term) { return term.value == 0.0; });
  }
  if (terms.empty()) return std::nullopt;
  int top = terms.front().exponent;
  for (const Term& term : terms) top = std::max(top, term.exponent);
  if (zeros == ZeroOperands::skipped) top = std::max(top, lowest);
  std::int64_t sum = 0;
  for (const Term& term : terms) sum += cut(term.value, fraction_bits - top + term.scale);
  return output_of(sum, top - fraction_bits, grid);
}

int exponent_of(const Number& number) { return number.is_zero() ? kZeroExponent : number.exponent; }

/// One step of NVIDIA's units.
std::uint32_t fused_dot_add(const FusedDot& unit, std::span<const Number> a,
                            std::span<const Number> b, int scale, std::uint32_t c_bits) {
  const Number c =
      decoded(unit.output == StepOutput::f16_nearest ? Format::f16 : Format::f32, c_bits);
  if (const auto found = special(a, b, c)) return bits_in(unit.output, *found);
  std::vector<Term> terms{{c.value, exponent_of(c)}};
  for (std::size_t k = 0; k < a.size(); ++k) {
    terms.push_back(
        {a[k].value * b[k].value, exponent_of(a[k]) + exponent_of(b[k]) + scale, scale});
  }
  return bits_in(unit.output, aligned_sum(std::move(terms), unit.zeros, unit.lowest_exponent,
                                          unit.fraction_bits, grid_of(unit.output))
                                  .value_or(0.0));
}

std::vector<Number> operands(const UnitCodes& row, std::optional<Format> converted) {
  std::vector<Number> numbers;
  for (const std::uint32_t code : row.codes) {
    numbers.push_back(operand(row.format, code, converted));
  }
  return numbers;
}

std::vector<Number> scale_numbers(const UnitCodes& row, Format format) {
  std::vector<Number> numbers;
  for (const std::uint32_t code : row.scales) numbers.push_back(decoded(format, code));
  return numbers;
}

int width_of(TermOrder order) {
  switch (order) {
    case TermOrder::kw4:
      return 4;
    case TermOrder::kw8:
      return 8;
    case TermOrder::natural:
      break;
  }
  return 2;
}

std::uint32_t chain(const FusedDot& unit, const UnitCodes& a, const UnitCodes& b, std::uint32_t c) {
  const std::vector<Number> left = operands(a, unit.operand);
  const std::vector<Number> right = operands(b, unit.operand);
  const std::vector<Number> left_scales = scale_numbers(a, Format::e8m0);
  const std::vector<Number> right_scales = scale_numbers(b, Format::e8m0);
  const auto count = static_cast<std::int64_t>(left.size());
  const std::int64_t steps = count / unit.terms;
  const std::int64_t steps_of_instruction = unit.k / unit.terms;
  // Every k goes to its step; inside one the order says nothing.
  std::vector<std::vector<Number>> step_left(static_cast<std::size_t>(steps));
  std::vector<std::vector<Number>> step_right(static_cast<std::size_t>(steps));
  for (std::int64_t k = 0; k < count; ++k) {
    const auto step = static_cast<std::size_t>(step_of(unit, k));
    step_left[step].push_back(left[static_cast<std::size_t>(k)]);
    step_right[step].push_back(right[static_cast<std::size_t>(k)]);
  }
  std::uint32_t d = c;
  std::uint32_t before = c;
  for (std::int64_t step = 0; step < steps; ++step) {
    const bool after = unit.accumulator == AccumulatorPoint::added_after;
    if (after && step % steps_of_instruction == 0) {
      before = d;
      d = 0;
    }
    int scale = 0;
    if (unit.block_scales) {
      const auto block = static_cast<std::size_t>(step * unit.terms / 32);
      const Number& sa = left_scales[block];
      const Number& sb = right_scales[block];
      if (sa.is_nan() || sb.is_nan()) {
        d = bits_in(unit.output, sa.value + sb.value);
        continue;
      }
      scale = sa.exponent + sb.exponent;
    }
    const auto at = static_cast<std::size_t>(step);
    d = fused_dot_add(unit, step_left[at], step_right[at], scale, d);
    if (after && step % steps_of_instruction == steps_of_instruction - 1) {
      d = ieee_sum(unit.output, d, before);
    }
  }
  return d;
}

/// mxf4 and mxf4nvf4.
std::uint32_t scaled_groups(const ScaledGroupDot& unit, std::span<const Number> a,
                            std::span<const Number> b, std::span<const Number> a_scales,
                            std::span<const Number> b_scales, std::uint32_t c_bits) {
  const Number c = decoded(Format::f32, c_bits);
  bool nan = c.is_nan();
  for (const auto scales : {a_scales, b_scales}) {
    nan |= std::any_of(scales.begin(), scales.end(), [](const Number& s) { return s.is_nan(); });
  }
  if (nan) return kNvidiaNan;
  if (c.is_infinite()) return f32_bits(c.value);
  std::vector<Term> terms{{c.value, exponent_of(c)}};
  constexpr std::size_t kGroup = 16;
  for (std::size_t first = 0; first < a.size(); first += kGroup) {
    double sum = 0.0;
    for (std::size_t k = first; k < first + kGroup; ++k) sum += a[k].value * b[k].value;
    const std::size_t block = first / static_cast<std::size_t>(unit.block);
    terms.push_back({sum * a_scales[block].value * b_scales[block].value,
                     exponent_of(a_scales[block]) + exponent_of(b_scales[block])});
  }
  return f32_bits(aligned_sum(std::move(terms), unit.zeros, unit.lowest_exponent,
                              unit.fraction_bits, grid_of(StepOutput::f32_toward_zero))
                      .value_or(0.0));
}

std::uint32_t chain(const ScaledGroupDot& unit, const UnitCodes& a, const UnitCodes& b,
                    std::uint32_t c) {
  const std::vector<Number> left = operands(a, std::nullopt);
  const std::vector<Number> right = operands(b, std::nullopt);
  const std::vector<Number> left_scales = scale_numbers(a, unit.scale);
  const std::vector<Number> right_scales = scale_numbers(b, unit.scale);
  const auto k_of = static_cast<std::size_t>(unit.k);
  const std::size_t scales_of = k_of / static_cast<std::size_t>(unit.block);
  for (std::size_t i = 0; i < left.size() / k_of; ++i) {
    c = scaled_groups(unit, std::span(left).subspan(i * k_of, k_of),
                      std::span(right).subspan(i * k_of, k_of),
                      std::span(left_scales).subspan(i * scales_of, scales_of),
                      std::span(right_scales).subspan(i * scales_of, scales_of), c);
  }
  return c;
}

/// Products cut to 24 bits below their largest exponent, and summed.
struct MfmaProducts {
  std::int64_t sum = 0;
  int exponent = 0;
};

MfmaProducts mfma_products(std::span<const Number> a, std::span<const Number> b, std::size_t first,
                           std::size_t stride) {
  MfmaProducts result{0, -100'000};
  for (std::size_t k = first; k < a.size(); k += stride) {
    result.exponent = std::max(result.exponent, exponent_of(a[k]) + exponent_of(b[k]));
  }
  for (std::size_t k = first; k < a.size(); k += stride) {
    result.sum += cut(a[k].value * b[k].value, 24 - result.exponent);
  }
  return result;
}

/// CDNA3: one sum of products, or two where even and odd k are apart (FP8).
std::uint32_t mfma(const MfmaDot& unit, std::span<const Number> a, std::span<const Number> b,
                   std::uint32_t c_bits) {
  const Number c = decoded(Format::f32, c_bits);
  std::optional<double> found = special(a, b, c);
  bool plus = false;
  bool minus = false;
  for (std::size_t k = 0; !found && k < a.size(); ++k) {
    const double product = a[k].value * b[k].value;
    if (std::fabs(product) >= power_of_two(128)) (product < 0.0 ? minus : plus) = true;
  }
  if (plus) found = std::numeric_limits<double>::infinity();
  if (minus) found = -std::numeric_limits<double>::infinity();
  if (plus && minus) found = std::numeric_limits<double>::quiet_NaN();
  if (found) return std::isnan(*found) ? kAmdNan : f32_bits(*found);

  MfmaProducts products;
  if (unit.splits_even_odd) {
    const MfmaProducts even = mfma_products(a, b, 0, 2);
    const MfmaProducts odd = mfma_products(a, b, 1, 2);
    products.exponent = std::max(even.exponent, odd.exponent);
    products.sum = cut_down(static_cast<double>(even.sum), even.exponent - products.exponent) +
                   cut_down(static_cast<double>(odd.sum), odd.exponent - products.exponent);
  } else {
    products = mfma_products(a, b, 0, 1);
  }
  const int c_exponent = exponent_of(c);
  const int top = std::max(products.exponent, c_exponent);
  const std::int64_t sum =
      cut_down(static_cast<double>(products.sum), 31 - 24 + products.exponent - top);
  std::int64_t addend = cut_down(c.value, 24 - top);
  if (unit.splits_even_odd && c_exponent < top - 25) addend = 0;
  return f32_bits(output_of(sum + 128 * addend, top - 31, kF32Nearest));
}

std::uint32_t chain(const MfmaDot& unit, const UnitCodes& a, const UnitCodes& b, std::uint32_t c) {
  const std::vector<Number> left = operands(a, std::nullopt);
  const std::vector<Number> right = operands(b, std::nullopt);
  const auto terms = static_cast<std::size_t>(unit.terms);
  for (std::size_t k = 0; k < left.size(); k += terms) {
    c = mfma(unit, std::span(left).subspan(k, terms), std::span(right).subspan(k, terms), c);
  }
  return c;
}

std::uint32_t chain(const FmaChain&, const UnitCodes& a, const UnitCodes& b, std::uint32_t c) {
  double sum = decoded(Format::f32, c).value;
  for (std::size_t k = 0; k < a.codes.size(); ++k) {
    sum = fused(decoded(a.format, a.codes[k]).value, decoded(b.format, b.codes[k]).value, sum,
                kF32Nearest);
  }
  return std::isnan(sum) ? kAmdNan : f32_bits(sum);
}

/// f32 operations of the promotion. A NaN result is NVIDIA's.
class Promoter {
 public:
  explicit Promoter(bool flushes) : flushes_(flushes) {}

  /// Not flushed: only multiplications and fma are.
  static float plus(float x, float y) {
    return std::bit_cast<float>(ieee_sum(StepOutput::f32_toward_zero,
                                         std::bit_cast<std::uint32_t>(x),
                                         std::bit_cast<std::uint32_t>(y)));
  }
  float times(float x, float y) const { return made(product(seen(x), seen(y), grid())); }
  float fma(float x, float y, float z) const {
    return made(fused(seen(x), seen(y), seen(z), grid()));
  }

 private:
  Grid grid() const { return flushes_ ? kF32Endless : kF32Nearest; }
  double seen(float x) const {
    const bool subnormal = x != 0.0f && std::fabs(x) < 0x1p-126f;
    return flushes_ && subnormal ? std::copysign(0.0, x) : x;
  }
  float made(double value) const {
    if (std::isnan(value)) return std::bit_cast<float>(kNvidiaNan);
    if (flushes_ && std::fabs(value) < 0x1p-126) value = std::copysign(0.0, value);
    return static_cast<float>(value);
  }

  bool flushes_;
};

}  // namespace

double value_of_code(Format format, std::uint32_t code) { return decoded(format, code).value; }

std::int64_t step_of(const FusedDot& unit, std::int64_t k) {
  const std::int64_t width = width_of(unit.order);
  const std::int64_t chunk = unit.terms * width / 2;
  return k / chunk * (width / 2) + k % width / 2;
}

std::uint32_t judge_unit(const MatrixUnit& unit, const UnitCodes& a, const UnitCodes& b,
                         std::uint32_t c) {
  return std::visit([&](const auto& each) { return chain(each, a, b, c); }, unit);
}

std::uint32_t judge_mainloop(const Mainloop& mainloop, const UnitCodes& a, const UnitCodes& b,
                             std::span<const float> row_scales,
                             std::span<const float> column_scales) {
  const FusedDot& unit = mainloop.unit;
  const std::size_t chunk =
      static_cast<std::size_t>(std::max(unit.k, unit.terms * width_of(unit.order) / 2));
  const std::size_t count = a.codes.size();
  const bool one = mainloop.promotion == Promotion::none || mainloop.chain == 0;
  const std::size_t length =
      one ? std::max<std::size_t>(count, 1) : static_cast<std::size_t>(mainloop.chain);
  const Promoter gpu(mainloop.flushes);
  float acc = 0.0f;
  for (std::size_t first = 0, i = 0; first < count; first += length, ++i) {
    UnitCodes left{a.format, {}};
    UnitCodes right{b.format, {}};
    const auto begin = static_cast<std::ptrdiff_t>(first);
    const auto end = static_cast<std::ptrdiff_t>(std::min(first + length, count));
    left.codes.assign(a.codes.begin() + begin, a.codes.begin() + end);
    right.codes.assign(b.codes.begin() + begin, b.codes.begin() + end);
    while (left.codes.size() % chunk != 0) {  // the code of +0 is 0
      left.codes.push_back(0);
      right.codes.push_back(0);
    }
    const float p = std::bit_cast<float>(judge_unit(unit, left, right, 0));
    const float as = row_scales.empty() ? 1.0f : row_scales[i];
    const float bs = column_scales.empty() ? 1.0f : column_scales[i];
    switch (mainloop.promotion) {
      case Promotion::none:
        acc = p;
        break;
      case Promotion::add:
        acc = Promoter::plus(acc, p);
        break;
      case Promotion::fma_product:
        acc = gpu.fma(p, gpu.times(as, bs), acc);
        break;
      case Promotion::fma_row:
        acc = gpu.fma(gpu.times(p, as), bs, acc);
        break;
      case Promotion::fma_column:
        acc = gpu.fma(gpu.times(p, bs), as, acc);
        break;
      case Promotion::column_groups:
        acc = i == 0 ? gpu.times(p, bs) : gpu.fma(p, bs, acc);
        break;
    }
  }
  return std::bit_cast<std::uint32_t>(acc);
}

}  // namespace moeref::judge
