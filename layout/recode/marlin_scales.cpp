#include "layout/recode/marlin_scales.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <bitset>
#include <cmath>
#include <cstring>
#include <optional>

#include "layout/recode/codes.hpp"
#include "layout/recode/max_requantize.hpp"
#include "quant/cast.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"
#include "simd/float_environment.hpp"

namespace moeref::recode {
namespace {

using Bytes = std::span<const std::byte>;
using CodeTable = std::array<std::byte, 256>;
using CodeSet = std::bitset<256>;

constexpr EncodePolicy kRounding = EncodePolicy::eigen;

std::size_t index(std::byte code) { return std::to_integer<std::size_t>(code); }

/// The format of stored numbers; nothing for bytes. Error: neither.
std::optional<Format> stored_numbers(const TensorStack& stack, std::string_view recoder,
                                     bool bytes) {
  if (bytes && is_e8m0_bytes(stack.dtype)) return std::nullopt;
  if (const std::optional<Format> format = float_format(stack.dtype)) return format;
  fail(stack.name, "is {}; {} takes {}F32, BF16 or F16 numbers", info(stack.dtype).name, recoder,
       bytes ? "E8M0 bytes, or " : "");
}

/// Calls `use` with the bytes of every row.
template <typename Use>
void for_each_row(const TensorStack& stack, Use use) {
  std::vector<std::byte> row(static_cast<std::size_t>(stack.cols * stack.element_bits / 8));
  for (std::int64_t expert = 0; expert < stack.experts; ++expert) {
    for (std::int64_t r = 0; r < stack.rows(); ++r) {
      if (const std::byte* lies = stack.contiguous(expert, r, 0)) {
        use(Bytes{lies, row.size()});
      } else {
        stack.read(expert, r, 0, stack.cols, row.data());
        use(Bytes{row});
      }
    }
  }
}

CodeSet codes_of(const TensorStack& stack) {
  CodeSet present;
  for_each_row(stack, [&present](Bytes row) {
    for (const std::byte code : row) present.set(index(code));
  });
  return present;
}

void check_codes(const TensorStack& stack, std::string_view recoder) {
  if (stack.dtype == DType::f8_e4m3 || stack.dtype == DType::u8 || stack.dtype == DType::i8) return;
  fail(stack.name, "is {}; {} takes E4M3 bytes", info(stack.dtype).name, recoder);
}

/// A rewriting of bytes by a table, that can be undone if no two codes that occur become one.
class ByteTable final : public Recoder {
 public:
  ByteTable(std::string name, const CodeTable& table, const CodeSet& present)
      : name_(std::move(name)), table_(table) {
    CodeSet reached;
    for (std::size_t code = 0; code < table_.size(); ++code) {
      if (!present.test(code)) continue;
      const std::size_t to = index(table_[code]);
      injective_ = injective_ && !reached.test(to);
      reached.set(to);
      inverse_[to] = static_cast<std::byte>(code);
    }
  }

  std::string name() const override { return name_; }
  int in_bits() const override { return 8; }
  int out_bits() const override { return 8; }
  void rewrite(const Place&, Bytes in, std::span<std::byte> out) const override {
    look_up(table_, in, out);
  }
  bool invertible() const override { return injective_; }
  void restore(const Place&, Bytes in, std::span<std::byte> out) const override {
    look_up(inverse_, in, out);
  }

 private:
  static void look_up(const CodeTable& table, Bytes in, std::span<std::byte> out) {
    std::transform(in.begin(), in.end(), out.begin(),
                   [&table](std::byte code) { return table[index(code)]; });
  }

  std::string name_;
  CodeTable table_;
  CodeTable inverse_{};
  bool injective_ = true;
};

/// Numbers of one type to codes of another, one value at a time.
class NumberMap final : public Recoder {
 public:
  using Function = std::function<std::uint32_t(float)>;
  NumberMap(std::string name, Format from, int to_bits, Function function)
      : name_(std::move(name)), from_(from), to_bits_(to_bits), function_(std::move(function)) {}

  std::string name() const override { return name_; }
  int in_bits() const override { return info(from_).bits; }
  int out_bits() const override { return to_bits_; }
  void rewrite(const Place&, Bytes in, std::span<std::byte> out) const override {
    const std::size_t count = out.size() / static_cast<std::size_t>(to_bits_ / 8);
    for (std::size_t i = 0; i < count; ++i) {
      store_code(out, i, to_bits_, function_(decode(from_, load_code(in, i, in_bits()))));
    }
  }

 private:
  std::string name_;
  Format from_;
  int to_bits_;
  Function function_;
};

class MaxOfExpert final : public Recoder {
 public:
  explicit MaxOfExpert(std::vector<float> largest) : largest_(std::move(largest)) {}
  std::string name() const override { return "max_scales_w13"; }
  int in_bits() const override { return 32; }
  int out_bits() const override { return 32; }
  void rewrite(const Place& at, Bytes in, std::span<std::byte> out) const override {
    const float value = largest_[static_cast<std::size_t>(at.expert)];
    for (std::size_t i = 0; i < in.size() / sizeof value; ++i) {
      store_code(out, i, 32, std::bit_cast<std::uint32_t>(value));
    }
  }

