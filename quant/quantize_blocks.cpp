#include "quant/quantize_blocks.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "quant/cast.hpp"
#include "quant/error.hpp"
#include "quant/known_blocks.hpp"
#include "quant/parallel.hpp"
#include "quant/tensor.hpp"
#include "quant/vector_rule.hpp"
#include "simd/kernels.hpp"

namespace moeref {
namespace {

constexpr auto kUnit = static_cast<std::int64_t>(simd::kEncodeUnit);

/// The largest magnitude so far, and whether there were NaNs.
class Amax {
 public:
  void add(std::span<const float> numbers) {
    for (const float number : numbers) {
      const float magnitude = std::fabs(number);
      if (magnitude != magnitude) {
        has_nan_ = true;
      } else {
        add(magnitude);
      }
    }
  }
  void add(float magnitude) {
    has_number_ = true;
    largest_ = std::max(largest_, magnitude);
  }
  void add(const Amax& other) {
    largest_ = std::max(largest_, other.largest_);
    has_nan_ = has_nan_ || other.has_nan_;
    has_number_ = has_number_ || other.has_number_;
  }
  bool has_nan() const { return has_nan_; }
  float value(NanAmax rule) const {
    const bool is_nan = has_nan_ && (rule == NanAmax::propagated ||
                                     (rule == NanAmax::ignored_unless_all && !has_number_));
    return is_nan ? std::numeric_limits<float>::quiet_NaN() : largest_;
  }

 private:
  float largest_ = 0.0f;
  bool has_nan_ = false;
  bool has_number_ = false;
};

/// A block's scale, and the factor of the vector loops if they may encode the block.
struct BlockFactor {
  BlockScale scale;
  std::optional<float> vector;
};

/// Of one thread.
struct Buffers {
  std::vector<float> numbers;
  std::vector<std::uint8_t> codes;  ///< of a block
  std::vector<std::uint32_t> amax_bits;
  std::vector<Amax> amax;
  std::vector<BlockFactor> factors;  ///< [col_blocks]
  std::vector<float> vector_factors;
  std::optional<KnownBlocks> known;
  GlobalScale global;
};

simd::NumberType number_type(Format format) {
  if (format == Format::bf16) return simd::NumberType::bf16;
  return format == Format::f16 ? simd::NumberType::f16 : simd::NumberType::f32;
}

/// One quantization under way.
class Work {
 public:
  Work(const QuantizePlan& plan, const ValueMatrix& values, std::optional<float> amax, int threads,
       Quantized& out)
      : plan_(plan),
        values_(values),
        threads_(threads),
        coder_(plan.element),
        width_(info(values.format).bits / 8),
        out_(out) {
    if (amax) elsewhere_.add(std::span<const float>(&*amax, 1));
    out_.form = plan.form;
    out_.rows = values.rows;
    out_.cols = values.cols;
    block_rows_ =
        plan.form.block_rows != 0 ? plan.form.block_rows : std::max<std::int64_t>(values.rows, 1);
    block_cols_ =
        plan.form.block_cols != 0 ? plan.form.block_cols : std::max<std::int64_t>(values.cols, 1);
    out_.row_blocks = ceil_div(values.rows, block_rows_);
    out_.col_blocks = ceil_div(values.cols, block_cols_);
    check();
    out_.codes.resize(static_cast<std::size_t>(values.rows * row_bytes()));
    out_.scales.resize(static_cast<std::size_t>(out_.row_blocks * out_.col_blocks * scale_bytes()));
    if (!plan.before && !plan.block && info(values.format).bits >= 16 &&
        (block_cols_ % kUnit == 0 || out_.col_blocks == 1)) {
      vector_ = VectorRule::of(plan.element);
      if (vector_) vector_cols_ = values.cols / kUnit * kUnit;
    }
    const bool halves = values.format == Format::bf16 || values.format == Format::f16;
    const std::int64_t width = std::min(block_cols_, values.cols);
    const bool units = width > 0 && values.cols % width == 0 && width % kUnit == 0;
    knows_blocks_ = plan.form.block_rows == 1 && halves && units && plan.scale && !plan.before &&
                    plan.form.global != GlobalScaleOf::row &&
                    (scale_bytes() == 1 || scale_bytes() == 4);
  }

