#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/backends/trtllm_parts.hpp"
#include "layout/recode/ue8m0.hpp"
#include "layout/tiles/nvidia.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "flashinfer_trtllm_fp8_block";
constexpr std::int64_t kBlock = 128;
constexpr std::int64_t kEpilogueTile = 64;

Recipe recipe(const LayerShape& shape, const Options& options) {
  refuse_biases(shape, kName);
  const trtllm::Padding padding = trtllm::pad_halves(shape, kBlock, 1);
  const Steps kernel = options.is("layout", "block_major_k")
                           ? Steps{ShuffleRows{kEpilogueTile}, Tile{tiles::block_major_k(kBlock)}}
                           : Steps{};
  const auto scales = [&options](Slot slot) {
    const Steps clamp = clamped_scales(options);
    return Steps{recode::scales_to_f32(slot, kBlock)} + clamp;
  };
  Recipe recipe;
  recipe.tensors = {tensor("w13", Slot::w13, padding.w13, kernel),
                    tensor("w13_scale", Slot::w13_scale, scales(Slot::w13_scale) + padding.w13, {}),
                    tensor("w2", Slot::w2, padding.w2, kernel),
                    tensor("w2_scale", Slot::w2_scale, scales(Slot::w2_scale) + padding.w2, {})};
  recipe.kernel = trtllm::reading(shape, padding, Format::e4m3, Format::f32, kBlock, kBlock);
  recipe.notes = {"up and gate do not alternate in this kernel",
                  "activation scales are passed transposed, [hidden / 128, tokens]",
                  "the kernel takes no alpha, beta or limit"};
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  Numerics numerics = trtllm::numerics(request, "flashinfer_trtllm_fp8_block");
  numerics.input = by("sglang_fp8_group");
  numerics.gemm1_output = by("trtllm_fp8_group");
  numerics.intermediate = by("trtllm_fp8_group");
  return numerics;
}

}  // namespace

/// Source: sglang@02962d78 flashinfer_trtllm.py (major_k), vllm@00af4049 flashinfer_utils.py
/// _shuffle_deepseek_fp8_moe_weights (block_major_k).
const Backend flashinfer_trtllm_fp8_block{
    .name = kName,
    .family = "FlashInfer TRTLLM-Gen",
    .summary = "FP8 with f32 scales of 128 x 128 (DeepSeek), SM100",
    .formats = {"fp8_block"},
    .options = {{"layout",
                 {"major_k", "block_major_k"},
                 "major_k: rows as they are (SGLang); block_major_k: shuffled, K in blocks (vLLM)"},
                trtllm::loader_option(),
                clamp_scales_option(),
                swiglu_option()},
    .rules = {{"hidden", kBlock, "", "FlashInfer checks scale shapes of exactly / 128"},
              {"intermediate", kBlock, "", "FlashInfer checks intermediate_size % 128 == 0"}},
    .loader = trtllm::loader,
    .recipe = recipe,
    .kernel_options = {trtllm::router_weights_option("f32")},
    .numerics = numerics,
    .replay = {ReplayEvidence::none, "closed kernels for Blackwell, not measured",
               "inferred from arguments and open helper kernels"},
};

}  // namespace moeref::backends
