#include <algorithm>
#include <array>

#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/recipe_parts.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/backends/swiglu_numbers.hpp"
#include "layout/recode/float_cast.hpp"
#include "layout/recode/marlin_decoders.hpp"
#include "layout/recode/ue8m0.hpp"
#include "layout/recode/upcast.hpp"
#include "layout/tiles/triton.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "triton_kernels_mxfp4";

/// What a device's layouts do to values and scales.
struct Swizzle {
  std::string_view name;
  std::int64_t alignment;  ///< of the intermediate size
  bool aligns_hidden;
  Steps (*values)(const Options& options);
  Steps (*scales)(const Options& options);
  bool shifts_scales;  ///< the kernel builds a scale by shifting its byte: 0x00 is 0
};

Steps hopper_values(const Options& options) {
  return {Tile{tiles::hopper_mx_value(options.integer("mma_version"))},
          PermuteBits{tiles::hopper_mx_bits()}};
}
Steps hopper_v35_values(const Options& options) {
  return {Tile{tiles::hopper_mx_value_v35(options.integer("mma_version"))},
          PermuteBits{tiles::hopper_mx_bits()}};
}
Steps hopper_scales(const Options& options) {
  return {Tile{tiles::hopper_mx_scale(options.integer("num_warps"))}};
}
Steps blackwell_values(const Options&) { return {Tile{tiles::blackwell_mx_value()}}; }
Steps shuffled_values(const Options& options) {
  return {Tile{
      tiles::blackwell_mx4_value_shuffled(options.integer("block_k"), options.integer("block_n"))}};
}
Steps blackwell_scales(const Options&) { return {Tile{tiles::blackwell_mx_scale()}}; }
Steps cdna4_scales(const Options&) { return {Tile{tiles::cdna4_mx_scale()}}; }
Steps strided(const Options&) { return {Tile{tiles::k_major_view()}}; }

/// cdna4: vllm@007d5005 quantization/mxfp4.py create_weights pads both sizes to 256 on gfx950.
/// Source: triton-lang/triton@000df03e layout_details/hopper_value.py, blackwell_value_shuffled.py;
/// @14dd7a19 hopper_scale.py; @f11ca2ea blackwell_value.py; @00a287a7 blackwell_scale.py; @02cca62a
/// cdna4_scale.py; hopper_v35: hopper_value.py of 2025
constexpr std::array<Swizzle, 6> kSwizzles{{
    {"hopper", 64, false, hopper_values, hopper_scales, true},
    {"hopper_v35", 64, false, hopper_v35_values, hopper_scales, true},
    {"blackwell", 64, false, blackwell_values, blackwell_scales, false},
    {"blackwell_shuffled", 64, false, shuffled_values, blackwell_scales, false},
    {"cdna4", 256, true, strided, cdna4_scales, false},
    {"none", 64, false, strided, strided, true},
}};
constexpr std::string_view kUpcast = "upcast_bf16";

const Swizzle& swizzle_of(const Options& options) {
  const auto found = std::find_if(
      kSwizzles.begin(), kSwizzles.end(),
      [&options](const Swizzle& swizzle) { return options.is("swizzle", swizzle.name); });
  return found != kSwizzles.end() ? *found : kSwizzles.back();
}

/// Sizes and the framework's steps for them.
struct Padded {
  std::int64_t intermediate;
  std::int64_t hidden;
  Steps rows13() const { return {PadHalves{.to = intermediate}}; }
  Steps rows2() const { return {PadHalves{.to = hidden}}; }
  Steps cols13() const { return {PadCols{.to = hidden}}; }
  Steps cols2() const { return {PadCols{.to = intermediate}}; }
};

Padded padded_sizes(const LayerShape& shape, const Swizzle& swizzle) {
  return {round_up(shape.stride, swizzle.alignment),
          swizzle.aligns_hidden ? round_up(shape.hidden, swizzle.alignment) : shape.hidden};
}

void add_bias(Recipe& recipe, const LayerShape& shape, const Padded& sizes, const Steps& rows) {
  if (!shape.bias) return;
  const auto floats = [](Slot slot) { return Steps{recode::cast_floats(slot, DType::f32)}; };
  recipe.tensors.push_back(
      tensor("w13_bias", Slot::w13_bias, floats(Slot::w13_bias) + sizes.rows13(), rows));
  recipe.tensors.push_back(
      tensor("w2_bias", Slot::w2_bias, floats(Slot::w2_bias) + sizes.rows2(), {}));
}

