#include <algorithm>

#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/backends/trtllm_parts.hpp"
#include "layout/recode/max_requantize.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "flashinfer_trtllm_fp8";
constexpr std::string_view kRowShuffle =
    "the row shuffle moves blocks of 32 rows of w13; choose another align";

/// The scale of both halves of w13 of each expert.
std::vector<float> w13_scale(const ExpertScalars& scalars, const LayerShape& shape,
                             bool requantized) {
  if (requantized) return recode::max_scale(scalars, shape);
  const auto halves = static_cast<std::size_t>(shape.halves());
  std::vector<float> scales;
  for (std::size_t e = 0; e < scalars.w13_scale.size(); e += halves) {
    const float first = scalars.w13_scale[e];
    const float last = scalars.w13_scale[e + halves - 1];
    if (first != last) {
      fail(kName,
           "expert {} has the scales {} (gate) and {} (up), the kernel takes one; choose "
           "requantize=max",
           shape.first_expert + static_cast<std::int64_t>(e / halves), first, last);
    }
    scales.push_back(first);
  }
  return scales;
}

/// All products from left to right in f32; a1, a2: the largest activation scales of the layer.
/// Source: sglang@02962d78 flashinfer_trtllm.py align_fp8_moe_weights_for_flashinfer_trtllm.
std::vector<ScalarRecipe> scalars(const LayerShape& shape, bool requantized) {
  const auto a1 = [](const ExpertScalars& s) { return max_input_scale_13(s, kName); };
  const auto a2 = [](const ExpertScalars& s) { return max_input_scale_2(s, kName); };
  const auto gate = [a1, requantized](const ExpertScalars& s, const LayerShape& layer) {
    std::vector<float> values = w13_scale(s, layer, requantized);
    for (float& value : values) value = value * a1(s);
    return values;
  };
  const auto output1 = [a2, gate](const ExpertScalars& s, const LayerShape& layer) {
    const float quant = 1.0f / a2(s);
    if (!layer.gated) {
      return std::vector<float>(static_cast<std::size_t>(layer.experts), 1.0f * quant);
    }
    std::vector<float> values = gate(s, layer);
    for (float& value : values) value = value * quant;
    return values;
  };
  const auto output2 = [a2](const ExpertScalars& s, const LayerShape&) {
    std::vector<float> values = s.w2_scale;
    for (float& value : values) value = a2(s) * value;
    return values;
  };
  return {
      {"output1_scale", shape.gated ? "w13_scale[e] * a1 * (1 / a2)" : "1 * (1 / a2)", true,
       output1},
      {"output1_scale_gate", "w13_scale[e] * a1", true, gate},
      {"output2_scale", "a2 * w2_scale[e]", true, output2},
      {"w13_input_scale", "a1 = max(w13_input_scale)", false,
       [a1](const ExpertScalars& s, const LayerShape&) { return std::vector<float>{a1(s)}; }},
      {"w2_input_scale", "a2 = max(w2_input_scale)", false,
       [a2](const ExpertScalars& s, const LayerShape&) { return std::vector<float>{a2(s)}; }},
  };
}

/// The activation takes the gate's accumulator times output1_scale_gate; up times output1_scale has
/// 1 / a2, the quantization of GEMM2's input, in it. Not gated: output1_scale_gate is the whole
/// factor before the activation.
KernelReading reading(const LayerShape& shape, const trtllm::Padding& padding) {
  KernelReading kernel = trtllm::reading(shape, padding, Format::e4m3);
  kernel.gate_factor = factor("output1_scale_gate");
  kernel.up_factor = kernel.gate_factor;
  if (shape.gated) {
    kernel.up_factor = [output1 = factor("output1_scale"), a2 = factor("w2_input_scale")](
                           const ScalarValues& values, std::int64_t expert) {
      return output1(values, expert) * a2(values, expert);
    };
  }
  kernel.down_factor = factor("output2_scale");
  kernel.input_scale_13 = factor("w13_input_scale");
  kernel.input_scale_2 = factor("w2_input_scale");
  return kernel;
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  refuse_biases(shape, kName);
  const bool requantized = options.is("requantize", "max");
  trtllm::Padding padding = trtllm::pad_by_options(shape, options, shape.gated ? 16 : 128, 1);
  if (options.is("pad", "whole_upstream") && options.is("loader", "unpadded")) {
    // vLLM appends to gate, up and swaps at the middle of what that gives; SGLang swaps first.
    std::erase_if(padding.w13,
                  [](const Step& step) { return std::holds_alternative<SwapHalves>(step); });
    const auto pad = std::find_if(padding.w13.begin(), padding.w13.end(), [](const Step& step) {
      return std::holds_alternative<PadRows>(step);
    });
    padding.w13.insert(pad + 1, SwapHalves{});
  }
  const Steps requantize = requantized ? Steps{Step{recode::max_requantize_w13()}} : Steps{};
  Recipe recipe;
  recipe.tensors = {tensor("w13", Slot::w13, requantize + padding.w13, trtllm::w13_rows()),
                    tensor("w2", Slot::w2, padding.w2, trtllm::w2_rows())};
  recipe.scalars = scalars(shape, requantized);
  recipe.kernel = reading(shape, padding);
  recipe.notes = {
      "SGLang's Fp8 method loads up first, its ModelOpt method swaps afterwards: the same bytes",
      "the activation scales are the maxima over all experts of the layer",
      "the kernel takes no alpha, beta or limit here"};
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  Numerics numerics = trtllm::numerics(request, kName);
  numerics.gemm1.factor = numerics.gemm2.factor = SumFactor::expert;
  numerics.input = by("sglang_fp8_static", {}, "w13_input_scale");
  numerics.intermediate = by("flashinfer_fp8_static_moe", {}, "w2_input_scale");
  numerics.intermediate.inverts_scale = true;
  numerics.combine.scaling = ScalingPoint::after_sum;
  return numerics;
}

}  // namespace

const Backend flashinfer_trtllm_fp8{
    .name = kName,
    .family = "FlashInfer TRTLLM-Gen",
    .summary = "FP8 weights and activations, one scale a tensor, SM100",
    .formats = {"fp8_tensor"},
    .options = {trtllm::loader_option(),
                trtllm::pad_option(),
                trtllm::align_option(),
                {"requantize",
                 {"max", "off"},
                 "max: gate and up to their larger scale; off: they must have one scale"},
                swiglu_option()},
    .rules = {{"hidden", 32, "", "the row shuffle moves blocks of 32 rows of w2"},
              {"padded intermediate", 16, "gated", kRowShuffle},
              {"padded intermediate", 32, "not gated", kRowShuffle}},
    .loader = trtllm::loader,
    .recipe = recipe,
    .kernel_options = {trtllm::router_weights_option("bf16")},
    .numerics = numerics,
    .replay = {ReplayEvidence::none, "closed kernels for Blackwell, not measured",
               "inferred from arguments and open helper kernels"},
};

}  // namespace moeref::backends
