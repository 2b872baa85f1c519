#include "cli/conform/aiter_forward_operands.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <string>

#include "io/json_file.hpp"
#include "quant/error.hpp"
#include "quant/formats.hpp"

namespace moeref::conform::aiter {
namespace {

using bounds::Arithmetic;
using bounds::BoundedMatrix;

constexpr std::int64_t kBlock = 128;
constexpr std::int64_t kGroup = 32;

std::optional<Format> fp8_format(DType dtype) {
  switch (dtype) {
    case DType::f8_e4m3:
      return Format::e4m3;
    case DType::f8_e5m2:
      return Format::e5m2;
    case DType::f8_e4m3fnuz:
      return Format::e4m3fnuz;
    case DType::f8_e5m2fnuz:
      return Format::e5m2fnuz;
    default:
      return std::nullopt;
  }
}

bool is_one_of(DType dtype, std::initializer_list<DType> known) {
  return std::find(known.begin(), known.end(), dtype) != known.end();
}

std::string in(std::string_view name) { return "in." + std::string(name); }

/// The values of packed E2M1 codes, the even element in the low nibble.
std::vector<double> unpack_fp4(const TensorView& view) {
  const auto& table = decode_table(Format::e2m1);
  std::vector<double> values;
  for (const std::byte byte : view.bytes) {
    const auto code = std::to_integer<unsigned>(byte);
    values.push_back(static_cast<double>(table[code & 15]));
    values.push_back(static_cast<double>(table[code >> 4]));
  }
  return values;
}

/// Whether the last dimension holds `cols` codes of four bits.
bool is_packed(const TensorView& view, std::int64_t cols) {
  return is_one_of(view.dtype, {DType::u8, DType::i8, DType::f4}) && cols % 2 == 0 &&
         stored_width(view) == cols / 2;
}

/// Elements of codes, packed or not, as per_1x32 has them.
std::vector<double> coded_numbers(const GoldenCase& golden, const TensorView& view,
                                  std::int64_t cols) {
  if (is_packed(view, cols)) return unpack_fp4(view);
  const bool whole = view.shape.back() == cols &&
                     (is_one_of(view.dtype, {DType::f8_e4m3, DType::f8_e4m3fnuz, DType::i8}));
  if (!whole) {
    fail(golden.subject(view.name),
         "is {} {}; 1x32 needs {} elements a row: two E2M1 codes a byte (U8), or F8_E4M3, "
         "F8_E4M3FNUZ or I8",
         name(view.dtype), to_string(view.shape), cols);
  }
  return numbers(golden, view);
}

/// Elements that are numbers of their own.
std::vector<double> plain_numbers(const GoldenCase& golden, const TensorView& view,
                                  std::int64_t cols) {
  if (view.shape.back() != cols) {
    fail(golden.subject(view.name), "has shape {}; its rows need {} elements",
         to_string(view.shape), cols);
  }
  return numbers(golden, view);
}

/// E8M0 bytes. 0x00 is 2^-127, 0xFF NaN.
std::vector<double> e8m0_numbers(const GoldenCase& golden, const TensorView& view) {
  if (!is_one_of(view.dtype, {DType::u8, DType::i8, DType::f8_e8m0})) {
    fail(golden.subject(view.name), "is {}; 1x32 needs E8M0 bytes (U8 or F8_E8M0)",
         name(view.dtype));
  }
  std::vector<double> values;
  for (const std::byte byte : view.bytes) {
    values.push_back(
        static_cast<double>(decode_e8m0(std::to_integer<std::uint8_t>(byte), E8M0Decoder::aiter)));
  }
  return values;
}

void need_count(const GoldenCase& golden, const TensorView& view, std::int64_t count,
                std::string_view meaning) {
  if (view.size() == count) return;
  fail(golden.subject(view.name), "has shape {}; needed are {} elements: {}", to_string(view.shape),
       count, meaning);
}

void need_multiple(const GoldenCase& golden, const TensorView& view, std::int64_t size,
                   std::int64_t of) {
  if (size % of == 0) return;
  fail(golden.subject(view.name), "has shape {}; {} is not a multiple of {}", to_string(view.shape),
       size, of);
}

/// The first size of a scale: `most`, or 1 for all. Error: another one.
std::int64_t leading_size(const GoldenCase& golden, const TensorView& scale, std::int64_t most) {
  if (!scale.shape.empty() && (scale.shape[0] == most || scale.shape[0] == 1))
    return scale.shape[0];
  fail(golden.subject(scale.name), "has shape {}; its first size must be {} or 1",
       to_string(scale.shape), most);
}

/// Scale [count or 1, rows or 1] of a stack, one for whole rows.
Factors row_factors(const GoldenCase& golden, const TensorView& scale, std::int64_t count,
                    std::int64_t rows) {
  const std::int64_t leading = leading_size(golden, scale, count);
  const std::int64_t each = scale.size() / leading;
  if (each != rows && each != 1) {
    fail(golden.subject(scale.name), "has shape {}; needed are {} or 1 elements for each of {}",
         to_string(scale.shape), rows, leading);
  }
  return {.values = factors_of(golden, scale),
          .stack_stride = leading == 1 ? 0 : each,
          .row_stride = each == 1 ? 0 : 1,
          .block_cols = 1};
}

const TensorView& scale_input(const GoldenCase& golden, std::string_view name,
                              std::string_view quantity) {
  if (golden.find_input(name) == nullptr) {
    fail(golden.subject(in(name)), "is missing; params.quant {} needs it", quantity);
  }
  return golden.input(name);
}

std::string quantization_text(const GoldenCase& golden) {
  return one_line(golden.text_param("quant").value_or("No"));
}

/// E8M0 bytes for `rows` rows of `cols` elements: those of the first `rows` entries of the tensor,
/// which may be padded.
Factors group_factors(const GoldenCase& golden, const TensorView& scale, std::int64_t rows,
                      std::int64_t cols) {
  std::vector<double> values = e8m0_numbers(golden, scale);
  const std::int64_t groups = cols / kGroup;
  if (scale.shape.empty() || scale.shape[0] < 1) {
    fail(golden.subject(scale.name), "has shape {}; needed is one scale for {} elements",
         to_string(scale.shape), kGroup);
  }
  const std::int64_t kept = std::min(scale.shape[0], rows) * (scale.size() / scale.shape[0]);
  if (kept != rows * groups) {
    fail(golden.subject(scale.name), "has shape {}; needed are {} rows of {} scales",
         to_string(scale.shape), rows, groups);
  }
  values.resize(static_cast<std::size_t>(kept));
  return {.values = std::move(values), .row_stride = groups, .block_cols = kGroup, .col_stride = 1};
}

}  // namespace

double Factors::at(std::int64_t i, std::int64_t row, std::int64_t col) const {
  return values[static_cast<std::size_t>(i * stack_stride + row / block_rows * row_stride +
                                         col / block_cols * col_stride)];
}

BoundedMatrix ScaledStack::matrix(const Arithmetic& arithmetic, std::int64_t i) const {
  BoundedMatrix scaled(rows, cols);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      const double value = values[static_cast<std::size_t>((i * rows + row) * cols + col)];
      scaled.set(row, col,
                 factors.values.empty()
                     ? bounds::exact(value)
                     : scale(arithmetic, bounds::exact(value), factors.at(i, row, col)));
    }
  }
  return scaled;
}

