#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/commands.hpp"
#include "engine/audit.hpp"
#include "layout/sample_layer.hpp"
#include "layout/shard.hpp"

// Sample layers on which `moeref layout audit` tries a backend.

namespace moeref::cli {

/// One layer to audit on one rank.
struct Trial {
  SampleShape shape;
  Shard rank;
};

/// What became of a trial: a report, or why the backend refuses the layer.
struct Outcome {
  Trial trial;
  std::optional<AuditReport> report;
  std::string refusal;
};

/// The shape as --shape takes it.
std::string shape_text(const SampleShape& shape);
std::string trial_text(const Trial& trial);

/// The sample layers by what became of them.
struct Zoo {
  std::vector<Outcome> outcomes;
  std::vector<const Outcome*> broken;
  std::int64_t survived = 0;
  std::int64_t refused = 0;
};

/// Error: the backend refuses all of them.
Zoo audit_samples(const Backend& backend, const Options& options, const GlobalOptions& global);

/// Option values that are not the defaults, and the smallest shape that breaks with them.
struct Variant {
  std::vector<std::string> texts;
  std::int64_t tried = 0;
  std::optional<Break> found;
  std::string refusal;  ///< why it takes none of the shapes

  std::string text() const;
};

/// Every other option value on its own; where it survives, together with one of another option: a
/// defect may hide behind a loader that pads.
std::vector<Variant> try_variants(const Backend& backend, const GlobalOptions& global);

}  // namespace moeref::cli
