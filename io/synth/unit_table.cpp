#include "io/synth/unit_table.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "io/counter_random.hpp"
#include "quant/formats.hpp"

namespace moeref {
namespace {

constexpr std::uint32_t kDraws = 65536;
constexpr double kSmallestScaleFactor = 0.2;

// Only IEEE multiplications, additions and conversions below: the same bytes on every machine.

double standard_normal(std::uint32_t draw) {
  return normal_variate(static_cast<std::uint16_t>(draw)) * (1.0 / kNormalUnit);
}

float positive(double center, double spread, std::uint32_t draw) {
  return static_cast<float>(center *
                            std::max(kSmallestScaleFactor, 1.0 + spread * standard_normal(draw)));
}

/// The code of a value that is not NaN, with +0 for anything that rounds to zero.
std::uint32_t code(Format format, double value) {
  const std::uint32_t bits =
      encode(format, static_cast<float>(value),
             format == Format::bf16 ? EncodePolicy::eigen : EncodePolicy::ocp_saturate);
  return decode(format, bits) == 0.0f ? 0 : bits;
}

/// -0 + 0 = +0; every other sum is the value itself.
std::uint32_t f32_bits(double value) {
  return std::bit_cast<std::uint32_t>(static_cast<float>(value) + 0.0f);
}

std::uint32_t e2m1_pair(double spread, std::uint32_t draw) {
  // 8 bits pick the middle of one of 256 equal slices of the distribution.
  const std::uint32_t even = ((draw & 0xFF) << 8) | 0x80;
  const std::uint32_t odd = (draw & 0xFF00) | 0x80;
  return code(Format::e2m1, spread * standard_normal(even)) |
         code(Format::e2m1, spread * standard_normal(odd)) << 4;
}

std::uint32_t unit(UnitKind kind, double center, double spread, std::uint32_t draw) {
  switch (kind) {
    case UnitKind::normal_bf16:
      return code(Format::bf16, center + spread * standard_normal(draw));
    case UnitKind::normal_f32:
      return f32_bits(center + spread * standard_normal(draw));
    case UnitKind::codes_e4m3:
      return code(Format::e4m3, spread * standard_normal(draw));
    case UnitKind::codes_e2m1:
      return e2m1_pair(spread, draw);
    case UnitKind::scale_f32:
      return f32_bits(positive(center, spread, draw));
    case UnitKind::scale_bf16:
      return code(Format::bf16, positive(center, spread, draw));
    case UnitKind::scale_e4m3:
      return code(Format::e4m3, positive(center, spread, draw));
    case UnitKind::scale_e8m0:
      return static_cast<std::uint32_t>(
          std::clamp(127 + std::ilogb(positive(center, spread, draw)), 1, 254));
  }
  return 0;
}

std::size_t unit_size(UnitKind kind) {
  switch (kind) {
    case UnitKind::normal_bf16:
    case UnitKind::scale_bf16:
      return 2;
    case UnitKind::normal_f32:
    case UnitKind::scale_f32:
      return 4;
    default:
      return 1;
  }
}

UnitTablePointer make_table(UnitKind kind, double center, double spread) {
  auto table = std::make_shared<UnitTable>();
  table->unit_bytes = unit_size(kind);
  table->bytes.resize(kDraws * table->unit_bytes);
  for (std::uint32_t draw = 0; draw < kDraws; ++draw) {
    const std::uint32_t bits = unit(kind, center, spread, draw);
    for (std::size_t byte = 0; byte < table->unit_bytes; ++byte) {
      table->bytes[draw * table->unit_bytes + byte] = static_cast<std::byte>(bits >> (8 * byte));
    }
  }
  return table;
}

}  // namespace

UnitTablePointer UnitTables::get(UnitKind kind, double center, double spread) {
  UnitTablePointer& table = made_[{kind, center, spread}];
  if (!table) table = make_table(kind, center, spread);
  return table;
}

}  // namespace moeref
