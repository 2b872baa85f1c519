#include "quant/quantize.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "quant/error.hpp"
#include "quant/nearest_names.hpp"
#include "quant/parallel.hpp"
#include "quant/row_decoder.hpp"
#include "quant/tensor.hpp"
#include "simd/float_environment.hpp"

namespace moeref {
namespace {

constexpr std::array kQuantizers{
#define MOEREF_QUANTIZER(name) &quantizers::name,
#include "quant/quantizers.inc"
#undef MOEREF_QUANTIZER
};

std::int64_t whole_if_zero(std::int64_t block, std::int64_t size) {
  return block == 0 ? std::max<std::int64_t>(size, 1) : block;
}

void store(std::span<std::byte> scales, Format format, std::int64_t number, std::uint32_t code) {
  const auto width = static_cast<std::size_t>(info(format).bits / 8);
  std::memcpy(scales.data() + static_cast<std::size_t>(number) * width, &code, width);
}

/// The largest magnitude so far and what it does with NaN.
class Amax {
 public:
  void add(std::span<const float> values) {
    for (const float value : values) {
      const float magnitude = std::fabs(value);
      if (magnitude != magnitude) {
        has_nan_ = true;
      } else {
        has_number_ = true;
        largest_ = std::max(largest_, magnitude);
      }
    }
  }
  void add(const Amax& other) {
    largest_ = std::max(largest_, other.largest_);
    has_nan_ = has_nan_ || other.has_nan_;
    has_number_ = has_number_ || other.has_number_;
  }
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

/// One quantization under way.
class Work {
 public:
  Work(const QuantizePlan& plan, const ValueMatrix& values, int threads)
      : plan_(plan), values_(values), threads_(threads), coder_(plan.element) {
    out_.form = plan.form;
    out_.rows = values.rows;
    out_.cols = values.cols;
    block_rows_ = whole_if_zero(plan.form.block_rows, values.rows);
    block_cols_ = whole_if_zero(plan.form.block_cols, values.cols);
    out_.row_blocks = ceil_div(values.rows, block_rows_);
    out_.col_blocks = ceil_div(values.cols, block_cols_);
    check();
    out_.codes.resize(static_cast<std::size_t>(values.rows * row_bytes()));
    out_.scales.resize(static_cast<std::size_t>(out_.row_blocks * out_.col_blocks *
                                                (info(plan.form.scales).bits / 8)));
  }

  Quantized run(std::optional<float> given) {
    switch (plan_.form.global) {
      case GlobalScaleOf::none:
        break;
      case GlobalScaleOf::given:
        global_ = {given.value(), 0.0f};
        out_.global = {global_.stored};
        break;
      case GlobalScaleOf::tensor:
        global_ = global_scale(amax_of(0, values_.rows));
        out_.global = {global_.stored};
        break;
      case GlobalScaleOf::row:
        out_.global.resize(static_cast<std::size_t>(values_.rows));
        break;
    }
    if (plan_.form.global != GlobalScaleOf::row && plan_.scale) scale_ = plan_.scale(global_);
    if (block_rows_ > kRowsAtOnce) {
      for (std::int64_t block = 0; block < out_.row_blocks; ++block) tall_block_row(block);
    } else {
      const std::int64_t together = std::max<std::int64_t>(1, kRowsAtOnce / block_rows_);
      parallel_for<Buffers>(
          ceil_div(out_.row_blocks, together), threads_, [&](std::int64_t part, Buffers& buffers) {
            const std::int64_t end = std::min((part + 1) * together, out_.row_blocks);
            for (std::int64_t block = part * together; block < end; ++block) {
              block_row(block, buffers);
            }
          });
    }
    return std::move(out_);
  }

 private:
  static constexpr std::int64_t kRowsAtOnce = 128;

  struct Buffers {
    std::vector<float> rows;  ///< [block_rows, cols]
    std::vector<Amax> amax;   ///< [col_blocks]
    std::vector<BlockScale> scales;
    std::vector<std::uint8_t> codes;  ///< of a row, one a number
    GlobalScale global;
  };

  std::int64_t row_bytes() const {
    return plan_.form.codes == Format::e2m1 ? values_.cols / 2 : values_.cols;
  }

  void check() const {
    const std::size_t width = static_cast<std::size_t>(info(values_.format).bits) / 8;
    const auto count =
        static_cast<std::size_t>(values_.rows) * static_cast<std::size_t>(values_.cols);
    if (values_.rows < 0 || values_.cols < 0 || values_.bytes.size() != count * width) {
      fail(values_.name, "has {} bytes; [{}, {}] numbers of {} have {}", values_.bytes.size(),
           values_.rows, values_.cols, name(values_.format), count * width);
    }
    if (plan_.whole_blocks && values_.cols % block_cols_ != 0) {
      fail(values_.name, "has {} columns; blocks of {} must be whole: pad the columns",
           values_.cols, block_cols_);
    }
    if (plan_.form.codes == Format::e2m1 && values_.cols % 2 != 0) {
      fail(values_.name, "has {} columns; FP4 codes are packed in pairs: pad the columns",
           values_.cols);
    }
  }

