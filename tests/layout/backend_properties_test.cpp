#include "backend_properties.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/layout/layout_support.hpp"

namespace moeref::testing {
namespace {

class BackendProperties : public ::testing::TestWithParam<const Backend*> {};

/// Accepted cases without which a test would say nothing.
constexpr std::int64_t kFewest = 10;

using Choice = std::pair<std::string_view, std::string_view>;  ///< backend, "key=value"

/// Values that exist to say why they cannot be.
constexpr std::array<Choice, 2> kRefused{{
    {"marlin_mxfp4", "params=f16"},
    {"marlin_mxfp8", "params=f16"},
}};
/// Faults of frameworks that do not come from padding: aligned layers have them, too.
constexpr std::array<std::string_view, 3> kAlwaysWrong{
    "order=gate_up_upstream", "moe_padding=cuda_upstream", "reorder=off_upstream"};

template <typename Table, typename Value>
bool has(const Table& table, const Value& value) {
  return std::find(table.begin(), table.end(), value) != table.end();
}

std::string key_of(const std::string& text) { return text.substr(0, text.find('=')); }

std::vector<ZooCase> aligned_cases(const Backend& backend) {
  std::vector<ZooCase> cases = layout_zoo(backend.formats, ZooSize::usual);
  std::erase_if(cases, [](const ZooCase& animal) {
    return animal.shape.hidden % 256 != 0 || animal.shape.intermediate % 256 != 0 ||
           !animal.rank.is_whole() || !animal.shape.gated;
  });
  return cases;
}

TEST_P(BackendProperties, HoldWithTheDefaults) {
  const Backend& backend = *GetParam();
  const ZooResult result = walk_zoo(backend, {}, layout_zoo(backend.formats, ZooSize::usual), true);
  EXPECT_EQ(result.fault, "");
  EXPECT_EQ(result.breakage, "");
  EXPECT_GE(result.accepted, kFewest) << "rejected " << result.rejected;
}

TEST_P(BackendProperties, HoldWithEveryOption) {
  const Backend& backend = *GetParam();
  const std::vector<ZooCase> cases = layout_zoo(backend.formats, ZooSize::few);
  std::map<std::string, std::int64_t> accepted;  // by value; by key for integers
  for (const OptionValue& value : other_values(backend)) {
    if (value.is_defect) continue;
    const ZooResult result = walk_zoo(backend, {value.text}, cases, true);
    EXPECT_EQ(result.fault, "");
    EXPECT_EQ(result.breakage, "");
    accepted[value.is_integer ? key_of(value.text) : value.text] += result.accepted;
  }
  for (const auto& [text, count] : accepted) {
    if (has(kRefused, Choice{backend.name, text})) {
      EXPECT_EQ(count, 0) << text;
    } else {
      EXPECT_GE(count, 2) << text;
    }
  }
}

/// Choices that contain `defect`: alone, then with one and with two other options, because a
/// framework's own rounding may hide it.
std::vector<std::vector<std::string>> choices_with(const OptionValue& defect,
                                                   const std::vector<OptionValue>& values) {
  std::vector<std::vector<std::string>> choices{{defect.text}};
  for (std::size_t begin = 0, others = 0; others < 2; ++others) {
    const std::size_t end = choices.size();
    for (std::size_t i = begin; i < end; ++i) {
      for (const OptionValue& other : values) {
        const auto same_key = [&](const std::string& text) {
          return key_of(text) == key_of(other.text);
        };
        const std::vector<std::string>& base = choices[i];
        if (other.is_defect || std::any_of(base.begin(), base.end(), same_key)) continue;
        std::vector<std::string> longer = base;
        longer.push_back(other.text);
        choices.push_back(std::move(longer));
      }
    }
    begin = end;
  }
  return choices;
}

/// Gated layers of few rows, on which padding fails; or, for a defect of the activation, those of
/// all sizes, some of which reach the limit.
std::vector<ZooCase> cases_for_defects(const Backend& backend, bool of_activation) {
  constexpr std::array<std::int64_t, 4> kFewRows{96, 176, 61, 192};
  std::vector<ZooCase> cases;
  for (const std::string_view format : backend.formats) {
    for (const ZooCase& animal : layout_zoo({format}, ZooSize::usual)) {
      const bool few =
          std::find(kFewRows.begin(), kFewRows.end(), animal.shape.intermediate) != kFewRows.end();
      if (animal.shape.gated && (of_activation || (few && animal.rank.is_whole()))) {
        cases.push_back(animal);
      }
    }
  }
  std::stable_sort(cases.begin(), cases.end(), [](const ZooCase& left, const ZooCase& right) {
    return left.shape.intermediate < right.shape.intermediate;
  });
  return cases;
}

bool is_of_activation(const OptionValue& defect) { return key_of(defect.text) == "swiglu"; }

TEST_P(BackendProperties, AuditFindsEveryDefectOfAFramework) {
  const Backend& backend = *GetParam();
  const std::vector<OptionValue> values = other_values(backend);
  for (const OptionValue& defect : values) {
    if (!defect.is_defect) continue;
    const std::vector<ZooCase> cases = cases_for_defects(backend, is_of_activation(defect));
    std::string breakage;
    for (const std::vector<std::string>& choice : choices_with(defect, values)) {
      breakage = find_breakage(backend, choice, cases);
      if (!breakage.empty()) break;
    }
    EXPECT_NE(breakage, "") << backend.name << " " << defect.text;
    if (!breakage.empty()) RecordProperty(defect.text, breakage);
  }
}

TEST_P(BackendProperties, DefectsOfPaddingDoNoHarmWhereNothingIsPadded) {
  const Backend& backend = *GetParam();
  for (const OptionValue& defect : other_values(backend)) {
    if (!defect.is_defect || is_of_activation(defect)) continue;
    const ZooResult result = walk_zoo(backend, {defect.text}, aligned_cases(backend), false);
    EXPECT_EQ(result.fault, "");
    if (has(kAlwaysWrong, defect.text)) {
      EXPECT_EQ(result.survived, 0) << defect.text;
      EXPECT_GE(result.broke, 1) << defect.text;
    } else {
      EXPECT_EQ(result.breakage, "");
      EXPECT_GE(result.survived, 1) << defect.text;
    }
  }
}

/// What the judge says of three rows that are prepared by `made` when the recipe has `stated`.
std::string fault_of_copies(const std::vector<Step>& stated, const std::vector<Step>& made) {
  const Matrices matrices(1, 3, 2, 8);
  PreparedTensor tensor;
  tensor.from = &matrices.stack;
  tensor.plan = plan_of(matrices, made);
  const TensorRecipe recipe{"matrix", Slot::w13_scale, stated, 0};
  return fault_in_matrix(recipe, tensor, apply_plan(tensor.plan, matrices.stack));
}

TEST(BackendJudge, CountsTheCopiesOfEveryRow) {
  const Step twice = RepeatRows{.times = 2};
  const Step thrice = RepeatRows{.times = 3};
  const Step seven = RepeatRows{.times = 3, .rows = 7};
  const Step eight = RepeatRows{.times = 3, .rows = 8};
  EXPECT_EQ(fault_of_copies({thrice}, {thrice}), "");
  EXPECT_EQ(fault_of_copies({eight, SwapPairs{}}, {eight, SwapPairs{}}), "");
  EXPECT_EQ(fault_of_copies({thrice}, {twice}), "element [0, 0] appears 2 times, must 3");
  EXPECT_EQ(fault_of_copies({}, {twice}), "element [0, 0] appears 2 times, must 1");
  EXPECT_EQ(fault_of_copies({thrice}, {eight}), "element [2, 0] appears 2 times, must 3");
  EXPECT_EQ(fault_of_copies({seven}, {eight}), "element [2, 0] appears 2 times, must 1");
  const Step six = RepeatRows{.times = 3, .rows = 6};
  EXPECT_EQ(fault_of_copies({six}, {six}), "element [2, 0] appears 0 times, must 1");
  EXPECT_EQ(fault_of_copies({PadRows{.to = 4}, thrice}, {PadRows{.to = 4}, thrice}),
            "repeat_rows comes after another move");
}

INSTANTIATE_TEST_SUITE_P(All, BackendProperties,
                         ::testing::ValuesIn(all_backends().begin(), all_backends().end()),
                         [](const auto& tested) { return std::string(tested.param->name); });

}  // namespace
}  // namespace moeref::testing
