#include "layout/recode/upcast.hpp"

#include <cstring>
#include <memory>
#include <utility>

#include "layout/recode/codes.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::recode {
namespace {

constexpr std::int64_t kGroup = 32;

class UpcastMxfp4 final : public Recoder {
 public:
  explicit UpcastMxfp4(TensorStack scales) : scales_(std::move(scales)) {}
  std::string name() const override { return "upcast_mxfp4"; }
  int in_bits() const override { return 4; }
  int out_bits() const override { return 16; }
  void rewrite(const Place& at, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    static const auto& values = decode_table(Format::e2m1);
    const Encoder& to_bf16 = encoder(Format::bf16, EncodePolicy::eigen);
    float scale = 0.0f;
    for (std::size_t i = 0; i < 2 * in.size(); ++i) {
      const std::int64_t col = at.col + static_cast<std::int64_t>(i);
      if (i == 0 || col % kGroup == 0) scale = scale_at(at.expert, at.row, col / kGroup);
      const auto byte = std::to_integer<std::uint32_t>(in[i / 2]);
      const float value = values[byte >> 4 * (i % 2) & 15u] * scale;
      const auto code = static_cast<std::uint16_t>(to_bf16(value));
      std::memcpy(out.data() + 2 * i, &code, sizeof code);
    }
  }

 private:
  float scale_at(std::int64_t expert, std::int64_t row, std::int64_t group) const {
    std::byte byte{};
    scales_.read(expert, row, group, 1, &byte);
    return byte == std::byte{0}
               ? 0.0f
               : decode_e8m0(std::to_integer<std::uint8_t>(byte), E8M0Decoder::ocp);
  }

  TensorStack scales_;
};

}  // namespace

Recode upcast_mxfp4(Slot weight) {
  return {
      .name = "upcast_mxfp4",
      .summary = "FP4 codes and their scales to bf16 values",
      .out_bits = 16,
      .dtype = DType::bf16,
      .make = [weight](const LayerTensors& layer) -> std::shared_ptr<const Recoder> {
        const TensorStack& scales = layer.at(scales_of(weight));
        if (!is_e8m0_bytes(scales.dtype) || scales.block_rows != 1 || scales.block_cols != kGroup) {
          fail(scales.name, "has {} scales of {} x {}; MXFP4 has E8M0 scales of 1 x {}",
               name(scales.dtype), scales.block_rows, scales.block_cols, kGroup);
        }
        return std::make_shared<const UpcastMxfp4>(scales);
      }};
}

}  // namespace moeref::recode
