#include "layout/backends/scalars.hpp"

#include <algorithm>

#include "quant/error.hpp"

namespace moeref::backends {
namespace {

float largest(const std::vector<float>& scales, std::string_view backend, std::string_view name) {
  if (scales.empty()) {
    fail(backend, "static activation scales are needed, but the checkpoint stores no {}", name);
  }
  return *std::max_element(scales.begin(), scales.end());
}

/// Whether the activation is more than silu(gate) * up.
bool has_parameters(const ExpertScalars& scalars) {
  const auto any_but = [](const std::vector<float>& values, float usual) {
    return std::any_of(values.begin(), values.end(),
                       [usual](float value) { return value != usual; });
  };
  return any_but(scalars.alpha, 1.0f) || any_but(scalars.beta, 0.0f) ||
         any_but(scalars.limit, kNoLimit);
}

ScalarRecipe parameter(std::string name, std::vector<float> ExpertScalars::*values) {
  std::string formula = name.substr(name.find('_') + 1) + "[e] of the activation";
  return {.name = std::move(name),
          .formula = std::move(formula),
          .values = [values](const ExpertScalars& scalars, const LayerShape&) {
            return has_parameters(scalars) ? scalars.*values : std::vector<float>{};
          }};
}

}  // namespace

float max_input_scale_13(const ExpertScalars& scalars, std::string_view backend) {
  return largest(scalars.w13_input_scale, backend, "input scales of gate and up");
}

float max_input_scale_2(const ExpertScalars& scalars, std::string_view backend) {
  return largest(scalars.w2_input_scale, backend, "input scales of down");
}

std::vector<float> input_scales_2(const ExpertScalars& scalars, const LayerShape& shape,
                                  std::string_view backend) {
  max_input_scale_2(scalars, backend);
  const auto first = scalars.w2_input_scale.begin() + shape.first_expert;
  return {first, first + shape.experts};
}

std::vector<float> first_scales(const ExpertScalars& scalars, const LayerShape& shape) {
  const auto halves = static_cast<std::size_t>(shape.halves());
  if (scalars.w13_scale.size() != static_cast<std::size_t>(shape.experts) * halves) {
    fail(shape.model, "has {} factors of w13 for {} experts; its weights need one a projection",
         scalars.w13_scale.size(), shape.experts);
  }
  std::vector<float> first;
  for (std::size_t i = 0; i < scalars.w13_scale.size(); i += halves) {
    first.push_back(scalars.w13_scale[i]);
  }
  return first;
}

std::vector<float> times(float by, std::vector<float> values) {
  for (float& value : values) value = by * value;
  return values;
}

std::vector<float> over(std::vector<float> values, float divisor) {
  for (float& value : values) value = value / divisor;
  return values;
}

ScalarRecipe one_scalar(std::string name, std::string formula,
                        std::function<float(const ExpertScalars&)> value) {
  return {.name = std::move(name),
          .formula = std::move(formula),
          .per_expert = false,
          .values = [value = std::move(value)](const ExpertScalars& scalars, const LayerShape&) {
            return std::vector<float>{value(scalars)};
          }};
}

std::vector<ScalarRecipe> swiglu_arrays() {
  return {parameter("swiglu_alpha", &ExpertScalars::alpha),
          parameter("swiglu_beta", &ExpertScalars::beta),
          parameter("swiglu_limit", &ExpertScalars::limit)};
}

ScalarReader factor(std::string name, std::int64_t per_expert, std::int64_t index) {
  return
      [name = std::move(name), per_expert, index](const ScalarValues& values, std::int64_t expert) {
        const std::vector<float>& found = values.find(name)->second;
        if (found.size() == 1) return found.front();
        return found[static_cast<std::size_t>(expert * per_expert + index)];
      };
}

ScalarReader factor_times(float by, std::string name) {
  return [by, of = factor(std::move(name))](const ScalarValues& values, std::int64_t expert) {
    return by * of(values, expert);
  };
}

ScalarReader reciprocal(std::string name) {
  return [of = factor(std::move(name))](const ScalarValues& values, std::int64_t expert) {
    return 1.0f / of(values, expert);
  };
}

ScalarReader constant(float value) {
  return [value](const ScalarValues&, std::int64_t) { return value; };
}

ScalarReader parameter(std::string name, const LayerShape& shape, float absent) {
  return [name = std::move(name), first = shape.first_expert, experts = shape.experts,
          total = shape.total_experts, absent](const ScalarValues& values, std::int64_t expert) {
    const auto found = values.find(name);
    if (found == values.end()) return absent;
    const std::vector<float>& numbers = found->second;
    const auto count = static_cast<std::int64_t>(numbers.size());
    if (count == 1) return numbers.front();
    if (count != experts && count != total) {
      fail(name, "has {} values for the {} experts of this rank; needed is one each", count,
           experts);
    }
    return numbers[static_cast<std::size_t>(expert + (count == experts ? 0 : first))];
  };
}

OptionInfo swiglu_option() {
  return {"swiglu",
          {"as_model", "dropped_upstream"},
          "dropped_upstream: parameters of the activation that the kernel has not are left out"};
}

void read_swiglu(KernelReading& kernel, const LayerShape& shape) {
  kernel.alpha = parameter("swiglu_alpha", shape, 1.0f);
  kernel.beta = parameter("swiglu_beta", shape, 0.0f);
  kernel.limit = parameter("swiglu_limit", shape, kNoLimit);
}

}  // namespace moeref::backends
