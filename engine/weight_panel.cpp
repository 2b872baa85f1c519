#include "engine/weight_panel.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <optional>

#include "engine/packed_rows.hpp"
#include "quant/cast.hpp"
#include "quant/dequantize.hpp"
#include "quant/formats.hpp"
#include "quant/row_decoder.hpp"

namespace moeref {
namespace {

constexpr std::int64_t kPrefetched = 1024;  // bytes of scales of one row
constexpr std::int64_t kFactorUnit = static_cast<std::int64_t>(simd::kFactorUnit);

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

std::optional<simd::CodeType> code_type(Format format) {
  switch (format) {
    case Format::e2m1:
      return simd::CodeType::e2m1;
    case Format::e4m3:
      return simd::CodeType::e4m3;
    case Format::bf16:
      return simd::CodeType::bf16;
    case Format::f16:
      return simd::CodeType::f16;
    default:
      return std::nullopt;
  }
}

/// Whether the codes of a row lie side by side from a whole byte on.
bool has_plain_codes(const CodeGrid& codes) {
  if (codes.col_stride != 1) return false;
  if (codes.format != Format::e2m1) return true;
  return codes.nibbles == NibbleOrder::low_first && codes.origin % 2 == 0 &&
         codes.row_stride % 2 == 0;
}

/// What the bits of a code without its sign say of the size of its value.
struct CodeForm {
  Format format;
  std::size_t bytes;
  std::uint32_t mask;      ///< the magnitude
  std::uint32_t infinite;  ///< magnitudes from here on are not finite
  int fraction_bits;
  int bias;
  bool has_zero;  ///< and subnormal numbers
};
constexpr CodeForm kForms[] = {
    {Format::e4m3, 1, 0x7F, 0x7F, 3, 7, true},      {Format::ue4m3, 1, 0x7F, 0x7F, 3, 7, true},
    {Format::e8m0, 1, 0xFF, 0xFF, 0, 127, false},   {Format::bf16, 2, 0x7FFF, 0x7F80, 7, 127, true},
    {Format::f16, 2, 0x7FFF, 0x7C00, 10, 15, true},
};

const CodeForm* find_form(Format format) {
  const auto* found = std::find_if(std::begin(kForms), std::end(kForms),
                                   [=](const CodeForm& form) { return form.format == format; });
  return found == std::end(kForms) ? nullptr : found;
}

/// Whether kFactorUnit columns from every multiple of it on share a scale, and those of a row lie
/// side by side.
bool has_plain_scales(const ScaledMatrix& matrix) {
  if (!matrix.scales || has_wide_scales(matrix)) return true;
  return find_form(matrix.scales->format) != nullptr && matrix.scales->col_stride == 1 &&
         matrix.scales->block_cols % kFactorUnit == 0 &&
         matrix.scales->col_begin % kFactorUnit == 0;
}

/// Brings what is read soon into the second cache.
void prefetch(const std::byte* from, std::int64_t bytes) {
  for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
}

std::int64_t codes_of_unit(simd::CodeType type) {
  switch (type) {
    case simd::CodeType::e2m1:
      return 32;
    case simd::CodeType::e4m3:
      return 16;
    default:
      return 8;
  }
}

}  // namespace

/// Bounds of some numbers.
struct WeightReader::Range {
  double largest = 0.0;  ///< of the magnitudes
  int lowest = 4000;     ///< all are multiples of 2^lowest
  bool finite = true;
  bool empty() const { return largest == 0.0; }
};

WeightReader::WeightReader(const ScaledMatrix& matrix, std::span<const std::int64_t> bounds,
                           const simd::KernelTable& kernels)
    : matrix_(matrix), bounds_(bounds), kernels_(kernels), decoder_(matrix) {
  const std::optional<simd::CodeType> type = code_type(matrix.codes.format);
  plain_ = type && has_plain_codes(matrix.codes) && has_plain_scales(matrix);
  narrow_scales_ = matrix.scales && !has_wide_scales(matrix);
  if (!plain_) return;
  type_ = *type;
  if (narrow_scales_) scale_bytes_ = info(matrix.scales->format).bits / 8;
  if (scale_bytes_ == 1) {
    for (std::uint32_t code = 0; code < scale_values_.size(); ++code) {
      scale_values_[code] = static_cast<double>(moeref::decode(matrix.scales->format, code));
    }
  }
  // A last unit may reach beyond the chunk.
  values_.resize(to_size((kDepthChunk + codes_of_unit(type_)) * kPanelColumns));
  factors_.resize(to_size((kMostSliceCols / kFactorUnit + 3) * kPanelColumns));
  tail_.resize(simd::kPanelColumns * simd::kCodeUnit);
  if (type_ != simd::CodeType::e2m1) return;
  // Both powers of two divide a chunk.
  slice_cols_ = !narrow_scales_ || matrix.scales->block_cols % 32 == 0 ? 32 : kFactorUnit;
  if (narrow_scales_ && matrix.scales->col_begin % slice_cols_ != 0) slice_cols_ = kFactorUnit;
  slice_weights_.resize(to_size(kMostSliceCols * kPanelColumns));
  slice_scales_.assign(to_size(kMostSliceCols / kFactorUnit * kPanelColumns), 1.0);
}

std::int64_t WeightReader::code_bytes(std::int64_t count) const {
  return (count * info(matrix_.codes.format).bits + 7) / 8;
}

/// Finds the codes and the narrow scales of the columns.
void WeightReader::place(PanelSurvey& survey) const {
  for (std::int64_t j = 0; j < kPanelColumns; ++j) {
    const std::int64_t row = survey.first + std::min(j, survey.columns - 1);
    survey.codes_at[to_size(j)] =
        matrix_.codes.data + code_bytes(element_number(matrix_.codes, row, 0));
    if (!narrow_scales_) continue;
    const ScaleGrid& scales = *matrix_.scales;
    const std::int64_t number = (scales.row_begin + row) / scales.block_rows * scales.row_stride +
                                scales.col_begin / scales.block_cols;
    survey.scales_at[to_size(j)] = scales.data + number * scale_bytes_;
    prefetch(survey.scales_at[to_size(j)] + kPanelColumns * scales.row_stride * scale_bytes_,
             std::min(scales.row_stride * scale_bytes_, kPrefetched));
  }
}

/// Of `count` codes that lie side by side.
WeightReader::Range WeightReader::range_of(Format format, const std::byte* codes,
                                           std::int64_t count) const {
  const CodeForm& form = *find_form(format);
  simd::Magnitudes sizes = kernels_.gemm->magnitudes(form.bytes, form.mask, codes, to_size(count));
  if (!form.has_zero && std::memchr(codes, 0, to_size(count)) != nullptr) sizes.smallest = 0;
  if (sizes.smallest > sizes.largest) return {};
  if (sizes.largest >= form.infinite) return {0.0, 0, false};
  const int exponent =
      std::max(static_cast<int>(sizes.smallest >> form.fraction_bits), form.has_zero ? 1 : 0);
  // Fraction bits that no code has do not count.
  const int unused = std::countr_zero(sizes.bits | 1u << form.fraction_bits);
  return {static_cast<double>(moeref::decode(format, sizes.largest)),
          exponent - form.bias - form.fraction_bits + unused, true};
}

/// Of all narrow scales of a row.
WeightReader::Range WeightReader::scale_range(const std::byte* scales) const {
  if (!narrow_scales_) return {1.0, 0, true};
  const std::int64_t cols = matrix_.scales->col_begin % matrix_.scales->block_cols + matrix_.cols;
  const std::int64_t blocks = (cols + matrix_.scales->block_cols - 1) / matrix_.scales->block_cols;
  return range_of(matrix_.scales->format, scales, blocks);
}

WeightReader::Range WeightReader::code_range(const std::byte* codes, std::int64_t count) const {
  if (type_ == simd::CodeType::e2m1) return {6.0, -1, true};
  return range_of(matrix_.codes.format, codes, count);
}

void WeightReader::survey(std::int64_t first, PanelSurvey& survey) {
  const std::int64_t segments = std::ssize(bounds_) - 1;
  survey.first = first;
  survey.columns = std::min(kPanelColumns, matrix_.rows - first);
  survey.finite.fill(1);
  survey.spread.fill(0);
  survey.largest.assign(to_size(segments * kPanelColumns), 0.0);
  survey.scales.assign(to_size(segments * kPanelColumns), 1.0);
  if (plain_) {
    place(survey);
  } else {
    values_.assign(to_size(matrix_.cols * kPanelColumns), 0.0);
    decoder_.decode(first, survey.columns, values_.data(), 1, kPanelColumns, survey.finite.data());
  }
  for (std::int64_t j = 0; j < survey.columns; ++j) {
    const std::int64_t row = first + j;
    const Range scales = plain_ ? scale_range(survey.scales_at[to_size(j)]) : Range{};
    char& finite = survey.finite[to_size(j)];
    if (!scales.finite) finite = 0;
    for (std::int64_t s = 0; s < segments; ++s) {
      const std::int64_t begin = bounds_[to_size(s)];
      const std::int64_t count = bounds_[to_size(s + 1)] - begin;
      const std::size_t at = to_size(s * kPanelColumns + j);
      survey.scales[at] = wide_scale(matrix_, row, begin);
      if (!std::isfinite(survey.scales[at])) finite = 0;
      if (finite == 0) continue;
      double largest = 0.0;
      int lowest = 0;
      if (plain_) {
        const Range codes = code_range(survey.codes_at[to_size(j)] + code_bytes(begin), count);
        if (!codes.finite) finite = 0;
        if (codes.empty() || scales.empty()) continue;
        largest = codes.largest * scales.largest;
        lowest = codes.lowest + scales.lowest;
      } else {
        // Columns with NaN or infinity were left out above: their sums mean nothing.
        column_.resize(to_size(count));
        for (std::int64_t k = 0; k < count; ++k) {
          column_[to_size(k)] = values_[to_size((begin + k) * kPanelColumns + j)];
        }
        const Window window = window_of(column_, *kernels_.gemm);
        if (window.empty) continue;
        largest = std::ldexp(1.0, window.largest);
        lowest = window.lowest;
      }
      survey.largest[at] = largest;
      int& spread = survey.spread[to_size(j)];
      spread = std::max(spread, exponent_above(largest) - lowest);
    }
  }
}

void WeightReader::find_norms(const PanelSurvey& panel,
                              std::array<double, simd::kPanelColumns>& norms) {
  norms.fill(HUGE_VAL);
  if (!plain_ || !narrow_scales_) return;
  std::array<double, simd::kPanelColumns> squares{};
  const std::int64_t block_cols = matrix_.scales->block_cols;
  for (std::int64_t k = 0; k < matrix_.cols; k += kMostSliceCols) {
    const std::int64_t count = std::min(kMostSliceCols, matrix_.cols - k);
    const std::int64_t before = read_scales(panel, k, count);
    const std::int64_t blocks = (before + count - 1) / block_cols + 1;
    for (std::int64_t b = 0; b < blocks; ++b) {
      // Whole blocks, though one may reach beyond these columns: no sum gets smaller by it.
      for (std::size_t j = 0; j < simd::kPanelColumns; ++j) {
        const double scale = factors_[to_size(b * kPanelColumns) + j];
        squares[j] += scale * scale * static_cast<double>(std::min(block_cols, count));
      }
    }
  }
  for (std::int64_t j = 0; j < panel.columns; ++j) {
    const Range codes = code_range(panel.codes_at[to_size(j)], matrix_.cols);
    norms[to_size(j)] = codes.largest * std::sqrt(squares[to_size(j)]) * (1.0 + 0x1p-30);
  }
}

/// The scales of the blocks of columns k .. k + count - 1; gives the columns of the first block
/// that lie before k.
std::int64_t WeightReader::read_scales(const PanelSurvey& panel, std::int64_t k,
                                       std::int64_t count) {
  const std::int64_t block_cols = matrix_.scales->block_cols;
  const std::int64_t position = matrix_.scales->col_begin % block_cols + k;
  const std::int64_t first = position / block_cols;
  const std::int64_t blocks = (position + count - 1) / block_cols - first + 1;
  const double* values = scale_values_.data();
  for (std::size_t j = 0; j < simd::kPanelColumns; ++j) {
    const std::byte* scale = panel.scales_at[j] + first * scale_bytes_;
    double* to = factors_.data() + j;
    if (scale_bytes_ == 1) {
      for (std::int64_t b = 0; b < blocks; ++b) {
        to[b * kPanelColumns] = values[std::to_integer<std::size_t>(scale[b])];
      }
    } else if (matrix_.scales->format == Format::bf16) {
      for (std::int64_t b = 0; b < blocks; ++b) {
        const std::uint32_t bits = std::uint32_t{load<std::uint16_t>(scale + 2 * b)} << 16;
        to[b * kPanelColumns] = static_cast<double>(std::bit_cast<float>(bits));
      }
    } else {
      for (std::int64_t b = 0; b < blocks; ++b) {
        to[b * kPanelColumns] = static_cast<double>(widen_f16(load<std::uint16_t>(scale + 2 * b)));
      }
    }
    to[blocks * kPanelColumns] = 0.0;  // of the rest of a last unit, which nobody uses
  }
  return position % block_cols;
}

simd::PanelCodes WeightReader::codes_of(const PanelSurvey& panel, std::int64_t k,
                                        std::int64_t count) const {
  const std::int64_t bytes = code_bytes(count);
  const std::int64_t next = code_bytes(kPanelColumns * matrix_.codes.row_stride);
  simd::PanelCodes codes;
  codes.type = type_;
  const std::int64_t offset = code_bytes(k);
  for (std::size_t j = 0; j < simd::kPanelColumns; ++j) {
    codes.columns[j] = panel.codes_at[j] + offset;
    prefetch(codes.columns[j] + next, bytes);  // the same of the next panel
  }
  return codes;
}

/// decode(codes, count, done) for the whole units of `count` columns, and once more for what is
/// left, as a unit filled up with zeros: nothing is read beyond the end of a row.
template <typename Decode>
void WeightReader::decode_units(simd::PanelCodes codes, std::int64_t count, Decode decode) {
  const std::int64_t unit = codes_of_unit(type_);
  const std::int64_t whole = count / unit * unit;
  if (whole > 0) decode(codes, whole, std::int64_t{0});
  if (whole == count) return;
  std::fill(tail_.begin(), tail_.end(), std::byte{0});
  for (std::size_t j = 0; j < simd::kPanelColumns; ++j) {
    std::byte* copy = tail_.data() + j * simd::kCodeUnit;
    std::memcpy(copy, codes.columns[j] + code_bytes(whole), to_size(code_bytes(count - whole)));
    codes.columns[j] = copy;
  }
  decode(codes, unit, whole);
}

const double* WeightReader::decode(const PanelSurvey& panel, std::int64_t k, std::int64_t count) {
  if (!plain_) return values_.data() + k * kPanelColumns;
  simd::PanelCodes codes = codes_of(panel, k, count);
  std::int64_t before = 0;
  if (narrow_scales_) {
    before = read_scales(panel, k, count);
    codes.factor_block = to_size(matrix_.scales->block_cols);
  }
  decode_units(codes, count, [&](simd::PanelCodes unit, std::int64_t cols, std::int64_t done) {
    if (narrow_scales_) {
      const std::int64_t begin = before + done;
      const std::int64_t block_cols = matrix_.scales->block_cols;
      unit.factors = factors_.data() + begin / block_cols * kPanelColumns;
      unit.factor_begin = to_size(begin % block_cols);
    }
    kernels_.gemm->decode(unit, to_size(cols), values_.data() + done * kPanelColumns);
  });
  return values_.data();
}

WeightReader::Slices WeightReader::decode_slices(const PanelSurvey& panel, std::int64_t k,
                                                 std::int64_t count) {
  if (narrow_scales_) {
    // Copied: `decode` uses the same factors for columns of its own.
    const std::int64_t before = read_scales(panel, k, count);
    const std::int64_t block_cols = matrix_.scales->block_cols;
    for (std::int64_t b = 0; b * slice_cols_ < count; ++b) {
      std::copy_n(factors_.data() + (before + b * slice_cols_) / block_cols * kPanelColumns,
                  kPanelColumns, slice_scales_.data() + b * kPanelColumns);
    }
  }
  decode_units(codes_of(panel, k, count), count,
               [&](const simd::PanelCodes& unit, std::int64_t cols, std::int64_t done) {
                 kernels_.slices->decode(unit, to_size(cols),
                                         slice_weights_.data() + done * kPanelColumns);
               });
  return {slice_weights_.data(), slice_scales_.data()};
}

void WeightReader::decode_row(std::int64_t row, std::span<double> values) {
  char finite;
  decoder_.decode(row, 1, values.data(), 0, 1, &finite);
}

}  // namespace moeref
