#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/backends/trtllm_parts.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "flashinfer_trtllm_mxfp8";
constexpr std::int64_t kBlock = 32;

Recipe recipe(const LayerShape& shape, const Options& options) {
  refuse_biases(shape, kName);
  const trtllm::Padding padding = trtllm::pad_by_options(shape, options, 4 * kBlock, 1);
  Recipe recipe;
  recipe.tensors = trtllm::block_scaled_tensors(padding);
  recipe.kernel = trtllm::reading(shape, padding, Format::e4m3, Format::e8m0, 1, kBlock);
  recipe.notes = {"activations are quantized to MXFP8 with linear scales"};
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  Numerics numerics = trtllm::numerics(request, "flashinfer_trtllm_mxfp8");
  numerics.input = numerics.intermediate = by("flashinfer_mxfp8");
  numerics.activation.output = Format::bf16;  // what the quantizer reads
  return numerics;
}

}  // namespace

/// Source: vllm@00af4049 flashinfer_utils.py swap_w13_to_w31, _shuffle_mxfp8_moe_weights;
/// sglang@02962d78 flashinfer_trtllm.py align_mxfp8_moe_weights_for_flashinfer_trtllm.
const Backend flashinfer_trtllm_mxfp8{
    .name = kName,
    .family = "FlashInfer TRTLLM-Gen",
    .summary = "MXFP8 weights and activations, SM100",
    .formats = {"mxfp8"},
    .options = {trtllm::loader_option(), trtllm::pad_option(), trtllm::align_option(),
                swiglu_option()},
    .rules = {{"hidden", 4 * kBlock, "", trtllm::kScaleTiles},
              {"padded intermediate", 4 * kBlock, "", trtllm::kAlignToScaleTiles}},
    .loader = trtllm::loader,
    .recipe = recipe,
    .kernel_options = {trtllm::router_weights_option("f32")},
    .numerics = numerics,
    .replay = {ReplayEvidence::none, "closed kernels for Blackwell, not measured",
               "inferred from arguments and open helper kernels"},
};

}  // namespace moeref::backends
