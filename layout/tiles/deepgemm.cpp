#include "layout/tiles/deepgemm.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "layout/recode/ue8m0.hpp"
#include "layout/tiles/families.hpp"
#include "quant/error.hpp"

namespace moeref::tiles {
namespace {

using enum Axis;
using Parameters = std::span<const std::int64_t>;
using Strides = std::vector<std::int64_t>;

Strides mn_major_strides(const TileExtent& extent) {
  return {extent.rows * extent.cols, 1, extent.rows};
}

}  // namespace

TileLayout deepgemm_mn_major() {
  return {.name = "deepgemm_mn_major",
          .digits = {{col, 1}, {row, 1}},
          .bits = {8, 16, 32},
          .strides = mn_major_strides};
}

TileLayout deepgemm_tma_aligned() {
  TileLayout tile = deepgemm_mn_major();
  tile.name = "deepgemm_tma_aligned";
  tile.bits = {32};
  tile.pad_rows = 4;
  return tile;
}

TileLayout deepgemm_pack_ue8m0() {
  return {.name = "deepgemm_pack_ue8m0",
          .digits = {{col, 4}, {row, 1}, {col, 1, 4}},
          .bits = {8},
          .pad_rows = 4,
          .pad_cols = 4,
          .shape = [](const TileExtent& extent) -> Shape {
            return {extent.experts, extent.rows, extent.cols / 4};
          },
          .strides = [](const TileExtent& extent) -> Strides {
            return {extent.rows * extent.cols / 4, 1, extent.rows};
          },
          .dtype = DType::i32};
}

TileLayout deepgemm_pack_ue8m0_k_grouped() {
  return {.name = "deepgemm_pack_ue8m0_k_grouped",
          .digits = {{row, 4}, {col, 1}, {row, 1, 4}},
          .bits = {8},
          .pad_rows = 4,
          .need_cols = 4,
          .shape = [](const TileExtent& extent) -> Shape {
            return {extent.experts, extent.rows / 4, extent.cols};
          },
          .dtype = DType::i32};
}

TileLayout deepgemm_ue8m0_words() {
  return {.name = "deepgemm_ue8m0_words",
          .digits = {{row, 1}, {col, 1}},
          .bits = {8},
          .need_cols = 4,
          .shape = [](const TileExtent& extent) -> Shape {
            return {extent.experts, extent.rows, extent.cols / 4};
          },
          .dtype = DType::i32};
}

TileLayout deepgemm_int8_fp4() {
  return {
      .name = "deepgemm_int8_fp4", .digits = {{row, 1}, {col, 1}}, .bits = {4}, .dtype = DType::i8};
}

TileLayout transpose_packed_fp4() {
  return {.name = "transpose_packed_fp4",
          .digits = {{col, 1}, {row, 1}},
          .bits = {4},
          .need_rows = 2,
          .shape = [](const TileExtent& extent) -> Shape {
            return {extent.experts, extent.cols, extent.rows / 2};
          },
          .dtype = DType::i8};
}

std::span<const NamedStep> deepgemm() {
  constexpr std::string_view kLayout = "DeepGEMM@54e2261 csrc/jit_kernels/impls/smxx_layout.hpp";
  constexpr std::string_view kMath = "DeepGEMM@54e2261 deep_gemm/utils/math.py";
  static const std::array<NamedStep, 8> steps{{
      {"deepgemm_mn_major", "", StepKind::move, "columns one after the other",
       "DeepGEMM@54e2261 csrc/utils/layout.hpp check_sf_layout",
       [](Parameters) -> Step { return Tile{deepgemm_mn_major()}; }},
      {"deepgemm_tma_aligned", "", StepKind::move,
       "columns one after the other, 4-byte rows padded to 4 with 0", kLayout,
       [](Parameters) -> Step { return Tile{deepgemm_tma_aligned()}; }},
      {"deepgemm_exponents", "", StepKind::recode, "bits 30 .. 23 of f32 scales: their E8M0 byte",
       kLayout, [](Parameters) -> Step { return recode::exponent_bytes(); }},
      {"deepgemm_pack_ue8m0", "", StepKind::pack,
       "exponent bytes, 4 columns a word, MN-major, padded to 4 with 0", kLayout,
       [](Parameters) -> Step { return Tile{deepgemm_pack_ue8m0()}; }},
      {"deepgemm_pack_ue8m0_k_grouped", "", StepKind::pack,
       "exponent bytes [k, mn] of one K group, 4 rows a word", kLayout,
       [](Parameters) -> Step { return Tile{deepgemm_pack_ue8m0_k_grouped()}; }},
      {"deepgemm_ue8m0_words", "", StepKind::pack, "exponent bytes as they are, seen as words",
       kMath, [](Parameters) -> Step { return Tile{deepgemm_ue8m0_words()}; }},
      {"deepgemm_int8_fp4", "", StepKind::pack, "FP4 as it is, in int8 bytes", kMath,
       [](Parameters) -> Step { return Tile{deepgemm_int8_fp4()}; }},
      {"transpose_packed_fp4", "", StepKind::pack, "FP4 [m, n] to [n, m], packed along m", kMath,
       [](Parameters) -> Step { return Tile{transpose_packed_fp4()}; }},
  }};
  return steps;
}

}  // namespace moeref::tiles

