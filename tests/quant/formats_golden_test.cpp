#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.hpp"
#include "quant/formats.hpp"

// The number formats against what the original converters wrote: every file of the ops `encode` and
// `decode`.

namespace moeref {
namespace {

using nlohmann::json;

std::uint32_t element(const TensorView& tensor, std::int64_t index) {
  switch (info(tensor.dtype).bits) {
    case 8:
      return tensor.at<std::uint8_t>(index);
    case 16:
      return tensor.at<std::uint16_t>(index);
    default:
      return tensor.at<std::uint32_t>(index);
  }
}

bool take_prefix(std::string& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.erase(0, prefix.size());
  return true;
}

/// What an output "[<format>_]<policy>[_bits]" of the op `encode` asks for.
struct EncodeOutput {
  Format format = Format::e4m3;
  EncodePolicy policy = EncodePolicy::eigen;
  E8M0Rounding rounding = E8M0Rounding::nearest_even;
};

EncodePolicy policy_of(const std::string& flavour, bool saturates) {
  if (flavour == "ml_dtypes") {
    return saturates ? EncodePolicy::ml_dtypes_saturate : EncodePolicy::ml_dtypes_nosat;
  }
  if (flavour == "cuda") return saturates ? EncodePolicy::cuda_satfinite : EncodePolicy::cuda_nosat;
  return flavour == "torch" ? EncodePolicy::torch : EncodePolicy::eigen;
}

EncodeOutput parse_output(const std::string& name, const json& params) {
  EncodeOutput output;
  std::string rest = name;
  std::optional<Format> format;
  for (const char* candidate :
       {"e4m3fnuz", "e4m3fn", "e5m2fnuz", "e5m2", "e2m1", "e8m0", "bf16", "f16"}) {
    if (!take_prefix(rest, candidate)) continue;
    format = parse_format(candidate);
    take_prefix(rest, "_");
    break;
  }
  if (!format) format = parse_format(params.at("format").get<std::string>());
  output.format = format.value();
  if (take_prefix(rest, "rz_")) output.rounding = E8M0Rounding::toward_zero;
  if (take_prefix(rest, "rp_")) output.rounding = E8M0Rounding::toward_positive;
  output.policy = policy_of(params.at("flavour"), rest == "sat" || rest == "satfinite");
  const bool is_known = rest.empty() || rest == "bits" || rest == "bits_rne" || rest == "sat" ||
                        rest == "nosat" || rest == "satfinite";
  EXPECT_TRUE(is_known) << name;
  return output;
}

struct Inputs {
  Format format = Format::f32;
  std::vector<std::uint32_t> codes;
};

Inputs encode_inputs(const SafetensorsFile& file, const json& params) {
  Inputs inputs;
  inputs.format = parse_format(params.at("input").get<std::string>()).value();
  if (const TensorView* bits = file.find("in.f32_bits")) {
    for (std::int64_t i = 0; i < bits->size(); ++i) inputs.codes.push_back(element(*bits, i));
  } else {
    const TensorView& range = file.at("in.range");
    for (std::uint32_t code = element(range, 0); code < element(range, 1); ++code) {
      inputs.codes.push_back(code);
    }
  }
  return inputs;
}

void expect_encode(const SafetensorsFile& file, const json& params) {
  const Inputs inputs = encode_inputs(file, params);
  const TorchDevice device =
      params.value("device", "cpu") == "cuda" ? TorchDevice::cuda : TorchDevice::cpu;
  for (const auto& [name, tensor] : file.tensors()) {
    if (!name.starts_with("out.")) continue;
    const EncodeOutput output = parse_output(name.substr(4), params);
    ASSERT_EQ(tensor.size(), static_cast<std::int64_t>(inputs.codes.size()));
    std::int64_t wrong = 0;
    for (std::int64_t i = 0; i < tensor.size(); ++i) {
      const std::uint32_t code = inputs.codes[static_cast<std::size_t>(i)];
      const std::uint32_t result =
          output.format == Format::e8m0
              ? encode_e8m0(decode(inputs.format, code), output.rounding, output.policy)
              : encode_bits(inputs.format, code, output.format, output.policy, device);
      if (result != element(tensor, i) && wrong++ == 0) {
        ADD_FAILURE() << fmt::format("{}: input 0x{:x} gives 0x{:x}, golden 0x{:x}", name, code,
                                     result, element(tensor, i));
      }
    }
    EXPECT_EQ(wrong, 0) << name;
  }
}

void expect_decode(const SafetensorsFile& file, const json& params) {
  const DecodeFlavour flavour =
      params.at("flavour") == "cuda" ? DecodeFlavour::cuda : DecodeFlavour::ml_dtypes;
  for (const auto& [name, tensor] : file.tensors()) {
    if (!name.starts_with("out.")) continue;
    const std::size_t split = name.find('_');
    const std::string from_name = name.substr(4, split - 4);
    const std::string to_name = name.substr(split + 1, name.rfind('_') - split - 1);
    const Format from = parse_format(from_name).value();
    const Format to = parse_format(to_name).value();
    const TensorView* codes = file.find(fmt::format("in.{}_codes", from_name));
    for (std::int64_t i = 0; i < tensor.size(); ++i) {
      const std::uint32_t code =
          codes != nullptr ? element(*codes, i) : static_cast<std::uint32_t>(i);
      EXPECT_EQ(decode_bits(from, code, to, flavour), element(tensor, i)) << name << " " << code;
    }
  }
}

std::vector<std::filesystem::path> golden_files() {
  std::vector<std::filesystem::path> files;
  for (const char* area : {"formats", "quantizers-h200"}) {
    const std::filesystem::path folder = std::filesystem::path(MOEREF_DATA_DIR) / "golden" / area;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const std::string stem = entry.path().stem().string();
      if (stem.starts_with("encode_") || stem.starts_with("decode_") ||
          stem.starts_with("torch_encode_")) {
        files.push_back(entry.path());
      }
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

class FormatGolden : public testing::TestWithParam<std::filesystem::path> {};

TEST_P(FormatGolden, MatchesBitForBit) {
  const auto file = SafetensorsFile::open(GetParam());
  const json params = json::parse(file->metadata().find("params")->second);
  const std::string& op = file->metadata().find("op")->second;
  if (op == "encode") {
    expect_encode(*file, params);
  } else {
    ASSERT_EQ(op, "decode");
    expect_decode(*file, params);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, FormatGolden, testing::ValuesIn(golden_files()),
                         [](const auto& test) { return test.param.stem().string(); });

TEST(FormatGoldenFiles, AreAllThere) { EXPECT_GE(golden_files().size(), 14u); }

}  // namespace
}  // namespace moeref
