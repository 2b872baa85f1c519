#include "io/layer_reader.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "quant/dequantize.hpp"
#include "quant/error.hpp"

namespace moeref {
namespace {

std::string describe(const TensorView& tensor) {
  return fmt::format("{} {}", name(tensor.dtype), to_string(tensor.shape));
}

}  // namespace

void LayerReader::note(std::string_view item, std::string value, std::string source) {
  layer.provenance.push_back({std::string(item), std::move(value), std::move(source)});
}

std::int64_t LayerReader::integer(std::string_view item, Keys keys, IntegerRange range,
                                  std::optional<Fallback<std::int64_t>> fallback) {
  Fact<std::int64_t> fact = config_.integer(keys, range, fallback);
  note(item, fmt::format("{}", fact.value), std::move(fact.source));
  return fact.value;
}

float LayerReader::number(std::string_view item, Keys keys,
                          std::optional<Fallback<float>> fallback) {
  Fact<float> fact = config_.number(keys, fallback);
  note(item, fmt::format("{}", fact.value), std::move(fact.source));
  return fact.value;
}

bool LayerReader::flag(std::string_view item, Keys keys, std::optional<Fallback<bool>> fallback) {
  Fact<bool> fact = config_.flag(keys, fallback);
  note(item, fmt::format("{}", fact.value), std::move(fact.source));
  return fact.value;
}

std::string LayerReader::word(std::string_view item, Keys keys,
                              std::optional<Fallback<std::string>> fallback) {
  Fact<std::string> fact = config_.word(keys, std::move(fallback));
  note(item, fact.value, std::move(fact.source));
  return fact.value;
}

std::string LayerReader::choose_prefix(std::span<const std::string> prefixes) const {
  for (const std::string& prefix : prefixes) {
    if (!tensors_.with_prefix(prefix).empty()) return prefix;
  }
  fail(config_.file(),
       "model_type {}: no tensor of layer {} begins with {}; the checkpoint lacks this "
       "layer, or uses other names",
       layer.model_type, layer.layer, fmt::join(prefixes, " or "));
}

void LayerReader::expect_experts(FormatNames formats, std::string source) {
  expert_formats_ = std::move(formats);
  expert_formats_source_ = std::move(source);
}

void LayerReader::note_tensor(const std::string& item, const IndexedTensor& tensor) {
  files_.insert(tensor.file);
  note(item, describe(*tensor.view), tensors_.source(tensor));
}

ScaledMatrix LayerReader::matrix(const std::string& item, const std::string& tensor,
                                 std::int64_t rows, std::int64_t cols) {
  const IndexedTensor& found = tensors_.at(tensor);
  ScaledMatrix matrix = plain_matrix(tensors_, found, {rows, cols}, rows, cols);
  note_tensor(item, found);
  return matrix;
}

ScaledMatrix LayerReader::vector(const std::string& item, const std::string& tensor,
                                 std::int64_t size) {
  const IndexedTensor& found = tensors_.at(tensor);
  ScaledMatrix vector = plain_matrix(tensors_, found, {size}, 1, size);
  note_tensor(item, found);
  return vector;
}

ScaledMatrix LayerReader::selection_bias(const std::string& tensor) {
  ScaledMatrix bias = vector("selection_bias", tensor, layer.expert_count());
  for (std::int64_t expert = 0; expert < bias.cols; ++expert) {
    if (std::isnan(element_at(bias, 0, expert))) {
      fail(tensors_.subject(tensors_.at(tensor)),
           "the bias of expert {} is NaN, needs a number; the checkpoint is damaged", expert);
    }
  }
  return bias;
}

LinearLayer LayerReader::linear(const std::string& item, const std::string& module,
                                const LinearShape& shape) {
  LinearLayer linear = read_linear(tensors_, quantization_, module, shape);
  for (const LinearPart& part : linear.parts) {
    note_tensor(part.role == "weight" ? item : fmt::format("{}.{}", item, part.role), *part.tensor);
  }
  return linear;
}

Expert LayerReader::expert(const std::string& item, const std::string& module,
                           const ProjectionNames& names, std::int64_t intermediate,
                           std::int64_t width, std::string_view intermediate_name,
                           std::string_view width_name) {
  const bool routed = item.starts_with("experts.");
  const auto read = [&](std::string_view role, std::string_view projection, bool down) {
    const std::string path = fmt::format("{}.{}", module, projection);
    LinearLayer linear =
        this->linear(fmt::format("{}.{}", item, role), path,
                     down ? LinearShape{width, intermediate, width_name, intermediate_name}
                          : LinearShape{intermediate, width, intermediate_name, width_name});
    check_against_config(path, linear.format, routed);
    return linear;
  };
  Expert expert;
  if (!names.gate.empty()) {
    LinearLayer gate = read("gate", names.gate, false);
    expert.gate = std::move(gate.weight);
    expert.gate_bias = std::move(gate.bias);
    expert.gate_input_scale = gate.input_scale;
  }
  LinearLayer up = read("up", names.up, false);
  expert.up = std::move(up.weight);
  expert.up_bias = std::move(up.bias);
  expert.up_input_scale = up.input_scale;
  LinearLayer down = read("down", names.down, true);
  expert.down = std::move(down.weight);
  expert.down_bias = std::move(down.bias);
  expert.down_input_scale = down.input_scale;
  return expert;
}

void LayerReader::routed_experts(const std::string& prefix, const ProjectionNames& names,
                                 const FusedForm& fused) {
  if (has(prefix + "experts.gate_up_proj")) {
    fused_experts(prefix, fused, false, false);
    return;
  }
  layer.gate_order = GateOrder::separate;
  note("gate_order", "separate", "names of the expert tensors");
  const std::string_view width_name = layer.latent != 0 ? "moe_latent_size" : "hidden_size";
  for (std::int64_t e = 0; e < layer.expert_count(); ++e) {
    layer.experts[static_cast<std::size_t>(e)] =
        expert(fmt::format("experts.{}", e), fmt::format("{}experts.{}", prefix, e), names,
               layer.intermediate, layer.expert_width(), "moe_intermediate_size", width_name);
  }
}

void LayerReader::shared_expert(const std::string& prefix, const ProjectionNames& names) {
  const std::string module = prefix + "shared_experts";
  const std::span<const IndexedTensor> present = tensors_.with_prefix(module + ".");
  constexpr std::string_view kKey = "n_shared_experts";
  std::int64_t count = 0;
  if (config_.has(kKey)) {
    count = integer("shared_experts", {kKey}, {0, 1024});
    if (count == 0 && !present.empty()) {
      fail(tensors_.subject(present.front()),
           "is there, but {} is 0; set it to the number of shared experts, or remove the tensors",
           config_.source(kKey));
    }
  } else if (!present.empty()) {
    const std::string up = fmt::format("{}.{}.weight", module, names.up);
    const TensorView& weight = *tensors_.at(has(up) ? up : up + "_packed").view;
    count = weight.shape.empty() ? 0 : weight.shape.front() / layer.intermediate;
    note("shared_experts", fmt::format("{}", count), "rows of " + weight.name);
  }
  if (count == 0) return;
  layer.shared = expert("shared", module, names, layer.intermediate * count, layer.hidden,
                        "moe_intermediate_size * n_shared_experts", "hidden_size");
}

void LayerReader::check_against_config(const std::string& module, std::string_view format,
                                       bool routed) {
  FormatNames& formats = routed ? routed_formats_ : shared_formats_;
  if (std::find(formats.begin(), formats.end(), format) == formats.end()) formats.push_back(format);
  ++checked_modules_;
  const FormatNames expected =
      routed && !expert_formats_.empty() ? expert_formats_ : quantization_.expected(module);
  if (expected.empty() || std::find(expected.begin(), expected.end(), format) != expected.end()) {
    return;
  }
  Disagreement& entry = disagreements_[fmt::format(
      "stored as {}, the config says {}; the tensors decide", format, fmt::join(expected, " or "))];
  if (entry.modules++ == 0) entry.first_module = module;
}

void LayerReader::finish() {
  layer.weight_format = fmt::format("{}", fmt::join(routed_formats_, "+"));
  note("weight_format", layer.weight_format, "names and dtypes of the expert tensors");
  if (layer.shared) {
    note("shared_format", fmt::format("{}", fmt::join(shared_formats_, "+")),
         "names and dtypes of the shared expert's tensors");
  }
  const std::string source = quantization_.source().empty() ? "config.json: no quantization_config"
                                                            : quantization_.source();
  note("quantization", quantization_.summary(), source);
  if (const auto& block = quantization_.block()) {
    note("weight_block", fmt::format("[{}, {}]", block->value.rows, block->value.cols),
         block->source);
  }
  if (!expert_formats_.empty()) {
    note("expert_formats", fmt::format("{}", fmt::join(expert_formats_, " or ")),
         expert_formats_source_);
  }
  for (const auto& [text, entry] : disagreements_) {
    note("quantization_check",
         fmt::format("{} ({} of {} modules, first {})", text, entry.modules, checked_modules_,
                     entry.first_module),
         source);
  }
  if (disagreements_.empty()) note("quantization_check", "agrees with the tensors", source);
  for (const std::uint32_t file : files_) layer.storage.push_back(tensors_.file(file));
}

}  // namespace moeref
