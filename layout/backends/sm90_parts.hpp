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

}  // namespace moeref::backends::sm90