namespace moeref::deepgemm {
namespace {

constexpr std::int64_t kWordsPerTma = 4;  // 16 bytes

std::int64_t tma_aligned(std::int64_t mn) { return ceil_div(mn, kWordsPerTma) * kWordsPerTma; }

/// Shape and strides with a leading 1 for a tensor without groups.
struct Batched {
  std::int64_t mn_blocks;
  std::int64_t k_blocks;
  std::int64_t group_stride;
  std::int64_t mn_stride;
  std::int64_t k_stride;
};

void check_shape(const ScaleFactors& scales, const ScaleRequest& request) {
  const Shape& shape = scales.shape;
  if (scales.dtype != DType::f32 && scales.dtype != DType::i32) {
    fail(scales.name, "is {}; scales are F32, or I32 with four exponents a word",
         name(scales.dtype));
  }
  constexpr std::int64_t kMost = std::int64_t{1} << 31;  // DeepGEMM counts in int
  const auto is_size = [](std::int64_t size, std::int64_t least) {
    return size >= least && size < kMost;
  };
  if (!is_size(request.gran_mn, 1) || !is_size(request.gran_k, 1) || !is_size(request.mn, 0) ||
      !is_size(request.k, 0)) {
    fail(scales.name, "mn {}, k {}, granularity ({}, {}): sizes must be positive and below {}",
         request.mn, request.k, request.gran_mn, request.gran_k, kMost);
  }
  const std::size_t rank = request.groups ? 3 : 2;
  if (shape.size() != rank) {
    fail(scales.name, "has shape {}; {} groups need rank {}", to_string(shape),
         request.groups ? "given" : "no", rank);
  }
  if (request.groups && shape[0] != *request.groups) {
    fail(scales.name, "has {} groups; {} are needed", shape[0], *request.groups);
  }
  const std::int64_t packed = scales.dtype == DType::f32 ? 1 : 4;
  const std::int64_t mn_blocks = ceil_div(request.mn, request.gran_mn);
  const std::int64_t k_blocks = ceil_div(request.k, request.gran_k * packed);
  if (shape[rank - 2] != mn_blocks || shape[rank - 1] != k_blocks) {
    fail(scales.name, "has [{}, {}] scales; mn {} / {} and k {} / {} need [{}, {}]",
         shape[rank - 2], shape[rank - 1], request.mn, request.gran_mn, request.k,
         request.gran_k * packed, mn_blocks, k_blocks);
  }
  if (!scales.strides.empty() && scales.strides.size() != rank) {
    fail(scales.name, "has {} strides for rank {}", scales.strides.size(), rank);
  }
}

Batched batched(const ScaleFactors& scales) {
  const std::size_t rank = scales.shape.size();
  const std::int64_t rows = scales.shape[rank - 2];
  const std::int64_t cols = scales.shape[rank - 1];
  if (scales.strides.empty()) return {rows, cols, rows * cols, cols, 1};
  return {rows, cols, rank == 3 ? scales.strides[0] : 0, scales.strides[rank - 2],
          scales.strides[rank - 1]};
}

/// 128 x 128 scales of SM90: row-major or exactly transposed.
std::vector<Step> keep_sm90(const ScaleFactors& scales, const ScaleRequest& request) {
  const Batched sizes = batched(scales);
  const bool dense = !request.groups || sizes.group_stride == sizes.mn_blocks * sizes.k_blocks;
  if (dense && sizes.k_stride == 1 && sizes.mn_stride == sizes.k_blocks) return {};
  if (dense && sizes.k_stride == sizes.mn_blocks && sizes.mn_stride == 1) {
    return {Tile{tiles::deepgemm_mn_major()}};
  }
  fail(scales.name, "has strides ({}); 128 x 128 scales must be contiguous or exactly transposed",
       fmt::join(scales.strides, ", "));
}

/// Words that are already packed.
std::vector<Step> keep_packed(const ScaleFactors& scales, const ScaleRequest& request) {
  const Batched sizes = batched(scales);
  const bool groups = !request.groups || sizes.group_stride == sizes.k_stride * sizes.k_blocks;
  const bool mn_major = sizes.mn_stride == 1 || request.mn == 1;
  if (groups && mn_major && sizes.k_stride == tma_aligned(request.mn)) {
    return {Tile{tiles::deepgemm_tma_aligned()}};
  }
  fail(scales.name,
       "is packed with strides ({}); it must be MN-major with {} words from column to column",
       scales.strides.empty() ? std::string("contiguous")
                              : fmt::format("{}", fmt::join(scales.strides, ", ")),
       tma_aligned(request.mn));
}

}  // namespace

std::vector<Step> required_layout(const ScaleFactors& scales, const ScaleRequest& request) {
  check_shape(scales, request);
  const bool floats = scales.dtype == DType::f32;
  const bool keeps_floats = request.arch == 9 || request.disable_ue8m0_cast;
  const bool packable = request.gran_k == 32 || request.gran_k == 128;
  if (floats && keeps_floats && request.gran_k == 128 && request.gran_mn == 1) {
    return {Tile{tiles::deepgemm_tma_aligned()}};
  }
  if (floats && keeps_floats && request.gran_k == 128 && request.gran_mn == 128) {
    return keep_sm90(scales, request);
  }
  if (floats && packable && request.arch == 10) {
    if (request.disable_ue8m0_cast) {
      fail(scales.name, "granularity ({}, {}) needs the cast to UE8M0, which is disabled",
           request.gran_mn, request.gran_k);
    }
    std::vector<Step> steps{recode::exponent_bytes()};
    if (request.gran_mn != 1) steps.emplace_back(RepeatRows{request.gran_mn, request.mn});
    steps.emplace_back(Tile{tiles::deepgemm_pack_ue8m0()});
    return steps;
  }
  if (!floats && packable && request.gran_mn == 1 && request.arch == 10) {
    return keep_packed(scales, request);
  }
  fail(scales.name, "SM{}0 has no layout for {} scales of granularity ({}, {})", request.arch,
       name(scales.dtype), request.gran_mn, request.gran_k);
}

std::array<std::int64_t, 3> default_recipe(std::int64_t arch, DType a_scales, DType b_scales) {
  if (arch == 9 && a_scales == DType::f32 && b_scales == DType::f32) return {1, 128, 128};
  if (arch == 10 && b_scales == DType::f32) return {1, 128, 128};
  if (arch == 10 && b_scales == DType::i32) return {1, 1, 128};
  fail("default_recipe", "SM{}0 takes no {} and {} scales", arch, name(a_scales), name(b_scales));
}

}  // namespace moeref::deepgemm
