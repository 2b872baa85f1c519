#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/recipe_parts.hpp"
#include "layout/recode/requantize_ue8m0.hpp"
#include "layout/recode/ue8m0.hpp"
#include "layout/tiles/deepgemm.hpp"

namespace moeref::backends {
namespace {

constexpr std::int64_t kBlock = 128;

Recipe recipe(const LayerShape& shape, const Options& options) {
  refuse_biases(shape, "deepgemm_fp8_ue8m0");
  const bool requantize = options.is("requantize", "on");
  const auto codes = [requantize](std::string name, Slot slot) {
    return tensor(std::move(name), slot,
                  requantize ? Steps{recode::requantize_ue8m0_codes(slot)} : Steps{}, {});
  };
  // A block's scale for each of its rows, then packed.
  const auto scales = [requantize](std::string name, Slot weight, Slot slot, std::int64_t rows) {
    const Step exponents =
        requantize ? recode::requantize_ue8m0_scales(weight) : recode::power_of_two_scales(slot);
    return tensor(std::move(name), slot, {exponents, RepeatRows{kBlock, rows}},
                  {Tile{tiles::deepgemm_pack_ue8m0()}});
  };
  Recipe recipe;
  recipe.tensors = {
      codes("w13", Slot::w13),
      scales("w13_scale", Slot::w13, Slot::w13_scale, shape.halves() * shape.intermediate),
      codes("w2", Slot::w2),
      scales("w2_scale", Slot::w2, Slot::w2_scale, shape.hidden),
  };
  recipe.kernel = {
      .order = gate_first(shape),
      .intermediate = shape.intermediate,
      .hidden = shape.hidden,
      .codes = Format::e4m3,
      .block_rows = 1,
      .block_cols = kBlock,
      .w13_scale = decode_as(Format::e8m0),
      .w2_scale = decode_as(Format::e8m0),
  };
  return recipe;
}

}  // namespace

/// Source: sglang@002ed7e465ec fp8_utils.py requant_weight_ue8m0; sglang@007baab6e1d2
/// moe_runner/deep_gemm.py; DeepGEMM@54e2261 deep_gemm/utils/math.py ceil_to_ue8m0,
/// transform_sf_into_required_layout (packed scales on SM100)
const Backend deepgemm_fp8_ue8m0{
    .name = "deepgemm_fp8_ue8m0",
    .family = "DeepGEMM",
    .summary = "FP8 weights requantized to power-of-two scales, packed, SM100",
    .formats = {"fp8_block"},
    .options = {{"requantize", {"on", "off"}, "off: the scales already are powers of two"}},
    .rules = {{"intermediate", kBlock, "", "SGLang create_weights: a block must not cross halves"},
              {"hidden", kBlock, "", "the requantizer takes all experts as one matrix of blocks"}},
    .loader = nullptr,
    .recipe = recipe,
    .kernel_options = deepgemm::kernel_options(),
    .numerics =
        [](const NumericsRequest& request) {
          return deepgemm::numerics(request, "deepgemm_fp8_ue8m0", true);
        },
    .replay = {ReplayEvidence::none, "its activation and reorder kernels were not measured"},
};

}  // namespace moeref::backends
