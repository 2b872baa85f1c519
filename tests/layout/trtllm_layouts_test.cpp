// Every byte of the TRTLLM-Gen backends against formulas written down on their own: where row i
// comes from, where scale (r, c) stands.

#include <gtest/gtest.h>

#include <cctype>
#include <string>
#include <vector>

#include "layout/backend.hpp"
#include "layout/prepare.hpp"
#include "layout/sample_layer.hpp"
#include "quant/dequantize.hpp"
#include "quant/formats.hpp"
#include "tests/layout/trtllm_formulas.hpp"

namespace moeref {
namespace {

/// How a backend lays a sample layer out.
struct Expected {
  std::string backend;
  std::vector<std::string> options;
  SampleShape shape;
  std::int64_t intermediate;  ///< padded
  std::int64_t hidden;
  std::int64_t shuffle = 32;  ///< 0: rows as they are
  bool alternate = true;
  std::int64_t k_block = 0;  ///< BlockMajorK
  std::int64_t scale_rows = 0;
  std::int64_t scale_cols = 0;
  bool swizzled = true;
};

std::string describe(const Expected& expected) {
  std::string text = expected.backend;
  for (const std::string& option : expected.options) text += " " + option;
  return text;
}

std::vector<Expected> expectations() {
  const auto sample = [](std::string format, std::int64_t hidden, std::int64_t intermediate,
                         bool gated = true) {
    SampleShape shape{.experts = 2,
                      .hidden = hidden,
                      .intermediate = intermediate,
                      .gated = gated,
                      .weight_format = std::move(format),
                      .seed = 7};
    return shape;
  };
  SampleShape oss = sample("mxfp4", 160, 96);
  oss.bias = oss.interleaved = true;
  SampleShape v4 = sample("mxfp4", 128, 64);
  v4.limit = 10.0f;
  return {
      {.backend = "flashinfer_trtllm_nvfp4",
       .options = {},
       .shape = sample("nvfp4", 128, 80),
       .intermediate = 128,
       .hidden = 128,
       .scale_rows = 1,
       .scale_cols = 16},
      {.backend = "flashinfer_trtllm_nvfp4",
       .options = {"loader=unpadded"},
       .shape = sample("nvfp4_ct", 128, 48),
       .intermediate = 64,
       .hidden = 128,
       .scale_rows = 1,
       .scale_cols = 16},
      {.backend = "flashinfer_trtllm_nvfp4",
       .options = {"hidden=to_256", "loader=unpadded"},
       .shape = sample("nvfp4", 160, 48, false),
       .intermediate = 128,
       .hidden = 256,
       .scale_rows = 1,
       .scale_cols = 16},
      {.backend = "flashinfer_trtllm_mxfp8",
       .options = {"loader=unpadded"},
       .shape = sample("mxfp8", 256, 96),
       .intermediate = 128,
       .hidden = 256,
       .scale_rows = 1,
       .scale_cols = 32},
      {.backend = "flashinfer_trtllm_mxfp8",
       .options = {},
       .shape = sample("mxfp8", 128, 160, false),
       .intermediate = 256,
       .hidden = 128,
       .scale_rows = 1,
       .scale_cols = 32},
      {.backend = "flashinfer_trtllm_mxfp4",
       .options = {},
       .shape = oss,
       .intermediate = 256,
       .hidden = 256,
       .scale_rows = 1,
       .scale_cols = 32},
      {.backend = "flashinfer_trtllm_mxfp4",
       .options = {"align=128"},
       .shape = oss,
       .intermediate = 128,
       .hidden = 256,
       .scale_rows = 1,
       .scale_cols = 32},
      {.backend = "flashinfer_trtllm_mxfp4_dsv4",
       .options = {},
       .shape = v4,
       .intermediate = 128,
       .hidden = 128,
       .scale_rows = 1,
       .scale_cols = 32},
      {.backend = "flashinfer_trtllm_mxfp4_dsv4",
       .options = {"reorder=off_upstream"},
       .shape = v4,
       .intermediate = 128,
       .hidden = 128,
       .alternate = false,
       .scale_rows = 1,
       .scale_cols = 32},
      {.backend = "flashinfer_trtllm_fp8",
       .options = {"requantize=off", "loader=unpadded"},
       .shape = sample("fp8_tensor", 96, 72),
       .intermediate = 80,
       .hidden = 96},
      {.backend = "flashinfer_trtllm_fp8",
       .options = {"requantize=off"},
       .shape = sample("fp8_tensor", 32, 72, false),
       .intermediate = 128,
       .hidden = 32},
      {.backend = "flashinfer_trtllm_fp8_block",
       .options = {},
       .shape = sample("fp8_block", 128, 192),
       .intermediate = 256,
       .hidden = 128,
       .shuffle = 0,
       .alternate = false,
       .scale_rows = 128,
       .scale_cols = 128,
       .swizzled = false},
      {.backend = "flashinfer_trtllm_fp8_block",
       .options = {"layout=block_major_k", "clamp_scales=on"},
       .shape = sample("fp8_block", 256, 128),
       .intermediate = 128,
       .hidden = 256,
       .shuffle = 16,
       .alternate = false,
       .k_block = 128,
       .scale_rows = 128,
       .scale_cols = 128,
       .swizzled = false},
      {.backend = "flashinfer_trtllm_bf16",
       .options = {},
       .shape = sample("bf16", 64, 40),
       .intermediate = 128,
       .hidden = 64,
       .k_block = 64},
      {.backend = "flashinfer_trtllm_bf16",
       .options = {"loader=unpadded", "align=64"},
       .shape = sample("bf16", 128, 40, false),
       .intermediate = 64,
       .hidden = 128,
       .k_block = 64},
  };
}

class TrtllmBackend : public ::testing::TestWithParam<Expected> {
 protected:
  TrtllmBackend() : layer_(sample_layer(GetParam().shape)) {
    if (GetParam().shape.weight_format == "fp8_tensor") {
      for (Expert& expert : layer_.experts) {
        if (expert.gate) expert.up.scales = expert.gate.scales;
      }
    }
    const Backend& backend = find_backend(GetParam().backend);
    prepared_ = plan_layer(backend, parse_options(backend, GetParam().options), layer_, {});
  }

