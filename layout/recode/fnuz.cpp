#include "layout/recode/fnuz.hpp"

#include <bit>
#include <cmath>
#include <cstring>

namespace moeref::recode {
namespace {

class ToFnuz final : public Recoder {
 public:
  std::string name() const override { return "e4m3fn_to_fnuz"; }
  int in_bits() const override { return 8; }
  int out_bits() const override { return 8; }
  void rewrite(const Place&, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    constexpr std::byte kNegativeZero{0x80};  // NaN in FNUZ
    for (std::size_t i = 0; i < in.size(); ++i) {
      out[i] = in[i] == kNegativeZero ? std::byte{0} : in[i];
    }
  }
};

template <typename Function>
void for_each_float(std::span<const std::byte> in, std::span<std::byte> out, Function function) {
  for (std::size_t at = 0; at < in.size(); at += sizeof(float)) {
    const float value = function(load<float>(in.data() + at));
    std::memcpy(out.data() + at, &value, sizeof value);
  }
}

class DoubleScales final : public Recoder {
 public:
  std::string name() const override { return "double_scales"; }
  int in_bits() const override { return 32; }
  int out_bits() const override { return 32; }
  void rewrite(const Place&, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    for_each_float(in, out, doubled_scale);
  }
  bool invertible() const override { return true; }
  void restore(const Place&, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    for_each_float(in, out, [](float scale) { return std::isnan(scale) ? scale : scale * 0.5f; });
  }
};

}  // namespace

float doubled_scale(float scale) {
  constexpr std::uint32_t kQuiet = 0x0040'0000;
  return std::isnan(scale) ? std::bit_cast<float>(std::bit_cast<std::uint32_t>(scale) | kQuiet)
                           : 2.0f * scale;
}

Recode e4m3fn_to_fnuz() {
  return {.name = "e4m3fn_to_fnuz",
          .summary = "0x80 becomes 0x00; every code then means half",
          .out_bits = 8,
          .dtype = DType::f8_e4m3fnuz,
          .make = [](const LayerTensors&) { return std::make_shared<const ToFnuz>(); },
          .needs_layer = false};
}

Recode double_scales() {
  return {.name = "double_scales",
          .summary = "f32 scales times 2",
          .out_bits = 32,
          .dtype = DType::f32,
          .make = [](const LayerTensors&) { return std::make_shared<const DoubleScales>(); },
          .needs_layer = false};
}

}  // namespace moeref::recode
