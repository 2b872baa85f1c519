#include "layout/recode/humming.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>

#include "layout/recode/float_cast.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::recode {
namespace {

using Row = std::array<std::uint8_t, 16>;
using ByteTable = std::array<std::byte, 256>;

constexpr std::uint32_t kSign = 8;

/// The magnitude code of value / 2^delta, to nearest, ties away from zero.
std::uint32_t divided(float magnitude, int delta) {
  const float wanted = std::ldexp(magnitude, -delta);
  const std::array<float, 256>& values = decode_table(Format::e2m1);
  std::uint32_t code = 0;
  while (code < 7 && wanted >= (values[code] + values[code + 1]) / 2.0f) ++code;
  return code;
}

/// What the low exponent bits of an f32 product with the wrapped factor hold: bits 24 to 22 of
/// magnitude * 2^(130 - delta), the sign exchanged.
std::uint32_t wrapped(std::uint32_t sign, float magnitude, int delta) {
  const std::uint32_t flipped = sign ^ kSign;
  if (magnitude == 0.0f) return delta == 128 ? 15 : kSign;  // 0 * -infinity is a negative NaN
  if (delta == 128) return flipped | 6;                     // infinity
  const float product = std::ldexp(magnitude, 130 - delta);
  return flipped | (std::bit_cast<std::uint32_t>(product) >> 22 & 7u);
}

Row table_row(int delta) {
  Row row{};
  for (std::uint32_t code = 0; code < row.size(); ++code) {
    const std::uint32_t sign = code == kSign ? 0 : code & kSign;
    const float magnitude = decode(Format::e2m1, code & 7u);
    const std::uint32_t rewritten = delta == 0    ? sign | (code & 7u)
                                    : delta < 128 ? sign | divided(magnitude, delta)
                                                  : wrapped(sign, magnitude, delta);
    row[code] = static_cast<std::uint8_t>(rewritten);
  }
  return row;
}

/// The scales of a slot as E8M0 bytes.
class ScaleBytes {
 public:
  ScaleBytes(const LayerTensors& layer, Slot slot)
      : stack_(layer.at(slot)), to_bytes_(to_e8m0(slot).make(layer)) {}

  const TensorStack& stack() const { return stack_; }
  std::vector<std::byte> read(std::int64_t expert, std::int64_t row, std::int64_t col,
                              std::int64_t count) const {
    std::vector<std::byte> stored(static_cast<std::size_t>(count * stack_.element_bits / 8));
    stack_.read(expert, row, col, count, stored.data());
    std::vector<std::byte> bytes(static_cast<std::size_t>(count));
    to_bytes_->rewrite({expert, row, col}, stored, bytes);
    return bytes;
  }

 private:
  TensorStack stack_;
  std::shared_ptr<const Recoder> to_bytes_;
};

/// lo of each expert.
std::vector<int> floors(const ScaleBytes& scales, HummingRange range) {
  if (range.max_range < 0 || range.max_range > 11) {
    fail(scales.stack().name, "humming: max_range is {}; an E4M3 exponent holds 0 .. 11",
         range.max_range);
  }
  std::vector<int> lowest;
  for (std::int64_t expert = 0; expert < scales.stack().experts; ++expert) {
    bool any = range.padded;
    int least = range.padded ? 0 : 255;
    int most = 0;
    for (std::int64_t row = 0; row < scales.stack().rows(); ++row) {
      for (const std::byte byte : scales.read(expert, row, 0, scales.stack().cols)) {
        least = std::min(least, std::to_integer<int>(byte));
        most = std::max(most, std::to_integer<int>(byte));
        any = true;
      }
    }
    lowest.push_back(any ? most - std::min(most - least, range.max_range) : 0);
  }
  return lowest;
}

class RewriteCodes final : public Recoder {
 public:
  RewriteCodes(ScaleBytes scales, std::vector<int> floor)
      : scales_(std::move(scales)), floor_(std::move(floor)) {}
  std::string name() const override { return "humming_codes"; }
  int in_bits() const override { return 4; }
  int out_bits() const override { return 4; }
  void rewrite(const Place& at, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    if (in.empty()) return;
    const std::int64_t block = scales_.stack().block_cols;
    const std::int64_t first = at.col / block;
    const auto last = (at.col + 2 * static_cast<std::int64_t>(in.size()) - 1) / block;
    const std::vector<std::byte> bytes = scales_.read(at.expert, at.row, first, last - first + 1);
    const int floor = floor_[static_cast<std::size_t>(at.expert)];
    for (std::size_t i = 0; i < in.size(); ++i) {
      const std::int64_t at_block = (at.col + 2 * static_cast<std::int64_t>(i)) / block - first;
      const int scale = std::to_integer<int>(bytes[static_cast<std::size_t>(at_block)]);
      const Row& codes = humming_table()[static_cast<std::size_t>(std::max(scale, floor) - scale)];
      const auto pair = std::to_integer<std::size_t>(in[i]);
      out[i] = static_cast<std::byte>(codes[pair & 15] | codes[pair >> 4] << 4);
    }
  }

