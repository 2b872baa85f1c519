#pragma once

#include <string_view>

#include "layout/backends/recipe_parts.hpp"

// What the TRTLLM-Gen backends share: padding, checks, and how the kernels read.

namespace moeref::backends::trtllm {

/// FlashInfer shuffles weight rows for an epilogue tile of 128 rows (64 for 128 x 128 FP8 blocks).
inline constexpr std::int64_t kEpilogueTile = 128;

/// loader=padded: SGLang rounds the rows of every rank up to 128 and zero-fills; unpadded: vLLM.
OptionInfo loader_option();
/// Source: sglang layers/moe/fused_moe_triton/layer.py FusedMoE.__init__, use_padded_loading.
Loader loader(const LayerShape& shape, const Options& options);
/// pad=per_half keeps gate and up paired; whole_upstream appends to the fused rows as
/// sglang@02962d78 flashinfer_trtllm.py _align_*_moe_weights and vllm@00af4049 flashinfer_utils.py
/// align_*_moe_weights do.
OptionInfo pad_option();
/// align=N: the multiple; 0 = what the kernel needs, with whole_upstream the helpers' own (16
/// gated, 128 not gated).
OptionInfo align_option();

/// Sizes that the kernel sees, and the framework's steps that lead to them.
struct Padding {
  std::int64_t intermediate = 0;
  std::int64_t hidden = 0;
  Steps w13;  ///< halves to up, gate, then rows, then columns
  Steps w2;
};
/// Each half to a multiple of `multiple` rows, K of w13 and rows of w2 to one of
/// `hidden_multiple`; no option.
Padding pad_halves(const LayerShape& shape, std::int64_t multiple, std::int64_t hidden_multiple);
/// As the options pad and align say; `multiple` is what the kernel needs.
Padding pad_by_options(const LayerShape& shape, const Options& options, std::int64_t multiple,
                       std::int64_t hidden_multiple);

/// The order of the kernel's rows: up and gate alternate, then the shuffle.
Steps w13_rows();
Steps w2_rows();

/// Reasons of rules about block scales: callers see the swizzled bytes as [rows, columns] again,
/// which works only without padding.
/// Source: flashinfer@fb28d7242 utils.py get_shuffle_matrix_sf_a_row_indices, vllm@01b817db
/// flashinfer_fp4_moe.py prepare_static_weights_for_trtllm_fp4_moe.
inline constexpr std::string_view kScaleTiles =
    "the scale tiles have 128 rows and 4 columns and are not padded";
inline constexpr std::string_view kAlignToScaleTiles =
    "the scale tiles have 128 rows and 4 columns and are not padded; choose another align";

/// First half of the rows linear (up), second gate. Source: flashinfer@fb28d7242 fused_moe/core.py,
/// trtllm_fused_moe_dev_kernel.cu.
KernelReading reading(const LayerShape& shape, const Padding& padding, Format codes);
/// Adds block scales.
KernelReading reading(const LayerShape& shape, const Padding& padding, Format codes, Format scales,
                      std::int64_t block_rows, std::int64_t block_cols);

/// w13, w13_scale, w2, w2_scale: shuffled rows, the scales in 128 x 4 tiles.
std::vector<TensorRecipe> block_scaled_tensors(const Padding& padding);

/// One value of ExpertScalars for each local expert, or for all experts of the layer if `all` (they
/// must then be the same: the shard does not see the others). Not passed if the layer is not gated
/// or no expert has a limit.
ScalarRecipe activation_array(std::string name, std::vector<float> ExpertScalars::*values,
                              bool all = false);
/// swiglu_alpha, swiglu_beta, swiglu_limit.
std::vector<ScalarRecipe> activation_arrays(bool all);

}  // namespace moeref::backends::trtllm
