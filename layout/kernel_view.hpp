#pragma once

#include <span>
#include <vector>

#include "layout/prepare.hpp"
#include "quant/moe_layer.hpp"

namespace moeref {

/// The prepared tensors as the kernel reads them: each tensor with the kernel's own steps undone
/// over the sizes that KernelReading names, halves told apart by its order, scales decoded, factors
/// from the prepared scalars. `made` are all tensors of `prepared`, in its order. The layer has
/// intermediate and hidden with padding, owns what it needs, and no router.
/// Error: a tensor whose bytes are not as many as the kernel expects.
MoeLayer kernel_layer(const PreparedLayer& prepared, std::span<const Tensor> made);

/// The logical layer after the recodings alone: every Recode step of the recipe carried out on the
/// loaded tensors, nothing moved or padded, scales and factors read as the kernel does.
MoeLayer recoded_layer(const PreparedLayer& prepared, const MoeLayer& loaded);

}  // namespace moeref
