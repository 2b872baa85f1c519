// moeref quantize and dequantize as a user runs them: what they write and give back.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "quant/formats.hpp"
#include "quant/quantize.hpp"
#include "tests/cli/editable_file.hpp"
#include "tests/cli/layout_command.hpp"
#include "tests/cli/number_file.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref {
namespace {

using namespace testing;

Tensor numbers_of(const std::string& name, const Shape& shape, const std::vector<float>& values) {
  return make_tensor<float>(name, DType::f32, shape, values);
}

std::vector<std::uint8_t> bytes_of(const Tensor& tensor) {
  std::vector<std::uint8_t> bytes;
  for (const std::byte byte : tensor.bytes) bytes.push_back(std::to_integer<std::uint8_t>(byte));
  return bytes;
}

TEST(Quantize, WritesCodesWorkedOutByHand) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  write_tensors(path("in"), {numbers_of("x", {2, 4}, {448, 1, -0.5f, 0, 4.48f, -4.48f, 0.01f, 0})});
  const Outcome outcome =
      moeref_with("quantize " + path("in") + " --quantizer vllm_fp8_token -o " + path("out"));
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  EXPECT_EQ(outcome.out,
            "vllm_fp8_token: upper_bound=0\n  x [2, 4] -> x F8_E4M3 [2, 4], x_scale "
            "F32 [2, 1]\n-> " +
                path("out") + "\n");
  EditableFile out(path("out"));
  EXPECT_EQ(bytes_of(out["x"]),
            (std::vector<std::uint8_t>{0x7E, 0x38, 0xB0, 0x00, 0x7E, 0xFE, 0x38, 0x00}));
  EXPECT_EQ(out.get<float>("x_scale", 0), 1.0f);
  EXPECT_EQ(out.get<float>("x_scale", 1), 4.48f / 448.0f);

  std::vector<float> row(32, 0.0f);
  for (std::size_t i = 0; i < 8; ++i)
    row[i] = std::vector<float>{6, 0.5f, 1, -1.5f, 3, 4, 2, -6}[i];
  write_tensors(path("in"), {numbers_of("x", {1, 32}, row)});
  expect_done("quantize " + path("in") + " --quantizer ocp_mx -q -o " + path("out"));
  out = EditableFile(path("out"));
  std::vector<std::uint8_t> codes{0x17, 0xB2, 0x65, 0xF4};
  codes.resize(16);
  EXPECT_EQ(bytes_of(out["x"]), codes);
  EXPECT_EQ(bytes_of(out["x_scale"]), (std::vector<std::uint8_t>{127}));
}

TEST(Quantize, WritesSpecialValuesAsExplained) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  write_tensors(path("in"), {numbers_of("x", {3, 2}, {0, -0.0f, infinity, 1, nan, 448})});
  expect_done("quantize " + path("in") + " --quantizer vllm_fp8_token -q -o " + path("out"));
  EditableFile out(path("out"));
  EXPECT_EQ(bytes_of(out["x"]), (std::vector<std::uint8_t>{0x00, 0x80, 0x7E, 0x00, 0x7E, 0x7E}));
  EXPECT_EQ(out.get<float>("x_scale", 0), 1.0f / (448.0f * 512.0f));
  EXPECT_EQ(out.get<float>("x_scale", 1), infinity);
  EXPECT_EQ(out.get<float>("x_scale", 2), 1.0f);
  expect_done("dequantize " + path("out") + " -q -o " + path("back"));
  EditableFile back(path("back"));
  EXPECT_EQ(back.get<std::uint32_t>("x", 0), 0u);
  EXPECT_EQ(back.get<std::uint32_t>("x", 1), 0x8000'0000u);
  EXPECT_EQ(back.get<float>("x", 2), infinity);
  EXPECT_TRUE(std::isnan(back.get<float>("x", 3)));  // 0 * infinity
  EXPECT_EQ(back.get<float>("x", 4), 448.0f);
  EXPECT_EQ(back.get<float>("x", 5), 448.0f);
}

