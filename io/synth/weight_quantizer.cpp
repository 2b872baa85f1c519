#include "io/synth/weight_quantizer.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "quant/error.hpp"
#include "quant/tensor.hpp"

namespace moeref {
namespace {

/// "e2m1 codes with ue4m3 scales of 1 x 16 and a global scale that multiplies"
std::string describe(const QuantizedForm& form) {
  const std::string scales(name(form.scales));
  std::string text = fmt::format("{} codes with ", name(form.codes));
  if (form.block_rows == 0 && form.block_cols == 0) {
    text += "one " + scales + " scale";
  } else if (form.block_cols == 0) {
    text += fmt::format("{} scales of {} row{}", scales, form.block_rows,
                        form.block_rows == 1 ? "" : "s");
  } else {
    text += fmt::format("{} scales of {} x {}", scales, form.block_rows, form.block_cols);
  }
  if (form.global == GlobalScaleOf::none) return text;
  text += form.global == GlobalScaleOf::row ? " and a global scale a row" : " and a global scale";
  if (form.global_rule == GlobalScaleRule::multiply) text += " that multiplies";
  if (form.global_rule == GlobalScaleRule::divide) text += " that divides";
  return text;
}

bool same_form(const QuantizedForm& made, const QuantizedForm& stored) {
  return made.codes == stored.codes && made.block_rows == stored.block_rows &&
         made.block_cols == stored.block_cols && made.global == stored.global &&
         made.global_rule == stored.global_rule;
}

/// Every magnitude that is drawn, once.
std::vector<float> magnitudes(const WeightTarget& target) {
  std::vector<bool> occurs(std::size_t{1} << 15);
  for (const UnitTablePointer& table : target.values) {
    for (std::size_t at = 0; at < table->bytes.size(); at += table->unit_bytes) {
      occurs[load<std::uint16_t>(table->bytes.data() + at) & 0x7FFFu] = true;
    }
  }
  std::vector<float> values;
  for (std::uint32_t code = 0; code < occurs.size(); ++code) {
    if (occurs[code]) values.push_back(decode(Format::bf16, code));
  }
  return values;
}

/// Whether every block scale that can occur has a code among the stored ones.
bool scales_fit(const QuantizePlan& plan, Format stored, std::span<const float> amaxima) {
  if (plan.form.scales == stored) return true;
  if (!plan.scale || plan.form.global != GlobalScaleOf::none) return false;
  const ScaleOfAmax scale = plan.scale({});
  return std::all_of(amaxima.begin(), amaxima.end(), [&](float amax) {
    return stored_scale(plan.form.scales, scale(amax).code, stored).has_value();
  });
}

bool takes_bf16(const Quantizer& quantizer) {
  return std::find(quantizer.inputs.begin(), quantizer.inputs.end(), Format::bf16) !=
         quantizer.inputs.end();
}

bool fits(const QuantizePlan& plan, const QuantizedForm& stored, std::span<const float> amaxima) {
  return same_form(plan.form, stored) && scales_fit(plan, stored.scales, amaxima);
}

/// Every choice of options, the defaults first, then by how many are changed. Integers keep their
/// default.
std::vector<std::vector<std::string>> all_choices(const Quantizer& quantizer) {
  std::vector<std::vector<std::string>> choices(1);
  for (const OptionInfo& option : quantizer.options) {
    if (!option.is_choice()) continue;
    const std::size_t before = choices.size();
    for (std::size_t value = 1; value < option.values.size(); ++value) {
      for (std::size_t i = 0; i < before; ++i) {
        choices.push_back(choices[i]);
        choices.back().push_back(fmt::format("{}={}", option.name, option.values[value]));
      }
    }
  }
  std::stable_sort(choices.begin(), choices.end(),
                   [](const auto& left, const auto& right) { return left.size() < right.size(); });
  return choices;
}

WeightQuantizer with_options(const Quantizer& quantizer, std::span<const std::string> texts) {
  WeightQuantizer chosen;
  chosen.quantizer = &quantizer;
  chosen.options = parse_options(quantizer.name, quantizer.options, texts);
  chosen.plan = quantizer.plan(chosen.options, Format::bf16);
  return chosen;
}

/// Each with as few options as it takes: "these fit: modelopt_mxfp4, deepgemm_fp4_token
/// --quantizer-option scale=ue8m0"
std::string those_that_fit(const WeightTarget& target) {
  std::vector<std::string> fitting;
  const Quantizer* last = nullptr;
  for (const WeightQuantizer& quantizer : fitting_quantizers(target)) {
    if (quantizer.quantizer == last) continue;
    last = quantizer.quantizer;
    std::string text(quantizer.quantizer->name);
    for (const std::string& option : changed_options(quantizer)) {
      text += " --quantizer-option " + option;
    }
    fitting.push_back(std::move(text));
  }
  return fmt::format("these fit: {}", fmt::join(fitting, ", "));
}

}  // namespace

std::optional<std::uint32_t> stored_scale(Format from, std::uint32_t scale, Format to) {
  if (from == to) return scale;
  const float value = decode(from, scale);
  if (!std::isfinite(value)) return std::nullopt;
  const std::uint32_t code =
      to == Format::e8m0 ? encode_e8m0(value, E8M0Rounding::toward_zero, EncodePolicy::cuda_nosat)
                         : encode(to, value, EncodePolicy::cuda_nosat);
  if (std::bit_cast<std::uint32_t>(decode(to, code)) != std::bit_cast<std::uint32_t>(value)) {
    return std::nullopt;
  }
  return code;
}

std::vector<WeightQuantizer> fitting_quantizers(const WeightTarget& target) {
  const std::vector<float> amaxima = magnitudes(target);
  std::vector<WeightQuantizer> fitting;
  for (const Quantizer* quantizer : all_quantizers()) {
    if (!quantizer->weights || !takes_bf16(*quantizer)) continue;
    for (const std::vector<std::string>& choice : all_choices(*quantizer)) {
      WeightQuantizer chosen = with_options(*quantizer, choice);
      if (fits(chosen.plan, target.stored, amaxima)) fitting.push_back(std::move(chosen));
    }
  }
  return fitting;
}

WeightQuantizer choose_quantizer(const WeightTarget& target, std::string_view name,
                                 std::span<const std::string> options) {
  const Quantizer& quantizer = find_quantizer(name);
  WeightQuantizer chosen = with_options(quantizer, options);
  const std::string stores = fmt::format("{} stores {}", target.model, describe(target.stored));
  if (!quantizer.weights || !takes_bf16(quantizer)) {
    fail("--quantizer", "{} makes no weights of bf16 numbers; {}; {}", name, stores,
         those_that_fit(target));
  }
  if (!same_form(chosen.plan.form, target.stored)) {
    fail("--quantizer", "{}; {} makes {}; {}", stores, full_name(chosen),
         describe(chosen.plan.form), those_that_fit(target));
  }
  if (!scales_fit(chosen.plan, target.stored.scales, magnitudes(target))) {
    fail("--quantizer", "{}; {} makes {} scales that {} does not hold exactly; {}", stores,
         full_name(chosen), moeref::name(chosen.plan.form.scales),
         moeref::name(target.stored.scales), those_that_fit(target));
  }
  return chosen;
}

std::string full_name(const WeightQuantizer& quantizer) {
  std::string text(quantizer.quantizer->name);
  for (const auto& [key, value] : quantizer.options.values()) {
    text += fmt::format(" {}={}", key, value);
  }
  return text;
}

std::vector<std::string> changed_options(const WeightQuantizer& quantizer) {
  std::vector<std::string> changed;
  for (const OptionInfo& option : quantizer.quantizer->options) {
    const std::string& value = quantizer.options[option.name];
    if (value != option.default_value())
      changed.push_back(fmt::format("{}={}", option.name, value));
  }
  return changed;
}

}  // namespace moeref
