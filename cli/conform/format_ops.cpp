#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "cli/conform/ops.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::conform {
namespace {

using Codes = std::vector<std::uint32_t>;

/// How one stack's converter of one name treats what does not fit.
struct PolicyName {
  std::string_view flavour;
  std::string_view policy;  ///< as in output names
  EncodePolicy encode;
};

constexpr std::array kPolicies{
    PolicyName{"ml_dtypes", "sat", EncodePolicy::ml_dtypes_saturate},
    PolicyName{"ml_dtypes", "nosat", EncodePolicy::ml_dtypes_nosat},
    PolicyName{"cuda", "satfinite", EncodePolicy::cuda_satfinite},
    PolicyName{"cuda", "nosat", EncodePolicy::cuda_nosat},
    PolicyName{"cuda", "rne", EncodePolicy::cuda_nosat},
    PolicyName{"cuda", "", EncodePolicy::cuda_nosat},
    PolicyName{"eigen", "", EncodePolicy::eigen},
    PolicyName{"eigen", "rne", EncodePolicy::eigen},
    PolicyName{"torch", "", EncodePolicy::torch},
};

/// The same for E8M0, whose encoders also differ in direction.
struct ScalePolicyName {
  std::string_view flavour;
  std::string_view policy;
  E8M0Rounding rounding;
  EncodePolicy encode;
};

constexpr std::array kScalePolicies{
    ScalePolicyName{"ml_dtypes", "sat", E8M0Rounding::nearest_even,
                    EncodePolicy::ml_dtypes_saturate},
    ScalePolicyName{"ml_dtypes", "nosat", E8M0Rounding::nearest_even,
                    EncodePolicy::ml_dtypes_nosat},
    ScalePolicyName{"cuda", "rz_sat", E8M0Rounding::toward_zero, EncodePolicy::cuda_satfinite},
    ScalePolicyName{"cuda", "rz_nosat", E8M0Rounding::toward_zero, EncodePolicy::cuda_nosat},
    ScalePolicyName{"cuda", "rp_sat", E8M0Rounding::toward_positive, EncodePolicy::cuda_satfinite},
    ScalePolicyName{"cuda", "rp_nosat", E8M0Rounding::toward_positive, EncodePolicy::cuda_nosat},
    ScalePolicyName{"torch", "", E8M0Rounding::nearest_even, EncodePolicy::torch},
};

template <typename Table>
auto find_policy(const Table& table, std::string_view flavour, std::string_view policy) {
  return std::find_if(table.begin(), table.end(), [&](const auto& entry) {
    return entry.flavour == flavour && entry.policy == policy;
  });
}

std::string required_text(const GoldenCase& golden, std::string_view name) {
  const auto text = golden.text_param(name);
  if (!text) fail(golden.path.string(), "op {} needs params.{}", golden.op, name);
  return *text;
}

Format required_format(const GoldenCase& golden, std::string_view where, std::string_view name) {
  const auto format = parse_format(name);
  if (!format) fail(golden.subject(where), "unknown format {}", name);
  return *format;
}

std::vector<std::string> split(std::string_view text) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find('_', begin), text.size());
    parts.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

/// "[<format>_]<policy>[_bits]", "bits" anywhere after the format.
struct EncodeOutputName {
  Format format;
  std::string policy;
};

EncodeOutputName parse_encode_output(const GoldenCase& golden, const std::string& name) {
  std::vector<std::string> parts = split(name);
  std::erase(parts, "bits");
  std::optional<Format> format = parts.empty() ? std::nullopt : parse_format(parts.front());
  if (format) {
    parts.erase(parts.begin());
  } else {
    const auto given = golden.params.find("format");
    if (given == golden.params.end() || !given->is_string()) {
      fail(golden.subject("out." + name), "names no format, and params.format is not one format");
    }
    format = required_format(golden, "params.format", given->get<std::string>());
  }
  return {*format, fmt::format("{}", fmt::join(parts, "_"))};
}

/// The inputs as bit patterns of one type.
struct EncodeInput {
  Format format;
  Codes codes;
};

EncodeInput read_encode_input(const GoldenCase& golden) {
  if (const TensorView* bits = golden.find_input("f32_bits")) {
    Codes codes;
    for (const std::int64_t pattern : to_integers(*bits))
      codes.push_back(static_cast<std::uint32_t>(pattern));
    return {Format::f32, std::move(codes)};
  }
  const Format format = required_format(golden, "params.input", required_text(golden, "input"));
  const std::vector<std::int64_t> range = to_integers(golden.input("range"));
  const int bits = info(format).bits;
  if (range.size() != 2 || range[0] < 0 || range[0] > range[1] || bits > 32 ||
      range[1] > std::int64_t{1} << bits) {
    fail(golden.subject("in.range"), "is [{}], needs [first, end) of the {}-bit patterns",
         fmt::join(range, ", "), bits);
  }
  constexpr std::int64_t kMostCodes = std::int64_t{1} << 28;
  if (range[1] - range[0] > kMostCodes) {
    fail(golden.subject("in.range"), "has {} patterns, at most {} are taken", range[1] - range[0],
         kMostCodes);
  }
  Codes codes(static_cast<std::size_t>(range[1] - range[0]));
  std::iota(codes.begin(), codes.end(), static_cast<std::uint32_t>(range[0]));
  return {format, std::move(codes)};
}

