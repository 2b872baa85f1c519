#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cli/conform/ops.hpp"
#include "engine/accumulate/mainloop.hpp"
#include "engine/accumulate/matrix_chain.hpp"
#include "io/json_file.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/row_decoder.hpp"

// Matrix instructions and the GEMM main loops built on them.

namespace moeref::conform {
namespace {

using accumulate::UnitNumber;
using accumulate::UnitRow;

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

/// An operand's type as a case names it; "tf32" is f32 words.
Format operand_format(const GoldenCase& golden, std::string_view param) {
  const std::string name = golden.text_param(param).value_or("");
  if (name == "tf32") return Format::f32;
  const std::optional<Format> format = parse_format(name);
  if (!format || *format == Format::f32 || *format == Format::f64 || *format == Format::e8m0) {
    fail(golden.subject(fmt::format("params.{}", param)),
         "is '{}'; known operands: bf16, f16, tf32, e4m3, e5m2, e2m1, e4m3fnuz, e5m2fnuz", name);
  }
  return *format;
}

int bytes_of(Format format) { return format == Format::e2m1 ? 1 : info(format).bits / 8; }

/// [tiles, rows, cols] codes, one a byte for E2M1.
struct CodeTiles {
  Format format = Format::bf16;
  std::int64_t tiles = 1;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::span<const std::byte> bytes;

