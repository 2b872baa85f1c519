#include "engine/bounds/block.hpp"

#include <limits>

#include "engine/bounds/functions.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::bounds {
namespace {

BoundedMatrix activate_rows(const Arithmetic& arithmetic, const ActivationConstants& constants,
                            const BoundedMatrix& gate, const BoundedMatrix& up) {
  BoundedMatrix activated(up.rows, up.cols);
  const bool gated = is_gated(constants.form);
  for (std::int64_t row = 0; row < up.rows; ++row) {
    for (std::int64_t col = 0; col < up.cols; ++col) {
      activated.set(
          row, col,
          activate(arithmetic, constants, gated ? gate.at(row, col) : Bounded{}, up.at(row, col)));
    }
  }
  return activated;
}

/// W2 * activation(W1 x, W3 x), biases included: [input.rows, output width].
BoundedMatrix run_expert(const Arithmetic& arithmetic, const Expert& expert,
                         const ActivationConstants& constants, const BoundedMatrix& input,
                         int threads) {
  BoundedMatrix gate;
  if (is_gated(constants.form)) {
    gate = linear(arithmetic, expert.gate, expert.gate_bias, input, threads);
  }
  const BoundedMatrix up = linear(arithmetic, expert.up, expert.up_bias, input, threads);
  return linear(arithmetic, expert.down, expert.down_bias,
                activate_rows(arithmetic, constants, gate, up), threads);
}

/// The slots that each local expert serves, as indices into [tokens * top_k].
std::vector<std::vector<std::int64_t>> slots_by_expert(const MoeLayer& layer,
                                                       const BoundedRoute& route) {
  std::vector<std::vector<std::int64_t>> slots(layer.experts.size());
  for (std::size_t slot = 0; slot < route.ids.size(); ++slot) {
    const std::int32_t id = route.ids[slot];
    if (id < -1 || id >= layer.expert_count()) {
      fail("route", "token {}: expert {} outside the {} experts of layer {}",
           static_cast<std::int64_t>(slot) / route.top_k, id, layer.expert_count(), layer.layer);
    }
    const std::int64_t local = id - layer.first_expert;
    if (id < 0 || local < 0 || local >= layer.local_experts())
      continue;  // no expert, or another rank's
    slots[static_cast<std::size_t>(local)].push_back(static_cast<std::int64_t>(slot));
  }
  return slots;
}

BoundedMatrix run_slots(const Arithmetic& arithmetic, const MoeLayer& layer,
                        const BoundedMatrix& input, const BoundedRoute& route, int threads) {
  BoundedMatrix outputs(route.tokens * route.top_k, layer.expert_width());
  const auto slots = slots_by_expert(layer, route);
  for (std::size_t expert = 0; expert < slots.size(); ++expert) {
    if (slots[expert].empty()) continue;
    std::vector<std::int64_t> tokens;
    for (const std::int64_t slot : slots[expert]) tokens.push_back(slot / route.top_k);
    const ActivationConstants constants =
        activation_constants(arithmetic, layer.activation, expert);
    const BoundedMatrix result = run_expert(arithmetic, layer.experts[expert], constants,
                                            gather_rows(input, tokens), threads);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      for (std::int64_t col = 0; col < result.cols; ++col) {
        outputs.set(slots[expert][i], col, result.at(static_cast<std::int64_t>(i), col));
      }
    }
  }
  return outputs;
}

/// Sum over the slots of weight * slot output, and of `residual` if there is one, in any order: a
/// fused shared expert may be the first term as well as the last.
BoundedMatrix combine(const Arithmetic& arithmetic, const BoundedRoute& route,
                      const BoundedMatrix& slots, const BoundedMatrix* residual) {
  BoundedMatrix combined(route.tokens, slots.cols);
  for (std::int64_t token = 0; token < route.tokens; ++token) {
    for (std::int64_t col = 0; col < slots.cols; ++col) {
      std::vector<Bounded> terms;
      for (std::int64_t slot = token * route.top_k; slot < (token + 1) * route.top_k; ++slot) {
        const auto index = static_cast<std::size_t>(slot);
        if (route.ids[index] < 0) continue;
        terms.push_back(multiply(arithmetic, route.weights[index], slots.at(slot, col)));
      }
      if (residual != nullptr) terms.push_back(residual->at(token, col));
      combined.set(token, col, sum(arithmetic, terms));
    }
  }
  return combined;
}

