#pragma once

#include <cstdint>
#include <vector>

#include "layout/backends/fp8_device.hpp"
#include "layout/backends/readings.hpp"
#include "layout/backends/recipe_parts.hpp"

// What SGLang's Triton FP8 backends share.

namespace moeref::backends {

/// SGLANG_MOE_PADDING=1: only the HIP branch appends the 128 zero columns, but the launcher
/// subtracts 128 from K on every platform.
/// Source: sglang fp8.py process_weights_after_loading, sglang@018e2ed1bd1e
/// fused_moe_triton_kernels.py invoke_fused_moe_kernel
inline OptionInfo moe_padding_option() {
  return {"moe_padding",
          {"off", "128", "cuda_upstream"},
          "SGLANG_MOE_PADDING: 128 columns for HIP; on CUDA K loses its last 128"};
}
inline OptionInfo fnuz_option() {
  return {"fnuz", {"off", "on"}, "MI300 reads E4M3FNUZ: 0x80 becomes 0x00, scales double"};
}
inline Fp8Device fp8_device(const Options& options) { return {options.is("fnuz", "on")}; }

/// The zero columns that the kernel steps over. K stays as it is.
inline Steps stepped_over_columns(const Options& options, std::int64_t k) {
  return options.is("moe_padding", "128") ? Steps{PadCols{.to = k + 128}} : Steps{};
}
inline std::int64_t unread_k(const Options& options) {
  return options.is("moe_padding", "cuda_upstream") ? 128 : 0;
}
inline std::vector<std::string> padding_notes(const Options& options) {
  if (unread_k(options) == 0) return {};
  return {"upstream defect: the kernel subtracts 128 from K though nothing was padded"};
}

}  // namespace moeref::backends