  void run(std::optional<float> given) {
    switch (plan_.form.global) {
      case GlobalScaleOf::none:
        out_.global.clear();
        break;
      case GlobalScaleOf::given:
        global_ = {given.value(), 0.0f};
        out_.global = {global_.stored};
        break;
      case GlobalScaleOf::tensor:
        global_ = global_scale(amax_of_rows(0, values_.rows, elsewhere_));
        out_.global = {global_.stored};
        break;
      case GlobalScaleOf::row:
        out_.global.resize(static_cast<std::size_t>(values_.rows));
        break;
    }
    if (plan_.form.global != GlobalScaleOf::row && plan_.scale) scale_ = plan_.scale(global_);
    if (block_rows_ > kRowsAtOnce) {
      for (std::int64_t block = 0; block < out_.row_blocks; ++block) tall_blocks(block);
    } else {
      const std::int64_t together = std::max<std::int64_t>(1, kRowsAtOnce / block_rows_);
      parallel_for<Buffers>(
          ceil_div(out_.row_blocks, together), threads_, [&](std::int64_t part, Buffers& buffers) {
            const std::int64_t end = std::min((part + 1) * together, out_.row_blocks);
            for (std::int64_t block = part * together; block < end; ++block) {
              row_of_blocks(block, buffers);
            }
          });
    }
  }

 private:
  static constexpr std::int64_t kRowsAtOnce = 128;

  std::int64_t row_bytes() const {
    return plan_.form.codes == Format::e2m1 ? values_.cols / 2 : values_.cols;
  }
  std::int64_t scale_bytes() const { return info(plan_.form.scales).bits / 8; }
  std::int64_t block_begin(std::int64_t block) const { return block * block_cols_; }
  std::int64_t block_end(std::int64_t block) const {
    return std::min((block + 1) * block_cols_, values_.cols);
  }
  const std::byte* number(std::int64_t row, std::int64_t col) const {
    return values_.bytes.data() + (row * values_.cols + col) * width_;
  }

  void check() const {
    const auto count =
        static_cast<std::size_t>(values_.rows) * static_cast<std::size_t>(values_.cols);
    const std::size_t bytes = count * static_cast<std::size_t>(width_);
    if (values_.rows < 0 || values_.cols < 0 || values_.bytes.size() != bytes) {
      fail(values_.name, "has {} bytes; [{}, {}] numbers of {} have {}", values_.bytes.size(),
           values_.rows, values_.cols, name(values_.format), bytes);
    }
    if (plan_.whole_blocks && values_.cols % block_cols_ != 0) {
      fail(values_.name, "has {} columns; blocks of {} must be whole: pad the columns",
           values_.cols, block_cols_);
    }
    if (plan_.form.codes != Format::e2m1) return;
    if (values_.cols % 2 != 0) {
      fail(values_.name, "has {} columns; FP4 codes are packed in pairs: pad the columns",
           values_.cols);
    }
    if (out_.col_blocks > 1 && block_cols_ % 2 != 0) {
      fail(values_.name,
           "is cut into blocks of {} columns; FP4 codes are packed in pairs: choose "
           "an even block",
           block_cols_);
    }
  }

  /// Columns [begin, end) of a row as f32.
  std::span<const float> read(std::int64_t row, std::int64_t begin, std::int64_t end,
                              Buffers& buffers) const {
    const auto count = static_cast<std::size_t>(end - begin);
    if (buffers.numbers.size() < count) buffers.numbers.resize(count);
    float* out = buffers.numbers.data();
    const std::byte* from = number(row, begin);
    switch (values_.format) {
      case Format::bf16:
        for (std::size_t i = 0; i < count; ++i) {
          out[i] = std::bit_cast<float>(std::uint32_t{load<std::uint16_t>(from + 2 * i)} << 16);
        }
        break;
      case Format::f16:
        for (std::size_t i = 0; i < count; ++i)
          out[i] = widen_f16(load<std::uint16_t>(from + 2 * i));
        break;
      case Format::f32:
        if (count != 0) std::memcpy(out, from, 4 * count);
        break;
      default:
        for (std::size_t i = 0; i < count; ++i) {
          out[i] = decode(values_.format, std::to_integer<std::uint32_t>(from[i]));
        }
    }
    if (plan_.before) {
      for (std::size_t i = 0; i < count; ++i) out[i] = plan_.before(out[i], global_.stored);
    }
    return {out, count};
  }

  /// Adds the maxima of a row to those of its blocks.
  void add_amax(std::int64_t row, std::span<Amax> blocks, Buffers& buffers) const {
    const std::int64_t whole = vector_cols_ / block_cols_;
    const std::int64_t rest = vector_cols_ - whole * block_cols_;
    buffers.amax_bits.resize(static_cast<std::size_t>(whole + 1));
    const simd::NumberType type = number_type(values_.format);
    const simd::EncodeKernels& kernels = *simd::active_kernels()->encode;
    if (whole > 0) {
      kernels.block_amax(type, number(row, 0), static_cast<std::size_t>(whole),
                         static_cast<std::size_t>(block_cols_), buffers.amax_bits.data());
    }
    if (rest > 0) {
      kernels.block_amax(type, number(row, whole * block_cols_), 1, static_cast<std::size_t>(rest),
                         &buffers.amax_bits.back());
    }
    for (std::int64_t block = 0; block < out_.col_blocks; ++block) {
      std::int64_t begin = block_begin(block);
      const std::int64_t vector_end = std::min(block_end(block), vector_cols_);
      Amax& amax = blocks[static_cast<std::size_t>(block)];
      if (begin < vector_end) {
        const float largest =
            decode(values_.format, buffers.amax_bits[static_cast<std::size_t>(block)]);
        if (std::isfinite(largest)) {
          amax.add(largest);
          begin = vector_end;
        }
      }
      if (begin < block_end(block)) amax.add(read(row, begin, block_end(block), buffers));
    }
  }

