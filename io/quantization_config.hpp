#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/model_config.hpp"
#include "io/name_pattern.hpp"

namespace moeref {

/// Names of weight formats, as in MoeLayer::weight_format.
namespace weight_formats {
inline constexpr std::string_view kMxfp4 = "mxfp4";
inline constexpr std::string_view kNvfp4 = "nvfp4";       ///< ModelOpt: the global scale multiplies
inline constexpr std::string_view kNvfp4Ct = "nvfp4_ct";  ///< compressed-tensors: it divides
inline constexpr std::string_view kFp8Tensor = "fp8_tensor";
inline constexpr std::string_view kFp8Channel = "fp8_channel";
inline constexpr std::string_view kFp8Block = "fp8_block";
inline constexpr std::string_view kMxfp8 = "mxfp8";
inline constexpr std::string_view kBf16 = "bf16";
inline constexpr std::string_view kF16 = "f16";
inline constexpr std::string_view kF32 = "f32";
}  // namespace weight_formats

/// Rows and columns of weights that share one scale.
struct WeightBlock {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

using FormatNames = std::vector<std::string_view>;

/// What config.json (`quantization_config`) and hf_quant_config.json say about the weights. The
/// tensors decide how a layer is read; this gives the block size, which no tensor states, and is
/// compared with what the tensors show.
class QuantizationConfig {
 public:
  /// `model` is the whole config.json, `section` the part with the language model. Error: unknown
  /// method, format or algorithm (prints it and the known ones), malformed values.
  static QuantizationConfig read(const ModelConfig& model, const ModelConfig& section,
                                 const std::filesystem::path& folder);

  const std::string& method() const { return method_; }  ///< empty = unquantized
  const std::string& algorithm() const {
    return algorithm_;
  }  ///< quant_algo or format; may be empty
  /// "modelopt NVFP4", or "none".
  std::string summary() const;
  const std::string& source() const { return source_; }  ///< "config.json: quantization_config"
  const std::optional<Fact<WeightBlock>>& block() const { return block_; }
  /// `moe_quant_algo` of a ModelOpt conversion that keeps another method for the rest; may be
  /// empty.
  const std::string& moe_algorithm() const { return moe_algorithm_; }
  /// Formats in which the module should be stored according to the config; empty = it does not say.
  FormatNames expected(std::string_view module) const;

  /// Formats that a ModelOpt algorithm name stands for; empty if it is unknown.
  static FormatNames formats_of_algorithm(std::string_view algorithm);

 private:
  void read_config(const ModelConfig& config);
  void read_moe_algorithm(const ModelConfig& config);
  void read_modelopt(const ModelConfig& config);
  void read_groups(const ModelConfig& config);
  void read_block(const ModelConfig& config, std::string_view key);
  void add_ignored(const ModelConfig& config, std::string_view key);

  std::string method_;
  std::string algorithm_;
  std::string moe_algorithm_;
  std::string source_;
  std::optional<Fact<WeightBlock>> block_;
  NameList ignored_;
  NameList grouped_;           ///< targets of config_groups; value = number in `formats_`
  NameList quantized_layers_;  ///< ModelOpt MIXED_PRECISION; value = number in `formats_`
  std::vector<FormatNames> formats_;
  bool has_groups_ = false;
  bool has_quantized_layers_ = false;
};

}  // namespace moeref
