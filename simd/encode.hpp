#pragma once

#include <cstddef>
#include <cstdint>

// Numbers to codes of at most 8 bits: what the vectorised loops of quantizers need to know of a
// format and a rule.

namespace moeref::simd {

/// Numbers as they lie in memory, at any alignment.
enum class NumberType : std::uint8_t { bf16, f16, f32 };

/// Numbers that the loops take side by side; counts and blocks are multiples of it.
inline constexpr std::size_t kEncodeUnit = 16;

/// y = number * factor (or / factor), rounded to bf16 or not, plus `addend`; then its code: |y|,
/// at most `largest`, rounded to nearest even to units of the format, with the sign on
/// top. Numbers and factors are finite and no y is NaN.
struct EncodeRule {
  bool divides = false;
  bool rounds_to_bf16 = false;
  float addend = -0.0f;  ///< -0 changes nothing, +0 makes -0 a +0

  int mantissa_bits = 3;         ///< of codes of 8 bits 2 or 3, of 4 bits 1
  std::uint32_t min_normal = 0;  ///< bits of the smallest normal number of the format, as f32
  std::uint32_t largest = 0;     ///< bits of the largest |y|, a number of the format, as f32
  bool ties_toward_zero = false;

  bool drops_sign_of_zero = false;    ///< code 0 has no sign
  bool sign_unless_positive = false;  ///< +0 and -0 have the sign
};

/// How numbers of an FP4 block become codes: those of 16 bits are told apart by their magnitudes,
/// so whatever arithmetic a quantizer has, eight numbers say it all.
struct alignas(64) Fp4Block {
  /// Number 0: the largest magnitude (bits) whose y is zero; k = 1 .. 7: the largest whose code's
  /// magnitude is below k. 0x7FFF = every one. Each twice, as one word: for two lanes.
  std::uint32_t below[8] = {};
  std::uint32_t scale = 0;  ///< of the block, as stored
};

/// Which numbers get the sign bit of an FP4 code.
enum class Fp4SignRule : std::uint8_t {
  bit,           ///< those with a sign bit
  negative,      ///< those with a sign bit whose y is not zero
  nonzero,       ///< those with a sign bit whose code is not zero
  not_positive,  ///< those with a sign bit and those whose y is zero
};

/// The loops of quantizers.
struct EncodeKernels {
  /// amax[b] = the largest magnitude of numbers [b * block, (b + 1) * block), as bits of their type
  /// (f16: of f16); above the type's infinity if one is NaN. `block`: a multiple of kEncodeUnit.
  void (*block_amax)(NumberType type, const std::byte* numbers, std::size_t blocks,
                     std::size_t block, std::uint32_t* amax);
  /// codes[i] of `count` numbers under factors[i / block]; `count` and `block`: multiples of
  /// kEncodeUnit.
  void (*encode_bytes)(NumberType type, const std::byte* numbers, std::size_t count,
                       std::size_t block, const float* factors, const EncodeRule& rule,
                       std::uint8_t* codes);
  /// The same for codes of 4 bits, two a byte, the even one low.
  void (*encode_nibbles)(NumberType type, const std::byte* numbers, std::size_t count,
                         std::size_t block, const float* factors, const EncodeRule& rule,
                         std::uint8_t* codes);
  /// Codes and scales of `blocks` blocks of bf16 or f16 numbers. A block is described by
  /// table[place_of[amax]], amax = the bits of its largest magnitude. Stops at the first block
  /// whose place is 0; the blocks done.
  std::size_t (*encode_fp4)(const std::byte* numbers, std::size_t blocks, std::size_t block,
                            const std::uint16_t* place_of, const Fp4Block* table, Fp4SignRule sign,
                            std::uint8_t* codes, std::byte* scales, std::size_t scale_bytes);
};

}  // namespace moeref::simd
