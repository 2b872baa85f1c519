// What holds of every quantizer, or of those that promise it.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "quant/error.hpp"
#include "quant/quantize.hpp"
#include "tests/judge/gpu_numbers.hpp"
#include "tests/quant/quantizer_cases.hpp"

namespace moeref {
namespace {

using judge::Numbers;
using testing::HasSubstr;
using testing::Not;

/// Quantizers that do not have a property, with the reason.
using Exceptions = std::map<std::string_view, std::string_view>;

/// Numbers of a usual weight or activation; no zero, nothing near the ends of a format. E4M3: any
/// finite codes.
Numbers ordinary(const QuantizePlan& plan, Format input, std::int64_t rows, std::uint32_t seed) {
  std::mt19937 random(seed);
  Numbers numbers;
  numbers.format = input;
  numbers.rows = rows;
  numbers.cols = plan.form.block_cols == 0 ? 64 : 2 * plan.form.block_cols;
  for (std::int64_t i = 0; i < numbers.rows * numbers.cols; ++i) {
    const auto bits = static_cast<std::uint32_t>(random());
    if (input == Format::e4m3) {
      numbers.bits.push_back((bits & 0xFF) % 0x7F | (bits & 0x80));
      continue;
    }
    // Rows of other magnitudes.
    const double x = std::ldexp(static_cast<double>(bits | 0x100) - 0x1p31, -34) + 0x1p-20;
    const auto value = static_cast<float>(std::ldexp(x, static_cast<int>(i / numbers.cols % 7)));
    numbers.bits.push_back(judge::bits_in(input, judge::in_dtype(input, value)));
  }
  return numbers;
}

std::optional<float> usual_scale(const QuantizePlan& plan) {
  if (plan.form.global != GlobalScaleOf::given) return std::nullopt;
  if (plan.form.codes != Format::e2m1) return 0.0625f;
  return plan.form.global_rule == GlobalScaleRule::multiply ? 1.0f / 64.0f : 64.0f;
}

Quantized run(const QuantizerCase& one, const Numbers& numbers, int threads = 1) {
  const std::vector<std::byte> bytes = bytes_of(numbers);
  const std::vector<std::string> texts = one.texts();
  return quantize(one.quantizer->name, texts, matrix_of("w", numbers, bytes),
                  usual_scale(one.plan()), threads);
}

/// The rows [begin, end) of numbers.
Numbers rows_of(const Numbers& numbers, std::int64_t begin, std::int64_t end) {
  Numbers part = numbers;
  part.rows = end - begin;
  part.bits.assign(numbers.bits.begin() + begin * numbers.cols,
                   numbers.bits.begin() + end * numbers.cols);
  return part;
}

bool is_option(const QuantizerCase& one, std::string_view option, std::string_view value) {
  const auto found = one.options.find(option);
  return found != one.options.end() && found->second == value;
}

class QuantizerProperties : public testing::TestWithParam<QuantizerCase> {
 protected:
  const QuantizerCase& one() const { return GetParam(); }
  std::string_view name_of_it() const { return one().quantizer->name; }
  bool excepted(const Exceptions& exceptions) const { return exceptions.contains(name_of_it()); }
};

TEST_P(QuantizerProperties, MakesNoCodeBeyondTheFormat) {
  const QuantizePlan plan = one().plan();
  const Numbers numbers = ordinary(plan, one().input, 9, 1);
  const Quantized made = run(one(), numbers);
  for (std::size_t i = 0; i < numbers.bits.size(); ++i) {
    const std::uint32_t code = code_at(made, i);
    const std::uint32_t magnitude = plan.form.codes == Format::e2m1 ? code & 7 : code & 0x7F;
    ASSERT_LT(magnitude, judge::magnitudes(plan.form.codes).size()) << i;
    ASSERT_FALSE(plan.form.codes == Format::e4m3fnuz && code == 0x80) << i;
  }
  for (const float scale : made.scale_values()) ASSERT_TRUE(std::isfinite(scale));
}

TEST_P(QuantizerProperties, HasTheSameCodesOneByOne) {
  // A first step that does nothing takes rows away from the vector loops and the known blocks.
  const QuantizePlan plan = one().plan();
  if (one().input == Format::e4m3 || plan.before) GTEST_SKIP() << "it has none of them";
  QuantizePlan plain = plan;
  plain.before = [](float x, float) { return x; };
  const std::int64_t block = plan.form.block_cols == 0 ? 48 : plan.form.block_cols;
  std::mt19937 random(5);
  for (const std::int64_t cols : {block, 2 * block, 2 * block + 16, block + block / 2,
                                  5 * block + 6, block / 2, std::int64_t{16}, std::int64_t{2}}) {
    if (cols < 1 || (plan.whole_blocks && cols % block != 0)) continue;
    if (plan.form.codes == Format::e2m1 && cols % 2 != 0) continue;
    Numbers numbers{.format = one().input, .rows = 4, .cols = cols, .bits = {}};
    const std::uint32_t mask = one().input == Format::f32 ? 0xFFFF'FFFFu : 0xFFFFu;
    for (std::int64_t i = 0; i < 4 * cols; ++i) {
      // Row 0: any bits; the others: no NaN and no infinity.
      auto bits = static_cast<std::uint32_t>(random()) & mask;
      if (i >= cols && !std::isfinite(judge::value_of(one().input, bits))) bits = 0;
      numbers.bits.push_back(bits);
    }
    const std::vector<std::byte> bytes = bytes_of(numbers);
    const ValueMatrix values = matrix_of("w", numbers, bytes);
    const Quantized made = quantize(plan, values, usual_scale(plan), 1);
    const Quantized expected = quantize(plain, values, usual_scale(plan), 1);
    ASSERT_EQ(made.codes, expected.codes) << cols << " columns";
    ASSERT_EQ(made.scales, expected.scales) << cols << " columns";
  }
}

TEST_P(QuantizerProperties, ScalesGrowWithAmax) {
  const Exceptions exceptions = {
      {"flashinfer_fp8_group_sm90", "the scale is two approximate reciprocals"},
      {"flashinfer_fp8_token_moe", "the scale is two approximate reciprocals"},
  };
  if (excepted(exceptions)) GTEST_SKIP() << exceptions.at(name_of_it());
  if (is_option(one(), "four_over_six", "on")) GTEST_SKIP() << "the scale is one of two by error";
  const QuantizePlan plan = one().plan();
  if (one().input == Format::e4m3) GTEST_SKIP() << "f16 numbers in between";
  const std::int64_t size = plan.form.block_cols == 0 ? 32 : plan.form.block_cols;
  // amax doubles every 16 blocks.
  std::vector<Numbers> blocks;
  float before = 0.0f;
  for (int step = 0; step < 96; ++step) {
    const float amax =
        judge::in_dtype(one().input, static_cast<float>(0.01 * std::exp2(step / 16.0)));
    ASSERT_GE(amax, before);
    before = amax;
    Numbers block;
    block.format = one().input;
    block.rows = 1;
    block.cols = size;
    block.bits.assign(static_cast<std::size_t>(size), judge::bits_in(one().input, amax / 4));
    block.bits[static_cast<std::size_t>(step) % block.bits.size()] =
        judge::bits_in(one().input, amax);
    blocks.push_back(block);
  }
  std::vector<float> scales;
  const bool shares =
      plan.form.global == GlobalScaleOf::tensor || plan.form.global == GlobalScaleOf::row;
  if (shares) {
    Numbers row = blocks[0];
    for (std::size_t i = 1; i < blocks.size(); ++i) {
      row.bits.insert(row.bits.end(), blocks[i].bits.begin(), blocks[i].bits.end());
    }
    row.cols = static_cast<std::int64_t>(row.bits.size());
    scales = run(one(), row).scale_values();
  } else {
    for (const Numbers& block : blocks) scales.push_back(run(one(), block).scale_values().front());
  }
  for (std::size_t i = 1; i < scales.size(); ++i) {
    ASSERT_GE(scales[i], scales[i - 1]) << "block " << i;
  }
}

TEST_P(QuantizerProperties, KeepsItsOwnValues) {
  // Where the scale is a power of two or, NVFP4, that of amax = 6 * scale exactly.
  const Exceptions exceptions = {
      {"vllm_mxfp8", "elements end at 2, which raises the next scale and loses subnormals"},
      {"compressed_tensors_mxfp8", "448 is 1.75 of its binade, which raises the next scale"},
      {"aiter_triton_mxfp8", "448 is 1.75 of its binade, which raises the next scale"},
  };
  if (excepted(exceptions)) GTEST_SKIP() << exceptions.at(name_of_it());
  const QuantizePlan plan = one().plan();
  const bool power_of_two = plan.form.scales == Format::e8m0 || is_option(one(), "scale", "ue8m0");
  const bool nvfp4 = plan.form.scales == Format::ue4m3 && plan.form.global == GlobalScaleOf::given;
  if (!power_of_two && !nvfp4) GTEST_SKIP() << "scales are rounded quotients";
  if (one().input == Format::e4m3) GTEST_SKIP() << "E4M3 has not the values of FP4 under a scale";
  if (is_option(one(), "device", "nvidia") && plan.form.codes == Format::e2m1) {
    GTEST_SKIP() << "the stored bytes are not those of the codes";
  }
  const Numbers numbers = ordinary(plan, one().input, 7, 2);
  const auto values_of = [&](const Quantized& made) {
    std::vector<float> values;
    const std::vector<float> scales = made.scale_values();
    const float global = usual_scale(plan).value_or(1.0f);
    for (std::size_t i = 0; i < numbers.bits.size(); ++i) {
      const auto cols = static_cast<std::size_t>(numbers.cols);
      const auto block = static_cast<std::size_t>(made.form.block_cols);
      const auto block_row = i / cols / static_cast<std::size_t>(made.form.block_rows);
      const float scale =
          scales[block_row * static_cast<std::size_t>(made.col_blocks) + i % cols / block];
      float value = decode(made.form.codes, code_at(made, i)) * scale;
      if (nvfp4) {
        const bool multiplies = made.form.global_rule == GlobalScaleRule::multiply;
        value = multiplies ? value * global : value / global;
      }
      values.push_back(value);
    }
    return values;
  };
  const std::vector<float> first = values_of(run(one(), numbers));
  Numbers again = numbers;
  for (std::size_t i = 0; i < first.size(); ++i) {
    ASSERT_EQ(judge::in_dtype(one().input, first[i]), first[i]) << "no number of the dtype";
    again.bits[i] = judge::bits_in(one().input, first[i]);
  }
  const std::vector<float> second = values_of(run(one(), again));
  for (std::size_t i = 0; i < first.size(); ++i) ASSERT_EQ(first[i], second[i]) << i;
}

void expect_equal(const Quantized& a, const Quantized& b) {
  EXPECT_EQ(a.codes, b.codes);
  EXPECT_EQ(a.scales, b.scales);
  ASSERT_EQ(a.global.size(), b.global.size());
  for (std::size_t i = 0; i < a.global.size(); ++i) {
    EXPECT_EQ(judge::float_bits(a.global[i]), judge::float_bits(b.global[i]));
  }
}

TEST_P(QuantizerProperties, DoesNotDependOnThreads) {
  const QuantizePlan plan = one().plan();
  const Numbers numbers = ordinary(plan, one().input, plan.form.block_rows > 1 ? 131 : 150, 3);
  const Quantized one_thread = run(one(), numbers, 1);
  expect_equal(one_thread, run(one(), numbers, 2));
  expect_equal(one_thread, run(one(), numbers, 7));
}

TEST_P(QuantizerProperties, DoesNotDependOnOtherRows) {
  const QuantizePlan plan = one().plan();
  if (plan.form.block_rows == 0 || plan.form.global == GlobalScaleOf::tensor) {
    GTEST_SKIP() << "scales of the whole tensor";
  }
  const std::int64_t cut = plan.form.block_rows == 1 ? 4 : plan.form.block_rows;
  const Numbers numbers = ordinary(plan, one().input, cut + 5, 4);
  const Quantized whole = run(one(), numbers);
  Quantized joined = run(one(), rows_of(numbers, 0, cut));
  const Quantized rest = run(one(), rows_of(numbers, cut, numbers.rows));
  joined.codes.insert(joined.codes.end(), rest.codes.begin(), rest.codes.end());
  joined.scales.insert(joined.scales.end(), rest.scales.begin(), rest.scales.end());
  if (plan.form.global == GlobalScaleOf::row) {
    joined.global.insert(joined.global.end(), rest.global.begin(), rest.global.end());
  }
  expect_equal(whole, joined);
}

TEST_P(QuantizerProperties, PutsTheEvenElementIntoTheLowNibble) {
  const QuantizePlan plan = one().plan();
  if (plan.form.codes != Format::e2m1) GTEST_SKIP() << "codes of a byte";
  Numbers numbers = ordinary(plan, one().input, 1, 5);
  std::fill(numbers.bits.begin(), numbers.bits.end(), 0);
  const std::uint32_t one_bits =
      one().input == Format::e4m3 ? 0x38 : judge::bits_in(one().input, 1.0f);
  numbers.bits[2] = one_bits;
  numbers.bits[7] = one_bits;
  const Quantized made = run(one(), numbers);
  ASSERT_EQ(made.codes.size(), numbers.bits.size() / 2);
  for (std::size_t i = 0; i < made.codes.size(); ++i) {
    const auto byte = std::to_integer<std::uint32_t>(made.codes[i]);
    EXPECT_EQ((byte & 7) != 0, i == 1) << i;
    EXPECT_EQ((byte >> 4 & 7) != 0, i == 3) << i;
  }
}

/// The message of what `quantize` throws.
std::string refusal(const QuantizerCase& one, const Numbers& numbers,
                    const std::vector<std::string>& texts, std::optional<float> given) {
  const std::vector<std::byte> bytes = bytes_of(numbers);
  try {
    quantize(one.quantizer->name, texts, matrix_of("layer.7.w", numbers, bytes), given, 1);
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), Not(HasSubstr("\n")));
    return error.what();
  }
  return "accepted";
}