  std::uint32_t code(std::int64_t tile, std::int64_t row, std::int64_t col) const {
    const std::byte* at = bytes.data() + ((tile * rows + row) * cols + col) * bytes_of(format);
    switch (bytes_of(format)) {
      case 1:
        return static_cast<std::uint32_t>(*at) & (format == Format::e2m1 ? 0xFu : 0xFFu);
      case 2:
        return load<std::uint16_t>(at);
      default:
        return load<std::uint32_t>(at);
    }
  }
};

/// Error: another number of bytes an element, not two or three axes.
CodeTiles code_tiles(const GoldenCase& golden, const TensorView& view, Format format) {
  const std::size_t axes = view.shape.size();
  if (axes != 2 && axes != 3) {
    fail(golden.subject(view.name), "has shape {}, needs [rows, cols] or [tiles, rows, cols]",
         to_string(view.shape));
  }
  if (info(view.dtype).bits != 8 * bytes_of(format)) {
    fail(golden.subject(view.name), "is {}, needs {} bits an element for {}", name(view.dtype),
         8 * bytes_of(format), name(format));
  }
  CodeTiles tiles{format, axes == 3 ? view.shape[0] : 1, view.shape[axes - 2], view.shape[axes - 1],
                  view.bytes};
  return tiles;
}

/// The tiles of one distribution.
struct Tiles {
  CodeTiles a;
  CodeTiles b;
  std::optional<CodeTiles> c;
  std::optional<CodeTiles> a_scales;
  std::optional<CodeTiles> b_scales;
  Shape out;
};

std::optional<CodeTiles> optional_tiles(const GoldenCase& golden, const std::string& name,
                                        Format format) {
  const TensorView* view = golden.find_input(name);
  if (view == nullptr) return std::nullopt;
  return code_tiles(golden, *view, format);
}

/// Error: shapes that do not belong together; K that is no multiple of `k`.
Tiles read_tiles(const GoldenCase& golden, const std::string& prefix, Format accumulator,
                 std::int64_t k) {
  Tiles tiles;
  tiles.a = code_tiles(golden, golden.input(prefix + "a"), operand_format(golden, "a"));
  tiles.b = code_tiles(golden, golden.input(prefix + "b"), operand_format(golden, "b"));
  tiles.c = optional_tiles(golden, prefix + "c", accumulator);
  const std::string subject = golden.subject("in." + prefix + "b");
  if (tiles.a.cols != tiles.b.cols || tiles.a.tiles != tiles.b.tiles) {
    fail(subject, "is [{}, {}, {}], in.{}a [{}, {}, {}]; tiles and K must be equal", tiles.b.tiles,
         tiles.b.rows, tiles.b.cols, prefix, tiles.a.tiles, tiles.a.rows, tiles.a.cols);
  }
  if (tiles.a.cols % k != 0 || tiles.a.cols == 0) {
    fail(subject, "has K = {}, which is no multiple of the instruction's K = {}", tiles.a.cols, k);
  }
  if (tiles.c && (tiles.c->tiles != tiles.a.tiles || tiles.c->rows != tiles.a.rows ||
                  tiles.c->cols != tiles.b.rows)) {
    fail(golden.subject("in." + prefix + "c"), "is [{}, {}, {}], needs [{}, {}, {}]",
         tiles.c->tiles, tiles.c->rows, tiles.c->cols, tiles.a.tiles, tiles.a.rows, tiles.b.rows);
  }
  tiles.out = golden.input(prefix + "a").shape;
  tiles.out.back() = tiles.b.rows;
  return tiles;
}

void read_scales(const GoldenCase& golden, const std::string& prefix, Format format,
                 std::int64_t block, Tiles& tiles) {
  const auto read = [&](const char* name, const CodeTiles& operand) {
    const CodeTiles scales = code_tiles(golden, golden.input(prefix + name), format);
    if (scales.tiles != operand.tiles || scales.rows != operand.rows ||
        scales.cols * block != operand.cols) {
      fail(golden.subject("in." + prefix + name),
           "is [{}, {}, {}], needs [{}, {}, {}]: a scale per {}", scales.tiles, scales.rows,
           scales.cols, operand.tiles, operand.rows, operand.cols / block, block);
    }
    return scales;
  };
  tiles.a_scales = read("a_scale", tiles.a);
  tiles.b_scales = read("b_scale", tiles.b);
}

/// The numbers of a row by `order`; empty = as they lie.
std::vector<UnitNumber> row_numbers(const CodeTiles& tiles, std::int64_t tile, std::int64_t row,
                                    std::optional<Format> operand,
                                    std::span<const std::int64_t> order) {
  std::vector<UnitNumber> numbers;
  for (std::int64_t col = 0; col < tiles.cols; ++col) {
    std::uint32_t code = tiles.code(tile, row, col);
    Format format = tiles.format;
    if (operand && *operand != format) {
      code = encode(*operand, decode(format, code), EncodePolicy::eigen);
      format = *operand;
    }
    numbers.push_back(accumulate::operand_number(format, code));
  }
  return order.empty() ? numbers : accumulate::in_order(numbers, order);
}

std::vector<UnitNumber> scale_numbers(const std::optional<CodeTiles>& scales, std::int64_t tile,
                                      std::int64_t row) {
  if (!scales) return {};
  return row_numbers(*scales, tile, row, std::nullopt, {});
}

/// d of every element, one chain each.
Tensor run_tiles(const Tiles& tiles, const MatrixUnit& unit, Format accumulator,
                 const std::string& name) {
  std::optional<Format> operand;
  std::vector<std::int64_t> order;
  if (const auto* fused = std::get_if<FusedDot>(&unit)) {
    operand = fused->operand;
    if (!fused->block_scales) order = accumulate::term_order(*fused, tiles.a.cols);
  }
  const auto rows_of = [&](const CodeTiles& codes, const std::optional<CodeTiles>& scales,
                           std::int64_t tile) {
    std::vector<UnitRow> rows;
    for (std::int64_t row = 0; row < codes.rows; ++row) {
      rows.push_back(
          {row_numbers(codes, tile, row, operand, order), scale_numbers(scales, tile, row)});
    }
    return rows;
  };
  std::vector<std::uint32_t> d;
  for (std::int64_t tile = 0; tile < tiles.a.tiles; ++tile) {
    const std::vector<UnitRow> a = rows_of(tiles.a, tiles.a_scales, tile);
    const std::vector<UnitRow> b = rows_of(tiles.b, tiles.b_scales, tile);
    for (std::size_t i = 0; i < a.size(); ++i) {
      for (std::size_t j = 0; j < b.size(); ++j) {
        const std::uint32_t c = tiles.c ? tiles.c->code(tile, static_cast<std::int64_t>(i),
                                                        static_cast<std::int64_t>(j))
                                        : 0;
        d.push_back(accumulate::run_chain(unit, a[i], b[j], c));
      }
    }
  }
  if (accumulator == Format::f32) return make_tensor<std::uint32_t>(name, DType::f32, tiles.out, d);
  const std::vector<std::uint16_t> halves(d.begin(), d.end());
  return make_tensor<std::uint16_t>(name, DType::f16, tiles.out, halves);
}

/// "bits.", "normal.", ...: what stands before "a" in the names of the inputs.
std::vector<std::string> distributions(const GoldenCase& golden) {
  std::vector<std::string> prefixes;
  for (const auto& [name, view] : golden.inputs) {
    if (name == "a" || name.ends_with(".a")) prefixes.push_back(name.substr(0, name.size() - 1));
  }
  if (prefixes.empty()) fail(golden.path.string(), "op {} needs inputs D.a, D.b", golden.op);
  return prefixes;
}

template <typename ReadScales>
OpResult run_distributions(const GoldenCase& golden, const MatrixUnit& unit, std::int64_t k,
                           Format accumulator, ReadScales scales) {
  OpResult result;
  for (const std::string& prefix : distributions(golden)) {
    Tiles tiles = read_tiles(golden, prefix, accumulator, k);
    scales(prefix, tiles);
    result.outputs.emplace(prefix + "d", run_tiles(tiles, unit, accumulator, prefix + "d"));
  }
  return result;
}

void no_scales(const std::string&, Tiles&) {}

/// A number of a JSON object in [low, high].
int number_in(const GoldenCase& golden, const nlohmann::json& object, const char* key, int low,
              int high) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number_integer() || found->get<std::int64_t>() < low ||
      found->get<std::int64_t>() > high) {
    fail(golden.subject(fmt::format("params: {}", key)), "must be an integer from {} to {}", low,
         high);
  }
  return found->get<int>();
}

