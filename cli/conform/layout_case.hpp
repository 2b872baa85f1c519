#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cli/conform/ops.hpp"
#include "layout/prepare.hpp"

// How golden cases of layout operations meet the steps and recipes.

namespace moeref::conform {

/// in.`input` ([experts, rows, cols], [rows, cols] or [n]) through `steps`, as a tensor of the
/// prepared shape; compared by bytes and element count, so the stored shape may split it otherwise.
/// `element_bits`: 4 for packed codes, else that of the dtype.
Tensor run_steps(const GoldenCase& golden, std::string_view input, int element_bits,
                 const std::vector<Step>& steps, GateOrder order = GateOrder::separate);

Tensor run_steps(const GoldenCase& golden, const TensorView& view, int element_bits,
                 const std::vector<Step>& steps, GateOrder order = GateOrder::separate);

/// The stack through `steps`; `layer`: what recodings read beside it.
Tensor run_steps(const GoldenCase& golden, const TensorStack& stack, const std::vector<Step>& steps,
                 const LayerTensors* layer = nullptr);

/// The stack as `plan`, made of it, says: a tensor of the prepared shape with the stack's name.
Tensor run_plan(const Plan& plan, const TensorStack& stack);

/// Every matrix of the stack with rows and columns exchanged.
TensorStack transposed(TensorStack stack);

/// Element size for moves of whole elements: wide ones go as 32-bit pieces.
int moved_bits(const TensorView& view);

/// For each place of the output the flat input element, -1 = padding.
std::vector<std::int32_t> source_map(const IndexMap& map);

/// `tensor` with the shape of the stored output, if that has as many bytes.
Tensor shaped_as(Tensor tensor, const GoldenCase& golden, std::string_view output);

/// The inputs w13, w13_scale, w13_bias, w2, w2_scale, w2_bias (those present) as a logical layer.
/// `order`: of the halves in the file; none = not gated. FP4 codes: `code_bits` 4. Scalars are
/// absent; add them.
LayerTensors case_layer(const GoldenCase& golden, GateOrder order, std::string weight_format,
                        int code_bits);

/// The layer with every factor 1, for cases that hold no scalars.
LayerTensors with_unit_factors(LayerTensors layer);

/// Every tensor that `backend` prepares from the layer, by name.
ComputedOutputs run_backend(std::string_view backend, std::span<const std::string> options,
                            LayerTensors layer);

/// A boolean parameter; `fallback` if absent. Error: not a boolean.
bool flag_param(const GoldenCase& golden, std::string_view name, bool fallback);

/// An integer parameter; `fallback` if absent. Error: not an integer.
std::int64_t integer_param(const GoldenCase& golden, std::string_view name, std::int64_t fallback);

}  // namespace moeref::conform
