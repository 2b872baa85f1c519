#include "cli/inspect.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "io/safetensors.hpp"
#include "io/synth/plan.hpp"
#include "io/synth/write.hpp"
#include "quant/error.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref {
namespace {

namespace fs = std::filesystem;
using testing::safetensors_bytes;
using testing::TempFolder;
using testing::write_bytes;

constexpr std::uint32_t kNan = 0x7FC00000;

std::vector<std::byte> bytes_of(std::initializer_list<int> values) {
  std::vector<std::byte> bytes;
  for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

Tensor f32(std::string name, Shape shape, std::vector<float> values) {
  return make_tensor<float>(std::move(name), DType::f32, std::move(shape), values);
}

/// A tensor of one-byte elements: `pattern` repeated.
Tensor byte_tensor(std::string name, DType dtype, Shape shape, std::initializer_list<int> pattern) {
  const std::vector<std::byte> unit = bytes_of(pattern);
  std::vector<std::byte> bytes(static_cast<std::size_t>(element_count(shape)));
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = unit[i % unit.size()];
  return {std::move(name), dtype, std::move(shape), std::move(bytes)};
}

/// What inspect finds in a file with these tensors (and a config.json beside it).
class Crafted {
 public:
  explicit Crafted(const std::vector<Tensor>& tensors, std::string_view config = "") {
    std::vector<TensorView> views;
    for (const Tensor& tensor : tensors) views.push_back(tensor.view());
    write_safetensors(path(), views, {});
    if (!config.empty()) write_bytes(folder_ / "config.json", config);
  }
  fs::path path() const { return folder_ / "model.safetensors"; }
  InspectReport report(const InspectOptions& options = {}) const {
    return inspect(path(), options);
  }

  std::set<std::string> codes() const {
    std::set<std::string> codes;
    for (const Finding& finding : report().findings) codes.insert(finding.code);
    return codes;
  }
  Finding finding(std::string_view code) const {
    for (const Finding& finding : report().findings) {
      if (finding.code == code) return finding;
    }
    ADD_FAILURE() << "no finding " << code;
    return {};
  }

 private:
  TempFolder folder_;
};

using Codes = std::set<std::string>;

/// FP8 codes up to 448 (0x7E) and both signs.
Tensor fp8_weight(std::string name, Shape shape) {
  return byte_tensor(std::move(name), DType::f8_e4m3, std::move(shape),
                     {0x7E, 0x38, 0xB8, 0x22, 0xA5});
}

std::vector<Tensor> fp8_block(std::vector<float> scales) {
  return {fp8_weight("m.up_proj.weight", {130, 128}),
          f32("m.up_proj.weight_scale_inv", {2, 1}, std::move(scales))};
}

TEST(ValueStatistics, CountsEveryKindOfValueOfE4M3) {
  const auto bytes = bytes_of({0x00, 0x80, 0x7E, 0xFE, 0x7F, 0xFF, 0x01, 0x38, 0xBC});
  const ValueStatistics values = value_statistics(bytes, DType::f8_e4m3, Format::e4m3);
  EXPECT_EQ(values.count, 9);
  EXPECT_EQ(values.finite, 7);
  EXPECT_EQ(values.zeros, 2);
  EXPECT_EQ(values.negative_zeros, 1);
  EXPECT_EQ(values.nans, 2);
  EXPECT_EQ(values.saturated, 2);
  EXPECT_EQ(values.subnormals, 1);
  EXPECT_EQ(values.negatives, 2);
  EXPECT_EQ(values.min, -448);
  EXPECT_EQ(values.max, 448);
  EXPECT_EQ(values.sum_abs, 2 * 448 + 0x1p-9 + 1 + 1.5);
  EXPECT_EQ(values.not_powers_of_two, 3);  // +-448 and -1.5
}

TEST(ValueStatistics, ReadsPackedFp4AsTwoValuesAByte) {
  const ValueStatistics values = value_statistics(bytes_of({0x71, 0xF8}), DType::u8, Format::e2m1);
  EXPECT_EQ(values.count, 4);
  EXPECT_EQ(values.min, -6);
  EXPECT_EQ(values.max, 6);
  EXPECT_EQ(values.saturated, 2);
  EXPECT_EQ(values.negative_zeros, 1);
  EXPECT_EQ(values.sum_abs, 12.5);
}

TEST(ValueStatistics, ReadsWiderFormatsAndIntegers) {
  const std::vector<float> numbers{1.5f, -INFINITY, std::bit_cast<float>(kNan), 0x1p-130f, -0.0f};
  const ValueStatistics f32_values =
      value_statistics(std::as_bytes(std::span(numbers)), DType::f32, Format::f32);
  EXPECT_EQ(f32_values.finite, 3);
  EXPECT_EQ(f32_values.infinities, 1);
  EXPECT_EQ(f32_values.nans, 1);
  EXPECT_EQ(f32_values.subnormals, 1);
  EXPECT_EQ(f32_values.negative_zeros, 1);
  const std::vector<std::uint16_t> halves{0x3F80, 0xC000, 0x7F80, 0x7FC1};
  const ValueStatistics bf16 =
      value_statistics(std::as_bytes(std::span(halves)), DType::bf16, Format::bf16);
  EXPECT_EQ(bf16.min, -2);
  EXPECT_EQ(bf16.max, 1);
  EXPECT_EQ(bf16.infinities, 1);
  EXPECT_EQ(bf16.nans, 1);
  const std::vector<std::int64_t> integers{-5, 7, 0};
  const ValueStatistics i64 =
      value_statistics(std::as_bytes(std::span(integers)), DType::i64, std::nullopt);
  EXPECT_EQ(i64.min, -5);
  EXPECT_EQ(i64.max, 7);
  EXPECT_EQ(i64.mean_abs(), 4);
}

TEST(ValueStatistics, OfPartsAddUpToThoseOfTheWhole) {
  const auto bytes = bytes_of({0x80, 0x7F, 0x7E, 0x01, 0xFE, 0x38, 0x00, 0xFF});
  ValueStatistics sum = value_statistics(std::span(bytes).first(2), DType::f8_e4m3, Format::e4m3);
  sum.add(value_statistics(std::span(bytes).subspan(2), DType::f8_e4m3, Format::e4m3));
  const ValueStatistics whole = value_statistics(bytes, DType::f8_e4m3, Format::e4m3);
  EXPECT_EQ(sum.count, whole.count);
  EXPECT_EQ(sum.min, whole.min);
  EXPECT_EQ(sum.max, whole.max);
  EXPECT_EQ(sum.sum_abs, whole.sum_abs);
  EXPECT_EQ(sum.nans, whole.nans);
  EXPECT_EQ(sum.negative_zeros, whole.negative_zeros);
}

TEST(Digest, TellsBytesAndLengthsApart) {
  EXPECT_NE(digest(bytes_of({1, 2, 3})).hash, digest(bytes_of({1, 2, 4})).hash);
  EXPECT_NE(digest(bytes_of({0, 0})).hash, digest(bytes_of({0, 0, 0})).hash);
  EXPECT_NE(digest(bytes_of({1, 0, 0, 0, 0, 0, 0, 0, 2})).hash,
            digest(bytes_of({2, 0, 0, 0, 0, 0, 0, 0, 1})).hash);
  EXPECT_TRUE(digest(bytes_of({0, 0, 0})).all_zero);
  EXPECT_FALSE(digest(bytes_of({0, 0, 0, 0, 0, 0, 0, 0, 1})).all_zero);
}

TEST(NameGroup, ShowsNumbersAsRanges) {
  NameGroup group;
  for (const std::int64_t layer : {3, 4, 5, 9})
    group.add(split_numbers(fmt::format("layers.{}.w1.weight", layer)));
  EXPECT_EQ(group.shown(), "layers.{3..5,9}.w1.weight");
  EXPECT_EQ(group.size(), 4);
  EXPECT_EQ(shown_numbers({1, 3, 5, 7, 9, 11}), "{1,3,5,7,9,...}");
  EXPECT_EQ(shown_numbers({17}), "17");
}

TEST(Inspect, FindsNothingInASoundFile) {
  EXPECT_EQ(Crafted(fp8_block({1e-4f, 2e-4f})).codes(), Codes{});
}

TEST(Inspect, FindsBadScales) {
  EXPECT_EQ(Crafted(fp8_block({1e-4f, std::bit_cast<float>(kNan)})).codes(), Codes{"scale.nan"});
  EXPECT_EQ(Crafted(fp8_block({1e-4f, INFINITY})).codes(), Codes{"scale.inf"});
  EXPECT_EQ(Crafted(fp8_block({1e-4f, -1e-4f})).codes(), Codes{"scale.negative"});
  EXPECT_EQ(Crafted(fp8_block({1e-4f, -0.0f})).codes(), (Codes{"scale.negative", "scale.zero"}));
  EXPECT_EQ(Crafted(fp8_block({1e-4f, 0.0f})).codes(), Codes{"scale.zero"});
  EXPECT_EQ(Crafted(fp8_block({1e-4f, 0.0f})).finding("scale.zero").severity, Severity::warning);
  EXPECT_EQ(Crafted(fp8_block({0.0f, 0.0f})).finding("scale.zero").severity, Severity::error);
}

TEST(Inspect, FindsReciprocalScales) {
  const Crafted divided(fp8_block({1e4f, 2e4f}));
  EXPECT_EQ(divided.codes(), Codes{"scale.inverted"});
  EXPECT_NE(divided.finding("scale.inverted").detail.find("weight_scale_inv multiplies"),
            std::string::npos);
  EXPECT_EQ(Crafted(fp8_block({1e-30f, 2e-30f})).codes(), Codes{"weight.magnitude"});
}

TEST(Inspect, FindsBadFp8Codes) {
  std::vector<Tensor> nan = fp8_block({1e-4f, 2e-4f});
  nan[0].bytes[5] = std::byte{0xFF};
  EXPECT_EQ(Crafted(nan).codes(), Codes{"fp8.nan-code"});
  EXPECT_EQ(Crafted(nan).finding("fp8.nan-code").severity, Severity::error);
  std::vector<Tensor> negative_zero = fp8_block({1e-4f, 2e-4f});
  negative_zero[0].bytes[5] = std::byte{0x80};
  EXPECT_EQ(Crafted(negative_zero).codes(), Codes{"fp8.negative-zero"});
  // As FNUZ the same byte is NaN.
  Tensor fnuz = byte_tensor("m.up_proj.weight", DType::f8_e4m3fnuz, {130, 128}, {0x7F, 0x38, 0xB8});
  fnuz.bytes[5] = std::byte{0x80};
  EXPECT_EQ(Crafted({fnuz, f32("m.up_proj.weight_scale_inv", {2, 1}, {1e-4f, 2e-4f})}).codes(),
            Codes{"fp8.nan-code"});
}

TEST(Inspect, FindsTruncatedRanges) {
  const Tensor scale = f32("m.up_proj.weight_scale_inv", {2, 1}, {1e-4f, 2e-4f});
  // 0x77 = 240 is the largest code of FNUZ-scaled weights.
  const Tensor fnuz =
      byte_tensor("m.up_proj.weight", DType::f8_e4m3, {130, 128}, {0x77, 0x38, 0xB8});
  EXPECT_EQ(Crafted({fnuz, scale}).codes(), Codes{"fp8.range-truncated"});
  const Tensor e8m0 = byte_tensor("m.w1.scale", DType::f8_e8m0, {2, 1}, {114, 113});
  const Tensor in_range =
      byte_tensor("m.w1.weight", DType::f8_e4m3, {130, 128}, {0x77, 0x38, 0xB8});
  EXPECT_EQ(Crafted({in_range, e8m0}).codes(), Codes{});
  // 0x66 = 4, 4 in E2M1.
  const Tensor fp4 = byte_tensor("m.w1.weight", DType::i8, {64, 64}, {0x66, 0x2A, 0x31});
  const Tensor mx = byte_tensor("m.w1.scale", DType::f8_e8m0, {64, 4}, {118, 119, 120});
  EXPECT_EQ(Crafted({fp4, mx}).codes(), Codes{"fp4.range-truncated"});
}

TEST(Inspect, FindsE8m0BytesThatAreNotExponents) {
  const Tensor weight = byte_tensor("m.w1.weight", DType::i8, {64, 64}, {0x76, 0x2A, 0x31});
  const auto codes_with = [&](int byte) {
    Tensor scale = byte_tensor("m.w1.scale", DType::f8_e8m0, {64, 4}, {118, 119, 120});
    scale.bytes[7] = static_cast<std::byte>(byte);
    return Crafted({weight, scale}).codes();
  };
  EXPECT_EQ(codes_with(118), Codes{});
  EXPECT_EQ(codes_with(0x00), Codes{"e8m0.zero-byte"});
  EXPECT_EQ(codes_with(0xFF), Codes{"e8m0.nan-byte"});
  // GPT-OSS spells the same bytes U8.
  const Tensor blocks = byte_tensor("experts.down_proj_blocks", DType::u8, {2, 8, 2, 16},
                                    {0x76, 0x2A, 0x31, 0x17, 0x99});
  const Tensor scales =
      byte_tensor("experts.down_proj_scales", DType::u8, {2, 8, 2}, {118, 0x00, 0xFF});
  EXPECT_EQ(Crafted({blocks, scales}).codes(), (Codes{"e8m0.zero-byte", "e8m0.nan-byte"}));
}

TEST(Inspect, FindsScalesThatWereNeverFilledIn) {
  const Tensor weight = byte_tensor("m.w1.weight", DType::i8, {64, 64}, {0x76, 0x2A, 0x31});
  const Tensor scale = byte_tensor("m.w1.scale", DType::f8_e8m0, {64, 4}, {118});
  EXPECT_EQ(Crafted({weight, scale}).codes(), Codes{"scale.constant"});
}

/// An NVFP4 projection as compressed-tensors or ModelOpt stores it.
std::vector<Tensor> nvfp4(const std::string& name, float global, bool modelopt = false,
                          int first_code = 0x76) {
  return {byte_tensor(name + (modelopt ? ".weight" : ".weight_packed"), DType::u8, {64, 64},
                      {first_code, 0x2A, 0x31}),
          byte_tensor(name + ".weight_scale", DType::f8_e4m3, {64, 8}, {0x70, 0x72, 0x6D}),
          f32(name + (modelopt ? ".weight_scale_2" : ".weight_global_scale"),
              modelopt ? Shape{} : Shape{1}, {global})};
}

std::vector<Tensor> join(std::vector<Tensor> left, const std::vector<Tensor>& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

TEST(Inspect, FindsGateAndUpWithTwoGlobalScales) {
  const std::string prefix = "model.layers.0.mlp.experts.0.";
  const auto with = [&](float gate, float up) {
    return Crafted(
        join(nvfp4(prefix + "gate_proj", gate), nvfp4(prefix + "up_proj", up, false, 0x67)));
  };
  EXPECT_EQ(with(2000, 2000).codes(), Codes{});
  EXPECT_EQ(with(2000, 3000).codes(), Codes{"nvfp4.gate-up-global-differ"});
  EXPECT_NE(
      with(2000, 3000).finding("nvfp4.gate-up-global-differ").detail.find("1 of 1 gate/up pairs"),
      std::string::npos);
  EXPECT_NE(with(2000, 3000).finding("nvfp4.gate-up-global-differ").detail.find("median 1.500"),
            std::string::npos);
}

TEST(Inspect, FindsGlobalScalesOfTheOtherConvention) {
  EXPECT_EQ(Crafted(nvfp4("m.up_proj", 1.0f / 2000)).codes(), Codes{"nvfp4.global-inverted"});
  EXPECT_EQ(Crafted(nvfp4("m.up_proj", 2000, true)).codes(), Codes{"nvfp4.global-inverted"});
  EXPECT_EQ(Crafted(nvfp4("m.up_proj", 1.0f / 2000, true)).codes(), Codes{});
}

TEST(Inspect, FindsSubnormalAndNegativeBlockScales) {
  std::vector<Tensor> subnormal = nvfp4("m.up_proj", 2000);
  for (std::size_t i = 0; i < 100; ++i) subnormal[1].bytes[i] = std::byte{0x03};
  EXPECT_EQ(Crafted(subnormal).codes(), Codes{"nvfp4.scale-subnormal"});
  std::vector<Tensor> negative = nvfp4("m.up_proj", 2000);
  negative[1].bytes[3] = std::byte{0xF0};
  EXPECT_EQ(Crafted(negative).codes(), Codes{"scale.negative"});
}

TEST(Inspect, FindsZeroBlocksAndZeroWeights) {
  std::vector<Tensor> block = nvfp4("m.up_proj", 2000);
  for (std::size_t i = 8; i < 16; ++i) block[0].bytes[i] = std::byte{0x80};  // one block, +0 and -0
  const Crafted crafted(block);
  EXPECT_EQ(crafted.codes(), Codes{"block.all-zero"});
  EXPECT_NE(crafted.finding("block.all-zero").detail.find("1 of 512 blocks of 1x16"),
            std::string::npos);
  std::vector<Tensor> ragged = fp8_block({1e-4f, 2e-4f});
  std::fill(ragged[0].bytes.begin() + 128 * 128, ragged[0].bytes.end(), std::byte{0});
  EXPECT_NE(Crafted(ragged).finding("block.all-zero").detail.find("1 of 2 blocks of 128x128"),
            std::string::npos);
  std::vector<Tensor> all = fp8_block({1e-4f, 2e-4f});
  std::ranges::fill(all[0].bytes, std::byte{0});
  EXPECT_EQ(Crafted(all).codes(), Codes{"weight.all-zero"});
}

TEST(Inspect, FindsEqualAndEmptyExperts) {
  std::vector<Tensor> tensors;
  for (int expert = 0; expert < 4; ++expert) {
    const int code = expert == 2 ? 0 : 0x40 + expert;  // 2 is empty, 3 becomes equal to 1
    tensors.push_back(byte_tensor(fmt::format("layers.0.mlp.experts.{}.up_proj.weight", expert),
                                  DType::bf16, {4, 4}, {expert == 3 ? 0x41 : code}));
    tensors.back().bytes.resize(32, static_cast<std::byte>(expert == 3 ? 0x41 : code));
  }
  const Crafted crafted(tensors);
  EXPECT_EQ(crafted.codes(), (Codes{"expert.identical", "expert.all-zero", "weight.all-zero"}));
  EXPECT_NE(crafted.finding("expert.identical").detail.find("{1,3}"), std::string::npos);
  EXPECT_NE(crafted.finding("expert.all-zero").detail.find("experts 2 "), std::string::npos);
}

TEST(Inspect, FindsEqualExpertsInAStack) {
  std::vector<std::uint16_t> values(3 * 4 * 6);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<std::uint16_t>(0x3C00 + i);
  std::copy_n(values.begin(), 24, values.begin() + 48);
  const Crafted crafted({make_tensor<std::uint16_t>("layers.0.mlp.experts.down_proj", DType::bf16,
                                                    {3, 4, 6}, values)});
  EXPECT_EQ(crafted.codes(), Codes{"expert.identical"});
  EXPECT_NE(crafted.finding("expert.identical").detail.find("{0,2}"), std::string::npos);
}

TEST(Inspect, FindsGateEqualToUp) {
  const std::string prefix = "layers.0.mlp.experts.0.";
  EXPECT_EQ(
      Crafted(join(nvfp4(prefix + "gate_proj", 2000), nvfp4(prefix + "up_proj", 2000))).codes(),
      Codes{"gate-up.identical"});
  const auto fused = [](const std::function<int(std::size_t)>& value) {
    std::vector<std::uint16_t> values(2 * 4 * 6);
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<std::uint16_t>(0x3C00 + value(i));
    return Crafted({make_tensor<std::uint16_t>("layers.0.mlp.experts.gate_up_proj", DType::bf16,
                                               {2, 4, 6}, values)});
  };
  EXPECT_EQ(fused([](std::size_t i) { return static_cast<int>(i); }).codes(), Codes{});
  const auto at = [](const Crafted& crafted) {
    return crafted.finding("gate-up.identical").detail;
  };
  EXPECT_NE(at(fused([](auto i) { return static_cast<int>(i / 2); })).find("alternating columns"),
            std::string::npos);
  EXPECT_NE(at(fused([](auto i) {
              return static_cast<int>(i / 6 * 3 + i % 3);
            })).find("halves of the columns"),
            std::string::npos);
  EXPECT_NE(at(fused([](auto i) {
              return static_cast<int>(i / 12 * 6 + i % 6);
            })).find("alternating rows"),
            std::string::npos);
  EXPECT_NE(at(fused([](auto i) {
              return static_cast<int>(i / 24 * 12 + i % 12);
            })).find("halves of the rows"),
            std::string::npos);
}

TEST(Inspect, FindsRouterRowsThatTie) {
  std::vector<float> rows{1, 2, 3, 4, 1, 2};
  const Crafted crafted({f32("layers.0.mlp.gate.weight", {3, 2}, rows)});
  EXPECT_EQ(crafted.codes(), Codes{"router.equal-rows"});
  EXPECT_NE(crafted.finding("router.equal-rows").detail.find("{0,2}"), std::string::npos);
}

TEST(Inspect, FindsMissingScalesWrongShapesAndOrphans) {
  EXPECT_EQ(Crafted({fp8_weight("m.up_proj.weight", {8, 16})}).codes(), Codes{"scale.missing"});
  EXPECT_EQ(Crafted({byte_tensor("m.w1.weight", DType::i8, {64, 64}, {0x76, 0x2A})}).codes(),
            Codes{"scale.missing"});
  EXPECT_EQ(Crafted({byte_tensor("experts.down_proj_blocks", DType::u8, {2, 8, 2, 16},
                                 {0x76, 0x2A, 0x31})})
                .codes(),
            (Codes{"scale.missing"}));
  EXPECT_EQ(Crafted({fp8_weight("m.up_proj.weight", {130, 128}),
                     f32("m.up_proj.weight_scale_inv", {3, 1}, {1e-4f, 2e-4f, 3e-4f})})
                .codes(),
            Codes{"scale.shape"});
  EXPECT_EQ(Crafted({f32("m.up_proj.weight_scale_inv", {2, 1}, {1e-4f, 2e-4f})}).codes(),
            Codes{"scale.orphan"});
  const std::vector<Tensor> both =
      join(nvfp4("m.up_proj", 2000), {f32("m.up_proj.weight", {1, 2}, {1, 2})});
  EXPECT_EQ(Crafted(both).codes(), Codes{"weight.ambiguous"});
  std::vector<Tensor> no_global = nvfp4("m.up_proj", 2000);
  no_global.pop_back();
  EXPECT_TRUE(Crafted(no_global).codes().contains("scale.missing"));
}

TEST(Inspect, ReadsTheBlockSizeFromTheConfig) {
  const std::vector<Tensor> tensors{
      fp8_weight("m.up_proj.weight", {64, 64}),
      f32("m.up_proj.weight_scale_inv", {2, 2}, {1e-4f, 2e-4f, 3e-4f, 4e-4f})};
  EXPECT_EQ(Crafted(tensors, R"({"quantization_config": {"weight_block_size": [32, 32]}})").codes(),
            Codes{});
  EXPECT_EQ(Crafted(tensors,
                    R"({"text_config": {"quantization_config": {"weight_block_size": [32, 32]}}})")
                .codes(),
            Codes{});
  EXPECT_EQ(
      Crafted(tensors, R"({"quantization_config": {"weight_block_size": [128, 128]}})").codes(),
      Codes{"scale.block-size"});
  EXPECT_EQ(Crafted(tensors, "{not json").codes(), Codes{"config.unreadable"});
}

TEST(Inspect, FindsF32ScalesThatShouldBePowersOfTwo) {
  constexpr std::string_view kConfig = R"({"quantization_config": {"scale_fmt": "ue8m0"}})";
  EXPECT_EQ(Crafted(fp8_block({0x1p-13f, 0x1p-12f}), kConfig).codes(), Codes{});
  EXPECT_EQ(Crafted(fp8_block({0x1p-13f, 1e-4f}), kConfig).codes(),
            Codes{"ue8m0.not-power-of-two"});
}

TEST(Inspect, FindsNanInOtherTensors) {
  const float nan = std::bit_cast<float>(kNan);
  EXPECT_EQ(Crafted({f32("m.norm.weight", {2}, {1, nan})}).codes(), Codes{"tensor.nan"});
  EXPECT_EQ(Crafted({f32("m.norm.weight", {2}, {1, INFINITY})}).codes(), Codes{"tensor.inf"});
  EXPECT_EQ(Crafted({f32("m.q_proj.weight", {1, 2}, {1, nan})}).codes(), Codes{"weight.nan"});
  EXPECT_EQ(Crafted({f32("m.q_proj.weight", {1, 2}, {1, INFINITY})}).codes(), Codes{"weight.inf"});
}

TEST(Inspect, FindsMissingAndSurplusExperts) {
  const auto experts = [](const std::vector<int>& up, const std::vector<int>& down) {
    std::vector<Tensor> tensors;
    for (const int e : up)
      tensors.push_back(f32(fmt::format("l.0.experts.{}.up_proj.weight", e), {1, 2},
                            {1, 1.0f + static_cast<float>(e)}));
    for (const int e : down)
      tensors.push_back(f32(fmt::format("l.0.experts.{}.down_proj.weight", e), {1, 2},
                            {2, 1.0f + static_cast<float>(e)}));
    return tensors;
  };
  EXPECT_EQ(Crafted(experts({0, 1, 2}, {0, 1, 2})).codes(), Codes{});
  EXPECT_NE(
      Crafted(experts({0, 2}, {0, 2})).finding("experts.missing").detail.find("experts 1 of 3"),
      std::string::npos);
  EXPECT_NE(
      Crafted(experts({0, 1, 2}, {0, 2})).finding("experts.missing").detail.find("experts 1 lack"),
      std::string::npos);
  constexpr std::string_view kConfig = R"({"num_experts": 2})";
  EXPECT_EQ(Crafted(experts({0, 1, 2}, {0, 1, 2}), kConfig).codes(), Codes{"experts.surplus"});
  EXPECT_EQ(Crafted(experts({0}, {0}), kConfig).codes(), Codes{"experts.missing"});
}

TEST(Inspect, FindsOddOffsets) {
  const TempFolder folder;
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})";
  write_bytes(
      folder / "odd.safetensors",
      safetensors_bytes(header + std::string(8 - header.size() % 8, ' '), std::string(5, '\1')));
  const InspectReport report = inspect(folder / "odd.safetensors", {});
  ASSERT_EQ(report.findings.size(), 1U);
  EXPECT_EQ(report.findings[0].code, "file.odd-offset");
  EXPECT_EQ(report.findings[0].first, "b");
}

class BrokenIndex : public ::testing::Test {
 protected:
  BrokenIndex() {
    SynthOptions options;
    options.model = "nemotron-h-fp8";
    SynthWriteOptions how;
    how.shard_bytes = 150'000;
    write_checkpoint(plan_checkpoint(options), model(), how);
    index_ = nlohmann::json::parse(testing::read_bytes(model() / "model.safetensors.index.json"));
  }
  fs::path model() const { return folder_ / "model"; }
  Codes codes() {
    write_bytes(model() / "model.safetensors.index.json", index_.dump());
    Codes codes;
    for (const Finding& finding : inspect(model(), {}).findings) codes.insert(finding.code);
    return codes;
  }

