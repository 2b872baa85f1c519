#include "io/quantization_config.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <stdexcept>

#include "io/json_file.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

using namespace weight_formats;

struct KnownName {
  std::string_view name;
  std::array<std::string_view, 2>
      formats;  ///< what weights it stands for; empty = the config alone does not tell
};

/// quantization_config: quant_method
constexpr std::array<KnownName, 7> kMethods{{
    {"compressed-tensors", {}},
    {"fp8", {}},
    {"modelopt", {}},
    {"modelopt_fp4", {kNvfp4}},
    {"modelopt_mixed", {}},
    {"mxfp4", {kMxfp4}},
    {"mxfp8", {kMxfp8}},
}};

/// ModelOpt: quant_algo. Names of hf_quant_config.json, NVIDIA/Model-Optimizer@a2fbac7bad8a
/// modelopt/torch/export.
constexpr std::array<KnownName, 9> kAlgorithms{{
    {"FP8", {kFp8Tensor}},
    {"FP8_PB_WO", {kFp8Block}},
    {"FP8_PER_CHANNEL_PER_TOKEN", {kFp8Channel}},
    {"MIXED_PRECISION", {}},
    {"MXFP4", {kMxfp4}},
    {"MXFP8", {kMxfp8}},
    {"NVFP4", {kNvfp4}},
    {"W4A16_NVFP4", {kNvfp4}},
    {"W4A8_MXFP4_FP8", {kMxfp4}},
}};

/// compressed-tensors: format
constexpr std::array<KnownName, 8> kContainers{{
    {"dense", {kBf16, kF16}},
    {"float-quantized", {}},
    {"mixed-precision", {}},
    {"mxfp4-pack-quantized", {kMxfp4}},
    {"mxfp8-quantized", {kMxfp8}},
    {"naive-quantized", {}},
    {"nvfp4-pack-quantized", {kNvfp4Ct}},
    {"nvfp4-quantized", {kNvfp4Ct}},
}};

/// compressed-tensors: weights.strategy of an 8-bit float
constexpr std::array<KnownName, 3> kStrategies{{
    {"block", {kFp8Block}},
    {"channel", {kFp8Channel}},
    {"tensor", {kFp8Tensor}},
}};

FormatNames formats_in(std::span<const KnownName> table, std::string_view name) {
  FormatNames formats;
  for (const KnownName& known : table) {
    if (known.name != name) continue;
    for (const std::string_view format : known.formats) {
      if (!format.empty()) formats.push_back(format);
    }
  }
  return formats;
}

void require_known(std::span<const KnownName> table, const std::string& name,
                   const std::string& subject) {
  std::vector<std::string_view> names;
  for (const KnownName& known : table) {
    if (known.name == name) return;
    names.push_back(known.name);
  }
  fail(subject, "is \"{}\", which is not supported; known are: {}", one_line(name),
       fmt::join(names, ", "));
}

void add_to(NameList& list, std::string_view text, std::size_t value, const std::string& subject) {
  try {
    list.add(text, value);
  } catch (const std::length_error&) {
    fail(subject, "has more name patterns than any known file; list module names instead");
  }
}

const FormatNames& plain_formats() {
  static const FormatNames formats{kBf16, kF16, kF32};
  return formats;
}

}  // namespace

FormatNames QuantizationConfig::formats_of_algorithm(std::string_view algorithm) {
  return formats_in(kAlgorithms, algorithm);
}

QuantizationConfig QuantizationConfig::read(const ModelConfig& model, const ModelConfig& section,
                                            const std::filesystem::path& folder) {
  QuantizationConfig quantization;
  for (const std::string_view key : {"quantization_config", "compression_config"}) {
    for (const ModelConfig* config : {&model, &section}) {
      const std::optional<ModelConfig> found = config->find_section(key);
      if (!found || !quantization.method_.empty()) continue;
      quantization.source_ = config->source(key);
      quantization.read_config(*found);
    }
  }
  if (quantization.moe_algorithm_.empty()) quantization.read_moe_algorithm(model);
  const std::filesystem::path modelopt_file = folder / "hf_quant_config.json";
  std::error_code error;
  if (std::filesystem::exists(modelopt_file, error)) {
    const ModelConfig modelopt = ModelConfig::open(modelopt_file).section("quantization");
    if (quantization.method_.empty()) {
      quantization.method_ = "modelopt";
      quantization.source_ = "hf_quant_config.json: quantization";
    }
    quantization.read_modelopt(modelopt);
  }
  return quantization;
}

