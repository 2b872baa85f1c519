#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layout/prepare.hpp"

namespace moeref {

/// What the recodings and foldings of a pipeline change in one matrix of the layer.
struct RecodingEffect {
  std::string tensor;    ///< "w13 gate"
  std::string recoding;  ///< names of the steps, and the folded factor's formula
  std::int64_t weights = 0;
  std::int64_t changed = 0;            ///< weights whose value is another
  double largest_change = 0.0;         ///< relative to the largest weight of the matrix
  double largest_output_change = 0.0;  ///< of the layer with this recoding alone, relative likewise
};

/// Whether a backend keeps the function of a layer.
struct AuditReport {
  std::string backend;
  LayerShape shape;
  bool survives = false;
  std::int64_t outputs = 0;
  std::int64_t differing = 0;
  std::string first_difference;  ///< token, column, both values; which matrix is read wrongly where
  std::vector<RecodingEffect> effects;
};

/// Prepares `layer` for the rank, reads the result as the kernel does, runs the exact engine on
/// that and on the logical weights after the stated recodings, and compares all bits. Error: what
/// plan_layer says.
AuditReport audit(const Backend& backend, const Options& options, const MoeLayer& layer,
                  const Shard& rank, int threads);

}  // namespace moeref
