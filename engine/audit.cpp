#include "engine/audit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <span>
#include <utility>

#include "engine/audit_difference.hpp"
#include "engine/moe.hpp"
#include "engine/operand.hpp"
#include "layout/kernel_view.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// The routed experts of the rank alone, as plan_layer cuts them.
MoeLayer own_part(const MoeLayer& layer, const PreparedLayer& prepared) {
  const Shard& rank = prepared.rank;
  MoeLayer part = shard(layer, {.ep_rank = rank.ep_rank, .ep_size = rank.ep_size});
  if (rank.tp_size > 1) part = tp_part(part, prepared.range.begin, prepared.range.count);
  part.hidden = part.expert_width();
  part.latent = 0;
  part.shared.reset();
  part.router = part.router_bias = part.selection_bias = ScaledMatrix{};
  return part;
}

/// Every expert of the layer twice (once if it is the only one), each slot with a weight of its
/// own.
Route every_expert(const MoeLayer& layer) {
  const std::int64_t experts = layer.local_experts();
  Route route;
  route.tokens = std::max<std::int64_t>(experts, 4);
  route.top_k = std::min<std::int64_t>(experts, 2);
  for (std::int64_t slot = 0; slot < route.tokens * route.top_k; ++slot) {
    const std::int64_t expert = (slot / route.top_k + slot % route.top_k) % experts;
    route.ids.push_back(static_cast<std::int32_t>(layer.first_expert + expert));
    route.weights.push_back(0.5f + static_cast<float>(slot) * 0x1p-12f);
  }
  return route;
}

/// The power of two that brings the results of GEMM1 near 1, where no activation saturates: from
/// the root mean square of an up matrix.
int input_exponent(const MoeLayer& layer) {
  const ScaledMatrix& up = layer.experts.front().up;
  std::vector<double> values(to_size(up.rows * up.cols));
  dequantize(up, values);
  double squares = 0.0;
  for (const double value : values) squares += value * value;
  if (!std::isfinite(squares) || squares <= 0.0) return 0;
  int exponent = 0;
  std::frexp(squares / static_cast<double>(up.rows), &exponent);  // of a row, squared
  return std::clamp(-exponent / 2, -60, 60);
}

/// Signed powers of two, one in eight 0, as f32 [tokens, hidden]; the same in the first columns
/// whatever the padding is.
std::vector<float> hidden_rows(std::int64_t tokens, std::int64_t hidden, std::int64_t padded,
                               int exponent) {
  std::vector<float> rows(to_size(tokens * padded));
  std::uint64_t state = 1;
  for (std::int64_t token = 0; token < tokens; ++token) {
    for (std::int64_t col = 0; col < hidden; ++col) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const std::uint64_t bits = state >> 33;
      if (bits % 8 == 0) continue;
      const float magnitude = std::ldexp(1.0f, exponent - static_cast<int>(bits / 8 % 3));
      rows[to_size(token * padded + col)] = bits / 32 % 2 != 0 ? -magnitude : magnitude;
    }
  }
  return rows;
}

/// One run of the layer on the audit's tokens.
class Trial {
 public:
  Trial(const MoeLayer& logical, int threads)
      : route_(every_expert(logical)),
        hidden_(logical.hidden),
        exponent_(input_exponent(logical)),
        threads_(threads) {}

  const Route& route() const { return route_; }

  ForwardResult run(const MoeLayer& layer, bool keep_stages) const {
    const std::vector<float> rows = hidden_rows(route_.tokens, hidden_, layer.hidden, exponent_);
    ForwardOptions options;
    options.output = Format::f32;
    options.keep_stages = keep_stages;
    options.threads = threads_;
    return forward(layer, f32_matrix("hidden", rows.data(), route_.tokens, layer.hidden), route_,
                   options);
  }

 private:
  Route route_;
  std::int64_t hidden_;
  int exponent_;
  int threads_;
};

/// Compares the first `hidden` outputs of each token.
void compare_outputs(AuditReport& report, const Trial& trial, const MoeLayer& kernel,
                     const MoeLayer& logical) {
  const ForwardResult seen = trial.run(kernel, true);
  const ForwardResult meant = trial.run(logical, true);
  std::string first;
  for (std::int64_t token = 0; token < trial.route().tokens; ++token) {
    for (std::int64_t col = 0; col < logical.hidden; ++col) {
      const float is = seen.output[to_size(token * kernel.hidden + col)];
      const float should = meant.output[to_size(token * logical.hidden + col)];
      ++report.outputs;
      if (std::bit_cast<std::uint32_t>(is) == std::bit_cast<std::uint32_t>(should)) continue;
      if (report.differing++ == 0) {
        first = fmt::format("token {}, column {}: {} (0x{:08X}), must be {} (0x{:08X})", token, col,
                            is, std::bit_cast<std::uint32_t>(is), should,
                            std::bit_cast<std::uint32_t>(should));
      }
    }
  }
  report.survives = report.differing == 0;
  if (report.survives) return;
  std::string where = first_wrong_weight(kernel, logical);
  if (where.empty()) where = first_wrong_stage(seen, meant, kernel, logical, trial.route());
  report.first_difference = first + "; " + where;
}

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