std::string word(const GoldenCase& golden, const nlohmann::json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) {
    fail(golden.subject(fmt::format("params: {}", key)), "must be a text");
  }
  return found->get<std::string>();
}

template <typename T, std::size_t kCount>
T choice(const GoldenCase& golden, const nlohmann::json& object, const char* key,
         const std::array<std::pair<std::string_view, T>, kCount>& choices) {
  const std::string text = word(golden, object, key);
  std::string known;
  for (const auto& [name, value] : choices) {
    if (name == text) return value;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", name);
  }
  fail(golden.subject(fmt::format("params: {}", key)), "is '{}'; known: {}", text, known);
}

using OutputName = std::pair<std::string_view, StepOutput>;
constexpr std::array kSimulatorOutputs{OutputName{"f32", StepOutput::f32_toward_zero},
                                       OutputName{"f32_e8m13", StepOutput::e8m13_toward_zero},
                                       OutputName{"f16", StepOutput::f16_nearest}};
constexpr std::array kModelOutputs{OutputName{"RZ_F32", StepOutput::f32_toward_zero},
                                   OutputName{"RZ_E8M13", StepOutput::e8m13_toward_zero},
                                   OutputName{"RNE_F16", StepOutput::f16_nearest}};
using OrderName = std::pair<std::string_view, TermOrder>;
constexpr std::array kOrders{OrderName{"natural", TermOrder::natural},
                             OrderName{"kw4", TermOrder::kw4}, OrderName{"kw8", TermOrder::kw8}};
using ZeroName = std::pair<std::string_view, ZeroOperands>;
constexpr std::array kZeroRules{ZeroName{"skip", ZeroOperands::skipped},
                                ZeroName{"fixed126", ZeroOperands::smallest_exponent}};
using PointName = std::pair<std::string_view, AccumulatorPoint>;
constexpr std::array kPoints{PointName{"fused", AccumulatorPoint::fused},
                             PointName{"rn_add", AccumulatorPoint::added_after}};
