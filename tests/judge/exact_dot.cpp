#include "tests/judge/exact_dot.hpp"

#include <mpfr.h>

#include <cmath>
#include <cstring>
#include <limits>

namespace moeref::judge {
namespace {

// Products of four f32-range factors span 2^-1200 .. 2^1024; sums of 2^20 of them and a few more
// factors fit.
constexpr mpfr_prec_t kBits = 6000;

struct Layout {
  int exponent_bits;
  int fraction_bits;
  int bias;
};

Layout layout_of(Format format) {
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
    case Format::bf16:
      return {8, 7, 127};
    case Format::f16:
      return {5, 10, 15};
    default:
      return {8, 23, 127};
  }
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

double element(const ScaledMatrix& m, std::int64_t row, std::int64_t col) {
  const std::int64_t index = m.codes.origin + row * m.codes.row_stride + col * m.codes.col_stride;
  return decode_by_formula(m.codes.format, read_code(m.codes.data, m.codes.format, index));
}

double scale(const ScaledMatrix& m, std::int64_t row, std::int64_t col) {
  if (!m.scales) return 1.0;
  const ScaleGrid& g = *m.scales;
  const std::int64_t index = ((g.row_begin + row) / g.block_rows) * g.row_stride +
                             ((g.col_begin + col) / g.block_cols) * g.col_stride;
  return decode_by_formula(g.format, read_code(g.data, g.format, index));
}

}  // namespace

double decode_by_formula(Format format, std::uint32_t code) {
  if (format == Format::e8m0) {
    return code == 255 ? std::nan("") : std::ldexp(1.0, static_cast<int>(code) - 127);
  }
  const Layout layout = layout_of(format);
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
  for (std::int64_t k = 0; k < w.cols; ++k) {
    mpfr_set_d(dot.numbers_->term, element(x, row, k), MPFR_RNDN);
    mpfr_mul_d(dot.numbers_->term, dot.numbers_->term, scale(x, row, k), MPFR_RNDN);
    mpfr_mul_d(dot.numbers_->term, dot.numbers_->term, element(w, n, k), MPFR_RNDN);
    mpfr_mul_d(dot.numbers_->term, dot.numbers_->term, scale(w, n, k), MPFR_RNDN);
    mpfr_add(dot.numbers_->sum, dot.numbers_->sum, dot.numbers_->term, MPFR_RNDN);
  }
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
  struct Target {
    mpfr_prec_t bits;
    mpfr_exp_t smallest;  // MPFR exponent of the smallest subnormal
    mpfr_exp_t largest;
  };
  const Target target = format == Format::f32    ? Target{24, -148, 128}
                        : format == Format::bf16 ? Target{8, -132, 128}
                                                 : Target{11, -23, 16};
  if (mpfr_zero_p(numbers_->sum)) return 0.0f;
  mpfr_t rounded;
  mpfr_init2(rounded, target.bits);
  int ternary = mpfr_div(rounded, numbers_->sum, numbers_->divisor, MPFR_RNDN);
  const mpfr_exp_t low = mpfr_get_emin();
  const mpfr_exp_t high = mpfr_get_emax();
  mpfr_set_emin(target.smallest);
  mpfr_set_emax(target.largest);
  ternary = mpfr_check_range(rounded, ternary, MPFR_RNDN);
  mpfr_subnormalize(rounded, ternary, MPFR_RNDN);
  const float value = mpfr_get_flt(rounded, MPFR_RNDN);
  mpfr_set_emin(low);
  mpfr_set_emax(high);
  mpfr_clear(rounded);
  return value;
}

}  // namespace moeref::judge
