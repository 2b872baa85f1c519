#include "tests/support/random_matrix.hpp"

#include <cmath>
#include <cstring>

#include "quant/formats.hpp"

namespace moeref::testing {
namespace {

int exponent_range(Spread spread) {
  switch (spread) {
    case Spread::tame:
      return 2;
    case Spread::wide:
      return 20;
    case Spread::extreme:
      return 120;
  }
  return 0;
}

float random_float(Spread spread, std::mt19937_64& random) {
  const int range = exponent_range(spread);
  std::uniform_real_distribution<float> fraction(-2.0f, 2.0f);
  std::uniform_int_distribution<int> exponent(-range, range);
  return random() % 16 == 0 ? 0.0f : std::ldexp(fraction(random), exponent(random));
}

float random_scale(Spread spread, std::mt19937_64& random) {
  const int range = exponent_range(spread) / 2;
  std::uniform_real_distribution<float> fraction(1.0f, 2.0f);
  std::uniform_int_distribution<int> exponent(-range - 4, range - 4);
  return std::ldexp(fraction(random), exponent(random));
}

template <typename T>
void append(std::vector<std::byte>& bytes, T value) {
  const auto* raw = reinterpret_cast<const std::byte*>(&value);
  bytes.insert(bytes.end(), raw, raw + sizeof(T));
}

void fill_plain(Format format, Spread spread, OwnedMatrix& owned, std::mt19937_64& random) {
  const std::int64_t count = owned.matrix.rows * owned.matrix.cols;
  for (std::int64_t i = 0; i < count; ++i) {
    float value = random_float(spread, random);
    if (format == Format::f16) value = std::fmod(value, 60000.0f);
    if (format == Format::f32) {
      append(owned.codes, value);
    } else {
      append(owned.codes, static_cast<std::uint16_t>(encode(format, value, EncodePolicy::eigen)));
    }
  }
}

void fill_codes(Format format, OwnedMatrix& owned, std::mt19937_64& random) {
  const std::int64_t count = owned.matrix.rows * owned.matrix.cols;
  if (format == Format::e2m1) {
    for (std::int64_t i = 0; i < ceil_div(count, 2); ++i) {
      append(owned.codes, static_cast<std::uint8_t>(random()));
    }
    return;
  }
  while (static_cast<std::int64_t>(owned.codes.size()) < count) {
    const auto code = static_cast<std::uint8_t>(random());
    if (std::isfinite(decode(format, code))) append(owned.codes, code);
  }
}

void add_scales(Format format, Spread spread, std::int64_t block_rows, std::int64_t block_cols,
                OwnedMatrix& owned, std::mt19937_64& random) {
  const std::int64_t block_row_count = ceil_div(owned.matrix.rows, block_rows);
  const std::int64_t block_col_count = ceil_div(owned.matrix.cols, block_cols);
  for (std::int64_t i = 0; i < block_row_count * block_col_count; ++i) {
    const float scale = random_scale(spread, random);
    switch (format) {
      case Format::f32:
        append(owned.scales, scale);
        break;
      case Format::bf16:
        append(owned.scales,
               static_cast<std::uint16_t>(encode(format, scale, EncodePolicy::eigen)));
        break;
      case Format::e8m0:
        append(owned.scales, spread == Spread::extreme && random() % 8 == 0
                                 ? static_cast<std::uint8_t>(random() % 2 == 0 ? 0 : 254)
                                 : static_cast<std::uint8_t>(127 + std::ilogb(scale)));
        break;
      default:
        append(owned.scales, static_cast<std::uint8_t>(1 + random() % 126));
        break;
    }
  }
  owned.matrix.scales =
      ScaleGrid{owned.scales.data(), format, block_rows, block_cols, 0, 0, block_col_count, 1};
}

}  // namespace

const char* name(Scheme scheme) {
  switch (scheme) {
    case Scheme::f32:
      return "f32";
    case Scheme::bf16:
      return "bf16";
    case Scheme::f16:
      return "f16";
    case Scheme::e4m3_tensor:
      return "e4m3_tensor";
    case Scheme::e4m3_row:
      return "e4m3_row";
    case Scheme::e4m3_block128:
      return "e4m3_block128";
    case Scheme::e4m3_block128_bf16:
      return "e4m3_block128_bf16";
    case Scheme::e4m3_group128:
      return "e4m3_group128";
    case Scheme::e5m2_row:
      return "e5m2_row";
    case Scheme::mxfp8:
      return "mxfp8";
    case Scheme::mxfp4:
      return "mxfp4";
    case Scheme::nvfp4_multiplied:
      return "nvfp4_multiplied";
    case Scheme::nvfp4_divided:
      return "nvfp4_divided";
  }
  return "";
}

OwnedMatrix random_matrix(Scheme scheme, Spread spread, std::int64_t rows, std::int64_t cols,
                          std::mt19937_64& random) {
  OwnedMatrix owned;
  ScaledMatrix& matrix = owned.matrix;
  matrix.name = name(scheme);
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.codes.row_stride = cols;
  const auto plain = [&](Format format) {
    matrix.codes.format = format;
    fill_plain(format, spread, owned, random);
  };
  const auto scaled = [&](Format element, Format scale, std::int64_t block_rows,
                          std::int64_t block_cols) {
    matrix.codes.format = element;
    fill_codes(element, owned, random);
    add_scales(scale, spread, block_rows, block_cols, owned, random);
  };
  switch (scheme) {
    case Scheme::f32:
      plain(Format::f32);
      break;
    case Scheme::bf16:
      plain(Format::bf16);
      break;
    case Scheme::f16:
      plain(Format::f16);
      break;
    case Scheme::e4m3_tensor:
      scaled(Format::e4m3, Format::f32, rows, cols);
      break;
    case Scheme::e4m3_row:
      scaled(Format::e4m3, Format::f32, 1, cols);
      break;
    case Scheme::e4m3_block128:
      scaled(Format::e4m3, Format::f32, 128, 128);
      break;
    case Scheme::e4m3_block128_bf16:
      scaled(Format::e4m3, Format::bf16, 128, 128);
      break;
    case Scheme::e4m3_group128:
      scaled(Format::e4m3, Format::f32, 1, 128);
      break;
    case Scheme::e5m2_row:
      scaled(Format::e5m2, Format::f32, 1, cols);
      break;
    case Scheme::mxfp8:
      scaled(Format::e4m3, Format::e8m0, 1, 32);
      break;
    case Scheme::mxfp4:
      scaled(Format::e2m1, Format::e8m0, 1, 32);
      break;
    case Scheme::nvfp4_multiplied:
    case Scheme::nvfp4_divided:
      scaled(Format::e2m1, Format::ue4m3, 1, 16);
      matrix.global_rule =
          scheme == Scheme::nvfp4_divided ? GlobalScaleRule::divide : GlobalScaleRule::multiply;
      matrix.global_scale = random_scale(spread, random);
      break;
  }
  matrix.codes.data = owned.codes.data();
  return owned;
}

}  // namespace moeref::testing
