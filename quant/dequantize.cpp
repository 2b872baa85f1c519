#include "quant/dequantize.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstddef>
#include <limits>
#include <optional>
#include <vector>

#include "quant/cast.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "quant/row_decoder.hpp"
#include "simd/float_environment.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
static_assert(std::bit_cast<std::uint32_t>(kNan) == kF32QuietNan);

float read_scale(const ScaleGrid& scales, std::int64_t number) {
  return decode(scales.format,
                read_code(scales.data, scales.format, NibbleOrder::low_first, number));
}

/// Calls use(first_col, count, scale) for the runs of equal scale in a row.
template <typename Use>
void for_each_run(const ScaledMatrix& matrix, std::int64_t row, Use use) {
  if (!matrix.scales) return use(std::int64_t{0}, matrix.cols, 1.0f);
  const ScaleGrid& scales = *matrix.scales;
  const std::int64_t first = (scales.row_begin + row) / scales.block_rows * scales.row_stride;
  std::int64_t block = scales.col_begin / scales.block_cols;
  std::int64_t left = scales.block_cols - scales.col_begin % scales.block_cols;
  for (std::int64_t col = 0; col < matrix.cols; ++block) {
    const std::int64_t count = std::min(left, matrix.cols - col);
    use(col, count, read_scale(scales, first + block * scales.col_stride));
    col += count;
    left = scales.block_cols;
  }
}

float canonical(float value) { return value == value ? value : kNan; }

struct Global {
  GlobalScaleRule rule = GlobalScaleRule::none;
  float scale = 1.0f;
};

/// Turns `count` decoded values into dequantized ones, in place.
using ScaleRun = void (*)(float* values, std::int64_t count, float scale, Global global);

float combine(float scale, Global global) {
  switch (global.rule) {
    case GlobalScaleRule::none:
      break;
    case GlobalScaleRule::multiply:
      return scale * global.scale;
    case GlobalScaleRule::divide:
      return scale / global.scale;
  }
  return scale;
}

template <Format kTarget>
void scale_checkpoint(float* values, std::int64_t count, float scale, Global global) {
  const float factor = combine(scale, global);
  for (std::int64_t i = 0; i < count; ++i) {
    values[i] = canonical(cast<kTarget>(values[i] * factor));
  }
}

template <Format kTarget>
void scale_modelopt_fp8(float* values, std::int64_t count, float scale, Global) {
  const float factor = cast<kTarget>(scale);
  for (std::int64_t i = 0; i < count; ++i) {
    values[i] = canonical(cast<kTarget>(cast<kTarget>(values[i]) * factor));
  }
}

template <Format kTarget>
void scale_sglang_fp16(float* values, std::int64_t count, float scale, Global) {
  const float factor = cast<Format::f16>(scale);
  for (std::int64_t i = 0; i < count; ++i) {
    const float product = cast<Format::f16>(cast<Format::f16>(values[i]) * factor);
    values[i] = canonical(cast<kTarget>(product));
  }
}

/// The exact value, where q * s * g has at most 53 significant bits: then so has s * g, and nothing
/// rounds before the cast. (No range trouble: the factors lie in [2^-149, 2^128].)
template <Format kTarget>
void scale_once_exact(float* values, std::int64_t count, float scale, Global global) {
  const double factor = static_cast<double>(scale) * static_cast<double>(global.scale);
  for (std::int64_t i = 0; i < count; ++i) {
    values[i] = canonical(cast<kTarget>(static_cast<double>(values[i]) * factor));
  }
}

/// The exact value of any three factors. q * s has at most 48 bits.
template <Format kTarget>
void scale_once_wide(float* values, std::int64_t count, float scale, Global global) {
  for (std::int64_t i = 0; i < count; ++i) {
    const double product = static_cast<double>(values[i]) * static_cast<double>(scale);
    values[i] =
        canonical(cast<kTarget>(multiply_to_odd(product, static_cast<double>(global.scale))));
  }
}

