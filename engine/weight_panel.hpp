#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/operand.hpp"
#include "engine/sliced_rows.hpp"
#include "quant/aligned.hpp"
#include "simd/kernels.hpp"

namespace moeref {

inline constexpr std::int64_t kPanelColumns = static_cast<std::int64_t>(simd::kPanelColumns);

/// What the weights of a panel can be at most, known before they are decoded. Up to kPanelColumns
/// weight rows side by side: the columns of the output.
struct PanelSurvey {
  std::int64_t first = 0;  ///< weight row of the first column
  std::int64_t columns = 0;
  std::array<char, simd::kPanelColumns> finite{};  ///< 0: NaN or infinity in values or scales
  /// Per column, the most of its segments: the values are multiples of 2^-spread times a power of
  /// two that none exceeds.
  std::array<int, simd::kPanelColumns> spread{};
  std::vector<double> largest;  ///< [segments, kPanelColumns]: no |value| is above it
  std::array<double, simd::kPanelColumns> largest_code{};  ///< of storage that vector code reads
  AlignedVector<double>
      scales;  ///< [segments, kPanelColumns]: the wide scales, 1 if there are none
  /// Where the codes and the narrow scales of the columns begin, in storage that vector code reads;
  /// columns that there are not are the last one again.
  std::array<const std::byte*, simd::kPanelColumns> codes_at{};
  std::array<const std::byte*, simd::kPanelColumns> scales_at{};
  /// [blocks, kPanelColumns]: the narrow scales of some columns from `factors_from` on.
  AlignedVector<double> factors;
  std::int64_t factors_from = -1;
  std::int64_t factors_before = 0;  ///< columns of the first block that lie before those
};

/// Columns of K of the blocks in which whole numbers can be summed, each under one scale; 0: the
/// weights are not E2M1, or scales change inside.
std::int64_t slice_columns(const ScaledMatrix& matrix);

/// Whether each of those blocks has a narrow scale of its own, or none has.
bool has_lines(const ScaledMatrix& matrix);

struct CodeForm;

/// Reads a weight matrix panel by panel. Storage that lies as checkpoints have it (codes of a row
/// side by side, scales of whole blocks) is decoded by vector code, all other by OperandDecoder.
class WeightReader {
 public:
  /// `bounds`: where segments begin, then K. `matrix` and `kernels` must outlive the reader.
  WeightReader(const ScaledMatrix& matrix, std::span<const std::int64_t> bounds,
               const simd::KernelTable& kernels);
  WeightReader(const WeightReader&) = delete;
  WeightReader& operator=(const WeightReader&) = delete;

  /// Panels that can be surveyed before they are decoded: 1, or any number.
  bool reads_any_panel() const { return plain_; }
  void survey(std::int64_t first, PanelSurvey& survey);
  /// Upper bounds of the root of the sum of squares of each column, for storage that vector code
  /// reads and scales of blocks; else infinity.
  void find_norms(PanelSurvey& panel, std::array<double, simd::kPanelColumns>& norms);
  /// Values [count, kPanelColumns] of columns k .. k + count - 1 of a surveyed panel, k a multiple
  /// of kFactorUnit, count at most kDepthChunk and in one chunk of kFactorChunk; valid until the
  /// next call.
  const double* decode(PanelSurvey& panel, std::int64_t k, std::int64_t count);

  /// Columns of K for whole numbers, in blocks of slice_columns().
  struct Slices {
    const std::uint8_t* weights;  ///< as simd::SliceKernels::decode gives them
    const double* scales;         ///< [blocks, kPanelColumns]
  };
  /// Columns k .. k + count - 1, k a multiple of kSliceChunk, count at most that; valid until the
  /// next call for the same place below simd::kSlicePanels, or for the panel.
  Slices decode_slices(PanelSurvey& panel, std::size_t place, std::int64_t k, std::int64_t count);
  /// The columns of a surveyed panel, of a matrix that has lines.
  simd::LineWeights lines(const PanelSurvey& panel) const;

  /// Brings the same columns of the panel behind into the second cache.
  void prefetch_next(const PanelSurvey& panel, std::int64_t k, std::int64_t count) const;

  /// All values of one weight row.
  void decode_row(std::int64_t row, std::span<double> values);

 private:
  /// Bounds of some numbers.
  struct Range {
    double largest = 0.0;  ///< of the magnitudes
    int lowest = 4000;     ///< all are multiples of 2^lowest
    bool finite = true;
    bool empty() const { return finite && largest == 0.0; }
    int spread() const { return exponent_above(largest) - lowest; }
  };
  using Ranges = std::array<Range, simd::kPanelColumns>;
  struct SliceBuffer {
    AlignedVector<std::uint8_t> weights;
    AlignedVector<double> scales;
  };

  static Range range_of(const CodeForm& form, const simd::Magnitudes& sizes);
  Ranges ranges_of(Format format, const std::array<const std::byte*, simd::kPanelColumns>& columns,
                   std::int64_t count) const;
  Ranges scale_ranges(const PanelSurvey& panel) const;
  Ranges code_ranges(const PanelSurvey& panel) const;
  bool shares_scales(std::int64_t row) const;
  Range value_range(std::int64_t column, std::int64_t begin, std::int64_t count);
  void place(PanelSurvey& survey) const;
  std::int64_t code_bytes(std::int64_t count) const;
  void read_factors(PanelSurvey& panel, std::int64_t k);
  const double* slice_scales(PanelSurvey& panel, AlignedVector<double>& scales, std::int64_t k,
                             std::int64_t count);
  simd::PanelCodes codes_of(const PanelSurvey& panel, std::int64_t k) const;
  template <typename Decode>
  void decode_units(simd::PanelCodes codes, std::int64_t count, Decode decode);

  const ScaledMatrix& matrix_;
  std::span<const std::int64_t> bounds_;
  const simd::KernelTable& kernels_;
  bool plain_ = false;
  bool narrow_scales_ = false;
  simd::PanelCode type_ = simd::PanelCode::e2m1;
  std::int64_t code_bits_ = 0;
  simd::PanelCode scale_type_ = simd::PanelCode::e8m0;
  std::int64_t scale_bytes_ = 0;
  std::int64_t scale_blocks_ = 0;  ///< of a row
  OperandDecoder decoder_;
  std::int64_t slice_cols_ = 0;
  std::vector<std::byte> ones_;  ///< scales of blocks that have none
  AlignedVector<double> values_;
  std::vector<std::byte> tail_;
  std::vector<double> column_;
  std::array<SliceBuffer, simd::kSlicePanels> slices_;
};

}  // namespace moeref
