#include "layout/tiles/aiter.hpp"

#include <fmt/format.h>
#include <array>

#include <utility>

#include "layout/recode/fnuz.hpp"
#include "layout/recode/int4.hpp"
#include "layout/tiles/families.hpp"
#include "quant/error.hpp"

namespace moeref::tiles {
namespace {

using enum Axis;
using Parameters = std::span<const std::int64_t>;

constexpr std::int64_t kLanes = 64;  // of a wave
constexpr std::byte kOne{0x7F};      // E8M0

/// Digits of size 1 say nothing, and share their weight with the next digit.
std::vector<Digit> without_ones(std::vector<Digit> digits) {
  std::erase_if(digits, [](const Digit& digit) { return digit.size == 1; });
  return digits;
}

std::string_view suffix(StripeView view) {
  return view == StripeView::transposed ? "_transposed" : "";
}

/// [experts, rows / factor, columns * factor] in stored elements.
Shape stripes(const TileExtent& extent, std::int64_t factor) {
  return {extent.experts, extent.rows / factor, extent.stored(extent.cols * factor)};
}

/// The same bytes, stripes seen as columns.
void see_stripes(TileLayout& tile, std::int64_t factor, StripeView view) {
  if (view == StripeView::rows) {
    tile.shape = [factor](const TileExtent& extent) { return stripes(extent, factor); };
    return;
  }
  tile.shape = [factor](const TileExtent& extent) -> Shape {
    const Shape rows = stripes(extent, factor);
    return {rows[0], rows[2], rows[1]};
  };
  tile.strides = [factor](const TileExtent& extent) -> std::vector<std::int64_t> {
    const Shape rows = stripes(extent, factor);
    return {rows[1] * rows[2], 1, rows[2]};
  };
}

/// Tiles of factor x width, halves of each side innermost.
std::vector<Digit> paired_halves(std::int64_t factor, std::int64_t width) {
  return without_ones({{row, factor},
                       {col, width},
                       {col, 1, width / 2},
                       {row, 1, factor / 2},
                       {col, width / 2, 2},
                       {row, factor / 2, 2}});
}

/// The tile under another name, for columns that are a multiple of `whole`.
TileLayout whole_k(const std::string& name, TileLayout tile, std::int64_t whole) {
  if (whole % tile.need_cols != 0) {
    fail(name, "the columns come in {}, which tiles of {} columns do not divide", whole,
         tile.need_cols);
  }
  tile.name = name;
  tile.need_cols = whole;
  return tile;
}

/// Groups of `lanes` in a wave.
std::int64_t lane_groups(const std::string& name, std::int64_t lanes) {
  if (lanes > kLanes) fail(name, "a wave has {} lanes; choose at most that", kLanes);
  return kLanes / lanes;
}

/// v0 v4 v1 v5 v2 v6 v3 v7 of each run of 8 columns.
std::vector<Digit> int4_runs() { return {{col, 1, 4}, {col, 4, 2}}; }

}  // namespace

TileLayout aiter_tile(std::int64_t rows, std::int64_t cols) {
  return {.name = fmt::format("aiter_tile({}, {})", rows, cols),
          .digits = without_ones({{row, rows}, {col, cols}, {row, 1, rows}, {col, 1, cols}}),
          .bits = {4, 8, 16, 32},
          .need_rows = rows,
          .need_cols = cols};
}

TileLayout aiter_shuffle_weight(std::int64_t rows, std::int64_t k, std::int64_t element_bits) {
  const std::string name = fmt::format("aiter_shuffle_weight({}, {}, {})", rows, k, element_bits);
  if (element_bits != 4 && element_bits != 8 && element_bits != 16 && element_bits != 32) {
    fail(name, "elements have 4, 8, 16 or 32 bits");
  }
  const std::int64_t packed = element_bits == 4 ? 2 : 1;
  TileLayout tile =
      whole_k(name, aiter_tile(rows, 16 * 8 / element_bits), /*whole=*/packed * 2 * k);
  tile.bits = {static_cast<int>(element_bits)};
  return tile;
}

TileLayout aiter_shuffle_int4_values(std::int64_t rows, std::int64_t k) {
  return whole_k(fmt::format("aiter_shuffle_int4_values({}, {})", rows, k), aiter_tile(rows, 32),
                 2 * k);
}

TileLayout aiter_shuffle_weight_a16w4(std::int64_t lanes, std::int64_t pack) {
  const std::string name = fmt::format("aiter_shuffle_weight_a16w4({}, {})", lanes, pack);
  return whole_k(name, aiter_tile(lanes, pack), lane_groups(name, lanes) * pack);
}

TileLayout aiter_shuffle_weight_nk(std::int64_t n, std::int64_t k) {
  const std::string name = fmt::format("aiter_shuffle_weight_nk({}, {})", n, k);
  const std::int64_t groups = lane_groups(name, n);
  if (k % groups != 0) fail(name, "k must be a multiple of 64 / n = {}", groups);
  return whole_k(name, aiter_tile(n, k / groups), k);
}

TileLayout aiter_shuffle_weight_gfx1250(StripeView view) {
  TileLayout tile =
      whole_k(fmt::format("aiter_weight_gfx1250{}", suffix(view)), aiter_tile(16, 16), 32);
  see_stripes(tile, 16, view);
  return tile;
}

TileLayout aiter_e8m0_shuffle() {
  return {.name = "aiter_e8m0_shuffle",
          .digits = paired_halves(32, 8),
          .bits = {8, 16},
          .pad_rows = 256,
          .pad_cols = 8};
}

TileLayout aiter_shuffle_scale() {
  return {.name = "aiter_shuffle_scale",
          .digits = paired_halves(32, 8),
          .bits = {8},
          .pad_cols = 8,
          .fill = kOne,
          .need_rows = 32};
}

TileLayout aiter_shuffle_scale_n32k4() {
  TileLayout tile = aiter_tile(32, 4);
  tile.name = "aiter_scale_n32k4";
  see_stripes(tile, 32, StripeView::rows);
  return tile;
}

TileLayout aiter_shuffle_mxfp8fp4_scale() {
  TileLayout tile = aiter_tile(32, 4);
  tile.name = "aiter_mxfp8fp4_scale";
  tile.bits = {8};
  tile.pad_rows = 32;
  tile.need_rows = 1;
  tile.fill = kOne;
  return tile;
}

TileLayout aiter_scale_gfx1250(std::int64_t factor, std::int64_t width, StripeView view) {
  TileLayout tile = aiter_tile(factor, width);
  tile.name = fmt::format("aiter_scale_gfx1250{}({}, {})", suffix(view), factor, width);
  see_stripes(tile, factor, view);
  return tile;
}

TileLayout aiter_scale_gfx950(std::int64_t factor, std::int64_t width, StripeView view) {
  TileLayout tile{.name = fmt::format("aiter_scale_gfx950{}({}, {})", suffix(view), factor, width),
                  .digits = paired_halves(factor, width),
                  .bits = {8, 16, 32},
                  .need_rows = factor,
                  .need_cols = width};
  if (factor % 2 != 0 || width % 2 != 0) fail(tile.name, "both sizes must be even");
  see_stripes(tile, factor, view);
  return tile;
}

TileLayout aiter_scale_batched(std::int64_t width) {
  TileLayout tile{.name = fmt::format("aiter_scale_batched({})", width),
                  .digits = without_ones(
                      {{row, 128}, {col, width}, {row, 1, 32}, {row, 32, 4}, {col, 1, width}}),
                  .bits = {8, 16, 32},
                  .need_rows = 128,
                  .need_cols = width};
  see_stripes(tile, 128, StripeView::rows);
  return tile;
}

TileLayout aiter_pack_int4() {
  std::vector<Digit> digits{{row, 1}, {col, 8}};
  for (const Digit& digit : int4_runs()) digits.push_back(digit);
  return {.name = "aiter_pack_int4", .digits = std::move(digits), .bits = {4}, .need_cols = 8};
}

TileLayout aiter_int4_weight() {
  std::vector<Digit> digits{{row, 16}, {col, 16}, {row, 1, 16}, {col, 8, 2}};
  for (const Digit& digit : int4_runs()) digits.push_back(digit);
  return {.name = "aiter_int4_weight",
          .digits = std::move(digits),
          .bits = {4},
          .need_rows = 16,
          .need_cols = 32};
}

TileLayout aiter_int4_scale() {
  return {.name = "aiter_int4_scale",
          .digits = {{row, 2}, {col, 1}, {row, 1, 2}},
          .bits = {16},
          .need_rows = 2,
          .shape = [](const TileExtent& extent) -> Shape {
            return {extent.experts, extent.rows / 2, extent.cols, 2};
          }};
}

namespace {

constexpr std::string_view kShuffle = "aiter@e4048607a5 ops/shuffle.py";
constexpr std::string_view kTriton = "aiter@e4048607a5 ops/triton/utils/shuffle.py";
constexpr std::string_view kFnuz = "sglang fp8_utils.py normalize_e4m3fn_to_e4m3fnuz";

const std::array<NamedStep, 22> kSteps{{
    {"aiter_tile", "rows, cols", StepKind::move, "tiles of rows x cols, row-major", kShuffle,
     [](Parameters p) -> Step { return Tile{aiter_tile(p[0], p[1])}; }},
    {"aiter_shuffle_weight", "rows, k, bits", StepKind::move,
     "shuffle_weight((rows, k)): tiles of rows x 16 bytes", kShuffle,
     [](Parameters p) -> Step { return Tile{aiter_shuffle_weight(p[0], p[1], p[2])}; }},
    {"aiter_shuffle_int4_values", "rows, k", StepKind::move,
     "shuffle_weight(use_int4): tiles of rows x 32 values", kShuffle,
     [](Parameters p) -> Step { return Tile{aiter_shuffle_int4_values(p[0], p[1])}; }},
    {"aiter_shuffle_weight_a16w4", "lanes, pack", StepKind::move,
     "tiles of lanes x pack; after interleave_halves(lanes) if gate_up", kShuffle,
     [](Parameters p) -> Step { return Tile{aiter_shuffle_weight_a16w4(p[0], p[1])}; }},
    {"aiter_shuffle_weight_nk", "n, k", StepKind::move,
     "shuffle_weight_NK: tiles of n x k / (64 / n)", kShuffle,
     [](Parameters p) -> Step { return Tile{aiter_shuffle_weight_nk(p[0], p[1])}; }},
    {"aiter_weight_gfx1250", "", StepKind::move, "tiles of 16 x 16, seen as [rows / 16, 16 cols]",
     kShuffle,
     [](Parameters) -> Step { return Tile{aiter_shuffle_weight_gfx1250(StripeView::rows)}; }},
    {"aiter_weight_gfx1250_transposed", "", StepKind::move,
     "the same bytes, seen as [16 cols, rows / 16]", kShuffle,
     [](Parameters) -> Step { return Tile{aiter_shuffle_weight_gfx1250(StripeView::transposed)}; }},
    {"aiter_e8m0_shuffle", "", StepKind::move,
     "scale tiles of 32 x 8, padded to 256 x 8 (undefined in aiter, here 0)", kShuffle,
     [](Parameters) -> Step { return Tile{aiter_e8m0_shuffle()}; }},
    {"aiter_shuffle_scale", "", StepKind::move,
     "scale tiles of 32 x 8, columns padded with 0x7F; see the weight for gate_up", kShuffle,
     [](Parameters) -> Step { return Tile{aiter_shuffle_scale()}; }},
    {"aiter_scale_n32k4", "", StepKind::move, "scale tiles of 32 x 4 (gfx1250 grouped MoE)",
     kShuffle, [](Parameters) -> Step { return Tile{aiter_shuffle_scale_n32k4()}; }},
    {"aiter_mxfp8fp4_scale", "", StepKind::move,
     "scale tiles of 32 x 4, rows padded with 0x7F (gfx1250 GEMM)", kShuffle,
     [](Parameters) -> Step { return Tile{aiter_shuffle_mxfp8fp4_scale()}; }},
    {"aiter_scale_gfx1250", "factor, width", StepKind::move,
     "Triton scales: tiles of factor x width as stripes", kTriton,
     [](Parameters p) -> Step { return Tile{aiter_scale_gfx1250(p[0], p[1], StripeView::rows)}; }},
    {"aiter_scale_gfx1250_transposed", "factor, width", StepKind::move,
     "the same bytes, stripes seen as columns (MoE)", kTriton,
     [](Parameters p) -> Step {
       return Tile{aiter_scale_gfx1250(p[0], p[1], StripeView::transposed)};
     }},
    {"aiter_scale_gfx950", "factor, width", StepKind::move,
     "Triton scales: tiles of factor x width, halves innermost, as stripes", kTriton,
     [](Parameters p) -> Step { return Tile{aiter_scale_gfx950(p[0], p[1], StripeView::rows)}; }},
    {"aiter_scale_gfx950_transposed", "factor, width", StepKind::move,
     "the same bytes, stripes seen as columns (MoE)", kTriton,
     [](Parameters p) -> Step {
       return Tile{aiter_scale_gfx950(p[0], p[1], StripeView::transposed)};
     }},
    {"aiter_scale_batched", "width", StepKind::move, "Triton scales of FP4 with blocks of 16",
     kTriton, [](Parameters p) -> Step { return Tile{aiter_scale_batched(p[0])}; }},
    {"aiter_pack_int4", "", StepKind::move, "after int8_to_int4: bytes v0 v4, v1 v5, v2 v6, v3 v7",
     kShuffle, [](Parameters) -> Step { return Tile{aiter_pack_int4()}; }},
    {"aiter_int4_weight", "", StepKind::move,
     "after int8_to_int4: aiter_tile(16, 16), then packed as aiter_pack_int4", kShuffle,
     [](Parameters) -> Step { return Tile{aiter_int4_weight()}; }},
    {"aiter_int4_scale", "", StepKind::move, "16-bit scales [g, n] -> [g / 2, n, 2]", kShuffle,
     [](Parameters) -> Step { return Tile{aiter_int4_scale()}; }},
    {"int8_to_int4", "", StepKind::recode, "one int4 value a byte to 4-bit codes", kShuffle,
     [](Parameters) -> Step { return recode::int8_to_int4(); }},
    {"e4m3fn_to_fnuz", "", StepKind::recode, "E4M3 codes for FNUZ devices: 0x80 becomes 0x00",
     kFnuz, [](Parameters) -> Step { return recode::e4m3fn_to_fnuz(); }},
    {"double_scales", "", StepKind::recode, "f32 scales times 2, for e4m3fn_to_fnuz", kFnuz,
     [](Parameters) -> Step { return recode::double_scales(); }},
}};

}  // namespace

std::span<const NamedStep> aiter() { return kSteps; }

}  // namespace moeref::tiles
