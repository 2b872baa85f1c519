#include "layout/recode/ue8m0.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include "layout/recode/float_cast.hpp"
#include "quant/cast.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref {
namespace {

constexpr std::uint32_t kMantissa = 0x007F'FFFF;
constexpr float kSmallestAmax = 1e-4f;

/// The larger of both; a NaN stays.
float nan_max(float left, float right) { return std::isnan(left) || left > right ? left : right; }

std::uint8_t fp4_code_ties_down(float scaled) {
  const float magnitude = std::fabs(scaled);
  std::uint8_t code = 0;
  for (const float boundary : {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f}) {
    if (magnitude > boundary) ++code;
  }
  return scaled < 0.0f && code != 0 ? static_cast<std::uint8_t>(code | 8u) : code;
}

}  // namespace

float ceil_to_ue8m0(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t exponent = (bits >> 23 & 0xFFu) + ((bits & kMantissa) != 0 ? 1u : 0u);
  return std::bit_cast<float>(std::clamp(exponent, 1u, 254u) << 23);
}

std::uint8_t exponent_byte(float x) {
  return static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(x) >> 23);
}

bool is_exponent(float x) {
  return (std::bit_cast<std::uint32_t>(x) & (kF32SignMask | kMantissa)) == 0;
}

Fp4Rows per_token_cast_to_fp4(std::span<const float> values, std::int64_t rows, std::int64_t cols,
                              std::int64_t gran_k, bool ue8m0) {
  if (cols % 2 != 0) fail("per_token_cast_to_fp4", "{} columns; FP4 packs an even number", cols);
  Fp4Rows result;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t begin = 0; begin < cols; begin += gran_k) {
      const auto group = values.subspan(static_cast<std::size_t>(row * cols + begin),
                                        static_cast<std::size_t>(std::min(gran_k, cols - begin)));
      float amax = 0.0f;
      for (const float x : group) amax = nan_max(amax, std::fabs(x));
      const float exact = nan_max(amax, kSmallestAmax) / 6.0f;
      const float scale = ue8m0 ? ceil_to_ue8m0(exact) : exact;
      const float factor = 1.0f / scale;
      result.scales.push_back(scale);
      for (std::size_t i = 0; i < group.size(); ++i) {
        const std::uint8_t code = fp4_code_ties_down(group[i] * factor);
        const std::int64_t col = begin + static_cast<std::int64_t>(i);
        if (col % 2 == 0) {
          result.codes.push_back(code);
        } else {
          result.codes.back() = static_cast<std::uint8_t>(result.codes.back() | code << 4);
        }
      }
    }
  }
  return result;
}

}  // namespace moeref

namespace moeref::recode {
namespace {

constexpr std::int64_t kBlock = 128;

bool is_e8m0(DType dtype) { return dtype == DType::u8 || dtype == DType::f8_e8m0; }

/// Of a scale tensor.
Format scale_format(const TensorStack& stack) {
  if (is_e8m0(stack.dtype)) return Format::e8m0;
  if (stack.dtype == DType::f32) return Format::f32;
  if (stack.dtype == DType::bf16) return Format::bf16;
  if (stack.dtype == DType::f16) return Format::f16;
  fail(stack.name, "is {}; block scales are F32, BF16, F16 or E8M0", name(stack.dtype));
}

void need_block(const TensorStack& scales, std::int64_t rows, std::int64_t cols) {
  if (scales.block_rows != rows || scales.block_cols != cols) {
    fail(scales.name, "has scale blocks of {} x {}; {} x {} are needed", scales.block_rows,
         scales.block_cols, rows, cols);
  }
}

Slot scales_of(Slot weight) { return weight == Slot::w13 ? Slot::w13_scale : Slot::w2_scale; }

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

/// What requantization makes of one weight: the new exponent of each block, found when first asked
/// for, and the new codes.
class Requantized {
 public:
  Requantized(TensorStack codes, TensorStack scales)
      : codes_(std::move(codes)),
        scales_(std::move(scales)),
        format_(scale_format(scales_)),
        found_(std::make_unique<std::once_flag[]>(
            static_cast<std::size_t>(scales_.experts * scales_.rows()))),
        exponents_(static_cast<std::size_t>(scales_.experts * scales_.rows() * scales_.cols)) {
    if (codes_.dtype != DType::f8_e4m3 && codes_.dtype != DType::u8) {
      fail(codes_.name, "is {}; E4M3 weights are requantized", moeref::name(codes_.dtype));
    }
    need_block(scales_, kBlock, kBlock);
  }

  int scale_bits() const { return scales_.element_bits; }

  /// The new scales of one row of blocks.
  std::span<const std::uint8_t> exponents(std::int64_t expert, std::int64_t block_row) const {
    const auto number = static_cast<std::size_t>(expert * scales_.rows() + block_row);
    const auto blocks = static_cast<std::size_t>(scales_.cols);
    const std::span<std::uint8_t> row(exponents_.data() + number * blocks, blocks);
    std::call_once(found_[number], [&] { find(expert, block_row, row); });
    return row;
  }

  /// New codes for `codes`, which begin at `at`.
  void requantize(const Place& at, std::span<const std::byte> codes,
                  std::span<std::byte> out) const {
    const std::int64_t block_row = block_row_of(at.row);
    const auto exponent_row = exponents(at.expert, block_row);
    const Encoder& to_e4m3 = encoder(Format::e4m3, EncodePolicy::torch);
    for_each_block(at, codes.size(), [&](std::int64_t block, std::size_t begin, std::size_t end) {
      const float scale = scale_at(at.expert, block_row, block);
      const auto exponent = exponent_row[static_cast<std::size_t>(block)];
      const float factor = 1.0f / std::bit_cast<float>(from_exponent(exponent));
      for (std::size_t i = begin; i < end; ++i) {
        out[i] = static_cast<std::byte>(to_e4m3(dequantize(codes[i], scale) * factor));
      }
    });
  }

