#include "layout/recode/max_requantize.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "quant/cast.hpp"
#include "quant/error.hpp"

namespace moeref::recode {
namespace {

using CodeTable = std::array<std::byte, 256>;

/// Codes whose scale was `own`, as codes of scale `common`.
CodeTable requantized(float own, float common, Format format, TorchDevice device) {
  const std::array<float, 256>& values = decode_table(format);
  const float largest = info(format).max_finite;
  const float factor = device == TorchDevice::cuda ? cast<Format::f16>(own) : own;
  const float reciprocal = 1.0f / common;
  CodeTable table;
  for (std::size_t code = 0; code < table.size(); ++code) {
    const float product = cast<Format::f16>(values[code] * factor);
    // fmin passes over a NaN: it becomes the largest value.
    const float clamped = std::fmax(std::fmin(product * reciprocal, largest), -largest);
    table[code] = static_cast<std::byte>(encode(format, clamped, EncodePolicy::torch));
  }
  return table;
}

class MaxRequantizer final : public Recoder {
 public:
  MaxRequantizer(std::vector<CodeTable> tables, int halves, std::int64_t half_rows)
      : tables_(std::move(tables)), halves_(halves), half_rows_(half_rows) {}
  std::string name() const override { return "max_requantize_w13"; }
  int in_bits() const override { return 8; }
  int out_bits() const override { return 8; }
  void rewrite(const Place& at, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    const CodeTable& table =
        tables_[static_cast<std::size_t>(at.expert * halves_ + at.row / half_rows_)];
    std::transform(in.begin(), in.end(), out.begin(),
                   [&table](std::byte code) { return table[std::to_integer<std::size_t>(code)]; });
  }

 private:
  std::vector<CodeTable> tables_;  ///< [experts * halves]
  std::int64_t halves_;
  std::int64_t half_rows_;
};

class MisplacedRequantizer final : public Recoder {
 public:
  MisplacedRequantizer(std::shared_ptr<const Recoder> by_half, std::int64_t half_rows,
                       std::int64_t padded, std::int64_t unpadded)
      : by_half_(std::move(by_half)), half_rows_(half_rows), padded_(padded), unpadded_(unpadded) {}
  std::string name() const override { return "misplaced_" + by_half_->name(); }
  int in_bits() const override { return by_half_->in_bits(); }
  int out_bits() const override { return by_half_->out_bits(); }
  void rewrite(const Place& at, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    const std::int64_t place = at.row / half_rows_ * padded_ + at.row % half_rows_;
    const std::int64_t half = place / unpadded_;
    if (half < 2) {
      by_half_->rewrite({at.expert, half * half_rows_, at.col}, in, out);
    } else {
      std::copy(in.begin(), in.end(), out.begin());
    }
  }

 private:
  std::shared_ptr<const Recoder> by_half_;
  std::int64_t half_rows_;  ///< that the rank has
  std::int64_t padded_;
  std::int64_t unpadded_;
};

std::shared_ptr<const Recoder> make_requantizer(const LayerTensors& layer, bool fnuz,
                                                TorchDevice device) {
  const std::vector<float> common = max_scale(layer.scalars, layer.shape);
  const float unit = fnuz ? 2.0f : 1.0f;
  const Format format = fnuz ? Format::e4m3fnuz : Format::e4m3;
  const int halves = layer.shape.halves();
  std::vector<CodeTable> tables;
  for (std::size_t i = 0; i < layer.scalars.w13_scale.size(); ++i) {
    const float own = layer.scalars.w13_scale[i];
    const float shared = common[i / static_cast<std::size_t>(halves)];
    tables.push_back(requantized(unit * own, unit * shared, format, device));
  }
  return std::make_shared<MaxRequantizer>(std::move(tables), halves, layer.at(Slot::w13).half_rows);
}

}  // namespace

Recode max_requantize_w13(bool fnuz, TorchDevice device) {
  return {.name = "max_requantize_w13",
          .summary = "E4M3 codes of gate and up to the larger of their two scales, through FP16",
          .out_bits = 8,
          .dtype = fnuz ? DType::f8_e4m3fnuz : DType::f8_e4m3,
          .make = [fnuz, device](const LayerTensors& layer) {
            return make_requantizer(layer, fnuz, device);
          }};
}

Recode misplaced(Recode requantize, std::int64_t padded, std::int64_t unpadded) {
  requantize.name = "misplaced_" + requantize.name;
  requantize.summary += "; upstream: rows of padded halves counted without their padding";
  requantize.make = [by_half = requantize.make, padded, unpadded](const LayerTensors& layer) {
    const std::int64_t half_rows = std::max<std::int64_t>(layer.at(Slot::w13).half_rows, 1);
    return std::make_shared<const MisplacedRequantizer>(by_half(layer), half_rows, padded,
                                                        unpadded);
  };
  return requantize;
}

std::vector<float> max_scale(const ExpertScalars& scalars, const LayerShape& shape) {
  const auto halves = static_cast<std::size_t>(shape.halves());
  if (scalars.w13_scale.size() != static_cast<std::size_t>(shape.experts) * halves) {
    fail(shape.model, "has {} per-tensor scales of w13, {} experts need {}; store one per {}",
         scalars.w13_scale.size(), shape.experts, static_cast<std::size_t>(shape.experts) * halves,
         shape.gated ? "gate and up projection" : "up projection");
  }
  std::vector<float> largest;
  for (auto own = scalars.w13_scale.begin(); own != scalars.w13_scale.end();
       own += static_cast<std::ptrdiff_t>(halves)) {
    largest.push_back(*std::max_element(own, own + static_cast<std::ptrdiff_t>(halves)));
  }
  return largest;
}

}  // namespace moeref::recode
