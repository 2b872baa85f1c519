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
};

/// Random finite codes of every kind, scales of neighbouring binades (gate and up of per-tensor and
/// global scales differ), input scales where the format has them. The same seed gives the same
/// bytes everywhere. GPT-OSS activation with `bias`, SiLU without, relu2 if not gated. No router.
/// Error: an unknown format, a K that the format's block does not divide.
MoeLayer sample_layer(const SampleShape& shape);

}  // namespace moeref
