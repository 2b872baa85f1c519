// Names, options and rules of backends.

#include "layout/backend.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "quant/error.hpp"
#include "quant/quantize.hpp"
#include "quant/tensor.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

/// Rows padded to the option's multiple.
Recipe padded(const LayerShape& shape, const Options& options) {
  const std::int64_t align = options.integer("align");
  Recipe recipe;
  recipe.kernel.intermediate = ceil_div(shape.stride, align) * align;
  return recipe;
}

Backend sample_backend() {
  return {.name = "sample",
          .family = "Sample",
          .summary = "for tests",
          .formats = {"mxfp4", "nvfp4"},
          .options = {{"mode", {"one", "two"}, "which"}, {"align", {"N", "16"}, "multiple"}},
          .rules = {{"hidden", 64, "", "reason A"},
                    {"intermediate", 32, "gated", "reason B"},
                    {"intermediate", 128, "not gated", "reason C"},
                    {"experts", 2, "", "reason D"},
                    {"hidden", 256, "gated and mode=two and mxfp4", "reason E"},
                    {"hidden", 512, "mode!=one", "reason F"},
                    {"padded intermediate", 16, "", "reason G"}},
          .recipe = padded};
}

LayerShape sample_shape() {
  return {.model = "model",
          .weight_format = "nvfp4",
          .experts = 4,
          .total_experts = 4,
          .hidden = 128,
          .intermediate = 32,
          .stride = 32,
          .full_intermediate = 32};
}

std::string option_message(const std::string& text) {
  const std::vector<std::string> texts{text};
  return error_of([&] { parse_options(sample_backend(), texts); });
}

std::string rule_message(const LayerShape& shape, const std::vector<std::string>& options = {}) {
  const Backend backend = sample_backend();
  return error_of([&] { make_recipe(backend, shape, parse_options(backend, options)); });
}

TEST(Backends, HaveEachNameOnceAndSayWhatTheyAre) {
  std::set<std::string_view> names;
  for (const Backend* backend : all_backends()) {
    EXPECT_TRUE(names.insert(backend->name).second) << backend->name;
    EXPECT_EQ(&find_backend(backend->name), backend);
    EXPECT_FALSE(backend->summary.empty()) << backend->name;
    EXPECT_FALSE(backend->family.empty()) << backend->name;
    EXPECT_FALSE(backend->formats.empty()) << backend->name;
    EXPECT_NE(backend->recipe, nullptr) << backend->name;
    for (const AlignmentRule& rule : backend->rules) {
      EXPECT_FALSE(rule.reason.empty()) << backend->name;
      EXPECT_GE(rule.multiple, 1) << backend->name;
    }
    EXPECT_EQ(error_of([&] { rules_for(*backend, parse_options(*backend, {})); }), "no error");
    for (const OptionInfo& option : backend->options) {
      EXPECT_GE(option.values.size(), 2u) << backend->name << " " << option.name;
      EXPECT_FALSE(option.summary.empty()) << backend->name << " " << option.name;
      for (const std::string_view value : option.values) {
        const bool is_defect = value.find("upstream") != std::string_view::npos;
        EXPECT_EQ(value.ends_with("_upstream"), is_defect) << backend->name << " " << value;
      }
      EXPECT_FALSE(option.values.front().ends_with("_upstream")) << backend->name;
    }
  }
}

TEST(FindBackend, NamesTheNearest) {
  EXPECT_THAT(error_of([] { find_backend("flashinfer_trtlm_nvfp4"); }),
              AllOf(HasSubstr("flashinfer_trtlm_nvfp4: is no backend"),
                    HasSubstr("is it flashinfer_trtllm_nvfp4")));
}

TEST(ParseOptions, GivesDefaultsAndOverrides) {
  const Backend backend = sample_backend();
  const Options defaults = parse_options(backend, {});
  EXPECT_TRUE(defaults.is("mode", "one"));
  EXPECT_EQ(defaults.integer("align"), 16);
  const std::vector<std::string> texts{"align=64", "mode=two"};
  const Options chosen = parse_options(backend, texts);
  EXPECT_TRUE(chosen.is("mode", "two"));
  EXPECT_EQ(chosen.integer("align"), 64);
}

TEST(ParseOptions, RejectsUnknownKeysAndValues) {
  EXPECT_THAT(option_message("colour=red"),
              HasSubstr("sample: 'colour=red' is no option; write key=value with one of: mode, "
                        "align"));
  EXPECT_THAT(option_message("mode"), HasSubstr("'mode' is no option"));
  EXPECT_THAT(option_message("mode=three"),
              HasSubstr("option mode=three does not exist; choose one, two"));
}

TEST(ParseOptions, RejectsAnOptionGivenTwice) {
  const std::vector<std::string> twice{"mode=one", "mode=two"};
  EXPECT_THAT(error_of([&] { parse_options(sample_backend(), twice); }),
              HasSubstr("option mode is given twice"));
}

TEST(ParseOptions, RejectsTextAndSizesThatCannotBe) {
  for (const char* text : {"align=x", "align=", "align=-1", "align=16k", "align=99999999999999"}) {
    EXPECT_THAT(option_message(text), HasSubstr("needs an integer from 0 to")) << text;
  }
}

TEST(MakeRecipe, RejectsAnotherWeightFormat) {
  LayerShape shape = sample_shape();
  shape.weight_format = "bf16";
  EXPECT_EQ(rule_message(shape), "sample: takes mxfp4, nvfp4 weights, model has bf16");
}

