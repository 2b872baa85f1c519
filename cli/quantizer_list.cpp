#include "cli/quantizer_list.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "cli/layout_commands.hpp"
#include "quant/formats.hpp"
#include "quant/quantize.hpp"

namespace moeref::cli {
namespace {

using nlohmann::json;

/// The form under the default options, for the first input format.
QuantizedForm default_form(const Quantizer& quantizer) {
  const Options options = parse_options(quantizer.name, quantizer.options, {});
  return quantizer.plan(options, quantizer.inputs.front()).form;
}

std::string block_text(const QuantizedForm& form) {
  if (form.block_rows == 0 && form.block_cols == 0) return "the matrix";
  const auto side = [](std::int64_t size, const char* all) {
    return size == 0 ? std::string(all) : std::to_string(size);
  };
  return side(form.block_rows, "rows") + " x " + side(form.block_cols, "cols");
}

std::string_view global_text(GlobalScaleOf global) {
  switch (global) {
    case GlobalScaleOf::none:
      break;
    case GlobalScaleOf::given:
      return "given";
    case GlobalScaleOf::tensor:
      return "of the tensor";
    case GlobalScaleOf::row:
      return "of each row";
  }
  return "";
}

json json_of(const Quantizer& quantizer) {
  const QuantizedForm form = default_form(quantizer);
  json entry{{"name", quantizer.name},
             {"family", quantizer.family},
             {"summary", quantizer.summary},
             {"weights", quantizer.weights},
             {"activations", quantizer.activations},
             {"codes", name(form.codes)},
             {"scales", name(form.scales)},
             {"block", {form.block_rows, form.block_cols}},
             {"global_scale", global_text(form.global)},
             {"formula", quantizer.formula},
             {"specials", quantizer.specials},
             {"source", quantizer.source},
             {"inputs", json::array()},
             {"options", json::array()}};
  for (const Format format : quantizer.inputs) entry["inputs"].push_back(name(format));
  for (const OptionInfo& option : quantizer.options) {
    json values = option.values;
    if (!option.is_choice()) values = option.is_integer() ? "integer" : "number";
    entry["options"].push_back({{"name", option.name},
                                {"values", std::move(values)},
                                {"default", option.default_value()},
                                {"summary", option.summary}});
  }
  return entry;
}

}  // namespace

json quantizers_json() {
  json report = json::array();
  for (const Quantizer* quantizer : all_quantizers()) report.push_back(json_of(*quantizer));
  return report;
}

void list_quantizers(const GlobalOptions& global) {
  if (global.json) return print_json(quantizers_json());
  fmt::print("{:27} {:3} {:6} {:7} {:12} {:13} {}\n", "Quantizers", "for", "codes", "scales",
             "block", "global scale", "what");
  constexpr std::size_t kIndent = 74;
  std::string_view family;
  for (const Quantizer* quantizer : all_quantizers()) {
    if (quantizer->family != family) fmt::print("{}\n", family = quantizer->family);
    const QuantizedForm form = default_form(*quantizer);
    fmt::print("  {:25} {:3} {:6} {:7} {:12} {:13} {}\n", quantizer->name,
               quantizer->weights ? (quantizer->activations ? "w a" : "w") : "  a",
               name(form.codes), name(form.scales), block_text(form), global_text(form.global),
               wrapped(std::string(quantizer->summary), kIndent));
  }
  fmt::print(
      "w: weights, a: activations. moeref quantize --explain NAME shows formula and options.\n");
}

void explain_quantizer(const std::string& text, const GlobalOptions& global) {
  const Quantizer& quantizer = find_quantizer(text);
  if (global.json) return print_json(json_of(quantizer));
  const QuantizedForm form = default_form(quantizer);
  std::vector<std::string_view> inputs;
  for (const Format format : quantizer.inputs) inputs.push_back(name(format));
  const auto line = [](const char* label, const std::string& content) {
    fmt::print("  {:9} {}\n", label, wrapped(content, 12));
  };
  fmt::print("{} ({})\n", quantizer.name, quantizer.family);
  line("what", std::string(quantizer.summary));
  line("takes", fmt::format("{}", fmt::join(inputs, ", ")));
  line("makes",
       fmt::format("{} codes, {} scales of {}{}{}", name(form.codes), name(form.scales),
                   block_text(form), form.global == GlobalScaleOf::none ? "" : ", global scale ",
                   global_text(form.global)));
  line("formula", std::string(quantizer.formula));
  line("specials", std::string(quantizer.specials));
  line("source", std::string(quantizer.source));
  for (const OptionInfo& option : quantizer.options) {
    const std::string values =
        option.is_choice()
            ? fmt::format("{}", fmt::join(option.values, "|"))
            : fmt::format("{}, default {}", option.values.front(), option.default_value());
    line("option", fmt::format("{}={}: {}", option.name, values, option.summary));
  }
}

}  // namespace moeref::cli
