#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/conform/layout_case.hpp"
#include "quant/cast.hpp"
#include "quant/dequantize.hpp"
#include "quant/error.hpp"
#include "quant/quantize.hpp"
#include "quant/quantizers/mx_rules.hpp"

namespace moeref::conform {
namespace {

using Texts = std::vector<std::string>;

/// in.`input` as numbers to quantize: a matrix of BF16, F16, F32, or U8 holding codes of `codes`.
ValueMatrix values(const GoldenCase& golden, std::string_view input,
                   std::optional<Format> codes = std::nullopt) {
  const TensorView& view = golden.input(input);
  if (view.shape.size() != 2) {
    fail(golden.subject(view.name), "has shape {}; [rows, columns] is needed",
         to_string(view.shape));
  }
  const std::optional<Format> format = view.dtype == DType::u8 ? codes
                                       : codes                 ? std::nullopt
                                                               : float_format(view.dtype);
  if (!format) {
    fail(golden.subject(view.name), "is {}; {} is needed", name(view.dtype),
         codes ? "U8" : "BF16, F16 or F32");
  }
  return {golden.subject(view.name), *format, view.shape[0], view.shape[1], view.bytes};
}

std::optional<float> scale_input(const GoldenCase& golden, std::string_view input) {
  const TensorView& view = golden.input(input);
  if (view.dtype != DType::f32 || view.size() != 1) {
    fail(golden.subject(view.name), "is {} {}; one F32 is needed", name(view.dtype),
         to_string(view.shape));
  }
  return view.at<float>(0);
}

std::string text_or(const GoldenCase& golden, std::string_view param, const char* fallback) {
  return golden.text_param(param).value_or(fallback);
}

std::string math(const GoldenCase& golden) {
  return flag_param(golden, "ftz", false) ? "math=fast" : "math=precise";
}
std::string device(const GoldenCase& golden) {
  return "device=" + text_or(golden, "device", "cuda");
}
std::string group(const GoldenCase& golden, std::string_view param) {
  return fmt::format("group={}", golden.positive_param(param));
}
std::string eps(const GoldenCase& golden) {
  const bool given = golden.params.contains("eps");
  return fmt::format("eps={}", given ? golden.number_param("eps") : 1e-10);
}
/// Error: a parameter that is not the one value that the original code has.
void require_param(const GoldenCase& golden, std::string_view param, const nlohmann::json& value) {
  const auto found = golden.params.find(std::string(param));
  if (found == golden.params.end() || *found == value) return;
  fail(golden.path.string(), "params.{} is {}, needs {}", param, found->dump(), value.dump());
}
std::string pick(bool choice, const char* yes, const char* no) { return choice ? yes : no; }

/// Parts of a result as tensors of the dtypes that cases have.
Tensor codes_tensor(const Quantized& q) {
  const std::int64_t width = q.form.codes == Format::e2m1 ? q.cols / 2 : q.cols;
  return {"", DType::u8, {q.rows, width}, q.codes};
}
Tensor scale_bytes(const Quantized& q) {
  return {"", DType::u8, {q.row_blocks, q.col_blocks}, q.scales};
}
Tensor scale_floats(const Quantized& q) {
  const std::vector<float> floats = q.scale_values();
  return make_tensor<float>("", DType::f32, {q.row_blocks, q.col_blocks}, floats);
}
Tensor global_floats(const Quantized& q) {
  return make_tensor<float>("", DType::f32, {static_cast<std::int64_t>(q.global.size())}, q.global);
}
Tensor dequantized(const Quantized& q, DequantizeOrder order) {
  std::vector<float> floats(static_cast<std::size_t>(q.rows * q.cols));
  dequantize(q.matrix("dequant"), order, Format::f32, floats);
  return make_tensor<float>("", DType::f32, {q.rows, q.cols}, floats);
}

Quantized run(const GoldenCase& golden, std::string_view quantizer, const Texts& options,
              std::optional<float> given = std::nullopt, std::optional<Format> codes = std::nullopt,
              std::string_view input = "x") {
  return quantize(quantizer, options, values(golden, input, codes), given, 1);
}

/// Sets of outputs under several global scales: in.gscale_<n> belongs to out.q_<n>, out.sf_<n>.
OpResult run_sets(const GoldenCase& golden, std::string_view quantizer, const Texts& options,
                  bool takes_scale, std::optional<Format> codes = std::nullopt) {
  constexpr std::string_view kPrefix = "gscale_";
  OpResult result;
  for (const auto& [name, view] : golden.inputs) {
    if (!std::string_view(name).starts_with(kPrefix)) continue;
    const std::string set = name.substr(kPrefix.size());
    const Quantized q = run(golden, quantizer, options,
                            takes_scale ? scale_input(golden, name) : std::nullopt, codes);
    result.outputs.emplace("q_" + set, codes_tensor(q));
    result.outputs.emplace("sf_" + set, scale_bytes(q));
  }
  return result;
}

OpResult flashinfer_nvfp4(const GoldenCase& golden) {
  Texts options{
      math(golden),
      pick(flag_param(golden, "fast_math_quant", true), "quant_math=fast", "quant_math=exact"),
      pick(flag_param(golden, "four_over_six", false), "four_over_six=on", "four_over_six=off"),
      "error=" + text_or(golden, "error", "mae")};
  return run_sets(golden, "flashinfer_nvfp4", options, true);
}

OpResult flashinfer_mxfp4(const GoldenCase& golden) {
  return run_sets(golden, "flashinfer_mxfp4", {math(golden)}, false);
}

OpResult flashinfer_mxfp8(const GoldenCase& golden) {
  const Quantized q = run(golden, "flashinfer_mxfp8", {math(golden)});
  return {{{"q", codes_tensor(q)}, {"sf", scale_bytes(q)}}, {}};
}

OpResult flashinfer_fp8_to_fp4(const GoldenCase& golden) {
  const bool ue8m0 = flag_param(golden, "ue8m0", false);
  OpResult result;
  for (const auto& [name, view] : golden.inputs) {
    if (!std::string_view(name).starts_with("gscale_")) continue;
    const std::string set = name.substr(7);
    const Quantized q = run(golden, "flashinfer_fp8_to_fp4",
                            {math(golden), pick(ue8m0, "scale=ue8m0", "scale=e4m3")},
                            scale_input(golden, name), Format::e4m3, "x_e4m3");
    result.outputs.emplace("q_" + set, codes_tensor(q));
    result.outputs.emplace("sf_" + set, scale_bytes(q));
  }
  return result;
}

OpResult modelopt_nvfp4(const GoldenCase& golden) {
  const Quantized q = run(golden, "modelopt_nvfp4", {device(golden)});
  return {{{"q", codes_tensor(q)},
           {"weight_scale", scale_bytes(q)},
           {"weight_scale_2", global_floats(q)},
           {"dequant_f32", dequantized(q, DequantizeOrder::modelopt_nvfp4)}},
          {}};
}

template <const char* kQuantizer>
OpResult modelopt_mx(const GoldenCase& golden) {
  const Quantized q = run(golden, kQuantizer, {device(golden)});
  return {{{"q", codes_tensor(q)},
           {"scale", scale_bytes(q)},
           {"dequant_f32", dequantized(q, DequantizeOrder::checkpoint)}},
          {}};
}
constexpr char kModelOptMxfp4[] = "modelopt_mxfp4";
constexpr char kModelOptMxfp8[] = "modelopt_mxfp8";

/// Scales of one number may be stored with any shape.
OpResult shaped(const GoldenCase& golden, OpResult result) {
  for (auto& [name, computed] : result.outputs) {
    Tensor& tensor = std::get<Tensor>(computed);
    if (tensor.view().size() == 1) tensor = shaped_as(std::move(tensor), golden, name);
  }
  return result;
}

OpResult modelopt_fp8(const GoldenCase& golden) {
  const std::string granularity = text_or(golden, "granularity", "tensor");
  const Quantized q = run(
      golden, "modelopt_fp8",
      {device(golden), "granularity=" + (granularity == "block128x128" ? "block" : granularity)});
  return shaped(golden, {{{"q", codes_tensor(q)}, {"scale", scale_floats(q)}}, {}});
}

OpResult compressed_tensors_nvfp4(const GoldenCase& golden) {
  const Quantized q = run(golden, "compressed_tensors_nvfp4",
                          {device(golden), "backend=" + text_or(golden, "backend", "eager")});
  return {{{"weight_packed", codes_tensor(q)},
           {"weight_scale", scale_bytes(q)},
           {"weight_global_scale", global_floats(q)},
           {"dequant", dequantized(q, DequantizeOrder::checkpoint)}},
          {}};
}

OpResult compressed_tensors_mx(const GoldenCase& golden, std::string_view quantizer,
                               const Texts& options) {
  const Quantized q = run(golden, quantizer, options);
  const std::string codes = q.form.codes == Format::e2m1 ? "weight_packed" : "weight";
  return {
      {{codes, codes_tensor(q)}, {"scale_e8m0", scale_bytes(q)}, {"scale_f32", scale_floats(q)}},
      {}};
}
OpResult compressed_tensors_mxfp4(const GoldenCase& golden) {
  return compressed_tensors_mx(golden, "compressed_tensors_mxfp4", {});
}
/// The measured runs had no zero points.
OpResult compressed_tensors_mxfp8(const GoldenCase& golden) {
  return compressed_tensors_mx(golden, "compressed_tensors_mxfp8", {"zero_point=none"});
}

/// out: q, and the f32 scales as s or sf.
OpResult codes_and_scales(const Quantized& q) {
  return {{{"q", codes_tensor(q)}, {"s", scale_floats(q)}, {"sf", scale_floats(q)}}, {}};
}

template <const char* kQuantizer>
OpResult deepgemm(const GoldenCase& golden) {
  const bool ue8m0 = flag_param(golden, "ue8m0", false);
  return codes_and_scales(
      run(golden, kQuantizer,
          {device(golden), group(golden, "gran_k"), pick(ue8m0, "scale=ue8m0", "scale=f32")}));
}
constexpr char kDeepGemmToken[] = "deepgemm_fp8_token";
constexpr char kDeepGemmBlock[] = "deepgemm_fp8_block";
constexpr char kDeepGemmFp4[] = "deepgemm_fp4_token";

OpResult sglang_group(const GoldenCase& golden) {
  const std::string version = text_or(golden, "version", "v2");
  const std::string scale = text_or(golden, "scale", "fp32");
  const bool row_major = scale == "ue8m0_rowmajor";
  const Quantized q = run(golden, "sglang_fp8_group",
                          {"version=" + version, math(golden), group(golden, "group"), eps(golden),
                           scale == "fp32" ? "scale=f32"
                           : row_major     ? "scale=ue8m0_rowmajor"
                                           : "scale=ue8m0"});
  OpResult result = codes_and_scales(q);
  std::vector<std::uint8_t> bytes;
  for (const float s : q.scale_values()) {
    bytes.push_back(static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(s) >> 23));
  }
  result.outputs.emplace(
      "s_ue8m0", make_tensor<std::uint8_t>("", DType::u8, {q.row_blocks, q.col_blocks}, bytes));
  return result;
}

OpResult sglang_token(const GoldenCase& golden) {
  return codes_and_scales(run(golden, "sglang_fp8_token",
                              {math(golden), "kernel=" + text_or(golden, "kernel", "warp")}));
}

OpResult dynamic_tensor(const GoldenCase& golden) {
  return shaped(golden, codes_and_scales(run(golden, "sglang_fp8_tensor", {math(golden)})));
}

OpResult static_tensor(const GoldenCase& golden, const std::string& option) {
  const std::optional<float> scale = scale_input(golden, "scale");
  const Quantized q = run(golden, "sglang_fp8_static", {option}, scale);
  const std::vector<float> per_row(static_cast<std::size_t>(q.rows), *scale);
  return {{{"q", codes_tensor(q)}, {"s", make_tensor<float>("", DType::f32, {q.rows, 1}, per_row)}},
          {}};
}
OpResult static_cuda(const GoldenCase& golden) { return static_tensor(golden, math(golden)); }
OpResult static_triton(const GoldenCase& golden) { return static_tensor(golden, "math=triton"); }

OpResult triton_group(const GoldenCase& golden) {
  const bool ue8m0 = text_or(golden, "scale", "fp32") != "fp32";
  return codes_and_scales(run(golden, "sglang_triton_fp8_group",
                              {"form=" + text_or(golden, "form", "mulinv"), group(golden, "group"),
                               eps(golden), pick(ue8m0, "scale=ue8m0", "scale=f32")}));
}

OpResult vllm_group(const GoldenCase& golden) {
  const bool ue8m0 = flag_param(golden, "ue8m0", false);
  return codes_and_scales(
      run(golden, "vllm_fp8_group",
          {group(golden, "group"), eps(golden), pick(ue8m0, "scale=ue8m0", "scale=f32")}));
}

OpResult vllm_token(const GoldenCase& golden) {
  return codes_and_scales(run(golden, "vllm_fp8_token", {}));
}

OpResult deepep_group(const GoldenCase& golden) {
  require_param(golden, "eps", 1e-4);
  require_param(golden, "group", 128);
  const bool ue8m0 = flag_param(golden, "round_scale", false);
  return codes_and_scales(
      run(golden, "deepep_fp8_group", {pick(ue8m0, "scale=ue8m0", "scale=f32")}));
}

OpResult aiter_mxfp4(const GoldenCase& golden) {
  const Quantized q = run(golden, "aiter_triton_mxfp4", {"device=nvidia"});
  return {{{"q", codes_tensor(q)}, {"scale_nvidia_u8cast", scale_bytes(q)}}, {}};
}

OpResult aiter_mxfp8(const GoldenCase& golden) {
  const Quantized q = run(golden, "aiter_triton_mxfp8", {"device=nvidia"});
  return {{{"q", codes_tensor(q)}, {"scale", scale_bytes(q)}}, {}};
}

/// in: amax. out: "<format>_<rule>".
OpResult aiter_scale_modes(const GoldenCase& golden) {
  using quantizers::MxRule;
  struct Named {
    std::string_view format_name;
    Format format;
  };
  struct Rule {
    std::string_view name;
    MxRule rule;
  };
  constexpr std::array kFormats{Named{"fp4", Format::e2m1}, Named{"fp8", Format::e4m3},
                                Named{"fp8fnuz", Format::e4m3fnuz}};
  constexpr std::array kRules{Rule{"floor", MxRule::floor}, Rule{"rceil", MxRule::rceil},
                              Rule{"even", MxRule::even}, Rule{"ceil", MxRule::ceil}};
  const TensorView& amax = golden.input("amax");
  if (amax.dtype != DType::f32) {
    fail(golden.subject(amax.name), "is {}; F32 is needed", name(amax.dtype));
  }
  OpResult result;
  for (const Named& elements : kFormats) {
    for (const Rule& rule : kRules) {
      std::vector<std::uint8_t> bytes;
      for (std::int64_t i = 0; i < amax.size(); ++i) {
        bytes.push_back(quantizers::mx_scale_byte(amax.at<float>(i), rule.rule, elements.format));
      }
      result.outputs.emplace(fmt::format("{}_{}", elements.format_name, rule.name),
                             make_tensor<std::uint8_t>("", DType::u8, amax.shape, bytes));
    }
  }
  return result;
}

/// The element cast alone. in: x F32 [.., 2n]. out: q.
OpResult aiter_elements(const GoldenCase& golden) {
  const TensorView& x = golden.input("x");
  if (x.dtype != DType::f32 || x.shape.empty() || x.shape.back() % 2 != 0) {
    fail(golden.subject(x.name), "is {} {}; F32 with an even last size is needed", name(x.dtype),
         to_string(x.shape));
  }
  const ElementCoder coder({.codes = Format::e2m1, .nan = Fp4Nan::bits});
  std::vector<std::uint8_t> bytes;
  for (std::int64_t i = 0; i < x.size(); i += 2) {
    bytes.push_back(static_cast<std::uint8_t>(coder.code(x.at<float>(i)) |
                                              coder.code(x.at<float>(i + 1)) << 4));
  }
  Shape shape = x.shape;
  shape.back() /= 2;
  return {{{"q", make_tensor<std::uint8_t>("", DType::u8, shape, bytes)}}, {}};
}

/// out: "<fp8_e4m3, fp8_e5m2, fp4_e2m1>_<rounding>[_flush]", dequantized.
OpResult microxcaling_values(const GoldenCase& golden) {
  const ValueMatrix x = values(golden, "x");
  const std::int64_t block = golden.positive_param("block");
  if (integer_param(golden, "scale_bits", 8) != 8) {
    fail(golden.subject("params.scale_bits"), "is not 8, the E8M0 scale of MX");
  }
  std::vector<float> numbers;
  for (const double number : to_doubles(golden.input("x"))) {
    numbers.push_back(static_cast<float>(number));
  }
  OpResult result;
  for (const std::string& output : compared_outputs(golden)) {
    std::string rest = output;
    const bool flush = rest.ends_with("_flush");
    if (flush) rest.resize(rest.size() - 6);
    const std::size_t cut = rest.rfind('_');
    const std::string rounding = cut == std::string::npos ? "" : rest.substr(cut + 1);
    const std::size_t format_at = rest.find('_');
    const std::optional<Format> format =
        cut == std::string::npos || cut == format_at
            ? std::nullopt
            : parse_format(rest.substr(format_at + 1, cut - format_at - 1));
    if (!format || (rounding != "nearest" && rounding != "even" && rounding != "floor")) {
      fail(golden.subject("out." + output),
           "is not of the form <fp8_e4m3, fp8_e5m2, fp4_e2m1>_<nearest, even, floor>[_flush]");
    }
    std::vector<float> outputs(numbers.size());
    for (std::int64_t row = 0; row < x.rows; ++row) {
      for (std::int64_t begin = 0; begin < x.cols; begin += block) {
        const std::int64_t first = row * x.cols + begin;
        const std::int64_t end = row * x.cols + std::min(begin + block, x.cols);
        float amax = 0.0f;
        for (std::int64_t i = first; i < end; ++i) {
          const float magnitude = std::fabs(numbers[static_cast<std::size_t>(i)]);
          if (amax == amax && !(magnitude <= amax)) amax = magnitude;
        }
        for (std::int64_t i = first; i < end; ++i) {
          const auto at = static_cast<std::size_t>(i);
          outputs[at] = quantizers::microxcaling_value(numbers[at], amax, *format, rounding, flush);
        }
      }
    }
    result.outputs.emplace(output, make_tensor<float>("", DType::f32, {x.rows, x.cols}, outputs));
  }
  return result;
}

/// FP8 codes with the scales of a grid of blocks, as a matrix.
ScaledMatrix scaled_codes(const ValueMatrix& w, const TensorView& scales, std::int64_t rows,
                          std::int64_t cols) {
  ScaledMatrix matrix;
  matrix.name = w.name;
  matrix.rows = w.rows;
  matrix.cols = w.cols;
  matrix.codes = {.data = w.bytes.data(), .format = Format::e4m3, .row_stride = w.cols};
  matrix.scales = ScaleGrid{.data = scales.bytes.data(),
                            .block_rows = rows,
                            .block_cols = cols,
                            .row_stride = ceil_div(w.cols, cols),
                            .col_stride = 1};
  return matrix;
}

std::vector<std::byte> narrow(const std::vector<float>& numbers, Format format) {
  std::vector<std::byte> bytes;
  for (const float number : numbers) {
    const std::uint32_t code = encode(format, number, EncodePolicy::cuda_nosat);
    bytes.push_back(static_cast<std::byte>(code));
    bytes.push_back(static_cast<std::byte>(code >> 8));
  }
  return bytes;
}

/// Through bf16 to 128 x 128 blocks with power-of-two scales. params: block, [128, 128]. in: w,
/// weight_scale_inv. out: w, s, dequant_bf16.
OpResult requantize_ue8m0(const GoldenCase& golden) {
  const ValueMatrix w = values(golden, "w", Format::e4m3);
  const TensorView& scales = golden.input("weight_scale_inv");
  constexpr std::int64_t kBlock = 128;
  require_param(golden, "block", {kBlock, kBlock});
  if (scales.dtype != DType::f32 ||
      scales.size() != ceil_div(w.rows, kBlock) * ceil_div(w.cols, kBlock)) {
    fail(golden.subject(scales.name), "is {} {}; one F32 for each 128 x 128 of [{}, {}] is needed",
         name(scales.dtype), to_string(scales.shape), w.rows, w.cols);
  }
  std::vector<float> numbers(static_cast<std::size_t>(w.rows * w.cols));
  dequantize(scaled_codes(w, scales, kBlock, kBlock), DequantizeOrder::checkpoint, Format::bf16,
             numbers);
  const std::vector<std::byte> bf16 = narrow(numbers, Format::bf16);
  const Quantized q = quantize("deepgemm_fp8_block", Texts{"scale=ue8m0"},
                               {w.name, Format::bf16, w.rows, w.cols, bf16}, std::nullopt, 1);
  return {{{"w", codes_tensor(q)},
           {"s", scale_floats(q)},
           {"dequant_bf16", Tensor{"", DType::bf16, {w.rows, w.cols}, bf16}}},
          {}};
}

/// Shards of rows with a scale each to the largest of these scales, through f16. params:
/// logical_widths. in: w, scales. out: w, max_scale, dequant_f16_bits.
OpResult requantize_with_max_scale(const GoldenCase& golden) {
  const ValueMatrix w = values(golden, "w", Format::e4m3);
  const TensorView& scales = golden.input("scales");
  const auto widths = golden.params.find("logical_widths");
  std::int64_t total = 0;
  std::vector<std::int64_t> rows;
  if (widths != golden.params.end() && widths->is_array()) {
    for (const nlohmann::json& width : *widths) {
      rows.push_back(width.is_number_integer() ? width.get<std::int64_t>() : -1);
      total += rows.back();
    }
  }
  const bool fits = scales.dtype == DType::f32 && total == w.rows && !rows.empty() &&
                    scales.size() == static_cast<std::int64_t>(rows.size()) &&
                    *std::min_element(rows.begin(), rows.end()) >= 0;
  if (!fits) {
    fail(golden.path.string(), "params.logical_widths must divide the {} rows, one F32 scale each",
         w.rows);
  }
  std::vector<float> numbers(static_cast<std::size_t>(w.rows * w.cols));
  float largest = scales.at<float>(0);
  std::int64_t first = 0;
  for (std::size_t shard = 0; shard < rows.size(); ++shard) {
    const auto number = static_cast<std::int64_t>(shard);
    largest = std::fmax(largest, scales.at<float>(number));
    const TensorView scale{"", DType::f32, {1}, scales.bytes.subspan(4 * shard, 4)};
    const ScaledMatrix whole = scaled_codes(w, scale, std::max<std::int64_t>(w.rows, 1),
                                            std::max<std::int64_t>(w.cols, 1));
    const auto begin = static_cast<std::size_t>(first * w.cols);
    const auto count = static_cast<std::size_t>(rows[shard] * w.cols);
    dequantize(row_slice(whole, first, rows[shard]), DequantizeOrder::sglang_fp16, Format::f16,
               std::span(numbers).subspan(begin, count));
    first += rows[shard];
  }
  const std::vector<std::byte> f16 = narrow(numbers, Format::f16);
  const Quantized q = quantize("sglang_fp8_static", Texts{"math=precise"},
                               {w.name, Format::f16, w.rows, w.cols, f16}, largest, 1);
  return {{{"w", codes_tensor(q)},
           {"max_scale", global_floats(q)},
           {"dequant_f16_bits", Tensor{"", DType::u16, {w.rows, w.cols}, f16}}},
          {}};
}

constexpr std::array kOperations{
    NamedOperation{"deepep_per_token_group_quant_fp8", deepep_group},
    NamedOperation{"aiter_dynamic_mxfp4_quant", aiter_mxfp4},
    NamedOperation{"aiter_dynamic_mxfp8_quant", aiter_mxfp8},
    NamedOperation{"aiter_f32_to_mx_e8m0_scale", aiter_scale_modes},
    NamedOperation{"aiter_f32_to_mxfp4", aiter_elements},
    NamedOperation{"microxcaling_quantize_mx", microxcaling_values},
    NamedOperation{"sglang_requant_weight_ue8m0", requantize_ue8m0},
    NamedOperation{"requantize_with_max_scale", requantize_with_max_scale},
    NamedOperation{"flashinfer_nvfp4_quantize", flashinfer_nvfp4},
    NamedOperation{"flashinfer_mxfp4_quantize", flashinfer_mxfp4},
    NamedOperation{"flashinfer_mxfp8_quantize", flashinfer_mxfp8},
    NamedOperation{"flashinfer_fp8_to_fp4", flashinfer_fp8_to_fp4},
    NamedOperation{"modelopt_fp8_quantize", modelopt_fp8},
    NamedOperation{"modelopt_nvfp4_quantize", modelopt_nvfp4},
    NamedOperation{"modelopt_mxfp4_quantize", modelopt_mx<kModelOptMxfp4>},
    NamedOperation{"modelopt_mxfp8_quantize", modelopt_mx<kModelOptMxfp8>},
    NamedOperation{"compressed_tensors_nvfp4_quantize", compressed_tensors_nvfp4},
    NamedOperation{"compressed_tensors_mxfp4_quantize", compressed_tensors_mxfp4},
    NamedOperation{"compressed_tensors_mxfp8_quantize", compressed_tensors_mxfp8},
    NamedOperation{"deepgemm_per_token_cast_to_fp8", deepgemm<kDeepGemmToken>},
    NamedOperation{"deepgemm_per_block_cast_to_fp8", deepgemm<kDeepGemmBlock>},
    NamedOperation{"deepgemm_per_token_cast_to_fp4", deepgemm<kDeepGemmFp4>},
    NamedOperation{"sglang_per_token_group_quant_fp8", sglang_group},
    NamedOperation{"sglang_per_token_quant_fp8", sglang_token},
    NamedOperation{"dynamic_per_tensor_quant_fp8", dynamic_tensor},
    NamedOperation{"static_per_tensor_quant_fp8", static_cuda},
    NamedOperation{"triton_static_quant_fp8", static_triton},
    NamedOperation{"triton_per_token_group_quant_fp8", triton_group},
    NamedOperation{"vllm_per_token_group_quant_fp8", vllm_group},
    NamedOperation{"vllm_per_token_quant_fp8", vllm_token},
};

}  // namespace

std::span<const NamedOperation> quantizer_operations() { return kOperations; }

}  // namespace moeref::conform
