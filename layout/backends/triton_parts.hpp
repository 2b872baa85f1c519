#pragma once

#include <cstdint>
#include <vector>

#include "layout/backends/readings.hpp"
#include "layout/backends/recipe_parts.hpp"
#include "layout/recode/fnuz.hpp"

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

inline bool is_fnuz(const Options& options) { return options.is("fnuz", "on"); }
inline Format fp8_codes(const Options& options) {
  return is_fnuz(options) ? Format::e4m3fnuz : Format::e4m3;
}
inline Steps fnuz_codes(const Options& options) {
  return is_fnuz(options) ? Steps{recode::e4m3fn_to_fnuz()} : Steps{};
}
inline Steps fnuz_scales(const Options& options) {
  return is_fnuz(options) ? Steps{recode::double_scales()} : Steps{};
}
/// A list with every scale doubled if the device reads FNUZ.
inline std::vector<float> fnuz_factors(const Options& options, std::vector<float> scales) {
  if (is_fnuz(options)) {
    for (float& scale : scales) scale = recode::doubled_scale(scale);
  }
  return scales;
}

}  // namespace moeref::backends