/// The double `value` rounded to f32 toward the side of `direction`.
float to_f32_toward(double value, float direction) {
  const float nearest = static_cast<float>(value);
  const bool is_outside =
      direction < 0 ? static_cast<double>(nearest) <= value : static_cast<double>(nearest) >= value;
  return is_outside ? nearest : std::nextafter(nearest, direction);
}

float round_to_format(float value, Format format) {
  if (format == Format::f32) return value;
  return decode(format, encode(format, value, EncodePolicy::eigen));
}

}  // namespace

BoundedOutput bounded_output(const BoundedMatrix& matrix) {
  BoundedOutput output{matrix.rows, matrix.cols, matrix.value, {}};
  output.bound.reserve(matrix.value.size());
  for (std::size_t i = 0; i < matrix.value.size(); ++i) {
    output.bound.push_back(Bounded{matrix.value[i], matrix.stored[i], matrix.own[i]}.total());
  }
  return output;
}

BlockOutputs evaluate_outputs(const Arithmetic& arithmetic, const MoeLayer& layer,
                              const BoundedMatrix& hidden, const BoundedRoute& route, int threads) {
  if (hidden.rows != route.tokens) {
    fail("route", "has {} tokens, the hidden states have {}", route.tokens, hidden.rows);
  }
  BlockOutputs outputs;
  const bool latent = layer.latent != 0;
  outputs.slots = run_slots(
      arithmetic, layer, latent ? linear(arithmetic, layer.latent_in, {}, hidden, threads) : hidden,
      route, threads);
  const BoundedMatrix combined = combine(arithmetic, route, outputs.slots, nullptr);
  outputs.routed = latent ? linear(arithmetic, layer.latent_out, {}, combined, threads) : combined;
  if (!layer.shared) {
    outputs.final_output = outputs.routed;
    return outputs;
  }
  outputs.shared =
      run_expert(arithmetic, *layer.shared,
                 activation_constants(arithmetic, layer.shared_activation, 0), hidden, threads);
  outputs.final_output =
      latent ? linear(arithmetic, layer.latent_out, {}, combined, threads, &outputs.shared)
             : combine(arithmetic, route, outputs.slots, &outputs.shared);
  return outputs;
}

BoundedOutput evaluate_block(const MoeLayer& layer, std::span<const float> hidden,
                             const BoundedRoute& route, Precision precision, int threads) {
  const BoundedMatrix input = exact_matrix(hidden, route.tokens, layer.hidden);
  return bounded_output(
      evaluate_outputs(arithmetic(precision), layer, input, route, threads).final_output);
}

OutputIntervals output_intervals(const MoeLayer& layer, std::span<const float> hidden,
                                 const Route& route, Format format, int threads) {
  BoundedRoute given{route.tokens, route.top_k, route.ids, {}};
  for (const float weight : route.weights)
    given.weights.push_back(exact(static_cast<double>(weight)));
  const BoundedOutput output = evaluate_block(layer, hidden, given, Precision::f32, threads);
  OutputIntervals intervals{output.rows, output.cols, output.value, {}, {}};
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < output.value.size(); ++i) {
    // Rounding is monotone: the rounded ends enclose whatever lies between them.
    intervals.low.push_back(
        round_to_format(to_f32_toward(output.value[i] - output.bound[i], -kInfinity), format));
    intervals.high.push_back(
        round_to_format(to_f32_toward(output.value[i] + output.bound[i], kInfinity), format));
  }
  return intervals;
}

}  // namespace moeref::bounds
