#include <fmt/format.h>

#include "engine/moe.hpp"
#include "io/checkpoint.hpp"
#include "io/layer_inputs.hpp"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const moeref::Checkpoint checkpoint = moeref::Checkpoint::open(argv[1]);
  const moeref::MoeLayer layer = checkpoint.load_layer(checkpoint.moe_layers().front());
  const moeref::LayerInputs inputs = moeref::random_layer_inputs(4, layer.hidden, 0, 0);
  const moeref::Route route = moeref::route_tokens(layer, inputs.hidden, {}, 0);
  const moeref::ForwardResult result = moeref::forward(layer, inputs.hidden, route, {});
  fmt::print("{} values, the first {}\n", result.output.size(), result.output.front());
  return 0;
}
