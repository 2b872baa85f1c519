#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/synth/unit_table.hpp"
#include "quant/quantize.hpp"

namespace moeref {

/// A weight quantizer with its options chosen, for numbers in bf16.
struct WeightQuantizer {
  const Quantizer* quantizer = nullptr;
  Options options;
  QuantizePlan plan;
};

/// Where weights come from and where they go to: what a quantizer must fit.
struct WeightTarget {
  std::string_view model;  ///< for messages
  QuantizedForm stored;    ///< as the checkpoint has them
  /// The distributions of the weights. The largest magnitude of a block is one of these values, so
  /// that whether a scale can be stored is known before anything is drawn.
  std::vector<UnitTablePointer> values;
};

/// Error: no such quantizer or option; one whose result `target` cannot store, with those that fit.
WeightQuantizer choose_quantizer(const WeightTarget& target, std::string_view name,
                                 std::span<const std::string> options);

/// Every weight quantizer with every choice of its options that fits, the choices of one together
/// and those that change the fewest options first. Integers are at their defaults.
std::vector<WeightQuantizer> fitting_quantizers(const WeightTarget& target);

/// "deepgemm_fp4_token device=cuda group=32 scale=ue8m0"
std::string full_name(const WeightQuantizer& quantizer);
/// The options that are not the quantizer's own choice: {"scale=ue8m0"}.
std::vector<std::string> changed_options(const WeightQuantizer& quantizer);

/// The code in `to` of a scale that is the code `scale` in `from`; nothing unless `to` holds its
/// value exactly.
std::optional<std::uint32_t> stored_scale(Format from, std::uint32_t scale, Format to);

}  // namespace moeref
