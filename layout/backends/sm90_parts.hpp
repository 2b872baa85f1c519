#pragma once

#include <string_view>
#include <vector>

#include "layout/backends/cutlass_parts.hpp"

// FlashInfer's CUTLASS kernels for MXFP4 weights on Hopper, from the framework's padding on.

namespace moeref::backends::sm90 {

inline constexpr std::int64_t kTile = 128;  ///< of the contraction

/// layout (v2, v1, raw), variant (w4a16, humming), max_range.
std::vector<OptionInfo> options();

/// A layer padded to `intermediate` and `hidden`, multiples of 128.
/// Error (names the backend): the variant humming with an older layout; a max_range above 11.
Recipe recipe(std::string_view backend, const LayerShape& shape, const Options& options,
              std::int64_t intermediate, std::int64_t hidden);

/// bf16 activations; chains of 32 columns joined under the scale of each block of weights.
/// `intermediate`, `hidden` as padded: what the two GEMMs sum over. Error: variant=humming; a
/// tile_k that does not divide them.
/// Source: flashinfer@fb28d7242b35 moe_gemm_tma_ws_mixed_input_launcher.inl; measured on an H200.
Numerics numerics(const NumericsRequest& request, std::string_view backend,
                  std::int64_t intermediate, std::int64_t hidden);

}  // namespace moeref::backends::sm90
