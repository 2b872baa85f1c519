#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "io/inspect/findings.hpp"
#include "io/inspect/tensor_set.hpp"
#include "io/inspect/value_statistics.hpp"
#include "io/inspect/weight_forms.hpp"

namespace moeref {

struct InspectOptions {
  bool values = true;  ///< read the tensors, not only the headers
  std::string
      tensor_pattern;  ///< names to show: a glob with * and ?, or a part of the name; empty = all
  int threads = 0;     ///< 0 = all
  /// Called from the calling thread with bytes done and bytes in all.
  std::function<void(std::uint64_t, std::uint64_t)> progress;
};

/// Tensors of one form of name, one dtype and one shape; a single tensor if a pattern was given.
struct TensorRow {
  std::string name;  ///< "model.layers.{3..60}.mlp.experts.{0..255}.up_proj.weight"
  std::int64_t count = 0;
  DType dtype = DType::u8;
  Shape shape;
  std::uint64_t bytes = 0;  ///< of all of them
  std::string meaning;      ///< "NVFP4 (ModelOpt) [208, 128]", "e8m0 scale of 1x32"; may be empty
  std::optional<ValueStatistics> values;  ///< of all of them
};

struct InspectReport {
  std::size_t files = 0;
  std::size_t tensors = 0;
  std::uint64_t bytes = 0;
  std::vector<TensorRow> rows;
  std::vector<Finding> findings;
};

/// Error: nothing to read at `path`, a damaged file, a pattern that no tensor matches.
InspectReport inspect(const std::filesystem::path& path, const InspectOptions& options);

/// What the values of one tensor showed.
struct TensorValues {
  ValueStatistics statistics;
  std::vector<ByteDigest> experts;  ///< one for each expert of a stack; one for other tensors
};
using ValuesByTensor = std::map<const TensorView*, TensorValues>;

/// What shapes and names say: expert numbers with gaps or unlike in two layers or unlike the
/// config, tensors at odd offsets.
void check_structure(const TensorSet& set, std::span<const WeightForm> forms, Findings& findings);
/// What the values say: see the codes in the implementation, each with its reason.
void check_values(const TensorSet& set, std::span<const WeightForm> forms,
                  const ValuesByTensor& values, Findings& findings);
/// Experts that are equal, all zero, or whose gate equals their up; gate and up with different
/// NVFP4 global scales.
void check_experts(const TensorSet& set, std::span<const WeightForm> forms,
                   const ValuesByTensor& values, Findings& findings);

/// The place of a weight among experts: "model.layers.0.mlp.experts." 17 "up_proj". `projection` is
/// empty if the name has no part "experts"; `expert` is -1 for a stack.
struct ExpertPlace {
  std::string layer;
  std::int64_t expert = -1;
  std::string projection;
};
ExpertPlace expert_place(const WeightForm& form);

}  // namespace moeref