void QuantizationConfig::read_config(const ModelConfig& config) {
  method_ = config.word({"quant_method"}).value;
  require_known(kMethods, method_, config.subject("quant_method"));
  read_block(config, "weight_block_size");
  for (const std::string_view key : {"modules_to_not_convert", "ignored_layers", "ignore"}) {
    add_ignored(config, key);
  }
  read_moe_algorithm(config);
  if (method_ == "compressed-tensors") {
    algorithm_ = config.word({"format"}, Fallback<std::string>{}).value;
    if (!algorithm_.empty()) require_known(kContainers, algorithm_, config.subject("format"));
    read_groups(config);
  } else {
    read_modelopt(config);
  }
}

void QuantizationConfig::read_moe_algorithm(const ModelConfig& config) {
  if (!config.has("moe_quant_algo")) return;
  moe_algorithm_ = config.word({"moe_quant_algo"}).value;
  require_known(kAlgorithms, moe_algorithm_, config.subject("moe_quant_algo"));
}

void QuantizationConfig::read_modelopt(const ModelConfig& config) {
  if (config.has("quant_algo")) {
    const std::string algorithm = config.word({"quant_algo"}).value;
    require_known(kAlgorithms, algorithm, config.subject("quant_algo"));
    if (algorithm_.empty()) algorithm_ = algorithm;
  }
  add_ignored(config, "exclude_modules");
  const std::optional<ModelConfig> layers = config.find_section("quantized_layers");
  if (!layers) return;
  has_quantized_layers_ = true;
  for (const std::string& module : layers->keys()) {
    const ModelConfig entry = layers->section(module);
    const std::string algorithm = entry.word({"quant_algo"}).value;
    // An unknown algorithm in a module of another kind is none of our business: its formats stay
    // unknown.
    formats_.push_back(formats_of_algorithm(algorithm));
    add_to(quantized_layers_, module, formats_.size() - 1, config.subject("quantized_layers"));
  }
}

void QuantizationConfig::read_groups(const ModelConfig& config) {
  const std::optional<ModelConfig> groups = config.find_section("config_groups");
  if (!groups) return;
  has_groups_ = true;
  for (const std::string& name : groups->keys()) {
    const ModelConfig group = groups->section(name);
    const std::string container =
        group.word({"format"}, Fallback<std::string>{algorithm_, {}}).value;
    FormatNames formats = formats_in(kContainers, container);
    if (const std::optional<ModelConfig> weights = group.find_section("weights")) {
      const std::int64_t bits =
          weights->integer({"num_bits"}, {1, 64}, Fallback<std::int64_t>{}).value;
      const std::string strategy = weights->word({"strategy"}, Fallback<std::string>{}).value;
      if (formats.empty() && bits == 8) formats = formats_in(kStrategies, strategy);
      if (strategy == "block") read_block(*weights, "block_structure");
    }
    formats_.push_back(std::move(formats));
    for (const std::string& target : group.words("targets")) {
      add_to(grouped_, target, formats_.size() - 1, group.subject("targets"));
    }
  }
}

void QuantizationConfig::read_block(const ModelConfig& config, std::string_view key) {
  if (block_ || !config.has(key)) return;
  const std::vector<std::int64_t> sizes = config.integers(key, {1, kWidth.max});
  if (sizes.size() != 2) {
    fail(config.subject(key), "has {} numbers, needs 2: rows and columns of a block", sizes.size());
  }
  block_ = {{sizes[0], sizes[1]}, config.source(key)};
}

void QuantizationConfig::add_ignored(const ModelConfig& config, std::string_view key) {
  for (const std::string& name : config.words(key)) {
    add_to(ignored_, name, 0, config.subject(key));
  }
}

std::string QuantizationConfig::summary() const {
  if (method_.empty()) return "none";
  return algorithm_.empty() ? method_ : method_ + " " + algorithm_;
}

FormatNames QuantizationConfig::expected(std::string_view module) const {
  if (method_.empty() || ignored_.find(module)) return plain_formats();
  if (has_quantized_layers_) {
    if (const auto found = quantized_layers_.find(module)) return formats_[*found];
    if (method_.starts_with("modelopt")) return plain_formats();
  }
  if (has_groups_) {
    const auto found = grouped_.find(module);
    return found ? formats_[*found] : plain_formats();
  }
  if (method_ == "fp8") {
    return block_ ? FormatNames{kFp8Block, kMxfp8} : FormatNames{kFp8Tensor, kFp8Channel};
  }
  FormatNames formats = formats_in(kMethods, method_);
  if (formats.empty()) formats = formats_in(kAlgorithms, algorithm_);
  return formats.empty() ? formats_in(kContainers, algorithm_) : formats;
}

}  // namespace moeref
