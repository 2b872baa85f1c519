#include "engine/audit.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "layout/backends/readings.hpp"
#include "layout/backends/recipe_parts.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/sample_layer.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

using backends::Steps;
using backends::tensor;
using backends::operator+;
using ::testing::HasSubstr;

/// Another code for one element of expert 1: column `row` mod `cols` of row `row`.
class FlipCode final : public Recoder {
 public:
  FlipCode(std::int64_t row, std::int64_t cols) : row_(row), col_(row % cols) {}
  std::string name() const override { return "flip_code"; }
  int in_bits() const override { return 16; }
  int out_bits() const override { return 16; }
  void rewrite(const Place& at, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    std::copy(in.begin(), in.end(), out.begin());
    const std::int64_t place = (col_ - at.col) * 2;
    if (at.expert != 1 || at.row != row_ || place < 0 || place >= std::ssize(out)) return;
    std::byte& high = out[static_cast<std::size_t>(place + 1)];
    const bool is_zero = (high & std::byte{0x7F}) == std::byte{0};
    high = is_zero ? std::byte{0x3F} : high ^ std::byte{0x80};  // 0 -> 0.5, x -> -x
  }

 private:
  std::int64_t row_;
  std::int64_t col_;
};

Steps flip_code(Slot slot, std::int64_t row) {
  return {Recode{.name = "flip_code",
                 .summary = "one code is another",
                 .out_bits = 16,
                 .dtype = DType::bf16,
                 .make = [slot, row](const LayerTensors& layer) {
                   return std::make_shared<const FlipCode>(row, layer.at(slot).cols);
                 }}};
}

/// A backend whose preparation differs from what its kernel reads by one fault at a time.
Recipe faulty_recipe(const LayerShape& shape, const Options& options) {
  const auto has = [&](std::string_view fault) { return options.is("fault", fault); };
  const std::int64_t padded = round_up(shape.stride, 64);
  const Steps swap = has("order") ? Steps{} : Steps{SwapHalves{}};
  const Step pad = has("whole_upstream") ? Step{PadRows{.to = padded * shape.halves()}}
                                         : Step{PadHalves{.to = padded}};
  const Steps cols{PadCols{.to = padded}};
  const Steps shuffle{ShuffleRows{128}};
  const auto flip = [&](std::string_view fault, Slot slot) {
    return has(fault) ? flip_code(slot, options.integer("row")) : Steps{};
  };
  const bool scaled = shape.weight_format == "mxfp4";
  Recipe recipe;
  recipe.tensors.push_back(
      tensor("w13", Slot::w13, flip("code_w13_upstream", Slot::w13) + swap + Steps{pad}, shuffle));
  recipe.tensors.push_back(tensor(
      "w2", Slot::w2, flip("code_w2_upstream", Slot::w2) + (has("w2_rows") ? cols + shuffle : cols),
      shuffle));
  if (scaled) {
    const Steps rows = has("scale_order") ? Steps{} : swap;
    recipe.tensors.push_back(tensor("w13_scale", Slot::w13_scale, rows + Steps{pad}, shuffle));
    recipe.tensors.push_back(tensor("w2_scale", Slot::w2_scale, cols, shuffle));
    recipe.kernel.block_rows = 1;
    recipe.kernel.block_cols = 32;
    recipe.kernel.w13_scale = backends::decode_as(Format::e8m0);
    recipe.kernel.w2_scale = backends::decode_as(Format::e8m0);
  }
  if (shape.bias && !has("bias")) {
    recipe.tensors.push_back(tensor("w13_bias", Slot::w13_bias, swap + Steps{pad}, shuffle));
    recipe.tensors.push_back(tensor("w2_bias", Slot::w2_bias, {}, shuffle));
  }
  const auto limits = [](const ExpertScalars& scalars, const LayerShape&) {
    return std::vector<float>(scalars.limit.size(), 0.5f);
  };
  if (has("limit")) {
    recipe.scalars.push_back({"swiglu_limit", "0.5", true, limits});
    recipe.kernel.limit = backends::parameter("swiglu_limit", shape, kNoLimit);
  }
  recipe.kernel.order = shape.gated ? GateOrder::up_gate : GateOrder::none;
  recipe.kernel.intermediate = has("size") ? padded + 64 : padded;
  recipe.kernel.hidden = shape.hidden;
  recipe.kernel.codes = scaled ? Format::e2m1 : Format::bf16;
  return recipe;
}

