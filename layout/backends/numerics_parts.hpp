#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "layout/backend.hpp"

// Rounding points that backends share. Source of what is not measured: spec tables of the stacks'
// own kernels, see each backend.

namespace moeref::backends {

/// bf16 hidden states; every stage bf16; the combine is an f32 sum over the slots, rounded once.
Numerics bf16_stages();
/// The matrix unit of Hopper's wgmma for operands of one type: e4m3, bf16 or f16.
FusedDot hopper_wgmma(Format operand);
/// Error: level replay; names the reason and --numerics backend.
void refuse_replay(const NumericsRequest& request, std::string_view backend,
                   std::string_view reason);
/// A quantizer with its options and the prepared scalar that is its scale.
ActivationQuantizer by(std::string_view quantizer, std::vector<std::string> options = {},
                       std::string_view scale = {});

namespace cutlass {

/// use_fused_finalize of the tactic.
OptionInfo finalize_option();
/// bf16 activations into the fused MoE of FlashInfer CUTLASS, and its own sums on Hopper for
/// `operand` weights: one chain, times the expert's number, both .ftz; bias in the activation;
/// unfused finalize, or fused with finalize=fused.
/// Error: replay of a fused finalize for more than two slots, or of an activation that was not
/// measured.
/// Source: flashinfer@fb28d7242b35 csrc/fused_moe/cutlass_backend/cutlass_fused_moe_kernels.cuh
/// doActivationKernel, finalizeMoeRoutingKernel; launchers/moe_gemm_tma_ws_launcher.inl
Numerics numerics(const NumericsRequest& request, std::string_view backend, Format operand);
inline constexpr std::string_view kBlackwellReason =
    "its kernels are for Blackwell, whose block-scaled main loops nobody has measured";

}  // namespace cutlass

namespace trtllm {

/// The type in which router weights reach the kernel: packed with the expert's number, or apart.
OptionInfo router_weights_option(std::string_view first);
/// GEMM1 with its activation in one kernel, f32 between them. What the activation leaves is bf16
/// where it is quantized in blocks, as FlashInfer's own tests quantize it
/// (tests/moe/test_trtllm_gen_fused_moe.py run_moe_dequant).
/// Source: flashinfer@fb28d7242b35 csrc/trtllm_fused_moe_dev_kernel.cu finalizeKernel; the GEMMs
/// are closed: inferred from their arguments.
Numerics numerics(const NumericsRequest& request, std::string_view backend);

}  // namespace trtllm

namespace triton {

/// Tiles, build and forms of SGLang's fused MoE: path, BLOCK_SIZE_M, BLOCK_SIZE_N, BLOCK_SIZE_K,
/// num_warps, swap_ab, group_quant, token_kernel, combine, combine_order. Numbers that are 0 take
/// what SGLang's default configuration has.
std::vector<OptionInfo> kernel_options();

enum class Scales : std::uint8_t { none, tensor, channel, block };

/// SGLang's fused_moe_kernel with its quantizers, activations and combines.
/// Error: tiles that the kernel does not take; replay of an activation that was not measured.
/// Source: sgl-project/sglang@018e2ed1 fused_moe_triton_kernels.py fused_moe_kernel;
/// @01ab993a moe_runner/triton_utils/fused_moe.py
Numerics numerics(const NumericsRequest& request, std::string_view backend, Scales scales);

}  // namespace triton

namespace marlin {

/// bf16 activations, f32 sums; weights rounded to bf16 multiply rounded rows.
/// Error: the option params=f16.
/// Source: sglang@027f557af100 fused_marlin_moe.py
Numerics numerics(const NumericsRequest& request, std::string_view backend);

}  // namespace marlin

namespace deepgemm {

/// layout (masked, contiguous), combine (post_reorder, deepep).
std::vector<OptionInfo> kernel_options();
/// Error: sizes that are no multiples of 128.
/// Source: sglang@007baab6e1d2 moe_runner/deep_gemm.py; sglang@006f9b3a8f77 ep_moe/kernels.py
/// post_reorder_triton_kernel
Numerics numerics(const NumericsRequest& request, std::string_view backend, bool ue8m0);

}  // namespace deepgemm

namespace aiter {

/// doweight_stage1.
OptionInfo weight_option();
/// bf16 after stage 1, f32 weighted sum, bf16.
/// Source: ROCm/aiter@e4048607a5 aiter/fused_moe.py torch_moe_stage1, torch_moe_stage2
Numerics numerics(const NumericsRequest& request, std::string_view backend,
                  const ActivationQuantizer& quantizer);

}  // namespace aiter

}  // namespace moeref::backends
