#include "io/families/family.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "io/json_file.hpp"
#include "quant/error.hpp"

namespace moeref {

namespace families {
#define MOEREF_FAMILY(name) extern const Family name;
#include "io/families/families.inc"
#undef MOEREF_FAMILY
}  // namespace families

namespace {

#define MOEREF_FAMILY(name) &families::name,
constexpr std::array kFamilies{
#include "io/families/families.inc"
};
#undef MOEREF_FAMILY

struct ActivationName {
  std::string_view name;
  ActivationForm form;
};

/// Names of transformers' ACT2FN. "gelu_new" and "gelu_pytorch_tanh" are the same formula.
constexpr std::array<ActivationName, 5> kGatedNames{{
    {"silu", ActivationForm::swiglu},
    {"swish", ActivationForm::swiglu},
    {"gelu", ActivationForm::geglu_erf},
    {"gelu_new", ActivationForm::geglu_tanh},
    {"gelu_pytorch_tanh", ActivationForm::geglu_tanh},
}};
constexpr std::array<ActivationName, 6> kPlainNames{{
    {"relu2", ActivationForm::relu2},
    {"silu", ActivationForm::silu},
    {"swish", ActivationForm::silu},
    {"gelu", ActivationForm::gelu_erf},
    {"gelu_new", ActivationForm::gelu_tanh},
    {"gelu_pytorch_tanh", ActivationForm::gelu_tanh},
}};

Activation find_activation(LayerReader& reader, std::string_view key, std::string_view fallback,
                           std::span<const ActivationName> known) {
  const std::string found = reader.word(
      "activation", {key},
      Fallback<std::string>{std::string(fallback), "default of the transformers class"});
  std::vector<std::string_view> names;
  for (const ActivationName& entry : known) {
    if (entry.name == found) return {.form = entry.form, .alphas = {}, .betas = {}, .limits = {}};
    names.push_back(entry.name);
  }
  fail(reader.config().subject(key), "is \"{}\", needs one of: {}", one_line(found),
       fmt::join(names, ", "));
}

}  // namespace

std::span<const Family* const> all_families() { return kFamilies; }

Activation gated_activation(LayerReader& reader) {
  return find_activation(reader, "hidden_act", "silu", kGatedNames);
}

Activation plain_activation(LayerReader& reader, std::string_view key) {
  return find_activation(reader, key, "relu2", kPlainNames);
}

void require_word(LayerReader& reader, std::string_view item, std::string_view key,
                  std::string_view only) {
  const std::string found =
      reader.word(item, {key}, Fallback<std::string>{std::string(only), "the only known value"});
  if (found != only) {
    fail(reader.config().subject(key),
         "is \"{}\", needs \"{}\": model_type {} is known with it only", one_line(found), only,
         reader.layer.model_type);
  }
}

void read_sizes(LayerReader& reader, std::string_view intermediate, Keys experts, Keys top_k) {
  MoeLayer& layer = reader.layer;
  layer.hidden = reader.integer("hidden", {"hidden_size"}, kWidth);
  layer.intermediate = reader.integer("intermediate", {intermediate}, kWidth);
  const std::int64_t count = reader.integer("experts", experts, kExpertCount);
  layer.experts.resize(static_cast<std::size_t>(count));
  layer.routing.top_k = reader.integer("top_k", top_k, {1, kExpertCount.max});
}

std::vector<std::int64_t> every_layer(const ModelConfig& config) {
  std::vector<std::int64_t> layers(
      static_cast<std::size_t>(config.integer({"num_hidden_layers"}, kLayerCount).value));
  std::iota(layers.begin(), layers.end(), std::int64_t{0});
  return layers;
}

}  // namespace moeref
