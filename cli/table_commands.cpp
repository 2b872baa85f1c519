#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "cli/commands.hpp"
#include "cli/layout_commands.hpp"
#include "cli/quantizer_list.hpp"
#include "io/families/family.hpp"
#include "io/quantization_config.hpp"
#include "io/synth/geometry.hpp"
#include "quant/formats.hpp"

namespace moeref::cli {
namespace {

struct WeightFormat {
  std::string_view name;
  std::string_view description;
};

constexpr WeightFormat kWeightFormats[] = {
    {weight_formats::kMxfp4, "E2M1 codes, E8M0 scale per 1 x 32 (GPT-OSS, DeepSeek-V4)"},
    {weight_formats::kNvfp4, "E2M1, E4M3 scale per 1 x 16, f32 global scale multiplied (ModelOpt)"},
    {weight_formats::kNvfp4Ct, "the same, global scale divided (compressed-tensors)"},
    {weight_formats::kFp8Tensor, "E4M3, one f32 scale (ModelOpt FP8)"},
    {weight_formats::kFp8Channel, "E4M3, a scale per row (compressed-tensors)"},
    {weight_formats::kFp8Block, "E4M3, a scale per 128 x 128 (DeepSeek-V3, Qwen3)"},
    {weight_formats::kMxfp8, "E4M3, E8M0 scale per 1 x 32"},
    {weight_formats::kBf16, "plain"},
    {weight_formats::kF16, "plain"},
    {weight_formats::kF32, "plain"},
};

/// The formats that tensors may have; f64 is for results only.
std::vector<FormatInfo> stored_formats() {
  std::vector<FormatInfo> formats;
  for (const FormatInfo& format : all_formats()) {
    if (format.format != Format::f64) formats.push_back(format);
  }
  return formats;
}

void print_formats(const GlobalOptions& global) {
  if (global.json) {
    nlohmann::json report{{"formats", nlohmann::json::array()},
                          {"weight_formats", nlohmann::json::array()}};
    for (const FormatInfo& format : stored_formats()) {
      report["formats"].push_back({{"name", format.name},
                                   {"bits", format.bits},
                                   {"max", format.max_finite},
                                   {"min_normal", format.min_normal},
                                   {"min_subnormal", format.min_subnormal},
                                   {"description", format.description}});
    }
    for (const WeightFormat& format : kWeightFormats) {
      report["weight_formats"].push_back(
          {{"name", format.name}, {"description", format.description}});
    }
    report["quantizers"] = quantizers_json();
    print_json(report);
    return;
  }
  constexpr std::size_t kIndent = 57;
  fmt::print("Number formats\n{:10} {:>4} {:>12} {:>12} {:>13}  {}\n", "name", "bits", "max",
             "min normal", "min subnormal", "what");
  for (const FormatInfo& format : stored_formats()) {
    fmt::print("{:10} {:4} {:12.6g} {:12.4g} {:13.4g}  {}\n", format.name, format.bits,
               format.max_finite, format.min_normal, format.min_subnormal,
               wrapped(std::string(format.description), kIndent));
  }
  fmt::print("\nWeight formats of checkpoints\n");
  for (const WeightFormat& format : kWeightFormats) {
    fmt::print("{:12} {}\n", format.name, format.description);
  }
  fmt::print("\n");
  list_quantizers(global);
}

void print_models(const GlobalOptions& global) {
  if (global.json) {
    nlohmann::json report{{"model_types", nlohmann::json::array()},
                          {"synth", nlohmann::json::array()}};
    for (const Family* family : all_families()) report["model_types"].push_back(family->model_type);
    for (const SynthModel& model : synth_models()) {
      report["synth"].push_back({{"name", model.name},
                                 {"hidden", model.full.hidden},
                                 {"intermediate", model.full.intermediate},
                                 {"experts", model.full.experts},
                                 {"top_k", model.full.top_k},
                                 {"description", model.description}});
    }
    print_json(report);
    return;
  }
  fmt::print("Model types that checkpoints may have (config.json: model_type)\n ");
  for (const Family* family : all_families()) fmt::print(" {}", family->model_type);
  fmt::print("\n\nModels that synth writes\n{:28} {:>6} {:>6} {:>7} {:>5}  {}\n", "name", "hidden",
             "interm", "experts", "top-k", "what");
  for (const SynthModel& model : synth_models()) {
    fmt::print("{:28} {:6} {:6} {:7} {:5}  {}\n", model.name, model.full.hidden,
               model.full.intermediate, model.full.experts, model.full.top_k, model.description);
  }
}

}  // namespace

void add_formats_command(CLI::App& app, const GlobalOptions& global) {
  CLI::App* command =
      app.add_subcommand("formats", "list number formats, weight formats and quantizers");
  command->callback([&global] { print_formats(global); });
}

void add_models_command(CLI::App& app, const GlobalOptions& global) {
  CLI::App* command =
      app.add_subcommand("models", "list the model types that can be read and synthesised");
  command->callback([&global] { print_models(global); });
}

}  // namespace moeref::cli
