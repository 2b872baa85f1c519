// The table of matrix instructions, and the order of their terms.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/accumulate/matrix_chain.hpp"
#include "io/golden_case.hpp"
#include "quant/formats.hpp"
#include "quant/matrix_unit.hpp"
#include "tests/judge/matrix_judge.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

int k_of(const MatrixUnit& unit) {
  return std::visit([](const auto& each) { return each.k; }, unit);
}

std::vector<FusedDot> ordered_units() {
  std::vector<FusedDot> units;
  for (const MatrixInstruction& row : all_matrix_instructions()) {
    if (const auto* fused = std::get_if<FusedDot>(&row.unit)) units.push_back(*fused);
  }
  for (const TermOrder order : {TermOrder::natural, TermOrder::kw4, TermOrder::kw8}) {
    for (const int terms : {4, 8, 16, 32}) {
      FusedDot unit;
      unit.k = terms;
      unit.terms = terms;
      unit.order = order;
      units.push_back(unit);
    }
  }
  return units;
}

TEST(TermOrder, HasEveryColumnOnceAndInItsStep) {
  for (const FusedDot& unit : ordered_units()) {
    for (std::int64_t k = 0; k <= 300; ++k) {
      const std::vector<std::int64_t> order = accumulate::term_order(unit, k);
      const auto size = static_cast<std::int64_t>(order.size());
      const std::string what = fmt::format("k {} of {}, {} terms, order {}", k, unit.k, unit.terms,
                                           static_cast<int>(unit.order));
      ASSERT_EQ(size % unit.k, 0) << what;
      ASSERT_EQ(size % unit.terms, 0) << what;
      ASSERT_GE(size, k) << what;
      // No more than the last instructions need; those of a chunk go together.
      const std::int64_t width = unit.order == TermOrder::kw8   ? 8
                                 : unit.order == TermOrder::kw4 ? 4
                                                                : 2;
      ASSERT_LT(size, k + std::max<std::int64_t>(unit.k, unit.terms * width / 2)) << what;
      std::vector<int> seen(to_size(k));
      std::int64_t pads = 0;
      for (std::int64_t t = 0; t < size; ++t) {
        const std::int64_t column = order[to_size(t)];
        if (column == -1) {
          ++pads;
          continue;
        }
        ASSERT_TRUE(column >= 0 && column < k) << what;
        ++seen[to_size(column)];
        ASSERT_EQ(t / unit.terms, judge::step_of(unit, column)) << what << ", column " << column;
      }
      ASSERT_EQ(pads, size - k) << what;
      ASSERT_EQ(std::count(seen.begin(), seen.end(), 1), k) << what;
    }
  }
}

TEST(TermOrder, TakesTheFourthsOfEightBitOperands) {
  FusedDot unit;
  unit.order = TermOrder::kw4;
  const std::vector<std::int64_t> order = accumulate::term_order(unit, 32);
  EXPECT_THAT(std::vector(order.begin(), order.begin() + 8),
              ::testing::ElementsAre(0, 1, 4, 5, 8, 9, 12, 13));
  EXPECT_THAT(std::vector(order.begin() + 16, order.begin() + 20),
              ::testing::ElementsAre(2, 3, 6, 7));
}

TEST(FindMatrixInstruction, FindsEveryRowByAPairOfItsOperands) {
  for (const MatrixInstruction& row : all_matrix_instructions()) {
    for (const Format a : row.operands) {
      for (const Format b : row.operands) {
        const auto find = [&, a = a, b = b] {
          return &find_matrix_instruction(row.arch, row.name, a, b, row.accumulator);
        };
        if (a != b && !row.mixes) {
          EXPECT_THAT(error_of(find), ::testing::HasSubstr("does not multiply"));
          continue;
        }
        const MatrixInstruction* found = find();
        EXPECT_EQ(found->arch, row.arch);
        EXPECT_EQ(found->name, row.name);
        EXPECT_EQ(found->accumulator, row.accumulator);
        EXPECT_EQ(found->unit.index(), row.unit.index());
        EXPECT_EQ(k_of(found->unit), k_of(row.unit));
      }
    }
  }
}

