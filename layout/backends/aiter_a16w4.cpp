#include <fmt/format.h>

#include "layout/backends/aiter_parts.hpp"
#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/swiglu_numbers.hpp"

// Source: aiter@e4048607a5 ops/shuffle.py shuffle_weight_a16w4, shuffle_scale_a16w4,
// op_tests/test_moe_2stage.py; sglang quantization/mxfp4.py, models/gpt_oss.py
// _load_mxfp4_experts_weights, fp8.py Fp8MoEMethod (FP4 experts)

namespace moeref::backends {
namespace {

constexpr std::int64_t kBlock = 32;
constexpr std::int64_t kAlignment = 256;
constexpr std::int64_t kLanes = 16;

/// GPT-OSS (with biases) is cut by scale blocks, DeepSeek-V4 evenly.
Loader loader(const LayerShape& whole, const Options&) {
  return whole.bias ? Loader{LoaderKind::blocks, kBlock} : Loader{};
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  const std::int64_t padded = round_up(shape.stride, kAlignment);
  const std::int64_t hidden = round_up(shape.hidden, kAlignment);
  const bool interleaved = options.is("w13", "interleaved");
  const Steps halves = interleaved ? Steps{InterleaveHalves{kLanes}} : Steps{};
  // 16 bytes of two codes.
  const Steps codes{Tile{tiles::aiter_shuffle_weight(kLanes, 16, 4)}};
  const Steps scales{Tile{tiles::aiter_shuffle_scale()}};
  const Steps w13_rows{PadHalves{.to = padded}};
  const Steps w13_pads = w13_rows + Steps{PadCols{.to = hidden}};
  const Steps w2_rows{PadRows{.to = hidden}};
  const Steps w2_pads = w2_rows + Steps{PadCols{.to = padded}};
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, w13_pads, halves + codes),
      tensor("w13_scale", Slot::w13_scale, Steps{recode::to_e8m0(Slot::w13_scale)} + w13_pads,
             halves + scales),
      tensor("w2", Slot::w2, w2_pads, codes),
      tensor("w2_scale", Slot::w2_scale, Steps{recode::to_e8m0(Slot::w2_scale)} + w2_pads, scales),
  };
  if (shape.bias) {
    const auto f32 = [](Slot slot) { return Steps{recode::cast_floats(slot, DType::f32)}; };
    recipe.tensors.push_back(
        tensor("w13_bias", Slot::w13_bias, f32(Slot::w13_bias) + w13_rows, {}));
    recipe.tensors.push_back(tensor("w2_bias", Slot::w2_bias, f32(Slot::w2_bias) + w2_rows, {}));
  }
  recipe.scalars = {swiglu_limit()};
  recipe.kernel = aiter::block_scaled(shape, {padded, hidden, 1, kBlock}, Format::e2m1,
                                      aiter::decode_e8m0_scales);
  recipe.notes = {
      fmt::format("the call also takes hidden_pad = {}, intermediate_pad = {}",
                  hidden - shape.hidden, padded - shape.intermediate),
      "the biases keep all gate rows before all up rows, also beside interleaved weights",
      "the kernel's Swiglu has alpha 1.702 and beta 1 built in, and without a limit clamps at 7",
      "padding scales are 0x00, which aiter decodes as 2^-127; their weights are 0"};
  return recipe;
}

}  // namespace

const Backend aiter_a16w4{
    .name = "aiter_a16w4",
    .family = "AMD aiter",
    .summary = "MXFP4 weights, 16-bit activations (GPT-OSS, DeepSeek-V4): shuffle_*_a16w4",
    .formats = {"mxfp4"},
    .options = {{"w13",
                 {"separated", "interleaved"},
                 "separated: a16w4; interleaved (gate_up = True): a8w4, older GPT-OSS loaders"}},
    .rules = {{"hidden", kBlock, "", "a scale of w13 stands for 32 columns"},
              {"intermediate", kBlock, "", "a scale of w2 stands for 32 columns"}},
    .loader = loader,
    .recipe = recipe,
    .kernel_options = {aiter::weight_option()},
    .numerics =
        [](const NumericsRequest& request) { return aiter::numerics(request, "aiter_a16w4", {}); },
    .replay = {ReplayEvidence::none, "AMD kernels were not measured",
               "read from the open reference; the kernels are closed"},
};

}  // namespace moeref::backends
