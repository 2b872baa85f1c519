#include "layout/sample_layer.hpp"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "layout/weight_form.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref {
namespace {

/// Random bits that are a function of seed, stream and index: the finaliser of splitmix64 over a
/// counter. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA
/// 2014.
class CounterRandom {
 public:
  CounterRandom(std::uint64_t seed, std::uint64_t stream) : key_(mix(seed + mix(stream))) {}
  std::uint64_t operator()(std::int64_t index) const {
    return mix(key_ + static_cast<std::uint64_t>(index));
  }

 private:
  static constexpr std::uint64_t kGolden = 0x9E37'79B9'7F4A'7C15u;
  static std::uint64_t mix(std::uint64_t value) {
    value = (value + 1) * kGolden;
    value = (value ^ value >> 30) * 0xBF58'476D'1CE4'E5B9u;
    value = (value ^ value >> 27) * 0x94D0'49BB'1331'11EBu;
    return value ^ value >> 31;
  }

  std::uint64_t key_;
};

/// A positive number in [2^lowest, 2^(lowest + binades)) with a whole random significand.
float positive(std::uint64_t bits, int lowest, int binades) {
  const float significand = 1.0f + static_cast<float>(bits & 0x7F'FFFFu) * 0x1p-23f;
  const auto above = static_cast<int>((bits >> 32) % static_cast<std::uint64_t>(binades));
  return std::ldexp(significand, lowest + above);
}

constexpr EncodePolicy kRounding = EncodePolicy::eigen;

/// A code of a weight: of 4 and 8 bits any finite one; of floats either zero or a number with a
/// magnitude in [2^-6, 2).
std::uint32_t weight_code(Format format, std::uint64_t bits) {
  const int width = info(format).bits;
  if (width <= 8) {
    const auto code = static_cast<std::uint32_t>(bits) & ((1u << width) - 1);
    return std::isfinite(decode(format, code)) ? code : code ^ 1u;
  }
  const bool is_zero = (bits >> 48 & 15u) == 0;
  const float magnitude = is_zero ? 0.0f : positive(bits, -6, 7);
  const float value = (bits >> 63) != 0 ? -magnitude : magnitude;
  return format == Format::f32 ? std::bit_cast<std::uint32_t>(value)
                               : encode(format, value, kRounding);
}

/// A scale: E8M0 2^-9 .. 2^-2, UE4M3 2^-2 up to 4, f32 and bf16 2^-9 up to 2^-5.
std::uint32_t scale_code(Format format, std::uint64_t bits) {
  if (format == Format::e8m0) return 118u + static_cast<std::uint32_t>(bits & 7u);
  if (format == Format::ue4m3) return 0x28u + static_cast<std::uint32_t>(bits & 31u);
  const auto number = std::bit_cast<std::uint32_t>(positive(bits, -9, 4));
  return format == Format::bf16 ? number >> 16 : number;
}

/// A scale of several rows and columns, but not of all.
bool has_tiles(const WeightForm& form) { return has_block_scales(form) && form.block_rows > 1; }

using Draw = std::uint32_t (*)(Format format, std::uint64_t bits);

/// What the tensors of a layer are made with.
class LayerMaker {
 public:
  LayerMaker(const SampleShape& shape, const WeightForm& form) : shape_(shape), form_(form) {
    if (has_tiles(form_)) form_.scales = shape.tile_scales;
  }

  MoeLayer make() {
    layer_.model_type = "sample";
    layer_.hidden = shape_.hidden;
    layer_.intermediate = shape_.intermediate;
    layer_.weight_format = form_.name;
    layer_.gate_order = !shape_.gated        ? GateOrder::none
                        : shape_.interleaved ? GateOrder::interleaved
                                             : GateOrder::separate;
    layer_.activation = activation();
    layer_.experts.resize(static_cast<std::size_t>(shape_.experts));
    if (shape_.interleaved) {
      add_alternating_rows();
    } else {
      if (shape_.gated) add(&Expert::gate, &Expert::gate_bias, "gate", false);
      add(&Expert::up, &Expert::up_bias, "up", false);
    }
    add(&Expert::down, &Expert::down_bias, "down", true);
    if (form_.has_input_scales) add_input_scales();
    return std::move(layer_);
  }

 private:
  using Part = ScaledMatrix Expert::*;

  Activation activation() const {
    Activation activation;
    activation.limit = shape_.limit;
    if (!shape_.gated) {
      activation.form = ActivationForm::relu2;
    } else if (shape_.bias) {
      activation.alpha = 1.702f;
      activation.beta = 1.0f;
      activation.limit = 7.0f;
    }
    return activation;
  }

  /// A number that no other tensor of the layer has.
  CounterRandom next_stream() { return {shape_.seed, ++streams_}; }

  /// `count` codes in a buffer of their own.
  const std::byte* buffer(Format format, std::int64_t count, Draw draw) {
    const CounterRandom random = next_stream();
    const int width = info(format).bits;
    auto bytes = std::make_shared<std::vector<std::byte>>(
        static_cast<std::size_t>(ceil_div(count * width, 8)));
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint32_t code = draw(format, random(i));
      if (width == 4) {
        (*bytes)[static_cast<std::size_t>(i / 2)] |= static_cast<std::byte>(code << i % 2 * 4);
      } else {
        for (int byte = 0; byte < width / 8; ++byte) {
          (*bytes)[static_cast<std::size_t>(i * width / 8 + byte)] =
              static_cast<std::byte>(code >> 8 * byte & 0xFFu);
        }
      }
    }
    layer_.storage.push_back(bytes);
    return bytes->data();
  }

  /// A matrix with codes and scales of its own.
  ScaledMatrix matrix(std::string name, std::int64_t rows, std::int64_t cols) {
    const bool grouped = form_.block_rows == 1 && form_.block_cols != kWholeAxis;
    if (grouped && cols % form_.block_cols != 0) {
      fail(form_.name, "needs K that is a multiple of {}, {} has {}; choose another size",
           form_.block_cols, name, cols);
    }
    ScaledMatrix made;
    made.name = std::move(name);
    made.rows = rows;
    made.cols = cols;
    made.codes = {.data = buffer(form_.codes, rows * cols, weight_code),
                  .format = form_.codes,
                  .row_stride = cols};
    if (form_.has_scales) made.scales = scales(rows, cols);
    made.global_rule = form_.globals;
    if (form_.has_globals) made.global_scale = factor(-12);
    return made;
  }

  ScaleGrid scales(std::int64_t rows, std::int64_t cols) {
    const bool all_rows = form_.block_rows == kWholeAxis;
    const bool all_cols = form_.block_cols == kWholeAxis;
    ScaleGrid grid{.format = form_.scales};
    grid.block_rows = all_rows ? rows : form_.block_rows;
    grid.block_cols = all_cols ? cols : form_.block_cols;
    const std::int64_t block_rows = ceil_div(rows, grid.block_rows);
    const std::int64_t block_cols = ceil_div(cols, grid.block_cols);
    grid.data = buffer(form_.scales, block_rows * block_cols, scale_code);
    grid.row_stride = all_rows ? 0 : block_cols;
    grid.col_stride = all_cols ? 0 : 1;
    return grid;
  }

  /// A factor of a whole tensor, as the checkpoint stores it.
  float factor(int lowest) {
    const float value = positive(next_stream()(0), lowest, 2);
    return form_.globals == GlobalScaleRule::divide ? 1.0f / value : value;
  }

  ScaledMatrix bias(std::string name, std::int64_t size) {
    ScaledMatrix made;
    made.name = std::move(name);
    made.rows = 1;
    made.cols = size;
    made.codes = {.data = buffer(Format::bf16, size, weight_code), .row_stride = size};
    return made;
  }

  /// One matrix an expert, and its bias.
  void add(Part part, Part bias_part, std::string_view projection, bool is_down) {
    const std::int64_t rows = is_down ? shape_.hidden : shape_.intermediate;
    const std::int64_t cols = is_down ? shape_.intermediate : shape_.hidden;
    for (std::int64_t e = 0; e < shape_.experts; ++e) {
      Expert& expert = layer_.experts[static_cast<std::size_t>(e)];
      expert.*part = matrix(fmt::format("experts.{}.{}", e, projection), rows, cols);
      if (shape_.bias) {
        expert.*bias_part = bias(fmt::format("experts.{}.{}.bias", e, projection), rows);
      }
    }
  }

  /// Row 2j of an expert is gate row j, row 2j + 1 is up row j.
  void add_alternating_rows() {
    const std::int64_t rows = 2 * shape_.intermediate;
    for (std::int64_t e = 0; e < shape_.experts; ++e) {
      Expert& expert = layer_.experts[static_cast<std::size_t>(e)];
      const ScaledMatrix both = matrix(fmt::format("experts.{}.gate_up", e), rows, shape_.hidden);
      expert.gate = every_other_row(both, 0);
      expert.up = every_other_row(both, 1);
      if (!shape_.bias) continue;
      const ScaledMatrix biases = bias(fmt::format("experts.{}.gate_up.bias", e), rows);
      expert.gate_bias = every_other_column(biases, 0);
      expert.up_bias = every_other_column(biases, 1);
    }
  }

  static ScaledMatrix every_other_row(ScaledMatrix both, std::int64_t first) {
    both.rows /= 2;
    both.codes.origin += first * both.codes.row_stride;
    both.codes.row_stride *= 2;
    if (both.scales) {
      const int width = info(both.scales->format).bits / 8;
      both.scales->data += first * both.scales->row_stride * width;
      both.scales->row_stride *= 2;
    }
    return both;
  }

  static ScaledMatrix every_other_column(ScaledMatrix both, std::int64_t first) {
    both.cols /= 2;
    both.codes.origin += first;
    both.codes.col_stride = 2;
    return both;
  }

  void add_input_scales() {
    for (Expert& expert : layer_.experts) {
      if (shape_.gated) expert.gate_input_scale = factor(-8);
      expert.up_input_scale = factor(-8);
      expert.down_input_scale = factor(-8);
    }
  }

  const SampleShape& shape_;
  WeightForm form_;
  MoeLayer layer_;
  std::uint64_t streams_ = 0;
};

}  // namespace

MoeLayer sample_layer(const SampleShape& shape) {
  const WeightForm& form = find_weight_form("sample layer", shape.weight_format);
  if (shape.experts < 1 || shape.hidden < 1 || shape.intermediate < 1) {
    fail("sample layer", "has {} experts, hidden {}, intermediate {}; all must be at least 1",
         shape.experts, shape.hidden, shape.intermediate);
  }
  if (shape.tile_scales != Format::f32 && shape.tile_scales != Format::bf16 &&
      shape.tile_scales != Format::e8m0) {
    fail("sample layer", "has {} scales of tiles; checkpoints have f32, bf16 or e8m0",
         name(shape.tile_scales));
  }
  const bool one_scale_for_rows = form.has_scales && form.block_rows != 1;
  if (shape.interleaved && (!shape.gated || one_scale_for_rows)) {
    fail("sample layer", "cannot alternate gate and up rows: {}",
         !shape.gated ? "it is not gated" : "a scale of " + shape.weight_format + " covers rows");
  }
  return LayerMaker(shape, form).make();
}

}  // namespace moeref
