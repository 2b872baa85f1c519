#include "layout/backends/recipe_parts.hpp"
#include "layout/tiles/nvidia.hpp"

namespace moeref::backends {
namespace {

constexpr std::int64_t kEpilogueTile = 128;

Loader loader(const LayerShape&, const Options& options) {
  return options.is("loader", "padded") ? Loader{LoaderKind::padded, 128} : Loader{};
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  const std::int64_t padded = round_up(shape.stride, shape.gated ? 64 : 128);
  const Step pad = options.is("pad", "per_half") ? Step{PadHalves{.to = padded}}
                                                 : Step{PadRows{.to = padded * shape.halves()}};
  const Steps w13_rows{InterleaveHalves{1}, ShuffleRows{kEpilogueTile}};
  const Steps w2_rows{ShuffleRows{kEpilogueTile}};
  const Steps swizzle{Tile{tiles::swizzle_128x4()}};
  const Steps w13_framework{SwapHalves{}, pad};
  const Steps w2_framework{PadCols{.to = padded}};
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, w13_framework, w13_rows),
      tensor("w13_scale", Slot::w13_scale, w13_framework, w13_rows + swizzle),
      tensor("w2", Slot::w2, w2_framework, w2_rows),
      tensor("w2_scale", Slot::w2_scale, w2_framework, w2_rows + swizzle),
  };
  return recipe;
}

}  // namespace

const Backend flashinfer_trtllm_nvfp4{
    .name = "flashinfer_trtllm_nvfp4",
    .family = "FlashInfer TRTLLM-Gen",
    .summary = "NVFP4 weights and activations, SM100",
    .formats = {"nvfp4", "nvfp4_ct"},
    .options = {{"loader", {"padded", "unpadded"}, "SGLang rounds the rank's rows up to 128"},
                {"pad", {"per_half", "whole_upstream"}, "whole_upstream moves the half boundary"}},
    .rules = {{"hidden", 128, "", "the scale tiles of w2 have 128 rows and are not padded"}},
    .loader = loader,
    .recipe = recipe,
};

}  // namespace moeref::backends
