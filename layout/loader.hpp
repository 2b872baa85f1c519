#pragma once

#include <cstdint>
#include <string_view>

namespace moeref {

/// How T tensor-parallel ranks share the I rows of each half of w13, and the columns of w2: which
/// rows rank r gets. Error, of every kind: T does not divide I.
enum class LoaderKind : std::uint8_t {
  even,    ///< I / T rows each
  padded,  ///< rank r takes rows [r P, min((r + 1) P, I)), P = I / T rounded up to `multiple`; it
           ///< may get fewer, or none
  blocks,  ///< I / multiple blocks, ceil(blocks / T) for each rank until none are left (GPT-OSS:
           ///< 32)
};

/// Source: sglang layers/moe/fused_moe_triton/layer.py _load_w13, _load_w2;
/// model_loader/weight_utils.py narrow_padded_param_and_loaded_weight; models/gpt_oss.py
/// _load_mxfp4_experts_weights.
struct Loader {
  LoaderKind kind = LoaderKind::even;
  std::int64_t multiple = 1;
};

/// What a rank loads of `intermediate` rows.
struct LoadedRange {
  std::int64_t begin = 0;
  std::int64_t count = 0;   ///< may be 0
  std::int64_t stride = 0;  ///< what every rank has room for
};

/// Error: a size that the loader cannot cut; the rank outside the group.
LoadedRange loaded_range(const Loader& loader, std::int64_t intermediate, std::int64_t rank,
                         std::int64_t ranks);

}  // namespace moeref