/// How far the output moves if `part` alone is recoded.
double output_change(const Trial& trial, const std::vector<float>& base, const MoeLayer& loaded,
                     const MoeLayer& recoded, ExpertPart part) {
  MoeLayer mixed = loaded;
  for (std::size_t e = 0; e < mixed.experts.size(); ++e) {
    mixed.experts[e].*part = recoded.experts[e].*part;
  }
  const std::vector<float> output = trial.run(mixed, false).output;
  double largest = 0.0;
  double moved = 0.0;
  for (std::size_t i = 0; i < base.size(); ++i) {
    moved = std::max(moved, change(base[i], output[i]));
    if (std::isfinite(base[i])) largest = std::max(largest, std::fabs(double{base[i]}));
  }
  return relative(moved, largest);
}

std::vector<RecodingEffect> measure_effects(const PreparedLayer& prepared, const MoeLayer& loaded,
                                            const MoeLayer& recoded, const Trial* trial) {
  std::vector<RecodingEffect> effects;
  std::vector<float> base;
  for (const NamedPart& named : all_parts()) {
    if (!(recoded.experts.front().*named.part) || !(loaded.experts.front().*named.part)) continue;
    RecodingEffect effect;
    effect.tensor = named.name;
    effect.recoding = recodings_of(prepared, named);
    if (effect.recoding.empty()) continue;
    measure_weights(effect, prepared, named.part, loaded, recoded);
    if (effect.changed != 0 && trial != nullptr) {
      if (base.empty()) base = trial->run(loaded, false).output;
      effect.largest_output_change = output_change(*trial, base, loaded, recoded, named.part);
    }
    effects.push_back(std::move(effect));
  }
  return effects;
}

/// A kernel that cannot read what was prepared does not keep the function.
std::optional<MoeLayer> read_kernel(const PreparedLayer& prepared, AuditReport& report,
                                    int threads) {
  std::vector<Tensor> made;
  for (const PreparedTensor& tensor : prepared.tensors) made.push_back(make(tensor, threads));
  try {
    return kernel_layer(prepared, made);
  } catch (const Error& error) {
    report.first_difference = error.what();
    return std::nullopt;
  }
}

}  // namespace

AuditReport audit(const Backend& backend, const Options& options, const MoeLayer& layer,
                  const Shard& rank, int threads) {
  const PreparedLayer prepared = plan_layer(backend, options, layer, rank);
  AuditReport report;
  report.backend = backend.name;
  report.shape = prepared.source->shape;
  const MoeLayer loaded = own_part(layer, prepared);
  MoeLayer recoded = recoded_layer(prepared, loaded);
  std::optional<MoeLayer> kernel = read_kernel(prepared, report, threads);
  if (!kernel) return report;
  kernel->activation.form = loaded.activation.form;

  if (loaded.intermediate == 0) {
    report.note = "the rank has no rows and no output; its weights are compared with zero";
    report.first_difference = first_wrong_weight(*kernel, recoded);
    report.survives = report.first_difference.empty();
    return report;
  }
  const Trial trial(recoded, threads);
  compare_outputs(report, trial, *kernel, recoded);
  report.effects = measure_effects(prepared, loaded, recoded, &trial);
  return report;
}

namespace {

/// The layers on which a break is looked for, smallest first.
std::vector<SampleShape> break_candidates(const Backend& backend) {
  constexpr std::array<std::int64_t, 8> kHidden{32, 64, 96, 128, 192, 256, 320, 512};
  constexpr std::int64_t kStep = 8;
  constexpr std::int64_t kLargest = 320;
  std::vector<SampleShape> shapes;
  for (const std::string_view format : backend.formats) {
    for (const std::int64_t hidden : kHidden) {
      for (std::int64_t rows = kStep; rows <= kLargest; rows += kStep) {
        for (const bool gated : {true, false}) {
          SampleShape shape{.hidden = hidden, .intermediate = rows, .gated = gated};
          shape.weight_format = format;
          shapes.push_back(shape);
        }
      }
    }
  }
  const auto weights = [](const SampleShape& shape) {
    return shape.hidden * shape.intermediate * (shape.gated ? 3 : 2);
  };
  std::stable_sort(shapes.begin(), shapes.end(),
                   [&](const SampleShape& left, const SampleShape& right) {
                     return weights(left) < weights(right);
                   });
  return shapes;
}

/// The report of the first kind of activation that the backend accepts: SiLU, SiLU with a limit,
/// GPT-OSS with biases.
std::optional<Break> audit_any(const Backend& backend, const Options& options, SampleShape shape,
                               int threads) {
  for (const auto& [bias, limit] :
       {std::pair{false, kNoLimit}, std::pair{false, 10.0f}, std::pair{true, kNoLimit}}) {
    shape.bias = bias;
    shape.limit = limit;
    try {
      return Break{shape, audit(backend, options, sample_layer(shape), Shard{}, threads)};
    } catch (const Error&) {
      // The backend's rules exclude this layer.
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<Break> smallest_break(const Backend& backend, const Options& options, int threads) {
  for (const SampleShape& shape : break_candidates(backend)) {
    std::optional<Break> tried = audit_any(backend, options, shape, threads);
    if (tried && !tried->report.survives) return tried;
  }
  return std::nullopt;
}

}  // namespace moeref
