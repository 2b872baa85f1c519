#include "layout/recode/marlin_decoders.hpp"

#include <algorithm>
#include <array>
#include <cstdint>

#include "quant/formats.hpp"
#include "quant/tensor.hpp"

namespace moeref::recode {
namespace {

using Bytes = std::span<const std::byte>;

std::vector<float> decode_bytes(Bytes scales, const std::array<float, 256>& table) {
  std::vector<float> values(scales.size());
  std::transform(scales.begin(), scales.end(), values.begin(),
                 [&table](std::byte code) { return table[std::to_integer<std::size_t>(code)]; });
  return values;
}

/// The value of every byte whose kernel bits are bits_of(byte) of `format`, times `unit`.
template <typename BitsOf>
MarlinDecoder table_decoder(Format format, float unit, BitsOf bits_of) {
  std::array<float, 256> table{};
  for (std::uint32_t byte = 0; byte < table.size(); ++byte) {
    table[byte] = decode(format, bits_of(byte)) * unit;
  }
  return [table](Bytes scales) { return decode_bytes(scales, table); };
}

}  // namespace

MarlinDecoder decode_s0e5m3(DType params) {
  if (params == DType::f16) {
    return table_decoder(Format::f16, 1.0f, [](std::uint32_t byte) { return byte << 7; });
  }
  return table_decoder(Format::bf16, 1.0f, [](std::uint32_t byte) {
    return byte < 0x80u ? 0u : (byte & 0x80u) << 7 | (byte & 0x7Fu) << 4;
  });
}

MarlinDecoder decode_marlin_e8m0(float unit) {
  return table_decoder(Format::bf16, unit, [](std::uint32_t byte) { return byte << 7; });
}

MarlinDecoder decode_marlin_floats(DType params, float unit) {
  return [format = *float_format(params), unit](Bytes scales) {
    std::vector<float> values(scales.size() / 2);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = decode(format, load<std::uint16_t>(scales.data() + 2 * i)) * unit;
    }
    return values;
  };
}

}  // namespace moeref::recode