  void read_row(std::int64_t row, float* out) const {
    const auto first = static_cast<std::size_t>(row * values_.cols);
    const auto count = static_cast<std::size_t>(values_.cols);
    const std::byte* bytes = values_.bytes.data();
    switch (values_.format) {
      case Format::bf16:
        for (std::size_t i = 0; i < count; ++i) {
          out[i] = std::bit_cast<float>(
              static_cast<std::uint32_t>(load<std::uint16_t>(bytes + 2 * (first + i))) << 16);
        }
        break;
      case Format::f16:
        for (std::size_t i = 0; i < count; ++i) {
          out[i] = widen_f16(load<std::uint16_t>(bytes + 2 * (first + i)));
        }
        break;
      case Format::f32:
        if (count != 0) std::memcpy(out, bytes + 4 * first, 4 * count);
        break;
      default:
        for (std::size_t i = 0; i < count; ++i) {
          out[i] = decode(values_.format, std::to_integer<std::uint32_t>(bytes[first + i]));
        }
    }
    if (!plan_.before) return;
    for (std::size_t i = 0; i < count; ++i) out[i] = plan_.before(out[i], global_.stored);
  }

  Amax amax_of(std::int64_t begin, std::int64_t end) const {
    std::vector<Amax> parts(static_cast<std::size_t>(ceil_div(end - begin, kRowsAtOnce)));
    parallel_for<std::vector<float>>(static_cast<std::int64_t>(parts.size()), threads_,
                                     [&](std::int64_t part, std::vector<float>& buffer) {
                                       buffer.resize(static_cast<std::size_t>(values_.cols));
                                       const std::int64_t first = begin + part * kRowsAtOnce;
                                       for (std::int64_t row = first;
                                            row < std::min(first + kRowsAtOnce, end); ++row) {
                                         read_row(row, buffer.data());
                                         parts[static_cast<std::size_t>(part)].add(buffer);
                                       }
                                     });
    Amax all;
    for (const Amax& part : parts) all.add(part);
    return all;
  }

  std::int64_t block_end(std::int64_t block) const {
    return std::min((block + 1) * block_cols_, values_.cols);
  }

  GlobalScale global_scale(const Amax& amax) const {
    const float value = amax.value(plan_.nan_global);
    return {plan_.global(value), value};
  }

  void store_scale(std::int64_t row_block, std::int64_t col_block, std::uint32_t code) {
    store(out_.scales, plan_.form.scales, row_block * out_.col_blocks + col_block, code);
  }

  void block_row(std::int64_t row_block, Buffers& buffers) {
    const std::int64_t first = row_block * block_rows_;
    const std::int64_t end = std::min(first + block_rows_, values_.rows);
    const auto cols = static_cast<std::size_t>(values_.cols);
    const auto blocks = static_cast<std::size_t>(out_.col_blocks);
    buffers.rows.resize(static_cast<std::size_t>(end - first) * cols);
    buffers.scales.resize(blocks);
    buffers.codes.resize(cols);
    buffers.amax.assign(blocks, {});
    for (std::int64_t row = first; row < end; ++row) {
      float* values = buffers.rows.data() + static_cast<std::size_t>(row - first) * cols;
      read_row(row, values);
      for (std::size_t block = 0; block < blocks; ++block) {
        const auto number = static_cast<std::int64_t>(block);
        buffers.amax[block].add({values + number * block_cols_, values + block_end(number)});
      }
    }
    buffers.global = global_;
    ScaleOfAmax of_row;
    if (plan_.form.global == GlobalScaleOf::row) {
      Amax all;
      for (const Amax& amax : buffers.amax) all.add(amax);
      buffers.global = global_scale(all);
      out_.global[static_cast<std::size_t>(first)] = buffers.global.stored;
      if (plan_.scale) of_row = plan_.scale(buffers.global);
    }
    const ScaleOfAmax& scale = of_row ? of_row : scale_;
    if (scale) {
      for (std::size_t block = 0; block < blocks; ++block) {
        buffers.scales[block] = scale(buffers.amax[block].value(plan_.nan_amax));
        store_scale(row_block, static_cast<std::int64_t>(block), buffers.scales[block].code);
      }
    }
    for (std::int64_t row = first; row < end; ++row) {
      encode_row(row, buffers.rows.data() + static_cast<std::size_t>(row - first) * cols, buffers);
    }
  }

  /// Blocks of more rows than are kept at once: one block of columns is the only case.
  void tall_block_row(std::int64_t row_block) {
    const std::int64_t first = row_block * block_rows_;
    const std::int64_t end = std::min(first + block_rows_, values_.rows);
    const BlockScale scale = scale_(amax_of(first, end).value(plan_.nan_amax));
    store_scale(row_block, 0, scale.code);
    parallel_for<Buffers>(end - first, threads_, [&](std::int64_t i, Buffers& buffers) {
      buffers.rows.resize(static_cast<std::size_t>(values_.cols));
      buffers.codes.resize(buffers.rows.size());
      buffers.scales.assign(1, scale);
      read_row(first + i, buffers.rows.data());
      encode_row(first + i, buffers.rows.data(), buffers);
    });
  }

