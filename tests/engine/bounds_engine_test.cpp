// The exact engine and the bound arithmetic share no code: each judges the other on the tiny
// checkpoints.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "engine/bounds/block.hpp"
#include "engine/moe.hpp"
#include "io/checkpoint.hpp"
#include "quant/formats.hpp"

namespace moeref::bounds {
namespace {

const std::filesystem::path kModels = std::filesystem::path(MOEREF_DATA_DIR) / "golden" / "models";

constexpr std::int64_t kTokens = 9;

/// Random bf16 hidden states: codes, and what they mean.
struct Hidden {
  std::vector<std::uint16_t> codes;
  std::vector<float> values;

  explicit Hidden(std::int64_t width) {
    std::mt19937_64 random(91);
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < kTokens * width; ++i) {
      codes.push_back(
          static_cast<std::uint16_t>(encode(Format::bf16, normal(random), EncodePolicy::eigen)));
      values.push_back(decode(Format::bf16, codes.back()));
    }
  }
  ScaledMatrix matrix(std::int64_t width) const {
    ScaledMatrix view;
    view.name = "hidden";
    view.rows = kTokens;
    view.cols = width;
    view.codes.data = reinterpret_cast<const std::byte*>(codes.data());
    view.codes.format = Format::bf16;
    view.codes.row_stride = width;
    return view;
  }
};

Route route_of(const MoeLayer& layer, const ScaledMatrix& hidden) {
  const std::vector<std::int64_t> token_ids{0, 1, 2, 3, 4, 5, 6, 7, 8};
  return route_tokens(layer, hidden, token_ids, 1);
}

class TinyCheckpoint : public ::testing::TestWithParam<std::string> {};

TEST_P(TinyCheckpoint, ExactOutputsLieInTheIntervals) {
  const Checkpoint checkpoint = Checkpoint::open(kModels / GetParam());
  for (const std::int64_t index : checkpoint.moe_layers()) {
    const MoeLayer layer = checkpoint.load_layer(index);
    const Hidden hidden(layer.hidden);
    const Route route = route_of(layer, hidden.matrix(layer.hidden));
    for (const Format format : {Format::f32, Format::bf16}) {
      ForwardOptions options;
      options.output = format;
      options.threads = 1;
      const ForwardResult result = forward(layer, hidden.matrix(layer.hidden), route, options);
      const OutputIntervals intervals = output_intervals(layer, hidden.values, route, format);
      ASSERT_EQ(result.output.size(), intervals.low.size());
      for (std::size_t i = 0; i < result.output.size(); ++i) {
        ASSERT_GE(result.output[i], intervals.low[i]) << "layer " << index << " element " << i;
        ASSERT_LE(result.output[i], intervals.high[i]) << "layer " << index << " element " << i;
      }
    }
  }
}

TEST_P(TinyCheckpoint, ExactRoutingLiesInTheBounds) {
  const Checkpoint checkpoint = Checkpoint::open(kModels / GetParam());
  const Arithmetic& f32 = arithmetic(Precision::f32);
  for (const std::int64_t index : checkpoint.moe_layers()) {
    const MoeLayer layer = checkpoint.load_layer(index);
    const Hidden hidden(layer.hidden);
    const Route route = route_of(layer, hidden.matrix(layer.hidden));
    const BoundedMatrix logits =
        bounds::router_logits(f32, layer, exact_matrix(hidden.values, kTokens, layer.hidden));
    const BoundedRoute bounded = weigh(f32, layer, logits, route.ids, route.top_k);
    for (std::size_t slot = 0; slot < route.weights.size(); ++slot) {
      ASSERT_LE(std::fabs(static_cast<double>(route.weights[slot]) - bounded.weights[slot].value),
                bounded.weights[slot].total());
    }
  }
}

std::vector<std::string> checkpoints() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kModels)) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

INSTANTIATE_TEST_SUITE_P(Models, TinyCheckpoint, ::testing::ValuesIn(checkpoints()),
                         [](const auto& model) { return model.param; });

}  // namespace
}  // namespace moeref::bounds
