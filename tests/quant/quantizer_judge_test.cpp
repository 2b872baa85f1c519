// Every quantizer against the slow implementation, bit for bit.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <optional>
#include <random>
#include <string>
#include <vector>

#include "quant/error.hpp"
#include "quant/quantize.hpp"
#include "tests/judge/gpu_numbers.hpp"
#include "tests/judge/quantizer_judge.hpp"
#include "tests/quant/quantizer_cases.hpp"

namespace moeref {
namespace {

constexpr std::uint32_t kSeed = 20;

/// Calibrated scales: usual ones, of few and of many digits, subnormal, and near the largest.
constexpr float kGiven[] = {1.0f, 2688.0f, 37.5f, 0.0073f, 3e-30f, 1.7e-39f, 2.5e38f};

/// Counts differences and says the first ones.
class Differences {
 public:
  explicit Differences(std::string where) : where_(std::move(where)) {}
  void add(const std::string& what) {
    if (count_++ < 3) text_ += "\n  " + what;
  }
  void report() const {
    if (count_ != 0) ADD_FAILURE() << where_ << ": " << count_ << " differences" << text_;
  }

 private:
  std::string where_;
  std::string text_;
  int count_ = 0;
};

/// A scale of f32, bf16 or f16 that is NaN says no more than that.
bool same_scale(Format format, std::uint32_t judged, std::uint32_t made) {
  if (judged == made) return true;
  return (format == Format::f32 || format == Format::bf16 || format == Format::f16) &&
         judge::is_nan(judge::value_of(format, judged)) &&
         judge::is_nan(judge::value_of(format, made));
}

void compare(const QuantizerCase& chosen, const NamedNumbers& named, std::optional<float> given) {
  const judge::Numbers& numbers = named.numbers;
  const std::vector<std::byte> bytes = bytes_of(numbers);
  const std::vector<std::string> texts = chosen.texts();
  const Quantized made =
      quantize(chosen.quantizer->name, texts, matrix_of(named.name, numbers, bytes), given, 1);
  const judge::JudgedForm judged =
      judge::judge_quantizer(chosen.quantizer->name, chosen.options, numbers, given);
  Differences differences(fmt::format("{} {}, {} [{}, {}] \"{}\"{}", chosen.quantizer->name,
                                      fmt::join(texts, " "), name(chosen.input), numbers.rows,
                                      numbers.cols, named.name,
                                      given ? fmt::format(", scale {}", *given) : ""));
  ASSERT_EQ(made.row_blocks, judged.row_blocks) << chosen.name();
  ASSERT_EQ(made.col_blocks, judged.col_blocks) << chosen.name();
  ASSERT_EQ(made.global.size(), judged.global.size()) << chosen.name();
  for (std::size_t i = 0; i < judged.global.size(); ++i) {
    if (same_scale(Format::f32, judged.global[i], judge::float_bits(made.global[i]))) continue;
    differences.add(fmt::format("global scale {}: judge {:08x}, moeref {:08x}", i, judged.global[i],
                                judge::float_bits(made.global[i])));
  }
  for (std::size_t i = 0; i < judged.scales.size(); ++i) {
    if (same_scale(made.form.scales, judged.scales[i], scale_at(made, i))) continue;
    const auto blocks = static_cast<std::size_t>(judged.col_blocks);
    differences.add(fmt::format("scale of block [{}, {}]: judge {:02x}, moeref {:02x}", i / blocks,
                                i % blocks, judged.scales[i], scale_at(made, i)));
  }
  const auto columns = static_cast<std::size_t>(numbers.cols);
  for (std::size_t i = 0; i < judged.codes.size(); ++i) {
    if (judged.codes[i] == code_at(made, i)) continue;
    // The hardware's conversion under a scale of 0xFF is not known.
    const auto blocks = static_cast<std::size_t>(judged.col_blocks);
    const std::size_t block = i / columns * blocks + i % columns * blocks / columns;
    if (chosen.quantizer->name == "aiter_hip_mxfp4" && judged.scales[block] == 0xFF) continue;
    differences.add(fmt::format("[{}, {}] {} (bits {:x}): judge {:02x}, moeref {:02x}", i / columns,
                                i % columns, judge::value_of(numbers.format, numbers.bits[i]),
                                numbers.bits[i], judged.codes[i], code_at(made, i)));
  }
  differences.report();
}

class QuantizerJudge : public testing::TestWithParam<QuantizerCase> {};

TEST_P(QuantizerJudge, MakesTheJudgesBits) {
  const QuantizePlan plan = GetParam().plan();
  for (const NamedNumbers& numbers : numbers_for(plan, GetParam().input, kSeed)) {
    if (plan.form.global != GlobalScaleOf::given) {
      compare(GetParam(), numbers, std::nullopt);
      continue;
    }
    for (const float given : kGiven) compare(GetParam(), numbers, given);
  }
}

INSTANTIATE_TEST_SUITE_P(All, QuantizerJudge, testing::ValuesIn(offered_quantizer_cases()),
                         [](const auto& one) { return case_name(one.param); });

TEST(QuantizerJudges, JudgesEveryQuantizer) {
  for (const Quantizer* quantizer : all_quantizers()) {
    EXPECT_TRUE(judge::has_quantizer_judge(quantizer->name)) << quantizer->name;
  }
}

TEST(QuantizerJudges, RefusesWhatUpstreamDoesNotHave) {
  int refused = 0;
  for (const QuantizerCase& one : all_quantizer_cases()) {
    if (judge::is_offered(one.quantizer->name, one.options, one.input)) continue;
    ++refused;
    EXPECT_THROW(one.plan(), Error) << one.name();
  }
  EXPECT_GT(refused, 0);
}

/// The judge's arithmetic against the processor's, which rounds to nearest even.
TEST(JudgeArithmetic, RoundsAsTheProcessorDoes) {
  const judge::F32 math;
  std::mt19937 numbers(1);
  const auto random = [&] { return static_cast<std::uint32_t>(numbers()); };
  for (int i = 0; i < 200'000; ++i) {
    const float a = judge::float_of(random());
    float b = judge::float_of(random());
    if (i % 2 == 0) b = judge::float_of((judge::float_bits(a) & 0xFF80'0000u) ^ (random() >> 7));
    const auto same = [&](float judged, float processor) {
      return judge::is_nan(judged) ? judge::is_nan(processor)
                                   : judge::float_bits(judged) == judge::float_bits(processor);
    };
    ASSERT_TRUE(same(math.plus(a, b), a + b)) << a << " + " << b;
    ASSERT_TRUE(same(math.minus(a, b), a - b)) << a << " - " << b;
    ASSERT_TRUE(same(math.times(a, b), a * b)) << a << " * " << b;
    ASSERT_TRUE(same(math.over(a, b), a / b)) << a << " / " << b;
  }
}

TEST(JudgeArithmetic, EncodesEveryCodeToItself) {
  for (const Format format : {Format::bf16, Format::f16}) {
    for (std::uint32_t bits = 0; bits < 0x1'0000; ++bits) {
      const float value = judge::value_of(format, bits);
      if (judge::is_nan(value)) continue;
      ASSERT_EQ(judge::float_bits(judge::in_dtype(format, value)), judge::float_bits(value));
      ASSERT_EQ(judge::bits_in(format, value), bits);
    }
  }
}

}  // namespace
}  // namespace moeref
