#pragma once

#include <type_traits>

#include "quant/formats.hpp"

namespace moeref {

/// One code of a format as a value type. No implicit conversion and no arithmetic: every rounding
/// is a visible call. What a code means and how a value is rounded stands in `quant/mini_float.hpp`
/// and `quant/formats.hpp`.
template <Format F>
struct Code {
  static constexpr Format format = F;
  using Bits =
      std::conditional_t<F == Format::bf16 || F == Format::f16, std::uint16_t, std::uint8_t>;

  Bits bits;  ///< E2M1: 0 to 15

  static constexpr Code from_bits(Bits bits) { return {bits}; }
  /// Nearest, ties to even, in one step from f32.
  static Code round(float value, EncodePolicy policy) requires(F != Format::e8m0) {
    return {static_cast<Bits>(encode(F, value, policy))};
  }
  /// A scale: the direction and the stack decide (`encode_e8m0`).
  static Code round(float value, E8M0Rounding rounding,
                    EncodePolicy policy) requires(F == Format::e8m0) {
    return {encode_e8m0(value, rounding, policy)};
  }
  /// Exact.
  constexpr float to_float() const {
    return std::bit_cast<float>(decode_to_f32_bits(mini_float(F), bits));
  }
  /// The value of every code.
  static const std::array<float, 256>& table() requires(sizeof(Bits) == 1) {
    return decode_table(F);
  }
  friend constexpr bool operator==(Code, Code) = default;
};

using E4M3 = Code<Format::e4m3>;
using E4M3Fnuz = Code<Format::e4m3fnuz>;
using E5M2 = Code<Format::e5m2>;
using E5M2Fnuz = Code<Format::e5m2fnuz>;
using E2M1 = Code<Format::e2m1>;
using E8M0 = Code<Format::e8m0>;
using UE4M3 = Code<Format::ue4m3>;
using BF16 = Code<Format::bf16>;
using FP16 = Code<Format::f16>;

}  // namespace moeref