using PromotionName = std::pair<std::string_view, Promotion>;
constexpr std::array kPromotions{PromotionName{"none", Promotion::none},
                                 PromotionName{"add", Promotion::add},
                                 PromotionName{"fma(p,rn(as*bs),acc)", Promotion::fma_product},
                                 PromotionName{"fma(rn(p*as),bs,acc)", Promotion::fma_row},
                                 PromotionName{"fma(rn(p*bs),as,acc)", Promotion::fma_column}};

constexpr int kMostTerms = 1024;

/// The simulator's rule: zeros take part, and there is no lowest exponent.
FusedDot simulated(FusedDot unit) {
  unit.zeros = ZeroOperands::smallest_exponent;
  unit.lowest_exponent = kNoLowestExponent;
  return unit;
}

/// params: K, k_steps, F, output, a, b, acc.
OpResult nv_fdpa(const GoldenCase& golden) {
  FusedDot unit;
  unit.k = number_in(golden, golden.params, "K", 1, kMostTerms);
  const int steps = number_in(golden, golden.params, "k_steps", 1, unit.k);
  if (unit.k % steps != 0) {
    fail(golden.subject("params.k_steps"), "is {}, which does not divide K = {}", steps, unit.k);
  }
  unit.terms = unit.k / steps;
  unit.fraction_bits = number_in(golden, golden.params, "F", 1, 40);
  unit.output = choice(golden, golden.params, "output", kSimulatorOutputs);
  const Format accumulator = unit.output == StepOutput::f16_nearest ? Format::f16 : Format::f32;
  return run_distributions(golden, simulated(unit), unit.k, accumulator, no_scales);
}

/// params: K, F, block, scale, a, b.
OpResult nv_fdpa_block_scale(const GoldenCase& golden) {
  const std::string scale = word(golden, golden.params, "scale");
  if (scale != "e8m0" && scale != "e4m3") {
    fail(golden.subject("params.scale"), "is '{}'; known: e8m0, e4m3", scale);
  }
  const int k = number_in(golden, golden.params, "K", 1, kMostTerms);
  const int block = number_in(golden, golden.params, "block", 1, k);
  const int fraction_bits = number_in(golden, golden.params, "F", 1, 40);
  const Format format = scale == "e8m0" ? Format::e8m0 : Format::ue4m3;
  const auto scales = [&](const std::string& prefix, Tiles& tiles) {
    read_scales(golden, prefix, format, block, tiles);
  };
  if (operand_format(golden, "a") != Format::e2m1) {
    if (block != 32 || k % 32 != 0 || format != Format::e8m0) {
      fail(golden.subject("params"), "mxf8f6f4 has one e8m0 scale per 32 k, not {} per {}", scale,
           block);
    }
    FusedDot unit = simulated({});
    unit.k = k;
    unit.terms = 32;
    unit.fraction_bits = fraction_bits;
    unit.block_scales = true;
    return run_distributions(golden, unit, k, Format::f32, scales);
  }
  if ((block != 16 && block != 32) || k % block != 0) {
    fail(golden.subject("params.block"), "is {}; mxf4 has a scale per 16 or 32 of K = {}", block,
         k);
  }
  ScaledGroupDot unit;
  unit.k = k;
  unit.block = block;
  unit.scale = format;
  unit.fraction_bits = fraction_bits;
  unit.zeros = ZeroOperands::smallest_exponent;
  unit.lowest_exponent = kNoLowestExponent;
  return run_distributions(golden, unit, k, Format::f32, scales);
}

/// params: K, group, a, b.
OpResult cdna3_mfma(const GoldenCase& golden) {
  MfmaDot unit;
  unit.k = number_in(golden, golden.params, "K", 1, kMostTerms);
  unit.terms = number_in(golden, golden.params, "group", 1, unit.k);
  if (unit.k % unit.terms != 0) {
    fail(golden.subject("params.group"), "is {}, which does not divide K = {}", unit.terms, unit.k);
  }
  unit.splits_even_odd = info(operand_format(golden, "a")).bits == 8;
  return run_distributions(golden, unit, unit.k, Format::f32, no_scales);
}

