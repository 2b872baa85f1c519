#include "layout/kernel_view.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "layout/backends/readings.hpp"
#include "layout/backends/recipe_parts.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/sample_layer.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using backends::Steps;
using backends::tensor;
using backends::operator+;
using backends::parameter;
using ::testing::HasSubstr;

/// What a test changes in the recipe of kBackend; kept outside, since recipes are functions.
struct Change {
  GateOrder order = GateOrder::gate_up;
  Steps w13_framework;
  Steps w13_kernel;
  std::int64_t unread_k = 0;
  bool bias_before_factor = false;
  bool read_scales = true;
  std::vector<ScalarRecipe> scalars;
};
Change change;

Recipe changed_recipe(const LayerShape& shape, const Options&) {
  Recipe recipe;
  recipe.tensors = {tensor("w13", Slot::w13, change.w13_framework, change.w13_kernel),
                    tensor("w2", Slot::w2, {}, {})};
  KernelReading& kernel = recipe.kernel;
  if (shape.block_cols != 0) {
    recipe.tensors.push_back(
        tensor("w13_scale", Slot::w13_scale, change.w13_framework, change.w13_kernel));
    recipe.tensors.push_back(tensor("w2_scale", Slot::w2_scale, {}, {}));
    kernel.block_rows = 1;
    kernel.block_cols = shape.block_cols;
    if (change.read_scales) kernel.w13_scale = backends::decode_as(Format::ue4m3);
    kernel.w2_scale = backends::decode_as(Format::ue4m3);
  }
  if (shape.bias) {
    recipe.tensors.push_back(
        tensor("w13_bias", Slot::w13_bias, change.w13_framework, change.w13_kernel));
    recipe.tensors.push_back(tensor("w2_bias", Slot::w2_bias, {}, {}));
  }
  recipe.scalars = change.scalars;
  kernel.order = change.order;
  kernel.intermediate = shape.intermediate;
  kernel.hidden = shape.hidden;
  kernel.unread_k = change.unread_k;
  kernel.codes = shape.block_cols != 0 ? Format::e2m1 : Format::bf16;
  kernel.bias_before_factor = change.bias_before_factor;
  for (const ScalarRecipe& scalar : change.scalars) {
    if (scalar.name == "gate") kernel.gate_factor = backends::factor("gate");
    if (scalar.name == "up") kernel.up_factor = backends::factor("up");
    if (scalar.name == "swiglu_alpha") kernel.alpha = parameter(scalar.name, shape, 1.0f);
    if (scalar.name == "swiglu_beta") kernel.beta = parameter(scalar.name, shape, 0.0f);
    if (scalar.name == "swiglu_limit") kernel.limit = parameter(scalar.name, shape, kNoLimit);
    if (scalar.name == "up_limit") kernel.up_limit = parameter(scalar.name, shape, kNoLimit);
    if (scalar.name == "down") kernel.down_factor = backends::factor("down");
    if (scalar.name == "a1") {
      kernel.input_scale_13 = [](const ScalarValues& values, std::int64_t) {
        return values.find("a1")->second.front();
      };
    }
  }
  return recipe;
}

const Backend kBackend{
    .name = "changed",
    .family = "Test",
    .summary = "what the test says",
    .formats = {"bf16", "nvfp4"},
    .options = {backends::swiglu_option()},
    .rules = {},
    .loader = nullptr,
    .recipe = changed_recipe,
};

ScalarRecipe scalar(std::string name, std::vector<float> values) {
  return {.name = std::move(name),
          .formula = "given",
          .per_expert = true,
          .values = [values](const ExpertScalars&, const LayerShape&) { return values; }};
}

struct Prepared {
  PreparedLayer layer;
  std::vector<Tensor> made;
};

Prepared prepare(const MoeLayer& layer, const Shard& rank = {}) {
  const std::vector<std::string> texts{"swiglu=dropped_upstream"};
  Prepared prepared{plan_layer(kBackend, parse_options(kBackend, texts), layer, rank), {}};
  for (const PreparedTensor& each : prepared.layer.tensors) {
    prepared.made.push_back(make(each, 1));
  }
  return prepared;
}

