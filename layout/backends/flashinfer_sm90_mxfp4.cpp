#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/sm90_parts.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "flashinfer_sm90_mxfp4";
constexpr std::int64_t kBlock = 32;

/// Source: sglang models/gpt_oss.py _load_mxfp4_experts_weights
Loader loader(const LayerShape&, const Options&) { return {LoaderKind::blocks, kBlock}; }

Recipe recipe(const LayerShape& shape, const Options& options) {
  Recipe recipe = sm90::recipe(kName, shape, options, round_up(shape.stride, sm90::kTile),
                               round_up(shape.hidden, sm90::kTile));
  recipe.notes.emplace_back(
      "SGLang's buffer holds intermediate / T rows: it fails where a rank's blocks of 32 are more");
  return recipe;
}

}  // namespace

/// Source: sglang quantization/mxfp4.py _process_weights_for_sm90_cutlass
const Backend flashinfer_sm90_mxfp4{
    .name = kName,
    .family = "FlashInfer SM90 mixed input",
    .summary = "MXFP4 weights (GPT-OSS), bf16 or FP8 activations, Hopper",
    .formats = {"mxfp4"},
    .options = sm90::options(),
    .rules = {{"hidden", kBlock, "", "whole scale blocks of 32"},
              {"intermediate", kBlock, "", "whole scale blocks of 32"}},
    .loader = loader,
    .recipe = recipe,
    .kernel_options = {{"tile_k",
                        {"128", "256"},
                        "K of the tactic's tile, which must divide the padded K"}},
    .numerics =
        [](const NumericsRequest& request) {
          return sm90::numerics(request, kName, round_up(request.shape.stride, sm90::kTile),
                                round_up(request.shape.hidden, sm90::kTile));
        },
    .replay = {ReplayEvidence::measured, "12 layers on an H200, FlashInfer fb28d7242"},
};

}  // namespace moeref::backends
