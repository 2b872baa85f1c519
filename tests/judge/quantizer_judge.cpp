#include "tests/judge/quantizer_judge.hpp"

#include <algorithm>

#include "tests/judge/quantizer_recipes.hpp"

namespace moeref::judge {
namespace {

const RecipeTable& recipes() {
  static const RecipeTable table = [] {
    RecipeTable all = fp8_recipes();
    all.merge(nvfp4_recipes());
    all.merge(mx_recipes());
    return all;
  }();
  return table;
}

}  // namespace

float torch_over(const Setting& setting, float x, double number) {
  const F32 math;
  if (setting.is("device", "cpu")) return math.over(x, constant(number));
  return math.times(x, constant(1.0 / number));
}

bool has_quantizer_judge(std::string_view quantizer) { return recipes().contains(quantizer); }

bool is_offered(std::string_view quantizer, const JudgeOptions& options, Format input) {
  const Setting setting{options, input};
  if (quantizer == "sglang_fp8_group") {
    // The dividing kernel knows no powers of two; only one kernel keeps the exact scale beside
    // them.
    if (setting.is("version", "v0")) return setting.is("scale", "f32");
    return setting.is("version", "v2") || !setting.is("scale", "ue8m0_rowmajor");
  }
  if (quantizer == "flashinfer_nvfp4_token") {
    return input != Format::f32 || setting.is("four_over_six", "off");
  }
  return true;
}

JudgedForm judge_quantizer(std::string_view quantizer, const JudgeOptions& options,
                           const Numbers& numbers, std::optional<float> given) {
  const Setting setting{options, numbers.format, given.value_or(1.0f)};
  const Recipe recipe = recipes().at(quantizer)(setting);
  const std::int64_t block_rows = recipe.block_rows == 0 ? numbers.rows : recipe.block_rows;
  const std::int64_t block_cols = recipe.block_cols == 0 ? numbers.cols : recipe.block_cols;
  JudgedForm form;
  form.row_blocks = (numbers.rows + block_rows - 1) / block_rows;
  form.col_blocks = (numbers.cols + block_cols - 1) / block_cols;
  form.codes.resize(numbers.bits.size());
  std::vector<float> values;
  for (const std::uint32_t bits : numbers.bits) values.push_back(value_of(numbers.format, bits));
  if (recipe.global == GlobalOf::given) form.global.push_back(float_bits(*given));
  if (recipe.global == GlobalOf::tensor) form.global.push_back(float_bits(recipe.stored(values)));
  for (std::int64_t row = 0; row < numbers.rows; row += block_rows) {
    std::span<const float> all;
    if (recipe.global == GlobalOf::tensor) all = values;
    if (recipe.global == GlobalOf::row) {
      all = {values.begin() + row * numbers.cols, values.begin() + (row + 1) * numbers.cols};
      form.global.push_back(float_bits(recipe.stored(all)));
    }
    for (std::int64_t col = 0; col < numbers.cols; col += block_cols) {
      std::vector<float> block;
      std::vector<std::size_t> places;
      for (std::int64_t r = row; r < std::min(row + block_rows, numbers.rows); ++r) {
        for (std::int64_t c = col; c < std::min(col + block_cols, numbers.cols); ++c) {
          places.push_back(static_cast<std::size_t>(r * numbers.cols + c));
          block.push_back(values[places.back()]);
        }
      }
      const JudgedBlock judged = recipe.block(block, all);
      form.scales.push_back(judged.scale);
      for (std::size_t i = 0; i < places.size(); ++i) form.codes[places[i]] = judged.codes[i];
    }
  }
  return form;
}

}  // namespace moeref::judge
