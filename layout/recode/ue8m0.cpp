#include "layout/recode/ue8m0.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "layout/recode/codes.hpp"
#include "layout/recode/float_cast.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/ue8m0.hpp"

namespace moeref::recode {
namespace {

using CodeFunction = std::uint32_t (*)(std::uint32_t);

/// A recoder that makes each code from one code.
struct CodeMap {
  std::string name;
  int in_bits;
  int out_bits;
  CodeFunction forward;
  CodeFunction backward;  ///< null = not invertible
};

class MapRecoder final : public Recoder {
 public:
  explicit MapRecoder(CodeMap map) : map_(std::move(map)) {}
  std::string name() const override { return map_.name; }
  int in_bits() const override { return map_.in_bits; }
  int out_bits() const override { return map_.out_bits; }
  bool invertible() const override { return map_.backward != nullptr; }
  void rewrite(const Place&, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    each(in, map_.in_bits, out, map_.out_bits, map_.forward);
  }
  void restore(const Place&, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    each(in, map_.out_bits, out, map_.in_bits, map_.backward);
  }

 private:
  static void each(std::span<const std::byte> in, int in_bits, std::span<std::byte> out,
                   int out_bits, CodeFunction function) {
    const auto in_width = static_cast<std::size_t>(in_bits / 8);
    const auto out_width = static_cast<std::size_t>(out_bits / 8);
    for (std::size_t i = 0; i * in_width < in.size(); ++i) {
      std::uint32_t code = 0;
      std::memcpy(&code, in.data() + i * in_width, in_width);
      const std::uint32_t result = function(code);
      std::memcpy(out.data() + i * out_width, &result, out_width);
    }
  }

  CodeMap map_;
};

std::shared_ptr<const Recoder> map_codes(CodeMap map) {
  return std::make_shared<const MapRecoder>(std::move(map));
}

std::uint32_t as_is(std::uint32_t code) { return code; }
/// Also from what e8m0_to_f32 gives: 2^-127 is a subnormal, NaN has the largest exponent.
std::uint32_t to_exponent(std::uint32_t f32_bits) { return f32_bits >> 23 & 0xFFu; }
std::uint32_t from_exponent(std::uint32_t byte) { return byte << 23; }
std::uint32_t e8m0_to_f32(std::uint32_t byte) {
  return std::bit_cast<std::uint32_t>(
      decode_e8m0(static_cast<std::uint8_t>(byte), E8M0Decoder::ocp));
}

/// Undo plans with sizes alone.
bool has_data(const TensorStack& stack) {
  return !stack.planes.empty() && stack.planes.front().data != nullptr;
}

void need_powers_of_two(const TensorStack& scales) {
  std::vector<float> row(static_cast<std::size_t>(scales.cols));
  for (std::int64_t expert = 0; expert < scales.experts; ++expert) {
    for (std::int64_t r = 0; r < scales.rows(); ++r) {
      scales.read(expert, r, 0, scales.cols, reinterpret_cast<std::byte*>(row.data()));
      const auto bad = std::find_if_not(row.begin(), row.end(), is_exponent);
      if (bad != row.end()) {
        fail(scales.name,
             "expert {}, scale [{}, {}] is {:08X}, no power of two; the kernel takes exponents "
             "only, requantize first",
             expert, r, bad - row.begin(), std::bit_cast<std::uint32_t>(*bad));
      }
    }
  }
}

}  // namespace

Format block_scale_format(const TensorStack& stack) {
  if (is_e8m0_bytes(stack.dtype)) return Format::e8m0;
  if (const std::optional<Format> format = float_format(stack.dtype)) return *format;
  fail(stack.name, "is {}; block scales are F32, BF16, F16 or E8M0", name(stack.dtype));
}

void need_block(const TensorStack& scales, std::int64_t rows, std::int64_t cols) {
  if (scales.block_rows != rows || scales.block_cols != cols) {
    fail(scales.name, "has scale blocks of {} x {}; {} x {} are needed", scales.block_rows,
         scales.block_cols, rows, cols);
  }
}

Recode exponent_bytes() {
  return {.name = "deepgemm_exponents",
          .summary = "bits 30 .. 23 of f32 scales",
          .out_bits = 8,
          .dtype = DType::u8,
          .make =
              [](const LayerTensors&) {
                return map_codes({"deepgemm_exponents", 32, 8, to_exponent, nullptr});
              },
          .needs_layer = false};
}

Recode power_of_two_scales(Slot slot) {
  return {.name = "power_of_two_scales",
          .summary = "powers of two as E8M0 bytes",
          .out_bits = 8,
          .dtype = DType::u8,
          .make =
              [slot](const LayerTensors& layer) {
                const TensorStack& scales = layer.at(slot);
                if (is_e8m0_bytes(scales.dtype)) {
                  return map_codes({"power_of_two_scales", 8, 8, as_is, as_is});
                }
                if (scales.dtype != DType::f32) {
                  fail(scales.name, "is {}; scales that are powers of two are F32 or E8M0",
                       name(scales.dtype));
                }
                if (has_data(scales)) need_powers_of_two(scales);
                return map_codes({"power_of_two_scales", 32, 8, to_exponent, from_exponent});
              },
          .needs_data = false};
}

Recode scales_to_f32(Slot slot, std::int64_t block) {
  return {.name = "scales_to_f32",
          .summary = "block scales as f32, exact",
          .out_bits = 32,
          .dtype = DType::f32,
          .make =
              [slot, block](const LayerTensors& layer) {
                const TensorStack& scales = layer.at(slot);
                if (block != 0) need_block(scales, block, block);
                if (block_scale_format(scales) != Format::e8m0) {
                  return cast_floats(slot, DType::f32).make(layer);
                }
                return map_codes({"scales_to_f32", 8, 32, e8m0_to_f32, to_exponent});
              },
          .needs_data = false};
}

}  // namespace moeref::recode