TEST(Quantize, TakesOptionsToTheQuantizer) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  const Tensor numbers = random_numbers("x", Format::f32, {3, 128}, 5);
  write_tensors(path("in"), {numbers});
  const std::string start = "quantize " + path("in") + " -q -o " + path("out") + " --quantizer ";
  expect_done(start + "vllm_fp8_token --option upper_bound=2");
  EditableFile out(path("out"));
  for (std::size_t row = 0; row < 3; ++row) {
    ASSERT_GT(amax_of(values_of(matrices_of(numbers, Format::f32)[0])), 2.0f);
    EXPECT_EQ(out.get<float>("x_scale", row), 2.0f / 448.0f);
  }
  EXPECT_EQ(json::parse(out.metadata.at("params"))["options"], (json{{"upper_bound", "2"}}));
  expect_done(start + "vllm_fp8_group --option group=32 --option scale=ue8m0");
  out = EditableFile(path("out"));
  EXPECT_EQ(out["x_scale"].shape, (Shape{3, 4}));
  for (std::size_t i = 0; i < 12; ++i) {
    EXPECT_EQ(out.get<std::uint32_t>("x_scale", i) & 0x807F'FFFFu, 0u) << i;
  }
}

TEST(Quantize, TakesTheTensorsNamed) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  const std::vector<Tensor> numbers = {random_numbers("a", Format::bf16, {2, 64}, 1),
                                       random_numbers("b", Format::f32, {2, 64}, 2),
                                       random_numbers("c", Format::f16, {2, 64}, 3)};
  write_tensors(path("in"), numbers);
  const std::string start = "quantize " + path("in") + " --quantizer vllm_fp8_token -o ";
  expect_done(start + path("all") + " -q");
  EXPECT_EQ(json_of(start + path("some") + " --tensor c --tensor a")["copied"], 1);
  EditableFile all(path("all"));
  EditableFile some(path("some"));
  EXPECT_EQ(some.tensors.size(), 5u);
  EXPECT_EQ(some["b"].dtype, DType::f32);
  EXPECT_TRUE(some["b"].bytes == numbers[1].bytes);
  for (const char* name : {"a", "a_scale", "c", "c_scale"}) {
    EXPECT_TRUE(some[name].bytes == all[name].bytes) << name;
  }
  EXPECT_EQ(all.tensors.size(), 6u);
  expect_done("dequantize " + path("some") + " -q -o " + path("back"));
  EditableFile back(path("back"));
  EXPECT_EQ(back.tensors.size(), 3u);
  EXPECT_TRUE(back["b"].bytes == numbers[1].bytes);
}

TEST(Quantize, PutsScalesThroughStepsAndBack) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  constexpr std::int64_t kRows = 130;
  constexpr std::int64_t kScales = 6;
  write_tensors(path("in"), {random_numbers("x", Format::bf16, {2, kRows, 16 * kScales}, 9)});
  const std::string start =
      "quantize " + path("in") + " -q --quantizer flashinfer_nvfp4 --scale amax -o ";
  expect_done(start + path("rows"));
  expect_done(start + path("tiles") + " --scale-steps swizzle_128x4");
  EditableFile rows(path("rows"));
  EditableFile tiles(path("tiles"));
  EXPECT_TRUE(tiles["x"].bytes == rows["x"].bytes);
  // Tiles of 128 rows x 4 scales, the rest zero.
  std::vector<std::byte> expected(2 * 256 * 8);
  for (std::int64_t i = 0; i < 2 * kRows * kScales; ++i) {
    const std::int64_t row = i / kScales % kRows;
    const std::int64_t col = i % kScales;
    const std::int64_t tile = (i / (kRows * kScales) * 2 + row / 128) * 2 + col / 4;
    const std::int64_t at = tile * 512 + row % 32 * 16 + row % 128 / 32 * 4 + col % 4;
    expected[static_cast<std::size_t>(at)] = rows["x_scale"].bytes[static_cast<std::size_t>(i)];
  }
  EXPECT_TRUE(tiles["x_scale"].bytes == expected);
  expect_done("dequantize " + path("rows") + " -q -o " + path("a"));
  expect_done("dequantize " + path("tiles") + " -q -o " + path("b"));
  EXPECT_TRUE(EditableFile(path("a"))["x"].bytes == EditableFile(path("b"))["x"].bytes);
  // Row 130 is a pad.
  tiles["x_scale"].bytes[2 * 512 + 2 * 16] = std::byte{1};
  tiles.write(path("wrong"));
  expect_refused("dequantize " + path("wrong") + " -o " + path("c"),
                 {"wrong: x_scale", "1 pads", "swizzle_128x4"});
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"a", "b", "in", "rows", "tiles", "wrong"}));
}

