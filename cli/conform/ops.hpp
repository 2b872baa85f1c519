#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "cli/conform/comparison.hpp"

namespace moeref::conform {

/// What carrying out an operation gives: its outputs, and verdicts on other things that the case
/// states.
struct OpResult {
  ComputedOutputs outputs;
  std::vector<Finding> statements;
};

/// One operation: from inputs and params to outputs. Error: inputs or params that the operation
/// cannot take.
using Operation = OpResult (*)(const GoldenCase& golden);

struct NamedOperation {
  std::string_view op;
  Operation run;
};

/// Every operation that moeref knows: one line an op name.
std::span<const NamedOperation> all_operations();
/// The operation, or nullptr.
Operation find_operation(std::string_view op);

/// The operations of one area, in its own file.
std::span<const NamedOperation> layout_trtllm_operations();
std::span<const NamedOperation> layout_nvidia_operations();
std::span<const NamedOperation> layout_marlin_operations();
std::span<const NamedOperation> layout_triton_operations();
std::span<const NamedOperation> layout_deepgemm_operations();
std::span<const NamedOperation> layout_amd_operations();
std::span<const NamedOperation> aiter_forward_operations();
std::span<const NamedOperation> quantizer_operations();
std::span<const NamedOperation> gpu_operations();
std::span<const NamedOperation> matrix_operations();
std::span<const NamedOperation> forward_operations();

/// f32, bf16 or f16 to codes. params: flavour, format, input, device. in: f32_bits, or range =
/// [first, end) of the bit patterns of type `input`. out: "[<format>_]<policy>[_bits]".
OpResult run_encode(const GoldenCase& golden);
/// Codes to f32, bf16, f16 bits. params: flavour. in: <format>_codes, or all codes in order. out:
/// "<format>_<type>_bits".
OpResult run_decode(const GoldenCase& golden);
/// A whole MoE block of a checkpoint. params: checkpoint (a folder beside the case), layer,
/// dequant_sha256. in: hidden, input_ids, router_logits_f64. out: topk_ids, topk_weights,
/// routed_f64, slot_f64, shared_f64, final_f64 (from the stored ids and weights), module_f32 (from
/// hidden alone).
OpResult run_moe_block(const GoldenCase& golden);
/// Routing alone. params: checkpoint, layer, routing_and_activation.k. in: router_logits_f32 (or
/// _f64), correction_bias, input_ids. out: topk_ids, topk_weights.
OpResult run_moe_routing(const GoldenCase& golden);

}  // namespace moeref::conform
