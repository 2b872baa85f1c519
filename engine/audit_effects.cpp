#include "engine/audit_effects.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "layout/kernel_view.hpp"
#include "quant/dequantize.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// A matrix of the experts by the names that reports use.
struct NamedPart {
  ExpertPart part;
  std::string_view name;
  std::vector<Slot> slots;  ///< of the tensors that its values come from
};

const std::array<NamedPart, 6>& all_parts() {
  static const std::array<NamedPart, 6> parts{{
      {&Expert::gate, "w13 gate", {Slot::w13, Slot::w13_scale}},
      {&Expert::up, "w13 up", {Slot::w13, Slot::w13_scale}},
      {&Expert::down, "w2 down", {Slot::w2, Slot::w2_scale}},
      {&Expert::gate_bias, "w13_bias gate", {Slot::w13_bias}},
      {&Expert::up_bias, "w13_bias up", {Slot::w13_bias}},
      {&Expert::down_bias, "w2_bias", {Slot::w2_bias}},
  }};
  return parts;
}

bool is_weight(ExpertPart part) {
  return part == &Expert::gate || part == &Expert::up || part == &Expert::down;
}

/// Whether the factor of `part` depends on the prepared scalar `name`.
bool reads_scalar(const KernelReading& kernel, ScalarValues scalars, const std::string& name,
                  ExpertPart part, std::int64_t experts) {
  const ScalarValues unchanged = scalars;
  for (float& value : scalars[name]) value = value * 2.0f + 1.0f;
  for (std::int64_t e = 0; e < experts; ++e) {
    const KernelFactor before = kernel_factor(kernel, unchanged, part, e);
    const KernelFactor after = kernel_factor(kernel, scalars, part, e);
    if (before.factor != after.factor || before.input_scale != after.input_scale) return true;
  }
  return false;
}

/// What is done to the values of a part: the Recode steps of its tensors and the formulas of the
/// scalars that its factor is made of. Empty: nothing, its codes and scales only move.
std::string recodings_of(const PreparedLayer& prepared, const NamedPart& named) {
  std::vector<std::string> texts;
  for (const TensorRecipe& recipe : prepared.recipe.tensors) {
    if (std::find(named.slots.begin(), named.slots.end(), recipe.from) == named.slots.end()) {
      continue;
    }
    for (const Step& step : recipe.steps) {
      const auto* recode = std::get_if<Recode>(&step);
      if (recode == nullptr) continue;
      const std::string text = fmt::format("{} ({})", recode->name, name(recipe.from));
      if (std::find(texts.begin(), texts.end(), text) == texts.end()) texts.push_back(text);
    }
  }
  if (is_weight(named.part)) {
    const ScalarValues scalars = planned_scalars(prepared);
    for (const ScalarRecipe& scalar : prepared.recipe.scalars) {
      if (scalars.contains(scalar.name) &&
          reads_scalar(prepared.recipe.kernel, scalars, scalar.name, named.part,
                       prepared.source->shape.experts)) {
        texts.push_back(fmt::format("{} = {}", scalar.name, scalar.formula));
      }
    }
  }
  return fmt::format("{}", fmt::join(texts, ", "));
}

/// code * block scale * factor / input scale, with one rounding of the quotient to f64.
std::vector<double> kernel_values(const PreparedLayer& prepared, const ScalarValues& scalars,
                                  ScaledMatrix matrix, ExpertPart part, std::int64_t expert) {
  matrix.global_rule = GlobalScaleRule::none;
  std::vector<double> values(to_size(matrix.rows * matrix.cols));
  dequantize(matrix, values);
  if (!is_weight(part)) return values;
  const KernelFactor factor = kernel_factor(prepared.recipe.kernel, scalars, part, expert);
  for (double& value : values) {
    value = value * static_cast<double>(factor.factor) / static_cast<double>(factor.input_scale);
  }
  return values;
}

/// |after - before|; infinite where only one of them is a number.
double change(double before, double after) {
  if (before == after || (std::isnan(before) && std::isnan(after))) return 0.0;
  const double difference = std::fabs(after - before);
  return std::isnan(difference) ? HUGE_VAL : difference;
}

double relative(double difference, double largest) {
  return difference == 0.0 || largest == 0.0 ? difference : difference / largest;
}

