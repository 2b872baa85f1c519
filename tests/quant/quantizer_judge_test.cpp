// Every quantizer against the slow implementation, bit for bit.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "quant/error.hpp"
#include "quant/quantize.hpp"
#include "simd/kernels.hpp"
#include "tests/judge/gpu_numbers.hpp"
#include "tests/judge/quantizer_judge.hpp"
#include "tests/quant/quantizer_cases.hpp"

namespace moeref {
namespace {

constexpr std::uint32_t kSeed = 20;

/// Calibrated scales: usual ones, of few and of many digits, subnormal, and near the largest.
constexpr float kGiven[] = {1.0f, 2688.0f, 37.5f, 0.0073f, 3e-30f, 1.7e-39f, 2.5e38f};

/// What no source settles. All but the first is judged by the reading that is written down here.
struct Unsettled {
  std::string_view quantizer;
  std::string_view what;
};
constexpr Unsettled kUnsettled[] = {
    {"aiter_hip_mxfp4",
     "what the hardware's conversion makes of elements under a scale of 0xFF: not judged"},
    {"aiter_hip_mxfp4",
     "that conversion in general: taken as x / 2^(byte - 127), ties to even, NaN 7; rules other "
     "than rceil under kernel=group: the header has them, the kernel does not use them"},
    {"aiter_hip_fp8_group", "v_med3_f32 of a NaN: taken as the lower end"},
    {"aiter_triton_mxfp4", "the payload of a NaN: taken as 0x7FFFFFFF, whose code is 4"},
    {"compressed_tensors_mxfp4",
     "the byte of an infinite block, a conversion of infinity to int32: taken as CUDA's 0x7E; the "
     "payload of a NaN: taken as CUDA's, which rolls over"},
    {"compressed_tensors_mxfp8", "as compressed_tensors_mxfp4"},
    {"compressed_tensors_nvfp4",
     "backend=triton is in no release: `/` is taken as div.full, tl.clamp as max, then min"},
    {"cutedsl_nvfp4_moe", "NaN in the maximum of a block: taken as passed over"},
    {"modelopt_fp8", "zero blocks, which later versions guard: the version cited divides 0 by 0"},
    {"nvidia_mx", "no source makes whole blocks: amax is true-divided and passes over NaN"},
    {"ocp_mx", "NaN: 0xFF and NaN codes; of E5M2's NaN codes 0x7E is taken"},
    {"quark_mx", "codes of NaN elements: as CUDA encodes them"},
    {"quark_triton_mxfp4", "rule=even under NaN alone: the bits roll over"},
    {"microxcaling", "it makes values, not codes: NaN is encoded as CUDA does"},
    {"sglang_fp8_group", "version v3 has no kernel for f32: taken as multiplied in f32"},
    {"vllm_fp8_group", "kernel=registers has no f32 input: taken as for bf16"},
};

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

void compare(const QuantizerCase& chosen, const NamedNumbers& named, std::optional<float> given,
             const judge::JudgedForm& judged) {
  const judge::Numbers& numbers = named.numbers;
  const std::vector<std::byte> bytes = bytes_of(numbers);
  const std::vector<std::string> texts = chosen.texts();
  const Quantized made =
      quantize(chosen.quantizer->name, texts, matrix_of(named.name, numbers, bytes), given, 1);
  Differences differences(
      fmt::format("{} {}, {} [{}, {}] \"{}\"{}, {}", chosen.quantizer->name, fmt::join(texts, " "),
                  name(chosen.input), numbers.rows, numbers.cols, named.name,
                  given ? fmt::format(", scale {}", *given) : "", simd::active_kernels()->isa));
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

void compare_on_every_isa(const QuantizerCase& chosen, const NamedNumbers& named,
                          std::optional<float> given) {
  const judge::JudgedForm judged =
      judge::judge_quantizer(chosen.quantizer->name, chosen.options, named.numbers, given);
  const char* const fastest = simd::active_kernels()->isa;
  for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
    ASSERT_TRUE(simd::use_kernels(*isa));
    compare(chosen, named, given, judged);
  }
  simd::use_kernels(fastest);
}

class QuantizerJudge : public testing::TestWithParam<QuantizerCase> {};

TEST_P(QuantizerJudge, MakesTheJudgesBits) {
  const QuantizePlan plan = GetParam().plan();
  for (const NamedNumbers& numbers : numbers_for(plan, GetParam().input, kSeed)) {
    if (plan.form.global != GlobalScaleOf::given) {
      compare_on_every_isa(GetParam(), numbers, std::nullopt);
      continue;
    }
    for (const float given : kGiven) compare_on_every_isa(GetParam(), numbers, given);
  }
}

INSTANTIATE_TEST_SUITE_P(All, QuantizerJudge, testing::ValuesIn(offered_quantizer_cases()),
                         [](const auto& one) { return case_name(one.param); });

TEST(QuantizerJudges, JudgesEveryQuantizer) {
  for (const Quantizer* quantizer : all_quantizers()) {
    EXPECT_TRUE(judge::has_quantizer_judge(quantizer->name)) << quantizer->name;
  }
}

TEST(QuantizerJudges, KnowsTheQuantizersThatItIsUnsureOf) {
  for (const Unsettled& unsettled : kUnsettled) {
    EXPECT_NO_THROW(find_quantizer(unsettled.quantizer)) << unsettled.what;
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
