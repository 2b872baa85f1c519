#include "cli/layout_place.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <utility>

#include "quant/error.hpp"

namespace moeref::cli {
namespace {

using nlohmann::json;

/// The number of the element at "[1,2,3]".
std::int64_t parse_coordinates(const std::string& text, const PreparedTensor& tensor) {
  if (text.back() != ']') fail("--at", "'{}' has no closing bracket", text);
  std::vector<std::int64_t> place;
  std::size_t at = 1;
  while (at < text.size()) {
    const std::size_t end = std::min(text.find(',', at), text.size() - 1);
    std::string word = text.substr(at, end - at);
    std::erase(word, ' ');
    place.push_back(parse_number(word));
    at = end + 1;
  }
  const Shape& shape = tensor.shape;
  if (place.size() != shape.size()) {
    fail("--at", "{} has {} numbers, {} is {}", text, place.size(), tensor.name, to_string(shape));
  }
  std::int64_t index = 0;
  std::int64_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    if (place[i] >= shape[i]) fail("--at", "{} is outside {}", text, to_string(shape));
    index += place[i] * (tensor.strides.empty() ? stride : tensor.strides[i]);
    stride *= shape[i];
  }
  return index;
}

}  // namespace

std::int64_t parse_number(std::string_view text) {
  const bool hex = text.starts_with("0x") || text.starts_with("0X");
  std::string_view digits = text;
  if (hex) digits.remove_prefix(2);
  std::int64_t value = 0;
  const auto [end, status] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, hex ? 16 : 10);
  if (digits.empty() || status != std::errc{} || end != digits.data() + digits.size() ||
      value < 0) {
    fail("--at", "'{}' is no number; give an element as in 17 or [1,2,3], a byte as in byte:0x1f3",
         text);
  }
  return value;
}

BitRange parse_at(const std::string& text, const PreparedTensor& tensor, std::int64_t bytes) {
  constexpr std::string_view kByte = "byte:";
  BitRange range{};
  if (text.starts_with(kByte)) {
    const std::int64_t byte = parse_number(std::string_view(text).substr(kByte.size()));
    if (byte >= bytes) {
      fail(tensor.name, "byte {} is outside; the tensor has {} bytes", byte, bytes);
    }
    return {byte * 8, 8};
  }
  range.count = info(tensor.dtype).bits;
  const std::int64_t index =
      text.starts_with("[") ? parse_coordinates(text, tensor) : parse_number(text);
  if (index >= bytes * 8 / range.count) {
    fail(tensor.name, "element {} is outside; the tensor has {} of {} bits", index,
         bytes * 8 / range.count, range.count);
  }
  range.first = index * range.count;
  return range;
}

std::uint64_t bits_at(std::span<const std::byte> bytes, std::int64_t first, std::int64_t count) {
  std::uint64_t value = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t bit = first + i;
    const auto byte = std::to_integer<std::uint64_t>(bytes[static_cast<std::size_t>(bit / 8)]);
    value |= (byte >> (bit % 8) & 1u) << i;
  }
  return value;
}

std::string hex_bits(std::uint64_t value, std::int64_t bits) {
  return fmt::format("0x{:0{}X}", value, (bits + 3) / 4);
}

std::string bits_text(std::string_view what, std::int64_t first, int count, std::int64_t whole) {
  if (count == whole) return "";
  return count == 1 ? fmt::format("{} {}", what, first)
                    : fmt::format("{}s {}..{}", what, first, first + count - 1);
}

json to_json(const Meaning& meaning) {
  json entry{{"bit", meaning.bit},
             {"byte", meaning.bit / 8},
             {"bits", meaning.bits},
             {"pad", meaning.pad},
             {"text", describe(meaning)}};
  if (meaning.pad) {
    entry["step"] = meaning.pad_step;
    entry["fill"] = std::to_integer<int>(meaning.fill);
    return entry;
  }
  const LogicalElement& element = meaning.element;
  entry["logical"] = name(element.slot);
  entry["expert"] = element.expert;
  entry["projection"] = element.projection;
  entry["row"] = element.row;
  entry["col"] = element.col;
  entry["block_rows"] = element.block_rows;
  entry["block_cols"] = element.block_cols;
  entry["element_bit"] = meaning.element_bit;
  return entry;
}

const ScalarRecipe& scalar_of(const PreparedLayer& layer, const PreparedTensor& tensor) {
  for (const ScalarRecipe& scalar : layer.recipe.scalars) {
    if (scalar.name == tensor.name) return scalar;
  }
  fail(tensor.name, "is made from no scalars");
}

ScalarOwners scalar_owners(const Subject& subject, const PreparedTensor& tensor) {
  const ScalarRecipe& recipe = scalar_of(subject.layer(), tensor);
  const LayerShape& shape = subject.layer().source->shape;
  const auto bytes = subject.bytes(tensor);
  ScalarOwners owners;
  owners.count = static_cast<std::int64_t>(bytes.size() / sizeof(float));
  const std::int64_t experts = recipe.of_all_experts ? shape.total_experts : shape.experts;
  const std::int64_t expected = recipe.per_expert ? experts * recipe.each : 1;
  if (bytes.empty()) owners.count = expected;
  if (!recipe.per_expert || owners.count != expected) return owners;
  owners.each = recipe.each;
  owners.first = recipe.of_all_experts ? 0 : shape.first_expert;
  return owners;
}

void explain_scalar(const Subject& subject, const PreparedTensor& tensor, std::int64_t index,
                    const GlobalOptions& global) {
  const ScalarRecipe& recipe = scalar_of(subject.layer(), tensor);
  const ScalarOwners owners = scalar_owners(subject, tensor);
  if (index >= owners.count) {
    fail(tensor.name, "element {} is outside; the tensor has {}", index, owners.count);
  }
  json report{{"tensor", tensor.name}, {"index", index}, {"formula", recipe.formula}};
  std::string text = "of no single expert";
  if (owners.each > 0) {
    const std::int64_t expert = owners.first + index / owners.each;
    report["expert"] = expert;
    text = fmt::format("expert {}", expert);
    const std::int64_t number = index % owners.each;
    if (owners.each > 1 && owners.each == subject.layer().source->shape.halves()) {
      report["projection"] = number == 0 ? "gate" : "up";
      text += number == 0 ? ", gate" : ", up";
    } else if (owners.each > 1) {
      report["row"] = number;
      text += fmt::format(", row {} of {}", number, owners.each);
    }
  }
  report["text"] = text + ": " + recipe.formula;
  if (const auto bytes = subject.bytes(tensor); !bytes.empty()) {
    const auto value = load<float>(bytes.data() + index * static_cast<std::int64_t>(sizeof(float)));
    report["value"] = value;
    report["value_bits"] = std::bit_cast<std::uint32_t>(value);
    text += fmt::format(", {} (0x{:08X})", value, std::bit_cast<std::uint32_t>(value));
  }
  if (global.json) {
    print_json(report);
  } else {
    fmt::print("{}[{}]: {}\n  = {}\n", tensor.name, index, text, recipe.formula);
  }
}

}  // namespace moeref::cli
