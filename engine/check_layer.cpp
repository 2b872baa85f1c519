#include "engine/check_layer.hpp"

#include <fmt/format.h>

#include <cmath>
#include <string>

#include "quant/error.hpp"

namespace moeref {
namespace {

std::string label(const std::string& role, const ScaledMatrix& matrix) {
  return matrix.name.empty() || matrix.name == role ? role : role + " (" + matrix.name + ")";
}

void check_matrix(const std::string& role, const ScaledMatrix& matrix, std::int64_t rows,
                  std::int64_t cols) {
  if (!matrix) fail(role, "is absent; the layer needs [{}, {}]", rows, cols);
  check_storage(matrix);
  if (matrix.rows != rows || matrix.cols != cols) {
    fail(label(role, matrix), "is [{}, {}]; the layer needs [{}, {}]", matrix.rows, matrix.cols,
         rows, cols);
  }
}

void check_vector(const std::string& role, const ScaledMatrix& vector, std::int64_t size) {
  if (vector) check_matrix(role, vector, 1, size);
}

void check_parameters(const std::string& role, const Activation& activation, std::int64_t experts) {
  struct Named {
    const char* name;
    float scalar;
    const std::vector<float>& values;
  };
  for (const Named& parameter : {Named{"alpha", activation.alpha, activation.alphas},
                                 Named{"beta", activation.beta, activation.betas},
                                 Named{"limit", activation.limit, activation.limits}}) {
    if (!parameter.values.empty() &&
        static_cast<std::int64_t>(parameter.values.size()) != experts) {
      fail(role, "has {} values of {} for {} experts; give one each, or none",
           parameter.values.size(), parameter.name, experts);
    }
    const bool is_limit = parameter.name == std::string("limit");
    const auto fits = [is_limit](float value) {
      return is_limit ? value >= 0.0f : std::isfinite(value);
    };
    bool all_fit = fits(parameter.scalar);
    for (const float value : parameter.values) all_fit = all_fit && fits(value);
    if (!all_fit) {
      fail(role, "{} must be {}", parameter.name,
           is_limit ? "at least 0 (infinity = none)" : "a finite number");
    }
  }
}

void check_expert(const std::string& role, const Expert& expert, bool gated,
                  std::int64_t intermediate, std::int64_t width) {
  if (gated) check_matrix(role + ".gate", expert.gate, intermediate, width);
  if (!gated && expert.gate) {
    fail(label(role + ".gate", expert.gate), "is there, but the activation has no gate");
  }
  check_matrix(role + ".up", expert.up, intermediate, width);
  check_matrix(role + ".down", expert.down, width, intermediate);
  check_vector(role + ".gate_bias", expert.gate_bias, intermediate);
  check_vector(role + ".up_bias", expert.up_bias, intermediate);
  check_vector(role + ".down_bias", expert.down_bias, width);
}

}  // namespace

void check_layer(const MoeLayer& layer) { check_layer(layer, layer.expert_width()); }

void check_layer(const MoeLayer& layer, std::int64_t width) {
  const std::int64_t hidden = layer.latent != 0 ? layer.hidden : width;
  if (layer.experts.empty()) fail("experts", "there are none; a layer needs at least one");
  check_parameters("activation", layer.activation, layer.local_experts());
  for (std::int64_t e = 0; e < layer.local_experts(); ++e) {
    check_expert(fmt::format("experts.{}", layer.first_expert + e),
                 layer.experts[static_cast<std::size_t>(e)], layer.gated(), layer.intermediate,
                 layer.expert_width());
  }
  if (layer.shared) {
    check_parameters("shared activation", layer.shared_activation, 1);
    check_expert("shared", *layer.shared, is_gated(layer.shared_activation.form),
                 layer.shared->up.rows, hidden);
  }
  if (layer.latent != 0) {
    check_matrix("latent_in", layer.latent_in, width, hidden);
    check_matrix("latent_out", layer.latent_out, hidden, width);
  }
  if (layer.router) check_matrix("router", layer.router, layer.expert_count(), hidden);
  check_vector("router_bias", layer.router_bias, layer.expert_count());
  check_vector("selection_bias", layer.selection_bias, layer.expert_count());
}

}  // namespace moeref
