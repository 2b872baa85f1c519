// A backend refuses no size but by a rule of its table, and all that break one: what `layout list`
// prints, for the default options and every other value.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "layout/prepare.hpp"
#include "layout_zoo.hpp"
#include "tests/support/error_of.hpp"

namespace moeref::testing {
namespace {

class AlignmentRules : public ::testing::TestWithParam<const Backend*> {};

constexpr std::array<std::int64_t, 8> kHidden{16, 48, 64, 96, 128, 160, 192, 256};
constexpr std::array<std::int64_t, 11> kIntermediate{8, 16, 33, 48, 61, 64, 80, 96, 128, 160, 192};
/// A multiple of all that backends need.
constexpr std::int64_t kAligned = 512;

/// What a backend says to a layer with SiLU, with a limit, with biases: some take one of them only.
struct Answer {
  bool taken = false;
  std::string refusal;  ///< for its size if it is, else any

  bool is_of_size() const { return refusal.find("it must be a multiple of") != std::string::npos; }
};

Answer answer(const Backend& backend, const Options& options, SampleShape shape) {
  Answer answer;
  for (const auto& [bias, limit] :
       {std::pair{false, kNoLimit}, std::pair{false, 10.0f}, std::pair{true, kNoLimit}}) {
    shape.bias = bias;
    shape.limit = limit;
    const std::string said =
        error_of([&] { plan_layer(backend, options, layer_of(shape), Shard{}); });
    answer.taken = answer.taken || said == "no error";
    if (!answer.is_of_size()) answer.refusal = said;
  }
  return answer;
}

/// The first rule that the loaded sizes break; empty = none.
std::string broken_rule(const Backend& backend, const Options& options, const SampleShape& sample) {
  LayerShape shape;
  shape.weight_format = sample.weight_format;
  shape.experts = sample.experts;
  shape.hidden = sample.hidden;
  shape.intermediate = sample.intermediate;
  shape.gated = sample.gated;
  const Loader loader = backend.loader != nullptr ? backend.loader(shape, options) : Loader{};
  const std::int64_t rows = loaded_range(loader, shape.intermediate, 0, 1).stride;
  for (const AlignmentRule& rule : rules_for(backend, options)) {
    if (!applies(rule, shape)) continue;
    const bool breaks = (rule.size == "hidden" && shape.hidden % rule.multiple != 0) ||
                        (rule.size == "intermediate" && rows % rule.multiple != 0) ||
                        (rule.size == "experts" && shape.experts % rule.multiple != 0);
    if (breaks) return fmt::format("{} % {}", rule.size, rule.multiple);
  }
  return {};
}

/// Compares answers and rules on every size. Default options pad to what their kernels want, so
/// that rules about padded sizes refuse nothing.
void compare(const Backend& backend, const std::vector<std::string>& texts) {
  const Options options = parse_options(backend, texts);
  for (const std::string_view format : backend.formats) {
    for (const bool gated : {true, false}) {
      SampleShape shape{.hidden = kAligned,
                        .intermediate = kAligned,
                        .gated = gated,
                        .weight_format = std::string(format)};
      const Answer aligned = answer(backend, options, shape);
      EXPECT_FALSE(!aligned.taken && aligned.is_of_size()) << aligned.refusal;
      if (!aligned.taken) continue;  // it takes no such layer of any size
      for (const std::int64_t hidden : kHidden) {
        for (const std::int64_t intermediate : kIntermediate) {
          const std::int64_t block = block_of(format);
          if (hidden % block != 0 || intermediate % block != 0) continue;
          shape.hidden = hidden;
          shape.intermediate = intermediate;
          const std::string broken = broken_rule(backend, options, shape);
          const Answer said = answer(backend, options, shape);
          const auto where = [&] {
            return fmt::format("{} [{}] {}: {}", backend.name, fmt::join(texts, " "),
                               describe({shape, Shard{}}), said.refusal);
          };
          if (!broken.empty()) {
            EXPECT_FALSE(said.taken) << where() << " breaks " << broken;
          } else if (texts.empty()) {
            EXPECT_TRUE(said.taken) << where();
          }
          EXPECT_TRUE(said.taken || said.is_of_size()) << where();
        }
      }
    }
  }
}

TEST_P(AlignmentRules, AreTheSizesThatTheDefaultsRefuse) { compare(*GetParam(), {}); }

TEST_P(AlignmentRules, AreTheSizesThatEveryOptionRefuses) {
  for (const OptionValue& value : other_values(*GetParam())) compare(*GetParam(), {value.text});
}

TEST(AlignmentRulesOf, TwoOptionsSayMoreThanOne) {
  const Backend& backend = find_backend("marlin_mxfp4");
  for (const char* other : {"activations=16bit", "activations=fp8", "scales=v1"}) {
    compare(backend, {"pad=none", other});
  }
  for (const char* name : {"flashinfer_trtllm_nvfp4", "flashinfer_trtllm_mxfp8",
                           "flashinfer_trtllm_fp8", "flashinfer_trtllm_bf16"}) {
    for (const char* other : {"align=2", "align=16", "align=64", "pad=whole_upstream"}) {
      compare(find_backend(name), {"loader=unpadded", other});
    }
  }
  for (const char* other : {"pad=per_half", "pad=framework"}) {
    compare(find_backend("marlin_nvfp4"), {"mode=v1", other});
  }
}

INSTANTIATE_TEST_SUITE_P(All, AlignmentRules,
                         ::testing::ValuesIn(all_backends().begin(), all_backends().end()),
                         [](const auto& tested) { return std::string(tested.param->name); });

}  // namespace
}  // namespace moeref::testing
