#include "layout/backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <utility>

#include "quant/error.hpp"
#include "quant/nearest_names.hpp"

namespace moeref {
namespace {

constexpr std::array kBackends{
#define MOEREF_BACKEND(name) &backends::name,
#include "layout/backends.inc"
#undef MOEREF_BACKEND
};

constexpr std::string_view kHidden = "hidden";
constexpr std::string_view kIntermediate = "intermediate";
constexpr std::string_view kExperts = "experts";
constexpr std::string_view kPaddedHidden = "padded hidden";
constexpr std::string_view kPaddedIntermediate = "padded intermediate";
constexpr std::array kSizes{kHidden, kIntermediate, kExperts, kPaddedHidden, kPaddedIntermediate};

constexpr std::string_view kGated = "gated";
constexpr std::string_view kNotGated = "not gated";

template <typename Names>
bool has(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// The words of AlignmentRule::when.
std::vector<std::string_view> words_of(std::string_view when) {
  constexpr std::string_view kAnd = " and ";
  std::vector<std::string_view> words;
  while (!when.empty()) {
    const std::size_t end = std::min(when.find(kAnd), when.size());
    words.push_back(when.substr(0, end));
    when.remove_prefix(std::min(end + kAnd.size(), when.size()));
  }
  return words;
}

/// "pad=none" or "pad!=none".
struct Choice {
  std::string_view option;
  std::string_view value;
  bool negated = false;

  bool holds(const Options& options) const { return options.is(option, value) != negated; }
};

/// Empty for a word about the layer. Error: a word that says nothing about the backend.
std::optional<Choice> choice_of(const Backend& backend, std::string_view word) {
  if (word == kGated || word == kNotGated || has(backend.formats, word)) return std::nullopt;
  const std::size_t equals = word.find('=');
  if (equals != std::string_view::npos && equals > 0) {
    const bool negated = word[equals - 1] == '!';
    const Choice choice{word.substr(0, negated ? equals - 1 : equals), word.substr(equals + 1),
                        negated};
    for (const OptionInfo& option : backend.options) {
      if (option.name == choice.option && has(option.values, choice.value)) return choice;
    }
  }
  fail(backend.name, "has a rule when '{}', which is no option's value, format or gating of it",
       word);
}

struct NamedSize {
  std::string_view name;
  std::int64_t size;
};

/// Error: one of `sizes` breaks a rule about it.
void check_rules(const Backend& backend, std::span<const AlignmentRule> rules,
                 const LayerShape& shape, std::initializer_list<NamedSize> sizes) {
  for (const AlignmentRule& rule : rules) {
    if (!applies(rule, shape)) continue;
    for (const NamedSize& named : sizes) {
      if (named.name != rule.size || named.size % rule.multiple == 0) continue;
      fail(backend.name, "{} is {}, it must be a multiple of {}{}{}: {}", rule.size, named.size,
           rule.multiple, rule.when.empty() ? "" : " when ", rule.when, rule.reason);
    }
  }
}

std::string quoted(std::span<const std::string_view> values) {
  return fmt::format("{}", fmt::join(values, ", "));
}

}  // namespace

std::span<const Backend* const> all_backends() { return kBackends; }

const Backend& find_backend(std::string_view name) {
  for (const Backend* backend : kBackends) {
    if (backend->name == name) return *backend;
  }
  std::vector<std::string> names;
  for (const Backend* backend : kBackends) names.emplace_back(backend->name);
  fail(name, "is no backend; is it {}? `moeref layout list` shows all",
       fmt::join(nearest_names(name, names), " or "));
}

Options parse_options(const Backend& backend, std::span<const std::string> texts) {
  return parse_options(backend.name, backend.options, texts);
}

std::vector<AlignmentRule> rules_for(const Backend& backend, const Options& options) {
  std::vector<AlignmentRule> rules;
  for (const AlignmentRule& rule : backend.rules) {
    if (!has(kSizes, rule.size)) {
      fail(backend.name, "has a rule about '{}'; sizes are {}", rule.size, quoted(kSizes));
    }
    AlignmentRule left{rule.size, rule.multiple, "", rule.reason};
    bool chosen = true;
    for (const std::string_view word : words_of(rule.when)) {
      if (const std::optional<Choice> choice = choice_of(backend, word)) {
        chosen = chosen && choice->holds(options);
      } else {
        left.when += (left.when.empty() ? "" : " and ") + std::string(word);
      }
    }
    if (chosen) rules.push_back(std::move(left));
  }
  return rules;
}

bool NumericsRequest::parametric() const {
  const auto differs = [](float one, const std::vector<float>& each, float usual) {
    return each.empty() ? one != usual
                        : std::any_of(each.begin(), each.end(),
                                      [usual](float value) { return value != usual; });
  };
  return activation.form == ActivationForm::swiglu &&
         (differs(activation.alpha, activation.alphas, 1.0f) ||
          differs(activation.beta, activation.betas, 0.0f) ||
          differs(activation.limit, activation.limits, kNoLimit));
}

Options parse_kernel_options(const Backend& backend, std::span<const std::string> texts) {
  return parse_options(fmt::format("{} --kernel", backend.name), backend.kernel_options, texts);
}

Numerics numerics_for(const Backend& backend, const NumericsRequest& request) {
  if (request.level == NumericsLevel::replay && backend.replay.evidence == ReplayEvidence::none) {
    fail(backend.name, "cannot be replayed: {}; take --numerics backend", backend.replay.note);
  }
  if (backend.numerics == nullptr) {
    fail(backend.name, "has no rounding points; take --numerics reference");
  }
  return backend.numerics(request);
}

bool applies(const AlignmentRule& rule, const LayerShape& shape) {
  const std::vector<std::string_view> words = words_of(rule.when);
  return std::all_of(words.begin(), words.end(), [&shape](std::string_view word) {
    if (word == kGated || word == kNotGated) return shape.gated == (word == kGated);
    return word == shape.weight_format;
  });
}

Recipe make_recipe(const Backend& backend, const LayerShape& shape, const Options& options) {
  if (!has(backend.formats, shape.weight_format)) {
    fail(backend.name, "takes {} weights, {} has {}", quoted(backend.formats), shape.model,
         shape.weight_format);
  }
  const std::vector<AlignmentRule> rules = rules_for(backend, options);
  check_rules(backend, rules, shape,
              {{kHidden, shape.hidden}, {kIntermediate, shape.stride}, {kExperts, shape.experts}});
  Recipe recipe = backend.recipe(shape, options);
  check_rules(
      backend, rules, shape,
      {{kPaddedHidden, recipe.kernel.hidden}, {kPaddedIntermediate, recipe.kernel.intermediate}});
  return recipe;
}

}  // namespace moeref
