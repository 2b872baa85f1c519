#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cli/case_writer.hpp"
#include "cli/layout_json.hpp"
#include "io/safetensors.hpp"
#include "layout/prepare.hpp"

// Prepared weights in a file: the tensors under the names by which the kernel takes them, and in
// the metadata all that is needed to undo and explain them. An expert's part is made, or undone, at
// a time.

namespace moeref::cli {

/// Metadata "op" of the files.
inline constexpr std::string_view kPreparedWeights = "prepared_weights";
inline constexpr std::string_view kPreparedTensor = "prepared_tensor";
inline constexpr std::string_view kLogicalWeights = "logical_weights";

/// Where prepared weights come from, for the metadata.
struct Origins {
  std::string checkpoint;             ///< folder or file, its last name alone
  std::optional<std::int64_t> layer;  ///< absent = not known
};

/// {backend, options, checkpoint, layer, tp, ep, range, shape, sources, scalars, formulas, views}
nlohmann::json prepared_params(const PreparedLayer& layer, const Origins& origins);
/// The same for a single tensor: {steps, source, view}. `steps` as the user wrote them.
nlohmann::json prepared_tensor_params(const PreparedLayer& layer, const std::string& steps);

/// The shape under which a tensor is written: that of its bytes in their order. A kernel's view
/// with strides is a permutation of it and stands in the metadata.
Shape written_shape(const PreparedTensor& tensor);
/// Adds every tensor of a layer as `prefix` + name. The writer keeps the layer alive.
void add_prepared(CaseWriter& writer, const std::shared_ptr<const PreparedLayer>& layer,
                  const std::string& prefix, int threads);

/// Plans the matrices of a layer that has no data (`empty_layer`, `layer_from_json`); factors made
/// from scalars have no values. `most`: elements of the largest tensor that makes sense.
PreparedLayer plan_empty(const Backend& backend, const Options& options, LayerTensors tensors,
                         const StoredRank& rank, std::int64_t most);
/// A layer of one tensor, without a backend.
PreparedLayer plan_single(const std::string& tensor, TensorStack stack, std::vector<Step> steps,
                          std::int64_t most);

/// An opened file of prepared weights, or a golden case that holds some.
struct PreparedFile {
  std::shared_ptr<const SafetensorsFile> file;
  std::string prefix;  ///< of the tensors' names
  nlohmann::json params;
  PreparedLayer layer;

  std::string subject(const std::string& tensor) const;
  /// The stored tensor of a planned one. Error: absent, or not as the plan has it.
  const TensorView& stored(const PreparedTensor& tensor) const;
};
/// Error: not such a file; metadata that do not fit.
PreparedFile open_prepared(const std::filesystem::path& path);
/// True if the metadata say that it is one.
bool is_prepared(const SafetensorsFile& file);

/// A planned tensor by its name. Error: none such; names the known ones.
std::size_t find_tensor(const PreparedLayer& layer, const std::string& name);

/// Some experts of a tensor, to make or undo on their own.
struct ExpertPiece {
  std::int64_t first = 0;  ///< local expert
  IndexMap map;
  Recoders recoders;
};
/// Experts [first, first + count).
ExpertPiece piece_of(const IndexMap& map, const Recoders& recoders, std::int64_t first,
                     std::int64_t count);
/// Cuts a tensor into pieces of at most about 64 MB, or one expert for each thread.
void for_each_piece(const IndexMap& map, const Recoders& recoders, int threads,
                    const std::function<void(const ExpertPiece&)>& visit);

}  // namespace moeref::cli
