// Files of every form that moeref quantize writes: the library's codes under their names, and back
// through moeref dequantize.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "quant/formats.hpp"
#include "quant/quantize.hpp"
#include "simd/kernels.hpp"
#include "tests/cli/editable_file.hpp"
#include "tests/cli/layout_command.hpp"
#include "tests/cli/number_file.hpp"
#include "tests/io/temp_folder.hpp"

namespace moeref {
namespace {

using namespace testing;

/// A way to quantize, and what it calls its parts.
struct Form {
  std::string title;
  std::string quantizer;
  std::vector<std::string> options;
  std::string scale;  ///< --scale
  Format input = Format::bf16;
  std::string codes_suffix;
  std::string global_suffix;
};

void PrintTo(const Form& form, std::ostream* out) { *out << form.title; }

std::string command_of(const Form& form) {
  std::string command = " --quantizer " + form.quantizer;
  for (const std::string& option : form.options) command += " --option " + option;
  if (!form.scale.empty()) command += " --scale " + form.scale;
  return command;
}

constexpr int kStack = 3;

/// A matrix, a stack of them, and what no quantizer takes.
std::vector<Tensor> numbers_for(Format input) {
  const std::vector<float> bias{1.5f, -2.0f, 0.25f};
  const std::vector<std::int32_t> ids{1, 2, 3, 4};
  return {random_numbers("m", input, {5, 256}, 11),
          random_numbers("deep.stack", input, {kStack, 4, 128}, 12),
          make_tensor<float>("bias", DType::f32, {3}, bias),
          make_tensor<std::int32_t>("ids", DType::i32, {2, 2}, ids)};
}

/// The f32 that --scale stands for.
std::optional<float> scale_of(const Form& form, const ValueMatrix& matrix) {
  if (form.scale.empty()) return std::nullopt;
  if (form.scale != "amax") return std::stof(form.scale);
  const float amax = amax_of(values_of(matrix));
  if (form.quantizer == "sglang_fp8_static") return amax / 448.0f;
  if (form.quantizer == "flashinfer_fp8_static_moe") return 448.0f * (1.0f / amax);
  const float divisor = 2688.0f * (1.0f / amax);
  return form.options == std::vector<std::string>{"global_scale=inverted"} ? 1.0f / divisor
                                                                           : divisor;
}

/// The value of a code, from the definition of the format.
double value_of(const std::string& format, std::uint32_t code) {
  struct Bits {
    int exponent, mantissa, bias;
  };
  if (format == "f32") return std::bit_cast<float>(code);
  if (format == "e8m0") return std::ldexp(1.0, static_cast<int>(code) - 127);
  const Bits bits = format == "e2m1"       ? Bits{2, 1, 1}
                    : format == "e5m2"     ? Bits{5, 2, 15}
                    : format == "e4m3fnuz" ? Bits{4, 3, 8}
                                           : Bits{4, 3, 7};
  const std::uint32_t mantissa = code & ((1u << bits.mantissa) - 1);
  const auto exponent = static_cast<int>(code >> bits.mantissa & ((1u << bits.exponent) - 1));
  const double fraction = std::ldexp(mantissa, -bits.mantissa);
  const double magnitude = exponent == 0 ? std::ldexp(fraction, 1 - bits.bias)
                                         : std::ldexp(1.0 + fraction, exponent - bits.bias);
  return (code >> (bits.exponent + bits.mantissa) & 1u) != 0 ? -magnitude : magnitude;
}

/// Codes x scales of a tensor in a quantized file, exact but for a division, from the metadata.
std::vector<double> values_in(const SafetensorsFile& file, const json& entry) {
  const auto shape = entry["shape"].get<Shape>();
  const std::int64_t rows = shape[shape.size() - 2];
  const std::int64_t cols = shape.back();
  const TensorView& codes = file.at(entry["codes"].get<std::string>());
  const TensorView& scales = file.at(entry["scales"].get<std::string>());
  const std::string code_format = entry["code_format"];
  const std::string scale_format = entry["scale_format"];
  const auto block = [&](const char* key, std::int64_t size) {
    return entry[key] == 0 ? size : entry[key].get<std::int64_t>();
  };
  const std::int64_t block_rows = block("block_rows", rows);
  const std::int64_t block_cols = block("block_cols", cols);
  const std::int64_t row_blocks = ceil_div(rows, block_rows);
  const std::int64_t col_blocks = ceil_div(cols, block_cols);
  std::vector<double> values;
  for (std::int64_t i = 0; i < element_count(shape); ++i) {
    const std::int64_t matrix = i / (rows * cols);
    const std::int64_t row = i / cols % rows;
    std::uint32_t code = codes.at<std::uint8_t>(code_format == "e2m1" ? i / 2 : i);
    if (code_format == "e2m1") code = i % 2 == 0 ? code & 15u : code >> 4;
    const std::int64_t number =
        (matrix * row_blocks + row / block_rows) * col_blocks + i % cols / block_cols;
    const std::uint32_t scale =
        scale_format == "f32" ? scales.at<std::uint32_t>(number) : scales.at<std::uint8_t>(number);
    double value = value_of(code_format, code) * value_of(scale_format, scale);
    if (entry["global_rule"] != "none") {
      const TensorView& global = file.at(entry["global"].get<std::string>());
      const bool one_a_row = global.size() == element_count(shape) / cols;
      const double factor = global.at<float>(one_a_row ? i / cols : matrix);
      value = entry["global_rule"] == "multiply" ? value * factor : value / factor;
    }
    values.push_back(value);
  }
  return values;
}

class QuantizeForm : public ::testing::TestWithParam<Form> {};

TEST_P(QuantizeForm, WritesTheCodesOfTheLibrary) {
  const Form& form = GetParam();
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  const std::vector<Tensor> numbers = numbers_for(form.input);
  write_tensors(path("in"), numbers);
  const json report = json_of("quantize " + path("in") + command_of(form) + " -o " + path("out"));
  EXPECT_EQ(report["file"], path("out"));
  EXPECT_EQ(report["copied"], 2);
  EXPECT_EQ(report["quantizer"], form.quantizer);
  EditableFile out(path("out"));
  EXPECT_EQ(out.metadata.at("op"), "quantized_tensors");
  const json params = json::parse(out.metadata.at("params"));
  ASSERT_EQ(params["tensors"].size(), 2u);
  std::set<std::string> names{"bias", "ids"};
  for (const Tensor& tensor : {numbers[0], numbers[1]}) {
    const json& entry = params["tensors"][tensor.name == "m" ? 1 : 0];
    EXPECT_EQ(entry["name"], tensor.name);
    EXPECT_EQ(entry["shape"], json(tensor.shape));
    EXPECT_EQ(entry["codes"], tensor.name + form.codes_suffix);
    EXPECT_EQ(entry["scales"], tensor.name + "_scale");
    EXPECT_EQ(entry.value("global", ""),
              form.global_suffix.empty() ? "" : tensor.name + form.global_suffix);
    std::vector<std::byte> codes;
    std::vector<std::byte> scales;
    std::vector<float> global;
    Quantized q;
    for (const ValueMatrix& matrix : matrices_of(tensor, form.input)) {
      q = quantize(form.quantizer, form.options, matrix, scale_of(form, matrix), 1);
      codes.insert(codes.end(), q.codes.begin(), q.codes.end());
      scales.insert(scales.end(), q.scales.begin(), q.scales.end());
      global.insert(global.end(), q.global.begin(), q.global.end());
    }
    const bool packed = q.form.codes == Format::e2m1;
    Shape code_shape = tensor.shape;
    if (packed) code_shape.back() /= 2;
    Shape scale_shape = tensor.shape;
    scale_shape[scale_shape.size() - 2] = q.row_blocks;
    scale_shape.back() = q.col_blocks;
    const Tensor& stored = out[tensor.name + form.codes_suffix];
    EXPECT_EQ(stored.dtype, stored_dtype(q.form.codes));
    EXPECT_EQ(stored.shape, code_shape);
    EXPECT_TRUE(stored.bytes == codes);
    const Tensor& stored_scales = out[tensor.name + "_scale"];
    EXPECT_EQ(stored_scales.dtype, stored_dtype(q.form.scales));
    EXPECT_EQ(stored_scales.shape, scale_shape);
    EXPECT_TRUE(stored_scales.bytes == scales);
    names.insert({stored.name, stored_scales.name});
    if (form.global_suffix.empty()) continue;
    const Tensor& stored_global = out[tensor.name + form.global_suffix];
    names.insert(stored_global.name);
    EXPECT_EQ(stored_global.dtype, DType::f32);
    const auto bytes = std::as_bytes(std::span(global));
    EXPECT_TRUE(stored_global.bytes == std::vector<std::byte>(bytes.begin(), bytes.end()));
    Shape global_shape(tensor.shape.begin(), tensor.shape.end() - 2);
    if (q.form.global == GlobalScaleOf::row) global_shape.push_back(q.rows);
    EXPECT_EQ(stored_global.shape, global_shape.empty() ? Shape{1} : global_shape);
  }
  for (const auto& [name, tensor] : out.tensors) EXPECT_EQ(names.erase(name), 1u) << name;
  EXPECT_TRUE(names.empty()) << *names.begin();
  EXPECT_TRUE(out["bias"].bytes == numbers[2].bytes);
  EXPECT_TRUE(out["ids"].bytes == numbers[3].bytes);
}

TEST_P(QuantizeForm, ComesBackAsCodesTimesScales) {
  const Form& form = GetParam();
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  const std::vector<Tensor> numbers = numbers_for(form.input);
  write_tensors(path("in"), numbers);
  expect_done("quantize " + path("in") + command_of(form) + " -q -o " + path("codes"));
  const json report = json_of("dequantize " + path("codes") + " -o " + path("f32"));
  EXPECT_EQ(report["tensors"], 2);
  EXPECT_EQ(report["copied"], 2);
  expect_done("dequantize " + path("codes") + " --to f64 -q -o " + path("f64"));
  const auto codes = SafetensorsFile::open(path("codes"));
  EditableFile f32(path("f32"));
  EditableFile f64(path("f64"));
  EXPECT_EQ(f32.tensors.size(), 4u);
  EXPECT_TRUE(f32["ids"].bytes == numbers[3].bytes);
  const json params = json::parse(codes->metadata().at("params"));
  for (const json& entry : params["tensors"]) {
    const std::string name = entry["name"];
    const Tensor& original = numbers[name == "m" ? 0 : 1];
    const std::vector<double> values = values_in(*codes, entry);
    EXPECT_EQ(f32[name].dtype, DType::f32);
    EXPECT_EQ(f64[name].dtype, DType::f64);
    ASSERT_EQ(f32[name].shape, original.shape);
    ASSERT_EQ(f64[name].shape, original.shape);
    const bool fp4 = entry["code_format"] == "e2m1";
    std::size_t i = 0;
    for (const ValueMatrix& matrix : matrices_of(original, form.input)) {
      const std::vector<float> wanted = values_of(matrix);
      const float amax = amax_of(wanted);
      for (const float number : wanted) {
        const auto rounded = static_cast<float>(values[i]);
        ASSERT_EQ(std::bit_cast<std::uint32_t>(f32.get<float>(name, i)),
                  std::bit_cast<std::uint32_t>(rounded))
            << name << " " << i << ": " << f32.get<float>(name, i) << " for " << values[i];
        ASSERT_EQ(f64.get<double>(name, i), values[i]) << name << " " << i;
        // A quarter of the largest is the wider half of a step of FP4; FP8 has 2 or 3 bits.
        const float bound =
            fp4 ? 0.26f * amax
                : std::fabs(number) * (entry["code_format"] == "e5m2" ? 0.26f : 0.063f) +
                      5e-6f * amax;
        ASSERT_LE(std::fabs(rounded - number), bound) << name << " " << i << ": " << number;
        ++i;
      }
    }
    ASSERT_EQ(i, values.size());
  }
}

TEST_P(QuantizeForm, DoesNotDependOnThreadsOrInstructionSet) {
  const Form& form = GetParam();
  const TempFolder folder;
  const auto path = [&](const char* name) { return (folder / name).string(); };
  write_tensors(path("in"), {random_numbers("m", form.input, {300, 256}, 21),
                             random_numbers("n", form.input, {2, 7, 384}, 22)});
  const std::string quantize = "quantize " + path("in") + command_of(form) + " -q -o ";
  const Outcome first = moeref_with(quantize + path("first") + " --threads 1", "MOEREF_ISA=scalar");
  ASSERT_EQ(first.code, 0) << first.error;
  expect_done("dequantize " + path("first") + " -q --threads 1 -o " + path("values"));
  const std::string codes = read_bytes(path("first"));
  const std::string values = read_bytes(path("values"));
  for (const char* const* isa = simd::available_isas(); *isa != nullptr; ++isa) {
    for (const char* threads : {"1", "3"}) {
      const std::string set = std::string("MOEREF_ISA=") + *isa;
      const std::string rest = std::string(" --threads ") + threads;
      ASSERT_EQ(moeref_with(quantize + path("out") + rest, set).code, 0);
      EXPECT_TRUE(read_bytes(path("out")) == codes) << set << rest;
      ASSERT_EQ(
          moeref_with("dequantize " + path("first") + " -q -o " + path("back") + rest, set).code,
          0);
      EXPECT_EQ(EditableFile(path("back"))["m"].bytes, EditableFile(path("values"))["m"].bytes)
          << set << rest;
      EXPECT_TRUE(read_bytes(path("back")) == values) << set << rest;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Every, QuantizeForm,
    ::testing::Values(
        Form{"fp8_tensor_f32", "sglang_fp8_tensor", {}, "", Format::f32, "", ""},
        Form{"fp8_tensor_given",
             "sglang_fp8_static",
             {"math=precise"},
             "0.0195",
             Format::bf16,
             "",
             ""},
        Form{"fp8_tensor_amax", "sglang_fp8_static", {}, "amax", Format::f16, "", ""},
        Form{"fp8_tensor_divides",
             "flashinfer_fp8_static_moe",
             {},
             "amax",
             Format::bf16,
             "",
             "_global_scale"},
        Form{"fp8_token_f16", "vllm_fp8_token", {}, "", Format::f16, "", ""},
        Form{"fp8_group_bf16", "vllm_fp8_group", {}, "", Format::bf16, "", ""},
        Form{"fp8_group_ue8m0",
             "aiter_hip_fp8_group",
             {"scale=ue8m0", "elements=e4m3fnuz", "group=64"},
             "",
             Format::f32,
             "",
             ""},
        Form{"fp8_block", "deepgemm_fp8_block", {}, "", Format::f32, "", ""},
        Form{"fp8_block_ragged",
             "compressed_tensors_fp8",
             {"strategy=block"},
             "",
             Format::bf16,
             "",
             ""},
        Form{"mxfp8", "flashinfer_mxfp8", {}, "", Format::bf16, "", ""},
        Form{"mx_e5m2", "nvidia_mx", {"elements=e5m2"}, "", Format::f32, "", ""},
        Form{"mxfp4_f32", "modelopt_mxfp4", {}, "", Format::f32, "", ""},
        Form{"mxfp4_packed", "compressed_tensors_mxfp4", {}, "", Format::bf16, "_packed", ""},
        Form{"mxfp4_f16", "flashinfer_mxfp4", {"math=precise"}, "", Format::f16, "", ""},
        Form{"nvfp4_given", "flashinfer_nvfp4", {}, "300.5", Format::bf16, "", "_global_scale"},
        Form{"nvfp4_amax",
             "flashinfer_nvfp4",
             {"quant_math=exact"},
             "amax",
             Format::f16,
             "",
             "_global_scale"},
        Form{"nvfp4_inverted",
             "flashinfer_nvfp4",
             {"global_scale=inverted"},
             "amax",
             Format::bf16,
             "",
             "_global_scale"},
        Form{"nvfp4_own", "modelopt_nvfp4", {}, "", Format::f32, "", "_scale_2"},
        Form{"nvfp4_divides",
             "compressed_tensors_nvfp4",
             {},
             "",
             Format::bf16,
             "_packed",
             "_global_scale"},
        Form{"nvfp4_token_bf16",
             "flashinfer_nvfp4_token",
             {},
             "",
             Format::bf16,
             "",
             "_global_scale"},
        Form{
            "nvfp4_token_f32", "flashinfer_nvfp4_token", {}, "", Format::f32, "", "_global_scale"}),
    [](const auto& test) { return test.param.title; });

}  // namespace
}  // namespace moeref