TEST(Quantize, TakesCodesOfFp8) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  std::vector<std::uint8_t> codes(64);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(2 * i);
  write_tensors(path("in"), {make_tensor<std::uint8_t>("x", DType::f8_e4m3, {2, 32}, codes)});
  for (const char* quantizer : {"flashinfer_fp8_to_fp4", "cutedsl_fp8_to_fp4"}) {
    expect_done("quantize " + path("in") + " -q --scale 6 -o " + path("out") + " --quantizer " +
                quantizer);
    EditableFile out(path("out"));
    const ValueMatrix values{"x", Format::e4m3, 2, 32, std::as_bytes(std::span(codes))};
    const Quantized q = quantize(quantizer, {}, values, 6.0f, 1);
    EXPECT_TRUE(out["x"].bytes == q.codes);
    EXPECT_TRUE(out["x_scale"].bytes == q.scales);
    EXPECT_EQ(out.get<float>("x_global_scale", 0), 6.0f);
  }
}

TEST(Quantize, TakesBytesForFp8OnlyWhereNamed) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  const std::vector<std::uint8_t> codes(64, 0x38);
  write_tensors(path("in"), {make_tensor<std::uint8_t>("x", DType::f8_e4m3, {2, 32}, codes),
                             make_tensor<std::uint8_t>("bytes", DType::u8, {2, 32}, codes)});
  // A file after --option is the file.
  const std::string command = "quantize -q --scale 6 --quantizer flashinfer_fp8_to_fp4 -o " +
                              path("out") + " --option math=precise ";
  expect_done(command + path("in"));
  EXPECT_EQ(EditableFile(path("out"))["bytes"].dtype, DType::u8);
  EXPECT_TRUE(EditableFile(path("out"))["bytes"].bytes.size() == 64);
  expect_done(command + "--tensor bytes " + path("in"));
  EXPECT_EQ(EditableFile(path("out"))["x"].dtype, DType::f8_e4m3);
  EXPECT_EQ(EditableFile(path("out"))["bytes_scale"].bytes.size(), 4u);
}

TEST(Quantize, KeepsMatricesWithoutElements) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  write_tensors(path("in"), {numbers_of("no_cols", {3, 0}, {}), numbers_of("no_rows", {0, 128}, {}),
                             numbers_of("no_matrices", {0, 2, 128}, {})});
  for (const char* quantizer : {"modelopt_mxfp4", "modelopt_nvfp4", "flashinfer_nvfp4_token",
                                "vllm_fp8_group", "sglang_fp8_tensor"}) {
    expect_done("quantize " + path("in") + " -q -o " + path("out") + " --quantizer " + quantizer);
    expect_done("dequantize " + path("out") + " -q -o " + path("back"));
    EditableFile back(path("back"));
    ASSERT_EQ(back.tensors.size(), 3u) << quantizer;
    EXPECT_EQ(back["no_cols"].shape, (Shape{3, 0}));
    EXPECT_EQ(back["no_rows"].shape, (Shape{0, 128}));
    EXPECT_EQ(back["no_matrices"].shape, (Shape{0, 2, 128}));
  }
}

}  // namespace
}  // namespace moeref