TEST(MakeRecipe, NamesTheBrokenRule) {
  EXPECT_EQ(rule_message(sample_shape()), "no error");
  LayerShape shape = sample_shape();
  shape.hidden = 96;
  EXPECT_EQ(rule_message(shape), "sample: hidden is 96, it must be a multiple of 64: reason A");
  shape = sample_shape();
  shape.experts = 3;
  EXPECT_EQ(rule_message(shape), "sample: experts is 3, it must be a multiple of 2: reason D");
}

TEST(MakeRecipe, ChecksTheRowsThatTheLoaderGives) {
  LayerShape shape = sample_shape();
  shape.intermediate = 20;  // a short rank of stride 32
  EXPECT_EQ(rule_message(shape), "no error");
  shape.stride = 40;
  EXPECT_EQ(rule_message(shape),
            "sample: intermediate is 40, it must be a multiple of 32 when gated: reason B");
  shape.gated = false;
  EXPECT_EQ(rule_message(shape),
            "sample: intermediate is 40, it must be a multiple of 128 when not gated: reason C");
}

TEST(MakeRecipe, ChecksRulesThatOptionsChoose) {
  LayerShape shape = sample_shape();
  shape.weight_format = "mxfp4";
  EXPECT_EQ(rule_message(shape), "no error");
  EXPECT_EQ(rule_message(shape, {"mode=two"}),
            "sample: hidden is 128, it must be a multiple of 256 when gated and mxfp4: reason E");
  shape.weight_format = "nvfp4";
  EXPECT_EQ(rule_message(shape, {"mode=two"}),
            "sample: hidden is 128, it must be a multiple of 512: reason F");
  shape.hidden = 512;
  EXPECT_EQ(rule_message(shape, {"mode=two"}), "no error");
}

TEST(MakeRecipe, ChecksSizesThatTheRecipePads) {
  EXPECT_EQ(rule_message(sample_shape(), {"align=24"}), "no error");  // 32 to 48
  EXPECT_EQ(rule_message(sample_shape(), {"align=20"}),
            "sample: padded intermediate is 40, it must be a multiple of 16: reason G");
}

TEST(RulesFor, LeavesWhatTheOptionsDoNotDecide) {
  const Backend backend = sample_backend();
  const auto texts = [&backend](const std::vector<std::string>& options) {
    std::vector<std::string> rules;
    for (const AlignmentRule& rule : rules_for(backend, parse_options(backend, options))) {
      rules.push_back(fmt::format("{} % {} if {}", rule.size, rule.multiple, rule.when));
    }
    return rules;
  };
  const std::vector<std::string> always{"hidden % 64 if ", "intermediate % 32 if gated",
                                        "intermediate % 128 if not gated", "experts % 2 if "};
  const std::string padded = "padded intermediate % 16 if ";
  std::vector<std::string> expected = always;
  expected.push_back(padded);
  EXPECT_EQ(texts({}), expected);
  expected = always;
  expected.insert(expected.end(), {"hidden % 256 if gated and mxfp4", "hidden % 512 if ", padded});
  EXPECT_EQ(texts({"mode=two"}), expected);
}

TEST(RulesFor, RejectsWordsAndSizesThatTheBackendDoesNotHave) {
  const auto message = [](const AlignmentRule& rule) {
    Backend backend = sample_backend();
    backend.rules = {rule};
    return error_of([&] { rules_for(backend, parse_options(backend, {})); });
  };
  for (const char* when : {"gatd", "mode=three", "colour=red", "bf16", "=one"}) {
    EXPECT_THAT(message({"hidden", 2, when, "reason"}), HasSubstr("sample: has a rule when"))
        << when;
  }
  EXPECT_THAT(message({"rows", 2, "", "reason"}),
              HasSubstr("sample: has a rule about 'rows'; sizes are hidden, intermediate"));
}

/// A request that every backend takes.
NumericsRequest usual_request(const Backend& backend) {
  NumericsRequest request;
  request.shape.hidden = request.shape.intermediate = request.shape.stride = 1024;
  request.shape.experts = request.shape.total_experts = 8;
  request.options = parse_options(backend, {});
  request.kernel = parse_kernel_options(backend, {});
  request.tokens = 64;
  request.top_k = 2;
  request.static_scales = true;
  return request;
}

TEST(NumericsFor, EveryBackendNamesQuantizersThatTakeWhatItGives) {
  for (const Backend* backend : all_backends()) {
    const Numerics numerics = numerics_for(*backend, usual_request(*backend));
    for (const ActivationQuantizer* use :
         {&numerics.input, &numerics.gemm1_output, &numerics.intermediate}) {
      if (!*use) continue;
      const std::string where = fmt::format("{}: {}", backend->name, use->quantizer);
      const Quantizer& quantizer = find_quantizer(use->quantizer);
      EXPECT_TRUE(quantizer.activations) << where;
      const Options options = parse_options(quantizer.name, quantizer.options, use->options);
      const QuantizedForm form = quantizer.plan(options, quantizer.inputs.front()).form;
      EXPECT_EQ(form.global == GlobalScaleOf::given, !use->scale.empty()) << where;
    }
  }
}

TEST(NumericsFor, ReplayIsThereForMeasuredBackendsAndRefusedWithTheReasonForTheOthers) {
  for (const Backend* backend : all_backends()) {
    NumericsRequest request = usual_request(*backend);
    request.level = NumericsLevel::replay;
    EXPECT_FALSE(backend->replay.note.empty()) << backend->name;
    if (backend->replay.evidence != ReplayEvidence::none) {
      EXPECT_NO_THROW(numerics_for(*backend, request)) << backend->name;
      continue;
    }
    EXPECT_EQ(error_of([&] { numerics_for(*backend, request); }),
              fmt::format("{}: cannot be replayed: {}; take --numerics backend", backend->name,
                          backend->replay.note));
  }
}

}  // namespace
}  // namespace moeref