 private:
  /// Each half has its own blocks.
  std::int64_t block_row_of(std::int64_t row) const {
    return row / codes_.half_rows * scales_.half_rows + row % codes_.half_rows / kBlock;
  }

  float scale_at(std::int64_t expert, std::int64_t block_row, std::int64_t block_col) const {
    std::uint32_t code = 0;
    scales_.read(expert, block_row, block_col, 1, reinterpret_cast<std::byte*>(&code));
    return decode(format_, code);
  }

  static float dequantize(std::byte code, float scale) {
    static const auto& values = decode_table(Format::e4m3);
    return cast<Format::bf16>(values[std::to_integer<std::size_t>(code)] * scale);
  }

  /// function(block, begin, end) for each block that a piece of a row touches.
  template <typename Function>
  static void for_each_block(const Place& at, std::size_t count, const Function& function) {
    for (std::size_t begin = 0; begin < count;) {
      const std::int64_t col = at.col + static_cast<std::int64_t>(begin);
      const auto rest = static_cast<std::size_t>(kBlock - col % kBlock);
      const std::size_t end = std::min(count, begin + rest);
      function(col / kBlock, begin, end);
      begin = end;
    }
  }

  void find(std::int64_t expert, std::int64_t block_row, std::span<std::uint8_t> row) const {
    const std::int64_t half = block_row / scales_.half_rows;
    const std::int64_t first = block_row % scales_.half_rows * kBlock;
    const std::int64_t end = std::min(first + kBlock, codes_.half_rows);
    std::vector<float> amax(row.size(), kSmallestAmax);
    std::vector<std::byte> codes(static_cast<std::size_t>(codes_.cols));
    for (std::int64_t r = first; r < end; ++r) {
      const Place at{expert, half * codes_.half_rows + r, 0};
      codes_.read(expert, at.row, 0, codes_.cols, codes.data());
      for_each_block(at, codes.size(), [&](std::int64_t block, std::size_t from, std::size_t to) {
        const float scale = scale_at(expert, block_row, block);
        float& largest = amax[static_cast<std::size_t>(block)];
        for (std::size_t i = from; i < to; ++i) {
          largest = nan_max(largest, std::fabs(dequantize(codes[i], scale)));
        }
      });
    }
    for (std::size_t block = 0; block < row.size(); ++block) {
      row[block] = exponent_byte(ceil_to_ue8m0(amax[block] / 448.0f));
    }
  }

  TensorStack codes_;
  TensorStack scales_;
  Format format_;
  std::unique_ptr<std::once_flag[]> found_;
  mutable std::vector<std::uint8_t> exponents_;
};

class RequantizeCodes final : public Recoder {
 public:
  explicit RequantizeCodes(std::shared_ptr<const Requantized> weight)
      : weight_(std::move(weight)) {}
  std::string name() const override { return "requantize_ue8m0"; }
  int in_bits() const override { return 8; }
  int out_bits() const override { return 8; }
  void rewrite(const Place& at, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    weight_->requantize(at, in, out);
  }

 private:
  std::shared_ptr<const Requantized> weight_;
};

class RequantizeScales final : public Recoder {
 public:
  explicit RequantizeScales(std::shared_ptr<const Requantized> weight)
      : weight_(std::move(weight)) {}
  std::string name() const override { return "requantize_ue8m0_scales"; }
  int in_bits() const override { return weight_->scale_bits(); }
  int out_bits() const override { return 8; }
  void rewrite(const Place& at, std::span<const std::byte>,
               std::span<std::byte> out) const override {
    const auto row = weight_->exponents(at.expert, at.row);
    std::memcpy(out.data(), row.data() + at.col, out.size());
  }

 private:
  std::shared_ptr<const Requantized> weight_;
};

std::shared_ptr<const Requantized> requantized(const LayerTensors& layer, Slot weight) {
  return std::make_shared<const Requantized>(layer.at(weight), layer.at(scales_of(weight)));
}

}  // namespace

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
                if (is_e8m0(scales.dtype)) {
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
                if (scale_format(scales) != Format::e8m0) {
                  return cast_floats(slot, DType::f32).make(layer);
                }
                return map_codes({"scales_to_f32", 8, 32, e8m0_to_f32, to_exponent});
              },
          .needs_data = false};
}

Recode requantize_ue8m0_codes(Slot weight) {
  return {.name = "requantize_ue8m0",
          .summary = "through bf16 to E4M3 with power-of-two scales",
          .out_bits = 8,
          .dtype = DType::f8_e4m3,
          .make = [weight](const LayerTensors& layer) -> std::shared_ptr<const Recoder> {
            return std::make_shared<const RequantizeCodes>(requantized(layer, weight));
          }};
}

Recode requantize_ue8m0_scales(Slot weight) {
  return {.name = "requantize_ue8m0_scales",
          .summary = "the new scales' exponent bytes",
          .out_bits = 8,
          .dtype = DType::u8,
          .make = [weight](const LayerTensors& layer) -> std::shared_ptr<const Recoder> {
            return std::make_shared<const RequantizeScales>(requantized(layer, weight));
          }};
}

}  // namespace moeref::recode
