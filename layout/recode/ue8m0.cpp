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

/// What requantization makes of one weight, found for a row of blocks when first asked for: within
/// a block, a new code depends on the old one alone.
class Requantized {
 public:
  using CodeTable = std::array<std::byte, 256>;

  /// What becomes of a row of blocks.
  struct BlockRow {
    std::once_flag found;
    std::vector<std::uint8_t> exponents;  ///< of the new scales
    std::vector<CodeTable> codes;
  };

  Requantized(TensorStack codes, TensorStack scales)
      : codes_(std::move(codes)),
        scales_(std::move(scales)),
        format_(scale_format(scales_)),
        rows_(static_cast<std::size_t>(scales_.experts * scales_.rows())) {
    if (codes_.dtype != DType::f8_e4m3 && codes_.dtype != DType::u8) {
      fail(codes_.name, "is {}; E4M3 weights are requantized", moeref::name(codes_.dtype));
    }
    need_block(scales_, kBlock, kBlock);
  }

  int scale_bits() const { return scales_.element_bits; }

  const BlockRow& block_row(std::int64_t expert, std::int64_t number) const {
    BlockRow& row = rows_[static_cast<std::size_t>(expert * scales_.rows() + number)];
    std::call_once(row.found, [&] { find(expert, number, row); });
    return row;
  }

  /// New codes for `codes`, which begin at `at`.
  void requantize(const Place& at, std::span<const std::byte> codes,
                  std::span<std::byte> out) const {
    const BlockRow& row = block_row(at.expert, block_row_of(at.row));
    for_each_block(at.col, codes.size(),
                   [&](std::size_t block, std::size_t begin, std::size_t end) {
                     const CodeTable& table = row.codes[block];
                     for (std::size_t i = begin; i < end; ++i) {
                       out[i] = table[std::to_integer<std::size_t>(codes[i])];
                     }
                   });
  }

 private:
  using CodeSet = std::array<bool, 256>;

  /// Each half has its own blocks.
  std::int64_t block_row_of(std::int64_t row) const {
    return row / codes_.half_rows * scales_.half_rows + row % codes_.half_rows / kBlock;
  }

  float scale_at(std::int64_t expert, std::int64_t block_row, std::size_t block) const {
    std::uint32_t code = 0;
    scales_.read(expert, block_row, static_cast<std::int64_t>(block), 1,
                 reinterpret_cast<std::byte*>(&code));
    return decode(format_, code);
  }

  /// function(block, begin, end) for each block that `count` columns from `col` touch.
  template <typename Function>
  static void for_each_block(std::int64_t col, std::size_t count, const Function& function) {
    for (std::size_t begin = 0; begin < count;) {
      const std::int64_t here = col + static_cast<std::int64_t>(begin);
      const auto rest = static_cast<std::size_t>(kBlock - here % kBlock);
      const std::size_t end = std::min(count, begin + rest);
      function(static_cast<std::size_t>(here / kBlock), begin, end);
      begin = end;
    }
  }

  /// The codes that stand in each block of a row of blocks.
  std::vector<CodeSet> codes_of(std::int64_t expert, std::int64_t block_row) const {
    const std::int64_t half = block_row / scales_.half_rows;
    const std::int64_t first = block_row % scales_.half_rows * kBlock;
    const std::int64_t end = std::min(first + kBlock, codes_.half_rows);
    std::vector<CodeSet> sets(static_cast<std::size_t>(scales_.cols), CodeSet{});
    std::vector<std::byte> row(static_cast<std::size_t>(codes_.cols));
    for (std::int64_t r = first; r < end; ++r) {
      codes_.read(expert, half * codes_.half_rows + r, 0, codes_.cols, row.data());
      for_each_block(0, row.size(), [&](std::size_t block, std::size_t from, std::size_t to) {
        for (std::size_t i = from; i < to; ++i) {
          sets[block][std::to_integer<std::size_t>(row[i])] = true;
        }
      });
    }
    return sets;
  }

  void find(std::int64_t expert, std::int64_t block_row, BlockRow& row) const {
    const Encoder& to_e4m3 = encoder(Format::e4m3, EncodePolicy::torch);
    const auto sets = codes_of(expert, block_row);
    for (std::size_t block = 0; block < sets.size(); ++block) {
      const float scale = scale_at(expert, block_row, block);
      std::array<float, 256> values;
      float amax = kSmallestAmax;
      for (std::size_t code = 0; code < values.size(); ++code) {
        values[code] = cast<Format::bf16>(decode_table(Format::e4m3)[code] * scale);
        if (sets[block][code]) amax = nan_max(amax, std::fabs(values[code]));
      }
      const float new_scale = ceil_to_ue8m0(amax / 448.0f);
      const float factor = 1.0f / new_scale;
      CodeTable table;
      for (std::size_t code = 0; code < table.size(); ++code) {
        table[code] = static_cast<std::byte>(to_e4m3(values[code] * factor));
      }
      row.exponents.push_back(exponent_byte(new_scale));
      row.codes.push_back(table);
    }
  }

  TensorStack codes_;
  TensorStack scales_;
  Format format_;
  mutable std::vector<BlockRow> rows_;
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
    const auto& exponents = weight_->block_row(at.expert, at.row).exponents;
    std::copy_n(exponents.begin() + at.col, out.size(),
                reinterpret_cast<std::uint8_t*>(out.data()));
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