/// params.model: operand, F, L, out, k_order, zero_rule, c, emax_floor.
FusedDot unit_of_model(const GoldenCase& golden, const nlohmann::json& model, int k) {
  FusedDot unit;
  unit.k = k;
  unit.terms = number_in(golden, model, "L", 1, k);
  unit.fraction_bits = number_in(golden, model, "F", 1, 40);
  unit.output = choice(golden, model, "out", kModelOutputs);
  unit.order = choice(golden, model, "k_order", kOrders);
  unit.zeros = choice(golden, model, "zero_rule", kZeroRules);
  unit.accumulator = choice(golden, model, "c", kPoints);
  if (unit.k % unit.terms != 0) {
    fail(golden.subject("params: L"), "is {}, which does not divide the instruction's K = {}",
         unit.terms, unit.k);
  }
  const std::string operand = word(golden, model, "operand");
  if (operand != "native") {
    unit.operand = parse_format(operand);
    if (unit.operand != Format::bf16 && unit.operand != Format::f16) {
      fail(golden.subject("params: operand"), "is '{}'; known: native, bf16, f16", operand);
    }
  }
  if (unit.zeros == ZeroOperands::smallest_exponent) unit.lowest_exponent = kNoLowestExponent;
  if (model.contains("emax_floor")) {
    unit.lowest_exponent = number_in(golden, model, "emax_floor", -1000, 0);
  }
  return unit;
}

const nlohmann::json& model_of(const GoldenCase& golden) {
  const auto found = golden.params.find("model");
  if (found == golden.params.end() || !found->is_object()) {
    fail(golden.subject("params.model"), "must be an object");
  }
  return *found;
}

/// params: k_per_instruction, model, a, b, acc.
OpResult h200_instr(const GoldenCase& golden) {
  const int k = number_in(golden, golden.params, "k_per_instruction", 1, kMostTerms);
  const FusedDot unit = unit_of_model(golden, model_of(golden), k);
  const Format accumulator = unit.output == StepOutput::f16_nearest ? Format::f16 : Format::f32;
  return run_distributions(golden, unit, k, accumulator, no_scales);
}

/// A matrix of its own, as a main loop reads it.
struct OwnedMatrix {
  std::vector<std::byte> codes;
  std::vector<std::byte> scales;
  ScaledMatrix matrix;
};

/// One scale per 32 columns, applied in the operand's type.
float scaled_in(Format operand, float value, std::uint8_t scale) {
  const float factor = decode(Format::e8m0, scale);
  const float narrow = decode(operand, encode(operand, factor, EncodePolicy::eigen));
  return decode(operand, encode(operand, value * narrow, EncodePolicy::eigen));
}

/// The operand in the type that the unit multiplies, with its f32 block scales as they are.
OwnedMatrix gemm_operand(const GoldenCase& golden, const std::string& name, const FusedDot& unit,
                         std::int64_t scale_rows) {
  const CodeTiles codes = code_tiles(golden, golden.input(name), operand_format(golden, name));
  const auto folded = optional_tiles(golden, name + "_scale_ue8m0", Format::e8m0);
  if (codes.tiles != 1 || (folded && folded->tiles != 1)) {
    fail(golden.subject("in." + name), "has more than one matrix; a GEMM takes one of each");
  }
  if (folded && (folded->rows != codes.rows || folded->cols * 32 != codes.cols || !unit.operand)) {
    fail(golden.subject("in." + name + "_scale_ue8m0"),
         "needs a scale per 32 columns and a model.operand of bf16 or f16");
  }
  const Format format = unit.operand.value_or(codes.format);
  OwnedMatrix owned;
  for (std::int64_t row = 0; row < codes.rows; ++row) {
    for (std::int64_t col = 0; col < codes.cols; ++col) {
      std::uint32_t code = codes.code(0, row, col);
      if (format != codes.format || folded) {
        float value = decode(codes.format, code);
        if (folded) {
          value =
              scaled_in(format, value, static_cast<std::uint8_t>(folded->code(0, row, col / 32)));
        }
        code = encode(format, value, EncodePolicy::eigen);
      }
      for (int byte = 0; byte < info(format).bits / 8; ++byte) {
        owned.codes.push_back(static_cast<std::byte>(code >> (8 * byte)));
      }
    }
  }
  owned.matrix.name = golden.subject("in." + name);
  owned.matrix.rows = codes.rows;
  owned.matrix.cols = codes.cols;
  owned.matrix.codes = {owned.codes.data(), format, NibbleOrder::low_first, 0, codes.cols, 1};
  const TensorView* scales = golden.find_input(name + "_scale");
  if (scales == nullptr) return owned;
  const std::int64_t cols = (codes.cols + 127) / 128;
  const Shape wanted{(codes.rows + scale_rows - 1) / scale_rows, cols};
  if (scales->dtype != DType::f32 || scales->shape != wanted) {
    fail(golden.subject(scales->name), "is {} {}, needs F32 {}", moeref::name(scales->dtype),
         to_string(scales->shape), to_string(wanted));
  }
  owned.scales.assign(scales->bytes.begin(), scales->bytes.end());
  owned.matrix.scales = ScaleGrid{.data = owned.scales.data(),
                                  .format = Format::f32,
                                  .block_rows = scale_rows,
                                  .block_cols = 128,
                                  .row_stride = cols,
                                  .col_stride = 1};
  return owned;
}

