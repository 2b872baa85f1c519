#include "layout/backends/numerics_parts.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/scalars.hpp"
#include "layout/backends/trtllm_parts.hpp"
#include "layout/tiles/nvidia.hpp"

namespace moeref::backends {
namespace {

constexpr std::string_view kName = "flashinfer_trtllm_bf16";
/// Blocks of 128 bytes. Source: vllm@00af4049 flashinfer_utils.py
/// convert_moe_weights_to_flashinfer_trtllm_block_layout.
constexpr std::int64_t kBlock = 64;

Recipe recipe(const LayerShape& shape, const Options& options) {
  refuse_biases(shape, kName);
  // The launcher wants multiples of 128, the layout itself only of 64.
  const trtllm::Padding padding = trtllm::pad_by_options(shape, options, 128, 1);
  const Steps blocks{Tile{tiles::block_major_k(kBlock)}};
  Recipe recipe;
  recipe.tensors = {tensor("w13", Slot::w13, padding.w13, trtllm::w13_rows() + blocks),
                    tensor("w2", Slot::w2, padding.w2, trtllm::w2_rows() + blocks)};
  recipe.kernel = trtllm::reading(shape, padding, Format::bf16);
  return recipe;
}

Numerics numerics(const NumericsRequest& request) {
  Numerics numerics = trtllm::numerics(request, "flashinfer_trtllm_bf16");
  numerics.activation.output = Format::bf16;
  return numerics;
}

}  // namespace

const Backend flashinfer_trtllm_bf16{
    .name = kName,
    .family = "FlashInfer TRTLLM-Gen",
    .summary = "BF16 weights in blocks of 128 bytes of K, SM100",
    .formats = {"bf16"},
    .options = {trtllm::loader_option(), trtllm::pad_option(), trtllm::align_option(),
                swiglu_option()},
    .rules = {{"hidden", kBlock, "",
               "blocks of 128 bytes of K (BlockMajorK), whole 32-row shuffles"},
              {"padded intermediate", kBlock, "",
               "blocks of 128 bytes of w2's K, whole 32-row shuffles; choose another align"}},
    .loader = trtllm::loader,
    .recipe = recipe,
    .kernel_options = {trtllm::router_weights_option("f32")},
    .numerics = numerics,
    .replay = {ReplayEvidence::none, "closed kernels for Blackwell, not measured",
               "inferred from arguments and open helper kernels"},
};

}  // namespace moeref::backends