/// The exact value of q * s / g. Rounding the quotient to f64 first is harmless: let p = q * s (an
/// integer P < 2^48 times a power of two) and t = T * 2^b with T < 2^25 a number halfway between
/// two f32, bf16 or f16 values, g = G * 2^a, G < 2^24. If p / g != t then |p - t g| is at least one
/// unit in the last place of the wider of p and t g, both of at most 49 bits, so p / g and t differ
/// by at least 2^-49 of t, while f64 rounding moves p / g by at most 2^-53 of it: never to t or
/// across. If p / g = t the f64 quotient is exact.
template <Format kTarget>
void scale_once_divided(float* values, std::int64_t count, float scale, Global global) {
  for (std::int64_t i = 0; i < count; ++i) {
    const double product = static_cast<double>(values[i]) * static_cast<double>(scale);
    values[i] = canonical(cast<kTarget>(product / static_cast<double>(global.scale)));
  }
}

template <Format kTarget>
ScaleRun choose_once(const ScaledMatrix& matrix) {
  if (matrix.global_rule == GlobalScaleRule::divide) return scale_once_divided<kTarget>;
  const bool is_global = matrix.global_rule == GlobalScaleRule::multiply;
  // One f32 product is one rounding.
  if (!is_global && kTarget == Format::f32) return scale_checkpoint<kTarget>;
  const int bits = info(matrix.codes.format).significand_bits +
                   (matrix.scales ? info(matrix.scales->format).significand_bits : 0) +
                   (is_global ? 24 : 0);
  return bits <= 53 ? scale_once_exact<kTarget> : scale_once_wide<kTarget>;
}

template <Format kTarget>
ScaleRun choose(const ScaledMatrix& matrix, DequantizeOrder order) {
  switch (order) {
    case DequantizeOrder::once:
      return choose_once<kTarget>(matrix);
    case DequantizeOrder::checkpoint:
    case DequantizeOrder::modelopt_nvfp4:
      return scale_checkpoint<kTarget>;
    case DequantizeOrder::modelopt_fp8:
      return scale_modelopt_fp8<kTarget>;
    case DequantizeOrder::sglang_fp16:
      return scale_sglang_fp16<kTarget>;
  }
  return nullptr;
}

ScaleRun choose(const ScaledMatrix& matrix, DequantizeOrder order, Format target) {
  switch (target) {
    case Format::f32:
      return choose<Format::f32>(matrix, order);
    case Format::bf16:
      return choose<Format::bf16>(matrix, order);
    case Format::f16:
      return choose<Format::f16>(matrix, order);
    default:
      fail(matrix.name, "cannot dequantize to {}; the target is f32, bf16 or f16", name(target));
  }
}

void check_size(const ScaledMatrix& matrix, std::size_t size) {
  check_storage(matrix);
  if (size != static_cast<std::size_t>(matrix.rows) * static_cast<std::size_t>(matrix.cols)) {
    fail(matrix.name, "is [{}, {}] but the output has {} elements; give rows * cols", matrix.rows,
         matrix.cols, size);
  }
}

void check_order(const ScaledMatrix& matrix, DequantizeOrder order) {
  const bool is_global = matrix.global_rule != GlobalScaleRule::none;
  const bool is_two_factor =
      order == DequantizeOrder::modelopt_fp8 || order == DequantizeOrder::sglang_fp16;
  if (is_two_factor && is_global) {
    fail(matrix.name,
         "has a global scale, which the orders modelopt_fp8 and sglang_fp16 do not "
         "know; use once or checkpoint");
  }
  if (order == DequantizeOrder::modelopt_nvfp4 && matrix.codes.format != Format::e2m1) {
    fail(matrix.name, "has {} codes; the order modelopt_nvfp4 is for e2m1, use checkpoint",
         name(matrix.codes.format));
  }
}