std::vector<double> values_of(const ScaledMatrix& matrix) {
  std::vector<double> values(static_cast<std::size_t>(matrix.rows * matrix.cols));
  dequantize(matrix, values);
  return values;
}

class KernelView : public ::testing::Test {
 protected:
  KernelView() { change = {}; }

  static SampleShape small(std::string format, bool bias = false) {
    return {.hidden = 64, .intermediate = 32, .bias = bias, .weight_format = std::move(format)};
  }
};

TEST_F(KernelView, ReadsEachOrderOfTheHalves) {
  const MoeLayer layer = sample_layer(small("bf16", true));
  struct Case {
    GateOrder order;
    Steps framework;
    Steps kernel;
  };
  const std::vector<Case> cases{{GateOrder::gate_up, {}, {}},
                                {GateOrder::up_gate, {SwapHalves{}}, {ShuffleRows{128}}},
                                {GateOrder::interleaved, {InterleaveHalves{1}}, {}},
                                {GateOrder::gate_up, {}, {InterleaveHalves{1}, ShuffleRows{64}}}};
  for (const Case& each : cases) {
    change.order = each.order;
    change.w13_framework = each.framework;
    change.w13_kernel = each.kernel;
    const Prepared prepared = prepare(layer);
    const MoeLayer read = kernel_layer(prepared.layer, prepared.made);
    for (std::size_t e = 0; e < 2; ++e) {
      for (const ExpertPart part : {&Expert::gate, &Expert::up, &Expert::down, &Expert::gate_bias,
                                    &Expert::up_bias, &Expert::down_bias}) {
        EXPECT_EQ(values_of(read.experts[e].*part), values_of(layer.experts[e].*part));
      }
    }
  }
}

TEST_F(KernelView, MultipliesCodesBlockScalesAndFactors) {
  change.scalars = {scalar("gate", {0.5f, 2.0f}), scalar("up", {4.0f, 8.0f}),
                    scalar("down", {16.0f, 32.0f}), scalar("a1", {2.0f})};
  MoeLayer layer = sample_layer(small("nvfp4"));
  const Prepared prepared = prepare(layer);
  const MoeLayer read = kernel_layer(prepared.layer, prepared.made);
  const MoeLayer recoded = recoded_layer(prepared.layer, layer);
  const double factors[2][3] = {{0.25, 2.0, 16.0}, {1.0, 4.0, 32.0}};
  const ExpertPart parts[] = {&Expert::gate, &Expert::up, &Expert::down};
  for (std::size_t e = 0; e < 2; ++e) {
    for (std::size_t i = 0; i < 3; ++i) {
      ScaledMatrix bare = layer.experts[e].*parts[i];
      bare.global_rule = GlobalScaleRule::none;
      std::vector<double> expected = values_of(bare);
      for (double& value : expected) value *= factors[e][i];
      EXPECT_EQ(values_of(read.experts[e].*parts[i]), expected);
      EXPECT_EQ(values_of(recoded.experts[e].*parts[i]), expected);
    }
  }
  const KernelFactor gate = kernel_factor(prepared.layer.recipe.kernel,
                                          planned_scalars(prepared.layer), &Expert::gate, 1);
  EXPECT_EQ(gate.factor, 2.0f);
  EXPECT_EQ(gate.input_scale, 2.0f);
}

TEST_F(KernelView, TakesABiasThatIsAddedBeforeTheFactorTimesTheFactor) {
  change.scalars = {scalar("gate", {0.5f, 2.0f}), scalar("up", {4.0f, 8.0f}),
                    scalar("down", {16.0f, 32.0f})};
  change.bias_before_factor = true;
  const MoeLayer layer = sample_layer(small("bf16", true));
  const Prepared prepared = prepare(layer);
  const MoeLayer read = kernel_layer(prepared.layer, prepared.made);
  std::vector<double> expected = values_of(layer.experts[1].up_bias);
  for (double& value : expected) value *= 8.0;
  EXPECT_EQ(values_of(read.experts[1].up_bias), expected);
  expected = values_of(layer.experts[0].down_bias);
  for (double& value : expected) value *= 16.0;
  EXPECT_EQ(values_of(read.experts[0].down_bias), expected);
}

