#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/case_writer.hpp"
#include "cli/layout_json.hpp"
#include "cli/prepared_file.hpp"
#include "io/safetensors.hpp"
#include "quant/moe_layer.hpp"

namespace moeref::cli {

/// Adds the shared expert, which no backend prepares, as `prefix`w13 [1, 2 I, K] (gate rows, then
/// up; [1, I, K] non-gated) and w2 [1, N, I] in their stored element format (FP4 packed, low nibble
/// first), their scales as stored, global scales and biases. Nothing if the layer has none.
void add_shared_weights(CaseWriter& writer, const MoeLayer& layer, const std::string& prefix);

/// Calls `visit` with the name, shape and numbers of what a logical layer has beside its matrices:
/// w13_scale_2 [E, halves] and w2_scale_2 [E] (global scales that multiply; w13_scale, w2_scale
/// where a matrix has no others), w13_input_scale [all E, halves], w2_input_scale [all E],
/// swiglu_alpha, _beta, _limit [E].
void for_each_logical_scalar(const LayerTensors& layer,
                             const std::function<void(const std::string& tensor, const Shape& shape,
                                                      const std::vector<float>& values)>& visit);
/// Adds them as f32 tensors; swiglu_* only if one of them is not the default.
void add_logical_scalars(CaseWriter& writer, const LayerTensors& layer);

/// The logical weights of a tensor file, read as a layer.
struct LogicalFile {
  MoeLayer layer;  ///< views into the file; the activation as far as the file tells it
  /// A rank's part: what is stored of the layer it was cut from. `layer` is the part alone.
  std::optional<LayerTensors> part;
  StoredRank rank;
  Origins origins;  ///< of the layer, as far as the file tells; else the file itself
};

/// What the file may leave open.
struct LogicalHints {
  std::string order;   ///< of gate and up rows, as --order; empty: the file says it
  std::string format;  ///< weight format; empty: the file says it
};

/// True if the file has w13 or weights.w13.
bool holds_logical_weights(const SafetensorsFile& file);
/// Tensors w13 [E, rows, cols], w2, and as the format needs them w13_scale, w2_scale, w13_bias,
/// w2_bias, w13_scale_2 (or w13_global_scale, which divides), w2_scale_2, w13_input_scale,
/// w2_input_scale, swiglu_alpha, swiglu_beta, swiglu_limit; all may have the prefix "weights.".
/// Error: a tensor that does not fit; weights prepared for a backend; an order or a format that
/// neither the file nor a hint says.
LogicalFile read_logical_weights(const std::shared_ptr<const SafetensorsFile>& file,
                                 const LogicalHints& hints);

}  // namespace moeref::cli
