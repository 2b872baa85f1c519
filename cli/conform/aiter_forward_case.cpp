#include "cli/conform/aiter_forward_case.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <limits>

#include "io/json_file.hpp"
#include "quant/error.hpp"

namespace moeref::conform::aiter {
namespace {

using bounds::Arithmetic;
using bounds::Bounded;
using bounds::StageActivation;
using bounds::StageFunction;

/// Absent or null is nothing. Error: not a number that an f32 can hold.
std::optional<double> optional_number(const GoldenCase& golden, std::string_view name) {
  const auto found = golden.params.find(name);
  if (found == golden.params.end() || found->is_null()) return std::nullopt;
  if (!found->is_number() || !(std::fabs(found->get<double>()) <=
                               static_cast<double>(std::numeric_limits<float>::max()))) {
    fail(golden.subject(fmt::format("params.{}", name)), "is {}, needs a number within f32",
         shown_param(golden, name));
  }
  return found->get<double>();
}

/// params.situ_`name`, or the kernels' name for it, `name`: it divides, and its reciprocal must be
/// an f32 too.
Bounded range_param(const GoldenCase& golden, const Arithmetic& arithmetic, const std::string& name,
                    double fallback) {
  const std::optional<double> given = optional_number(golden, "situ_" + name);
  const double value = given ? *given : optional_number(golden, name).value_or(fallback);
  if (std::fabs(value) < 0x1p-120 || std::fabs(value) > 0x1p120) {
    fail(golden.subject("params.situ_" + name),
         "is {}; it divides, and must lie between 2^-120 and 2^120", value);
  }
  return bounds::script_constant(arithmetic, value);
}

/// A number of params.default_swiglu, which records the defaults of the original.
double swiglu_default(const GoldenCase& golden, std::string_view name, double fallback) {
  const auto defaults = golden.params.find("default_swiglu");
  if (defaults == golden.params.end() || !defaults->is_object()) return fallback;
  const auto found = defaults->find(name);
  if (found == defaults->end() || found->is_null()) return fallback;
  if (!found->is_number()) {
    fail(golden.subject(fmt::format("params.default_swiglu.{}", name)), "is {}, needs a number",
         one_line(shown(*found)));
  }
  return found->get<double>();
}

/// [experts, hidden, width] of w2: in.w2 or, alone, in.w2_shape.
Shape w2_shape(const GoldenCase& golden) {
  const TensorView* shape = golden.find_input("w2_shape");
  if (golden.find_input("w2") != nullptr || shape == nullptr) {
    const TensorView& w2 = golden.input("w2");
    need_dimensions(golden, w2, 3, "[experts, hidden, intermediate]");
    return {w2.shape[0], w2.shape[1], stored_width(w2)};
  }
  const Shape sizes = to_integers(*shape);
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  const bool fits =
      sizes.size() == 3 && std::all_of(sizes.begin(), sizes.end(),
                                       [](std::int64_t size) { return size > 0 && size <= kMost; });
  if (!fits) {
    fail(golden.subject(shape->name), "must be three sizes: experts, hidden, intermediate");
  }
  return sizes;
}

}  // namespace

Slots read_slots(const GoldenCase& golden, std::int64_t tokens, std::int64_t experts) {
  const TensorView& ids = golden.input("topk_ids");
  const TensorView& weights = golden.input("topk_weight");
  need_dimensions(golden, ids, 2, "[tokens, top_k]");
  if (ids.shape[0] != tokens) {
    fail(golden.subject(ids.name), "has shape {}; in.x has {} tokens", to_string(ids.shape),
         tokens);
  }
  if (weights.shape != ids.shape) {
    fail(golden.subject(weights.name), "has shape {}, in.topk_ids {}; both must agree",
         to_string(weights.shape), to_string(ids.shape));
  }
  Slots slots{tokens, ids.shape[1], to_integers(ids), factors_of(golden, weights)};
  for (std::int64_t& id : slots.experts) {
    if (id < 0 || id >= experts) id = -1;
  }
  return slots;
}

void map_to_local(const GoldenCase& golden, Slots& slots, std::int64_t experts) {
  const TensorView& mask = golden.input("expert_mask");
  need_dimensions(golden, mask, 1, "[global experts]");
  TensorView flags = mask;
  if (flags.dtype == DType::boolean) flags.dtype = DType::u8;
  std::vector<std::int64_t> local;
  std::uint32_t running = 0;  // an I32 sum, which wraps
  for (const std::int64_t flag : to_integers(flags)) {
    running += static_cast<std::uint32_t>(flag);
    local.push_back(flag == 0 ? -1 : static_cast<std::int32_t>(running - 1));
  }
  const auto count = static_cast<std::int64_t>(local.size());
  slots.experts = to_integers(golden.input("topk_ids"));
  for (std::int64_t& id : slots.experts) {
    if (id < -count || id >= count) {
      fail(golden.subject("in.topk_ids"), "names expert {}; in.expert_mask has {}", id, count);
    }
    const std::int64_t mapped = local[static_cast<std::size_t>(id < 0 ? id + count : id)];
    id = mapped < 0 || mapped >= experts ? -1 : mapped;
  }
}

std::optional<ExpertRows> read_expert_rows(const GoldenCase& golden, std::string_view name,
                                           std::int64_t experts, std::int64_t width) {
  const TensorView* view = golden.find_input(name);
  if (view == nullptr) return std::nullopt;
  const bool enough = !view->shape.empty() && view->shape[0] >= experts;
  const std::int64_t each = enough ? view->size() / view->shape[0] : 0;
  if (each != width && each != 1) {
    fail(golden.subject(view->name), "has shape {}, needs {} or 1 numbers for each of {} experts",
         to_string(view->shape), width, experts);
  }
  return ExpertRows{each, factors_of(golden, *view)};
}

Sizes read_sizes(const GoldenCase& golden) {
  const TensorView& w1 = golden.input("w1");
  need_dimensions(golden, w1, 3, "[experts, rows, hidden]");
  const Shape w2 = w2_shape(golden);
  const std::int64_t width = stored_width(w1);
  if (w2[0] != w1.shape[0]) {
    fail(golden.subject("in.w2"), "has {} experts, in.w1 {}; both must agree", w2[0], w1.shape[0]);
  }
  if (width < 1 || w2[1] % width != 0 || w2[1] / width > 2) {
    fail(golden.subject("in.w1"),
         "has shape {}; w2 says that rows have {} elements, or half as many bytes",
         to_string(w1.shape), w2[1]);
  }
  return {w1.shape[0], w2[1], w1.shape[1], w2[2] * (w2[1] / width)};
}

std::optional<bool> optional_flag(const GoldenCase& golden, std::string_view name) {
  const auto found = golden.params.find(name);
  if (found == golden.params.end() || found->is_null()) return std::nullopt;
  if (!found->is_boolean()) {
    fail(golden.subject(fmt::format("params.{}", name)), "is {}, needs true or false",
         shown_param(golden, name));
  }
  return found->get<bool>();
}

std::string shown_param(const GoldenCase& golden, std::string_view name) {
  const auto found = golden.params.find(name);
  return found == golden.params.end() ? std::string("absent") : one_line(shown(*found));
}

StageFunction read_function(const GoldenCase& golden) {
  struct Name {
    std::string_view word;
    StageFunction function;
  };
  static constexpr std::array kNames{
      Name{"silu", StageFunction::silu},     Name{"gelu", StageFunction::gelu},
      Name{"swiglu", StageFunction::swiglu}, Name{"situv2", StageFunction::situ},
      Name{"no", StageFunction::identity},   Name{"none", StageFunction::identity},
  };
  constexpr std::string_view kEnumeration = "activationtype.";
  std::string word = golden.text_param("activation").value_or("silu");
  for (char& letter : word) {
    letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  }
  if (word.starts_with(kEnumeration)) word.erase(0, kEnumeration.size());
  word.erase(std::min(word.find("_lim"), word.size()));
  word.erase(std::min(word.find('('), word.size()));
  for (const Name& known : kNames) {
    if (word == known.word) return known.function;
  }
  fail(golden.subject("params.activation"), "is {}; known: no, silu, gelu, swiglu, situv2",
       shown_param(golden, "activation"));
}

StageActivation read_activation(const GoldenCase& golden, const Arithmetic& arithmetic,
                                bool gated) {
  StageActivation activation;
  activation.function = read_function(golden);
  const std::optional<double> limit = optional_number(golden, "swiglu_limit");
  switch (activation.function) {
    case StageFunction::swiglu:
      activation.alpha =
          bounds::script_constant(arithmetic, swiglu_default(golden, "alpha", 1.702));
      activation.limit =
          bounds::script_constant(arithmetic, limit.value_or(swiglu_default(golden, "limit", 7.0)));
      break;
    case StageFunction::situ:
      activation.beta = range_param(golden, arithmetic, "beta", 4.0);
      activation.linear_beta = range_param(golden, arithmetic, "linear_beta", 25.0);
      break;
    case StageFunction::identity:
    case StageFunction::silu:
    case StageFunction::gelu:
      if (limit.value_or(0.0) != 0.0)
        activation.limit = bounds::script_constant(arithmetic, *limit);
      break;
  }
  const bool halves_only =
      activation.function == StageFunction::swiglu || activation.function == StageFunction::situ;
  if (halves_only && !gated) {
    fail(golden.subject("params.activation"),
         "is {}, which needs gate and up: twice as many rows of w1 as intermediate elements",
         shown_param(golden, "activation"));
  }
  return activation;
}

}  // namespace moeref::conform::aiter
