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
// Columns of K whose scales are decoded together; a multiple of kSliceChunk.
constexpr std::int64_t kFactorChunk = 2048;
constexpr std::int64_t kFactorUnit = static_cast<std::int64_t>(simd::kFactorUnit);

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

std::optional<simd::PanelCode> panel_code(Format format) {
  switch (format) {
    case Format::e2m1:
      return simd::PanelCode::e2m1;
    case Format::e4m3:
    case Format::ue4m3:
      return simd::PanelCode::e4m3;
    case Format::e8m0:
      return simd::PanelCode::e8m0;
    case Format::bf16:
      return simd::PanelCode::bf16;
    case Format::f16:
      return simd::PanelCode::f16;
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

}  // namespace

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

namespace {

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

/// Columns of the block of scales that column 0 lies in, before it.
std::int64_t scale_offset(const ScaledMatrix& matrix) {
  return matrix.scales->col_begin % matrix.scales->block_cols;
}

}  // namespace

std::int64_t slice_columns(const ScaledMatrix& matrix) {
  if (matrix.codes.format != Format::e2m1 || !has_plain_codes(matrix.codes) ||
      !has_plain_scales(matrix)) {
    return 0;
  }
  if (!matrix.scales || has_wide_scales(matrix)) return 32;
  const bool wide = matrix.scales->block_cols % 32 == 0 && matrix.scales->col_begin % 32 == 0;
  return wide ? 32 : kFactorUnit;
}

bool has_lines(const ScaledMatrix& matrix) {
  if (slice_columns(matrix) == 0) return false;
  if (!matrix.scales || has_wide_scales(matrix)) return true;
  const std::optional<simd::PanelCode> type = panel_code(matrix.scales->format);
  return (type == simd::PanelCode::e8m0 || type == simd::PanelCode::e4m3) &&
         matrix.scales->block_cols == slice_columns(matrix) && scale_offset(matrix) == 0;
}

WeightReader::WeightReader(const ScaledMatrix& matrix, std::span<const std::int64_t> bounds,
                           const simd::KernelTable& kernels)
    : matrix_(matrix), bounds_(bounds), kernels_(kernels), decoder_(matrix) {
  const std::optional<simd::PanelCode> type = panel_code(matrix.codes.format);
  plain_ = type && matrix.codes.format != Format::e8m0 && has_plain_codes(matrix.codes) &&
           has_plain_scales(matrix);
  narrow_scales_ = matrix.scales && !has_wide_scales(matrix);
  if (!plain_) return;
  type_ = *type;
  code_bits_ = info(matrix.codes.format).bits;
  if (narrow_scales_) {
    scale_type_ = *panel_code(matrix.scales->format);
    scale_bytes_ = info(matrix.scales->format).bits / 8;
    const std::int64_t end = scale_offset(matrix) + matrix.cols;
    scale_blocks_ = matrix.cols == 0 ? 0 : (end - 1) / matrix.scales->block_cols + 1;
  }
  tail_.resize(simd::kPanelColumns * simd::kCodeUnit);
  slice_cols_ = slice_columns(matrix);
  if (!narrow_scales_ && slice_cols_ != 0) {
    constexpr std::byte kOne{127};  // of E8M0
    ones_.assign(to_size((matrix.cols + slice_cols_ - 1) / slice_cols_), kOne);
  }
}

std::int64_t WeightReader::code_bytes(std::int64_t count) const {
  return (count * code_bits_ + 7) / 8;
}

/// Finds the codes and the narrow scales of the columns.
void WeightReader::place(PanelSurvey& survey) const {
  for (std::int64_t j = 0; j < kPanelColumns; ++j) {
    const std::int64_t row = survey.first + std::min(j, survey.columns - 1);
    survey.codes_at[to_size(j)] =
        matrix_.codes.data + code_bytes(element_number(matrix_.codes, row, 0));
  }
  if (!narrow_scales_) {
    survey.scales_at.fill(ones_.data());
    return;
  }
  const ScaleGrid& scales = *matrix_.scales;
  const std::int64_t next = kPanelColumns * scales.row_stride * scale_bytes_;
  const std::byte* begin = scales.data + scales.col_begin / scales.block_cols * scale_bytes_;
  for (std::int64_t j = 0; j < kPanelColumns; ++j) {
    const std::int64_t row = scales.row_begin + survey.first + std::min(j, survey.columns - 1);
    const std::int64_t block = scales.block_rows == 1 ? row : row / scales.block_rows;
    survey.scales_at[to_size(j)] = begin + block * scales.row_stride * scale_bytes_;
    prefetch(survey.scales_at[to_size(j)] + next,
             std::min(scales.row_stride * scale_bytes_, kPrefetched));
  }
}

/// What the magnitudes of some codes say of their values.
WeightReader::Range WeightReader::range_of(const CodeForm& form, const simd::Magnitudes& sizes) {
  if (sizes.smallest > sizes.largest) return {};
  if (sizes.largest >= form.infinite) return {0.0, 0, false};
  const int exponent =
      std::max(static_cast<int>(sizes.smallest >> form.fraction_bits), form.has_zero ? 1 : 0);
  // Fraction bits that no code has do not count.
  const int unused = std::countr_zero(sizes.bits | 1u << form.fraction_bits);
  return {static_cast<double>(moeref::decode(form.format, sizes.largest)),
          exponent - form.bias - form.fraction_bits + unused, true};
}

/// Of `count` codes of every column.
WeightReader::Ranges WeightReader::ranges_of(
    Format format, const std::array<const std::byte*, simd::kPanelColumns>& columns,
    std::int64_t count) const {
  const CodeForm& form = *find_form(format);
  simd::Magnitudes sizes[simd::kPanelColumns];
  kernels_.gemm->magnitudes(form.bytes, form.mask, form.has_zero, columns.data(), to_size(count),
                            sizes);
  Ranges ranges;
  for (std::size_t j = 0; j < ranges.size(); ++j) ranges[j] = range_of(form, sizes[j]);
  return ranges;
}

/// Of all narrow scales of the columns.
WeightReader::Ranges WeightReader::scale_ranges(const PanelSurvey& panel) const {
  if (narrow_scales_) return ranges_of(matrix_.scales->format, panel.scales_at, scale_blocks_);
  Ranges ones;
  ones.fill({1.0, 0, true});
  return ones;
}

/// Of all codes of the columns.
WeightReader::Ranges WeightReader::code_ranges(const PanelSurvey& panel) const {
  if (type_ == simd::PanelCode::e2m1) {
    Ranges all;
    all.fill({6.0, -1, true});
    return all;
  }
  return ranges_of(matrix_.codes.format, panel.codes_at, matrix_.cols);
}

void WeightReader::survey(std::int64_t first, PanelSurvey& survey) {
  const std::int64_t segments = std::ssize(bounds_) - 1;
  survey.first = first;
  survey.columns = std::min(kPanelColumns, matrix_.rows - first);
  survey.finite.fill(1);
  survey.spread.fill(0);
  survey.largest.assign(to_size(segments * kPanelColumns), 0.0);
  survey.scales.assign(to_size(segments * kPanelColumns), 1.0);
  survey.factors_from = -1;
  if (plain_) {
    place(survey);
  } else {
    values_.assign(to_size(matrix_.cols * kPanelColumns), 0.0);
    decoder_.decode(first, survey.columns, values_.data(), 1, kPanelColumns, survey.finite.data());
  }
  const Ranges scales = plain_ ? scale_ranges(survey) : Ranges{};
  // Of all segments: no code is much larger or smaller than those of its own.
  const Ranges codes = plain_ ? code_ranges(survey) : Ranges{};
  for (std::size_t j = 0; j < codes.size(); ++j) survey.largest_code[j] = codes[j].largest;
  for (std::int64_t s = 0; s < segments; ++s) {
    const std::int64_t begin = bounds_[to_size(s)];
    const std::int64_t count = bounds_[to_size(s + 1)] - begin;
    for (std::int64_t j = 0; j < survey.columns; ++j) {
      const std::size_t at = to_size(s * kPanelColumns + j);
      char& finite = survey.finite[to_size(j)];
      survey.scales[at] = j > 0 && shares_scales(first + j) ? survey.scales[at - 1]
                                                            : wide_scale(matrix_, first + j, begin);
      if (!std::isfinite(survey.scales[at])) finite = 0;
      Range range;
      if (plain_) {
        const Range& scale = scales[to_size(j)];
        const Range& code = codes[to_size(j)];
        range = {code.largest * scale.largest, code.lowest + scale.lowest,
                 code.finite && scale.finite};
      } else if (finite != 0) {
        // Sums of columns with NaN or infinity mean nothing.
        range = value_range(j, begin, count);
      }
      if (!range.finite) finite = 0;
      if (finite == 0 || range.empty()) continue;
      survey.largest[at] = range.largest;
      int& spread = survey.spread[to_size(j)];
      spread = std::max(spread, range.spread());
    }
  }
}

/// Whether a row lies in the block of scales of the row before it.
bool WeightReader::shares_scales(std::int64_t row) const {
  if (narrow_scales_ || !matrix_.scales) return true;  // one, whatever the row
  const ScaleGrid& scales = *matrix_.scales;
  return (scales.row_begin + row) % scales.block_rows != 0;
}

/// Of decoded values.
WeightReader::Range WeightReader::value_range(std::int64_t column, std::int64_t begin,
                                              std::int64_t count) {
  column_.resize(to_size(count));
  for (std::int64_t k = 0; k < count; ++k) {
    column_[to_size(k)] = values_[to_size((begin + k) * kPanelColumns + column)];
  }
  const Window window = window_of(column_, *kernels_.gemm);
  if (window.empty) return {};
  return {std::ldexp(1.0, window.largest), window.lowest, true};
}

void WeightReader::find_norms(PanelSurvey& panel, std::array<double, simd::kPanelColumns>& norms) {
  norms.fill(HUGE_VAL);
  if (!plain_ || !narrow_scales_) return;
  // Whole blocks, though the first and the last may reach beyond the columns: no sum gets smaller.
  const auto cols = static_cast<double>(std::min(matrix_.scales->block_cols, matrix_.cols));
  kernels_.gemm->squares(scale_type_, panel.scales_at.data(), to_size(scale_blocks_), norms.data());
  for (std::size_t j = 0; j < norms.size(); ++j) {
    norms[j] = panel.largest_code[j] * std::sqrt(cols * norms[j]) * (1.0 + 0x1p-30);
  }
}

/// decode(codes, count, done) for the whole units of `count` columns, and once more for what is
/// left, as a unit filled up with zeros: nothing is read beyond the end of a row.
template <typename Decode>
void WeightReader::decode_units(simd::PanelCodes codes, std::int64_t count, Decode decode) {
  const auto unit = static_cast<std::int64_t>(simd::codes_of_unit(codes.type));
  const std::int64_t whole = count / unit * unit;
  if (whole > 0) decode(codes, whole, std::int64_t{0});
  if (whole == count) return;
  const std::size_t bytes_of_whole = to_size(whole / unit) * simd::kCodeUnit;
  const std::size_t left =
      (to_size(count - whole) * simd::kCodeUnit + to_size(unit) - 1) / to_size(unit);
  std::fill(tail_.begin(), tail_.end(), std::byte{0});
  for (std::size_t j = 0; j < simd::kPanelColumns; ++j) {
    std::byte* copy = tail_.data() + j * simd::kCodeUnit;
    std::memcpy(copy, codes.columns[j] + bytes_of_whole, left);
    codes.columns[j] = copy;
  }
  decode(codes, unit, whole);
}

/// The scales of the blocks of the kFactorChunk columns that k lies in.
void WeightReader::read_factors(PanelSurvey& panel, std::int64_t k) {
  const std::int64_t from = k / kFactorChunk * kFactorChunk;
  if (panel.factors_from == from) return;
  const std::int64_t block_cols = matrix_.scales->block_cols;
  const std::int64_t position = scale_offset(matrix_) + from;
  const std::int64_t count = std::min(kFactorChunk, matrix_.cols - from);
  const std::int64_t first = position / block_cols;
  const std::int64_t blocks = (position + count - 1) / block_cols - first + 1;
  simd::PanelCodes codes;
  codes.type = scale_type_;
  const auto unit = static_cast<std::int64_t>(simd::codes_of_unit(scale_type_));
  for (std::size_t j = 0; j < simd::kPanelColumns; ++j) {
    codes.columns[j] = panel.scales_at[j] + first * scale_bytes_;
  }
  // One block more: of the rest of a last unit of weights, which nobody uses.
  panel.factors.resize(to_size((blocks + 1 + unit) * kPanelColumns));
  // Whole units where the row has them.
  const std::int64_t rounded = (blocks + unit - 1) / unit * unit;
  decode_units(codes, first + rounded <= scale_blocks_ ? rounded : blocks,
               [&](const simd::PanelCodes& part, std::int64_t part_count, std::int64_t done) {
                 kernels_.gemm->decode(part, to_size(part_count),
                                       panel.factors.data() + done * kPanelColumns);
               });
  panel.factors_from = from;
  panel.factors_before = position % block_cols;
}

simd::PanelCodes WeightReader::codes_of(const PanelSurvey& panel, std::int64_t k) const {
  simd::PanelCodes codes;
  codes.type = type_;
  const std::int64_t offset = code_bytes(k);
  for (std::size_t j = 0; j < simd::kPanelColumns; ++j) {
    codes.columns[j] = panel.codes_at[j] + offset;
  }
  return codes;
}

void WeightReader::prefetch_next(const PanelSurvey& panel, std::int64_t k,
                                 std::int64_t count) const {
  if (!plain_) return;
  const std::int64_t next = code_bytes(kPanelColumns * matrix_.codes.row_stride);
  for (const std::byte* codes : panel.codes_at) {
    prefetch(codes + code_bytes(k) + next, code_bytes(count));
  }
}

const double* WeightReader::decode(PanelSurvey& panel, std::int64_t k, std::int64_t count) {
  if (!plain_) return values_.data() + k * kPanelColumns;
  simd::PanelCodes codes = codes_of(panel, k);
  std::int64_t before = 0;
  if (narrow_scales_) {
    read_factors(panel, k);
    before = panel.factors_before + k - panel.factors_from;
    codes.factor_block = to_size(matrix_.scales->block_cols);
  }
  // A last unit may reach beyond the chunk.
  values_.resize((to_size(kDepthChunk) + simd::codes_of_unit(type_)) * simd::kPanelColumns);
  decode_units(codes, count, [&](simd::PanelCodes unit, std::int64_t cols, std::int64_t done) {
    if (narrow_scales_) {
      const std::int64_t begin = before + done;
      const std::int64_t block_cols = matrix_.scales->block_cols;
      unit.factors = panel.factors.data() + begin / block_cols * kPanelColumns;
      unit.factor_begin = to_size(begin % block_cols);
    }
    kernels_.gemm->decode(unit, to_size(cols), values_.data() + done * kPanelColumns);
  });
  return values_.data();
}

/// The scales of the blocks of slice_columns() from column k on, a multiple of kSliceChunk.
const double* WeightReader::slice_scales(PanelSurvey& panel, AlignedVector<double>& scales,
                                         std::int64_t k, std::int64_t count) {
  constexpr std::int64_t kMostBlocks = kSliceChunk / kFactorUnit;
  if (!narrow_scales_) {
    if (scales.empty()) scales.assign(to_size(kMostBlocks * kPanelColumns), 1.0);
    return scales.data();
  }
  read_factors(panel, k);
  const std::int64_t block_cols = matrix_.scales->block_cols;
  const std::int64_t before = panel.factors_before + k - panel.factors_from;
  if (block_cols == slice_cols_ && before % block_cols == 0) {
    return panel.factors.data() + before / block_cols * kPanelColumns;
  }
  scales.resize(to_size(kMostBlocks * kPanelColumns));
  for (std::int64_t b = 0; b * slice_cols_ < count; ++b) {
    const std::int64_t block = (before + b * slice_cols_) / block_cols;
    std::copy_n(panel.factors.data() + block * kPanelColumns, kPanelColumns,
                scales.data() + b * kPanelColumns);
  }
  return scales.data();
}

WeightReader::Slices WeightReader::decode_slices(PanelSurvey& panel, std::size_t place,
                                                 std::int64_t k, std::int64_t count) {
  SliceBuffer& buffer = slices_[place];
  prefetch_next(panel, k, count);
  buffer.weights.resize(to_size(kSliceChunk * kPanelColumns));
  decode_units(codes_of(panel, k), count,
               [&](const simd::PanelCodes& unit, std::int64_t cols, std::int64_t done) {
                 kernels_.slices->decode(unit, to_size(cols),
                                         buffer.weights.data() + done * kPanelColumns);
               });
  return {buffer.weights.data(), slice_scales(panel, buffer.scales, k, count)};
}

simd::LineWeights WeightReader::lines(const PanelSurvey& panel) const {
  return {panel.codes_at.data(), panel.scales_at.data(), scale_type_, to_size(matrix_.cols),
          to_size(slice_cols_)};
}

void WeightReader::decode_row(std::int64_t row, std::span<double> values) {
  char finite;
  decoder_.decode(row, 1, values.data(), 0, 1, &finite);
}

}  // namespace moeref