  /// Of whole rows and what `all` has.
  Amax amax_of_rows(std::int64_t begin, std::int64_t end, Amax all) const {
    std::vector<Amax> parts(static_cast<std::size_t>(ceil_div(end - begin, kRowsAtOnce)));
    parallel_for<Buffers>(static_cast<std::int64_t>(parts.size()), threads_,
                          [&](std::int64_t part, Buffers& buffers) {
                            const std::int64_t first = begin + part * kRowsAtOnce;
                            buffers.amax.assign(static_cast<std::size_t>(out_.col_blocks), {});
                            for (std::int64_t row = first; row < std::min(first + kRowsAtOnce, end);
                                 ++row) {
                              add_amax(row, buffers.amax, buffers);
                            }
                            for (const Amax& amax : buffers.amax) {
                              parts[static_cast<std::size_t>(part)].add(amax);
                            }
                          });
    for (const Amax& part : parts) all.add(part);
    return all;
  }

  /// What a block has beyond the rows at hand: where it is the tensor, the rest of it.
  Amax block_elsewhere() const { return plan_.form.block_rows == 0 ? elsewhere_ : Amax{}; }

  GlobalScale global_scale(const Amax& amax) const {
    const float value = amax.value(plan_.nan_global);
    return {plan_.global(value), value};
  }

  BlockFactor factor_of(const ScaleOfAmax& scale, float amax) const {
    const BlockScale result = scale(amax);
    return {result, vector_ ? vector_->factor(amax, result.factor) : std::nullopt};
  }

  /// A row of blocks of ordinary numbers. False: the row is to be done.
  bool quantize_known_row(std::int64_t row, Buffers& buffers) {
    if (!buffers.known) buffers.known.emplace(coder_, vector_, scale_, values_.format);
    return buffers.known->encode(
        {.type = number_type(values_.format),
         .numbers = number(row, 0),
         .blocks = static_cast<std::size_t>(out_.col_blocks),
         .block = static_cast<std::size_t>(std::min(block_cols_, values_.cols)),
         .codes = reinterpret_cast<std::uint8_t*>(out_.codes.data() + row * row_bytes()),
         .scales = out_.scales.data() + row * out_.col_blocks * scale_bytes(),
         .scale_bytes = static_cast<std::size_t>(scale_bytes())});
  }

  void store_scale(std::int64_t row_block, std::int64_t col_block, std::uint32_t code) {
    const std::int64_t number = row_block * out_.col_blocks + col_block;
    std::memcpy(out_.scales.data() + number * scale_bytes(), &code,
                static_cast<std::size_t>(scale_bytes()));
  }

  void row_of_blocks(std::int64_t row_block, Buffers& buffers) {
    if (knows_blocks_ && quantize_known_row(row_block, buffers)) return;
    const std::int64_t first = row_block * block_rows_;
    const std::int64_t end = std::min(first + block_rows_, values_.rows);
    const auto blocks = static_cast<std::size_t>(out_.col_blocks);
    buffers.amax.assign(blocks, block_elsewhere());
    buffers.factors.resize(blocks);
    for (std::int64_t row = first; row < end; ++row) add_amax(row, buffers.amax, buffers);
    buffers.global = global_;
    ScaleOfAmax of_row;
    if (plan_.form.global == GlobalScaleOf::row) {
      Amax all;
      for (const Amax& amax : buffers.amax) all.add(amax);
      buffers.global = global_scale(all);
      out_.global[static_cast<std::size_t>(first)] = buffers.global.stored;
      if (plan_.scale) of_row = plan_.scale(buffers.global);
    }
    for (std::size_t block = 0; block < blocks && plan_.scale; ++block) {
      const float amax = buffers.amax[block].value(plan_.nan_amax);
      buffers.factors[block] = factor_of(of_row ? of_row : scale_, amax);
      if (buffers.amax[block].has_nan()) buffers.factors[block].vector.reset();
      store_scale(row_block, static_cast<std::int64_t>(block), buffers.factors[block].scale.code);
    }
    for (std::int64_t row = first; row < end; ++row) encode_row(row, buffers);
  }

