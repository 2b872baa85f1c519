#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/trtllm_parts.hpp"
#include "layout/recode/float_cast.hpp"

namespace moeref::backends {
namespace {

constexpr std::int64_t kBlock = 32;

/// GPT-OSS checkpoints are cut in whole scale blocks. Source: sglang models/gpt_oss.py
/// _load_mxfp4_experts_weights.
Loader loader(const LayerShape&, const Options&) { return {LoaderKind::blocks, kBlock}; }

/// The file's rows alternate gate, up; exchanging each pair gives what gate and up as halves,
/// exchanged and then alternating, give.
Recipe recipe(const LayerShape& shape, const Options& options) {
  const std::int64_t align = options.integer("align");
  const trtllm::Padding padding =
      trtllm::pad_halves(shape, align == 0 ? 1 : align, align == 0 ? 1 : align);
  Recipe recipe;
  recipe.tensors = trtllm::block_scaled_tensors(padding);
  if (shape.bias) {
    const auto bias = [](Slot slot) { return Steps{recode::cast_floats(slot, DType::f32)}; };
    const Steps halves{SwapHalves{}, PadHalves{.to = padding.intermediate}};
    const Steps rows{PadRows{.to = padding.hidden}};
    recipe.tensors.push_back(
        tensor("w13_bias", Slot::w13_bias, bias(Slot::w13_bias) + halves, trtllm::w13_rows()));
    recipe.tensors.push_back(
        tensor("w2_bias", Slot::w2_bias, bias(Slot::w2_bias) + rows, trtllm::w2_rows()));
  }
  recipe.scalars = trtllm::activation_arrays(options.is("arrays", "global"));
  recipe.kernel = trtllm::reading(shape, padding, Format::e2m1, Format::e8m0, 1, kBlock);
  recipe.notes = {"scales are labelled E4M3 in the call and hold E8M0 bytes",
                  "the input is padded to the padded hidden size, the output has the model's",
                  "arrays=global has one value for every expert of the layer: upstream's asserts "
                  "then fail under expert parallelism"};
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  Numerics numerics = trtllm::numerics(request, "flashinfer_trtllm_mxfp4");
  numerics.activation.output = Format::bf16;  // also what the quantizer reads
  if (request.kernel.is("activations", "mxfp8")) {
    numerics.input = numerics.intermediate = by("flashinfer_mxfp8");
  }
  return numerics;
}

}  // namespace

/// Source: sglang@bafa16ec quantization/mxfp4.py Mxfp4MoEMethod.process_weights_after_loading,
/// vllm@001eda31 fused_moe/oracle/mxfp4.py.
const Backend flashinfer_trtllm_mxfp4{
    .name = "flashinfer_trtllm_mxfp4",
    .family = "FlashInfer TRTLLM-Gen",
    .summary = "MXFP4 weights with biases (GPT-OSS), SM100",
    .formats = {"mxfp4"},
    .options = {{"align", {"N", "256"}, "hidden and rows of a half are padded to a multiple of it"},
                {"arrays",
                 {"local", "global"},
                 "swiglu arrays of the rank's experts, or of all experts of the layer"}},
    .rules = {{"hidden", kBlock, "", "a scale of w13 stands for 32 columns"},
              {"intermediate", kBlock, "", "a scale of w2 stands for 32 columns"},
              {"padded hidden", 4 * kBlock, "", trtllm::kAlignToScaleTiles},
              {"padded intermediate", 4 * kBlock, "", trtllm::kAlignToScaleTiles}},
    .loader = loader,
    .recipe = recipe,
    .kernel_options = {trtllm::router_weights_option("bf16"),
                       {"activations",
                        {"mxfp8", "bf16"},
                        "of the hidden states and between the GEMMs"}},
    .numerics = numerics,
    .replay = {ReplayEvidence::none, "closed kernels for Blackwell, not measured",
               "inferred from arguments and open helper kernels"},
};

}  // namespace moeref::backends