void add_mxfp4(Recipe& recipe, const Swizzle& swizzle, const Options& options, const Padded& sizes,
               const Steps& rows) {
  const Steps values = swizzle.values(options);
  const Steps scales = swizzle.scales(options);
  const Steps w13 = sizes.rows13() + sizes.cols13();
  const Steps w2 = sizes.rows2() + sizes.cols2();
  const auto exponents = [](Slot slot) { return Steps{recode::power_of_two_scales(slot)}; };
  recipe.tensors = {
      tensor("w13", Slot::w13, w13, rows + values),
      tensor("w13_scale", Slot::w13_scale, exponents(Slot::w13_scale) + w13, rows + scales),
      tensor("w2", Slot::w2, w2, values),
      tensor("w2_scale", Slot::w2_scale, exponents(Slot::w2_scale) + w2, scales),
  };
  const ScaleDecoder decoder =
      swizzle.shifts_scales ? recode::decode_marlin_e8m0(1.0f) : decode_as(Format::e8m0);
  recipe.kernel.codes = Format::e2m1;
  recipe.kernel.block_rows = 1;
  recipe.kernel.block_cols = 32;
  recipe.kernel.w13_scale = recipe.kernel.w2_scale = decoder;
}

/// Without the package's kernels the weights are upcast and multiplied as bf16.
void add_upcast(Recipe& recipe, const Padded& sizes, const Steps& rows) {
  recipe.tensors = {
      tensor("w13", Slot::w13, Steps{recode::upcast_mxfp4(Slot::w13)} + sizes.rows13(), rows),
      tensor("w2", Slot::w2, Steps{recode::upcast_mxfp4(Slot::w2)} + sizes.cols2(), {}),
  };
  recipe.kernel.codes = Format::bf16;
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  if (shape.experts != shape.total_experts) {
    fail(kName, "this rank has {} of {} experts; expert parallelism is not supported, use --ep 0/1",
         shape.experts, shape.total_experts);
  }
  const Swizzle& swizzle = swizzle_of(options);
  const Padded sizes = padded_sizes(shape, swizzle);
  const Steps rows{InterleaveHalves{1}};
  Recipe recipe;
  recipe.kernel.order = gate_first(shape);
  read_swiglu(recipe.kernel, shape);
  recipe.kernel.beta = constant(1.0f);
  recipe.kernel.intermediate = sizes.intermediate;
  recipe.kernel.hidden = sizes.hidden;
  if (options.is("swizzle", kUpcast)) {
    add_upcast(recipe, sizes, rows);
  } else {
    add_mxfp4(recipe, swizzle, options, sizes, rows);
  }
  add_bias(recipe, shape, sizes, rows);
  recipe.scalars = {swiglu_alpha(), swiglu_limit()};
  recipe.notes = {"the fused activation adds 1 to up, whatever beta is",
                  "MX axis is dimension 1: tensors are views [experts, K, N]"};
  return recipe;
}

/// Source: sglang models/gpt_oss.py _load_mxfp4_experts_weights
Loader loader(const LayerShape&, const Options&) { return {LoaderKind::blocks, 32}; }

Numerics numerics(const NumericsRequest& request) {
  refuse_replay(
      request, "triton_kernels_mxfp4",
      "its persistent kernels choose tiles and the split of K by themselves and were not measured");
  Numerics numerics = bf16_stages();
  numerics.gemm1.output = Format::f32;
  numerics.activation.is_parametric = request.parametric();
  numerics.router_weight = WeightPoint::gemm2;
  numerics.combine.form = CombineForm::sum;
  return numerics;
}

}  // namespace

/// Source: sglang layers/quantization/mxfp4.py; the activation: triton@002402cf5a3e
/// triton_kernels/swiglu_details/_swiglu.py
const Backend triton_kernels_mxfp4{
    .name = kName,
    .family = "Triton",
    .summary = "MXFP4 weights of GPT-OSS, bf16 activations, swizzled for the device",
    .formats = {"mxfp4"},
    .options = {{"swizzle",
                 {"hopper", "hopper_v35", "blackwell", "blackwell_shuffled", "cdna4", "none",
                  kUpcast},
                 "the device's value and scale layouts; upcast_bf16: no package kernels"},
                {"num_warps", {"N", "8"}, "Hopper scales: warps the kernel is compiled for"},
                {"mma_version", {"3", "2"}, "Hopper values: 3, on Ampere 2"},
                {"block_k", {"N", "128"}, "blackwell_shuffled: codes of a tile along K"},
                {"block_n", {"N", "256"}, "blackwell_shuffled: rows of a tile"},
                swiglu_option()},
    .rules = {{"hidden", 32, "", "a scale for 32 columns"},
              {"intermediate", 32, "", "a scale for 32 columns"}},
    .loader = loader,
    .recipe = recipe,
    .numerics = numerics,
    .replay = {ReplayEvidence::none,
               "tl.dot_scaled was measured, its persistent kernels and their split of K were not"},
};

}  // namespace moeref::backends