TEST_P(QuantizerProperties, SaysWhatIsWrong) {
  const QuantizePlan plan = one().plan();
  const std::vector<std::string> texts = one().texts();
  const Numbers numbers = ordinary(plan, one().input, 2, 6);
  const std::optional<float> given = usual_scale(plan);

  Numbers odd = numbers;
  odd.cols = numbers.cols - 1;
  odd.bits.resize(static_cast<std::size_t>(odd.rows * odd.cols));
  if ((plan.whole_blocks && plan.form.block_cols > 0) || plan.form.codes == Format::e2m1) {
    EXPECT_THAT(refusal(one(), odd, texts, given), HasSubstr("layer.7.w"));
    EXPECT_THAT(refusal(one(), odd, texts, given), HasSubstr(fmt::format("{} columns", odd.cols)));
  } else {
    EXPECT_EQ(refusal(one(), odd, texts, given), "accepted");
  }

  Numbers other = numbers;
  other.format = one().input == Format::e4m3 ? Format::bf16 : Format::e4m3;
  EXPECT_THAT(refusal(one(), other, texts, given), HasSubstr("layer.7.w"));
  EXPECT_THAT(refusal(one(), other, texts, given), HasSubstr(name_of_it()));

  if (given) {
    EXPECT_THAT(refusal(one(), numbers, texts, std::nullopt), HasSubstr("layer.7.w"));
    EXPECT_THAT(refusal(one(), numbers, texts, std::nullopt), HasSubstr("needs a scale"));
  } else {
    EXPECT_THAT(refusal(one(), numbers, texts, 1.0f), HasSubstr("layer.7.w"));
    EXPECT_THAT(refusal(one(), numbers, texts, 1.0f), HasSubstr("takes no scale"));
  }

  std::vector<std::string> unknown = texts;
  unknown.push_back("colour=blue");
  EXPECT_THAT(refusal(one(), numbers, unknown, given), HasSubstr(name_of_it()));
  EXPECT_THAT(refusal(one(), numbers, unknown, given), HasSubstr("colour"));
  if (!texts.empty()) {
    unknown = texts;
    unknown[0] = unknown[0].substr(0, unknown[0].find('=')) + "=blue";
    EXPECT_THAT(refusal(one(), numbers, unknown, given), HasSubstr(name_of_it()));
    EXPECT_THAT(refusal(one(), numbers, unknown, given), HasSubstr("blue"));
  }
}

