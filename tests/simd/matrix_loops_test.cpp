// The fused step of every instruction set against that of the engine, and against each other.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/accumulate/matrix_step.hpp"
#include "quant/formats.hpp"
#include "quant/matrix_unit.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

using accumulate::UnitNumber;

constexpr std::size_t kColumns = simd::kPanelColumns;
constexpr std::size_t kMostRows = 9;
constexpr std::size_t kGuard = 16;

/// What a step's operands look like; exponents are those of the format, clamped to it.
enum class Kind {
  normal,
  wide,        ///< from end to end of the range
  lowest,      ///< products at the lowest exponent
  highest,     ///< and at the highest
  lopsided,    ///< subnormal rows, huge columns
  largest,     ///< all fractions ones, of one sign
  cancelling,  ///< pairs of products of opposite sign
  zeros,       ///< most are zeros of some sign
  all_zero,
};
constexpr Kind kKinds[] = {Kind::normal,     Kind::wide,     Kind::lowest,
                           Kind::highest,    Kind::lopsided, Kind::largest,
                           Kind::cancelling, Kind::zeros,    Kind::all_zero};

struct Exponents {
  int row_low, row_high, column_low, column_high;
};

Exponents wanted_exponents(Kind kind) {
  switch (kind) {
    case Kind::wide:
      return {-50, 60, -50, 60};
    case Kind::lowest:
      return {-50, -48, -50, -48};
    case Kind::highest:
      return {58, 60, 58, 60};
    case Kind::lopsided:
      return {-127, -110, 27, 127};
    case Kind::largest:
      return {9, 9, 5, 5};
    default:
      return {-4, 3, -4, 3};
  }
}

struct Operand {
  Format format;
  int fraction_bits;
  int exponent_bits;
  int bias;
};
constexpr Operand kBf16{Format::bf16, 7, 8, 127};
constexpr Operand kF16{Format::f16, 10, 5, 15};
constexpr Operand kTf32{Format::f32, 23, 8, 127};
constexpr Operand kE4m3{Format::e4m3, 3, 4, 7};
constexpr Operand kE5m2{Format::e5m2, 2, 5, 15};
constexpr Operand kE2m1{Format::e2m1, 1, 2, 1};

/// Those of `kind` that the formats have, every pair inside the kernels' range.
Exponents exponents_of(Kind kind, const Operand& left, const Operand& right) {
  const auto clamped = [](int exponent, const Operand& operand) {
    return std::clamp(exponent, -operand.bias, (1 << operand.exponent_bits) - 1 - operand.bias);
  };
  const Exponents wanted = wanted_exponents(kind);
  Exponents made{clamped(wanted.row_low, left), clamped(wanted.row_high, left),
                 clamped(wanted.column_low, right), clamped(wanted.column_high, right)};
  made.row_low = std::max(made.row_low, simd::kLowestStepExponent - made.column_low);
  made.row_high = std::max(made.row_low, made.row_high);
  return made;
}

std::uint32_t low_bits(std::mt19937_64& random) { return static_cast<std::uint32_t>(random()); }

std::uint32_t finite_code(const Operand& operand, int exponent, std::uint32_t fraction,
                          bool negative) {
  const bool ieee = operand.format != Format::e4m3 && operand.format != Format::e2m1;
  const int last = (1 << operand.exponent_bits) - (ieee ? 2 : 1);
  const int field = std::clamp(exponent + operand.bias, 0, last);
  std::uint32_t magnitude = static_cast<std::uint32_t>(field) << operand.fraction_bits |
                            (fraction & ((1u << operand.fraction_bits) - 1u));
  if (operand.format == Format::e4m3 && magnitude == 0x7Fu) magnitude = 0x7Eu;
  return magnitude | (negative ? 1u << (operand.exponent_bits + operand.fraction_bits) : 0u);
}

/// Operands as the kernel and as the engine takes them. Rows lie `stride` apart.
struct Inputs {
  std::size_t terms;
  std::size_t stride;
  std::vector<float> row_values, row_powers, column_values, column_powers;
  std::vector<std::vector<UnitNumber>> rows, columns;

