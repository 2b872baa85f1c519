#pragma once

#include <optional>

// Activations as GPU kernels compute them, on exact models of the approximate instructions.

namespace moeref::gpu {

/// Activation of FlashInfer's CUTLASS MoE.
enum class MoeActivation {
  swiglu,       ///< silu(gate) * up
  swiglu_bias,  ///< alpha, beta, limit: gate sigmoid(alpha gate) (up + beta), clamped before
  swiglu_step,  ///< limit: min(silu(gate), limit) * clamp(up)
  relu2,        ///< max(gate, 0)^2; up is not read
  situ,         ///< alpha = beta of tanh, beta = the linear one
};

struct ActivationParameters {
  float alpha = 1.0f;
  float beta = 0.0f;
  float limit = 0.0f;  ///< infinity = none
};

/// The f32 value before the kernel's conversion, every operation .ftz and rounded once:
/// swiglu: (g sig(g)) u.  swiglu_bias: uc = max(min(u, L), -L), gc = min(g, L), (gc sig(alpha gc))
/// (beta + uc).  swiglu_step: min(g sig(g), L) max(min(u, L), -L).  relu2: r = max.NaN(g, +0), r r.
/// sig(x) = rcp.approx(1 + ex2.approx(-log2(e) x)). NaN in min and max is passed over, but in
/// relu2. Measured on an H200 over all bf16 gates, situ excepted.
/// Source: flashinfer@fb28d7242b35 csrc/fused_moe/cutlass_backend/cutlass_fused_moe_kernels.cuh
/// doActivationKernel, doGatedActivationKernel, built with -use_fast_math.
float flashinfer_moe_activation(MoeActivation kind, float gate, float up,
                                const ActivationParameters& parameters);

}  // namespace moeref::gpu
