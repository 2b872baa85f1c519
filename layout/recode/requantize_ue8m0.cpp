#include "layout/recode/requantize_ue8m0.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <mutex>
#include <utility>

#include "layout/recode/ue8m0.hpp"
#include "quant/cast.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/ue8m0.hpp"

namespace moeref::recode {
namespace {

constexpr std::int64_t kBlock = 128;
constexpr float kSmallestAmax = 1e-4f;

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
        format_(block_scale_format(scales_)),
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