TEST_F(KernelView, LeavesOutTheLastColumns) {
  change.unread_k = 8;
  const MoeLayer layer = sample_layer(small("nvfp4"));
  const Prepared prepared = prepare(layer);
  const MoeLayer read = kernel_layer(prepared.layer, prepared.made);
  for (std::int64_t col = 0; col < 64; ++col) {
    const double code = element_at(layer.experts[0].up, 3, col);
    EXPECT_EQ(element_at(read.experts[0].up, 3, col), col < 56 ? code : 0.0) << col;
  }
}

TEST_F(KernelView, TakesThePreparedActivationInPlaceOfTheStoredOne) {
  SampleShape shape = small("bf16", true);
  shape.experts = 4;
  const MoeLayer layer = sample_layer(shape);
  const Shard second_half{.ep_rank = 1, .ep_size = 2};
  change.scalars = {scalar("swiglu_alpha", {1.0f, 2.0f}),             // of this rank
                    scalar("swiglu_beta", {3.0f, 4.0f, 5.0f, 6.0f}),  // of the whole layer
                    scalar("swiglu_limit", {9.0f})};                  // one for all
  const Prepared prepared = prepare(layer, second_half);
  const MoeLayer read = kernel_layer(prepared.layer, prepared.made);
  EXPECT_EQ(read.activation.alphas, (std::vector<float>{1.0f, 2.0f}));
  EXPECT_EQ(read.activation.betas, (std::vector<float>{5.0f, 6.0f}));
  EXPECT_EQ(read.activation.limits, (std::vector<float>{9.0f, 9.0f}));
  EXPECT_EQ(read.first_expert, 2);

  // The same reading where nothing is passed: SiLU.
  change.scalars = {scalar("swiglu_alpha", {}), scalar("swiglu_beta", {}),
                    scalar("swiglu_limit", {})};
  const Prepared plain = prepare(layer, second_half);
  const MoeLayer silu = kernel_layer(plain.layer, plain.made);
  EXPECT_EQ(silu.activation.alphas, (std::vector<float>{1.0f, 1.0f}));
  EXPECT_EQ(silu.activation.betas, (std::vector<float>{0.0f, 0.0f}));
  EXPECT_EQ(silu.activation.limits, (std::vector<float>{kNoLimit, kNoLimit}));

  change.scalars = {scalar("swiglu_limit", {9.0f}), scalar("up_limit", {9.0f, 8.0f})};
  const Prepared clamped = prepare(layer, second_half);
  EXPECT_THAT(error_of([&] { kernel_layer(clamped.layer, clamped.made); }),
              HasSubstr("clamps up of local expert 1 at 8, gate at 9"));

  // No reading: the framework passes what the model says.
  change.scalars = {};
  const Prepared bare = prepare(layer, second_half);
  const MoeLayer stored = kernel_layer(bare.layer, bare.made);
  EXPECT_EQ(stored.activation.alphas, (std::vector<float>{1.702f, 1.702f}));

  change.scalars = {scalar("swiglu_alpha", {1.0f, 2.0f, 3.0f})};
  const Prepared wrong = prepare(layer, second_half);
  EXPECT_THROW(kernel_layer(wrong.layer, wrong.made), Error);
}

TEST_F(KernelView, SaysWhatItCannotRead) {
  const auto message = [](const Prepared& prepared) -> std::string {
    return error_of([&] { kernel_layer(prepared.layer, prepared.made); });
  };
  const MoeLayer layer = sample_layer(small("nvfp4"));
  Prepared prepared = prepare(layer);
  prepared.made[0].bytes.pop_back();
  EXPECT_THAT(message(prepared),
              HasSubstr("w13: has 4095 bytes, the kernel of changed reads 4096"));
  prepared.made.pop_back();
  EXPECT_THAT(message(prepared), HasSubstr("3 tensors are given, 4 are prepared"));

  change.read_scales = false;
  EXPECT_THAT(message(prepare(layer)), HasSubstr("does not say how it is decoded"));
  change.read_scales = true;
  change.order = GateOrder::none;
  EXPECT_THAT(message(prepare(layer)), HasSubstr("does not tell gate and up apart"));
}

}  // namespace
}  // namespace moeref