 private:
  std::vector<float> largest_;
};

CodeTable s0e5m3_table(float factor, MarlinScales mode) {
  CodeTable table;
  for (std::size_t code = 0; code < table.size(); ++code) {
    table[code] = s0e5m3_code(static_cast<std::byte>(code), factor, mode);
  }
  return table;
}

/// 2^floor(log2(value)) of a positive normal number, exact.
float floor_power_of_two(float value) { return std::ldexp(1.0f, std::ilogb(value)); }
float ceil_power_of_two(float value) {
  const float below = floor_power_of_two(value);
  return below < value ? 2.0f * below : below;
}

/// The smallest and the largest value above 0 that occur, or nothing.
struct Extremes {
  float smallest;
  float largest;
};
std::optional<Extremes> positive_extremes(const CodeSet& present) {
  std::optional<Extremes> found;
  for (std::size_t code = 0; code < present.size(); ++code) {
    const float value = decode(Format::e4m3, static_cast<std::uint32_t>(code));
    if (!present.test(code) || !(value > 0.0f)) continue;
    if (!found) found = Extremes{value, value};
    found = Extremes{std::min(found->smallest, value), std::max(found->largest, value)};
  }
  return found;
}

float scale_factor(const CodeSet& present, MarlinScales mode, DType params) {
  if (params == DType::f16 || mode == MarlinScales::v1) return 1.0f;
  const std::optional<Extremes> values = positive_extremes(present);
  if (!values) return 1.0f;
  constexpr float kShift = 128.0f;
  if (mode == MarlinScales::vllm) {
    const float smallest = values->smallest * kShift;
    return smallest < 2.0f ? ceil_power_of_two(2.0f / smallest) : 1.0f;
  }
  constexpr float kTop = 448.0f * kShift;
  const float largest = values->largest * kShift;
  return largest < kTop ? floor_power_of_two(kTop / largest) : 1.0f;
}

/// An E8M0 byte of a number that went through `params`; it may be 0xFF.
std::uint8_t e8m0_of(float value, Format params) {
  const float through = decode(params, encode(params, value, kRounding));
  return encode_e8m0(through, E8M0Rounding::nearest_even, EncodePolicy::torch);
}

/// Error: an exponent that the addition would take out of the byte.
void check_sum(const TensorStack& stack, std::uint8_t byte, int added) {
  if (byte <= 255 - added) return;
  fail(stack.name,
       "has the E8M0 exponent {}; with FP8 activations {} is added to it, so at most {} fits; use "
       "16-bit activations",
       byte, added, 255 - added);
}

std::shared_ptr<const Recoder> make_e8m0(const TensorStack& stack, DType params, int added,
                                         const std::string& name) {
  const Format through = *float_format(params);
  const std::optional<Format> from = stored_numbers(stack, name, true);
  if (from) {
    if (added != 0) {
      for_each_row(stack, [&](Bytes row) {
        for (std::int64_t i = 0; i < stack.cols; ++i) {
          const auto code = load_code(row, static_cast<std::size_t>(i), stack.element_bits);
          check_sum(stack, e8m0_of(decode(*from, code), through), added);
        }
      });
    }
    return std::make_shared<const NumberMap>(
        name, *from, 8, [through, added](float value) -> std::uint32_t {
          return (e8m0_of(value, through) + static_cast<std::uint32_t>(added)) & 0xFFu;
        });
  }
  const CodeSet present = codes_of(stack);
  CodeTable table;
  for (std::size_t code = 0; code < table.size(); ++code) {
    const float value = decode(Format::e8m0, static_cast<std::uint32_t>(code));
    const std::uint8_t byte = e8m0_of(value, through);
    if (added != 0 && present.test(code)) check_sum(stack, byte, added);
    table[code] = static_cast<std::byte>(byte + added);
  }
  return std::make_shared<const ByteTable>(name, table, present);
}

}  // namespace

float marlin_scale_factor(const TensorStack& scales, MarlinScales mode, DType params) {
  const simd::DefaultFloatEnvironment environment;
  check_codes(scales, "marlin_s0e5m3");
  return scale_factor(codes_of(scales), mode, params);
}

std::byte s0e5m3_code(std::byte e4m3, float factor, MarlinScales mode) {
  const float scale = decode(Format::e4m3, std::to_integer<std::uint32_t>(e4m3));
  const float lifted = factor > 1.0f ? cast<Format::f16>(scale * factor) : scale;
  const float shifted = lifted * 128.0f;
  const bool flushed = mode == MarlinScales::sglang && cast<Format::f16>(shifted) < 2.0f;
  const std::uint32_t bits = encode(Format::f16, flushed ? 0.0f : shifted, kRounding);
  return static_cast<std::byte>(bits >> 7 & 0xFFu);
}

Recode marlin_s0e5m3(Slot slot, MarlinScales mode, DType params) {
  constexpr std::array<std::string_view, 3> kModes{"vllm", "sglang", "v1"};
  const std::string name = fmt::format("marlin_s0e5m3[{}]", kModes[static_cast<std::size_t>(mode)]);
  return {.name = name,
          .summary = "E4M3 scales * 128 * a power of two as S0E5M3",
          .out_bits = 8,
          .dtype = DType::f8_e4m3,
          .make = [slot, mode, params,
                   name](const LayerTensors& layer) -> std::shared_ptr<const Recoder> {
            const TensorStack& stack = layer.at(slot);
            check_codes(stack, name);
            const CodeSet present = codes_of(stack);
            const float factor = scale_factor(present, mode, params);
            return std::make_shared<const ByteTable>(name, s0e5m3_table(factor, mode), present);
          }};
}

Recode marlin_s0e5m3(std::int64_t factor) {
  const std::string name = fmt::format("marlin_s0e5m3({})", factor);
  if (factor < 1 || !std::has_single_bit(static_cast<std::uint64_t>(factor))) {
    fail(name, "multiplies by a power of two; give 1, 2, 4, ...");
  }
  return {.name = name,
          .summary = "E4M3 scales * 128 * a power of two as S0E5M3",
          .out_bits = 8,
          .dtype = DType::f8_e4m3,
          .make = [factor, name](const LayerTensors&) -> std::shared_ptr<const Recoder> {
            const CodeTable table = s0e5m3_table(static_cast<float>(factor), MarlinScales::vllm);
            CodeSet not_negative;
            for (std::size_t code = 0; code < 0x80; ++code) not_negative.set(code);
            return std::make_shared<const ByteTable>(name, table, not_negative);
          },
          .needs_layer = false};
}

float marlin_global_scale(float global, float factor, DType params) {
  const float bias = params == DType::f16 ? 0x1p7f : 0x1p119f;
  return global * bias / factor;
}

float round_to_params(float value, DType params) {
  const Format format = *float_format(params);
  return decode(format, encode(format, value, kRounding));
}

Recode marlin_e8m0(Slot slot, DType params, int added) {
  const std::string name = fmt::format("marlin_e8m0[{}{}]", info(*float_format(params)).name,
                                       added != 0 ? fmt::format(" + {}", added) : std::string());
  return {.name = name,
          .summary = "E8M0 scales through the parameter type",
          .out_bits = 8,
          .dtype = DType::f8_e8m0,
          .make = [slot, params, added, name](const LayerTensors& layer) {
            return make_e8m0(layer.at(slot), params, added, name);
          }};
}

Recode marlin_e8m0_plus(std::int64_t added) {
  const std::string name = fmt::format("marlin_e8m0_plus({})", added);
  return {.name = name,
          .summary = "E8M0 scales with a larger exponent",
          .out_bits = 8,
          .dtype = DType::f8_e8m0,
          .make = [added, name](const LayerTensors&) -> std::shared_ptr<const Recoder> {
            CodeTable table;
            for (std::size_t code = 0; code < table.size(); ++code) {
              table[code] = static_cast<std::byte>(code + static_cast<std::size_t>(added));
            }
            return std::make_shared<const ByteTable>(name, table, CodeSet().set());
          },
          .needs_layer = false};
}

Recode marlin_fp8_scales(Slot slot, DType params, MarlinBias bias) {
  const Format to = *float_format(params);
  const float factor = params == DType::f16 ? 0x1p8f : 0x1p120f;
  const bool folds = bias == MarlinBias::in_scales;
  const std::string name = fmt::format("marlin_fp8_scales[{}{}]", info(to).name,
                                       !folds                 ? ""
                                       : params == DType::f16 ? " * 2^8"
                                                              : " * 2^120");
  return {.name = name,
          .summary = "scales in the parameter type, times the exponent bias of E4M3",
          .out_bits = 16,
          .dtype = params,
          .make = [slot, to, factor, folds,
                   name](const LayerTensors& layer) -> std::shared_ptr<const Recoder> {
            const std::optional<Format> from = stored_numbers(layer.at(slot), name, false);
            return std::make_shared<const NumberMap>(name, *from, 16, [=](float scale) {
              const std::uint32_t code = encode(to, scale, kRounding);
              return folds ? encode(to, decode(to, code) * factor, kRounding) : code;
            });
          }};
}

Recode max_scales_w13() {
  return {.name = "max_scales_w13",
          .summary = "per-tensor scales of gate and up replaced by the larger",
          .out_bits = 32,
          .dtype = DType::f32,
          .make = [](const LayerTensors& layer) -> std::shared_ptr<const Recoder> {
            return std::make_shared<const MaxOfExpert>(max_scale(layer.scalars, layer.shape));
          }};
}

}  // namespace moeref::recode
