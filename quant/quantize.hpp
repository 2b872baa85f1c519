#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quant/element_rule.hpp"
#include "quant/options.hpp"
#include "quant/scaled_matrix.hpp"

namespace moeref {

/// Numbers to quantize: a row-major matrix [rows, cols] that somebody else owns, at any alignment.
struct ValueMatrix {
  std::string name;              ///< for messages
  Format format = Format::bf16;  ///< bf16, f16 or f32; E4M3 for quantizers that say so
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::span<const std::byte> bytes;
};

/// Where the scale above the block scales comes from.
enum class GlobalScaleOf : std::uint8_t {
  none,
  given,   ///< an argument of the quantizer: a calibrated scale
  tensor,  ///< made of the largest magnitude of the tensor
  row,     ///< made of the largest magnitude of each row
};

/// What a quantizer makes: codes, one scale for each block, and a scale above them.
struct QuantizedForm {
  Format codes = Format::e4m3;
  Format scales = Format::f32;  ///< as stored: f32, bf16, f16, e8m0, ue4m3
  std::int64_t block_rows = 1;  ///< 0 = all rows
  std::int64_t block_cols = 0;  ///< 0 = all columns
  GlobalScaleOf global = GlobalScaleOf::none;
  /// How the global scale enters the value of a code, as stored; none where it is the block scale
  /// itself (static per tensor).
  GlobalScaleRule global_rule = GlobalScaleRule::none;
  /// What a file calls them, after the tensor's name.
  std::string_view codes_suffix = "";
  std::string_view scales_suffix = "_scale";
  std::string_view global_suffix = "_global_scale";
};

/// What the blocks' amax, the largest magnitude, does with NaN elements.
enum class NanAmax : std::uint8_t {
  ignored,             ///< fmaxf: 0 if there is nothing else
  ignored_unless_all,  ///< __hmax2: NaN if there is nothing else
  propagated,          ///< torch.amax
};

/// What amax makes of a block: the scale as stored, and the factor of its elements.
struct BlockScale {
  std::uint32_t code = 0;  ///< in QuantizedForm::scales
  float factor = 0.0f;
};
using ScaleOfAmax = std::function<BlockScale(float amax)>;

/// A scale above the block scales: as it is stored (1 if there is none), and the amax of the tensor
/// or row that it was made of.
struct GlobalScale {
  float stored = 1.0f;
  float amax = 0.0f;
};

/// A quantizer with its options chosen: pure functions of block and tensor maxima, and a rule for
/// the elements.
struct QuantizePlan {
  QuantizedForm form;
  NanAmax nan_amax = NanAmax::ignored;    ///< of blocks
  NanAmax nan_global = NanAmax::ignored;  ///< of the amax that the global scale is made of
  ElementRule element;
  /// The block scales under a global scale.
  std::function<ScaleOfAmax(const GlobalScale& global)> scale = nullptr;
  /// GlobalScaleOf tensor, row: the global scale, as stored, of an amax.
  std::function<float(float amax)> global = nullptr;
  /// Where blocks of columns must be whole.
  bool whole_blocks = true;
  /// FP8 -> FP4: what becomes of a number before anything else.
  std::function<float(float x, float global)> before = nullptr;
  /// Instead of `scale` and `element`: writes a code for each number of a block, gives the scale.
  std::function<std::uint32_t(std::span<const float> block, float amax, const GlobalScale& global,
                              std::span<std::uint8_t> codes)>
      block = nullptr;
};

/// Codes and scales of a matrix.
struct Quantized {
  QuantizedForm form;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_blocks = 0;
  std::int64_t col_blocks = 0;
  std::vector<std::byte> codes;   ///< [rows, cols]; E2M1 [rows, cols / 2], low nibble first
  std::vector<std::byte> scales;  ///< [row_blocks, col_blocks]
  std::vector<float> global;      ///< empty, one, or one a row

  /// A view of it with the value of every code: codes, block scales, global scale. Not with a
  /// global scale per row, which `row_matrix` takes.
  ScaledMatrix matrix(const std::string& name) const;
  ScaledMatrix row_matrix(const std::string& name, std::int64_t row) const;
  /// The scales as f32, exact.
  std::vector<float> scale_values() const;
};

/// One function that turns numbers into codes, as one GPU stack computes it. Each is a file's
/// entry in quant/quantizers/, with its formula in floating-point order; `all_quantizers` lists
/// them.
struct Quantizer {
  std::string_view name;
  std::string_view family;
  std::string_view summary;  ///< one line
  /// The formula in evaluation order, f32 with one rounding an operation unless noted, and what
  /// zero, tiny, infinite and NaN input yields.
  std::string_view formula;
  std::string_view specials;
  std::string_view source;  ///< repo@commit path function
  bool weights = false;     ///< makes checkpoint weights
  bool activations = false;
  std::vector<Format> inputs = {Format::bf16, Format::f16, Format::f32};
  std::vector<OptionInfo> options = {};
  QuantizePlan (*plan)(const Options& options, Format input) = nullptr;
};

namespace quantizers {
#define MOEREF_QUANTIZER(name) extern const Quantizer name;
#include "quant/quantizers.inc"
#undef MOEREF_QUANTIZER
}  // namespace quantizers

/// Every quantizer, in the order of quantizers.inc.
std::span<const Quantizer* const> all_quantizers();
/// Error: an unknown name; lists the nearest.
const Quantizer& find_quantizer(std::string_view name);

/// Quantizes with a plan. `given`: the scale of GlobalScaleOf::given. Rows are independent, so the
/// result does not depend on `threads`. Error (names the matrix): a size that the form does not
/// take, an input format that the quantizer does not, a missing or superfluous `given`.
Quantized quantize(const QuantizePlan& plan, const ValueMatrix& values, std::optional<float> given,
                   int threads);
/// The same into a result whose memory is used again.
void quantize(const QuantizePlan& plan, const ValueMatrix& values, std::optional<float> given,
              int threads, Quantized& out);
/// Quantizes rows of a larger tensor as `quantize` does with the whole of it: the same codes,
/// scales and global scale. `rows` begins where a block does (anywhere, if the block is the tensor)
/// and ends so, or with the tensor. `amax`: the largest magnitude of the whole, or of all tensors
/// that one global scale is for; read only for scales of the tensor. Error: as `quantize`;
/// GlobalScaleOf::given.
Quantized quantize_rows(const QuantizePlan& plan, const ValueMatrix& rows, float amax, int threads);
/// `quantize` by name and "key=value" options.
Quantized quantize(std::string_view quantizer, std::span<const std::string> options,
                   const ValueMatrix& values, std::optional<float> given, int threads);

}  // namespace moeref
