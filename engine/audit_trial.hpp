#pragma once

#include <cstdint>

#include "engine/moe.hpp"

namespace moeref {

/// The tokens on which an audit runs layers: every expert is reached four times, each slot with a
/// weight of its own. Hidden elements are signed powers of two and zeros, so that no factor rounds
/// them, near where GEMM1 gives numbers about 1 and no activation saturates.
class AuditTrial {
 public:
  /// `logical`: the layer without padding, from which sizes and magnitudes are taken.
  AuditTrial(const MoeLayer& logical, int threads);

  const Route& route() const { return route_; }
  /// One forward pass in f32; `layer` may have a larger hidden size, whose columns are 0.
  ForwardResult run(const MoeLayer& layer, bool keep_stages) const;

 private:
  Route route_;
  std::int64_t hidden_;
  int exponent_;
  int threads_;
};

}  // namespace moeref
