#include "cli/conform/logical_hashes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>

#include "cli/conform/sha256.hpp"
#include "io/json_file.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"

namespace moeref::conform {
namespace {

static_assert(std::endian::native == std::endian::little, "the hashed bytes are little-endian");

constexpr std::string_view kSubject = "params.dequant_sha256";

/// Where a logical tensor lies in a layer: in every expert, in the shared expert, or once.
struct LogicalTensor {
  std::string_view name;
  ScaledMatrix Expert::*of_expert = nullptr;
  ScaledMatrix Expert::*of_shared = nullptr;
  ScaledMatrix MoeLayer::*of_layer = nullptr;
  bool is_vector = false;  ///< stored as one row; its shape has no row axis
};

constexpr std::array kLogicalTensors{
    LogicalTensor{"router", nullptr, nullptr, &MoeLayer::router, false},
    LogicalTensor{"router_bias", nullptr, nullptr, &MoeLayer::router_bias, true},
    LogicalTensor{"corr", nullptr, nullptr, &MoeLayer::selection_bias, true},
    LogicalTensor{"gate", &Expert::gate, nullptr, nullptr, false},
    LogicalTensor{"up", &Expert::up, nullptr, nullptr, false},
    LogicalTensor{"down", &Expert::down, nullptr, nullptr, false},
    LogicalTensor{"gate_bias", &Expert::gate_bias, nullptr, nullptr, true},
    LogicalTensor{"up_bias", &Expert::up_bias, nullptr, nullptr, true},
    LogicalTensor{"down_bias", &Expert::down_bias, nullptr, nullptr, true},
    LogicalTensor{"shared_gate", nullptr, &Expert::gate, nullptr, false},
    LogicalTensor{"shared_up", nullptr, &Expert::up, nullptr, false},
    LogicalTensor{"shared_down", nullptr, &Expert::down, nullptr, false},
    LogicalTensor{"latent1", nullptr, nullptr, &MoeLayer::latent_in, false},
    LogicalTensor{"latent2", nullptr, nullptr, &MoeLayer::latent_out, false},
};

/// The matrices that make up a logical tensor, one after the other. Empty if the layer lacks it.
std::vector<const ScaledMatrix*> parts_of(const LogicalTensor& tensor, const MoeLayer& layer) {
  std::vector<const ScaledMatrix*> parts;
  if (tensor.of_expert != nullptr) {
    for (const Expert& expert : layer.experts) parts.push_back(&(expert.*tensor.of_expert));
  } else if (tensor.of_shared != nullptr) {
    if (layer.shared) parts.push_back(&((*layer.shared).*tensor.of_shared));
  } else {
    parts.push_back(&(layer.*tensor.of_layer));
  }
  const bool complete =
      std::all_of(parts.begin(), parts.end(), [](const ScaledMatrix* part) { return bool(*part); });
  return complete ? parts : std::vector<const ScaledMatrix*>{};
}

Shape shape_of(const LogicalTensor& tensor, const std::vector<const ScaledMatrix*>& parts) {
  Shape shape;
  if (tensor.of_expert != nullptr) shape.push_back(static_cast<std::int64_t>(parts.size()));
  if (!tensor.is_vector) shape.push_back(parts.front()->rows);
  shape.push_back(parts.front()->cols);
  return shape;
}

void dequantize_as(const ScaledMatrix& matrix, std::span<double> values) {
  dequantize(matrix, values);
}
void dequantize_as(const ScaledMatrix& matrix, std::span<float> values) {
  dequantize(matrix, DequantizeOrder::checkpoint, Format::f32, values);
}

template <typename Value>
std::string digest(const std::vector<const ScaledMatrix*>& parts) {
  Sha256 hash;
  for (const ScaledMatrix* part : parts) {
    std::vector<Value> values(static_cast<std::size_t>(part->rows * part->cols));
    dequantize_as(*part, std::span<Value>(values));
    hash.update(std::as_bytes(std::span<const Value>(values)));
  }
  return hash.hex_digest();
}

Finding check_hash(const std::string& subject, const nlohmann::json& entry, const std::string& key,
                   const std::string& computed) {
  const bool equal = entry[key].is_string() && entry[key].get<std::string>() == computed;
  return statement(subject + "." + key, "hash", equal,
                   equal ? "" : fmt::format("stored {}, moeref {}", shown(entry[key]), computed));
}

void check_tensor(const std::string& name, const nlohmann::json& entry, const MoeLayer& layer,
                  std::vector<Finding>& findings) {
  const std::string subject = fmt::format("{}.{}", kSubject, name);
  const auto known = std::find_if(kLogicalTensors.begin(), kLogicalTensors.end(),
                                  [&](const LogicalTensor& tensor) { return tensor.name == name; });
  if (known == kLogicalTensors.end()) {
    findings.push_back(statement(subject, "hash", false, "no logical tensor has this name"));
    return;
  }
  const auto parts = parts_of(*known, layer);
  if (parts.empty()) {
    findings.push_back(
        statement(subject, "hash", false, fmt::format("layer {} has no such tensor", layer.layer)));
    return;
  }
  if (!entry.is_object() || !(entry.contains("f64") || entry.contains("f32"))) {
    findings.push_back(
        statement(subject, "hash", false, "is not an object with \"f64\" or \"f32\""));
    return;
  }
  const Shape shape = shape_of(*known, parts);
  if (entry.contains("shape") && entry["shape"] != nlohmann::json(shape)) {
    findings.push_back(
        statement(subject + ".shape", "shape", false,
                  fmt::format("stored {}, moeref {}", shown(entry["shape"]), to_string(shape))));
    return;
  }
  if (entry.contains("f64"))
    findings.push_back(check_hash(subject, entry, "f64", digest<double>(parts)));
  if (entry.contains("f32"))
    findings.push_back(check_hash(subject, entry, "f32", digest<float>(parts)));
}

}  // namespace

std::vector<Finding> check_logical_hashes(const GoldenCase& golden, const MoeLayer& layer) {
  std::vector<Finding> findings;
  const auto hashes = golden.params.find("dequant_sha256");
  if (hashes == golden.params.end()) return findings;
  if (!hashes->is_object()) fail(golden.subject(kSubject), "is not a JSON object");
  for (const auto& [name, entry] : hashes->items()) check_tensor(name, entry, layer, findings);
  return findings;
}

}  // namespace moeref::conform