  explicit Inputs(std::size_t terms_) : terms(terms_), stride(terms_ + 3) {
    // What lies between the rows is not read.
    const float trap = std::numeric_limits<float>::quiet_NaN();
    row_values.assign(kMostRows * stride, trap);
    row_powers.assign(kMostRows * stride, trap);
    column_values.assign(terms * kColumns, trap);
    column_powers.assign(terms * kColumns, trap);
    rows.assign(kMostRows, std::vector<UnitNumber>(terms));
    columns.assign(kColumns, std::vector<UnitNumber>(terms));
  }
  void set_row(std::size_t row, std::size_t k, Format format, std::uint32_t code) {
    set(format, code, rows[row][k], row_values[row * stride + k], row_powers[row * stride + k]);
  }
  void set_column(std::size_t column, std::size_t k, Format format, std::uint32_t code) {
    set(format, code, columns[column][k], column_values[k * kColumns + column],
        column_powers[k * kColumns + column]);
  }

 private:
  static void set(Format format, std::uint32_t code, UnitNumber& number, float& value,
                  float& power) {
    if (format == Format::f32) code &= ~0x1FFFu;
    number = accumulate::operand_number(format, code);
    value = format == Format::f32 ? std::bit_cast<float>(code) : decode(format, code);
    power = value == 0.0f ? 0.0f : std::ldexp(1.0f, number.exponent);
  }
};

Inputs random_inputs(Kind kind, const Operand& left, const Operand& right, std::size_t terms,
                     std::mt19937_64& random) {
  Inputs inputs(terms);
  const Exponents exponents = exponents_of(kind, left, right);
  const auto code = [&](const Operand& operand, int low, int high) {
    const bool zero = kind == Kind::all_zero ? random() % 2 == 0 : random() % 10 < 7;
    if ((kind == Kind::zeros || kind == Kind::all_zero) && zero) {
      const std::uint32_t sign = 1u << (operand.exponent_bits + operand.fraction_bits);
      return random() % 2 == 0 ? 0u : sign;
    }
    const int exponent = low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1));
    const bool ones = kind == Kind::largest || random() % 8 == 0;
    return finite_code(operand, exponent, ones ? ~0u : low_bits(random),
                       kind != Kind::largest && random() % 2 == 0);
  };
  for (std::size_t k = 0; k < terms; ++k) {
    const bool zero_rows = random() % 2 == 0;
    for (std::size_t row = 0; row < kMostRows; ++row) {
      const std::uint32_t made = code(left, exponents.row_low, exponents.row_high);
      inputs.set_row(row, k, left.format, kind == Kind::all_zero && zero_rows ? 0u : made);
    }
    for (std::size_t column = 0; column < kColumns; ++column) {
      const std::uint32_t made = code(right, exponents.column_low, exponents.column_high);
      inputs.set_column(column, k, right.format, kind == Kind::all_zero && !zero_rows ? 0u : made);
    }
  }
  if (kind != Kind::cancelling) return inputs;
  for (std::size_t k = 0; k + 1 < terms; k += 2) {
    for (std::size_t row = 0; row < kMostRows; ++row) {
      const std::size_t at = row * inputs.stride + k;
      inputs.rows[row][k + 1] = inputs.rows[row][k];
      inputs.rows[row][k + 1].significand *= -1;
      inputs.rows[row][k + 1].negative ^= true;
      inputs.row_values[at + 1] = -inputs.row_values[at];
      inputs.row_powers[at + 1] = inputs.row_powers[at];
    }
    for (std::size_t column = 0; column < kColumns; ++column) {
      const std::size_t at = k * kColumns + column;
      inputs.columns[column][k + 1] = inputs.columns[column][k];
      inputs.column_values[at + kColumns] = inputs.column_values[at];
      inputs.column_powers[at + kColumns] = inputs.column_powers[at];
    }
  }
  return inputs;
}

