#pragma once

#include <optional>

#include "quant/element_rule.hpp"
#include "simd/encode.hpp"

namespace moeref {

/// An element rule as the vector loops carry it out, for blocks of ordinary numbers.
class VectorRule {
 public:
  /// Nothing if the loops have no such rule.
  static std::optional<VectorRule> of(const ElementRule& rule);

  /// The factor that the loops take for a block with this amax and factor. Nothing if they could
  /// give another code than ElementCoder for a number up to amax: a NaN or infinity on the way, a
  /// code beyond the largest one, a flush to zero that a code would show.
  std::optional<float> factor(float amax, float factor) const;
  const simd::EncodeRule& loops() const { return loops_; }

 private:
  explicit VectorRule(const ElementRule& rule) : coder_(rule) {}
  ElementCoder coder_;
  simd::EncodeRule loops_;
};

}  // namespace moeref
