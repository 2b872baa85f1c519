#include "bench/moe_shapes.hpp"

#include <algorithm>

namespace moeref::bench {
namespace {

constexpr MoeShape kShapes[] = {
    {"gpt-oss-20b", "mxfp4", 2880, 2880, 32, 4, true},
    {"deepseek-v3, 64 experts", "fp8_block", 7168, 2048, 64, 8, true},
    {"qwen3-235b", "nvfp4", 4096, 1536, 128, 8, true},
    {"nemotron-h nano", "fp8_channel", 2688, 1856, 128, 6, false},
};

constexpr std::int64_t kBytes = 256 << 20;

}  // namespace

std::span<const MoeShape> moe_shapes() { return kShapes; }

std::unique_ptr<const BenchLayer> make_layer(const MoeShape& shape) {
  auto made = std::make_unique<BenchLayer>();
  MoeLayer& layer = made->layer;
  layer.weight_format = shape.weights;
  layer.hidden = shape.hidden;
  layer.intermediate = shape.intermediate;
  layer.activation.form = shape.gated ? ActivationForm::swiglu : ActivationForm::relu2;
  if (std::string(shape.name) == "gpt-oss-20b") {
    layer.activation = {ActivationForm::swiglu, 1.702f, 1.0f, 7.0f, {}, {}, {}};
  }
  made->operands.reserve(static_cast<std::size_t>(3 * shape.experts));
  const auto weight = [&](std::int64_t rows, std::int64_t cols) {
    const std::size_t seed = made->operands.size();
    made->operands.push_back(random_weight(shape.weights, rows, cols, seed));
    const Operand& operand = made->operands.back();
    made->bytes_per_expert += std::ssize(operand.codes) + std::ssize(operand.scales);
    return operand.matrix;
  };
  std::int64_t bytes = 0;
  while (std::ssize(layer.experts) < shape.experts && bytes < kBytes) {
    made->bytes_per_expert = 0;
    Expert expert;
    if (shape.gated) expert.gate = weight(shape.intermediate, shape.hidden);
    expert.up = weight(shape.intermediate, shape.hidden);
    expert.down = weight(shape.hidden, shape.intermediate);
    layer.experts.push_back(expert);
    bytes += made->bytes_per_expert;
  }
  const std::size_t distinct = layer.experts.size();
  while (std::ssize(layer.experts) < shape.experts) {
    layer.experts.push_back(layer.experts[layer.experts.size() % distinct]);
  }
  return made;
}

Route even_route(std::int64_t tokens, std::int64_t top_k, std::int64_t experts) {
  Route route{tokens, top_k, {}, {}};
  for (std::int64_t slot = 0; slot < tokens * top_k; ++slot) {
    route.ids.push_back(static_cast<std::int32_t>(slot % experts));
    route.weights.push_back(1.0f / static_cast<float>(top_k));
  }
  return route;
}

}  // namespace moeref::bench
