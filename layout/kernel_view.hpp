#pragma once

#include <cstdint>
#include <span>

#include "layout/prepare.hpp"
#include "quant/moe_layer.hpp"

namespace moeref {

/// The prepared tensors as the kernel reads them: each tensor with the kernel's own steps undone
/// over the sizes that KernelReading names, halves told apart by its order, scales decoded, factors
/// from the prepared scalars. `made` are all tensors of `prepared`, in its order. The layer has
/// intermediate and hidden with padding, owns what it needs, and no router. Its activation is
/// swiglu or relu2 with the parameters that the kernel reads, those of the source where the
/// framework takes them from the model. Error: a tensor whose bytes are not as many as the kernel
/// expects, copies that differ, scales that the reading does not say how to decode, limits of gate
/// and up that differ.
MoeLayer kernel_layer(const PreparedLayer& prepared, std::span<const Tensor> made, int threads = 1);

/// A layer as a kernel takes it.
struct KernelLayer {
  /// Matrices with block scales and their whole factor. hidden (of latent layers: latent) and
  /// intermediate have the kernel's padding.
  MoeLayer layer;
  std::int64_t width = 0;                ///< hidden (latent) without padding
  GateOrder order = GateOrder::gate_up;  ///< of the columns that GEMM1 writes
  std::vector<float> gate_factors;       ///< [local experts]: what the kernel multiplies the sums
  std::vector<float> up_factors;         ///< by, activation scales included; empty = 1
  std::vector<float> down_factors;
  ScalarValues scalars;  ///< prepared numbers by name
};

/// The logical layer itself, with nothing prepared.
KernelLayer unprepared_layer(const MoeLayer& layer);
/// What the kernel reads of prepared weights (kernel_layer) with its factors and scalars.
KernelLayer prepared_kernel_layer(const PreparedLayer& prepared, std::span<const Tensor> made,
                                  int threads = 1);
/// Together with router, shared expert, latent projections and activation of `logical`, the rank's
/// own part of the layer.
KernelLayer prepared_kernel_layer(const PreparedLayer& prepared, std::span<const Tensor> made,
                                  const MoeLayer& logical, int threads = 1);

/// The logical layer after the recodings alone: every Recode step of the recipe carried out on the
/// loaded tensors, nothing moved or padded, scales, factors and a folded limit read as the kernel
/// does. `loaded` is
/// the rank's own part, from which `prepared` was planned; biases that the backend does not prepare
/// stay as they are.
MoeLayer recoded_layer(const PreparedLayer& prepared, const MoeLayer& loaded, int threads = 1);

/// What a kernel multiplies a whole matrix by. A weight's value is
/// code * block scale * factor / input_scale; MoeLayer holds that quotient rounded to f32.
struct KernelFactor {
  float factor = 1.0f;
  float input_scale = 1.0f;
};
/// Of Expert::gate, up or down, from the prepared scalars.
KernelFactor kernel_factor(const KernelReading& reading, const ScalarValues& scalars,
                           ExpertPart part, std::int64_t expert);
/// The prepared scalars as planned.
ScalarValues planned_scalars(const PreparedLayer& prepared);
/// Error (names the backend): a gated layer whose alpha, beta or limit is not what the kernel
/// applies. A limit that is folded counts as right.
void check_activation(const PreparedLayer& prepared);

}  // namespace moeref
