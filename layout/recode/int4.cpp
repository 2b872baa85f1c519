#include "layout/recode/int4.hpp"

namespace moeref::recode {
namespace {

class Int8ToInt4 final : public Recoder {
 public:
  std::string name() const override { return "int8_to_int4"; }
  int in_bits() const override { return 8; }
  int out_bits() const override { return 4; }
  void rewrite(const Place&, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    constexpr std::byte kLow{0x0F};
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = (in[2 * i] & kLow) | ((in[2 * i + 1] & kLow) << 4);
    }
  }
  bool invertible() const override { return true; }
  void restore(const Place&, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    for (std::size_t i = 0; i < in.size(); ++i) {
      out[2 * i] = extended(in[i] & std::byte{0x0F});
      out[2 * i + 1] = extended(in[i] >> 4);
    }
  }

 private:
  static std::byte extended(std::byte nibble) {
    return (nibble & std::byte{8}) != std::byte{0} ? nibble | std::byte{0xF0} : nibble;
  }
};

}  // namespace

Recode int8_to_int4() {
  return {.name = "int8_to_int4",
          .summary = "the low nibble of each byte",
          .out_bits = 4,
          .dtype = DType::i8,
          .make = [](const LayerTensors&) { return std::make_shared<const Int8ToInt4>(); },
          .needs_layer = false};
}

}  // namespace moeref::recode
