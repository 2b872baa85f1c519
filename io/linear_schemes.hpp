#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "io/quantization_config.hpp"
#include "quant/dtype.hpp"
#include "quant/scaled_matrix.hpp"

// The ways in which checkpoints store one linear layer, as a table.

namespace moeref {

/// What the dtype of a tensor can hold; U8 and I8 are raw bytes.
enum class Payload : std::uint8_t { bytes, e4m3, e8m0, plain_float, other };

inline Payload payload_of(DType dtype) {
  switch (dtype) {
    case DType::u8:
    case DType::i8:
      return Payload::bytes;
    case DType::f8_e4m3:
      return Payload::e4m3;
    case DType::f8_e8m0:
      return Payload::e8m0;
    case DType::bf16:
    case DType::f16:
    case DType::f32:
      return Payload::plain_float;
    default:
      return Payload::other;
  }
}

/// How the scales of a scheme are spread over the weight.
enum class ScaleSpread : std::uint8_t {
  none,
  groups_of_16,  ///< [N, K/16]
  groups_of_32,  ///< [N, K/32]
  config_block,  ///< [ceil(N/rows), ceil(K/cols)] by weight_block_size
  by_shape,      ///< one element, [N, 1], or the block grid
};

/// One way to store a linear layer: which tensors there are, of which payload.
struct Scheme {
  std::string_view format;
  std::string_view weight;  ///< suffix of the codes
  Payload weight_payload;
  std::string_view scale;  ///< suffix of the block scales
  std::array<Payload, 3> scale_payloads;
  ScaleSpread spread;
  std::string_view global;  ///< suffix of the factor of the whole tensor
  GlobalScaleRule rule;
};

inline constexpr Payload kNo = Payload::other;
inline constexpr std::array<Payload, 3> kE8M0{Payload::e8m0, Payload::bytes, kNo};
inline constexpr std::array<Payload, 3> kE4M3{Payload::e4m3, kNo, kNo};
inline constexpr std::array<Payload, 3> kFloat{Payload::plain_float, kNo, kNo};
inline constexpr std::array<Payload, 3> kAnyScale{Payload::plain_float, Payload::e8m0,
                                                  Payload::bytes};

inline constexpr std::array<Scheme, 10> kSchemes{{
    {weight_formats::kNvfp4Ct, ".weight_packed", Payload::bytes, ".weight_scale", kE4M3,
     ScaleSpread::groups_of_16, ".weight_global_scale", GlobalScaleRule::divide},
    {weight_formats::kMxfp4, ".weight_packed", Payload::bytes, ".weight_scale", kE8M0,
     ScaleSpread::groups_of_32, "", GlobalScaleRule::none},
    {weight_formats::kNvfp4, ".weight", Payload::bytes, ".weight_scale", kE4M3,
     ScaleSpread::groups_of_16, ".weight_scale_2", GlobalScaleRule::multiply},
    {weight_formats::kMxfp4, ".weight", Payload::bytes, ".scale", kE8M0, ScaleSpread::groups_of_32,
     "", GlobalScaleRule::none},
    {weight_formats::kMxfp4, ".weight", Payload::bytes, ".weight_scale", kE8M0,
     ScaleSpread::groups_of_32, "", GlobalScaleRule::none},
    {weight_formats::kFp8Block, ".weight", Payload::e4m3, ".weight_scale_inv", kAnyScale,
     ScaleSpread::config_block, "", GlobalScaleRule::none},
    {weight_formats::kFp8Block, ".weight", Payload::e4m3, ".scale", kAnyScale,
     ScaleSpread::config_block, "", GlobalScaleRule::none},
    {weight_formats::kMxfp8, ".weight", Payload::e4m3, ".weight_scale", kE8M0,
     ScaleSpread::groups_of_32, "", GlobalScaleRule::none},
    {weight_formats::kFp8Tensor, ".weight", Payload::e4m3, ".weight_scale", kFloat,
     ScaleSpread::by_shape, "", GlobalScaleRule::none},
    {"",
     ".weight",
     Payload::plain_float,
     "",
     {kNo, kNo, kNo},
     ScaleSpread::none,
     "",
     GlobalScaleRule::none},
}};

/// Every suffix that names a scale of the weight in some scheme.
inline constexpr std::array<std::string_view, 5> kScaleSuffixes{
    ".weight_scale", ".weight_scale_inv", ".scale", ".weight_scale_2", ".weight_global_scale"};
inline constexpr std::array<std::string_view, 2> kInputScaleSuffixes{".input_scale",
                                                                     ".input_global_scale"};
/// Tensors that change the value of a layer in ways that no known MoE release uses.
inline constexpr std::array<std::string_view, 4> kForeignSuffixes{
    ".pre_quant_scale", ".weight_zero_point", ".weight_g_idx", ".qweight"};

}  // namespace moeref
