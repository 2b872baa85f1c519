#include "layout/tiles/sm90.hpp"

#include <fmt/format.h>

#include <array>
#include <memory>

#include "layout/tiles/families.hpp"
#include "quant/error.hpp"

namespace moeref::tiles {
namespace {

using enum Axis;
using Parameters = std::span<const std::int64_t>;

/// Bits of a weight word: codes N0 .. N7, N0 lowest. Bit b of code n goes to kFp4Places[n][3 - b]
/// (the sign first). Codes 6 and 7 have their lowest bit beside the sign.
constexpr std::array<std::array<int, 4>, 8> kFp4Places{{{15, 8, 7, 6},
                                                        {31, 24, 23, 22},
                                                        {12, 5, 4, 3},
                                                        {28, 21, 20, 19},
                                                        {9, 2, 1, 0},
                                                        {25, 18, 17, 16},
                                                        {14, 11, 10, 13},
                                                        {30, 27, 26, 29}}};
/// The code whose sign place the sign of code n takes.
constexpr std::array<int, 8> kSignPlaces{1, 3, 5, 7, 0, 2, 4, 6};

constexpr std::array<std::array<int, 4>, 8> fp4_fp8_places() {
  std::array<std::array<int, 4>, 8> places{};
  for (std::size_t n = 0; n < 8; ++n) {
    const int first = 4 * static_cast<int>(n);
    places[n] = {4 * kSignPlaces[n] + 3, first + 2, first + 1, first};
  }
  return places;
}

PermuteBits bits_of(std::string_view name, const std::array<std::array<int, 4>, 8>& places) {
  std::array<int, 32> source{};
  for (std::size_t n = 0; n < 8; ++n) {
    for (std::size_t i = 0; i < 4; ++i) {
      source[static_cast<std::size_t>(places[n][i])] = static_cast<int>(4 * n + 3 - i);
    }
  }
  return {std::make_shared<const BitPermutation>(name, source)};
}

/// Tiles of 16 rows x 64 codes; `inner`: the order of a code and its group of 16 bytes.
TileLayout weights(std::string name, const std::vector<Digit>& inner) {
  std::vector<Digit> digits{{row, 16}, {col, 16, 2}, {row, 1, 8}, {col, 64}, {col, 32, 2}};
  digits.insert(digits.end(), inner.begin(), inner.end());
  return {.name = std::move(name),
          .digits = std::move(digits),
          .bits = {4},
          .need_rows = 16,
          .need_cols = 64};
}

std::int64_t groups_in_128(std::string_view step, std::int64_t group) {
  if (group < 1 || 128 % group != 0) {
    fail(step, "the scale group is {}; it must divide 128", group);
  }
  return 128 / group;
}

}  // namespace

TileLayout sm90_weights_v2() {
  return weights("sm90_weights_v2", {{col, 2, 4}, {col, 8, 2}, {row, 8, 2}, {col, 1, 2}});
}

TileLayout sm90_weights_int4() {
  return weights("sm90_weights_int4", {{col, 4, 4}, {row, 8, 2}, {col, 1, 4}});
}

TileLayout sm90_weights_v1() {
  return weights("sm90_weights_v1", {{col, 2, 4}, {col, 8, 2}, {col, 1, 2}, {row, 8, 2}});
}

Step sm90_bits_fp4() {
  static const PermuteBits step = bits_of("sm90_bits_fp4", kFp4Places);
  return step;
}

Step sm90_bits_fp4_fp8() {
  static const PermuteBits step = bits_of("sm90_bits_fp4_fp8", fp4_fp8_places());
  return step;
}

TileLayout sm90_folded_scales(std::int64_t group, std::int64_t element_bits) {
  constexpr std::string_view kName = "sm90_folded_scales";
  const std::int64_t groups = groups_in_128(kName, group);
  if (element_bits < 8 || 128 % element_bits != 0) {
    fail(kName, "scales of {} bits do not fill 16 bytes; use 8, 16, 32, 64 or 128", element_bits);
  }
  const std::int64_t cols = 128 / element_bits;
  const std::int64_t slices = cols / groups;
  if (cols % groups != 0 || 64 % slices != 0) {
    fail(kName, "{} groups of {} weights do not fold into {} scales of {} bits; use larger groups",
         groups, group, cols, element_bits);
  }
  const std::int64_t folded = 64 / slices;
  std::vector<Digit> digits{{row, 64}, {col, groups}, {row, 1, folded}};
  if (slices > 1) digits.push_back({row, folded, slices});
  if (groups > 1) digits.push_back({col, 1, groups});
  return {.name = fmt::format("{}({}, {})", kName, group, element_bits),
          .digits = std::move(digits),
          .bits = {static_cast<int>(element_bits)},
          .need_rows = 64,
          .need_cols = groups,
          .shape = [groups, folded, cols](const TileExtent& extent) -> Shape {
            return {extent.experts, extent.rows / 64, extent.cols / groups, folded, cols};
          }};
}

TileLayout sm90_legacy_scales(std::int64_t group) {
  constexpr std::string_view kName = "sm90_legacy_scales";
  const std::int64_t groups = groups_in_128(kName, group);
  std::vector<Digit> digits{{col, groups}, {row, 1}};
  if (groups > 1) digits.push_back({col, 1, groups});
  return {.name = fmt::format("{}({})", kName, group),
          .digits = std::move(digits),
          .bits = {8, 16, 32},
          .need_cols = groups,
          .shape = [groups](const TileExtent& extent) -> Shape {
            return {extent.experts, extent.cols / groups, extent.rows * groups};
          }};
}

std::span<const NamedStep> sm90() {
  constexpr std::string_view kWeights =
      "flashinfer@fb28d7242 moe_gemm_mixed_utils.cu interleave_moe_weights_for_sm90_mixed_gemm";
  constexpr std::string_view kScales =
      "flashinfer@fb28d7242 prepare.py interleave_moe_scales_for_sm90_mixed_gemm";
  static const std::array<NamedStep, 7> steps{{
      {"sm90_weights_v2", "", StepKind::move, "4-bit tiles of 16 x 64, bf16 activations, 0.6.16 on",
       kWeights, [](Parameters) -> Step { return Tile{sm90_weights_v2()}; }},
      {"sm90_weights_int4", "", StepKind::move, "4-bit tiles of 16 x 64, FP8 activations", kWeights,
       [](Parameters) -> Step { return Tile{sm90_weights_int4()}; }},
      {"sm90_weights_v1", "", StepKind::move, "FP4 tiles of 16 x 64, releases 0.6.10 to 0.6.15",
       "flashinfer@d4544921 moe_gemm_mixed_utils.cu",
       [](Parameters) -> Step { return Tile{sm90_weights_v1()}; }},
      {"sm90_bits_fp4", "", StepKind::pack,
       "spreads 8 FP4 codes over a word, after sm90_weights_v2", kWeights,
       [](Parameters) -> Step { return sm90_bits_fp4(); }},
      {"sm90_bits_fp4_fp8", "", StepKind::pack, "moves 8 FP4 signs, after sm90_weights_int4",
       kWeights, [](Parameters) -> Step { return sm90_bits_fp4_fp8(); }},
      {"sm90_folded_scales", "group, bits", StepKind::move,
       "scales of 64 rows x 128 weights folded to rows of 16 bytes", kScales,
       [](Parameters p) -> Step { return Tile{sm90_folded_scales(p[0], p[1])}; }},
      {"sm90_legacy_scales", "group", StepKind::move,
       "scales of 128 weights side by side for all rows, before 0.6.16",
       "flashinfer@d4544921 core.py interleave_moe_scales_for_sm90_mixed_gemm",
       [](Parameters p) -> Step { return Tile{sm90_legacy_scales(p[0])}; }},
  }};
  return steps;
}

}  // namespace moeref::tiles