/// The matrix as the vector loops read it: codes side by side in rows, blocks of whole units.
/// Nothing if it is stored otherwise.
std::optional<simd::CodeType> vector_type(const ScaledMatrix& matrix) {
  const CodeGrid& codes = matrix.codes;
  constexpr auto kUnit = static_cast<std::int64_t>(simd::kDecodeUnit);
  if (codes.col_stride != 1 || matrix.cols == 0 || matrix.cols % kUnit != 0) return std::nullopt;
  if (matrix.scales) {
    const ScaleGrid& scales = *matrix.scales;
    const bool whole = scales.block_cols % kUnit == 0 && scales.col_begin % scales.block_cols == 0;
    if (!whole && scales.col_begin + matrix.cols > scales.block_cols) return std::nullopt;
  }
  const bool whole_bytes =
      codes.nibbles == NibbleOrder::low_first && codes.origin % 2 == 0 && codes.row_stride % 2 == 0;
  switch (codes.format) {
    case Format::e2m1:
      return whole_bytes ? std::optional(simd::CodeType::e2m1) : std::nullopt;
    case Format::e4m3:
    case Format::ue4m3:
      return simd::CodeType::e4m3;
    case Format::bf16:
      return simd::CodeType::bf16;
    case Format::f16:
      return simd::CodeType::f16;
    default:
      return std::nullopt;
  }
}

/// The factors of a row's blocks: scale times (or over) the global scale.
class RowFactors {
 public:
  RowFactors(const ScaledMatrix& matrix, Global global) : matrix_(matrix), global_(global) {
    if (!matrix.scales || info(matrix.scales->format).bits != 8) return;
    for (std::uint32_t code = 0; code < by_code_.size(); ++code) {
      by_code_[code] = combine(decode(matrix.scales->format, code), global);
    }
    has_table_ = true;
  }

  std::int64_t block() const {
    return matrix_.scales ? std::min(matrix_.scales->block_cols, matrix_.cols) : matrix_.cols;
  }
  /// Of row `row`; valid until the next call.
  std::span<const float> of(std::int64_t row) {
    factors_.resize(static_cast<std::size_t>(ceil_div(matrix_.cols, block())));
    if (!has_table_) {
      std::size_t next = 0;
      for_each_run(matrix_, row, [&](std::int64_t, std::int64_t, float scale) {
        factors_[next++] = combine(scale, global_);
      });
      return factors_;
    }
    const ScaleGrid& scales = *matrix_.scales;
    const std::byte* at = scales.data +
                          (scales.row_begin + row) / scales.block_rows * scales.row_stride +
                          scales.col_begin / scales.block_cols * scales.col_stride;
    for (float& factor : factors_) {
      factor = by_code_[std::to_integer<std::size_t>(*at)];
      at += scales.col_stride;
    }
    return factors_;
  }

 private:
  const ScaledMatrix& matrix_;
  Global global_;
  std::array<float, 256> by_code_{};
  bool has_table_ = false;
  std::vector<float> factors_;
};

/// To f32 by one product of each code with its block's factor.
void dequantize_by_vectors(const ScaledMatrix& matrix, simd::CodeType type, Global global,
                           bool clears_minus_zero, std::span<float> out) {
  constexpr std::size_t kCached = std::size_t{1} << 21;  // numbers that a cache may hold
  const bool streams = out.size() > kCached;
  const CodeGrid& codes = matrix.codes;
  const std::int64_t bits = info(codes.format).bits;
  const simd::DecodeKernels& kernels = *simd::active_kernels()->decode;
  RowFactors factors(matrix, global);
  for (std::int64_t row = 0; row < matrix.rows; ++row) {
    const std::byte* from = codes.data + element_number(codes, row, 0) * bits / 8;
    kernels.decode(type, from, static_cast<std::size_t>(matrix.cols),
                   static_cast<std::size_t>(factors.block()), factors.of(row).data(),
                   clears_minus_zero, streams, out.data() + row * matrix.cols);
  }
}

}  // namespace

