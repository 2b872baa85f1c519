#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "layout/step.hpp"
#include "quant/error.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::HasSubstr;

std::ptrdiff_t parameter_count(const NamedStep& step) {
  const std::string_view names = step.parameters;
  return names.empty() ? 0 : 1 + std::count(names.begin(), names.end(), ',');
}

/// The step with the first parameters of usual sizes that it takes, or an Error.
Step sample(const NamedStep& step) {
  const auto count = static_cast<std::size_t>(parameter_count(step));
  constexpr std::int64_t kUsual[] = {128, 64, 32, 16, 8, 4, 3, 2};
  std::vector<std::int64_t> parameters(count, kUsual[0]);
  for (std::size_t turn = 0; turn < std::size(kUsual); ++turn) {
    for (std::size_t first = 0; first < std::size(kUsual); ++first) {
      for (std::size_t i = 0; i < count; ++i) parameters[i] = kUsual[i == 0 ? first : turn];
      try {
        return step.make(parameters);
      } catch (const Error&) {
        continue;
      }
    }
  }
  return step.make(parameters);
}

TEST(AllSteps, HaveNamesOfTheirOwnAndAShortSummary) {
  std::set<std::string_view> names;
  for (const NamedStep& step : all_steps()) {
    EXPECT_TRUE(names.insert(step.name).second) << step.name << " is there twice";
    EXPECT_FALSE(step.summary.empty()) << step.name;
    EXPECT_LE(step.summary.size(), 80u) << step.name;
    EXPECT_FALSE(step.source.empty()) << step.name;
    EXPECT_EQ(step.name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_"),
              std::string_view::npos)
        << step.name;
  }
}

TEST(AllSteps, MakeStepsOfTheirKind) {
  for (const NamedStep& step : all_steps()) {
    const Step made = sample(step);
    // An order may be listed as a packing, if that is what it is made for.
    const bool packs = std::holds_alternative<Tile>(made) && step.kind == StepKind::pack;
    EXPECT_TRUE(packs || kind_of(made) == step.kind) << step.name;
  }
}

TEST(AllSteps, AreReadBackAsTheyAreDescribed) {
  for (const NamedStep& step : all_steps()) {
    const std::string text = describe(sample(step));
    EXPECT_THAT(text, ::testing::StartsWith(std::string(step.name)));
    const std::vector<Step> read = parse_steps("--steps", text);
    ASSERT_EQ(read.size(), 1u) << text;
    EXPECT_EQ(describe(read.front()), text);
  }
}

TEST(Describe, TellsFillAndTargetOfPads) {
  EXPECT_EQ(describe(PadHalves{.multiple = 64}), "pad_halves(64)");
  EXPECT_EQ(describe(PadHalves{.to = 96}), "pad_halves(to 96)");
  EXPECT_EQ(describe(PadRows{.multiple = 8, .fill = std::byte{0x7F}}), "pad_rows(8) of 0x7F");
  EXPECT_EQ(describe(PadCols{.to = 4, .fill = std::byte{1}}), "pad_cols(to 4) of 0x01");
}

TEST(Describe, GivesTheNamesOfOrdersBitsAndRecodings) {
  EXPECT_EQ(describe(SwapPairs{}), "swap_pairs");
  EXPECT_EQ(describe(InterleaveHalves{8}), "interleave_halves(8)");
  EXPECT_EQ(describe(RepeatRows{.times = 3}), "repeat_rows(3)");
  EXPECT_EQ(describe(PermuteRuns{"marlin_bias", {0}}), "marlin_bias");
  Recode recode;
  recode.name = "to_e8m0";
  EXPECT_EQ(describe(recode), "to_e8m0");
  std::array<int, 32> source;
  std::iota(source.begin(), source.end(), 0);
  EXPECT_EQ(describe(PermuteBits{std::make_shared<BitPermutation>("same", source)}), "same");
}

TEST(StepKind, IsNamed) {
  EXPECT_EQ(name(StepKind::move), "move");
  EXPECT_EQ(name(StepKind::pad), "pad");
  EXPECT_EQ(name(StepKind::recode), "recode");
  EXPECT_EQ(name(StepKind::pack), "pack");
  EXPECT_EQ(kind_of(Recode{}), StepKind::recode);
  EXPECT_EQ(kind_of(PermuteBits{}), StepKind::pack);
  EXPECT_EQ(kind_of(PadCols{}), StepKind::pad);
  EXPECT_EQ(kind_of(RepeatRows{}), StepKind::move);
}

TEST(ParseSteps, TakesBlanksAndCommasBetweenSteps) {
  for (const char* text :
       {"swap_halves pad_rows(8) swizzle_128x4", "swap_halves,pad_rows(8),swizzle_128x4",
        "  swap_halves ,\n\tpad_rows( 8 ) , swizzle_128x4  "}) {
    const std::vector<Step> steps = parse_steps("--steps", text);
    ASSERT_EQ(steps.size(), 3u) << text;
    EXPECT_EQ(describe(steps[0]), "swap_halves");
    EXPECT_EQ(describe(steps[1]), "pad_rows(8)");
    EXPECT_EQ(describe(steps[2]), "swizzle_128x4");
  }
  EXPECT_TRUE(parse_steps("--steps", "").empty());
  EXPECT_TRUE(parse_steps("--steps", "  ").empty());
}

TEST(ParseSteps, RejectsWhatIsNoStep) {
  const auto message = [](const std::string& text) -> std::string {
    return error_of([&] { parse_steps("--steps", text); });
  };
  EXPECT_THAT(message("swap_halfs"), HasSubstr("--steps: 'swap_halfs' is no step"));
  EXPECT_THAT(message("swap_halves swizzle"), HasSubstr("'swizzle' is no step"));
  EXPECT_EQ(message("shuffle_rows"),
            "--steps: 'shuffle_rows' has 0 parameters; write shuffle_rows(epilogue_tile)");
  EXPECT_EQ(message("shuffle_rows(1,2)"),
            "--steps: 'shuffle_rows(1,2)' has 2 parameters; write shuffle_rows(epilogue_tile)");
  EXPECT_EQ(message("swap_halves(2)"),
            "--steps: 'swap_halves(2)' has 1 parameters; write swap_halves");
  EXPECT_EQ(message("pad_rows(8"), "--steps: 'pad_rows(8' has no closing parenthesis");
  for (const char* number : {"0", "-1", "1.5", "x", "", "99999999999999999999", "2000000"}) {
    const std::string call = std::string("pad_rows(") + number + ")";
    EXPECT_THAT(message(call), HasSubstr("--steps: '" + call + "'"));
  }
  EXPECT_EQ(
      message("pad_rows(x)"),
      "--steps: 'pad_rows(x)': parameters are integers from 1 to 1048576, as in shuffle_rows(128)");
}

}  // namespace
}  // namespace moeref
