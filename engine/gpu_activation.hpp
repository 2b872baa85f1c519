#pragma once

#include "quant/dtype.hpp"
#include "quant/numerics.hpp"

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

/// silu(gate) * up in f32 as sgl-kernel computes it with -use_fast_math (its SM90 library):
/// (g div.approx (1 + expf(-g))) u, .ftz.  Measured on an H200 for every bf16 gate.
/// Source: sgl-project/sglang@072efcb8 jit_kernel/csrc/elementwise/activation.cuh
float silu_and_mul_fast(float gate, float up);
/// The same without fast math (its SM100 library): (g div.rn fma(2^r, 2^j, 1)) u.
float silu_and_mul_precise(float gate, float up);
/// silu(gate) of Triton's act_and_mul_kernel: g (1 div.full (1 + ex2(-g log2(e)))).
/// Source: sgl-project/sglang@018e2ed1 fused_moe_triton_kernels.py act_and_mul_kernel
float silu_triton(float gate);
/// SGLang's functions through torch.compile (2.11), f32 from the inputs on; min and clamp let NaN
/// through. Source: sgl-project/sglang@01ab993a moe_runner/triton_utils/fused_moe.py
///   clamp after: min(g div.full (1 + expf(-g)), L) clamp(u, -L, L)
///   gptoss: gc = min(g, L): (gc (1 div.full (1 + ex2((gc -alpha) log2(e))))) (clamp(u, -L, L) +
///   beta)
float silu_clamp_after_compiled(float gate, float up, float limit);
float gptoss_compiled(float gate, float up, const ActivationParameters& parameters);
/// max(x, 0)^2 in f32, NaN through.
float relu2_plain(float x);

}  // namespace moeref::gpu
