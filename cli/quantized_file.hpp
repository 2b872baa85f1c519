#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "quant/quantize.hpp"

// Files of quantized tensors: codes and scales under names made of the tensor's, and in the
// metadata what they are.

namespace moeref::cli {

/// Metadata "op" of the files.
inline constexpr std::string_view kQuantizedTensors = "quantized_tensors";

/// One tensor of such a file: a matrix for each expert.
struct QuantizedEntry {
  std::string name;  ///< of the tensor that was quantized
  Shape shape;       ///< its shape: [.., rows, cols]
  std::string codes;
  std::string scales;
  std::string global;       ///< empty = none
  std::string scale_steps;  ///< layout steps that the scales went through; empty = none
  QuantizedForm form;

  std::int64_t rows() const { return shape[shape.size() - 2]; }
  std::int64_t cols() const { return shape.back(); }
  std::int64_t experts() const;
  Shape row_scales_shape() const;  ///< [.., row blocks, column blocks], before scale_steps
};

nlohmann::json to_json(const QuantizedEntry& entry);
/// Every entry of a file. Error: metadata that do not fit.
std::vector<QuantizedEntry> quantized_entries(const SafetensorsFile& file);
bool is_quantized(const SafetensorsFile& file);

/// Scales [experts, rows, cols] through layout steps, and back.
Tensor with_steps(const TensorView& scales, const QuantizedEntry& entry, int threads);
/// Error: another dtype or shape, or pads that are not what the steps write.
std::vector<std::byte> without_steps(const SafetensorsFile& file, const QuantizedEntry& entry,
                                     int threads);

/// Error: tensors that are absent or do not fit the entry. Scales that went through steps are for
/// `without_steps` to check.
void check_stored(const SafetensorsFile& file, const QuantizedEntry& entry);
/// Whether the global scale is one a row. Error: no such tensor.
bool has_row_scales(const SafetensorsFile& file, const QuantizedEntry& entry);
/// The matrix of expert `number` with its storage in the file, `row` alone if the global scale is
/// one a row. `scales`: of all experts, in rows. The entry has been through `check_stored`.
ScaledMatrix stored_matrix(const SafetensorsFile& file, const QuantizedEntry& entry,
                           std::span<const std::byte> scales, std::int64_t number,
                           std::optional<std::int64_t> row);

}  // namespace moeref::cli
