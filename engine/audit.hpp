#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "layout/prepare.hpp"
#include "layout/sample_layer.hpp"

namespace moeref {

/// What the recodings and foldings of a pipeline change in one matrix of the layer.
struct RecodingEffect {
  std::string tensor;    ///< "w13 gate"; "limit" for the limits of the activation
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
  std::string note;              ///< what was not compared, and why; empty = all was
  std::vector<RecodingEffect> effects;
};

/// Whether an option's value names a defect of a framework instead of what is meant: it ends in
/// "_upstream".
bool is_upstream_defect(std::string_view value);
/// The same choice with the default in place of every upstream defect.
Options without_defects(const Backend& backend, const Options& options);

/// Prepares `layer` for the rank, reads the result as the kernel does, runs the exact engine on
/// that and on the logical weights after the stated recodings, and compares all bits. What an
/// upstream defect recodes is no stated recoding: it is held against that of the default. The
/// tokens reach every expert; their elements are signed powers of two and zeros, so that no folded
/// factor rounds them. A rank without rows has no output: its weights are compared. Shared expert,
/// router and latent projections are no part of a weight layout and left out. Error: what
/// plan_layer says.
AuditReport audit(const Backend& backend, const Options& options, const MoeLayer& layer,
                  const Shard& rank, int threads);

/// The layer of two experts with the fewest weights that the backend accepts and that does not
/// survive: hidden up to 512, intermediate a multiple of 8 up to 320. Nothing: all survive.
struct Break {
  SampleShape shape;
  AuditReport report;
};
std::optional<Break> smallest_break(const Backend& backend, const Options& options, int threads);

}  // namespace moeref