/// The largest exponent of a product that is not zero; far below all if there is none.
int largest_exponent(const Inputs& inputs, std::size_t row, std::size_t column) {
  int largest = -10'000;
  for (std::size_t k = 0; k < inputs.terms; ++k) {
    const UnitNumber& a = inputs.rows[row][k];
    const UnitNumber& b = inputs.columns[column][k];
    if (a.significand != 0 && b.significand != 0) {
      largest = std::max(largest, a.exponent + b.exponent);
    }
  }
  return largest;
}

FusedDot unit_of(const simd::FusedStep& step) {
  FusedDot unit;
  unit.terms = static_cast<int>(step.terms);
  unit.fraction_bits = step.fraction_bits;
  unit.output = step.e8m13 ? StepOutput::e8m13_toward_zero : StepOutput::f32_toward_zero;
  return unit;
}

float engine_step(const simd::FusedStep& step, const Inputs& inputs, std::size_t row,
                  std::size_t column, float c) {
  return std::bit_cast<float>(accumulate::fused_step(
      unit_of(step), inputs.rows[row], inputs.columns[column], std::bit_cast<std::uint32_t>(c)));
}

/// Whether c alone leaves the kernel's range.
bool is_outside(const Inputs& inputs, std::size_t row, std::size_t column, float c) {
  if (!(std::fabs(c) < std::ldexp(1.0f, simd::kLargestStepExponent + 1))) return true;
  return c != 0.0f && std::fabs(c) < std::ldexp(1.0f, simd::kLowestStepExponent) &&
         largest_exponent(inputs, row, column) < simd::kLowestStepExponent;
}