BoundedMatrix ScaledStack::all_rows(const Arithmetic& arithmetic) const {
  BoundedMatrix all(count * rows, cols);
  for (std::int64_t i = 0; i < count; ++i) {
    const BoundedMatrix part = matrix(arithmetic, i);
    const auto copy = [&](const std::vector<double>& from, std::vector<double>& to) {
      std::copy(from.begin(), from.end(), to.begin() + i * rows * cols);
    };
    copy(part.value, all.value);
    copy(part.stored, all.stored);
    copy(part.own, all.own);
  }
  return all;
}

std::vector<double> numbers(const GoldenCase& golden, const TensorView& view) {
  std::vector<double> values;
  if (const auto format = fp8_format(view.dtype)) {
    const auto& table = decode_table(*format);
    for (const std::byte byte : view.bytes)
      values.push_back(static_cast<double>(table[std::to_integer<std::size_t>(byte)]));
    return values;
  }
  if (is_one_of(view.dtype, {DType::f64, DType::f32, DType::bf16, DType::f16})) {
    values = to_doubles(view);
  } else if (is_one_of(view.dtype, {DType::i64, DType::i32, DType::u32, DType::i16, DType::u16,
                                    DType::i8, DType::u8})) {
    for (const std::int64_t value : to_integers(view))
      values.push_back(static_cast<double>(static_cast<float>(value)));
  } else {
    fail(golden.subject(view.name), "is {}; numbers are needed", name(view.dtype));
  }
  for (double& value : values) value = static_cast<double>(static_cast<float>(value));
  return values;
}

std::vector<double> factors_of(const GoldenCase& golden, const TensorView& view) {
  if (!float_format(view.dtype)) {
    fail(golden.subject(view.name), "is {}; F32, BF16 or F16 is needed", name(view.dtype));
  }
  return to_doubles(view);
}

