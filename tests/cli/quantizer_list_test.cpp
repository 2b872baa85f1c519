// What moeref quantize --list, --explain, moeref formats and moeref layout list tell of quantizers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "layout/backend.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/quantize.hpp"
#include "tests/cli/layout_command.hpp"
#include "tests/layout/usual_numerics.hpp"

namespace moeref {
namespace {

using namespace testing;

/// Text without its line breaks and columns.
std::string words_of(const std::string& text) {
  std::istringstream words(text);
  std::string all;
  for (std::string word; words >> word;) all += word + " ";
  return all;
}

std::string told(const std::string& command) {
  const Outcome outcome = moeref_with(command);
  EXPECT_EQ(outcome.code, 0) << command << "\n" << outcome.error;
  std::istringstream lines(outcome.out);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_LE(line.size(), 120u) << command << "\n" << line;
  }
  return words_of(outcome.out);
}

void expect_told(const std::string& text, std::string_view part) {
  EXPECT_NE(text.find(words_of(std::string(part))), std::string::npos) << part << "\n" << text;
}

TEST(QuantizeList, TellsEveryQuantizer) {
  const std::string list = told("quantize --list");
  const std::string formats = told("formats");
  const json report = json_of("quantize --list");
  const auto quantizers = all_quantizers();
  ASSERT_EQ(report.size(), quantizers.size());
  EXPECT_EQ(json_of("formats")["quantizers"], report);
  for (std::size_t i = 0; i < quantizers.size(); ++i) {
    const Quantizer& quantizer = *quantizers[i];
    const std::string uses = quantizer.weights ? quantizer.activations ? "w a" : "w" : "a";
    for (const std::string& text : {list, formats}) {
      expect_told(text, std::string(quantizer.name) + " " + uses);
      expect_told(text, quantizer.summary);
    }
    EXPECT_EQ(report[i]["name"], quantizer.name);
    EXPECT_EQ(report[i]["weights"], quantizer.weights);
    EXPECT_EQ(report[i]["activations"], quantizer.activations);
    EXPECT_EQ(report[i]["formula"], quantizer.formula);
    EXPECT_EQ(report[i]["specials"], quantizer.specials);
    EXPECT_EQ(report[i]["source"], quantizer.source);
    EXPECT_EQ(report[i], json_of("quantize --explain " + std::string(quantizer.name)));
  }
  const json& nvfp4 = *std::find_if(report.begin(), report.end(), [](const json& entry) {
    return entry["name"] == "flashinfer_nvfp4";
  });
  EXPECT_EQ(nvfp4["codes"], "e2m1");
  EXPECT_EQ(nvfp4["scales"], "ue4m3");
  EXPECT_EQ(nvfp4["block"], json({1, 16}));
  EXPECT_EQ(nvfp4["global_scale"], "given");
  EXPECT_EQ(nvfp4["inputs"], json({"bf16", "f16"}));
}

TEST(QuantizeExplain, TellsFormulaSpecialsSourceAndOptions) {
  for (const Quantizer* quantizer : all_quantizers()) {
    const std::string text = told("quantize --explain " + std::string(quantizer->name));
    expect_told(text, std::string(quantizer->name) + " (" + std::string(quantizer->family) + ")");
    expect_told(text, "what " + std::string(quantizer->summary));
    expect_told(text, "formula " + std::string(quantizer->formula));
    expect_told(text, "specials " + std::string(quantizer->specials));
    expect_told(text, "source " + std::string(quantizer->source));
    EXPECT_FALSE(quantizer->formula.empty() || quantizer->specials.empty() ||
                 quantizer->source.empty())
        << quantizer->name;
    std::string inputs;
    for (const Format input : quantizer->inputs) {
      inputs += (inputs.empty() ? "" : ", ") + std::string(name(input));
    }
    expect_told(text, "takes " + inputs + " makes");
    const json options = json_of("quantize --explain " + std::string(quantizer->name))["options"];
    ASSERT_EQ(options.size(), quantizer->options.size()) << quantizer->name;
    for (std::size_t i = 0; i < options.size(); ++i) {
      const OptionInfo& option = quantizer->options[i];
      std::string values(option.values.front());
      if (option.default_value() != option.values.front()) {
        values += ", default " + std::string(option.default_value());
        EXPECT_TRUE(options[i]["values"].is_string()) << options[i];
      } else {
        for (std::size_t v = 1; v < option.values.size(); ++v) {
          values += "|" + std::string(option.values[v]);
        }
        EXPECT_EQ(options[i]["values"], json(option.values));
      }
      expect_told(text, "option " + std::string(option.name) + "=" + values + ": " +
                            std::string(option.summary));
      EXPECT_EQ(options[i]["name"], option.name);
      EXPECT_EQ(options[i]["default"], option.default_value());
    }
  }
}

TEST(LayoutList, TellsTheQuantizersOfActivations) {
  std::size_t known = 0;
  for (const Backend* backend : all_backends()) {
    const std::string command = "layout list " + std::string(backend->name);
    const std::string text = told(command);
    const json uses = json_of(command)["activations"];
    ASSERT_TRUE(uses.is_array()) << command;
    EXPECT_NE(text.find("Activations "), std::string::npos) << command;
    try {
      const Numerics numerics = numerics_for(*backend, usual(*backend));
      EXPECT_EQ(uses.size(), std::size_t{numerics.input ? 1u : 0u} +
                                 (numerics.gemm1_output ? 1u : 0u) +
                                 (numerics.intermediate ? 1u : 0u))
          << command;
      if (uses.empty()) expect_told(text, "Activations 16 bits, as they are");
    } catch (const Error& refusal) {
      EXPECT_TRUE(uses.empty()) << command;
      expect_told(text, refusal.what());
    }
    for (const json& use : uses) {
      const Quantizer& quantizer = find_quantizer(use["quantizer"].get<std::string>());
      EXPECT_TRUE(quantizer.activations) << command << quantizer.name;
      const auto options = use["options"].get<std::vector<std::string>>();
      EXPECT_NO_THROW(parse_options(quantizer.name, quantizer.options, options)) << command;
      const auto stage = use["stage"].get<std::string>();
      std::string line = (stage == "gemm1" ? "output of GEMM1" : stage) + " ";
      line += quantizer.name;
      for (const std::string& option : options) line += " " + option;
      if (use.contains("scale")) {
        line += use.contains("inverts_scale") ? ", scale 1 / " : ", scale ";
        line += use["scale"].get<std::string>();
      }
      expect_told(text, line);
      ++known;
    }
  }
  EXPECT_GT(known, all_backends().size() / 2);
  expect_told(told("layout list " + kTrtllm),
              "Activations input flashinfer_nvfp4, scale w13_input_scale_quant");
}

}  // namespace
}  // namespace moeref
