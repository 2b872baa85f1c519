#include "tests/judge/exact_dot.hpp"

#include <mpfr.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "tests/judge/mpfr_real.hpp"

namespace moeref::judge {
namespace {

// Products of four f32-range factors span 2^-1200 .. 2^1024; sums of 2^20 of them and a few more
// factors fit.
constexpr mpfr_prec_t kBits = 6000;
/// Sums of products of two codes of up to 24 bits, 2^-298 .. 2^256, 2^20 of them.
constexpr mpfr_prec_t kSegmentBits = 704;

/// NaN and infinities; nothing for codes that are numbers.
std::optional<double> special_value(Format format, const FloatLayout& layout, std::uint32_t code) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const int bits = layout.exponent_bits + layout.fraction_bits;
  const std::uint32_t size = code & ((1u << bits) - 1);
  switch (format) {
    case Format::e2m1:
      return std::nullopt;
    case Format::e4m3:
    case Format::ue4m3:
      return size == 0x7F ? std::optional(nan) : std::nullopt;
    case Format::e4m3fnuz:
    case Format::e5m2fnuz:
      return code == 0x80 ? std::optional(nan) : std::nullopt;
    default:
      break;
  }
  if (size >> layout.fraction_bits != (1u << layout.exponent_bits) - 1) return std::nullopt;
  if ((size & ((1u << layout.fraction_bits) - 1)) != 0) return nan;
  const double infinity = std::numeric_limits<double>::infinity();
  return (code >> bits & 1u) != 0 ? -infinity : infinity;
}

std::uint32_t read_code(const std::byte* data, Format format, std::int64_t index) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(data);
  if (format == Format::e2m1) return (bytes[index / 2] >> (4 * (index % 2))) & 15u;
  const int width = format == Format::f32                             ? 4
                    : format == Format::bf16 || format == Format::f16 ? 2
                                                                      : 1;
  std::uint32_t code = 0;
  std::memcpy(&code, bytes + index * width, static_cast<std::size_t>(width));
  return code;
}

/// The values of the codes of a format of up to 8 bits.
const std::vector<double>& values_of(Format format) {
  static std::array<std::vector<double>, 16> all;
  std::vector<double>& values = all.at(static_cast<std::size_t>(format));
  for (std::uint32_t code = 0; values.size() < 256; ++code) {
    values.push_back(decode_by_formula(format, code));
  }
  return values;
}

double number(Format format, const std::byte* data, std::int64_t index) {
  const std::uint32_t code = read_code(data, format, index);
  if (format == Format::f32) return static_cast<double>(std::bit_cast<float>(code));
  if (format == Format::bf16) return static_cast<double>(std::bit_cast<float>(code << 16));
  if (format == Format::f16) return decode_by_formula(format, code);
  return values_of(format)[code];
}

double element(const ScaledMatrix& m, std::int64_t row, std::int64_t col) {
  const std::int64_t index = m.codes.origin + row * m.codes.row_stride + col * m.codes.col_stride;
  return number(m.codes.format, m.codes.data, index);
}

double scale(const ScaledMatrix& m, std::int64_t row, std::int64_t col) {
  if (!m.scales) return 1.0;
  const ScaleGrid& g = *m.scales;
  const std::int64_t index = ((g.row_begin + row) / g.block_rows) * g.row_stride +
                             ((g.col_begin + col) / g.block_cols) * g.col_stride;
  return number(g.format, g.data, index);
}

}  // namespace

FloatLayout layout_of(Format format) {
  switch (format) {
    case Format::e4m3:
    case Format::ue4m3:
      return {4, 3, 7};
    case Format::e4m3fnuz:
      return {4, 3, 8};
    case Format::e5m2:
      return {5, 2, 15};
    case Format::e5m2fnuz:
      return {5, 2, 16};
    case Format::e2m1:
      return {2, 1, 1};
    case Format::e8m0:
      return {8, 0, 127};
    case Format::bf16:
      return {8, 7, 127};
    case Format::f16:
      return {5, 10, 15};
    default:
      return {8, 23, 127};
  }
}

double decode_by_formula(Format format, std::uint32_t code) {
  if (format == Format::e8m0) {
    return code == 255 ? std::nan("") : std::ldexp(1.0, static_cast<int>(code) - 127);
  }
  const FloatLayout layout = layout_of(format);
  if (const std::optional<double> special = special_value(format, layout, code)) return *special;
  const auto fraction = static_cast<int>(code & ((1u << layout.fraction_bits) - 1));
  const auto exponent =
      static_cast<int>((code >> layout.fraction_bits) & ((1u << layout.exponent_bits) - 1));
  const bool negative = ((code >> (layout.fraction_bits + layout.exponent_bits)) & 1u) != 0;
  const int hidden = exponent == 0 ? 0 : 1 << layout.fraction_bits;
  const double size =
      std::ldexp(static_cast<double>(hidden + fraction),
                 (exponent == 0 ? 1 : exponent) - layout.bias - layout.fraction_bits);
  return negative ? -size : size;
}