std::int64_t stored_width(const TensorView& view) {
  return view.dtype == DType::f4 ? view.shape.back() / 2 : view.shape.back();
}

void need_dimensions(const GoldenCase& golden, const TensorView& view, std::size_t dimensions,
                     std::string_view meaning) {
  const bool fits =
      view.shape.size() == dimensions &&
      std::all_of(view.shape.begin(), view.shape.end(), [](std::int64_t size) { return size > 0; });
  if (!fits) {
    fail(golden.subject(view.name), "has shape {}, needs {}", to_string(view.shape), meaning);
  }
}

Quantization read_quantization(const GoldenCase& golden) {
  struct Name {
    std::string_view word;
    Quantization quantization;
  };
  static constexpr std::array kNames{
      Name{"no", Quantization::none},
      Name{"none", Quantization::none},
      Name{"per_tensor", Quantization::per_tensor},
      Name{"per_token", Quantization::per_token},
      Name{"per_1x32", Quantization::per_1x32},
      Name{"1x32", Quantization::per_1x32},
      Name{"per_1x128", Quantization::per_1x128},
      Name{"1x128", Quantization::per_1x128},
      Name{"per_128x128", Quantization::per_1x128},
      Name{"128x128", Quantization::per_1x128},
  };
  constexpr std::string_view kEnumeration = "quanttype.";
  const auto given = golden.params.find("quant");
  if (given == golden.params.end() || given->is_null()) return Quantization::none;
  std::string words = golden.text_param("quant").value();
  for (char& letter : words) {
    letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
    if (letter == ',' || letter == '(' || letter == ')') letter = ' ';
  }
  std::size_t begin = 0;
  while (begin < words.size()) {
    const std::size_t end = std::min(words.find(' ', begin), words.size());
    std::string_view word = std::string_view(words).substr(begin, end - begin);
    if (word.starts_with(kEnumeration)) word.remove_prefix(kEnumeration.size());
    for (const Name& known : kNames) {
      if (word == known.word) return known.quantization;
    }
    begin = end + 1;
  }
  fail(golden.subject("params.quant"),
       "is '{}'; needed is one of No, per_Tensor, per_Token, per_1x32, per_1x128, per_128x128",
       quantization_text(golden));
}

bool is_int4_scale(const GoldenCase& golden, std::string_view weight_scale) {
  const TensorView* scale = golden.find_input(weight_scale);
  return scale != nullptr && scale->dtype == DType::bf16;
}

ScaledStack read_weight(const GoldenCase& golden, std::string_view name, Quantization quantization,
                        std::int64_t cols) {
  const TensorView& codes = golden.input(name);
  need_dimensions(golden, codes, 3, "[experts, rows, cols]");
  ScaledStack weight{codes.shape[0], codes.shape[1], cols, {}, {}};
  if (quantization == Quantization::none) {
    weight.values = plain_numbers(golden, codes, cols);
    return weight;
  }
  const std::string scale_name = std::string(name) + "_scale";
  const TensorView& scale = scale_input(golden, scale_name, quantization_text(golden));
  switch (quantization) {
    case Quantization::none:
      break;
    case Quantization::per_tensor:
    case Quantization::per_token:
      weight.values = plain_numbers(golden, codes, cols);
      weight.factors = row_factors(golden, scale, weight.count, weight.rows);
      break;
    case Quantization::per_1x128: {
      weight.values = plain_numbers(golden, codes, cols);
      need_multiple(golden, codes, weight.rows, kBlock);
      need_multiple(golden, codes, cols, kBlock);
      const std::int64_t blocks = weight.rows / kBlock * (cols / kBlock);
      const std::int64_t leading = leading_size(golden, scale, weight.count);
      need_count(golden, scale, leading * blocks, "one for each 128 x 128 block");
      weight.factors = {.values = factors_of(golden, scale),
                        .stack_stride = leading == 1 ? 0 : blocks,
                        .block_rows = kBlock,
                        .row_stride = cols / kBlock,
                        .block_cols = kBlock,
                        .col_stride = 1};
      break;
    }
    case Quantization::per_1x32: {
      need_multiple(golden, codes, cols, kGroup);
      const std::int64_t groups = cols / kGroup;
      need_count(golden, scale, weight.count * weight.rows * groups,
                 "one for 32 elements of a row");
      if (is_int4_scale(golden, scale_name)) {
        if (codes.dtype != DType::i8) {
          fail(golden.subject(codes.name),
               "is {}; BF16 scales are those of int4 codes, one in each "
               "I8",
               moeref::name(codes.dtype));
        }
        weight.values = plain_numbers(golden, codes, cols);
        weight.factors = {.values = factors_of(golden, scale),
                          .stack_stride = groups * weight.rows,
                          .row_stride = 1,
                          .block_cols = kGroup,
                          .col_stride = weight.rows};
        break;
      }
      weight.values = coded_numbers(golden, codes, cols);
      weight.factors = {.values = e8m0_numbers(golden, scale),
                        .stack_stride = weight.rows * groups,
                        .row_stride = groups,
                        .block_cols = kGroup,
                        .col_stride = 1};
      break;
    }
  }
  return weight;
}