float random_accumulator(const simd::FusedStep& step, const Inputs& inputs, std::size_t row,
                         std::size_t column, std::mt19937_64& random) {
  const auto near = [&](int low, int high) {
    const int largest = std::max(largest_exponent(inputs, row, column), -100);
    const int exponent =
        largest + low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1));
    const auto field = static_cast<std::uint32_t>(std::clamp(exponent + 127, 0, 254));
    return std::bit_cast<float>((low_bits(random) & 0x807F'FFFFu) | field << 23);
  };
  constexpr float kEnds[] = {
      0x1p-100f,  0x1.fffffep-101f, 0x1.fffffep120f,   0x1p121f,       0x1p120f,
      -0x1p-100f, -0x1p-149f,       -0x1.fffffep-101f, 0x1p-126f,      -0x1.fffffep-127f,
      0x1p127f,   -0x1p121f,        -0x1.fffffep120f,  0x1.fffffep127f};
  switch (random() % 12) {
    case 0:
      return 0.0f;
    case 1:
      return -0.0f;
    case 2:
      return kEnds[random() % std::size(kEnds)];
    case 3:
      return random() % 2 == 0 ? std::numeric_limits<float>::infinity()
                               : -std::numeric_limits<float>::infinity();
    case 4:  // any NaN and more
      return std::bit_cast<float>(low_bits(random) | 0x7F80'0000u);
    case 5:
      return std::bit_cast<float>(low_bits(random));
    case 6:
    case 7:  // to an exact zero, or close to it
      return -engine_step(step, inputs, row, column, 0.0f);
    case 8:
      return near(-30, 30);
    default:
      return near(-2, 6);
  }
}

std::string show(const simd::FusedStep& step, const Inputs& inputs, std::size_t row,
                 std::size_t column, float c) {
  std::string text =
      fmt::format("terms {}, F {}, e8m13 {}, c {:a} ({:x}); a, b:", step.terms, step.fraction_bits,
                  step.e8m13, c, std::bit_cast<std::uint32_t>(c));
  for (std::size_t k = 0; k < step.terms; ++k) {
    text += fmt::format(" {:a}*{:a}", inputs.row_values[row * inputs.stride + k],
                        inputs.column_values[k * kColumns + column]);
  }
  return text;
}

struct Result {
  std::vector<float> c;
  std::vector<std::uint16_t> outside;
};

/// `rows` rows from `first` on, in the midst of guards.
Result run(const char* isa, const simd::FusedStep& step, const Inputs& inputs, std::size_t first,
           std::size_t rows, const std::vector<float>& c) {
  const float guard = std::bit_cast<float>(0xA5A5'A5A5u);
  Result result;
  result.c.assign(rows * kColumns + 2 * kGuard + 1, guard);
  result.outside.assign(rows + 2, 0xA5A5u);
  float* sums = result.c.data() + kGuard + 1;  // at an odd place
  std::copy_n(c.begin() + static_cast<std::ptrdiff_t>(first * kColumns), rows * kColumns, sums);
  const simd::StepOperands operands{.row_values = inputs.row_values.data() + first * inputs.stride,
                                    .row_powers = inputs.row_powers.data() + first * inputs.stride,
                                    .row_stride = inputs.stride,
                                    .rows = rows,
                                    .column_values = inputs.column_values.data(),
                                    .column_powers = inputs.column_powers.data()};
  simd::find_kernels(isa)->matrix->fused_step(step, operands, sums, result.outside.data() + 1);
  return result;
}

/// On every instruction set: the engine's bits where c is inside, c as it was where it is not.
void expect_steps(const simd::FusedStep& step, const Inputs& inputs, const std::vector<float>& c,
                  std::size_t first, std::size_t rows) {
  const Result scalar = run("scalar", step, inputs, first, rows, c);
  for (std::size_t i = 0; i <= kGuard; ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(scalar.c[i]), 0xA5A5'A5A5u);
    if (i == kGuard) break;
    ASSERT_EQ(std::bit_cast<std::uint32_t>(scalar.c[scalar.c.size() - 1 - i]), 0xA5A5'A5A5u);
  }
  ASSERT_EQ(scalar.outside.front(), 0xA5A5u);
  ASSERT_EQ(scalar.outside.back(), 0xA5A5u);
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < kColumns; ++j) {
      const float before = c[(first + i) * kColumns + j];
      const bool outside = is_outside(inputs, first + i, j, before);
      ASSERT_EQ((scalar.outside[1 + i] >> j & 1) != 0, outside)
          << show(step, inputs, first + i, j, before);
      const float expected = outside ? before : engine_step(step, inputs, first + i, j, before);
      const float made = scalar.c[kGuard + 1 + i * kColumns + j];
      ASSERT_EQ(std::bit_cast<std::uint32_t>(made), std::bit_cast<std::uint32_t>(expected))
          << fmt::format("made {:a}, expected {:a}: {}", made, expected,
                         show(step, inputs, first + i, j, before));
    }
  }
  for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
    const Result made = run(*isa, step, inputs, first, rows, c);
    ASSERT_EQ(made.outside, scalar.outside) << *isa << ", rows " << rows;
    ASSERT_EQ(std::memcmp(made.c.data(), scalar.c.data(), made.c.size() * sizeof(float)), 0)
        << *isa << ", rows " << rows << ", terms " << step.terms << ", F " << step.fraction_bits
        << ", e8m13 " << step.e8m13;
  }
}

/// The steps that the kernels take: those of the table, and up to the ends of what fits.
std::vector<simd::FusedStep> steps() {
  std::vector<simd::FusedStep> steps;
  for (const std::size_t terms : {4u, 8u, 16u, 32u}) {
    for (const int fraction_bits : {13, 16, 18, 24, 25}) {
      for (const bool e8m13 : {false, true}) {
        const std::size_t most = std::size_t{1} << (e8m13 ? 23 : 31);
        if (terms << (fraction_bits + 2) > most) continue;
        steps.push_back({terms, fraction_bits, e8m13});
      }
    }
  }
  return steps;
}

class EveryStep : public ::testing::TestWithParam<simd::FusedStep> {};

