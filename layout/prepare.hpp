#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "layout/backend.hpp"
#include "layout/shard.hpp"

namespace moeref {

/// One tensor of a prepared layer, not yet made.
struct PreparedTensor {
  std::string name;
  DType dtype = DType::u8;
  Shape shape;
  std::vector<std::int64_t> strides;  ///< of the kernel's view, if it is not contiguous
  Plan plan;                          ///< matrices: how it is made
  const TensorStack* from =
      nullptr;                ///< matrices: of what, in PreparedLayer::source; null = `values`
  std::vector<float> values;  ///< scalars and per-expert factors, f32
};

/// All tensors that a backend hands to its kernel for one rank of one layer: planned and checked,
/// made when asked.
struct PreparedLayer {
  const Backend* backend = nullptr;
  Options options;
  std::shared_ptr<const LayerTensors> source;
  Shard rank;
  LoadedRange range;  ///< rows of each half of w13 that the rank loaded
  Recipe recipe;
  std::vector<PreparedTensor> tensors;
  std::vector<std::shared_ptr<const void>> storage;  ///< keeps the mapped files alive
};

/// The rows of each half of w13 that the backend's loader gives the rank. `whole`: of all ranks.
/// Error: what loaded_range says.
LoadedRange loaded_range(const Backend& backend, const Options& options, const LayerShape& whole,
                         const Shard& rank);
/// Makes the shape of all ranks that of the rank that loads `range`.
void set_share(LayerShape& shape, const LoadedRange& range, const Shard& rank);

/// Cuts the layer for the rank as the backend's loader does, checks every rule and plans every
/// tensor. Error: before any byte is moved; names the backend's rule or the tensor.
PreparedLayer plan_layer(const Backend& backend, const Options& options, const MoeLayer& layer,
                         const Shard& rank);
/// The same for logical tensors that are already loaded (a golden case, a tensor file).
PreparedLayer plan_tensors(const Backend& backend, const Options& options, LayerTensors tensors);

/// One matrix of a recipe from `stack`, which must outlive it. `layer`: null = the map alone, as
/// for append. `most_elements`: of the plan.
PreparedTensor plan_matrix(const TensorRecipe& recipe, const TensorStack& stack,
                           const LayerTensors* layer, std::int64_t most_elements = kMostElements);

std::int64_t byte_count(const PreparedTensor& tensor);
/// Makes one tensor; `out` has byte_count bytes.
void make(const PreparedTensor& tensor, std::span<std::byte> out, int threads);
Tensor make(const PreparedTensor& tensor, int threads);

}  // namespace moeref
