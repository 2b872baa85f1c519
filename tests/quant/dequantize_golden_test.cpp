#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "quant/dequantize.hpp"
#include "quant/formats.hpp"

// Dequantized values that the original libraries wrote beside their codes.

namespace moeref {
namespace {

ScaledMatrix codes_of(const TensorView& codes, Format format) {
  ScaledMatrix matrix;
  matrix.name = codes.name;
  matrix.rows = codes.shape.at(0);
  matrix.cols = codes.shape.at(1) * (format == Format::e2m1 ? 2 : 1);
  matrix.codes.data = codes.bytes.data();
  matrix.codes.format = format;
  matrix.codes.row_stride = matrix.cols;
  return matrix;
}

ScaleGrid scales_of(const TensorView& scales, Format format, std::int64_t block_rows,
                    std::int64_t block_cols) {
  ScaleGrid grid;
  grid.data = scales.bytes.data();
  grid.format = format;
  grid.block_rows = block_rows;
  grid.block_cols = block_cols;
  grid.row_stride = scales.shape.size() > 1 ? scales.shape[1] : 1;
  grid.col_stride = scales.shape.size() > 1 ? 1 : 0;
  return grid;
}

/// What a case says, as a matrix and the bits its library made of it.
struct Case {
  ScaledMatrix matrix;
  DequantizeOrder order = DequantizeOrder::checkpoint;
  Format target = Format::f32;
  const TensorView* expected = nullptr;
};

Case modelopt_mx(const SafetensorsFile& file, Format codes) {
  Case c{.matrix = codes_of(file.at("out.q"), codes), .expected = &file.at("out.dequant_f32")};
  c.matrix.scales = scales_of(file.at("out.scale"), Format::e8m0, 1, 32);
  return c;
}

Case nvfp4(const SafetensorsFile& file, const char* codes, const char* global, GlobalScaleRule rule,
           DequantizeOrder order, const char* expected) {
  Case c{.matrix = codes_of(file.at(codes), Format::e2m1),
         .order = order,
         .expected = &file.at(expected)};
  c.matrix.scales = scales_of(file.at("out.weight_scale"), Format::e4m3, 1, 16);
  c.matrix.global_rule = rule;
  c.matrix.global_scale = file.at(global).at<float>(0);
  return c;
}

Case block_requantized(const SafetensorsFile& file) {
  Case c{.matrix = codes_of(file.at("in.w"), Format::e4m3),
         .target = Format::bf16,
         .expected = &file.at("out.dequant_bf16")};
  c.matrix.scales = scales_of(file.at("in.weight_scale_inv"), Format::f32, 128, 128);
  return c;
}

Case shards_of_32_rows(const SafetensorsFile& file) {
  Case c{.matrix = codes_of(file.at("in.w"), Format::e4m3),
         .order = DequantizeOrder::sglang_fp16,
         .target = Format::f16,
         .expected = &file.at("out.dequant_f16_bits")};
  c.matrix.scales = scales_of(file.at("in.scales"), Format::f32, 32, c.matrix.cols);
  return c;
}

const std::map<std::string, std::function<Case(const SafetensorsFile&)>>& readers() {
  using Order = DequantizeOrder;
  static const std::map<std::string, std::function<Case(const SafetensorsFile&)>> kReaders{
      {"modelopt_mxfp4_quantize", [](const auto& f) { return modelopt_mx(f, Format::e2m1); }},
      {"modelopt_mxfp8_quantize", [](const auto& f) { return modelopt_mx(f, Format::e4m3); }},
      {"modelopt_nvfp4_quantize",
       [](const auto& f) {
         return nvfp4(f, "out.q", "out.weight_scale_2", GlobalScaleRule::multiply,
                      Order::modelopt_nvfp4, "out.dequant_f32");
       }},
      {"compressed_tensors_nvfp4_quantize",
       [](const auto& f) {
         return nvfp4(f, "out.weight_packed", "out.weight_global_scale", GlobalScaleRule::divide,
                      Order::checkpoint, "out.dequant");
       }},
      {"sglang_requant_weight_ue8m0", block_requantized},
      {"requantize_with_max_scale", shards_of_32_rows},
  };
  return kReaders;
}

std::uint32_t expected_bits(const TensorView& tensor, Format target, std::int64_t index) {
  if (info(tensor.dtype).bits == 32) return tensor.at<std::uint32_t>(index);
  return std::bit_cast<std::uint32_t>(decode(target, tensor.at<std::uint16_t>(index)));
}

/// Every file of these ops below data/golden.
std::vector<std::filesystem::path> golden_files() {
  std::vector<std::filesystem::path> files;
  const std::filesystem::path root = std::filesystem::path(MOEREF_DATA_DIR) / "golden";
  for (const char* area : {"formats", "quantizers-h200", "quantizers-secondtier"}) {
    if (!std::filesystem::exists(root / area)) continue;
    for (const auto& entry : std::filesystem::directory_iterator(root / area)) {
      if (entry.path().extension() != ".safetensors") continue;
      const auto file = SafetensorsFile::open(entry.path());
      const auto op = file->metadata().find("op");
      if (op != file->metadata().end() && readers().count(op->second) != 0) {
        files.push_back(entry.path());
      }
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

class DequantizeGolden : public testing::TestWithParam<std::filesystem::path> {};

TEST_P(DequantizeGolden, MatchesBitForBit) {
  const auto file = SafetensorsFile::open(GetParam());
  const Case c = readers().at(file->metadata().find("op")->second)(*file);
  std::vector<float> values(static_cast<std::size_t>(c.matrix.rows * c.matrix.cols));
  ASSERT_EQ(c.expected->size(), static_cast<std::int64_t>(values.size()));
  dequantize(c.matrix, c.order, c.target, values);
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < c.expected->size(); ++i) {
    const auto bits = std::bit_cast<std::uint32_t>(values[static_cast<std::size_t>(i)]);
    const std::uint32_t expected = expected_bits(*c.expected, c.target, i);
    if (bits != expected && wrong++ == 0) {
      ADD_FAILURE() << fmt::format("element {}: 0x{:08x}, golden 0x{:08x}", i, bits, expected);
    }
  }
  EXPECT_EQ(wrong, 0);
}

INSTANTIATE_TEST_SUITE_P(Golden, DequantizeGolden, testing::ValuesIn(golden_files()),
                         [](const auto& test) {
                           const auto& path = test.param;
                           std::string label = fmt::format(
                               "{}_{}", path.parent_path().stem().string(), path.stem().string());
                           std::replace(label.begin(), label.end(), '-', '_');
                           return label;
                         });

TEST(DequantizeGoldenFiles, AreThere) { EXPECT_GE(golden_files().size(), 2u); }

}  // namespace
}  // namespace moeref
