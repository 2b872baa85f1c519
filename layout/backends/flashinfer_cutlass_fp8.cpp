#include "layout/backends/cutlass_parts.hpp"
#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/recode/max_requantize.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "flashinfer_cutlass_fp8";
constexpr std::int64_t kAlignment = 16;  // 128 bits of weights

float a1(const ExpertScalars& scalars) { return max_input_scale_13(scalars, kName); }
float a2(const ExpertScalars& scalars) { return max_input_scale_2(scalars, kName); }

/// Source: sglang modelopt_quant.py ModelOptFp8MoEMethod, sglang@01068614
/// moe_runner/flashinfer_cutlass.py
std::vector<ScalarRecipe> scalars() {
  return {
      {.name = "fc1_dequant",
       .formula = "max(w13_scale[e]) * a1, a1 = max(w13_input_scale)",
       .values = [](const ExpertScalars& s,
                    const LayerShape& shape) { return times(a1(s), recode::max_scale(s, shape)); }},
      one_scalar("fc2_quant", "1 / a2, a2 = max(w2_input_scale)",
                 [](const ExpertScalars& s) { return 1.0f / a2(s); }),
      {.name = "fc2_dequant",
       .formula = "a2 * w2_scale[e]",
       .values = [](const ExpertScalars& s,
                    const LayerShape&) { return times(a2(s), s.w2_scale); }},
      one_scalar("fc1_input_dequant", "a1", a1),
  };
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  const auto halves =
      options.is("order", "up_gate") ? cutlass::Halves::swapped : cutlass::Halves::as_loaded;
  const auto device = options.is("requantize", "cuda") ? TorchDevice::cuda : TorchDevice::cpu;
  const cutlass::Padding padding =
      cutlass::pad_to(round_up(shape.stride, kAlignment), shape.hidden, halves);
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, Steps{recode::max_requantize_w13(false, device)} + padding.w13, {}),
      tensor("w2", Slot::w2, padding.w2, {}),
  };
  cutlass::add_biases(recipe, shape, padding);
  recipe.scalars = scalars();
  if (shape.gated) {
    for (ScalarRecipe& array : swiglu_arrays()) recipe.scalars.push_back(std::move(array));
  }
  recipe.kernel = cutlass::reading(shape, padding, Format::e4m3);
  recipe.kernel.gate_factor = recipe.kernel.up_factor = factor("fc1_dequant");
  recipe.kernel.down_factor = factor("fc2_dequant");
  recipe.kernel.input_scale_13 = factor("fc1_input_dequant");
  recipe.kernel.input_scale_2 = reciprocal("fc2_quant");
  recipe.notes = {
      "SGLang loads gate, then up, and does not swap: right for models without a gate only",
      "a NO_SMEM epilogue tactic also needs hidden % 32 == 0, not gated intermediate % 32 == 0"};
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  Numerics numerics = cutlass::numerics(request, kName, Format::e4m3);
  numerics.input =
      by("sglang_fp8_static", {"math=" + request.kernel["input_math"]}, "fc1_input_dequant");
  numerics.activation.output = Format::f32;
  numerics.intermediate = by("flashinfer_fp8_static_moe", {}, "fc2_quant");
  numerics.intermediate.fused = true;
  return numerics;
}

}  // namespace

const Backend flashinfer_cutlass_fp8{
    .name = kName,
    .family = "FlashInfer CUTLASS",
    .summary = "FP8 weights and activations with one scale a tensor",
    .formats = {"fp8_tensor"},
    .options = {{"order",
                 {"up_gate", "gate_up_upstream"},
                 "gate_up_upstream: as SGLang loads it; the kernel takes gate for up"},
                {"requantize",
                 {"cuda", "cpu"},
                 "where w13 is requantized: cuda rounds its scales to FP16 first"}},
    .rules = {{"hidden", kAlignment, "", "FlashInfer binding: 128-bit loads of FP8 weights"}},
    .recipe = recipe,
    .kernel_options = {cutlass::finalize_option(),
                       {"input_math",
                        {"precise", "fast"},
                        "build of the kernel that quantizes the input: without fast math, or "
                        "sgl-kernel's SM90 library"}},
    .numerics = numerics,
    .replay = {ReplayEvidence::measured, "16 layers on an H200, FlashInfer fb28d7242"},
};

}  // namespace moeref::backends
