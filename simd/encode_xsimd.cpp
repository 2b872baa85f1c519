// Numbers to codes, sixteen at a time; compiled once per instruction set like kernels_xsimd.cpp.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simd/encode.hpp"
#include "simd/lanes16.hpp"

namespace moeref::simd::MOEREF_ISA {
namespace {

template <NumberType kType>
constexpr std::size_t kWidth = kType == NumberType::f32 ? 4 : 2;

template <NumberType kType>
F32 load_numbers(const std::byte* from) {
  if constexpr (kType == NumberType::f32) return as_float(load_words(from));
  const U32 bits = load_halves(from);
  if constexpr (kType == NumberType::bf16) return as_float(bits << 16);
  // As the scalar form: the factor 2^112 is the difference of the biases.
  const F32 magnitude = as_float((bits & U32(0x7FFFu)) << 13) * F32(0x1p112f);
  return as_float(as_bits(magnitude) | (bits & U32(0x8000u)) << 16);
}

/// The rule, spread over lanes.
struct Rule {
  explicit Rule(const EncodeRule& rule)
      : addend(rule.addend),
        min_normal(rule.min_normal),
        unit_exponent(static_cast<std::uint32_t>(23 - rule.mantissa_bits) << 23),
        largest(rule.largest) {}
  F32 addend;
  U32 min_normal;
  U32 unit_exponent;
  U32 largest;
};

/// What a loop is compiled for: mantissa and sign of the format, and whether it has the seldom
/// needed parts.
template <int kMantissaBits, int kSignShift, bool kDivides, bool kOthers>
struct Kind {
  static constexpr int dropped = 23 - kMantissaBits;
  static constexpr int sign_shift = kSignShift;
  static constexpr bool divides = kDivides;
  static constexpr bool others = kOthers;
};

template <typename Kind>
[[gnu::always_inline]] inline U32 encode(F32 numbers, F32 factor, const Rule& lanes,
                                         const EncodeRule& rule) {
  F32 y = Kind::divides ? quotient(numbers, factor) : numbers * factor;
  if (Kind::others && rule.rounds_to_bf16) {
    const U32 bits = as_bits(y);
    y = as_float((bits + U32(0x7FFFu) + ((bits >> 16) & U32(1u))) & U32(0xFFFF'0000u));
  }
  if (Kind::others) y = y + lanes.addend;
  const U32 bits = as_bits(y);
  const U32 magnitude = xsimd::min(bits & U32(0x7FFF'FFFFu), lanes.largest);
  const U32 clipped = xsimd::max(magnitude & U32(0x7F80'0000u), lanes.min_normal);
  const U32 unit = clipped + lanes.unit_exponent;
  const F32 sum = as_float(magnitude) + as_float(unit);
  U32 code = as_bits(sum) - unit;
  if (Kind::others && rule.ties_toward_zero) {
    const F32 rounded_by = (sum - as_float(unit)) - as_float(magnitude);
    const auto tie = rounded_by == as_float(unit) * F32(0x1p-24f);
    code = code - as_bits(xsimd::select(tie, as_float(U32(1u)), F32(0.0f)));
  }
  code = code + ((clipped - lanes.min_normal) >> Kind::dropped);
  U32 sign = bits & U32(0x8000'0000u);
  if (Kind::others && rule.drops_sign_of_zero) {
    sign = choose(as_float(code) == F32(0.0f), U32(0u), sign);
  }
  if (Kind::others && rule.sign_unless_positive) {
    sign = choose(as_float(magnitude) == F32(0.0f), U32(0x8000'0000u), sign);
  }
  return code | sign >> Kind::sign_shift;
}

template <NumberType kType, typename Kind, typename Store>
void encode_run(const std::byte* numbers, std::size_t count, std::size_t block,
                const float* factors, const EncodeRule& rule, std::uint8_t* codes, Store store) {
  const Rule lanes(rule);
  std::size_t left = block;
  for (std::size_t i = 0; i < count; i += kEncodeUnit) {
    const F32 factor(*factors);
    U32 unit[kWordBatches];
    for (std::size_t b = 0; b < kWordBatches; ++b) {
      unit[b] = encode<Kind>(load_numbers<kType>(numbers), factor, lanes, rule);
      numbers += kWordLanes * kWidth<kType>;
    }
    store(narrow(unit), codes);
    codes += Store::kBytes;
    left -= kEncodeUnit;
    if (left == 0) {
      left = block;
      ++factors;
    }
  }
}

/// Calls function(Kind) for the rule.
template <int kMantissaBits, typename Store, typename Function>
void with_parts(const EncodeRule& rule, const Function& function) {
  std::uint32_t addend = 0;
  std::memcpy(&addend, &rule.addend, sizeof addend);
  const bool others = rule.rounds_to_bf16 || addend != 0x8000'0000u || rule.ties_toward_zero ||
                      rule.drops_sign_of_zero || rule.sign_unless_positive;
  constexpr int kShift = Store::kSignShift;
  if (others && rule.divides) {
    function(Kind<kMantissaBits, kShift, true, true>{});
  } else if (others) {
    function(Kind<kMantissaBits, kShift, false, true>{});
  } else if (rule.divides) {
    function(Kind<kMantissaBits, kShift, true, false>{});
  } else {
    function(Kind<kMantissaBits, kShift, false, false>{});
  }
}

template <typename Store, typename Function>
void with_kind(const EncodeRule& rule, const Function& function) {
  if constexpr (Store::kBytes == StoreNibbles::kBytes) {
    with_parts<1, Store>(rule, function);
  } else if (rule.mantissa_bits == 3) {
    with_parts<3, Store>(rule, function);
  } else {
    with_parts<2, Store>(rule, function);
  }
}

template <typename Store>
void encode_any(NumberType type, const std::byte* numbers, std::size_t count, std::size_t block,
                const float* factors, const EncodeRule& rule, std::uint8_t* codes, Store store) {
  with_kind<Store>(rule, [&](auto kind) {
    using Kind = decltype(kind);
    switch (type) {
      case NumberType::bf16:
        return encode_run<NumberType::bf16, Kind>(numbers, count, block, factors, rule, codes,
                                                  store);
      case NumberType::f16:
        return encode_run<NumberType::f16, Kind>(numbers, count, block, factors, rule, codes,
                                                 store);
      case NumberType::f32:
        return encode_run<NumberType::f32, Kind>(numbers, count, block, factors, rule, codes,
                                                 store);
    }
  });
}

/// Calls function(std::integral_constant) with the units of a block where that is 1, 2 or 8, so
/// that loops over them are unrolled; else with 0: any number.
template <typename Function>
void with_units(std::size_t block, const Function& function) {
  switch (block) {
    case kEncodeUnit:
      return function(std::integral_constant<std::size_t, 1>{});
    case 2 * kEncodeUnit:
      return function(std::integral_constant<std::size_t, 2>{});
    case 8 * kEncodeUnit:
      return function(std::integral_constant<std::size_t, 8>{});
    default:
      return function(std::integral_constant<std::size_t, 0>{});
  }
}

std::uint32_t largest_word(const std::byte* numbers, std::size_t block) {
  U32 largest(0u);
  for (std::size_t i = 0; i < block; i += kWordLanes) {
    largest = xsimd::max(largest, load_words(numbers + 4 * i) & U32(0x7FFF'FFFFu));
  }
  std::uint32_t lanes[kWordLanes];
  largest.store_unaligned(lanes);
  std::uint32_t result = 0;
  for (const std::uint32_t lane : lanes) result = lane > result ? lane : result;
  return result;
}

void block_amax(NumberType type, const std::byte* numbers, std::size_t blocks, std::size_t block,
                std::uint32_t* amax) {
  if (type == NumberType::f32) {
    for (std::size_t b = 0; b < blocks; ++b) amax[b] = largest_word(numbers + 4 * b * block, block);
    return;
  }
  with_units(block, [&](auto units) {
    const std::size_t count = units() != 0 ? units() * kEncodeUnit : block;
    for (std::size_t b = 0; b < blocks; ++b) {
      amax[b] = largest_half(numbers + 2 * b * count, count);
    }
  });
}

void encode_bytes(NumberType type, const std::byte* numbers, std::size_t count, std::size_t block,
                  const float* factors, const EncodeRule& rule, std::uint8_t* codes) {
  encode_any(type, numbers, count, block, factors, rule, codes, StoreBytes{});
}

void encode_nibbles(NumberType type, const std::byte* numbers, std::size_t count, std::size_t block,
                    const float* factors, const EncodeRule& rule, std::uint8_t* codes) {
  encode_any(type, numbers, count, block, factors, rule, codes, StoreNibbles{});
}

template <Fp4SignRule kSign, std::size_t kUnits, typename Scale>
std::size_t encode_fp4_blocks(const std::byte* numbers, std::size_t blocks, std::size_t block,
                              const std::uint16_t* place_of, const Fp4Block* table,
                              std::uint8_t* codes, std::byte* scales) {
  const std::size_t units = kUnits != 0 ? kUnits : block / kEncodeUnit;
  for (std::size_t b = 0; b < blocks; ++b) {
    const std::size_t place = place_of[largest_half(numbers, units * kEncodeUnit)];
    if (place == 0) return b;
    const Fp4Block& known = table[place];
    const auto scale = static_cast<Scale>(known.scale);
    std::memcpy(scales + b * sizeof(Scale), &scale, sizeof(Scale));
    Halves::Vector below[8];
    for (int k = 0; k < 8; ++k) below[k] = spread_twice(known.below[k]);
    for (std::size_t unit = 0; unit < units; ++unit) {
      const Halves halves = load_16_halves(numbers);
      Halves result;
      for (int part = 0; part < Halves::kVectors; ++part) {
        const Halves::Vector magnitude = both(halves.v[part], spread(0x7FFF));
        Halves::Vector code = spread(0);
        for (int k = 1; k < 8; ++k) code = minus(code, above(magnitude, below[k]));
        Halves::Vector sign = sign_to_bit_3(halves.v[part]);
        if (kSign == Fp4SignRule::negative) sign = both(sign, above(magnitude, below[0]));
        if (kSign == Fp4SignRule::nonzero) sign = both(sign, above(magnitude, below[1]));
        if (kSign == Fp4SignRule::not_positive) {
          sign = either(sign, without(spread(8), above(magnitude, below[0])));
        }
        result.v[part] = either(code, sign);
      }
      StoreNibbles{}(narrow(result), codes);
      numbers += 2 * kEncodeUnit;
      codes += StoreNibbles::kBytes;
    }
  }
  return blocks;
}

std::size_t encode_fp4(const std::byte* numbers, std::size_t blocks, std::size_t block,
                       const std::uint16_t* place_of, const Fp4Block* table, Fp4SignRule sign,
                       std::uint8_t* codes, std::byte* scales, std::size_t scale_bytes) {
  std::size_t done = 0;
  with_units(block, [&](auto units) {
    const auto run = [&](auto rule) {
      const auto encode = scale_bytes == 1 ? encode_fp4_blocks<rule(), units(), std::uint8_t>
                                           : encode_fp4_blocks<rule(), units(), std::uint32_t>;
      done = encode(numbers, blocks, block, place_of, table, codes, scales);
    };
    switch (sign) {
      case Fp4SignRule::bit:
        return run(std::integral_constant<Fp4SignRule, Fp4SignRule::bit>{});
      case Fp4SignRule::negative:
        return run(std::integral_constant<Fp4SignRule, Fp4SignRule::negative>{});
      case Fp4SignRule::nonzero:
        return run(std::integral_constant<Fp4SignRule, Fp4SignRule::nonzero>{});
      case Fp4SignRule::not_positive:
        return run(std::integral_constant<Fp4SignRule, Fp4SignRule::not_positive>{});
    }
  });
  return done;
}

}  // namespace

extern const EncodeKernels encode_kernels;
const EncodeKernels encode_kernels{block_amax, encode_bytes, encode_nibbles, encode_fp4};

}  // namespace moeref::simd::MOEREF_ISA