ScaledStack read_input(const GoldenCase& golden, Quantization quantization, std::int64_t cols) {
  const TensorView& x = golden.input("x");
  need_dimensions(golden, x, 2, "[tokens, hidden]");
  ScaledStack input{1, x.shape[0], cols, {}, {}};
  const bool scaled = golden.find_input("x_scale") != nullptr;
  const bool groups = quantization == Quantization::per_1x32;
  if (groups && scaled && !is_int4_scale(golden, "w1_scale")) {
    input.values = coded_numbers(golden, x, cols);
    input.factors = group_factors(golden, golden.input("x_scale"), input.rows, cols);
    return input;
  }
  input.values = plain_numbers(golden, x, cols);
  if (groups || quantization == Quantization::none) return input;
  const TensorView& scale = scale_input(golden, "x_scale", quantization_text(golden));
  if (quantization == Quantization::per_1x128) {
    const std::int64_t blocks = scale.size() / input.rows;
    if (blocks < 1 || blocks * input.rows != scale.size() || cols % blocks != 0) {
      fail(golden.subject(scale.name),
           "has shape {}; needed are scales for {} rows, equally many elements of {} for each",
           to_string(scale.shape), input.rows, cols);
    }
    input.factors = {.values = factors_of(golden, scale),
                     .row_stride = blocks,
                     .block_cols = cols / blocks,
                     .col_stride = 1};
    return input;
  }
  Shape shape = scale.shape;
  if (shape.size() > 2) {
    fail(golden.subject(scale.name), "has shape {}; it must broadcast to [{}, {}]",
         to_string(scale.shape), input.rows, cols);
  }
  shape.insert(shape.begin(), 2 - shape.size(), 1);
  if ((shape[0] != 1 && shape[0] != input.rows) || (shape[1] != 1 && shape[1] != cols)) {
    fail(golden.subject(scale.name), "has shape {}; it must broadcast to [{}, {}]",
         to_string(scale.shape), input.rows, cols);
  }
  input.factors = {.values = factors_of(golden, scale),
                   .row_stride = shape[0] == 1 ? 0 : shape[1],
                   .col_stride = shape[1] == 1 ? 0 : 1};
  return input;
}

ScaledStack read_intermediate(const GoldenCase& golden, const TensorView& view,
                              Quantization quantization, std::int64_t tokens, std::int64_t top_k,
                              std::int64_t cols) {
  ScaledStack input{tokens, top_k, cols, {}, {}};
  const std::string_view name = golden.find_input("a2_scale") != nullptr ? "a2_scale" : "h_scale";
  const bool scaled = golden.find_input(name) != nullptr;
  const bool groups = quantization == Quantization::per_1x32;
  if (view.shape.empty()) {
    fail(golden.subject(view.name), "is a scalar, needs [{}, {}, {}]", tokens, top_k, cols);
  }
  if (groups && scaled && !is_int4_scale(golden, "w2_scale")) {
    input.values = coded_numbers(golden, view, cols);
    input.factors = group_factors(golden, golden.input(name), tokens * top_k, cols);
    input.factors.stack_stride = top_k * input.factors.row_stride;
  } else {
    input.values = plain_numbers(golden, view, cols);
  }
  if (static_cast<std::int64_t>(input.values.size()) != tokens * top_k * cols) {
    fail(golden.subject(view.name), "has shape {}, needs [{}, {}, {}]", to_string(view.shape),
         tokens, top_k, cols);
  }
  if (groups || quantization == Quantization::none) return input;
  const TensorView& scale = scale_input(golden, name, quantization_text(golden));
  if (quantization == Quantization::per_1x128) {
    need_multiple(golden, view, cols, kBlock);
    const std::int64_t blocks = cols / kBlock;
    need_count(golden, scale, tokens * top_k * blocks, "one for 128 elements of a row");
    input.factors = {.values = factors_of(golden, scale),
                     .stack_stride = top_k * blocks,
                     .row_stride = blocks,
                     .block_cols = kBlock,
                     .col_stride = 1};
    return input;
  }
  input.factors = row_factors(golden, scale, tokens, top_k);
  return input;
}

}  // namespace moeref::conform::aiter