 private:
  ScaleBytes scales_;
  std::vector<int> floor_;
};

/// Scales through one table per expert.
class RewriteScales final : public Recoder {
 public:
  RewriteScales(std::string name, std::shared_ptr<const Recoder> to_bytes,
                std::vector<ByteTable> tables)
      : name_(std::move(name)), to_bytes_(std::move(to_bytes)), tables_(std::move(tables)) {}
  std::string name() const override { return name_; }
  int in_bits() const override { return to_bytes_->in_bits(); }
  int out_bits() const override { return 8; }
  void rewrite(const Place& at, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    to_bytes_->rewrite(at, in, out);
    const ByteTable& table = tables_[static_cast<std::size_t>(at.expert)];
    for (std::byte& byte : out) byte = table[std::to_integer<std::size_t>(byte)];
  }

 private:
  std::string name_;
  std::shared_ptr<const Recoder> to_bytes_;
  std::vector<ByteTable> tables_;
};

/// `rule`: (byte, lo) -> what the byte becomes.
Recode rewrite_scales(std::string name, std::string summary, Slot slot, HummingRange range,
                      int (*rule)(int scale, int floor)) {
  const auto make = [name, slot, range,
                     rule](const LayerTensors& layer) -> std::shared_ptr<const Recoder> {
    std::vector<ByteTable> tables;
    for (const int floor : floors(ScaleBytes(layer, slot), range)) {
      ByteTable& table = tables.emplace_back();
      for (int scale = 0; scale < 256; ++scale) {
        table[static_cast<std::size_t>(scale)] = static_cast<std::byte>(rule(scale, floor));
      }
    }
    return std::make_shared<RewriteScales>(name, to_e8m0(slot).make(layer), std::move(tables));
  };
  return {.name = std::move(name),
          .summary = std::move(summary),
          .out_bits = 8,
          .dtype = DType::u8,
          .make = make};
}

}  // namespace

const std::array<std::array<std::uint8_t, 16>, 256>& humming_table() {
  static const std::array<Row, 256> table = [] {
    std::array<Row, 256> rows{};
    for (int delta = 0; delta < 256; ++delta) {
      rows[static_cast<std::size_t>(delta)] = table_row(delta);
    }
    return rows;
  }();
  return table;
}

Recode humming_codes(Slot scale, HummingRange range) {
  const auto make = [scale, range](const LayerTensors& layer) -> std::shared_ptr<const Recoder> {
    ScaleBytes scales(layer, scale);
    std::vector<int> floor = floors(scales, range);
    const int highest = floor.empty() ? 0 : *std::max_element(floor.begin(), floor.end());
    if (range.padded && highest >= 128) {
      fail(
          scales.stack().name,
          "humming: the largest scale byte of an expert is {}, so that padding (0) lies {} binades "
          "below the {} that are kept; from 128 on the original table does not keep zeros. Choose "
          "a "
          "size that needs no padding",
          highest + range.max_range, highest, range.max_range);
    }
    return std::make_shared<RewriteCodes>(std::move(scales), std::move(floor));
  };
  return {.name = "humming_codes",
          .summary = "codes of blocks below the range divided by 2^delta, ties away from zero",
          .out_bits = 4,
          .dtype = DType::u8,
          .make = make};
}

Recode humming_offsets(Slot scale, HummingRange range) {
  return rewrite_scales(
      "humming_offsets", "E8M0 bytes to exponent offsets above the expert's lowest", scale, range,
      [](int byte, int floor) { return (std::max(byte, floor) - floor + 1) & 15; });
}

Recode humming_deltas(Slot scale, HummingRange range) {
  return rewrite_scales("humming_deltas", "E8M0 bytes to how far they lie below the range", scale,
                        range, [](int byte, int floor) { return std::max(byte, floor) - byte; });
}

std::vector<float> humming_residuals(const LayerTensors& layer, Slot scale, HummingRange range) {
  std::vector<float> residuals;
  for (const int floor : floors(ScaleBytes(layer, scale), range)) {
    residuals.push_back(std::ldexp(1.0f, floor - 128));
  }
  return residuals;
}

}  // namespace moeref::recode
