#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "quant/formats.hpp"
#include "quant/quantize.hpp"
#include "tests/support/error_of.hpp"

namespace moeref {
namespace {

constexpr std::int64_t kRows = 300;
constexpr std::int64_t kCols = 256;

/// Numbers of many magnitudes, the largest in the last row.
std::vector<std::byte> numbers() {
  std::mt19937_64 random(5);
  std::vector<std::byte> bytes;
  for (std::int64_t i = 0; i < kRows * kCols; ++i) {
    const float value = static_cast<float>(static_cast<int>(random() % 2001) - 1000) * 0x1p-12f *
                        static_cast<float>(1 + i / kCols);
    const std::uint32_t code = encode(Format::bf16, value, EncodePolicy::cuda_nosat);
    bytes.push_back(static_cast<std::byte>(code & 0xFF));
    bytes.push_back(static_cast<std::byte>(code >> 8));
  }
  return bytes;
}

float amax_of(std::span<const std::byte> bytes) {
  float amax = 0.0f;
  for (std::size_t at = 0; at < bytes.size(); at += 2) {
    const std::uint32_t code =
        static_cast<std::uint32_t>(bytes[at]) | static_cast<std::uint32_t>(bytes[at + 1]) << 8;
    amax = std::max(amax, std::fabs(decode(Format::bf16, code)));
  }
  return amax;
}

// Every quantizer that makes its own scales, with every value of its first option.
TEST(QuantizeRows, PartsAreThoseOfTheWhole) {
  const std::vector<std::byte> bytes = numbers();
  const float amax = amax_of(bytes);
  int quantizers = 0;
  for (const Quantizer* quantizer : all_quantizers()) {
    if (std::ranges::find(quantizer->inputs, Format::bf16) == quantizer->inputs.end()) continue;
    std::vector<std::vector<std::string>> choices(1);
    if (!quantizer->options.empty() && quantizer->options.front().is_choice()) {
      const OptionInfo& option = quantizer->options.front();
      for (const std::string_view value : option.values) {
        choices.push_back({std::string(option.name) + "=" + std::string(value)});
      }
    }
    for (const std::vector<std::string>& choice : choices) {
      const Options options = parse_options(quantizer->name, quantizer->options, choice);
      const QuantizePlan plan = quantizer->plan(options, Format::bf16);
      if (plan.form.global == GlobalScaleOf::given) continue;
      ++quantizers;
      const Quantized whole =
          quantize(plan, {"whole", Format::bf16, kRows, kCols, bytes}, std::nullopt, 1);
      // Short and tall parts of whole rows of blocks.
      for (const std::int64_t step : {std::int64_t{128}, std::int64_t{256}}) {
        Quantized joined;
        for (std::int64_t row = 0; row < kRows; row += step) {
          const std::int64_t count = std::min(step, kRows - row);
          const auto part = std::span(bytes).subspan(static_cast<std::size_t>(2 * row * kCols),
                                                     static_cast<std::size_t>(2 * count * kCols));
          const Quantized made =
              quantize_rows(plan, {"part", Format::bf16, count, kCols, part}, amax, 1);
          joined.codes.insert(joined.codes.end(), made.codes.begin(), made.codes.end());
          if (plan.form.block_rows == 0) {
            EXPECT_EQ(made.scales, whole.scales) << quantizer->name;
          } else {
            joined.scales.insert(joined.scales.end(), made.scales.begin(), made.scales.end());
          }
          if (plan.form.global == GlobalScaleOf::tensor) {
            EXPECT_EQ(made.global, whole.global) << quantizer->name;
          }
        }
        EXPECT_EQ(joined.codes, whole.codes) << quantizer->name;
        if (plan.form.block_rows != 0) {
          EXPECT_EQ(joined.scales, whole.scales) << quantizer->name;
        }
      }
    }
  }
  EXPECT_GE(quantizers, 40);
}

TEST(QuantizeRows, ATensorsScaleIsMadeOfTheGivenMaximum) {
  const std::vector<std::byte> ones{std::byte{0x80}, std::byte{0x3F}, std::byte{0x80},
                                    std::byte{0x3F}};
  const ValueMatrix row{"ones", Format::bf16, 1, 2, ones};
  const Quantizer& quantizer = find_quantizer("aiter_torch_fp8_tensor");
  const std::vector<std::string> cpu{"device=cpu"};
  const QuantizePlan plan =
      quantizer.plan(parse_options(quantizer.name, quantizer.options, cpu), Format::bf16);
  EXPECT_EQ(quantize_rows(plan, row, 896.0f, 1).scale_values(), std::vector<float>{2.0f});
  EXPECT_EQ(quantize_rows(plan, row, 0.0f, 1).scale_values(), std::vector<float>{1.0f / 448.0f});
}

TEST(QuantizeRows, RefusesCalibratedScales) {
  const std::vector<std::byte> zeros(64);
  const Quantizer& quantizer = find_quantizer("sglang_nvfp4");
  const QuantizePlan plan = quantizer.plan(Options(), Format::bf16);
  EXPECT_EQ(error_of([&] {
              quantize_rows(plan, {"zeros", Format::bf16, 1, 32, zeros}, 0.0f, 1);
            }),
            "zeros: needs a scale: the quantizer's is calibrated");
}

}  // namespace
}  // namespace moeref