Loader padded_loader(const LayerShape&, const Options&) { return {LoaderKind::padded, 64}; }

const Backend kFaulty{
    .name = "faulty",
    .family = "Test",
    .summary = "one fault at a time",
    .formats = {"bf16", "mxfp4"},
    .options = {{"fault",
                 {"none", "order", "whole_upstream", "w2_rows", "scale_order", "bias", "limit",
                  "size", "code_w13_upstream", "code_w2_upstream"},
                 "what goes wrong"},
                {"row", {"N", "0"}, "of the wrong code"},
                backends::swiglu_option()},
    .rules = {{"hidden", 32, "", "the shuffle"}},
    .loader = padded_loader,
    .recipe = faulty_recipe,
};

AuditReport audit_fault(const std::string& fault, const SampleShape& shape,
                        const Shard& rank = {}) {
  const std::vector<std::string> texts{"fault=" + fault, "swiglu=dropped_upstream"};
  return audit(kFaulty, parse_options(kFaulty, texts), sample_layer(shape), rank, 1);
}

SampleShape bf16() { return {.hidden = 64, .intermediate = 96, .weight_format = "bf16"}; }
SampleShape gpt_oss() { return {.hidden = 64, .intermediate = 96, .bias = true}; }

TEST(Audit, KnowsADefectByTheEndOfItsName) {
  EXPECT_TRUE(is_upstream_defect("off_upstream"));
  EXPECT_FALSE(is_upstream_defect("off"));
  EXPECT_FALSE(is_upstream_defect("upstream_off"));
  const std::vector<std::string> texts{"fault=whole_upstream", "row=3"};
  const Options meant = without_defects(kFaulty, parse_options(kFaulty, texts));
  EXPECT_TRUE(meant.is("fault", "none"));
  EXPECT_EQ(meant.integer("row"), 3);
}

TEST(Audit, KeepsTheFunctionOfARightPreparation) {
  for (const SampleShape& shape : {bf16(), gpt_oss()}) {
    const AuditReport report = audit_fault("none", shape);
    EXPECT_TRUE(report.survives) << report.first_difference;
    EXPECT_EQ(report.outputs, 4 * 64);
    EXPECT_EQ(report.differing, 0);
    EXPECT_EQ(report.first_difference, "");
    EXPECT_EQ(report.note, "");
    EXPECT_TRUE(report.effects.empty());
    EXPECT_EQ(report.backend, "faulty");
    EXPECT_EQ(report.shape.intermediate, 96);
  }
}

TEST(Audit, NamesTheRowThatStandsInTheWrongPlace) {
  const AuditReport order = audit_fault("order", bf16());
  EXPECT_FALSE(order.survives);
  EXPECT_GT(order.differing, order.outputs / 2);
  EXPECT_THAT(order.first_difference, HasSubstr("token 0, column 0: "));
  EXPECT_THAT(order.first_difference,
              HasSubstr("expert 0: the kernel's gate row 0 is up row 0, must be gate row 0"));
  // Rows 0 .. 127 of the padded tensor are all 96 up rows and 32 of gate.
  EXPECT_THAT(audit_fault("whole_upstream", bf16()).first_difference,
              HasSubstr("the kernel's gate row 0 is gate row 32, must be gate row 0"));
  EXPECT_THAT(audit_fault("w2_rows", bf16()).first_difference,
              HasSubstr("the kernel's down row 1 is down row 4, must be down row 1"));
}

TEST(Audit, NamesTheScaleThatBelongsElsewhere) {
  const AuditReport report = audit_fault("scale_order", gpt_oss());
  EXPECT_FALSE(report.survives);
  EXPECT_THAT(report.first_difference, HasSubstr("has its code, but the block scale"));
}

