#include <gtest/gtest.h>

#include "backend_properties.hpp"

namespace moeref::testing {
namespace {

class LargeZoo : public ::testing::TestWithParam<const Backend*> {};

/// Larger and more awkward layers; every rank of TP 8; every option value.
TEST_P(LargeZoo, KeepsTheProperties) {
  const Backend& backend = *GetParam();
  std::vector<ZooCase> cases = layout_zoo(backend.formats, ZooSize::large);
  const ZooResult defaults = walk_zoo(backend, {}, cases, true);
  EXPECT_EQ(defaults.fault, "");
  EXPECT_EQ(defaults.breakage, "");
  EXPECT_GE(defaults.accepted, 10) << "rejected " << defaults.rejected;
  for (const OptionValue& value : other_values(backend)) {
    const ZooResult result = walk_zoo(backend, {value.text}, cases, !value.is_defect);
    EXPECT_EQ(result.fault, "");
    if (!value.is_defect) {
      EXPECT_EQ(result.breakage, "");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, LargeZoo,
                         ::testing::ValuesIn(all_backends().begin(), all_backends().end()),
                         [](const auto& tested) { return std::string(tested.param->name); });

}  // namespace
}  // namespace moeref::testing
