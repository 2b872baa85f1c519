#pragma once

#include <cstdint>

#include "quant/formats.hpp"

namespace moeref {

/// How a number and its block's factor are joined. A NaN result is CUDA's, 0x7FFFFFFF: no sign.
enum class ElementOp : std::uint8_t {
  multiply,      ///< x * factor, rounded to nearest even
  multiply_ftz,  ///< mul.ftz: subnormal operands and results are zero
  divide,        ///< x / factor, rounded to nearest even
  divide_full,   ///< Triton's `/`: gpu::div_full
};

/// A clamp to [-limit, limit]. min and max of the GPU pass over NaN, so their order decides.
enum class ElementClamp : std::uint8_t {
  none,
  low_first,   ///< min(max(y, -limit), limit): NaN gives -limit
  high_first,  ///< max(min(y, limit), -limit): NaN gives limit
  keep_nan,    ///< torch.clamp: NaN stays
};

/// E2M1 codes: which of the codes 0x0 and 0x8, and of x and -x, a sign gives.
enum class Fp4Sign : std::uint8_t {
  bit,           ///< the sign bit: -0 and negative underflow give 0x8
  negative,      ///< y < 0: -0 gives 0x0, negative underflow 0x8
  nonzero,       ///< y < 0 and the code is not 0: no 0x8 at all
  not_positive,  ///< !(y > 0): +0 gives 0x8 too
};

/// E2M1 codes: where a number halfway between two goes.
enum class Fp4Ties : std::uint8_t { even, toward_zero, away };

/// E2M1 codes: what NaN gives.
enum class Fp4Nan : std::uint8_t {
  encoder,  ///< ties to even: what the encoder's policy says; else code 0
  zero,     ///< code 0
  largest,  ///< code 7
  bits,     ///< aiter, torchao: its bits go through the rounding of numbers: 2, 3 or 4
};

/// How the elements of a block become codes: y = x (op) factor, rounded to `quotient`, clamped,
/// encoded.
struct ElementRule {
  ElementOp op = ElementOp::multiply;
  Format quotient = Format::f32;  ///< f32, bf16 or f16: y is rounded to it
  bool adds_zero = false;         ///< a zero point of +0 is added: -0 becomes +0
  ElementClamp clamp = ElementClamp::none;
  float limit = 0.0f;
  Format codes = Format::e4m3;
  /// Rounding to nearest even and what becomes of overflow, infinity, NaN.
  EncodePolicy policy = EncodePolicy::cuda_satfinite;
  /// E2M1 only.
  Fp4Sign sign = Fp4Sign::bit;
  Fp4Ties ties = Fp4Ties::even;
  Fp4Nan nan = Fp4Nan::encoder;
};

/// The code of one number. The caller holds the default float environment.
class ElementCoder {
 public:
  explicit ElementCoder(const ElementRule& rule)
      : rule_(rule), encoder_(&encoder(rule.codes, rule.policy)) {}
  std::uint32_t operator()(float x, float factor) const { return code(scaled(x, factor)); }
  /// y before it is encoded.
  float scaled(float x, float factor) const;
  std::uint32_t code(float y) const;
  const ElementRule& rule() const { return rule_; }

 private:
  ElementRule rule_;
  const Encoder* encoder_;
};

}  // namespace moeref
