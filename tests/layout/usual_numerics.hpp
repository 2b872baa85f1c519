#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "layout/backend.hpp"

// The numerics of a gated layer without parameters of which 256 divides every size.

namespace moeref::testing {

inline NumericsRequest usual(const Backend& backend) {
  NumericsRequest request;
  request.shape.hidden = request.shape.intermediate = request.shape.stride = 1024;
  request.shape.experts = request.shape.total_experts = 8;
  request.options = parse_options(backend, {});
  request.kernel = parse_kernel_options(backend, {});
  request.tokens = 64;
  request.top_k = 2;
  request.static_scales = true;
  return request;
}

inline NumericsRequest with_kernel(const Backend& backend, std::vector<std::string> texts) {
  NumericsRequest request = usual(backend);
  request.kernel = parse_kernel_options(backend, texts);
  return request;
}

inline Numerics of(std::string_view backend, std::vector<std::string> kernel = {}) {
  return numerics_for(find_backend(backend), with_kernel(find_backend(backend), std::move(kernel)));
}

}  // namespace moeref::testing
