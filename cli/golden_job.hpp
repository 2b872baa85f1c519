#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "cli/moe_case.hpp"
#include "io/layer_inputs.hpp"
#include "io/safetensors.hpp"
#include "quant/moe_layer.hpp"

namespace moeref::cli {

/// A golden file of moeref, with all that it was computed from.
struct GoldenJob {
  std::shared_ptr<const SafetensorsFile> file;
  std::string checkpoint;  ///< its folder
  MoeLayer layer;
  LayerInputs inputs;
  CaseOptions options;
};

/// `checkpoint`: the folder of the checkpoint; empty = the folder that the file names, beside it or
/// here. Error: no golden file, a checkpoint that is not there or holds another layer, numerics
/// that this build does not know.
GoldenJob read_golden_job(const std::string& source, const std::string& checkpoint);

/// Experts [begin, end).
struct ExpertRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};
/// The experts of the rank, if the stages of a golden file have the rows of one expert after the
/// other; nothing if not. Error: metadata params without proper experts and rank.
std::optional<ExpertRange> rows_by_expert(const SafetensorsFile& golden);

}  // namespace moeref::cli
