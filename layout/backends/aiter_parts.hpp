#pragma once

#include "layout/backends/fp8_device.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/recipe_parts.hpp"
#include "layout/moe_weight_sizes.hpp"
#include "layout/recode/float_cast.hpp"
#include "layout/tiles/aiter.hpp"

// What the aiter backends share.

namespace moeref::backends::aiter {

/// FP8 codes of gfx942 (MI300) are E4M3FNUZ, of gfx950 (MI355) E4M3FN.
inline OptionInfo device_option() {
  return {"device", {"gfx942", "gfx950"}, "gfx942 (MI300) has E4M3FNUZ, gfx950 (MI355) E4M3FN"};
}
inline Fp8Device device(const Options& options) { return {options.is("device", "gfx942")}; }

/// Every rank gets I / T rows rounded up to 128; gate, up and the columns of w2 each end in zeros.
inline Loader padded_to_128(const LayerShape&, const Options&) { return {LoaderKind::padded, 128}; }
/// Rows of a half and columns of w2 that SGLang allocates for FP8 codes.
inline std::int64_t padded_fp8(const LayerShape& shape) {
  return moe_weight_sizes({.intermediate = shape.stride}).w2_down_dim;
}

/// shuffle_weight((16, 16)) of codes of `bits`.
inline Steps shuffled(int bits) { return {Tile{tiles::aiter_shuffle_weight(16, 16, bits)}}; }

/// E8M0 bytes as aiter's e8m0_to_f32 reads them.
inline std::vector<float> decode_e8m0_scales(std::span<const std::byte> scales) {
  std::vector<float> values;
  values.reserve(scales.size());
  for (const std::byte scale : scales) {
    values.push_back(decode_e8m0(std::to_integer<std::uint8_t>(scale), E8M0Decoder::aiter));
  }
  return values;
}

/// A kernel with block scales for both weights: gate rows, then up rows, `intermediate` each.
struct Sizes {
  std::int64_t intermediate;
  std::int64_t hidden;
  std::int64_t block_rows;
  std::int64_t block_cols;
};
inline KernelReading block_scaled(const LayerShape& shape, const Sizes& sizes, Format codes,
                                  const ScaleDecoder& scales) {
  KernelReading kernel;
  kernel.order = gate_first(shape);
  kernel.intermediate = sizes.intermediate;
  kernel.hidden = sizes.hidden;
  kernel.codes = codes;
  kernel.block_rows = sizes.block_rows;
  kernel.block_cols = sizes.block_cols;
  kernel.w13_scale = scales;
  kernel.w2_scale = scales;
  return kernel;
}

inline constexpr std::string_view kColumnsOf32 =
    "aiter shuffle_weight((16, 16)): whole groups of 2 x 16 bytes of w13's columns";

}  // namespace moeref::backends::aiter