TEST(Audit, NamesAMissingBias) {
  const AuditReport report = audit_fault("bias", gpt_oss());
  EXPECT_FALSE(report.survives);
  EXPECT_THAT(report.first_difference, HasSubstr("the kernel's gate bias of row 0 is 0, must be"));
}

TEST(Audit, NamesTheActivationIfAllWeightsAreRight) {
  const AuditReport report = audit_fault("limit", bf16());
  EXPECT_FALSE(report.survives);
  EXPECT_THAT(report.first_difference,
              HasSubstr("all weights and biases are right, act of expert"));
  EXPECT_THAT(report.first_difference, HasSubstr("the activation's parameters differ"));
}

TEST(Audit, DoesNotSurviveIfTheKernelReadsAnotherNumberOfBytes) {
  const AuditReport report = audit_fault("size", bf16());
  EXPECT_FALSE(report.survives);
  EXPECT_THAT(report.first_difference,
              HasSubstr("w13: has 65536 bytes, the kernel of faulty reads"));
}

TEST(Audit, SeesASingleWrongCodeWhereverItIs) {
  for (const bool gated : {true, false}) {
    SampleShape shape = bf16();
    shape.gated = gated;
    const MoeLayer layer = sample_layer(shape);
    const std::int64_t w13_rows = gated ? 192 : 96;
    for (std::int64_t row = 0; row < w13_rows; row += 5) {
      for (const std::string_view matrix : {"w13", "w2"}) {
        if (matrix == "w2" && row >= 64) continue;
        const std::vector<std::string> texts{fmt::format("fault=code_{}_upstream", matrix),
                                             fmt::format("row={}", row)};
        const AuditReport report = audit(kFaulty, parse_options(kFaulty, texts), layer, {}, 1);
        EXPECT_FALSE(report.survives) << matrix << " row " << row;
        const std::string place = matrix == "w2" ? fmt::format("down row {},", row)
                                  : !gated       ? fmt::format("up row {},", row)
                                  : row < 96     ? fmt::format("gate row {},", row)
                                                 : fmt::format("up row {},", row - 96);
        EXPECT_THAT(report.first_difference, HasSubstr("expert 1: the kernel's " + place));
      }
    }
  }
}

TEST(Audit, HoldsADefectAgainstTheRecodingThatIsMeant) {
  const std::vector<std::string> texts{"fault=code_w2_upstream", "row=3"};
  const Options options = parse_options(kFaulty, texts);
  EXPECT_EQ(without_defects(kFaulty, options)["fault"], "none");
  EXPECT_EQ(without_defects(kFaulty, options)["row"], "3");
  const AuditReport report = audit(kFaulty, options, sample_layer(bf16()), {}, 1);
  EXPECT_FALSE(report.survives);
  ASSERT_EQ(report.effects.size(), 1u);
  EXPECT_EQ(report.effects[0].tensor, "w2 down");
  EXPECT_EQ(report.effects[0].recoding, "flip_code (w2)");
  EXPECT_EQ(report.effects[0].weights, 2 * 64 * 96);
  EXPECT_EQ(report.effects[0].changed, 1);
  EXPECT_GT(report.effects[0].largest_change, 0.0);
  EXPECT_LE(report.effects[0].largest_change, 2.0);
  EXPECT_GT(report.effects[0].largest_output_change, 0.0);
}

TEST(Audit, ComparesTheWeightsOfARankWithoutRows) {
  // 96 rows in shares of 64: rank 0 has 64, rank 1 has 32, rank 2 none.
  for (const std::int64_t rank : {0, 1, 2}) {
    const AuditReport report = audit_fault("none", gpt_oss(), {.tp_rank = rank, .tp_size = 3});
    EXPECT_EQ(report.shape.intermediate, rank == 0 ? 64 : rank == 1 ? 32 : 0);
    EXPECT_TRUE(report.survives) << report.first_difference;
    EXPECT_EQ(report.outputs, rank == 2 ? 0 : 4 * 64);
    EXPECT_EQ(report.note.empty(), rank != 2);
  }
}

