#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "engine/routing_kernels.hpp"
#include "tests/judge/routing_judge.hpp"

// A second opinion on routing kernels: each one written down from its source as threads, lanes,
// shuffles and sort keys, without the table and the executor of the engine.

namespace moeref::judge {

/// One token as a kernel sees it.
struct GateInput {
  Format type = Format::f32;  ///< of the logits
  std::span<const float> logits;
  std::span<const float> bias;  ///< empty: none
  std::int64_t top_k = 1;
  std::int64_t groups = 1;
  std::int64_t kept_groups = 1;
  bool renormalize = true;
  float scaling = 1.0f;
  std::span<const std::int32_t> given = {};  ///< ids of a kernel that chooses none
  RoutingArithmetic level = RoutingArithmetic::rounded;
  /// TRTLLM-Gen for f32 logits: the weights before they are rounded to bf16.
  bool unrounded = false;
};

/// The route of one token by the kernel of this name (of all_routing_kernels). Equal values that
/// its source does not order go by index. std::logic_error for a name that it does not know.
TokenRoute route_token_as(std::string_view kernel, const GateInput& input);

// ---------------------------------------------------------------------- what the files share

/// f32 arithmetic of a build: 0 = correct functions, else nvcc's.
struct Device {
  RoutingArithmetic level = RoutingArithmetic::rounded;

  float plus(float a, float b) const;
  float minus(float a, float b) const { return plus(a, -b); }
  float times(float a, float b) const;
  float over(float a, float b) const;
  float exp(float x) const;
  float log1p(float x) const;
  /// 1.0f / (1.0f + expf(-x)) and the same with __expf.
  float sigmoid(float x) const;
  float sigmoid_intrinsic(float x) const;
  float sigmoid_tanh(float x) const;
};

/// Adds over a group of lanes by exchanges with lane ^ mask.
float butterfly(const Device& device, std::vector<float> lanes);
/// expf over all, each times 1 / their sum, by 256 threads.
std::vector<float> softmax_by_block(const Device& device, std::span<const float> logits);
/// A number of the type, as f32.
float to_type(Format type, float x);

TokenRoute trtllm_route(std::string_view kernel, const GateInput& input);
TokenRoute sgl_route(std::string_view kernel, const GateInput& input);
TokenRoute framework_route(std::string_view kernel, const GateInput& input);

}  // namespace moeref::judge
