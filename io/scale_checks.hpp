#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "quant/tensor.hpp"

namespace moeref {

/// Element `index` of a BF16, F16 or F32 tensor; exact.
float float_at(const TensorView& tensor, std::int64_t index);

// Scales that no quantizer writes are errors: they say that the file is damaged or not what its
// names promise.

/// Error: NaN or infinity in a BF16, F16 or F32 tensor.
void check_finite_scales(const std::string& subject, const TensorView& scales);
/// NVFP4 block scales. Error: a NaN, or a set sign bit.
void check_ue4m3_scales(const std::string& subject, std::span<const std::byte> codes);
/// Error: 0xFF, the NaN of E8M0.
void check_e8m0_scales(const std::string& subject, std::span<const std::byte> codes);

}  // namespace moeref