std::uint32_t code_at(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col) {
  assert(row >= 0 && row < matrix.rows && col >= 0 && col < matrix.cols);
  const CodeGrid& codes = matrix.codes;
  return read_code(codes.data, codes.format, codes.nibbles, element_number(codes, row, col));
}

double element_at(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col) {
  return static_cast<double>(decode(matrix.codes.format, code_at(matrix, row, col)));
}

float scale_at(const ScaledMatrix& matrix, std::int64_t row, std::int64_t col) {
  assert(row >= 0 && row < matrix.rows && col >= 0 && col < matrix.cols);
  if (!matrix.scales) return 1.0f;
  const ScaleGrid& scales = *matrix.scales;
  return read_scale(scales, (scales.row_begin + row) / scales.block_rows * scales.row_stride +
                                (scales.col_begin + col) / scales.block_cols * scales.col_stride);
}

void dequantize(const ScaledMatrix& matrix, DequantizeOrder order, Format target,
                std::span<float> out) {
  check_size(matrix, out.size());
  check_order(matrix, order);
  const ScaleRun scale_run = choose(matrix, order, target);
  const bool is_global = matrix.global_rule != GlobalScaleRule::none;
  const Global global{matrix.global_rule, is_global ? matrix.global_scale : 1.0f};
  const simd::DefaultFloatEnvironment environment;
  const bool one_product = order == DequantizeOrder::checkpoint ||
                           order == DequantizeOrder::modelopt_nvfp4 ||
                           (order == DequantizeOrder::once && !is_global);
  const bool clears_minus_zero = order == DequantizeOrder::modelopt_nvfp4;
  if (const auto type = vector_type(matrix); type && one_product && target == Format::f32) {
    return dequantize_by_vectors(matrix, *type, global, clears_minus_zero, out);
  }
  const RowDecoder decode_rows(matrix, clears_minus_zero);
  const std::int64_t tile_rows = row_tile(matrix);
  for (std::int64_t first = 0; first < matrix.rows; first += tile_rows) {
    const std::int64_t end = std::min(first + tile_rows, matrix.rows);
    decode_rows(first, end - first, out.data() + first * matrix.cols);
    for (std::int64_t row = first; row < end; ++row) {
      float* values = out.data() + row * matrix.cols;
      for_each_run(matrix, row, [&](std::int64_t col, std::int64_t count, float scale) {
        scale_run(values + col, count, scale, global);
      });
    }
  }
}

void dequantize(const ScaledMatrix& matrix, std::span<double> out) {
  check_size(matrix, out.size());
  const simd::DefaultFloatEnvironment environment;
  const RowDecoder decode_rows(matrix, false);
  const auto global = static_cast<double>(matrix.global_scale);
  const std::int64_t tile_rows = row_tile(matrix);
  std::vector<float> tile(static_cast<std::size_t>(tile_rows * matrix.cols));
  for (std::int64_t first = 0; first < matrix.rows; first += tile_rows) {
    const std::int64_t end = std::min(first + tile_rows, matrix.rows);
    decode_rows(first, end - first, tile.data());
    for (std::int64_t row = first; row < end; ++row) {
      const float* values = tile.data() + (row - first) * matrix.cols;
      double* out_row = out.data() + row * matrix.cols;
      for_each_run(matrix, row, [&](std::int64_t col, std::int64_t count, float scale) {
        for (std::int64_t i = col; i < col + count; ++i) {
          double value = static_cast<double>(values[i]) * static_cast<double>(scale);
          if (matrix.global_rule == GlobalScaleRule::multiply) value *= global;
          if (matrix.global_rule == GlobalScaleRule::divide) value /= global;
          out_row[i] = value == value ? value : std::numeric_limits<double>::quiet_NaN();
        }
      });
    }
  }
}

}  // namespace moeref