void measure_weights(RecodingEffect& effect, const PreparedLayer& prepared, ExpertPart part,
                     const MoeLayer& loaded, const MoeLayer& recoded) {
  const ScalarValues scalars = planned_scalars(prepared);
  double largest = 0.0;
  double largest_change = 0.0;
  for (std::size_t e = 0; e < loaded.experts.size(); ++e) {
    const ScaledMatrix& matrix = loaded.experts[e].*part;
    if (!matrix) continue;
    std::vector<double> before(to_size(matrix.rows * matrix.cols));
    dequantize(matrix, before);
    const std::vector<double> after = kernel_values(prepared, scalars, recoded.experts[e].*part,
                                                    part, static_cast<std::int64_t>(e));
    for (std::size_t i = 0; i < before.size(); ++i) {
      const double moved = change(before[i], after[i]);
      ++effect.weights;
      effect.changed += moved != 0.0 ? 1 : 0;
      largest_change = std::max(largest_change, moved);
      if (std::isfinite(before[i])) largest = std::max(largest, std::fabs(before[i]));
    }
  }
  effect.largest_change = relative(largest_change, largest);
}

/// The largest change relative to the largest output.
double output_change(const std::vector<float>& base, const std::vector<float>& output) {
  double largest = 0.0;
  double moved = 0.0;
  for (std::size_t i = 0; i < base.size(); ++i) {
    moved = std::max(moved, change(base[i], output[i]));
    if (std::isfinite(base[i])) largest = std::max(largest, std::fabs(double{base[i]}));
  }
  return relative(moved, largest);
}

/// How far the output moves if `part` alone is recoded.
double output_change(const AuditTrial& trial, const std::vector<float>& base,
                     const MoeLayer& loaded, const MoeLayer& recoded, ExpertPart part) {
  MoeLayer mixed = loaded;
  for (std::size_t e = 0; e < mixed.experts.size(); ++e) {
    mixed.experts[e].*part = recoded.experts[e].*part;
  }
  return output_change(base, trial.run(mixed, false).output);
}

/// What folding does to the limits; nothing if it changes none.
std::optional<RecodingEffect> limit_effect(const PreparedLayer& prepared, const MoeLayer& loaded,
                                           const MoeLayer& recoded, const AuditTrial& trial) {
  if (!prepared.recipe.kernel.limit_is_folded) return std::nullopt;
  const std::vector<float>& before = prepared.source->scalars.limit;
  const std::vector<float>& after = recoded.activation.limits;
  RecodingEffect effect;
  effect.tensor = "limit";
  effect.recoding = "divided by a factor and multiplied back";
  for (std::size_t e = 0; e < before.size() && e < after.size(); ++e) {
    const double moved = change(before[e], after[e]);
    ++effect.weights;
    effect.changed += moved != 0.0 ? 1 : 0;
    effect.largest_change = std::max(effect.largest_change, relative(moved, before[e]));
  }
  if (effect.changed == 0) return std::nullopt;
  MoeLayer mixed = loaded;
  mixed.activation = recoded.activation;
  effect.largest_output_change =
      output_change(trial.run(loaded, false).output, trial.run(mixed, false).output);
  return effect;
}

}  // namespace

std::vector<RecodingEffect> measure_effects(const PreparedLayer& prepared, const MoeLayer& loaded,
                                            const MoeLayer& recoded, const AuditTrial& trial) {
  std::vector<RecodingEffect> effects;
  std::vector<float> base;
  for (const NamedPart& named : all_parts()) {
    if (!(recoded.experts.front().*named.part) || !(loaded.experts.front().*named.part)) continue;
    RecodingEffect effect;
    effect.tensor = named.name;
    effect.recoding = recodings_of(prepared, named);
    if (effect.recoding.empty()) continue;
    measure_weights(effect, prepared, named.part, loaded, recoded);
    if (effect.changed != 0) {
      if (base.empty()) base = trial.run(loaded, false).output;
      effect.largest_output_change = output_change(trial, base, loaded, recoded, named.part);
    }
    effects.push_back(std::move(effect));
  }
  if (std::optional<RecodingEffect> limit = limit_effect(prepared, loaded, recoded, trial)) {
    effects.push_back(std::move(*limit));
  }
  return effects;
}

}  // namespace moeref