  TempFolder folder_;
  nlohmann::json index_;
};

TEST_F(BrokenIndex, IsSoundBeforeItIsBroken) {
  EXPECT_EQ(codes(), Codes{});
  EXPECT_EQ(inspect(model() / "model.safetensors.index.json", {}).findings.size(), 0U);
}

TEST_F(BrokenIndex, FindsAWrongTotalSize) {
  index_["metadata"]["total_size"] = 12;
  EXPECT_EQ(codes(), Codes{"index.total-size"});
}

TEST_F(BrokenIndex, FindsUnlistedTensors) {
  index_["weight_map"].erase("lm_head.weight");
  EXPECT_EQ(codes(), Codes{"index.unlisted"});
}

TEST_F(BrokenIndex, FindsTensorsThatTheFileDoesNotHave) {
  index_["weight_map"]["ghost.bias"] = "model-00001-of-00003.safetensors";
  EXPECT_EQ(codes(), Codes{"index.missing-tensor"});
}

TEST_F(BrokenIndex, FindsMissingFilesAndGoesOn) {
  index_["weight_map"]["ghost.bias"] = "model-00007-of-00003.safetensors";
  EXPECT_EQ(codes(), Codes{"index.missing-file"});
}

TEST_F(BrokenIndex, FindsTensorsInTwoFiles) {
  const Tensor twice = f32("lm_head.weight", {1}, {1});
  const std::vector<TensorView> views{twice.view()};
  write_safetensors(model() / "extra.safetensors", views, {});
  index_["weight_map"]["lm_head.weight"] = "extra.safetensors";
  const Codes found = codes();
  EXPECT_TRUE(found.contains("index.duplicate"));
}

TEST_F(BrokenIndex, NeverLeavesTheFolder) {
  index_["weight_map"]["ghost.bias"] = "../elsewhere.safetensors";
  EXPECT_THROW(codes(), Error);
}

TEST(Inspect, ShowsTwentyThousandTensorsOnAPage) {
  std::string header = "{";
  std::size_t offset = 0;
  for (int layer = 0; layer < 40; ++layer) {
    for (int expert = 0; expert < 256; ++expert) {
      for (const std::string_view projection : {"up_proj", "down_proj"}) {
        header += fmt::format(
            R"({}"model.layers.{}.mlp.experts.{}.{}.weight":{{"dtype":"BF16","shape":[1,1],"data_offsets":[{},{}]}})",
            offset == 0 ? "" : ",", layer, expert, projection, offset, offset + 2);
        offset += 2;
      }
    }
  }
  header += "}";
  header += std::string((8 - header.size() % 8) % 8, ' ');
  const TempFolder folder;
  write_bytes(folder / "many.safetensors", safetensors_bytes(header, std::string(offset, '\0')));
  InspectOptions options;
  options.values = false;
  const InspectReport report = inspect(folder / "many.safetensors", options);
  EXPECT_EQ(report.tensors, 20480U);
  ASSERT_EQ(report.rows.size(), 2U);
  EXPECT_EQ(report.rows[0].name, "model.layers.{0..39}.mlp.experts.{0..255}.down_proj.weight");
  EXPECT_EQ(report.rows[0].count, 10240);
  EXPECT_EQ(report.rows[0].bytes, 20480U);
  EXPECT_FALSE(report.rows[0].values.has_value());
  EXPECT_LT(std::ranges::count(cli::report_text(report), '\n'), 10);
}

TEST(Inspect, ShowsTheTensorsThatAPatternNames) {
  const Crafted crafted(
      {f32("a.1.weight", {1, 1}, {1}), f32("a.2.weight", {1, 1}, {2}), f32("b.bias", {1}, {3})});
  const auto names = [&](std::string_view pattern) {
    InspectOptions options;
    options.tensor_pattern = pattern;
    std::vector<std::string> shown;
    for (const TensorRow& row : crafted.report(options).rows) shown.push_back(row.name);
    return shown;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names(""), (Names{"a.{1..2}.weight", "b.bias"}));
  EXPECT_EQ(names("weight"), (Names{"a.1.weight", "a.2.weight"}));
  EXPECT_EQ(names("*.2.*"), Names{"a.2.weight"});
  EXPECT_EQ(names("?.bias"), Names{"b.bias"});
  EXPECT_THROW(names("?bias"), Error);
  EXPECT_THROW(names("c"), Error);
}

TEST(Inspect, ThreadsDoNotChangeTheReport) {
  const TempFolder folder;
  SynthOptions synth;
  synth.model = "deepseek-v3";
  write_checkpoint(plan_checkpoint(synth), folder / "model", {});
  InspectOptions one;
  one.threads = 1;
  InspectOptions many;
  many.threads = 3;
  EXPECT_EQ(cli::report_json(inspect(folder / "model", one)),
            cli::report_json(inspect(folder / "model", many)));
}

TEST(Inspect, NamesTheFormatOfEveryWeightOfEverySyntheticModelAndFindsNothing) {
  const std::map<std::string_view, std::string_view> formats{
      {"gpt-oss-20b", "MXFP4 (GPT-OSS) [6, 320, 96]"},
      {"deepseek-v3", "FP8 blocks 128x128 [136, 200]"},
      {"deepseek-v4", "MXFP4 [96, 160]"},
      {"qwen3-235b-fp8-channel", "FP8 per channel [88, 152]"},
      {"qwen3-235b-nvfp4", "NVFP4 (compressed-tensors) [80, 112]"},
      {"nemotron-h-fp8", "FP8 per tensor [120, 136]"},
      {"nemotron-h-nvfp4", "NVFP4 (ModelOpt) [112, 144]"}};
  for (const SynthModel& model : synth_models()) {
    const TempFolder folder;
    SynthOptions options;
    options.model = model.name;
    write_checkpoint(plan_checkpoint(options), folder / "model", {});
    const InspectReport report = inspect(folder / "model", {});
    for (const Finding& finding : report.findings) {
      ADD_FAILURE() << model.name << ": " << finding.code << " " << finding.first << " "
                    << finding.detail;
    }
    if (!formats.contains(model.name)) continue;
    const auto has_format = [&](const TensorRow& row) {
      return row.meaning == formats.at(model.name);
    };
    EXPECT_TRUE(std::ranges::any_of(report.rows, has_format)) << model.name;
  }
}

TEST(Inspect, FindsWhatSynthWasAskedToMakeOdd) {
  const TempFolder folder;
  SynthOptions options;
  options.model = "qwen3-235b-nvfp4";
  options.split_global_scales = true;
  options.router_ties = 1;
  write_checkpoint(plan_checkpoint(options), folder / "model", {});
  Codes codes;
  for (const Finding& finding : inspect(folder / "model", {}).findings) codes.insert(finding.code);
  EXPECT_EQ(codes, (Codes{"nvfp4.gate-up-global-differ", "router.equal-rows"}));
}

TEST(Inspect, ReportsInWordsAndAsJson) {
  const Crafted crafted(fp8_block({1e-4f, std::bit_cast<float>(kNan)}));
  const InspectReport report = crafted.report();
  const std::string text = cli::report_text(report);
  EXPECT_NE(text.find("FP8 blocks 128x128 [130, 128]"), std::string::npos);
  EXPECT_NE(text.find("error   scale.nan"), std::string::npos);
  EXPECT_NE(text.find("[NaN 1]"), std::string::npos);
  const nlohmann::json json = cli::report_json(report);
  EXPECT_EQ(json["findings"][0]["code"], "scale.nan");
  EXPECT_EQ(json["findings"][0]["severity"], "error");
  EXPECT_EQ(json["rows"][1]["values"]["nans"], 1);
  EXPECT_EQ(json["tensors"], 2);
}

TEST(Inspect, RefusesWhatItCannotRead) {
  const TempFolder folder;
  EXPECT_THROW(inspect(folder / "absent", {}), Error);
  EXPECT_THROW(inspect(folder.path(), {}), Error);
  write_bytes(folder / "cut.safetensors", std::string("\x10\0\0\0\0\0\0\0{", 9));
  EXPECT_THROW(inspect(folder / "cut.safetensors", {}), Error);
}

}  // namespace
}  // namespace moeref
