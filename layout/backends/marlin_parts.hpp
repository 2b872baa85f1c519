#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "layout/backends/recipe_parts.hpp"

// What the Marlin backends share.

namespace moeref::backends::marlin {

/// params=bf16 or f16: the 16-bit type of the activations, which decides codes and factors.
OptionInfo params_option();
DType params(const Options& options);
/// Error: params=f16, for E8M0 scales. The kernels decode them for bf16 only; an FP16 parameter
/// would also lose every scale outside 2^-24 .. 2^15.
/// Source: vLLM marlin dequant.h dequant_fp8_scales<nv_bfloat162, kFE8M0fnu>
void need_bf16(std::string_view backend, const Options& options);

/// A weight's codes as Marlin words.
TensorRecipe codes(std::string name, Slot slot, Steps framework, int bits,
                   bool eight_bit_activations = false);
/// w13_bias and w2_bias in the parameter type, permuted along n; none if the layer has none.
std::vector<TensorRecipe> biases(const LayerShape& shape, DType params, const Steps& w13_pad,
                                 const Steps& w2_pad = {});

/// Gate before up; rows and columns with padding.
KernelReading reading(const LayerShape& shape, std::int64_t intermediate, Format codes);
/// A note for every GEMM whose size no thread block of the kernel divides: K % 64 and N % 128, or
/// K % 128 and N % 64. Preparation does not look at it, the launch fails.
/// Source: vLLM marlin.cu small_batch_thread_configs, large_batch_thread_configs
void note_thread_tiles(Recipe& recipe, const LayerShape& shape, std::int64_t intermediate);

}  // namespace moeref::backends::marlin
