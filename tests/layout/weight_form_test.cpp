#include "layout/weight_form.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "io/quantization_config.hpp"
#include "layout/prepare.hpp"
#include "layout/sample_layer.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

using ::testing::HasSubstr;

TEST(WeightForms, AreTheFormatsThatCheckpointsHave) {
  namespace formats = weight_formats;
  const std::set<std::string_view> loaded{
      formats::kMxfp4,      formats::kNvfp4,    formats::kNvfp4Ct, formats::kFp8Tensor,
      formats::kFp8Channel, formats::kFp8Block, formats::kMxfp8,   formats::kBf16,
      formats::kF16,        formats::kF32};
  std::set<std::string_view> names;
  for (const WeightForm& form : weight_forms()) {
    EXPECT_TRUE(names.insert(form.name).second) << form.name;
    EXPECT_EQ(&find_weight_form("--format", form.name), &form);
  }
  EXPECT_EQ(names, loaded);
}

TEST(WeightForms, SayWhatSampleLayersHave) {
  for (const WeightForm& form : weight_forms()) {
    SCOPED_TRACE(form.name);
    const MoeLayer layer = sample_layer({.weight_format = std::string(form.name)});
    const Expert& expert = layer.experts.front();
    EXPECT_EQ(expert.up.codes.format, form.codes);
    EXPECT_EQ(static_cast<bool>(expert.up.scales), form.has_scales);
    if (form.has_scales) {
      EXPECT_EQ(expert.up.scales->format, form.scales);
    }
    EXPECT_EQ(expert.up.global_rule, form.globals);
    EXPECT_EQ(static_cast<bool>(expert.down_input_scale), form.has_input_scales);

    const LayerTensors tensors = layer_tensors(layer, layer);
    EXPECT_EQ(tensors.find(Slot::w13_scale) != nullptr, form.has_scales);
    EXPECT_EQ(tensors.shape.block_rows, form.block_rows);
    EXPECT_EQ(tensors.shape.block_cols, form.block_cols);
    EXPECT_EQ(has_global_scales(form.name), !tensors.scalars.w13_scale.empty());
  }
  EXPECT_FALSE(has_global_scales("fp6"));
}

TEST(WeightForms, AreAllTakenAsTheyAre) {
  const Backend& reference = find_backend("reference");
  EXPECT_EQ(reference.formats.size(), weight_forms().size());
  for (const WeightForm& form : weight_forms()) {
    const MoeLayer layer = sample_layer({.weight_format = std::string(form.name)});
    const PreparedLayer prepared =
        plan_layer(reference, parse_options(reference, {}), layer, Shard{});
    EXPECT_EQ(prepared.recipe.kernel.codes, form.codes) << form.name;
  }
}

TEST(FindWeightForm, ListsTheKnownOnes) {
  EXPECT_THAT(error_of([] { find_weight_form("--format", "fp6"); }),
              HasSubstr("--format: 'fp6' is no weight format; known: mxfp4, nvfp4, nvfp4_ct"));
}

}  // namespace
}  // namespace moeref