TEST(FindMatrixInstruction, RefusesInOneLine) {
  struct Case {
    std::string_view arch, name;
    Format a, b, accumulator;
    std::vector<std::string> parts;
  };
  const std::vector<Case> cases = {
      {"gfx950", "mfma.16x16x32", Format::bf16, Format::bf16, Format::f32, {"gfx950", "CDNA4"}},
      {"gfx90a", "mfma.16x16x16", Format::bf16, Format::bf16, Format::f32, {"gfx90a", "CDNA2"}},
      {"gfx908", "mfma.16x16x16", Format::bf16, Format::bf16, Format::f32, {"gfx908", "CDNA1"}},
      {"sm_91",
       "wgmma.k16",
       Format::bf16,
       Format::bf16,
       Format::f32,
       {"sm_91", "sm_70", "sm_90", "sm_120", "gfx942"}},
      {"sm_90",
       "wgmma.k64",
       Format::bf16,
       Format::bf16,
       Format::f32,
       {"wgmma.k64", "sm_90", "wgmma.k16", "wgmma.k32", "mma.m16n8k32", "sparse"}},
      {"sm_80", "wgmma.k16", Format::bf16, Format::bf16, Format::f32, {"wgmma.k16", "sm_80"}},
      {"sm_90",
       "wgmma.k16",
       Format::bf16,
       Format::f16,
       Format::f32,
       {"wgmma.k16", "sm_90", "bf16", "f16", "f32"}},
      {"sm_90",
       "wgmma.k16",
       Format::bf16,
       Format::bf16,
       Format::f16,
       {"wgmma.k16", "sm_90", "bf16", "f16"}},
      {"sm_90",
       "wgmma.k32",
       Format::e4m3,
       Format::e4m3fnuz,
       Format::f32,
       {"wgmma.k32", "e4m3", "e4m3fnuz"}},
      {"sm_90", "wgmma.k32", Format::e4m3, Format::e4m3, Format::bf16, {"wgmma.k32", "bf16"}},
      {"sm_90", "", Format::bf16, Format::bf16, Format::f32, {"sm_90"}},
      {"", "wgmma.k16", Format::bf16, Format::bf16, Format::f32, {"known"}},
  };
  for (const Case& each : cases) {
    const std::string error = error_of(
        [&] { find_matrix_instruction(each.arch, each.name, each.a, each.b, each.accumulator); });
    EXPECT_NE(error, "no error") << each.arch << " " << each.name;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    for (const std::string& part : each.parts) EXPECT_THAT(error, ::testing::HasSubstr(part));
  }
}

/// "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" is "mma.m16n8k16";
/// "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3" is "wgmma.k32".
std::string table_name(const std::string& ptx) {
  const std::size_t shape = ptx.find(".m") + 1;
  const std::size_t begin = ptx.find(".aligned.") + 9;
  const std::string size = ptx.substr(begin, ptx.find('.', begin) - begin);
  EXPECT_NE(shape, 0u) << ptx;
  if (ptx.starts_with("mma.sync.")) return "mma." + size;
  EXPECT_TRUE(ptx.starts_with("wgmma.mma_async.")) << ptx;
  return "wgmma." + size.substr(size.find('k'));
}

TEST(MatrixInstructions, HaveTheParametersThatWereMeasured) {
  const std::filesystem::path folder =
      std::filesystem::path(MOEREF_DATA_DIR) / "golden" / "tensorcore-h200";
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    const GoldenCase golden = read_golden_case(entry.path());
    if (golden.op != "tensorcore.h200_instr") continue;
    ++count;
    SCOPED_TRACE(entry.path().filename().string());
    const auto format = [&](const char* param) {
      const std::string text = golden.text_param(param).value();
      return text == "tf32" ? Format::f32 : parse_format(text).value();
    };
    const MatrixInstruction& row =
        find_matrix_instruction("sm_90", table_name(golden.text_param("instruction").value()),
                                format("a"), format("b"), format("acc"));
    EXPECT_EQ(row.evidence, UnitEvidence::hardware);
    ASSERT_TRUE(std::holds_alternative<FusedDot>(row.unit));
    const FusedDot& unit = std::get<FusedDot>(row.unit);
    const nlohmann::json& model = golden.params.at("model");
    EXPECT_EQ(unit.k, golden.integer_param("k_per_instruction"));
    EXPECT_EQ(unit.terms, model.at("L").get<int>());
    EXPECT_EQ(unit.fraction_bits, model.at("F").get<int>());
    EXPECT_EQ(unit.lowest_exponent, model.value("emax_floor", -133));
    EXPECT_FALSE(unit.block_scales);
    EXPECT_EQ(unit.operand ? name(*unit.operand) : "native",
              model.at("operand").get<std::string>());
    const auto text = [&](const char* key) { return model.at(key).get<std::string>(); };
    EXPECT_EQ(text("zero_rule"), unit.zeros == ZeroOperands::skipped ? "skip" : "fixed126");
    EXPECT_EQ(text("c"), unit.accumulator == AccumulatorPoint::fused ? "fused" : "rn_add");
    EXPECT_EQ(text("out"), unit.output == StepOutput::f32_toward_zero     ? "RZ_F32"
                           : unit.output == StepOutput::e8m13_toward_zero ? "RZ_E8M13"
                                                                          : "RNE_F16");
    EXPECT_EQ(text("k_order"), unit.order == TermOrder::natural ? "natural"
                               : unit.order == TermOrder::kw4   ? "kw4"
                                                                : "kw8");
  }
  EXPECT_GE(count, 24);
}

}  // namespace
}  // namespace moeref