double value_at(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col) {
  return element(matrix, row, col) * scale(matrix, row, col);
}

struct ExactSum::Numbers {
  mpfr_t sum;
  mpfr_t divisor;
  mpfr_t term;
};

ExactSum::ExactSum() : numbers_(new Numbers) {
  mpfr_inits2(kBits, numbers_->sum, numbers_->divisor, numbers_->term,
              static_cast<mpfr_ptr>(nullptr));
  mpfr_set_zero(numbers_->sum, 1);
  mpfr_set_ui(numbers_->divisor, 1, MPFR_RNDN);
}

ExactSum::~ExactSum() {
  mpfr_clears(numbers_->sum, numbers_->divisor, numbers_->term, static_cast<mpfr_ptr>(nullptr));
  delete numbers_;
}

void ExactSum::add_product(double left, double right) {
  mpfr_set_d(numbers_->term, left, MPFR_RNDN);
  mpfr_mul_d(numbers_->term, numbers_->term, right, MPFR_RNDN);
  mpfr_mul(numbers_->term, numbers_->term, numbers_->divisor, MPFR_RNDN);
  mpfr_add(numbers_->sum, numbers_->sum, numbers_->term, MPFR_RNDN);
}

void ExactSum::add_dot(const ScaledMatrix& x, std::int64_t row, const ScaledMatrix& w,
                       std::int64_t n) {
  ExactSum dot;
  MpfrReal product(53);
  MpfrReal segment(kSegmentBits, 0.0);
  std::pair<double, double> scales{0.0, 0.0};  // of an empty segment
  const auto close = [&] {
    MpfrReal scaled(kSegmentBits + 48);
    mpfr_mul_d(scaled.get(), segment.get(), scales.first, MPFR_RNDN);
    mpfr_mul_d(scaled.get(), scaled.get(), scales.second, MPFR_RNDN);
    mpfr_add(dot.numbers_->sum, dot.numbers_->sum, scaled.get(), MPFR_RNDN);
    mpfr_set_zero(segment.get(), 1);
  };
  for (std::int64_t k = 0; k < w.cols; ++k) {
    const std::pair<double, double> here{scale(x, row, k), scale(w, n, k)};
    if (!std::isfinite(here.first) || !std::isfinite(here.second)) {
      // Element by element: 0 * infinity is NaN.
      MpfrReal term(kSegmentBits, element(x, row, k) * element(w, n, k));
      mpfr_mul_d(term.get(), term.get(), here.first, MPFR_RNDN);
      mpfr_mul_d(term.get(), term.get(), here.second, MPFR_RNDN);
      mpfr_add(dot.numbers_->sum, dot.numbers_->sum, term.get(), MPFR_RNDN);
      continue;
    }
    if (here != scales) {
      close();
      scales = here;
    }
    mpfr_set_d(product.get(), element(x, row, k) * element(w, n, k), MPFR_RNDN);  // 48 bits: exact
    if (mpfr_zero_p(product.get()) != 0) continue;
    mpfr_add(segment.get(), segment.get(), product.get(), MPFR_RNDN);
  }
  close();
  for (const ScaledMatrix* m : {&x, &w}) {
    if (m->global_rule == GlobalScaleRule::multiply) dot.multiply(m->global_scale);
    if (m->global_rule == GlobalScaleRule::divide) dot.divide(m->global_scale);
  }
  // this + dot, over the common divisor
  mpfr_mul(numbers_->sum, numbers_->sum, dot.numbers_->divisor, MPFR_RNDN);
  mpfr_mul(dot.numbers_->sum, dot.numbers_->sum, numbers_->divisor, MPFR_RNDN);
  mpfr_mul(numbers_->divisor, numbers_->divisor, dot.numbers_->divisor, MPFR_RNDN);
  mpfr_add(numbers_->sum, numbers_->sum, dot.numbers_->sum, MPFR_RNDN);
}

void ExactSum::multiply(double factor) {
  mpfr_mul_d(numbers_->sum, numbers_->sum, factor, MPFR_RNDN);
}

void ExactSum::divide(double divisor) {
  mpfr_mul_d(numbers_->divisor, numbers_->divisor, divisor, MPFR_RNDN);
}

void ExactSum::add(double value) { add_product(value, 1.0); }

float ExactSum::round(Format format) const {
  if (mpfr_zero_p(numbers_->sum)) return 0.0f;
  return round_quotient(numbers_->sum, numbers_->divisor, format);
}

}  // namespace moeref::judge
