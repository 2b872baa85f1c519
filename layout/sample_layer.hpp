#pragma once

#include <cstdint>
#include <string>

#include "quant/moe_layer.hpp"

namespace moeref {

/// A layer to try a backend on.
struct SampleShape {
  std::int64_t experts = 2;
  std::int64_t hidden = 256;
  std::int64_t intermediate = 256;
  bool gated = true;
  bool bias = false;
  std::string weight_format = "mxfp4";
  std::uint64_t seed = 0;
  /// Gate and up rows alternate in one tensor of all experts, as GPT-OSS stores them; otherwise
  /// every matrix has a tensor of its own.
  bool interleaved = false;
  float limit = kNoLimit;            ///< of the SiLU form; with `bias` the limit is GPT-OSS's 7
  Format tile_scales = Format::f32;  ///< of fp8_block: f32, bf16, or e8m0
};

/// Random finite codes of every kind, scales of neighbouring binades (gate and up of per-tensor and
/// global scales differ), input scales where the format has them. The same seed gives the same
/// bytes everywhere. GPT-OSS activation with `bias`, SiLU without, relu2 if not gated. No router.
/// The matrices have the form in which a loaded checkpoint has them; biases are bf16.
/// Error: an unknown format, a K that the format's block does not divide, no experts or rows,
/// scales that no checkpoint has, interleaved rows without two halves.
MoeLayer sample_layer(const SampleShape& shape);

}  // namespace moeref
