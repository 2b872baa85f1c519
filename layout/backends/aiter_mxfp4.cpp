#include "layout/backends/aiter_parts.hpp"
#include "layout/backends/numerics_parts.hpp"

// Source: sglang@0007e6547eca quark/schemes/quark_w4a4_mxfp4_moe.py, sglang fp8.py Fp8MoEMethod
// (FP4 experts, SGLANG_USE_AITER_MOE_GU_ITLV = 0), aiter@e4048607a5 ops/shuffle.py shuffle_scale

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "aiter_mxfp4";
constexpr std::int64_t kBlock = 32;

/// Quark pads a rank's rows while loading; the FP4 experts of DeepSeek-V4 are padded afterwards.
Loader loader(const LayerShape&, const Options& options) {
  return options.is("loader", "padded") ? Loader{LoaderKind::padded, 256} : Loader{};
}

/// 128 bytes of w2's columns are 256 values.
std::int64_t padded_intermediate(const LayerShape& shape) {
  return 2 * moe_weight_sizes({.intermediate = shape.stride, .packed = true}).w2_down_dim;
}

Recipe recipe(const LayerShape& shape, const Options& options) {
  refuse_biases(shape, kName);
  const std::int64_t padded = padded_intermediate(shape);
  const Steps rows{PadHalves{.to = padded}};
  const Steps cols{PadCols{.to = padded}};
  const Steps codes = options.is("device", "gfx950") ? aiter::shuffled(4) : Steps{};
  // aiter shuffles the rows of all experts together. With whole tiles of 32 rows in each, and no
  // padding to 256, that is each expert on its own.
  TileLayout tile = tiles::aiter_e8m0_shuffle();
  tile.need_rows = 32;
  tile.need_cols = tile.pad_cols;
  tile.pad_rows = tile.pad_cols = 1;
  const Steps scales{Tile{tile}};
  Recipe recipe;
  recipe.tensors = {
      tensor("w13", Slot::w13, rows, codes),
      tensor("w13_scale", Slot::w13_scale, Steps{recode::to_e8m0(Slot::w13_scale)} + rows, scales),
      tensor("w2", Slot::w2, cols, codes),
      tensor("w2_scale", Slot::w2_scale, Steps{recode::to_e8m0(Slot::w2_scale)} + cols, scales),
  };
  recipe.kernel = aiter::block_scaled(shape, {padded, shape.hidden, 1, kBlock}, Format::e2m1,
                                      aiter::decode_e8m0_scales);
  recipe.notes = {
      "padding scales are 0x00, which aiter decodes as 2^-127; their weights are 0",
      "SGLang's a16w4 form of Quark weights needs functions that this aiter does not have"};
  return recipe;
}

}  // namespace

const Backend aiter_mxfp4{
    .name = kName,
    .family = "AMD aiter",
    .summary = "MXFP4 weights and activations (Quark W4A4): 16 x 16-byte tiles, e8m0_shuffle",
    .formats = {"mxfp4"},
    .options = {{"device", {"gfx950", "gfx942"}, "only gfx950 (MI355) shuffles the weights"},
                {"loader", {"padded", "unpadded"}, "unpadded: DeepSeek-V4, padded after loading"}},
    .rules = {{"hidden", 256, "",
               "e8m0_shuffle of [experts * rows, columns]: columns % 8, experts * rows % 256"},
              {"intermediate", kBlock, "", "a scale of w2 stands for 32 columns"}},
    .loader = loader,
    .recipe = recipe,
    .kernel_options = {aiter::weight_option()},
    .numerics =
        [](const NumericsRequest& request) {
          return aiter::numerics(request, "aiter_mxfp4", by("aiter_triton_mxfp4"));
        },
    .replay = {ReplayEvidence::none, "AMD kernels were not measured",
               "read from the open reference; the kernels are closed"},
};

}  // namespace moeref::backends
