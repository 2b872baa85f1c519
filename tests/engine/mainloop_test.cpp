// Main loops of GEMMs against the judge: every promotion, by kernels and term by term.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "simd/kernels.hpp"
#include "tests/engine/mainloop_gemm.hpp"

namespace moeref {
namespace {

using judge::UnitCodes;
using testing::CodeRow;
using testing::expect_as_judged;
using testing::Form;
using testing::forms;
using testing::Gemm;
using testing::make_gemm;
using testing::run;
using testing::Scales;
using testing::store;
using testing::UnitInputs;

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

constexpr Promotion kPromotions[] = {Promotion::none,        Promotion::add,
                                     Promotion::fma_product, Promotion::fma_row,
                                     Promotion::fma_column,  Promotion::column_groups};
constexpr std::int64_t kChains[] = {32, 64, 128, 0};

class EveryForm : public ::testing::TestWithParam<std::size_t> {
 protected:
  const Form& form() const { return forms()[GetParam()]; }
  std::mt19937_64 random_{GetParam() + 1};
};

TEST_P(EveryForm, SumsAsTheJudgeDoesInEveryPromotion) {
  for (const Promotion promotion : kPromotions) {
    for (const std::int64_t chain : kChains) {
      if (chain % testing::chunk_of(form().unit) != 0) continue;
      for (const bool flushes : {false, true}) {
        if (flushes && promotion == Promotion::none) continue;
        const Mainloop mainloop{form().unit, chain, promotion, flushes};
        for (const Scales scales : {Scales::none, Scales::tame, Scales::wild}) {
          constexpr std::int64_t kRows[] = {1, 3, 9};
          constexpr std::int64_t kColumns[] = {1, 7, 18};
          constexpr std::int64_t kDepths[] = {256, 200, 129, 31};
          const testing::GemmSize size{kRows[random_() % 3], kColumns[random_() % 3],
                                       kDepths[random_() % 4]};
          const UnitInputs inputs =
              testing::kAllUnitInputs[random_() % std::size(testing::kAllUnitInputs)];
          const Gemm gemm = make_gemm(mainloop, form(), inputs, scales, size, random_);
          expect_as_judged(gemm, fmt::format("promotion {}, chain {}, flushes {}, scales {}, {}, k "
                                             "{}",
                                             static_cast<int>(promotion), chain, flushes,
                                             static_cast<int>(scales), name(inputs), size.k));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(EveryForm, SumsAsTheJudgeDoesForEveryKindOfInput) {
  for (const UnitInputs inputs : testing::kAllUnitInputs) {
    for (const std::int64_t k : {128, 100}) {
      const Promotion promotion = k == 128 ? Promotion::none : Promotion::add;
      const Mainloop mainloop{form().unit, testing::chunk_of(form().unit), promotion, false};
      const Gemm gemm =
          make_gemm(mainloop, form(), inputs, Scales::none, {11, k == 128 ? 18 : 16, k}, random_);
      expect_as_judged(gemm, fmt::format("{}, k {}", name(inputs), k));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(EveryForm, TakesEveryNumberOfRowsAndColumns) {
  for (const std::int64_t rows : {0, 1, 70}) {
    for (const std::int64_t cols : {1, 16, 17, 40}) {
      const Mainloop mainloop{form().unit, 64, Promotion::fma_product, false};
      const Gemm gemm =
          make_gemm(mainloop, form(), UnitInputs::normal, Scales::tame, {rows, cols, 70}, random_);
      expect_as_judged(gemm, fmt::format("{} rows, {} columns", rows, cols));
      if (HasFatalFailure()) return;
    }
  }
}

/// Single elements and one row that a kernel does not take, on either side and on both: the others
/// must not change, and these must be right.
TEST_P(EveryForm, SumsSingleWildElementsAsTheJudgeDoes) {
  for (const UnitInputs wild : {UnitInputs::bits, UnitInputs::tiny, UnitInputs::huge,
                                UnitInputs::special, UnitInputs::subnormal}) {
    for (const int where : {1, 2, 3}) {
      const Mainloop mainloop{form().unit, 64, Promotion::add, false};
      const testing::GemmSize size{17, 16, 150};
      Gemm gemm = make_gemm(mainloop, form(), UnitInputs::normal, Scales::none, size, random_);
      const testing::UnitTile tile =
          testing::random_tile(wild, form().left, form().right, to_size(size.rows),
                               to_size(size.cols), to_size(size.k), random_);
      const auto spoil = [&](Format format, const std::vector<CodeRow>& from, const char* matrix,
                             testing::StoredMatrix& to) {
        std::vector<CodeRow> rows;
        for (const UnitCodes& row : to.rows) rows.push_back(row.codes);
        for (int i = 0; i < 4; ++i) {
          const std::size_t row = random_() % rows.size();
          if (i == 0) rows[row] = from[row];
          for (int n = 0; n < 3; ++n) {
            const std::size_t k = random_() % rows[row].size();
            rows[row][k] = from[row][k];
          }
        }
        to = store(matrix, format, size.k, rows);
      };
      if ((where & 1) != 0) spoil(form().left, tile.left, "x", gemm.x);
      if ((where & 2) != 0) spoil(form().right, tile.right, "w", gemm.weight);
      for (std::int64_t i = 0; i < size.rows; ++i) gemm.rows[to_size(i)] = i;
      expect_as_judged(gemm, fmt::format("{}, where {}", name(wild), where));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(EveryForm, HasTheSameBitsOnEveryInstructionSet) {
  const char* const before = simd::active_kernels()->isa;
  for (const UnitInputs inputs : {UnitInputs::normal, UnitInputs::wide, UnitInputs::special}) {
    const Mainloop mainloop{form().unit, 128, Promotion::fma_row, false};
    const Gemm gemm = make_gemm(mainloop, form(), inputs, Scales::tame, {13, 35, 300}, random_);
    ASSERT_TRUE(simd::use_kernels("scalar"));
    const std::vector<std::uint32_t> expected = testing::bits_of(run(gemm, 1));
    for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
      ASSERT_TRUE(simd::use_kernels(*isa));
      EXPECT_EQ(testing::bits_of(run(gemm, 3)), expected) << *isa << ", " << name(inputs);
    }
  }
  ASSERT_TRUE(simd::use_kernels(before));
}

INSTANTIATE_TEST_SUITE_P(All, EveryForm, ::testing::Range(std::size_t{0}, forms().size()),
                         [](const auto& param) { return forms()[param.param].name; });

/// A zero under a huge factor counts where zeros do: -126 + 100 is far above the products.
TEST(Mainloop, CountsTheZerosOfAUnitThatCountsThem) {
  std::mt19937_64 random(3);
  const Form& form = *std::find_if(forms().begin(), forms().end(),
                                   [](const Form& each) { return each.name == "zeros_take_part"; });
  Gemm gemm = make_gemm({form.unit, 0, Promotion::none, false}, form, UnitInputs::normal,
                        Scales::none, {1, 1, 16}, random);
  CodeRow x(16, 0x2180u);  // 2^-60
  CodeRow w(16, 0x3081u);  // (1 + 2^-7) 2^-30
  x[3] = 0;
  w[3] = 0x7180u;  // 2^100
  gemm.x = store("x", form.left, 16, {x});
  gemm.weight = store("w", form.right, 16, {w});
  expect_as_judged(gemm, "a zero times 2^100");
  EXPECT_EQ(run(gemm, 1)[0], 0.0f);
}

}  // namespace
}  // namespace moeref