/// params: a, b, model (with promotion, promotion_k). in: a [M, K], b [N, K], a_scale [M, K / 128],
/// b_scale [N / 128, K / 128]. out: d [M, N].
OpResult h200_triton_gemm(const GoldenCase& golden) {
  const nlohmann::json& model = model_of(golden);
  const int terms = number_in(golden, model, "L", 1, kMostTerms);
  Mainloop mainloop;
  mainloop.unit = unit_of_model(golden, model, terms);
  if (mainloop.unit.output == StepOutput::f16_nearest ||
      mainloop.unit.accumulator != AccumulatorPoint::fused) {
    fail(golden.subject("params.model"), "a GEMM's accumulator is f32 and fused");
  }
  mainloop.promotion = choice(golden, model, "promotion", kPromotions);
  if (mainloop.promotion != Promotion::none) {
    mainloop.chain = number_in(golden, model, "promotion_k", 1, 1 << 20);
    const std::int64_t chunk = terms * (mainloop.unit.order == TermOrder::kw8   ? 4
                                        : mainloop.unit.order == TermOrder::kw4 ? 2
                                                                                : 1);
    if (mainloop.chain % chunk != 0) {
      fail(golden.subject("params: promotion_k"), "is {}, needs a multiple of {}", mainloop.chain,
           chunk);
    }
  }
  const OwnedMatrix a = gemm_operand(golden, "a", mainloop.unit, 1);
  const OwnedMatrix b = gemm_operand(golden, "b", mainloop.unit, 128);
  std::vector<std::int64_t> rows;
  for (std::int64_t row = 0; row < a.matrix.rows; ++row) rows.push_back(row);
  std::vector<float> d(to_size(a.matrix.rows * b.matrix.rows));
  mainloop.unit.operand = std::nullopt;  // both are converted already
  accumulate::run_mainloop(mainloop, accumulate::mainloop_input(mainloop, a.matrix, rows), b.matrix,
                           d.data(), b.matrix.rows, 1);
  OpResult result;
  result.outputs.emplace("d",
                         make_tensor<float>("d", DType::f32, {a.matrix.rows, b.matrix.rows}, d));
  return result;
}

constexpr std::array kOperations{
    NamedOperation{"tensorcore.nv_fdpa", nv_fdpa},
    NamedOperation{"tensorcore.nv_fdpa_block_scale", nv_fdpa_block_scale},
    NamedOperation{"tensorcore.cdna3_mfma", cdna3_mfma},
    NamedOperation{"tensorcore.h200_instr", h200_instr},
    NamedOperation{"tensorcore.h200_triton_gemm", h200_triton_gemm},
};

}  // namespace

std::span<const NamedOperation> matrix_operations() { return kOperations; }

}  // namespace moeref::conform
