// Every byte of FlashInfer's CUTLASS, CuteDSL and Hopper mixed-input backends by formulas written
// down on their own.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "quant/formats.hpp"
#include "tests/layout/cutlass_samples.hpp"

namespace moeref {
namespace {

using ::testing::ElementsAre;

std::uint32_t code(const std::byte* data, std::int64_t index, int bits) {
  if (bits == 4) return std::to_integer<std::uint32_t>(data[index / 2]) >> (4 * (index % 2)) & 15u;
  std::uint32_t found = 0;
  const auto width = static_cast<std::size_t>(bits) / 8;
  std::memcpy(&found, data + static_cast<std::size_t>(index) * width, width);
  return found;
}

std::uint32_t weight_code(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col) {
  const CodeGrid& grid = matrix.codes;
  return code(grid.data, grid.origin + row * grid.row_stride + col * grid.col_stride,
              info(grid.format).bits);
}

std::uint32_t scale_code(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col) {
  const ScaleGrid& grid = *matrix.scales;
  return code(grid.data, row * grid.row_stride + col * grid.col_stride, info(grid.format).bits);
}

std::int64_t up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

std::int64_t row_major(std::int64_t row, std::int64_t col, std::int64_t, std::int64_t cols) {
  return row * cols + col;
}
std::int64_t tiles_128x4(std::int64_t r, std::int64_t c, std::int64_t, std::int64_t cols) {
  return (r / 128 * (up(cols, 4) / 4) + c / 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4 + c % 4;
}
std::int64_t legacy(std::int64_t r, std::int64_t c, std::int64_t rows, std::int64_t) {
  return c / 4 * rows * 4 + r * 4 + c % 4;
}
std::int64_t folded(std::int64_t r, std::int64_t c, std::int64_t, std::int64_t cols) {
  return ((r / 64 * (cols / 4) + c / 4) * 16 + r % 16) * 16 + r % 64 / 16 * 4 + c % 4;
}

/// How a backend lays a sample layer out.
struct Expected {
  std::string backend;
  Texts options;
  SampleShape shape;
  std::int64_t intermediate;  ///< padded
  std::int64_t hidden;
  bool up_first = true;
  std::int64_t interleave = 0;  ///< blocks of rows in which the halves alternate
  std::int64_t block_rows = 0;
  std::int64_t block_cols = 0;
  /// Place of scale (row, col) in a grid of rows x cols.
  std::int64_t (*scale_place)(std::int64_t, std::int64_t, std::int64_t, std::int64_t) = row_major;
  bool codes = true;  ///< the codes are in row-major order
};

/// Which matrix and row the kernel's row `i` of w13 is.
struct KernelRow {
  bool is_gate;
  std::int64_t row;
};

KernelRow kernel_row(const Expected& e, std::int64_t i, std::int64_t half_rows,
                     std::int64_t block) {
  if (!e.shape.gated) return {false, i};
  const std::int64_t run = e.interleave / block;
  const bool second = run == 0 ? i >= half_rows : i / run % 2 == 1;
  const std::int64_t row = run == 0 ? i % half_rows : i / (2 * run) * run + i % run;
  return {second == e.up_first, row};
}

void expect_matrix(const Expected& e, const PreparedLayer& prepared, const MoeLayer& layer,
                   const std::string& name) {
  SCOPED_TRACE(e.backend + " " + name);
  const PreparedTensor* tensor = find(prepared, name);
  ASSERT_NE(tensor, nullptr);
  const Tensor made = make(*tensor, 1);
  const bool w13 = name.rfind("w13", 0) == 0;
  const bool scales = name.find("scale") != std::string::npos;
  const std::int64_t block_rows = scales ? e.block_rows : 1;
  const std::int64_t block_cols = scales ? e.block_cols : 1;
  const std::int64_t half = (w13 ? e.intermediate : e.hidden) / block_rows;
  const std::int64_t rows = half * (w13 && e.shape.gated ? 2 : 1);
  const std::int64_t cols = (w13 ? e.hidden : e.intermediate) / block_cols;
  const int bits = tensor->plan.map.element_bits;
  const std::int64_t expert_elements = tensor->plan.map.out_elements();
  const auto place = scales ? e.scale_place : row_major;
  for (std::int64_t expert = 0; expert < e.shape.experts; ++expert) {
    const Expert& source = layer.experts[static_cast<std::size_t>(expert)];
    for (std::int64_t i = 0; i < rows; ++i) {
      const KernelRow from = w13 ? kernel_row(e, i, half, block_rows) : KernelRow{false, i};
      const ScaledMatrix& matrix = !w13 ? source.down : from.is_gate ? source.gate : source.up;
      for (std::int64_t c = 0; c < cols; ++c) {
        const bool pad = from.row * block_rows >= matrix.rows || c * block_cols >= matrix.cols;
        const std::uint32_t wanted = pad      ? 0
                                     : scales ? scale_code(matrix, from.row, c)
                                              : weight_code(matrix, from.row, c);
        const std::int64_t at = expert * expert_elements + place(i, c, rows, cols);
        ASSERT_EQ(code(made.bytes.data(), at, bits), wanted) << expert << ", " << i << ", " << c;
      }
    }
  }
}

std::vector<Expected> expectations() {
  return {
      {.backend = "flashinfer_cutlass_bf16",
       .options = {},
       .shape = sample("bf16", 24, 40),
       .intermediate = 40,
       .hidden = 24},
      {.backend = "flashinfer_cutlass_bf16",
       .options = {},
       .shape = sample("bf16", 8, 8, false),
       .intermediate = 8,
       .hidden = 8},
      {.backend = "flashinfer_cutlass_fp8_block",
       .options = {},
       .shape = sample("fp8_block", 256, 128),
       .intermediate = 128,
       .hidden = 256,
       .block_rows = 128,
       .block_cols = 128},
      {.backend = "flashinfer_cutlass_nvfp4",
       .options = {},
       .shape = sample("nvfp4", 96, 64),
       .intermediate = 64,
       .hidden = 96,
       .block_rows = 1,
       .block_cols = 16,
       .scale_place = tiles_128x4},
      {.backend = "flashinfer_cutlass_nvfp4",
       .options = {"activation_scales=per_token"},
       .shape = sample("nvfp4_ct", 32, 80, false),
       .intermediate = 128,
       .hidden = 32,
       .block_rows = 1,
       .block_cols = 16,
       .scale_place = tiles_128x4},
      {.backend = "flashinfer_cutlass_mxfp8",
       .options = {},
       .shape = sample("mxfp8", 160, 128),
       .intermediate = 128,
       .hidden = 160,
       .block_rows = 1,
       .block_cols = 32,
       .scale_place = tiles_128x4},
      {.backend = "flashinfer_cutlass_mxfp8",
       .options = {},
       .shape = sample("mxfp8", 32, 96, false),
       .intermediate = 96,
       .hidden = 32,
       .block_rows = 1,
       .block_cols = 32,
       .scale_place = tiles_128x4},
      {.backend = "flashinfer_cutlass_mxfp8",
       .options = {},
       .shape = gpt_oss(96, 160),
       .intermediate = 256,
       .hidden = 128,
       .block_rows = 1,
       .block_cols = 32,
       .scale_place = tiles_128x4},
      {.backend = "flashinfer_cutedsl_v1",
       .options = {},
       .shape = sample("nvfp4", 48, 64),
       .intermediate = 64,
       .hidden = 48,
       .up_first = false,
       .block_rows = 1,
       .block_cols = 16,
       .scale_place = tiles_128x4},
      {.backend = "flashinfer_cutedsl_v1",
       .options = {},
       .shape = sample("nvfp4", 64, 48, false),
       .intermediate = 128,
       .hidden = 64,
       .block_rows = 1,
       .block_cols = 16,
       .scale_place = tiles_128x4},
      {.backend = "flashinfer_cutedsl_v2",
       .options = {},
       .shape = sample("nvfp4", 144, 192),
       .intermediate = 192,
       .hidden = 144,
       .interleave = 64,
       .block_rows = 1,
       .block_cols = 16,
       .scale_place = tiles_128x4},
      {.backend = "flashinfer_cutedsl_v2",
       .options = {},
       .shape = sample("nvfp4", 16, 48, false),
       .intermediate = 128,
       .hidden = 16,
       .block_rows = 1,
       .block_cols = 16,
       .scale_place = tiles_128x4},
      {.backend = "flashinfer_sm90_mxfp4",
       .options = {"layout=raw"},
       .shape = gpt_oss(96, 160),
       .intermediate = 256,
       .hidden = 128,
       .block_rows = 1,
       .block_cols = 32,
       .scale_place = legacy},
      {.backend = "flashinfer_sm90_mxfp4",
       .options = {"layout=v1"},
       .shape = gpt_oss(160, 32),
       .intermediate = 128,
       .hidden = 256,
       .block_rows = 1,
       .block_cols = 32,
       .scale_place = legacy,
       .codes = false},
      {.backend = "flashinfer_sm90_mxfp4",
       .options = {},
       .shape = gpt_oss(160, 32),
       .intermediate = 128,
       .hidden = 256,
       .block_rows = 1,
       .block_cols = 32,
       .scale_place = folded,
       .codes = false},
      {.backend = "flashinfer_sm90_mxfp4_dsv4",
       .options = {},
       .shape = sample("mxfp4", 256, 128),
       .intermediate = 128,
       .hidden = 256,
       .block_rows = 1,
       .block_cols = 32,
       .scale_place = folded,
       .codes = false},
  };
}

TEST(CutlassBackends, PutEveryCodeAndScaleInItsPlace) {
  for (const Expected& expected : expectations()) {
    const MoeLayer layer = sample_layer(expected.shape);
    const PreparedLayer prepared = plan(expected.backend, expected.options, layer);
    if (expected.codes) {
      expect_matrix(expected, prepared, layer, "w13");
      expect_matrix(expected, prepared, layer, "w2");
    }
    if (expected.block_rows != 0) {
      expect_matrix(expected, prepared, layer, "w13_scale");
      expect_matrix(expected, prepared, layer, "w2_scale");
    }
    const KernelReading& kernel = prepared.recipe.kernel;
    EXPECT_EQ(kernel.intermediate, expected.intermediate) << expected.backend;
    EXPECT_EQ(kernel.hidden, expected.hidden) << expected.backend;
  }
}

TEST(CutlassBackends, PassBiasesAsTheyAreUpFirst) {
  const MoeLayer layer = sample_layer(gpt_oss(96, 160));
  for (const char* backend : {"flashinfer_sm90_mxfp4", "flashinfer_cutlass_mxfp8"}) {
    const PreparedLayer prepared = plan(backend, {}, layer);
    const PreparedTensor& w13 = *find(prepared, "w13_bias");
    const PreparedTensor& w2 = *find(prepared, "w2_bias");
    EXPECT_EQ(w13.dtype, DType::bf16);
    EXPECT_THAT(w13.shape, ElementsAre(2, 512));
    EXPECT_THAT(w2.shape, ElementsAre(2, 128));
    const Tensor made = make(w13, 1);
    for (std::int64_t e = 0; e < 2; ++e) {
      const Expert& expert = layer.experts[static_cast<std::size_t>(e)];
      for (std::int64_t row = 0; row < 256; ++row) {
        const bool pad = row >= 160;
        EXPECT_EQ(code(made.bytes.data(), e * 512 + row, 16),
                  pad ? 0u : weight_code(expert.up_bias, 0, row));
        EXPECT_EQ(code(made.bytes.data(), e * 512 + 256 + row, 16),
                  pad ? 0u : weight_code(expert.gate_bias, 0, row));
      }
    }
  }
}

TEST(CutlassBackends, TellTheShapesAndStridesThatKernelsSee) {
  const PreparedLayer v2 =
      plan("flashinfer_cutedsl_v2", {}, sample_layer(sample("nvfp4", 144, 64)));
  EXPECT_THAT(find(v2, "w13_scale")->shape, ElementsAre(32, 4, 1, 4, 3, 2));
  EXPECT_THAT(find(v2, "w13_scale")->strides, ElementsAre(16, 4, 1536, 1, 512, 1536));
  EXPECT_THAT(find(v2, "w2_scale")->shape, ElementsAre(32, 4, 2, 4, 1, 2));
  const MoeLayer oss = sample_layer(gpt_oss(160, 96));
  const PreparedLayer sm90 = plan("flashinfer_sm90_mxfp4", {}, oss);
  EXPECT_THAT(find(sm90, "w13")->shape, ElementsAre(2, 256, 128));
  EXPECT_THAT(find(sm90, "w13_scale")->shape, ElementsAre(2, 4, 2, 16, 16));
  EXPECT_THAT(find(sm90, "w2_scale")->shape, ElementsAre(2, 4, 1, 16, 16));
  const PreparedLayer raw = plan("flashinfer_sm90_mxfp4", {"layout=raw"}, oss);
  EXPECT_THAT(find(raw, "w13_scale")->shape, ElementsAre(2, 2, 1024));
}

}  // namespace
}  // namespace moeref
