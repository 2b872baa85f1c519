#pragma once

#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "layout/backend.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

// What kernels take prepared tensors for: parts of KernelReading that several backends share.

namespace moeref::backends {

inline GateOrder gate_first(const LayerShape& shape) {
  return shape.gated ? GateOrder::gate_up : GateOrder::none;
}

inline GateOrder up_first(const LayerShape& shape) {
  return shape.gated ? GateOrder::up_gate : GateOrder::none;
}

/// Scales that are codes of a format of at most 32 bits, whole bytes each.
inline ScaleDecoder decode_as(Format format) {
  return [format](std::span<const std::byte> scales) {
    const auto width = static_cast<std::size_t>(info(format).bits / 8);
    std::vector<float> values(scales.size() / width);
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::uint32_t code = 0;
      std::memcpy(&code, scales.data() + i * width, width);
      values[i] = decode(format, code);
    }
    return values;
  };
}

/// The recipe's tensors for biases in the type they have, if the layer has any. `order`: of the
/// kernel; `framework`: of the rows of w13 before it.
inline void add_biases(Recipe& recipe, const LayerShape& shape, const std::vector<Step>& order = {},
                       std::vector<Step> framework = {}) {
  if (!shape.bias) return;
  framework.insert(framework.end(), order.begin(), order.end());
  recipe.tensors.push_back({"w13_bias", Slot::w13_bias, std::move(framework), order.size()});
  recipe.tensors.push_back({"w2_bias", Slot::w2_bias, {}, 0});
}

/// Error: a layer with biases, which `backend` does not add.
inline void refuse_biases(const LayerShape& shape, std::string_view backend) {
  if (!shape.bias) return;
  fail(backend, "adds no bias, {} has some; choose a backend that does", shape.model);
}

}  // namespace moeref::backends