  Tensor made(std::string_view name) const {
    for (const PreparedTensor& tensor : prepared_.tensors) {
      if (tensor.name == name) return make(tensor, 1);
    }
    ADD_FAILURE() << "no " << name;
    return {};
  }

  /// The matrix and its row at row i of the kernel's w13, or no matrix for a pad. `unit`: weight
  /// rows of one row.
  std::pair<const ScaledMatrix*, std::int64_t> w13_row(const Expert& expert, std::int64_t i,
                                                       std::int64_t unit, bool move) const {
    const bool gated = GetParam().shape.gated;
    const std::int64_t half = GetParam().intermediate / unit;
    if (move && GetParam().shuffle != 0) i = shuffled(i, GetParam().shuffle);
    if (move && gated && GetParam().alternate) i = alternating(i, 2 * half);
    const bool gate = gated && i >= half;
    const std::int64_t row = i % half;
    const std::int64_t present = (GetParam().shape.intermediate + unit - 1) / unit;
    if (row >= present) return {nullptr, 0};
    return {gate ? &expert.gate : &expert.up, row};
  }

  std::pair<const ScaledMatrix*, std::int64_t> w2_row(const Expert& expert, std::int64_t i,
                                                      std::int64_t unit, bool move) const {
    if (move && GetParam().shuffle != 0) i = shuffled(i, GetParam().shuffle);
    const std::int64_t present = (GetParam().shape.hidden + unit - 1) / unit;
    if (i >= present) return {nullptr, 0};
    return {&expert.down, i};
  }