/// Codes as a tensor of the smallest unsigned type that holds them.
Tensor code_tensor(const std::string& name, int bits, const Codes& codes) {
  const Shape shape{static_cast<std::int64_t>(codes.size())};
  if (bits <= 8) {
    const std::vector<std::uint8_t> narrow(codes.begin(), codes.end());
    return make_tensor<std::uint8_t>(name, DType::u8, shape, std::span(narrow));
  }
  if (bits <= 16) {
    const std::vector<std::uint16_t> narrow(codes.begin(), codes.end());
    return make_tensor<std::uint16_t>(name, DType::u16, shape, std::span(narrow));
  }
  return make_tensor<std::uint32_t>(name, DType::u32, shape, std::span(codes));
}

Codes encode_all(const GoldenCase& golden, const std::string& name, const EncodeInput& input,
                 const std::string& flavour, TorchDevice device) {
  const EncodeOutputName output = parse_encode_output(golden, name);
  const auto unknown = [&]() {
    fail(golden.subject("out." + name), "no encoder of flavour {} with policy \"{}\" to {}",
         flavour, output.policy, moeref::name(output.format));
  };
  Codes codes;
  codes.reserve(input.codes.size());
  if (output.format == Format::e8m0) {
    const auto found = find_policy(kScalePolicies, flavour, output.policy);
    if (found == kScalePolicies.end()) unknown();
    for (const std::uint32_t code : input.codes) {
      codes.push_back(encode_e8m0(decode(input.format, code), found->rounding, found->encode));
    }
    return codes;
  }
  const auto found = find_policy(kPolicies, flavour, output.policy);
  if (found == kPolicies.end() || !knows(found->encode, output.format)) unknown();
  for (const std::uint32_t code : input.codes) {
    codes.push_back(encode_bits(input.format, code, output.format, found->encode, device));
  }
  return codes;
}

DecodeFlavour required_flavour(const GoldenCase& golden) {
  const std::string flavour = required_text(golden, "flavour");
  if (flavour == "cuda") return DecodeFlavour::cuda;
  if (flavour == "ml_dtypes" || flavour == "eigen") return DecodeFlavour::ml_dtypes;
  fail(golden.subject("params.flavour"), "is {}; known: ml_dtypes, eigen, cuda", flavour);
}

Codes codes_to_decode(const GoldenCase& golden, const std::string& format_name, Format format) {
  Codes codes;
  if (const TensorView* given = golden.find_input(format_name + "_codes")) {
    for (const std::int64_t code : to_integers(*given))
      codes.push_back(static_cast<std::uint32_t>(code));
    return codes;
  }
  if (info(format).bits > 16) {
    fail(golden.path.string(), "op decode needs in.{}_codes: too many codes to list all",
         format_name);
  }
  codes.resize(std::size_t{1} << info(format).bits);
  std::iota(codes.begin(), codes.end(), 0u);
  return codes;
}

}  // namespace

OpResult run_encode(const GoldenCase& golden) {
  const std::string flavour = required_text(golden, "flavour");
  const EncodeInput input = read_encode_input(golden);
  const TorchDevice device =
      golden.text_param("device").value_or("cpu") == "cpu" ? TorchDevice::cpu : TorchDevice::cuda;
  OpResult result;
  for (const std::string& name : compared_outputs(golden)) {
    const Codes codes = encode_all(golden, name, input, flavour, device);
    result.outputs.emplace(
        name, code_tensor(name, info(parse_encode_output(golden, name).format).bits, codes));
  }
  return result;
}

OpResult run_decode(const GoldenCase& golden) {
  const DecodeFlavour flavour = required_flavour(golden);
  OpResult result;
  for (const std::string& name : compared_outputs(golden)) {
    const std::vector<std::string> parts = split(name);
    if (parts.size() != 3 || parts[2] != "bits") {
      fail(golden.subject("out." + name), "is not of the form <format>_<type>_bits");
    }
    const Format from = required_format(golden, "out." + name, parts[0]);
    const Format to = required_format(golden, "out." + name, parts[1]);
    if (from == Format::f64 || (to != Format::f32 && to != Format::bf16 && to != Format::f16)) {
      fail(golden.subject("out." + name), "decodes to f32, bf16 or f16 only");
    }
    Codes decoded;
    for (const std::uint32_t code : codes_to_decode(golden, parts[0], from)) {
      decoded.push_back(decode_bits(from, code, to, flavour));
    }
    result.outputs.emplace(name, code_tensor(name, info(to).bits, decoded));
  }
  return result;
}

}  // namespace moeref::conform