INSTANTIATE_TEST_SUITE_P(All, QuantizerProperties, testing::ValuesIn(offered_quantizer_cases()),
                         [](const auto& one) { return case_name(one.param); });

TEST(Quantizers, NamesTheNearestOfAnUnknownOne) {
  Numbers numbers;
  const std::vector<std::byte> bytes;
  try {
    quantize("flashinfer_nvfp", {}, matrix_of("w", numbers, bytes), std::nullopt, 1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("flashinfer_nvfp4"));
    EXPECT_THAT(error.what(), Not(HasSubstr("\n")));
  }
}

TEST(Quantizers, RefusesBytesThatAreNotTheMatrix) {
  for (const Quantizer* quantizer : all_quantizers()) {
    const std::vector<std::byte> bytes(10);
    const Numbers numbers{quantizer->inputs.front(), 2, 256, {}};
    const QuantizePlan plan =
        quantizer->plan(parse_options(quantizer->name, quantizer->options, {}), numbers.format);
    try {
      quantize(quantizer->name, {}, matrix_of("layer.7.w", numbers, bytes), usual_scale(plan), 1);
      ADD_FAILURE() << quantizer->name;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("layer.7.w"));
      EXPECT_THAT(error.what(), HasSubstr("10 bytes"));
    }
  }
}

}  // namespace
}  // namespace moeref
