#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "io/safetensors.hpp"
#include "quant/dtype.hpp"
#include "quant/tensor.hpp"

namespace moeref {

/// How one output of a golden case is compared.
enum class CompareKind : std::uint8_t {
  bits,    ///< bit for bit
  set,     ///< equal as a set per token
  info,    ///< not compared
  mask,    ///< this tensor says where another one is compared: read, not computed
  masked,  ///< bit for bit where the mask tensor is not zero
  bound,   ///< within the bound of an evaluation rounded to a precision
};

struct CompareRule {
  CompareKind kind = CompareKind::bits;
  std::string mask;                ///< masked: the full name of the mask tensor
  Format precision = Format::f64;  ///< bound: f32 or f64
};

/// One golden operation case: a safetensors file with tensors `in.*` and `out.*` and metadata `op`,
/// `params` (JSON), `source`, `note`, `compare` (JSON, one entry an output; an absent one means
/// bits). The views live as long as `file`.
struct GoldenCase {
  std::filesystem::path path;
  std::string op;
  nlohmann::json params;  ///< an object
  std::string source;
  std::map<std::string, TensorView, std::less<>> inputs;   ///< by name without "in."
  std::map<std::string, TensorView, std::less<>> outputs;  ///< by name without "out."
  std::map<std::string, CompareRule, std::less<>>
      rules;  ///< by name without "out."; outputs without an entry are bits
  std::shared_ptr<const SafetensorsFile> file;

  /// The input, or nullptr.
  const TensorView* find_input(std::string_view name) const;
  /// Error: no such input; names the nearest.
  const TensorView& input(std::string_view name) const;
  /// The output, or nullptr.
  const TensorView* find_output(std::string_view name) const;
  /// Error: no such output; names the nearest.
  const TensorView& output(std::string_view name) const;
  const CompareRule& rule(std::string_view output) const;
  /// A text parameter, or nothing if absent. Error: not a string.
  std::optional<std::string> text_param(std::string_view name) const;
  /// Error: absent, or not an integer.
  std::int64_t integer_param(std::string_view name) const;
  /// Error: absent, or not a number.
  double number_param(std::string_view name) const;
  /// Of a size. Error: absent, no integer, not in 1 .. 2^31.
  std::int64_t positive_param(std::string_view name) const;
  /// "file.safetensors: out.name", for messages.
  std::string subject(std::string_view tensor) const;
};

/// Reads a case. Error: not a safetensors file, no `op`, params or compare that are not JSON
/// objects, unknown compare rules, a rule or mask that names no tensor.
GoldenCase read_golden_case(const std::filesystem::path& path);

/// Whether the metadata of a safetensors file names an op.
bool has_op(const SafetensorsFile& file);
/// As above, from an open file.
GoldenCase read_golden_case(std::shared_ptr<const SafetensorsFile> file);

}  // namespace moeref
