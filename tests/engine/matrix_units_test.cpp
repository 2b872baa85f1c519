// Every matrix instruction against its judge, and what must not matter to it.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <random>
#include <string>
#include <vector>

#include "engine/accumulate/matrix_chain.hpp"
#include "quant/formats.hpp"
#include "quant/matrix_unit.hpp"
#include "tests/judge/matrix_judge.hpp"
#include "tests/support/unit_inputs.hpp"

namespace moeref {
namespace {

using accumulate::UnitRow;
using judge::UnitCodes;
using testing::kAllUnitInputs;
using testing::UnitInputs;

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

int k_of(const MatrixUnit& unit) {
  return std::visit([](const auto& each) { return each.k; }, unit);
}

/// Numbers of K before the same places of its order come again.
std::int64_t period_of(const MatrixUnit& unit) {
  const auto* fused = std::get_if<FusedDot>(&unit);
  return fused == nullptr ? k_of(unit)
                          : static_cast<std::int64_t>(accumulate::term_order(*fused, 1).size());
}

/// A row as the engine takes it.
UnitRow engine_row(const MatrixUnit& unit, const UnitCodes& codes) {
  const auto* fused = std::get_if<FusedDot>(&unit);
  UnitRow row;
  for (std::uint32_t code : codes.codes) {
    Format format = codes.format;
    if (fused != nullptr && fused->operand && *fused->operand != format) {
      code = encode(*fused->operand, decode(format, code), EncodePolicy::eigen);
      format = *fused->operand;
    }
    row.numbers.push_back(std::holds_alternative<FmaChain>(unit)
                              ? accumulate::accumulator_number(format, code)
                              : accumulate::operand_number(format, code));
  }
  if (fused != nullptr) {
    const auto order =
        accumulate::term_order(*fused, static_cast<std::int64_t>(row.numbers.size()));
    row.numbers = accumulate::in_order(row.numbers, order);
  }
  const auto* groups = std::get_if<ScaledGroupDot>(&unit);
  const Format scale = groups != nullptr ? groups->scale : Format::e8m0;
  for (const std::uint32_t code : codes.scales) {
    row.scales.push_back(accumulate::operand_number(scale, code));
  }
  return row;
}

/// The row with its block scales, where the unit has some.
UnitCodes with_scales(const MatrixUnit& unit, Format format, testing::CodeRow codes,
                      std::mt19937_64& random) {
  UnitCodes row{format, std::move(codes)};
  if (const auto* groups = std::get_if<ScaledGroupDot>(&unit)) {
    row.scales = testing::random_block_scales(
        groups->scale, row.codes.size() / static_cast<std::size_t>(groups->block), random);
  } else if (const auto* fused = std::get_if<FusedDot>(&unit); fused && fused->block_scales) {
    row.scales = testing::random_block_scales(Format::e8m0, row.codes.size() / 32, random);
  }
  return row;
}

std::string hex(const std::vector<std::uint32_t>& codes) {
  return fmt::format("{:x}", fmt::join(codes, " "));
}

/// A tile of one kind of input, both as codes and as the engine takes it.
struct Tile {
  std::vector<UnitCodes> left;
  std::vector<UnitCodes> right;
  std::vector<UnitRow> left_rows;
  std::vector<UnitRow> right_rows;
};

Tile make_tile(const MatrixUnit& unit, UnitInputs inputs, Format left, Format right,
               std::size_t size, std::size_t k, std::mt19937_64& random) {
  const testing::UnitTile codes = testing::random_tile(inputs, left, right, size, size, k, random);
  Tile tile;
  for (const auto& row : codes.left) tile.left.push_back(with_scales(unit, left, row, random));
  for (const auto& row : codes.right) tile.right.push_back(with_scales(unit, right, row, random));
  for (const auto& row : tile.left) tile.left_rows.push_back(engine_row(unit, row));
  for (const auto& row : tile.right) tile.right_rows.push_back(engine_row(unit, row));
  return tile;
}

/// Every output of some tiles against the judge.
void expect_as_judged(const MatrixUnit& unit, Format accumulator, Format left, Format right,
                      UnitInputs inputs, int tiles, std::mt19937_64& random) {
  constexpr std::size_t kSize = 16;
  for (int i = 0; i < tiles; ++i) {
    const std::size_t k = to_size(period_of(unit)) * (i % 2 == 0 ? 1 : 2);
    const Tile tile = make_tile(unit, inputs, left, right, kSize, k, random);
    for (std::size_t row = 0; row < kSize; ++row) {
      for (std::size_t col = 0; col < kSize; ++col) {
        const UnitCodes& a = tile.left[row];
        const UnitCodes& b = tile.right[col];
        const std::uint32_t c =
            testing::random_accumulator(accumulator, left, a.codes, right, b.codes, random);
        const std::uint32_t made =
            accumulate::run_chain(unit, tile.left_rows[row], tile.right_rows[col], c);
        ASSERT_EQ(made, judge::judge_unit(unit, a, b, c)) << fmt::format(
            "{} x {}, {}: made {:x}, judged {:x}\n  a {}\n  b {}\n  c {:x}\n  scales {} and {}",
            name(left), name(right), name(inputs), made, judge::judge_unit(unit, a, b, c),
            hex(a.codes), hex(b.codes), c, hex(a.scales), hex(b.scales));
      }
    }
  }
}

class EveryInstruction : public ::testing::TestWithParam<std::size_t> {
 protected:
  const MatrixInstruction& instruction() const { return all_matrix_instructions()[GetParam()]; }
  /// Every pair of operands that the instruction takes.
  std::vector<std::pair<Format, Format>> pairs() const {
    std::vector<std::pair<Format, Format>> pairs;
    for (const Format left : instruction().operands) {
      for (const Format right : instruction().operands) {
        if (left == right || instruction().mixes) pairs.emplace_back(left, right);
      }
    }
    return pairs;
  }
  std::mt19937_64 random_{GetParam() + 1};
};

TEST_P(EveryInstruction, ComputesAsTheJudgeDoes) {
  for (const auto& [left, right] : pairs()) {
    for (const UnitInputs inputs : kAllUnitInputs) {
      expect_as_judged(instruction().unit, instruction().accumulator, left, right, inputs, 4,
                       random_);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(EveryInstruction, ComputesAsTheJudgeDoesUnderTheSimulatorsRuleForZeros) {
  MatrixUnit unit = instruction().unit;
  if (auto* fused = std::get_if<FusedDot>(&unit)) {
    fused->zeros = ZeroOperands::smallest_exponent;
    fused->lowest_exponent = kNoLowestExponent;
  } else if (auto* groups = std::get_if<ScaledGroupDot>(&unit)) {
    groups->zeros = ZeroOperands::smallest_exponent;
    groups->lowest_exponent = kNoLowestExponent;
  } else {
    GTEST_SKIP() << "has one rule for zeros only";
  }
  for (const auto& [left, right] : pairs()) {
    for (const UnitInputs inputs : kAllUnitInputs) {
      expect_as_judged(unit, instruction().accumulator, left, right, inputs, 1, random_);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(EveryInstruction, GivesTheSameWhateverTheOrderInsideAStep) {
  const MatrixUnit& unit = instruction().unit;
  const auto* mfma = std::get_if<MfmaDot>(&unit);
  const auto* fused = std::get_if<FusedDot>(&unit);
  if (mfma == nullptr && fused == nullptr) GTEST_SKIP() << "sums scaled groups, or in order";
  const int terms = mfma != nullptr ? mfma->terms : fused->terms;
  // Even and odd numbers of k are two sums of one step.
  const std::size_t stride = mfma != nullptr && mfma->splits_even_odd ? 2 : 1;
  const auto [left, right] = pairs().back();
  for (const UnitInputs inputs : kAllUnitInputs) {
    const Tile tile = make_tile(unit, inputs, left, right, 16, to_size(k_of(unit)), random_);
    for (std::size_t row = 0; row < 16; ++row) {
      for (std::size_t col = 0; col < 16; ++col) {
        const std::uint32_t c =
            testing::random_accumulator(instruction().accumulator, left, tile.left[row].codes,
                                        right, tile.right[col].codes, random_);
        UnitRow a = tile.left_rows[row];
        UnitRow b = tile.right_rows[col];
        const std::uint32_t expected = accumulate::run_chain(unit, a, b, c);
        for (std::size_t step = 0; step < a.numbers.size(); step += to_size(terms)) {
          for (std::size_t i = to_size(terms) - 1; i >= stride; --i) {
            const std::size_t other = i % stride + random_() % (i / stride + 1) * stride;
            std::swap(a.numbers[step + i], a.numbers[step + other]);
            std::swap(b.numbers[step + i], b.numbers[step + other]);
          }
        }
        ASSERT_EQ(accumulate::run_chain(unit, a, b, c), expected)
            << name(inputs) << ", a " << hex(tile.left[row].codes) << ", b "
            << hex(tile.right[col].codes) << fmt::format(", c {:x}", c);
      }
    }
  }
}

TEST_P(EveryInstruction, IsLeftAsItIsByZerosAfterTheEndOfK) {
  const MatrixUnit& unit = instruction().unit;
  if (!std::holds_alternative<FusedDot>(unit)) GTEST_SKIP() << "zeros take part";
  const auto k = to_size(k_of(unit));
  const auto [left, right] = pairs().back();
  const std::uint32_t minus_left = 1u << (info(left).bits - 1);
  const std::uint32_t minus_right = 1u << (info(right).bits - 1);
  for (const UnitInputs inputs : kAllUnitInputs) {
    const Tile tile = make_tile(unit, inputs, left, right, 16, k, random_);
    for (std::size_t row = 0; row < 16; ++row) {
      for (std::size_t col = 0; col < 16; ++col) {
        UnitCodes a = tile.left[row];
        UnitCodes b = tile.right[col];
        const std::uint32_t c = testing::random_accumulator(instruction().accumulator, left,
                                                            a.codes, right, b.codes, random_);
        const std::uint32_t expected =
            accumulate::run_chain(unit, tile.left_rows[row], tile.right_rows[col], c);
        for (std::size_t i = 0; i < k; ++i) {
          a.codes.push_back(random_() % 2 == 0 ? 0 : minus_left);
          b.codes.push_back(random_() % 2 == 0 ? 0 : minus_right);
        }
        const bool scaled = !a.scales.empty();
        for (std::size_t i = 0; scaled && i < k / 32; ++i) {
          a.scales.push_back(static_cast<std::uint32_t>(random_() % 255));
          b.scales.push_back(static_cast<std::uint32_t>(random_() % 255));
        }
        ASSERT_EQ(accumulate::run_chain(unit, engine_row(unit, a), engine_row(unit, b), c),
                  expected)
            << name(inputs) << ", a " << hex(a.codes) << ", b " << hex(b.codes)
            << fmt::format(", c {:x}", c);
      }
    }
  }
}

std::string instruction_name(const ::testing::TestParamInfo<std::size_t>& param) {
  const MatrixInstruction& row = all_matrix_instructions()[param.param];
  std::string text = fmt::format("{}_{}", row.arch, row.name);
  for (const Format format : row.operands) text += fmt::format("_{}", name(format));
  text += fmt::format("_{}", name(row.accumulator));
  std::replace_if(
      text.begin(), text.end(),
      [](char letter) { return std::isalnum(static_cast<unsigned char>(letter)) == 0; }, '_');
  return text;
}

INSTANTIATE_TEST_SUITE_P(Table, EveryInstruction,
                         ::testing::Range(std::size_t{0}, all_matrix_instructions().size()),
                         instruction_name);

/// Forms that kernels have and the table has not.
TEST(FusedDot, ComputesAsTheJudgeDoesInEveryOrder) {
  std::mt19937_64 random(7);
  for (const TermOrder order : {TermOrder::natural, TermOrder::kw4, TermOrder::kw8}) {
    for (const AccumulatorPoint point : {AccumulatorPoint::fused, AccumulatorPoint::added_after}) {
      for (const StepOutput output :
           {StepOutput::f32_toward_zero, StepOutput::e8m13_toward_zero, StepOutput::f16_nearest}) {
        if (order == TermOrder::kw8 && point == AccumulatorPoint::added_after) continue;
        for (const Format operand : {Format::f16, Format::bf16}) {
          FusedDot unit;
          unit.k = point == AccumulatorPoint::added_after && order == TermOrder::kw4 ? 32 : 16;
          unit.order = order;
          unit.accumulator = point;
          unit.output = output;
          unit.operand = operand;
          const Format accumulator = output == StepOutput::f16_nearest ? Format::f16 : Format::f32;
          for (const UnitInputs inputs : kAllUnitInputs) {
            expect_as_judged(unit, accumulator, Format::e4m3, Format::e2m1, inputs, 1, random);
            expect_as_judged(unit, accumulator, Format::e5m2, Format::e4m3, inputs, 1, random);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(FusedDot, IsPlusZeroWhateverTheSignsOfItsZeros) {
  const UnitRow minus{std::vector(16, accumulate::operand_number(Format::bf16, 0x8000)), {}};
  const UnitRow plus{std::vector(16, accumulate::operand_number(Format::bf16, 0x3F80)), {}};
  EXPECT_EQ(accumulate::run_chain(FusedDot{}, minus, plus, 0x8000'0000u), 0u);
  EXPECT_EQ(accumulate::run_chain(FusedDot{}, minus, minus, 0x8000'0000u), 0u);
  EXPECT_EQ(accumulate::run_chain(FusedDot{}, minus, plus, 0x8000'0001u), 0x8000'0001u);
}

}  // namespace
}  // namespace moeref
