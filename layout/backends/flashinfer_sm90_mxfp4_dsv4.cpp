#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/sm90_parts.hpp"
#include "quant/error.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "flashinfer_sm90_mxfp4_dsv4";

Recipe recipe(const LayerShape& shape, const Options& options) {
  if (shape.bias) {
    fail(kName, "passes no bias, but {} has biases; use flashinfer_sm90_mxfp4", shape.model);
  }
  return sm90::recipe(kName, shape, options, shape.stride, shape.hidden);
}

}  // namespace

/// Source: sglang@01a6f276 quantization/mxfp4_flashinfer_cutlass_moe.py
const Backend flashinfer_sm90_mxfp4_dsv4{
    .name = kName,
    .family = "FlashInfer SM90 mixed input",
    .summary = "MXFP4 weights (DeepSeek-V4), bf16 or FP8 activations, Hopper",
    .formats = {"mxfp4"},
    .options = sm90::options(),
    .rules = {{"hidden", sm90::kTile, "", "tiles of 128 along the contraction, no padding"},
              {"intermediate", sm90::kTile, "", "tiles of 128 along the contraction, no padding"}},
    .recipe = recipe,
    .kernel_options = {{"tile_k",
                        {"128", "256"},
                        "K of the tactic's tile, which must divide the padded K"}},
    .numerics =
        [](const NumericsRequest& request) {
          Numerics numerics =
              sm90::numerics(request, kName, request.shape.stride, request.shape.hidden);
          numerics.combine.scaling = ScalingPoint::with_shared;
          return numerics;
        },
    .replay = {ReplayEvidence::measured, "6 layers on an H200, FlashInfer fb28d7242"},
};

}  // namespace moeref::backends