  /// Blocks of more rows than one thread takes: one block a row of blocks, all columns.
  void tall_blocks(std::int64_t row_block) {
    const std::int64_t first = row_block * block_rows_;
    const std::int64_t end = std::min(first + block_rows_, values_.rows);
    const Amax amax = amax_of_rows(first, end, block_elsewhere());
    BlockFactor factor = factor_of(scale_, amax.value(plan_.nan_amax));
    if (amax.has_nan()) factor.vector.reset();
    store_scale(row_block, 0, factor.scale.code);
    parallel_for<Buffers>(end - first, threads_, [&](std::int64_t i, Buffers& buffers) {
      buffers.factors.assign(1, factor);
      encode_row(first + i, buffers);
    });
  }

  void encode_row(std::int64_t row, Buffers& buffers) {
    buffers.vector_factors.clear();
    bool any = false;
    for (const BlockFactor& factor : buffers.factors) {
      any = any || factor.vector;
      buffers.vector_factors.push_back(factor.vector.value_or(1.0f));
    }
    if (any) encode_vector_part(row, buffers.vector_factors);
    for (std::int64_t block = 0; block < out_.col_blocks; ++block) {
      std::int64_t begin = block_begin(block);
      const std::int64_t end = block_end(block);
      const BlockFactor& factor = buffers.factors[static_cast<std::size_t>(block)];
      if (factor.vector) begin = std::max(begin, std::min(vector_cols_, end));
      if (begin < end) encode_one_by_one(row, block, begin, end, buffers);
    }
  }

  /// The first vector_cols_ codes; those of blocks without a factor for the loops are not yet
  /// right.
  void encode_vector_part(std::int64_t row, std::span<const float> factors) {
    if (vector_cols_ == 0) return;
    const simd::EncodeKernels& kernels = *simd::active_kernels()->encode;
    const auto encode_row =
        plan_.form.codes == Format::e2m1 ? kernels.encode_nibbles : kernels.encode_bytes;
    const std::int64_t block = out_.col_blocks == 1 ? vector_cols_ : block_cols_;
    encode_row(number_type(values_.format), number(row, 0), static_cast<std::size_t>(vector_cols_),
               static_cast<std::size_t>(block), factors.data(), vector_->loops(),
               reinterpret_cast<std::uint8_t*>(out_.codes.data() + row * row_bytes()));
  }

  /// Codes of columns [begin, end) of a block. Of FP4 both are even: `check`.
  void encode_one_by_one(std::int64_t row, std::int64_t block, std::int64_t begin, std::int64_t end,
                         Buffers& buffers) {
    const std::span<const float> numbers = read(row, begin, end, buffers);
    buffers.codes.resize(numbers.size());
    const std::span<std::uint8_t> codes = buffers.codes;
    if (plan_.block) {
      const float amax = buffers.amax[static_cast<std::size_t>(block)].value(plan_.nan_amax);
      store_scale(row, block, plan_.block(numbers, amax, buffers.global, codes));
    } else {
      const float factor = buffers.factors[static_cast<std::size_t>(block)].scale.factor;
      for (std::size_t i = 0; i < codes.size(); ++i) {
        codes[i] = static_cast<std::uint8_t>(coder_(numbers[i], factor));
      }
    }
    std::byte* out = out_.codes.data() + row * row_bytes();
    if (plan_.form.codes != Format::e2m1) {
      std::transform(codes.begin(), codes.end(), out + begin,
                     [](std::uint8_t code) { return std::byte{code}; });
      return;
    }
    for (std::size_t i = 0; i < codes.size(); i += 2) {
      out[begin / 2 + static_cast<std::int64_t>(i / 2)] =
          static_cast<std::byte>(codes[i] | codes[i + 1] << 4);
    }
  }

  const QuantizePlan& plan_;
  const ValueMatrix& values_;
  int threads_;
  ElementCoder coder_;
  std::int64_t width_;  ///< bytes of a number
  Amax elsewhere_;      ///< of the tensor that `values_` are rows of
  std::int64_t block_rows_ = 1;
  std::int64_t block_cols_ = 1;
  std::optional<VectorRule> vector_;
  std::int64_t vector_cols_ = 0;  ///< columns that the vector loops may take: whole units
  bool knows_blocks_ = false;     ///< blocks are kept by their 16-bit amax
  GlobalScale global_;
  ScaleOfAmax scale_;
  Quantized& out_;
};

}  // namespace

void carry_out(const QuantizePlan& plan, const ValueMatrix& values, std::optional<float> given,
               std::optional<float> amax, int threads, Quantized& out) {
  Work(plan, values, amax, threads, out).run(given);
}

}  // namespace moeref