  void encode_row(std::int64_t row, const float* values, Buffers& buffers) {
    for (std::int64_t block = 0; block < out_.col_blocks; ++block) {
      const std::int64_t begin = block * block_cols_;
      const auto count = static_cast<std::size_t>(block_end(block) - begin);
      const std::span<const float> numbers(values + begin, count);
      const std::span<std::uint8_t> codes(buffers.codes.data() + begin, count);
      if (plan_.block) {
        const float amax = buffers.amax[static_cast<std::size_t>(block)].value(plan_.nan_amax);
        store_scale(row, block, plan_.block(numbers, amax, buffers.global, codes));
        continue;
      }
      const float factor = buffers.scales[static_cast<std::size_t>(block)].factor;
      for (std::size_t i = 0; i < count; ++i) {
        codes[i] = static_cast<std::uint8_t>(coder_(numbers[i], factor));
      }
    }
    std::byte* out = out_.codes.data() + row * row_bytes();
    if (plan_.form.codes != Format::e2m1) {
      std::copy_n(reinterpret_cast<const std::byte*>(buffers.codes.data()), values_.cols, out);
      return;
    }
    for (std::int64_t i = 0; i < row_bytes(); ++i) {
      const auto pair = static_cast<std::size_t>(2 * i);
      out[i] = static_cast<std::byte>(buffers.codes[pair] | buffers.codes[pair + 1] << 4);
    }
  }

  const QuantizePlan& plan_;
  const ValueMatrix& values_;
  int threads_;
  ElementCoder coder_;
  std::int64_t block_rows_ = 1;
  std::int64_t block_cols_ = 1;
  GlobalScale global_;
  ScaleOfAmax scale_;
  Quantized out_;
};

}  // namespace

std::span<const Quantizer* const> all_quantizers() { return kQuantizers; }

const Quantizer& find_quantizer(std::string_view name) {
  for (const Quantizer* quantizer : kQuantizers) {
    if (quantizer->name == name) return *quantizer;
  }
  std::vector<std::string> names;
  for (const Quantizer* quantizer : kQuantizers) names.emplace_back(quantizer->name);
  fail(name, "is no quantizer; is it {}? `moeref quantize --list` shows all",
       fmt::join(nearest_names(name, names), " or "));
}

Quantized quantize(const QuantizePlan& plan, const ValueMatrix& values, std::optional<float> given,
                   int threads) {
  const bool takes_scale = plan.form.global == GlobalScaleOf::given;
  if (takes_scale && !given) fail(values.name, "needs a scale: the quantizer's is calibrated");
  if (!takes_scale && given) fail(values.name, "takes no scale: the quantizer makes its own");
  const simd::DefaultFloatEnvironment environment;
  return Work(plan, values, threads).run(given);
}

Quantized quantize(std::string_view quantizer, std::span<const std::string> options,
                   const ValueMatrix& values, std::optional<float> given, int threads) {
  const Quantizer& found = find_quantizer(quantizer);
  if (std::find(found.inputs.begin(), found.inputs.end(), values.format) == found.inputs.end()) {
    std::vector<std::string_view> names;
    for (const Format format : found.inputs) names.push_back(name(format));
    fail(values.name, "is {}; the quantizer {} takes {}", name(values.format), found.name,
         fmt::join(names, ", "));
  }
  const Options chosen = parse_options(found.name, found.options, options);
  return quantize(found.plan(chosen, values.format), values, given, threads);
}

ScaledMatrix Quantized::matrix(const std::string& name) const {
  ScaledMatrix matrix;
  matrix.name = name;
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.codes = {.data = codes.data(), .format = form.codes, .row_stride = cols};
  matrix.scales = ScaleGrid{.data = scales.data(),
                            .format = form.scales,
                            .block_rows = whole_if_zero(form.block_rows, rows),
                            .block_cols = whole_if_zero(form.block_cols, cols),
                            .row_stride = col_blocks,
                            .col_stride = 1};
  if (form.global_rule != GlobalScaleRule::none) {
    matrix.global_rule = form.global_rule;
    matrix.global_scale = global.front();
  }
  return matrix;
}

ScaledMatrix Quantized::row_matrix(const std::string& name, std::int64_t row) const {
  ScaledMatrix whole = matrix(name);
  if (form.global == GlobalScaleOf::row) whole.global_scale = global[static_cast<std::size_t>(row)];
  return row_slice(whole, row, 1);
}

std::vector<float> Quantized::scale_values() const {
  std::vector<float> values;
  for (std::int64_t i = 0; i < row_blocks * col_blocks; ++i) {
    values.push_back(
        decode(form.scales, read_code(scales.data(), form.scales, NibbleOrder::low_first, i)));
  }
  return values;
}

}  // namespace moeref