TEST_P(EveryStep, HasTheBitsOfTheEngineOnEveryInstructionSet) {
  const simd::FusedStep& step = GetParam();
  std::mt19937_64 random(step.terms * 100 + static_cast<std::size_t>(step.fraction_bits));
  const std::pair<Operand, Operand> pairs[] = {{kBf16, kBf16}, {kF16, kF16},   {kTf32, kTf32},
                                               {kE4m3, kE4m3}, {kE5m2, kE4m3}, {kE5m2, kE5m2},
                                               {kBf16, kE2m1}, {kE2m1, kE2m1}};
  for (const auto& [left, right] : pairs) {
    for (const Kind kind : kKinds) {
      for (std::size_t i = 0; i < 27; ++i) {
        const Inputs inputs = random_inputs(kind, left, right, step.terms, random);
        std::vector<float> c;
        for (std::size_t j = 0; j < kMostRows * kColumns; ++j) {
          c.push_back(random_accumulator(step, inputs, j / kColumns, j % kColumns, random));
        }
        const std::size_t rows = 1 + i % kMostRows;
        expect_steps(step, inputs, c, kMostRows - rows, rows);
        if (HasFatalFailure()) {
          FAIL() << name(left.format) << " x " << name(right.format) << ", kind "
                 << static_cast<int>(kind);
        }
      }
    }
  }
}

/// All products alike and largest, so that the sum of units comes to the end of 32 bits, with
/// accumulators around what is missing to powers of two.
TEST_P(EveryStep, HasTheBitsOfTheEngineWhereTheSumIsLargest) {
  const simd::FusedStep& step = GetParam();
  for (const Operand& operand : {kF16, kTf32, kBf16, kE4m3}) {
    for (const bool negative : {false, true}) {
      Inputs inputs(step.terms);
      for (std::size_t k = 0; k < step.terms; ++k) {
        for (std::size_t row = 0; row < kMostRows; ++row) {
          inputs.set_row(row, k, operand.format, finite_code(operand, 3, ~0u, negative));
        }
        for (std::size_t column = 0; column < kColumns; ++column) {
          inputs.set_column(column, k, operand.format, finite_code(operand, 2, ~0u, false));
        }
      }
      const float unit = std::ldexp(1.0f, 5 - step.fraction_bits);
      const float product = inputs.row_values[0] * inputs.column_values[0];
      const double sum =
          std::trunc(static_cast<double>(product) / unit) * static_cast<double>(step.terms);
      std::vector<float> c;
      for (const int power : {31, 30, 25, 24, 20, 0}) {
        for (int more = -3; more <= 3; ++more) {
          const double target = std::copysign(power == 0 ? 0.0 : std::ldexp(1.0, power), sum);
          const double missing = (target + more - sum) * unit;
          c.push_back(static_cast<float>(missing));
          c.push_back(std::copysign(std::ldexp(0x1.fffffep0f, 5), static_cast<float>(sum)));
        }
      }
      while (c.size() < kMostRows * kColumns) c.push_back(-product);
      expect_steps(step, inputs, c, 0, kMostRows);
      if (HasFatalFailure()) FAIL() << name(operand.format);
    }
  }
}

TEST_P(EveryStep, MakesPlusZeroOfZeros) {
  const simd::FusedStep& step = GetParam();
  Inputs inputs(step.terms);
  for (std::size_t k = 0; k < step.terms; ++k) {
    for (std::size_t row = 0; row < kMostRows; ++row) {
      inputs.set_row(row, k, Format::bf16, row % 2 == 0 ? 0x8000u : 0xBF80u);
    }
    for (std::size_t column = 0; column < kColumns; ++column) {
      inputs.set_column(column, k, Format::bf16, column % 2 == 0 ? 0u : 0x8000u);
    }
  }
  const std::vector<float> c(kMostRows * kColumns, -0.0f);
  expect_steps(step, inputs, c, 0, kMostRows);
  const Result made = run("scalar", step, inputs, 0, 1, c);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(made.c[kGuard + 1]), 0u);
}

INSTANTIATE_TEST_SUITE_P(All, EveryStep, ::testing::ValuesIn(steps()), [](const auto& param) {
  return fmt::format("terms{}_F{}_{}", param.param.terms, param.param.fraction_bits,
                     param.param.e8m13 ? "e8m13" : "f32");
});

}  // namespace
}  // namespace moeref
