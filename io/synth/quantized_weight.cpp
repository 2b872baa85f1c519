#include "io/synth/quantized_weight.hpp"

#include <algorithm>
#include <cstring>

#include "quant/formats.hpp"
#include "quant/row_decoder.hpp"

namespace moeref {
namespace {

constexpr std::uint64_t kNumbersAtOnce = std::uint64_t{1} << 16;
constexpr std::uint64_t kBf16Bytes = 2;

std::uint64_t code_bytes(Format format) {
  return static_cast<std::uint64_t>(info(format).bits) / 8;
}

/// The largest magnitude as a bf16 code: without the sign bit, codes of numbers are in their order.
std::uint16_t largest_code(const SynthTensor& values, std::uint64_t seed) {
  std::uint16_t largest = 0;
  std::vector<std::byte> some;
  const std::uint64_t total = values.byte_count();
  for (std::uint64_t first = 0; first < total; first += some.size()) {
    some.resize(std::min(kBf16Bytes * kNumbersAtOnce, total - first));
    make_bytes(values, seed, first, some);
    for (std::size_t at = 0; at < some.size(); at += kBf16Bytes) {
      const std::uint32_t code = load<std::uint16_t>(some.data() + at) & 0x7FFFu;
      largest = std::max(largest, static_cast<std::uint16_t>(code));
    }
  }
  return largest;
}

}  // namespace

float DrawnAmax::of(std::uint64_t seed) const {
  const std::lock_guard lock(mutex_);
  if (!known_ || known_->first != seed) {
    std::uint16_t largest = 0;
    for (const SynthTensor& member : members_) {
      largest = std::max(largest, largest_code(member, seed));
    }
    known_.emplace(seed, decode(Format::bf16, largest));
  }
  return known_->second;
}

QuantizedWeight::QuantizedWeight(std::shared_ptr<const WeightQuantizer> quantizer,
                                 const QuantizedForm& stored, SynthTensor values,
                                 std::shared_ptr<const DrawnAmax> amax)
    : quantizer_(std::move(quantizer)),
      stored_(stored),
      values_(std::move(values)),
      amax_(std::move(amax)),
      rows_(element_count(values_.shape) / values_.shape.back()),
      cols_(values_.shape.back()),
      line_rows_(std::max<std::int64_t>(1, stored.block_rows)) {}

std::uint64_t QuantizedWeight::line_bytes(WeightPart part) const {
  const auto cols = static_cast<std::uint64_t>(cols_);
  switch (part) {
    case WeightPart::codes:
      return static_cast<std::uint64_t>(line_rows_) * cols *
             static_cast<std::uint64_t>(info(stored_.codes).bits) / 8;
    case WeightPart::scales: {
      const std::int64_t blocks = stored_.block_cols == 0 ? 1 : ceil_div(cols_, stored_.block_cols);
      return static_cast<std::uint64_t>(blocks) * code_bytes(stored_.scales);
    }
    case WeightPart::global:
      return sizeof(float);
  }
  return 0;
}

std::uint64_t QuantizedWeight::draws_per_byte(WeightPart part) const {
  const bool of_all =
      part == WeightPart::global || (part == WeightPart::scales && stored_.block_rows == 0);
  const std::uint64_t bytes = line_bytes(part);
  return (static_cast<std::uint64_t>((of_all ? rows_ : line_rows_) * cols_) + bytes - 1) / bytes;
}

Quantized QuantizedWeight::quantize_lines(std::uint64_t seed, std::uint64_t first,
                                          std::uint64_t count) const {
  const std::int64_t begin = static_cast<std::int64_t>(first) * line_rows_;
  const std::int64_t end = std::min(begin + static_cast<std::int64_t>(count) * line_rows_, rows_);
  const std::uint64_t row_bytes = kBf16Bytes * static_cast<std::uint64_t>(cols_);
  std::vector<std::byte> numbers(static_cast<std::size_t>(end - begin) * row_bytes);
  moeref::make_bytes(values_, seed, static_cast<std::uint64_t>(begin) * row_bytes, numbers);
  const QuantizePlan& plan = quantizer_->plan;
  const bool of_tensor = plan.form.global == GlobalScaleOf::tensor || plan.form.block_rows == 0;
  return quantize_rows(plan, {values_.name, Format::bf16, end - begin, cols_, numbers},
                       of_tensor ? amax_->of(seed) : 0.0f, 1);
}

std::vector<std::byte> QuantizedWeight::stored_bytes(WeightPart part,
                                                     const Quantized& quantized) const {
  if (part == WeightPart::codes) return quantized.codes;
  if (part == WeightPart::global) {
    const auto bytes = std::as_bytes(std::span(quantized.global));
    return {bytes.begin(), bytes.end()};
  }
  const Format made = quantized.form.scales;
  if (made == stored_.scales) return quantized.scales;
  const std::uint64_t width = code_bytes(stored_.scales);
  std::vector<std::byte> bytes(static_cast<std::size_t>(quantized.row_blocks) *
                               static_cast<std::size_t>(quantized.col_blocks) * width);
  for (std::size_t i = 0; i < bytes.size() / width; ++i) {
    const std::uint32_t scale = read_code(quantized.scales.data(), made, NibbleOrder::low_first,
                                          static_cast<std::int64_t>(i));
    const std::uint32_t code = stored_scale(made, scale, stored_.scales).value();
    std::memcpy(bytes.data() + i * width, &code, width);
  }
  return bytes;
}

void QuantizedWeight::make_bytes(WeightPart part, std::uint64_t seed, std::uint64_t first,
                                 std::span<std::byte> out) const {
  const std::uint64_t end = first + out.size();
  const std::uint64_t bytes = line_bytes(part);
  const std::uint64_t together =
      std::max<std::uint64_t>(1, kNumbersAtOnce / static_cast<std::uint64_t>(line_rows_ * cols_));
  for (std::uint64_t line = first / bytes; line * bytes < end; line += together) {
    const std::uint64_t count = std::min(together, (end - line * bytes + bytes - 1) / bytes);
    const std::vector<std::byte> made = stored_bytes(part, quantize_lines(seed, line, count));
    const std::uint64_t begin = std::max(first, line * bytes);
    const std::uint64_t stop = std::min(end, line * bytes + made.size());
    std::memcpy(out.data() + (begin - first), made.data() + (begin - line * bytes), stop - begin);
  }
}

}  // namespace moeref
