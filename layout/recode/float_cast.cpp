#include "layout/recode/float_cast.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>

#include "layout/recode/codes.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::recode {
namespace {

/// The 16-bit code of an f32 that was widened from it: exact, a NaN with its payload.
std::uint32_t narrow_exactly(Format to, std::uint32_t f32_bits) {
  if (to == Format::bf16) return f32_bits >> 16;
  const bool is_nan = (f32_bits & ~kF32SignMask) > kF32Infinity;
  if (is_nan) return (f32_bits >> 16 & 0x8000u) | 0x7C00u | (f32_bits >> 13 & 0x3FFu);
  return encode(to, std::bit_cast<float>(f32_bits), EncodePolicy::eigen);
}

class CastFloats final : public Recoder {
 public:
  CastFloats(std::string name, Format from, Format to)
      : name_(std::move(name)), from_(from), to_(to) {}

  std::string name() const override { return name_; }
  int in_bits() const override { return info(from_).bits; }
  int out_bits() const override { return info(to_).bits; }

  void rewrite(const Place&, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    if (from_ == to_) {
      std::copy(in.begin(), in.end(), out.begin());
      return;
    }
    const std::size_t count = in.size() / static_cast<std::size_t>(in_bits() / 8);
    for (std::size_t i = 0; i < count; ++i) {
      const float value = decode(from_, load_code(in, i, in_bits()));
      store_code(out, i, out_bits(), encode(to_, value, EncodePolicy::eigen));
    }
  }

  bool invertible() const override { return from_ == to_ || to_ == Format::f32; }

  void restore(const Place&, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    if (from_ == to_) {
      std::copy(in.begin(), in.end(), out.begin());
      return;
    }
    for (std::size_t i = 0; i < in.size() / sizeof(float); ++i) {
      store_code(out, i, in_bits(), narrow_exactly(from_, load_code(in, i, 32)));
    }
  }

 private:
  std::string name_;
  Format from_;
  Format to_;
};

class ToE8M0 final : public Recoder {
 public:
  /// `from`: of a number; absent: the elements are E8M0 bytes.
  explicit ToE8M0(std::optional<Format> from) : from_(from) {}

  std::string name() const override { return "to_e8m0"; }
  int in_bits() const override { return from_ ? info(*from_).bits : 8; }
  int out_bits() const override { return 8; }

  void rewrite(const Place&, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    if (!from_) {
      std::copy(in.begin(), in.end(), out.begin());
      return;
    }
    for (std::size_t i = 0; i < out.size(); ++i) {
      const float value = decode(*from_, load_code(in, i, in_bits()));
      out[i] = std::byte{encode_e8m0(value, E8M0Rounding::nearest_even, EncodePolicy::torch)};
    }
  }

  bool invertible() const override { return !from_; }

  void restore(const Place&, std::span<const std::byte> in,
               std::span<std::byte> out) const override {
    std::copy(in.begin(), in.end(), out.begin());
  }

 private:
  std::optional<Format> from_;
};

}  // namespace

Recode cast_floats(Slot slot, DType to) {
  const std::string name = fmt::format("cast_to_{}", moeref::name(*float_format(to)));
  const auto make = [slot, to, name](const LayerTensors& layer) -> std::shared_ptr<const Recoder> {
    const TensorStack& stack = layer.at(slot);
    const std::optional<Format> from = float_format(stack.dtype);
    if (!from) {
      fail(stack.name, "is {}; {} takes F32, BF16 or F16", info(stack.dtype).name, name);
    }
    return std::make_shared<const CastFloats>(name, *from, *float_format(to));
  };
  return {.name = name,
          .summary = fmt::format("to {}, nearest even", info(to).name),
          .out_bits = info(to).bits,
          .dtype = to,
          .make = make,
          .needs_data = false};
}

Recode to_e8m0(Slot slot) {
  const auto make = [slot](const LayerTensors& layer) -> std::shared_ptr<const Recoder> {
    const TensorStack& stack = layer.at(slot);
    const std::optional<Format> from = float_format(stack.dtype);
    if (!from && !is_e8m0_bytes(stack.dtype)) {
      fail(stack.name, "is {}; to_e8m0 takes U8, I8 or F8_E8M0 bytes, or F32, BF16, F16 numbers",
           info(stack.dtype).name);
    }
    return std::make_shared<const ToE8M0>(from);
  };
  return {.name = "to_e8m0",
          .summary = "scales as E8M0 bytes; numbers to the nearest power of two",
          .out_bits = 8,
          .dtype = DType::u8,
          .make = make,
          .needs_data = false};
}

}  // namespace moeref::recode
