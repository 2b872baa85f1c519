#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "quant/dtype.hpp"

namespace moeref::testing {

/// What the operands of a matrix unit look like.
enum class UnitInputs : std::uint8_t {
  bits,             ///< uniform codes
  normal,           ///< as of a model
  middle,           ///< exponents within 6 of 0
  wide,             ///< every exponent
  cancelling,       ///< products in pairs of opposite sign
  zeros,            ///< most are a zero of some sign
  signed_zeros,     ///< every product is one
  subnormal,        ///< left ones subnormal, some of the right
  tiny,             ///< products around and below 2^-126, or as small as the formats have
  huge,             ///< products around the overflow of the accumulators
  special,          ///< some NaN, infinity, zero or largest
  equal_exponents,  ///< the sum carries
};

inline constexpr UnitInputs kAllUnitInputs[] = {
    UnitInputs::bits,         UnitInputs::normal,     UnitInputs::middle,
    UnitInputs::wide,         UnitInputs::cancelling, UnitInputs::zeros,
    UnitInputs::signed_zeros, UnitInputs::subnormal,  UnitInputs::tiny,
    UnitInputs::huge,         UnitInputs::special,    UnitInputs::equal_exponents};

const char* name(UnitInputs inputs);

using CodeRow = std::vector<std::uint32_t>;

/// Rows of k codes on both sides, E2M1 too as one code each.
struct UnitTile {
  std::vector<CodeRow> left;
  std::vector<CodeRow> right;
};

UnitTile random_tile(UnitInputs inputs, Format left, Format right, std::size_t rows,
                     std::size_t cols, std::size_t k, std::mt19937_64& random);

/// Accumulators for a sum of left x right: zeros, the negative of one product, of the size of the
/// products, tiny, huge, infinite, NaN, uniform bits. f32 or f16 bits.
std::uint32_t random_accumulator(Format accumulator, Format left_format, const CodeRow& left,
                                 Format right_format, const CodeRow& right,
                                 std::mt19937_64& random);

/// Codes of block scales: most around 1, some anywhere, a few NaN. E8M0 or UE4M3 (with signs).
CodeRow random_block_scales(Format format, std::size_t count, std::mt19937_64& random);

/// Whether a code is neither NaN nor infinite.
bool is_finite_code(Format format, std::uint32_t code);

}  // namespace moeref::testing
