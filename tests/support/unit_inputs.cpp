#include "tests/support/unit_inputs.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "quant/formats.hpp"
#include "tests/judge/matrix_judge.hpp"

namespace moeref::testing {
namespace {

using Random = std::mt19937_64;

std::uint32_t below(std::uint32_t count, Random& random) {
  return static_cast<std::uint32_t>(random() % count);
}
int between(int low, int high, Random& random) {
  return low + static_cast<int>(below(static_cast<std::uint32_t>(high - low + 1), random));
}
bool chance(std::uint32_t percent, Random& random) { return below(100, random) < percent; }

struct Fields {
  int exponent_bits;
  int fraction_bits;
  int bias;

  int last() const { return (1 << exponent_bits) - 1; }
};

Fields fields_of(Format format) {
  if (format == Format::f32) return {8, 23, 127};
  const MiniFloat mini = mini_float(format);
  return {mini.exponent_bits, mini.mantissa_bits, mini.bias};
}

std::uint32_t sign_of(Format format) {
  const Fields fields = fields_of(format);
  return 1u << (fields.exponent_bits + fields.fraction_bits);
}

/// The largest exponent field that has finite numbers.
int last_finite(Format format) {
  const bool ieee = format == Format::bf16 || format == Format::f16 || format == Format::e5m2 ||
                    format == Format::f32;
  return fields_of(format).last() - (ieee ? 1 : 0);
}

std::uint32_t random_bits(Format format, Random& random) {
  const std::uint32_t sign = sign_of(format);
  return static_cast<std::uint32_t>(random()) & (sign | (sign - 1));
}

std::uint32_t zero(Format format, Random& random) {
  const bool fnuz = format == Format::e4m3fnuz || format == Format::e5m2fnuz;
  return !fnuz && chance(50, random) ? sign_of(format) : 0u;
}

std::uint32_t finite(Format format, int exponent, std::uint32_t fraction, bool negative) {
  const Fields fields = fields_of(format);
  const int field = std::clamp(exponent + fields.bias, 0, last_finite(format));
  std::uint32_t code = static_cast<std::uint32_t>(field) << fields.fraction_bits |
                       (fraction & ((1u << fields.fraction_bits) - 1u));
  if (negative) code |= sign_of(format);
  if (!is_finite_code(format, code)) code ^= code == sign_of(format) ? code : 1u;
  return code;
}

/// A number with this exponent, clamped to the format's; its lowest is the subnormal one.
std::uint32_t with_exponent(Format format, int exponent, Random& random) {
  auto fraction = static_cast<std::uint32_t>(random());
  if (chance(15, random)) fraction = ~0u;
  if (chance(10, random)) fraction = 0;
  return finite(format, exponent, fraction, chance(50, random));
}

std::uint32_t any_finite(Format format, Random& random) {
  const Fields fields = fields_of(format);
  return with_exponent(format, between(0, last_finite(format), random) - fields.bias, random);
}

std::uint32_t subnormal(Format format, Random& random) {
  return with_exponent(format, -fields_of(format).bias, random);
}

std::uint32_t special(Format format, Random& random) {
  const Fields fields = fields_of(format);
  switch (below(4, random)) {
    case 0:
      return zero(format, random);
    case 1:
      return with_exponent(format, fields.last(), random);
    case 2:  // infinity, where there is one
      return static_cast<std::uint32_t>(fields.last()) << fields.fraction_bits |
             (chance(50, random) ? sign_of(format) : 0u);
    default: {
      if (format == Format::e4m3fnuz || format == Format::e5m2fnuz) return 0x80u;
      std::uint32_t code = random_bits(format, random) | static_cast<std::uint32_t>(fields.last())
                                                             << fields.fraction_bits;
      // Only in bits that TF32 has not: it becomes infinity.
      if (format == Format::f32 && chance(50, random)) code &= 0xFF80'1FFFu;
      return code;
    }
  }
}

/// As of normal numbers: half of them 1, a quarter 0, and so on.
int exponent_of_normal(Random& random) {
  return 1 - std::countr_zero(random() | std::uint64_t{1} << 20);
}

std::uint32_t element(UnitInputs inputs, bool is_left, Format format, Random& random) {
  switch (inputs) {
    case UnitInputs::bits:
      return random_bits(format, random);
    case UnitInputs::normal:
      return with_exponent(format, exponent_of_normal(random), random);
    case UnitInputs::middle:
    case UnitInputs::cancelling:
      return with_exponent(format, between(-6, 6, random), random);
    case UnitInputs::zeros:
      return chance(60, random) ? zero(format, random) : any_finite(format, random);
    case UnitInputs::subnormal:
      if (is_left || chance(50, random)) return subnormal(format, random);
      return any_finite(format, random);
    case UnitInputs::special:
      if (chance(4, random)) return special(format, random);
      return with_exponent(format, between(-8, 8, random), random);
    default:
      return any_finite(format, random);
  }
}

/// Exponents of both sides whose sum is `target`, as far as the formats go.
std::pair<int, int> split(Format left, Format right, int target, Random& random) {
  const Fields l = fields_of(left);
  const Fields r = fields_of(right);
  const int low = std::max(-l.bias, target - (last_finite(right) - r.bias));
  const int high = std::min(last_finite(left) - l.bias, target + r.bias);
  const int exponent = low <= high ? between(low, high, random) : std::clamp(target, high, low);
  return {exponent, target - exponent};
}

std::pair<int, int> target_range(UnitInputs inputs, Format left, Format right, Random& random) {
  const auto largest = [](Format format) { return last_finite(format) - fields_of(format).bias; };
  if (inputs == UnitInputs::tiny) {
    const int smallest = -fields_of(left).bias - fields_of(right).bias;
    if (smallest > -120) return {smallest, smallest + 4};
    return chance(50, random) ? std::pair{-150, -118} : std::pair{-138, -128};
  }
  const int most = largest(left) + largest(right);
  if (most > 130) return {116, 128};
  if (most > 20 && chance(50, random)) return {8, 16};  // an f16 accumulator's end
  return {most - 3, most};
}

void fill_by_target(UnitInputs inputs, Format left, Format right, UnitTile& tile, Random& random) {
  const std::size_t k = tile.left.front().size();
  const bool one_sign = chance(50, random);
  const auto [low, high] = target_range(inputs, left, right, random);
  for (std::size_t i = 0; i < k; ++i) {
    const auto [l, r] = split(left, right, between(low, high, random), random);
    for (CodeRow& row : tile.left) row[i] = with_exponent(left, l - between(0, 1, random), random);
    for (CodeRow& row : tile.right) {
      row[i] = with_exponent(right, r - between(0, 1, random), random);
    }
    if (!one_sign) continue;
    for (CodeRow& row : tile.left) row[i] &= ~sign_of(left);
    for (CodeRow& row : tile.right) row[i] &= ~sign_of(right);
  }
}

void fill_equal(Format left, Format right, UnitTile& tile, Random& random) {
  const bool one_sign = chance(70, random);
  const auto fill = [&](Format format, std::vector<CodeRow>& rows) {
    const int bias = fields_of(format).bias;
    const int exponent = between(std::max(-bias, -30), last_finite(format) - bias, random);
    for (CodeRow& row : rows) {
      const bool all_ones = chance(30, random);
      for (std::uint32_t& code : row) {
        const auto fraction = all_ones ? ~0u : static_cast<std::uint32_t>(random());
        code = finite(format, exponent, fraction, !one_sign && chance(50, random));
      }
    }
  };
  fill(left, tile.left);
  fill(right, tile.right);
}

/// Pairs of columns: opposite on the left, equal on the right; some columns stay as they are.
void cancel(Format left, UnitTile& tile, Random& random) {
  std::vector<std::size_t> columns(tile.left.front().size());
  std::iota(columns.begin(), columns.end(), std::size_t{0});
  if (chance(50, random)) std::shuffle(columns.begin(), columns.end(), random);
  const bool fnuz = left == Format::e4m3fnuz || left == Format::e5m2fnuz;
  for (std::size_t i = 0; i + 1 < columns.size(); i += 2) {
    if (chance(10, random)) continue;
    for (CodeRow& row : tile.left) {
      row[columns[i + 1]] = row[columns[i]];
      if (!fnuz || row[columns[i]] != 0) row[columns[i + 1]] ^= sign_of(left);
    }
    for (CodeRow& row : tile.right) row[columns[i + 1]] = row[columns[i]];
  }
}

}  // namespace

const char* name(UnitInputs inputs) {
  switch (inputs) {
    case UnitInputs::bits:
      return "bits";
    case UnitInputs::normal:
      return "normal";
    case UnitInputs::middle:
      return "middle";
    case UnitInputs::wide:
      return "wide";
    case UnitInputs::cancelling:
      return "cancelling";
    case UnitInputs::zeros:
      return "zeros";
    case UnitInputs::signed_zeros:
      return "signed_zeros";
    case UnitInputs::subnormal:
      return "subnormal";
    case UnitInputs::tiny:
      return "tiny";
    case UnitInputs::huge:
      return "huge";
    case UnitInputs::special:
      return "special";
    case UnitInputs::equal_exponents:
      break;
  }
  return "equal_exponents";
}

bool is_finite_code(Format format, std::uint32_t code) {
  return std::isfinite(judge::value_of_code(format, code));
}

UnitTile random_tile(UnitInputs inputs, Format left, Format right, std::size_t rows,
                     std::size_t cols, std::size_t k, std::mt19937_64& random) {
  UnitTile tile{std::vector(rows, CodeRow(k)), std::vector(cols, CodeRow(k))};
  if (inputs == UnitInputs::tiny || inputs == UnitInputs::huge) {
    fill_by_target(inputs, left, right, tile, random);
    return tile;
  }
  if (inputs == UnitInputs::equal_exponents) {
    fill_equal(left, right, tile, random);
    return tile;
  }
  for (CodeRow& row : tile.left) {
    for (std::uint32_t& code : row) code = element(inputs, true, left, random);
  }
  for (CodeRow& row : tile.right) {
    for (std::uint32_t& code : row) code = element(inputs, false, right, random);
  }
  if (inputs == UnitInputs::cancelling) cancel(left, tile, random);
  if (inputs == UnitInputs::signed_zeros) {
    for (std::size_t i = 0; i < k; ++i) {
      const std::uint32_t which = below(3, random);
      for (CodeRow& row : tile.left) row[i] = which == 0 ? row[i] : zero(left, random);
      for (CodeRow& row : tile.right) row[i] = which == 1 ? row[i] : zero(right, random);
    }
  }
  return tile;
}

std::uint32_t random_accumulator(Format accumulator, Format left_format, const CodeRow& left,
                                 Format right_format, const CodeRow& right,
                                 std::mt19937_64& random) {
  const Fields fields = fields_of(accumulator);
  const std::size_t k = random() % left.size();
  const double product =
      judge::value_of_code(left_format, left[k]) * judge::value_of_code(right_format, right[k]);
  const int size = std::isfinite(product) && product != 0.0 ? std::ilogb(product) : 0;
  switch (below(16, random)) {
    case 0:
    case 1:
      return 0;
    case 2:
      return sign_of(accumulator);
    case 3:
      return subnormal(accumulator, random);
    case 4:
      return with_exponent(accumulator, between(1, 3, random) - fields.bias, random);
    case 5:
      return with_exponent(accumulator, fields.last() - between(1, 4, random) - fields.bias,
                           random);
    case 6:
      return random_bits(accumulator, random);
    case 7:
      return chance(50, random)
                 ? special(accumulator, random)
                 : with_exponent(accumulator, size + between(-40, 40, random), random);
    case 8:
    case 9:
      if (accumulator == Format::f32) {
        return std::bit_cast<std::uint32_t>(static_cast<float>(-product));
      }
      return encode(accumulator, static_cast<float>(-product), EncodePolicy::eigen);
    case 10:
    case 11:
      return with_exponent(accumulator, size + between(-30, 30, random), random);
    default:
      return with_exponent(accumulator, size + between(-3, 5, random), random);
  }
}

CodeRow random_block_scales(Format format, std::size_t count, std::mt19937_64& random) {
  CodeRow scales;
  for (std::size_t i = 0; i < count; ++i) {
    const auto any = static_cast<std::uint32_t>(random() & 0xFFu);
    if (format == Format::e8m0) {
      const auto near = static_cast<std::uint32_t>(between(120, 134, random));
      scales.push_back(chance(80, random) ? near : chance(5, random) ? 0xFFu : any);
    } else {
      const std::uint32_t number = any % 0x7Fu | (any & 0x80u);
      scales.push_back(chance(10, random)  ? any & 0x87u  // zero, subnormal
                       : chance(2, random) ? 0x7Fu | (any & 0x80u)
                                           : number);
    }
  }
  return scales;
}

}  // namespace moeref::testing
