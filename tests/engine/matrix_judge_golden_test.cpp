// The judge of the matrix units against what the hardware and the simulator wrote: a judge that
// misses a bit here has no say elsewhere.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "io/golden_case.hpp"
#include "quant/formats.hpp"
#include "quant/matrix_unit.hpp"
#include "tests/judge/matrix_judge.hpp"

namespace moeref {
namespace {

using judge::UnitCodes;

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

Format format_named(const std::string& text) {
  return text == "tf32" ? Format::f32 : parse_format(text).value();
}

std::uint32_t element(const TensorView& tensor, std::int64_t index) {
  switch (info(tensor.dtype).bits) {
    case 8:
      return tensor.at<std::uint8_t>(index);
    case 16:
      return tensor.at<std::uint16_t>(index);
    default:
      return tensor.at<std::uint32_t>(index);
  }
}

/// Every row of [tiles, rows, K] or [rows, K], one after the other.
std::vector<UnitCodes> rows_of(const GoldenCase& golden, const std::string& prefix,
                               const std::string& name) {
  const TensorView& tensor = golden.input(prefix + name);
  const std::int64_t k = tensor.shape.back();
  std::vector<UnitCodes> rows(to_size(tensor.size() / k));
  const TensorView* scales = golden.find_input(prefix + name + "_scale");
  for (std::size_t row = 0; row < rows.size(); ++row) {
    rows[row].format = format_named(golden.text_param(name).value());
    for (std::int64_t col = 0; col < k; ++col) {
      rows[row].codes.push_back(element(tensor, static_cast<std::int64_t>(row) * k + col));
    }
    if (scales == nullptr || scales->dtype == DType::f32) continue;
    const std::int64_t blocks = scales->shape.back();
    for (std::int64_t i = 0; i < blocks; ++i) {
      rows[row].scales.push_back(element(*scales, static_cast<std::int64_t>(row) * blocks + i));
    }
  }
  return rows;
}

FusedDot simulated(FusedDot unit) {
  unit.zeros = ZeroOperands::smallest_exponent;
  unit.lowest_exponent = kNoLowestExponent;
  return unit;
}

FusedDot unit_of_model(const nlohmann::json& model, int k) {
  FusedDot unit;
  unit.k = k;
  unit.terms = model.at("L").get<int>();
  unit.fraction_bits = model.at("F").get<int>();
  const auto out = model.at("out").get<std::string>();
  unit.output = out == "RZ_F32"     ? StepOutput::f32_toward_zero
                : out == "RZ_E8M13" ? StepOutput::e8m13_toward_zero
                                    : StepOutput::f16_nearest;
  const auto order = model.at("k_order").get<std::string>();
  unit.order = order == "kw4"   ? TermOrder::kw4
               : order == "kw8" ? TermOrder::kw8
                                : TermOrder::natural;
  EXPECT_EQ(model.at("zero_rule").get<std::string>(), "skip");
  if (model.at("c").get<std::string>() == "rn_add") {
    unit.accumulator = AccumulatorPoint::added_after;
  }
  const auto operand = model.at("operand").get<std::string>();
  if (operand != "native") unit.operand = format_named(operand);
  return unit;
}

MatrixUnit unit_of(const GoldenCase& golden) {
  if (golden.op == "tensorcore.h200_instr") {
    return unit_of_model(golden.params.at("model"),
                         static_cast<int>(golden.integer_param("k_per_instruction")));
  }
  const auto k = static_cast<int>(golden.integer_param("K"));
  if (golden.op == "tensorcore.cdna3_mfma") {
    const std::string a = golden.text_param("a").value();
    return MfmaDot{k, static_cast<int>(golden.integer_param("group")), a.ends_with("fnuz")};
  }
  FusedDot unit = simulated({});
  unit.k = k;
  unit.fraction_bits = static_cast<int>(golden.integer_param("F"));
  if (golden.op == "tensorcore.nv_fdpa") {
    unit.terms = k / static_cast<int>(golden.integer_param("k_steps"));
    const std::string output = golden.text_param("output").value();
    unit.output = output == "f32"         ? StepOutput::f32_toward_zero
                  : output == "f32_e8m13" ? StepOutput::e8m13_toward_zero
                                          : StepOutput::f16_nearest;
    return unit;
  }
  if (golden.text_param("a").value() != "e2m1") {
    unit.terms = k;
    unit.block_scales = true;
    return unit;
  }
  ScaledGroupDot groups;
  groups.k = k;
  groups.block = static_cast<int>(golden.integer_param("block"));
  groups.scale = golden.text_param("scale").value() == "e8m0" ? Format::e8m0 : Format::ue4m3;
  groups.fraction_bits = unit.fraction_bits;
  groups.zeros = ZeroOperands::smallest_exponent;
  groups.lowest_exponent = kNoLowestExponent;
  return groups;
}

int check_instruction(const GoldenCase& golden) {
  const MatrixUnit unit = unit_of(golden);
  int outputs = 0;
  for (const auto& [name, d] : golden.outputs) {
    const std::string prefix = name.substr(0, name.size() - 1);
    const std::vector<UnitCodes> a = rows_of(golden, prefix, "a");
    const std::vector<UnitCodes> b = rows_of(golden, prefix, "b");
    const TensorView* c = golden.find_input(prefix + "c");
    const std::int64_t tiles = d.shape.size() == 3 ? d.shape[0] : 1;
    const std::size_t rows = a.size() / to_size(tiles);
    const std::size_t cols = b.size() / to_size(tiles);
    for (std::int64_t i = 0; i < d.size(); ++i) {
      const std::size_t col = to_size(i) % cols;
      const std::size_t row = to_size(i) / cols;  // of all tiles
      const UnitCodes& left = a[row];
      const UnitCodes& right = b[row / rows * cols + col];
      const std::uint32_t accumulator = c == nullptr ? 0 : element(*c, i);
      const std::uint32_t judged = judge::judge_unit(unit, left, right, accumulator);
      EXPECT_EQ(judged, element(d, i)) << name << " element " << i;
      if (::testing::Test::HasFailure()) return 0;
      ++outputs;
    }
  }
  return outputs;
}

/// Both operands in the type that is multiplied, block scales of 32 applied: exact.
void fold_scales(const GoldenCase& golden, const std::string& name, Format operand,
                 std::vector<UnitCodes>& rows) {
  const TensorView* scales = golden.find_input(name + "_scale_ue8m0");
  if (scales == nullptr) return;
  const std::int64_t blocks = scales->shape.back();
  for (std::size_t row = 0; row < rows.size(); ++row) {
    for (std::size_t k = 0; k < rows[row].codes.size(); ++k) {
      const auto at = static_cast<std::int64_t>(row) * blocks + static_cast<std::int64_t>(k / 32);
      const double value = judge::value_of_code(rows[row].format, rows[row].codes[k]) *
                           judge::value_of_code(Format::e8m0, element(*scales, at));
      rows[row].codes[k] = encode(operand, static_cast<float>(value), EncodePolicy::eigen);
    }
    rows[row].format = operand;
  }
}

int check_gemm(const GoldenCase& golden) {
  const nlohmann::json& model = golden.params.at("model");
  Mainloop mainloop;
  mainloop.unit = unit_of_model(model, model.at("L").get<int>());
  const auto promotion = model.at("promotion").get<std::string>();
  mainloop.promotion = promotion == "none"                   ? Promotion::none
                       : promotion == "add"                  ? Promotion::add
                       : promotion == "fma(p,rn(as*bs),acc)" ? Promotion::fma_product
                       : promotion == "fma(rn(p*as),bs,acc)" ? Promotion::fma_row
                                                             : Promotion::fma_column;
  const TensorView& d = golden.output("d");
  std::vector<UnitCodes> a = rows_of(golden, "", "a");
  std::vector<UnitCodes> b = rows_of(golden, "", "b");
  fold_scales(golden, "a", mainloop.unit.operand.value_or(Format::bf16), a);
  fold_scales(golden, "b", mainloop.unit.operand.value_or(Format::bf16), b);
  const std::size_t k = a.front().codes.size();
  if (mainloop.promotion != Promotion::none) {
    mainloop.chain = model.at("promotion_k").get<std::int64_t>();
  }
  const auto scales = [&](const char* name, std::size_t row) {
    const TensorView* tensor = golden.find_input(name);
    std::vector<float> each;
    if (tensor == nullptr || mainloop.chain == 0) return each;
    for (std::size_t first = 0; first < k; first += to_size(mainloop.chain)) {
      const std::size_t at = row * to_size(tensor->shape.back()) + first / 128;
      each.push_back(tensor->at<float>(static_cast<std::int64_t>(at)));
    }
    return each;
  };
  int outputs = 0;
  for (std::size_t row = 0; row < a.size(); ++row) {
    for (std::size_t col = 0; col < b.size(); ++col) {
      const std::uint32_t judged = judge::judge_mainloop(
          mainloop, a[row], b[col], scales("a_scale", row), scales("b_scale", col / 128));
      EXPECT_EQ(judged, element(d, static_cast<std::int64_t>(row * b.size() + col)))
          << "row " << row << ", column " << col;
      if (::testing::Test::HasFailure()) return 0;
      ++outputs;
    }
  }
  return outputs;
}

TEST(MatrixJudge, ReproducesEveryGoldenCase) {
  int cases = 0;
  int outputs = 0;
  for (const char* folder : {"tensorcore", "tensorcore-h200"}) {
    for (const auto& entry : std::filesystem::directory_iterator(
             std::filesystem::path(MOEREF_DATA_DIR) / "golden" / folder)) {
      if (entry.path().extension() != ".safetensors") continue;
      SCOPED_TRACE(entry.path().filename().string());
      const GoldenCase golden = read_golden_case(entry.path());
      outputs += golden.op == "tensorcore.h200_triton_gemm" ? check_gemm(golden)
                                                            : check_instruction(golden);
      ++cases;
    }
  }
  EXPECT_GE(cases, 77);
  EXPECT_GE(outputs, 185'000);
}

}  // namespace
}  // namespace moeref