TEST(Audit, CountsExpertsOfAnExpertParallelRankGlobally) {
  SampleShape shape = bf16();
  shape.experts = 8;
  const AuditReport right = audit_fault("none", shape, {.ep_rank = 3, .ep_size = 4});
  EXPECT_TRUE(right.survives) << right.first_difference;
  EXPECT_EQ(right.shape.experts, 2);
  EXPECT_THAT(audit_fault("order", shape, {.ep_rank = 3, .ep_size = 4}).first_difference,
              HasSubstr("expert 6: the kernel's gate row 0"));
}

TEST(Audit, TellsWhatRequantizationChanges) {
  const Backend& backend = find_backend("triton_fp8_tensor");
  const MoeLayer layer =
      sample_layer({.hidden = 64, .intermediate = 96, .weight_format = "fp8_tensor"});
  const AuditReport report = audit(backend, parse_options(backend, {}), layer, {}, 1);
  EXPECT_TRUE(report.survives) << report.first_difference;
  ASSERT_GE(report.effects.size(), 2u);
  EXPECT_EQ(report.effects[0].tensor, "w13 gate");
  EXPECT_EQ(report.effects[1].tensor, "w13 up");
  EXPECT_THAT(report.effects[0].recoding, HasSubstr("max_requantize_w13"));
  // In each expert the half with the smaller scale is rounded again: by half a step of 3 bits.
  const RecodingEffect& gate = report.effects[0];
  const RecodingEffect& up = report.effects[1];
  EXPECT_EQ(gate.weights, 2 * 96 * 64);
  EXPECT_GT(gate.changed + up.changed, 96 * 64 / 2);
  EXPECT_LE(std::max(gate.largest_change, up.largest_change), 0x1p-4);
  EXPECT_GT(std::max(gate.largest_output_change, up.largest_output_change), 0.0);
}

TEST(Audit, TellsWhatASharedGlobalScaleChanges) {
  const Backend& backend = find_backend("flashinfer_cutlass_nvfp4");
  const MoeLayer layer =
      sample_layer({.hidden = 128, .intermediate = 128, .weight_format = "nvfp4"});
  const AuditReport report = audit(backend, parse_options(backend, {}), layer, {}, 1);
  EXPECT_TRUE(report.survives) << report.first_difference;
  ASSERT_EQ(report.effects.size(), 3u);
  const RecodingEffect& gate = report.effects[0];
  const RecodingEffect& up = report.effects[1];
  EXPECT_THAT(up.recoding, HasSubstr("g1_alphas = "));
  // gate: the rounding of the product with the activation scale; up: gate's factor for its own.
  EXPECT_LE(gate.largest_change, 0x1p-23);
  const double ratio0 = layer.experts[0].gate.global_scale / layer.experts[0].up.global_scale;
  const double ratio1 = layer.experts[1].gate.global_scale / layer.experts[1].up.global_scale;
  EXPECT_LE(up.largest_change, std::max(std::fabs(ratio0 - 1), std::fabs(ratio1 - 1)) + 0x1p-20);
  EXPECT_GT(up.largest_change, 0.01);
  EXPECT_GT(up.largest_output_change, 0.001);
}

TEST(SmallestBreak, IsTheFirstLayerThatDoesNotSurvive) {
  const std::vector<std::string> whole{"fault=whole_upstream"};
  const auto found = smallest_break(kFaulty, parse_options(kFaulty, whole), 1);
  ASSERT_TRUE(found.has_value());
  EXPECT_TRUE(found->shape.gated);
  EXPECT_EQ(found->shape.hidden, 32);
  EXPECT_EQ(found->shape.intermediate, 8);
  EXPECT_FALSE(found->report.survives);
  EXPECT_NE(found->report.first_difference, "");
}

TEST(Audit, RejectsWhatTheBackendRejects) {
  SampleShape shape = bf16();
  shape.hidden = 72;
  EXPECT_THROW(audit_fault("none", shape), Error);
}

}  // namespace
}  // namespace moeref
