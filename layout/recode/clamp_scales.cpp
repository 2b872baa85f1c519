#include "layout/recode/clamp_scales.hpp"

#include <cstring>
#include <memory>

namespace moeref::recode {
namespace {

class ClampScales final : public Recoder {
 public:
  std::string name() const override { return "clamp_scales"; }
  int in_bits() const override { return 32; }
  int out_bits() const override { return 32; }
  void rewrite(const Place&, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    constexpr float kSmallest = 1e-10f;
    for (std::size_t at = 0; at < in.size(); at += sizeof(float)) {
      float stored = 0.0f;
      std::memcpy(&stored, in.data() + at, sizeof stored);
      const float clamped = stored < kSmallest ? kSmallest : stored;
      std::memcpy(out.data() + at, &clamped, sizeof clamped);
    }
  }
};

}  // namespace

Recode clamp_scales() {
  return {.name = "clamp_scales",
          .summary = "f32 scales to at least 1e-10",
          .out_bits = 32,
          .dtype = DType::f32,
          .make = [](const LayerTensors&) { return std::make_shared<const ClampScales>(); },
          .needs_layer = false};
}

}  // namespace moeref::recode