  MoeLayer layer_;
  PreparedLayer prepared_;
};

TEST_P(TrtllmBackend, PutsEveryCodeWhereTheKernelReadsIt) {
  const Expected& expected = GetParam();
  for (const bool first : {true, false}) {
    const Tensor tensor = made(first ? "w13" : "w2");
    const std::int64_t halves = expected.shape.gated ? 2 : 1;
    const std::int64_t rows = first ? halves * expected.intermediate : expected.hidden;
    const std::int64_t cols = first ? expected.hidden : expected.intermediate;
    const int bits = info(layer_.experts[0].up.codes.format).bits;
    ASSERT_EQ(static_cast<std::int64_t>(tensor.bytes.size()) * 8,
              expected.shape.experts * rows * cols * bits);
    for (std::int64_t e = 0; e < expected.shape.experts; ++e) {
      const Expert& expert = layer_.experts[static_cast<std::size_t>(e)];
      for (std::int64_t i = 0; i < rows; ++i) {
        const auto [matrix, row] = first ? w13_row(expert, i, 1, true) : w2_row(expert, i, 1, true);
        for (std::int64_t k = 0; k < cols; ++k) {
          const std::int64_t block = expected.k_block == 0 ? cols : expected.k_block;
          const std::int64_t place = e * rows * cols + (k / block * rows + i) * block + k % block;
          const bool pad = matrix == nullptr || k >= matrix->cols;
          ASSERT_EQ(stored(tensor, place, bits), pad ? 0u : code_at(*matrix, row, k))
              << (first ? "w13" : "w2") << " expert " << e << " row " << i << " column " << k;
        }
      }
    }
  }
}

TEST_P(TrtllmBackend, PutsEveryBlockScaleWhereTheKernelReadsIt) {
  const Expected& expected = GetParam();
  if (expected.scale_cols == 0) {
    for (const PreparedTensor& tensor : prepared_.tensors) EXPECT_NE(tensor.name, "w13_scale");
    return;
  }
  for (const bool first : {true, false}) {
    const Tensor tensor = made(first ? "w13_scale" : "w2_scale");
    const std::int64_t halves = expected.shape.gated ? 2 : 1;
    const std::int64_t rows =
        (first ? halves * expected.intermediate : expected.hidden) / expected.scale_rows;
    const std::int64_t cols =
        (first ? expected.hidden : expected.intermediate) / expected.scale_cols;
    const int bits = info(layer_.experts[0].up.scales->format).bits;
    ASSERT_EQ(tensor.shape, (Shape{expected.shape.experts, rows, cols}));
    for (std::int64_t e = 0; e < expected.shape.experts; ++e) {
      const Expert& expert = layer_.experts[static_cast<std::size_t>(e)];
      for (std::int64_t i = 0; i < rows; ++i) {
        const bool move = expected.scale_rows == 1;
        const auto [matrix, row] = first ? w13_row(expert, i, expected.scale_rows, move)
                                         : w2_row(expert, i, expected.scale_rows, move);
        for (std::int64_t c = 0; c < cols; ++c) {
          const std::int64_t inside = expected.swizzled ? place_128x4(i, c, cols) : i * cols + c;
          const bool pad = matrix == nullptr || c * expected.scale_cols >= matrix->cols;
          ASSERT_EQ(stored(tensor, e * rows * cols + inside, bits),
                    pad ? 0u : scale_code(*matrix, row, c))
              << (first ? "w13" : "w2") << " expert " << e << " row " << i << " column " << c;
        }
      }
    }
  }
}

TEST_P(TrtllmBackend, TellsTheKernelsReading) {
  const KernelReading& kernel = prepared_.recipe.kernel;
  const Expected& expected = GetParam();
  EXPECT_EQ(kernel.order, expected.shape.gated ? GateOrder::up_gate : GateOrder::none);
  EXPECT_EQ(kernel.intermediate, expected.intermediate);
  EXPECT_EQ(kernel.hidden, expected.hidden);
  EXPECT_EQ(kernel.codes, layer_.experts[0].up.codes.format);
  EXPECT_EQ(kernel.block_cols, expected.scale_cols);
  EXPECT_EQ(kernel.block_rows, expected.scale_rows);
  EXPECT_EQ(kernel.w13_scale != nullptr, expected.scale_cols != 0);
  if (kernel.w13_scale == nullptr) return;
  const ScaleGrid& grid = *layer_.experts[0].up.scales;
  const auto width = static_cast<std::size_t>(info(grid.format).bits) / 8;
  const std::vector<float> decoded = kernel.w13_scale({grid.data, width});
  EXPECT_EQ(decoded, std::vector<float>{scale_at(layer_.experts[0].up, 0, 0)});
}

INSTANTIATE_TEST_SUITE_P(Samples, TrtllmBackend, ::testing::ValuesIn(expectations()),
                         [](const auto& tested) {
                           std::string name = describe(tested.param);
                           for (char& c : name) {
                             if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
                           }
                           return name + "_" + std::to_string(tested.index);
                         });

}  // namespace
}  // namespace moeref
